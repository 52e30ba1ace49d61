//! Gates made of gates, and gates made of functions.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{Evidence, HealthGate, Verdict, Window};
use crate::{
    backend::Readiness,
    error::{Error, Result},
    model::{Change, GateName},
    plan::Plan,
    wake::Wake,
};

/// How long a part of a combined gate may take; less than the default timeout of the whole, so that one hanging part is
/// told apart from the others.
const PART_TIMEOUT: Duration = Duration::from_secs(8);

/// Healthy when at least so many of its gates are; see [`at_least`].
#[derive(Debug)]
pub struct AtLeast {
    name: GateName,
    need: usize,
    gates: Vec<Arc<dyn HealthGate>>,
}

/// The gate that [`all`] makes.
pub type All = AtLeast;
/// The gate that [`any`] makes.
pub type Any = AtLeast;

/// Healthy when all of these are; unhealthy when one is unhealthy.
///
/// # Errors
/// As [`at_least`].
pub fn all(name: &str, gates: impl IntoIterator<Item = Arc<dyn HealthGate>>) -> Result<All> {
    let gates: Vec<_> = gates.into_iter().collect();
    at_least(gates.len(), name, gates)
}

/// Healthy when one of these is; unhealthy when none can be any more.
///
/// # Errors
/// As [`at_least`].
pub fn any(name: &str, gates: impl IntoIterator<Item = Arc<dyn HealthGate>>) -> Result<Any> {
    at_least(1, name, gates)
}

/// Healthy when `need` of these are; unhealthy when so many are unhealthy that `need` cannot be reached; else
/// inconclusive. They are asked side by side, each for at most 8 seconds.
///
/// # Errors
/// `Invalid` when there are no gates, when `need` is not 1 to their number, or when two have one name.
pub fn at_least(need: usize, name: &str, gates: impl IntoIterator<Item = Arc<dyn HealthGate>>) -> Result<AtLeast> {
    let name = GateName::try_from(name)?;
    let gates: Vec<_> = gates.into_iter().collect();
    if need == 0 || need > gates.len() {
        return Err(Error::invalid(format!(
            "gate {name} needs {need} of {} gates to be healthy; 1 to {} is accepted",
            gates.len(),
            gates.len()
        )));
    }
    for (at, gate) in gates.iter().enumerate() {
        if gates[..at].iter().any(|other| other.name() == gate.name()) {
            return Err(Error::invalid(format!("gate {name} has two gates named {}", gate.name())));
        }
    }
    Ok(AtLeast { name, need, gates })
}

#[async_trait]
impl HealthGate for AtLeast {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let memory = match window.last.as_ref().map(Evidence::recall::<BTreeMap<String, Evidence>>).transpose() {
            Ok(memory) => memory.flatten().unwrap_or_default(),
            Err(e) => return Ok(Verdict::Inconclusive(Evidence::new(window.now, e.chain()))),
        };
        let mut asked = JoinSet::new();
        for (at, gate) in self.gates.iter().enumerate() {
            let gate = Arc::clone(gate);
            let window = Window { last: memory.get(gate.name().as_str()).cloned(), ..window.clone() };
            asked.spawn(async move { (at, tokio::time::timeout(PART_TIMEOUT, gate.judge(&window)).await) });
        }
        let mut verdicts: Vec<Option<Verdict>> = vec![None; self.gates.len()];
        while let Some(answer) = asked.join_next().await {
            // A panic is that part's answer: it stays `None`, which counts as no data below.
            let Ok((at, answer)) = answer else { continue };
            verdicts[at] = Some(match answer {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(e)) => self.blind(at, window, &memory, &e.chain()),
                Err(_) => self.blind(at, window, &memory, "no answer within 8 s"),
            });
        }
        let verdicts: Vec<Verdict> = verdicts
            .into_iter()
            .enumerate()
            .map(|(at, verdict)| verdict.unwrap_or_else(|| self.blind(at, window, &memory, "it panicked")))
            .collect();
        Ok(self.sum(window, &verdicts))
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut found = Readiness::default();
        for gate in &self.gates {
            found = found.and(gate.preflight(change, plan).await?);
        }
        Ok(found)
    }

    fn attach(&self, wake: Wake) {
        for gate in &self.gates {
            gate.attach(wake.clone());
        }
    }
}

impl AtLeast {
    /// A part without an answer keeps the memory it had.
    fn blind(&self, at: usize, window: &Window, memory: &BTreeMap<String, Evidence>, why: &str) -> Verdict {
        let mut evidence = Evidence::new(window.now, why);
        evidence.memory = memory.get(self.gates[at].name().as_str()).and_then(|last| last.memory.clone());
        Verdict::Inconclusive(evidence)
    }

    fn sum(&self, window: &Window, verdicts: &[Verdict]) -> Verdict {
        let named = |wanted: fn(&Verdict) -> bool| -> Vec<String> {
            let parts = self.gates.iter().zip(verdicts).filter(|(_, verdict)| wanted(verdict));
            parts.map(|(gate, verdict)| format!("{}: {}", gate.name(), verdict.evidence().summary)).collect()
        };
        let healthy = verdicts.iter().filter(|v| matches!(v, Verdict::Healthy(_))).count();
        let unhealthy = named(|v| matches!(v, Verdict::Unhealthy(_)));
        let blind = named(|v| matches!(v, Verdict::Inconclusive(_)));
        let memory: BTreeMap<&str, &Evidence> =
            self.gates.iter().map(|gate| gate.name().as_str()).zip(verdicts.iter().map(Verdict::evidence)).collect();
        let memory = serde_json::to_value(memory).unwrap_or(Value::Null);
        // Healthy on data that reaches as far as the best `need` of the healthy parts do.
        let mut reach: Vec<_> =
            verdicts.iter().filter(|v| matches!(v, Verdict::Healthy(_))).map(|v| v.evidence().until).collect();
        reach.sort_unstable_by(|a, b| b.cmp(a));
        let until = reach.get(self.need - 1).copied().unwrap_or(window.now);
        let evidence = |summary: String| {
            Evidence::new(until, summary)
                .fact("healthy", healthy)
                .fact("unhealthy", unhealthy.len())
                .fact("inconclusive", blind.len())
                .fact("need", self.need)
                .remember(memory)
        };
        if healthy >= self.need {
            Verdict::Healthy(evidence(format!("{healthy} of {} healthy", verdicts.len())))
        } else if healthy + blind.len() < self.need {
            Verdict::Unhealthy(evidence(unhealthy.join("; ")))
        } else {
            Verdict::Inconclusive(evidence(blind.join("; ")))
        }
    }
}

/// A gate that is watched but never counts against the candidate: to try a new gate on real rollouts.
#[derive(Debug)]
pub struct DryRun<G>(G);

/// This gate, watched only: whatever it says, the verdict is healthy and the evidence tells what it would have been.
pub const fn dry_run<G: HealthGate>(gate: G) -> DryRun<G> {
    DryRun(gate)
}

#[async_trait]
impl<G: HealthGate> HealthGate for DryRun<G> {
    fn name(&self) -> &GateName {
        self.0.name()
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let (would, mut evidence) = match self.0.judge(window).await {
            Ok(verdict) => (format!("{:?}", verdict.standing()).to_lowercase(), verdict.evidence().clone()),
            Err(e) => {
                let mut evidence = Evidence::new(window.now, e.chain());
                evidence.memory = window.last.as_ref().and_then(|last| last.memory.clone());
                ("inconclusive".into(), evidence)
            }
        };
        evidence.summary = format!("dry run, would be {would}: {}", evidence.summary);
        evidence.until = window.now;
        Ok(Verdict::Healthy(evidence.fact("dry_run", would)))
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut found = self.0.preflight(change, plan).await?;
        // A gate on trial must not refuse a rollout either.
        let on_trial = found.refused.drain(..).map(|why| format!("dry run of {}: {why}", self.name()).into());
        found.not_provable.extend(on_trial.collect::<Vec<_>>());
        Ok(found)
    }

    fn attach(&self, wake: Wake) {
        self.0.attach(wake);
    }
}

type Judge = dyn Fn(Window) -> Pin<Box<dyn Future<Output = Result<Verdict>> + Send>> + Send + Sync;

/// The gate that [`from_fn`] makes.
pub struct FromFn {
    name: GateName,
    judge: Box<Judge>,
}

/// A gate from an async function.
///
/// ```
/// # use rollback_core::gate::{self, Evidence, Verdict};
/// let queue = gate::from_fn("queue", |window| async move {
///     Ok(Verdict::Healthy(Evidence::new(window.now, "the queue is empty")))
/// })?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
///
/// # Errors
/// `Invalid` when the name is not 1 to 64 bytes of printable text.
pub fn from_fn<F, R>(name: &str, judge: F) -> Result<FromFn>
where
    F: Fn(Window) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Verdict>> + Send + 'static,
{
    let judge = Box::new(move |window| Box::pin(judge(window)) as Pin<Box<dyn Future<Output = _> + Send>>);
    Ok(FromFn { name: GateName::try_from(name)?, judge })
}

impl fmt::Debug for FromFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl HealthGate for FromFn {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        (self.judge)(window.clone()).await
    }
}
