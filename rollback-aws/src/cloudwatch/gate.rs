//! Alarms as a gate.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use aws_sdk_cloudwatch::types::StateValue;
use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::Readiness,
    clock::{Clock as _, SystemClock},
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{Change, GateName, Note},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Alarms, DESCRIBE_ALARMS, GET_METRIC_DATA, Names,
    alarms::{Alarm, Found, Read},
    metric::{self, Metric},
};

/// Is unhealthy while an alarm of CloudWatch fires that did not fire before the rollout.
///
/// Metric, composite and log alarms alike. No data, with the reason: an alarm in `INSUFFICIENT_DATA`, one with an
/// `EvaluationState` (it says `OK` and could not evaluate), one that is not there, CloudWatch out of reach, too little
/// [`traffic`](Self::traffic). An alarm that treats missing data as good is `OK` while nobody calls the candidate: give
/// every alarm on a rate a metric of the traffic.
///
/// The evidence ends two minutes before the look, because CloudWatch needs that long; so every step stands that much longer
/// than its bake ([`lag`](Self::lag)).
///
/// New alarms are in `INSUFFICIENT_DATA` for some minutes. Where the policy's two minutes without data are too few for
/// that, give it more.
#[derive(Debug)]
pub struct AlarmGate {
    name: GateName,
    alarms: Alarms,
    asked: Vec<Asked>,
    preexisting: Preexisting,
    lag: Duration,
    traffic: Option<(Metric, f64)>,
    #[cfg(feature = "logs")]
    log: Option<super::LogLines>,
}

#[derive(Debug)]
struct Asked {
    name: String,
    /// Where an ARN was given: it must be this alarm.
    arn: Option<String>,
}

/// What alarms mean that fired before the rollout was created. They never count against the candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Preexisting {
    /// The rollout does not begin. The default.
    #[default]
    Refuse,
    /// They are let be, for this reason, which the record shows; also when they end and fire again.
    Ignore(Note),
    /// The rollout begins, and has no data from this gate before they have ended. Firing again, they are new.
    RequireRecovery,
}

impl AlarmGate {
    /// The most alarms that one gate may ask for: what it must remember of those that fired before fits into its memory.
    pub const MAX_ALARMS: usize = 50;

    /// A gate on these alarms, by name or ARN, with [placeholders](super#placeholders).
    ///
    /// # Errors
    /// `Invalid` when the gate's name is none, when there are no alarms or more than [`Self::MAX_ALARMS`], when one is
    /// named twice, or when an ARN is of another region than `alarms` or of no alarm.
    pub fn new<N: Into<String>>(name: &str, alarms: &Alarms, names: impl IntoIterator<Item = N>) -> Result<Self> {
        let name = GateName::try_from(name)?;
        let mut asked: Vec<Asked> = Vec::new();
        for alarm in names {
            let alarm = Asked::read(alarm.into(), alarms).map_err(|e| e.during(format_args!("gate {name}")))?;
            if asked.iter().any(|known| known.name == alarm.name) {
                return Err(Error::invalid(format!(
                    "gate {name} names the alarm {} twice; once is enough",
                    alarm.name
                )));
            }
            asked.push(alarm);
        }
        if asked.is_empty() || asked.len() > Self::MAX_ALARMS {
            let (count, most) = (asked.len(), Self::MAX_ALARMS);
            return Err(Error::invalid(format!("gate {name} has {count} alarms; 1 to {most} are accepted")));
        }
        Ok(Self {
            name,
            alarms: alarms.clone(),
            asked,
            preexisting: Preexisting::default(),
            lag: Duration::from_secs(120),
            traffic: None,
            #[cfg(feature = "logs")]
            log: None,
        })
    }

    /// What alarms mean that fired before the rollout was created.
    #[must_use]
    pub fn preexisting(mut self, preexisting: Preexisting) -> Self {
        self.preexisting = preexisting;
        self
    }

    /// How long before a look its evidence ends; two minutes unless said, and ten seconds or so for alarms with a period of
    /// ten seconds. A step passes when the evidence reaches the end of its bake.
    #[must_use]
    pub const fn lag(mut self, lag: Duration) -> Self {
        self.lag = lag;
        self
    }

    /// No data before the sum of this metric since the step's weight was reached is at least this: a canary that nobody
    /// called raises no alarm.
    #[must_use]
    pub fn traffic(mut self, metric: Metric, at_least: f64) -> Self {
        self.traffic = Some((metric, at_least));
        self
    }

    /// Puts the last lines of a log group into the evidence of a verdict that is unhealthy, as its fact `log`. Off by
    /// default, for logs may hold what is private.
    #[cfg(feature = "logs")]
    #[must_use]
    pub fn with_log_lines(mut self, lines: super::LogLines) -> Self {
        self.log = Some(lines);
        self
    }

    fn names(&self, names: Names<'_>) -> Vec<String> {
        self.asked.iter().map(|asked| names.render(&asked.name)).collect()
    }

    /// The alarm of this name, or why there is no data.
    fn alarm<'r>(&self, asked: &Asked, name: &str, read: &'r Read) -> Result<&'r Alarm> {
        let region = self.alarms.region();
        match &read.found {
            Found::Failed(failure) => Err(failure.error()),
            Found::Missing => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no alarm {name} in {region}; it was deleted, or its name is misspelt"),
            )),
            Found::Several => Err(Error::new(
                ErrorKind::Mixed,
                format!("two alarms in {region} are named {name}; rename one, or name another"),
            )),
            Found::One(alarm) => match &asked.arn {
                Some(arn) if *arn != alarm.arn => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("the alarm {name} here is {}, not {arn}; it is of another account", alarm.arn),
                )),
                _ => Ok(alarm),
            },
        }
    }

    async fn enough(&self, window: &Window) -> Result<Option<String>> {
        let Some((metric, least)) = &self.traffic else { return Ok(None) };
        let sum = metric::sum(self.alarms.client(), metric, Names::of(window), window.since, window.now).await?;
        Ok((sum < *least).then(|| format!("{metric} is {sum} since the step began; at least {least} is needed")))
    }
}

impl Asked {
    fn read(text: String, alarms: &Alarms) -> Result<Self> {
        if !text.starts_with("arn:") {
            if text.is_empty() || text.chars().count() > 255 {
                let long = text.chars().count();
                return Err(Error::invalid(format!("an alarm's name has {long} characters; 1 to 255 are accepted")));
            }
            return Ok(Self { name: text, arn: None });
        }
        // arn:aws:cloudwatch:eu-west-1:123456789012:alarm:web-5xx
        let parts: Vec<&str> = text.splitn(7, ':').collect();
        let [_, partition, "cloudwatch", region, _, "alarm", name] = parts[..] else {
            return Err(Error::invalid(format!(
                "{text} is no alarm's ARN; as arn:aws:cloudwatch:REGION:ACCOUNT:alarm:NAME"
            )));
        };
        if (partition, region) != (alarms.partition(), alarms.region()) {
            return Err(Error::invalid(format!(
                "{text} is in {region}, but alarms are read in {}; read those of {region} by an account opened there",
                alarms.region()
            )));
        }
        Ok(Self { name: name.to_owned(), arn: Some(text) })
    }
}

#[async_trait]
impl HealthGate for AlarmGate {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let memory = match window.last.as_ref().map(Evidence::recall::<Memory>).transpose() {
            Ok(memory) => memory.flatten(),
            Err(e) => return Ok(window.no_data(e.to_string())),
        };
        let names = self.names(Names::of(window));
        let began = Instant::now();
        let reads = self.alarms.read(&names).await;
        let found: Vec<(&String, Result<&Alarm>)> = self
            .asked
            .iter()
            .zip(&names)
            .zip(&reads)
            .map(|((asked, name), read)| (name, self.alarm(asked, name, read)))
            .collect();

        let mut before = BTreeMap::new();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (name, alarm) in &found {
            let known = memory.as_ref().and_then(|memory| memory.before.get(*name));
            let Ok(alarm) = alarm else {
                // Not seen to have ended.
                before.extend(known.map(|at| ((*name).clone(), *at)));
                continue;
            };
            let ignored = matches!(self.preexisting, Preexisting::Ignore(_)) && known.is_some();
            let fires = alarm.state == StateValue::Alarm;
            // Only the first look has to compare CloudWatch's clock with ours.
            let is_old = match &memory {
                Some(_) => ignored || known.is_some_and(|at| Some(*at) == alarm.transitioned),
                None => alarm.transitioned.is_some_and(|at| at < window.created),
            };
            match (fires, is_old) {
                (true, true) => old.push((*name, *alarm)),
                (true, false) => new.push((*name, *alarm)),
                (false, _) => {}
            }
            if let Some(at) = alarm.transitioned.filter(|_| ignored || (fires && is_old)) {
                before.insert((*name).clone(), at);
            }
        }
        let reached = memory.as_ref().and_then(|memory| memory.traffic);
        let mut remember = Memory { before, traffic: reached.filter(|step| *step == window.step) };

        let sent = reads.iter().map(|read| read.sent).min().unwrap_or(began);
        let age = SignedDuration::try_from(began.saturating_duration_since(sent).saturating_add(self.lag));
        let until = window.now.checked_sub(age.unwrap_or_default()).unwrap_or(window.since).max(window.created);
        let evidence = |until: Timestamp, summary: String, memory: &Memory| {
            Evidence::new(until, summary)
                .fact("alarms", names.len())
                .fact("new", new.len())
                .fact("before", old.len())
                .fact("trips", "an alarm that fires and did not fire before the rollout")
                .remember(serde_json::json!(memory))
        };
        if !new.is_empty() {
            let why = format!("{} fire: {}", count(new.len()), list(&new));
            let evidence = evidence(window.now, why, &remember);
            #[cfg(feature = "logs")]
            let evidence = match &self.log {
                None => evidence,
                Some(log) => match log.read(Names::of(window), window.since, window.now).await {
                    None => evidence,
                    Some(lines) => evidence.fact("log", lines),
                },
            };
            return Ok(Verdict::Unhealthy(evidence));
        }
        let no_data = |why: String, memory: &Memory| {
            let until = window.last.as_ref().map_or(window.since, |last| last.until);
            Ok(Verdict::Inconclusive(evidence(until, why, memory)))
        };
        let errors: Vec<&Error> = found.iter().filter_map(|(_, alarm)| alarm.as_ref().err()).collect();
        if let Some(error) = errors.first() {
            if errors.len() == found.len() && memory.is_none() {
                // Which alarms fired before is not known yet, and must not be taken for none.
                return Ok(window.no_data(error.chain()));
            }
            return no_data(error.chain(), &remember);
        }
        let blind = found.iter().find_map(|(name, alarm)| {
            let alarm = alarm.as_ref().ok()?;
            match (&alarm.evaluation, &alarm.state) {
                (Some(evaluation), _) => Some(format!("the alarm {name} could not be evaluated ({evaluation})")),
                (None, StateValue::Ok | StateValue::Alarm) => None,
                (None, state) => Some(format!("the alarm {name} is in {}: {}", state.as_str(), alarm.reason)),
            }
        });
        if let Some(why) = blind {
            return no_data(why, &remember);
        }
        if !old.is_empty() && !matches!(self.preexisting, Preexisting::Ignore(_)) {
            let why = format!("{} fired before the rollout and did not end: {}", count(old.len()), list(&old));
            return no_data(why, &remember);
        }
        if remember.traffic.is_none() {
            match self.enough(window).await {
                Ok(None) => remember.traffic = Some(window.step),
                Ok(Some(why)) => return no_data(why, &remember),
                Err(e) => return no_data(e.chain(), &remember),
            }
        }
        let why = match old.len() {
            0 => format!("none of {} fires", count(found.len())),
            n => format!("none of {} fires, but {n} from before that we ignore", count(found.len())),
        };
        Ok(Verdict::Healthy(evidence(until, why, &remember)))
    }

    /// Refuses alarms that are not there, that fire already, and a missing permission. Warns of guards that may be dead
    /// (`INSUFFICIENT_DATA`), of steps shorter than an alarm needs to fire, and of alarms that are good while nothing is
    /// measured where no traffic is asked for.
    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let gate = format!("gate {}", self.name);
        let names = self.names(Names::of_change(change));
        let reads = self.alarms.read_now(&names).await;
        // One answer proves, or disproves, the permission for all.
        let answer = match reads.iter().find_map(|read| match &read.found {
            Found::Failed(failure) => Some(failure.error()),
            _ => None,
        }) {
            Some(e) => Err(e),
            None => Ok(()),
        };
        if DESCRIBE_ALARMS.prove(&mut ready, answer)?.is_none() {
            return Ok(ready);
        }
        let mut firing = Vec::new();
        for ((asked, name), read) in self.asked.iter().zip(&names).zip(&reads) {
            let alarm = match self.alarm(asked, name, read) {
                Ok(alarm) => alarm,
                Err(e) => {
                    ready = ready.refused(format!("{gate}: {e}"));
                    continue;
                }
            };
            match (&alarm.evaluation, &alarm.state) {
                (Some(evaluation), _) => {
                    ready = ready.not_provable(format!(
                        "{gate}: the alarm {name} could not be evaluated ({evaluation}), so the guard may be dead"
                    ));
                }
                (None, StateValue::Alarm) => firing.push((name, alarm)),
                (None, StateValue::Ok) => {}
                (None, state) => {
                    ready = ready.not_provable(format!(
                        "{gate}: the alarm {name} is in {} ({}), so the guard may be dead; no step passes while it is",
                        state.as_str(),
                        alarm.reason
                    ));
                }
            }
            if let Some(after) = alarm.fires_after {
                let short = plan.steps().iter().position(|step| step.bake < after);
                if let Some(at) = short {
                    ready = ready.not_provable(format!(
                        "{gate}: step {} bakes for {} s, but the alarm {name} takes up to {} s to fire",
                        at + 1,
                        plan.steps()[at].bake.as_secs(),
                        after.as_secs()
                    ));
                }
            }
            if alarm.ok_without_data && self.traffic.is_none() {
                ready = ready.not_provable(format!(
                    "{gate}: the alarm {name} is OK while nothing is measured; ask for traffic beside it"
                ));
            }
            if alarm.ignores_few {
                ready = ready.not_provable(format!(
                    "{gate}: the alarm {name} stays as it is while a period has few samples (fewer than 1,000 for p99)"
                ));
            }
        }
        if let Some((metric, _)) = &self.traffic {
            let now = SystemClock.now();
            let ago = now.checked_sub(SignedDuration::from_mins(5)).unwrap_or(now);
            let answer = metric::sum(self.alarms.client(), metric, Names::of_change(change), ago, now).await;
            GET_METRIC_DATA.prove(&mut ready, answer)?;
        }
        #[cfg(feature = "logs")]
        if let Some(log) = &self.log {
            log.prove(Names::of_change(change), &mut ready).await.map_err(|e| e.during(&gate))?;
        }
        let says = format!("{gate}: {} fire already: {}", count(firing.len()), list(&firing));
        Ok(match &self.preexisting {
            _ if firing.is_empty() => ready,
            Preexisting::Refuse => ready.refused(format!("{says}; they must end first, or be ignored for a reason")),
            Preexisting::Ignore(why) => ready.not_provable(format!("{says}; ignored: {why}")),
            Preexisting::RequireRecovery => ready.not_provable(format!("{says}; no step passes before they end")),
        })
    }

    fn attach(&self, wake: Wake) {
        self.alarms.attach(wake);
    }
}

/// What is kept from look to look.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    /// Alarms that fired before the rollout, and since when by CloudWatch's clock: with another time they are new.
    before: BTreeMap<String, Timestamp>,
    /// The step in which there was traffic enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traffic: Option<usize>,
}

fn count(alarms: usize) -> String {
    if alarms == 1 { "1 alarm".into() } else { format!("{alarms} alarms") }
}

/// The first three, for people.
fn list(alarms: &[(&String, &Alarm)]) -> Note {
    let each = alarms.iter().take(3).map(|(name, alarm)| format!("{name} ({})", alarm.reason));
    let mut text = each.collect::<Vec<_>>().join(", ");
    if alarms.len() > 3 {
        text.push_str(", …");
    }
    Note::new(text)
}
