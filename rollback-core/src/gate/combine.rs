//! Gates made of gates, and gates made of functions.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Evidence, Facts, HealthGate, Standing, Verdict, Window};
use crate::{
    backend::Readiness,
    error::{Error, Result},
    model::{Change, GateName},
    plan::Plan,
    wake::Wake,
};

/// How long a part of a combined gate may take unless said; less than the default timeout of the whole, so that one
/// hanging part is told apart from the others.
const PART_TIMEOUT: Duration = Duration::from_secs(8);

/// Healthy when at least so many of its gates are; see [`at_least`].
#[derive(Debug)]
pub struct AtLeast {
    name: GateName,
    need: usize,
    gates: Vec<Arc<dyn HealthGate>>,
    part_timeout: Duration,
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
/// inconclusive. An error, a panic or no answer in time is that part's lack of data.
///
/// They are asked side by side, each for at most 8 seconds ([`AtLeast::part_timeout`]). Unhealthy is said as soon as it
/// is certain, without waiting for the rest. The verdict reaches as far as the data that decides it does, and the parts
/// share the room for memory, [`Evidence::MAX_LEN`].
///
/// # Errors
/// `Invalid` when there are no gates, when `need` is not 1 to their number, or when two have one name.
pub fn at_least(need: usize, name: &str, gates: impl IntoIterator<Item = Arc<dyn HealthGate>>) -> Result<AtLeast> {
    let name = GateName::try_from(name)?;
    let gates: Vec<_> = gates.into_iter().collect();
    if gates.is_empty() {
        return Err(Error::invalid(format!("gate {name} has no gates; it needs at least one")));
    }
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
    Ok(AtLeast { name, need, gates, part_timeout: PART_TIMEOUT })
}

#[async_trait]
impl HealthGate for AtLeast {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let memory = match window.last.as_ref().map(Evidence::recall::<BTreeMap<String, Evidence>>).transpose() {
            Ok(memory) => memory.flatten().unwrap_or_default(),
            Err(e) => return Ok(window.no_data(e.chain())),
        };
        let windows: Vec<Window> = self
            .gates
            .iter()
            .map(|gate| Window { last: memory.get(gate.name().as_str()).cloned(), ..window.clone() })
            .collect();
        let mut asked = JoinSet::new();
        let mut tasks = Vec::new();
        for (at, (gate, window)) in self.gates.iter().zip(&windows).enumerate() {
            let (gate, window, time) = (Arc::clone(gate), window.clone(), self.part_timeout);
            tasks.push(asked.spawn(async move { (at, answer(&*gate, &window, time).await) }).id());
        }
        let mut verdicts: Vec<Verdict> = windows.iter().map(|window| window.no_data("not waited for")).collect();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((at, verdict)) => verdicts[at] = verdict,
                Err(e) => {
                    if let Some(at) = tasks.iter().position(|task| *task == e.id()) {
                        verdicts[at] = windows[at].no_data("it panicked");
                    }
                }
            }
            // Nothing still to come can bring health: a hanging part must not hold up a breach.
            if self.gates.len() - count(&verdicts, Standing::Unhealthy) < self.need {
                break;
            }
        }
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
    /// How long each part may take. Keep it below the policy's [`timeout`](super::Policy::timeout): when that runs out
    /// first, the answers of the other parts are lost with the hanging one's.
    #[must_use]
    pub const fn part_timeout(mut self, time: Duration) -> Self {
        self.part_timeout = time;
        self
    }

    fn sum(&self, window: &Window, verdicts: &[Verdict]) -> Verdict {
        let (healthy, unhealthy) = (count(verdicts, Standing::Healthy), count(verdicts, Standing::Unhealthy));
        let blind = verdicts.len() - healthy - unhealthy;
        let says = |standing| {
            let parts = self.gates.iter().zip(verdicts).filter(|(_, verdict)| verdict.standing() == standing);
            let parts = parts.map(|(gate, verdict)| format!("{}: {}", gate.name(), verdict.evidence().summary));
            parts.collect::<Vec<_>>().join("; ")
        };
        let evidence = |until, summary| {
            let evidence = Evidence::new(until, summary)
                .fact("healthy", healthy)
                .fact("unhealthy", unhealthy)
                .fact("inconclusive", blind)
                .fact("need", self.need)
                .remember(self.memory(verdicts));
            let whole = evidence.clone().fact("parts", self.facts(verdicts));
            if whole.len() <= Evidence::MAX_LEN { whole } else { evidence }
        };
        let enough_to_fail = verdicts.len() - self.need + 1;
        if healthy >= self.need {
            let until = reach(verdicts, Standing::Healthy, self.need).unwrap_or(window.since);
            Verdict::Healthy(evidence(until, format!("{healthy} of {} healthy", verdicts.len())))
        } else if unhealthy >= enough_to_fail {
            let until = reach(verdicts, Standing::Unhealthy, enough_to_fail).unwrap_or(window.since);
            Verdict::Unhealthy(evidence(until, says(Standing::Unhealthy)))
        } else {
            let until = verdicts.iter().map(|verdict| verdict.evidence().until).min().unwrap_or(window.since);
            Verdict::Inconclusive(evidence(until, says(Standing::Inconclusive)))
        }
    }

    /// What the parts want back. Their facts are for people and stay among the facts, which may be left out when they
    /// are too long; memory may not.
    fn memory(&self, verdicts: &[Verdict]) -> Value {
        let keep = |last: &Evidence| Evidence {
            until: last.until,
            summary: last.summary.chars().take(80).collect(),
            facts: Facts::new(),
            memory: last.memory.clone(),
        };
        let parts = self.gates.iter().zip(verdicts);
        parts.map(|(gate, verdict)| (gate.name().to_string(), json!(keep(verdict.evidence())))).collect()
    }

    fn facts(&self, verdicts: &[Verdict]) -> Value {
        let parts = self.gates.iter().zip(verdicts);
        parts
            .map(|(gate, verdict)| {
                let Evidence { until, summary, facts, .. } = verdict.evidence();
                let part = json!({ "says": verdict.standing(), "why": summary, "until": until, "facts": facts });
                (gate.name().to_string(), part)
            })
            .collect()
    }
}

/// Asks one gate; whatever goes wrong is no data.
async fn answer(gate: &dyn HealthGate, window: &Window, time: Duration) -> Verdict {
    match tokio::time::timeout(time, gate.judge(window)).await {
        Ok(verdict) => verdict.and_then(Verdict::bounded).unwrap_or_else(|e| window.no_data(e.chain())),
        Err(_) => window.no_data(format!("no answer within {time:?}")),
    }
}

fn count(verdicts: &[Verdict], standing: Standing) -> usize {
    verdicts.iter().filter(|verdict| verdict.standing() == standing).count()
}

/// How far the data of the best `enough` verdicts of this standing reaches.
fn reach(verdicts: &[Verdict], standing: Standing, enough: usize) -> Option<Timestamp> {
    let mut reach: Vec<Timestamp> =
        verdicts.iter().filter(|v| v.standing() == standing).map(|v| v.evidence().until).collect();
    reach.sort_unstable_by(|a, b| b.cmp(a));
    reach.get(enough - 1).copied()
}

/// A gate that is watched but never counts against the candidate: to try a new gate on real rollouts.
#[derive(Debug)]
pub struct DryRun<G>(Arc<G>);

/// This gate, watched only: whatever it says or does, the verdict is healthy and the evidence tells what it would have
/// been. It may fail, panic, or hang: after 8 seconds it is not waited for.
pub fn dry_run<G: HealthGate>(gate: G) -> DryRun<G> {
    DryRun(Arc::new(gate))
}

#[async_trait]
impl<G: HealthGate> HealthGate for DryRun<G> {
    fn name(&self) -> &GateName {
        self.0.name()
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let (gate, asked) = (Arc::clone(&self.0), window.clone());
        let verdict = alone(async move { answer(&*gate, &asked, PART_TIMEOUT).await }).await;
        let verdict = verdict.unwrap_or_else(|| window.no_data("it panicked"));
        let told = |verdict: Verdict| {
            let would = verdict.standing();
            let mut evidence = verdict.evidence().clone();
            evidence.summary = format!("dry run, would be {would}: {}", evidence.summary);
            evidence.until = window.now;
            evidence.fact("dry_run", would.to_string()).bounded()
        };
        told(verdict).or_else(|e| told(window.no_data(e.chain()))).map(Verdict::Healthy)
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let (gate, asked, plan) = (Arc::clone(&self.0), change.clone(), plan.clone());
        let looked = async move { tokio::time::timeout(PART_TIMEOUT, gate.preflight(&asked, &plan)).await };
        let found = match alone(looked).await {
            Some(Ok(found)) => found,
            Some(Err(_)) => Ok(Readiness::default().refused(format!("no answer within {PART_TIMEOUT:?}"))),
            None => Ok(Readiness::default().refused("it panicked")),
        };
        let mut found = found.unwrap_or_else(|e| Readiness::default().refused(e.chain()));
        // A gate on trial must not refuse a rollout either.
        let refused = std::mem::take(&mut found.refused);
        found.not_provable.extend(refused.iter().map(|why| format!("dry run of {}: {why}", self.name()).into()));
        Ok(found)
    }

    fn attach(&self, wake: Wake) {
        self.0.attach(wake);
    }
}

/// Runs this in a task of its own, which ends when nobody waits any more; `None` when it panics.
async fn alone<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    task.join_next().await?.ok()
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
