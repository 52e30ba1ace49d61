//! The states of alarms, read once for everybody.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_cloudwatch::{
    Client,
    types::{AlarmType, StateValue},
};
use jiff::Timestamp;
#[cfg(any(feature = "cloudformation", feature = "codedeploy", feature = "ecs"))]
use rollback_core::backend::Readiness;
use rollback_core::{Error, ErrorKind, Result, Wake};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::{Instant, sleep_until},
};

#[cfg(any(feature = "cloudformation", feature = "codedeploy", feature = "ecs"))]
use super::DESCRIBE_ALARMS;
use crate::{account::Account, error::sorted};

/// Reads the states of alarms for all gates of a process: make one for each account and region, and give it to every
/// gate. Clones are the same one.
///
/// All alarms that were asked for lately are read together, 100 a call, when the first of them is asked for again after
/// the interval: so many rollouts cost as many calls as one. Never more than two calls a second leave it, of the nine that
/// CloudWatch grants an account (and that ECS's own guard takes part of). Nothing is read while nobody asks.
///
/// When an alarm begins to fire every gate that reads here is woken at once.
#[derive(Clone)]
pub struct Alarms {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    region: String,
    partition: &'static str,
    interval: Duration,
    board: Mutex<Board>,
    news: watch::Sender<u64>,
    /// When the next call may leave.
    next: AsyncMutex<Instant>,
}

#[derive(Default)]
struct Board {
    lines: BTreeMap<Arc<str>, Line>,
    reading: bool,
    wakes: Vec<Wake>,
}

struct Line {
    asked: Instant,
    read: Option<Read>,
}

/// What was read of one name, by a call that left then.
#[derive(Clone)]
pub(super) struct Read {
    pub(super) sent: Instant,
    pub(super) found: Found,
}

#[derive(Clone)]
pub(super) enum Found {
    One(Arc<Alarm>),
    /// There is none of this name.
    Missing,
    /// An alarm each of several kinds.
    Several,
    Failed(Arc<Failure>),
}

/// What an alarm says to a service that listens to it.
#[cfg(any(feature = "cloudformation", feature = "codedeploy", feature = "ecs"))]
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It is OK.
    Quiet,
    /// It fires: its reason.
    Fires(String),
    /// It is OK or nothing, and that is no evidence: why.
    Blind(String),
    /// There is none of this name.
    Missing,
    /// There are alarms of several kinds of this name.
    Several,
}

/// An error that many are told.
pub(super) struct Failure {
    kind: ErrorKind,
    text: String,
}

impl Failure {
    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone())
    }
}

/// An alarm as the gate needs it.
#[derive(Clone, Debug)]
pub(super) struct Alarm {
    pub(super) arn: String,
    pub(super) state: StateValue,
    pub(super) reason: String,
    pub(super) transitioned: Option<Timestamp>,
    /// Why its state is no evidence, as `PARTIAL_DATA`.
    pub(super) evaluation: Option<String>,
    /// How long bad data takes to make it fire, where it says so.
    pub(super) fires_after: Option<Duration>,
    /// Whether it is OK while nothing is measured.
    pub(super) ok_without_data: bool,
    /// Whether a percentile of few samples leaves it as it is.
    pub(super) ignores_few: bool,
}

impl Alarms {
    /// CloudWatch's limit on names in a call.
    const A_CALL: usize = 100;

    /// The alarms of this account in its region, read every ten seconds.
    pub fn new(account: &Account) -> Self {
        let board = Mutex::default();
        let inner = Inner {
            client: account.cloudwatch(),
            region: account.region().into(),
            partition: account.partition(),
            interval: Duration::from_secs(10),
            board,
            news: watch::Sender::new(0),
            next: AsyncMutex::new(Instant::now()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Reads them this often instead. Alarms change once a minute, those with a shorter period every ten seconds.
    ///
    /// A value of its own: clones made before go on as they are.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        let old = &self.inner;
        let inner = Inner {
            client: old.client.clone(),
            region: old.region.clone(),
            partition: old.partition,
            interval,
            board: Mutex::default(),
            news: watch::Sender::new(0),
            next: AsyncMutex::new(Instant::now()),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(super) fn region(&self) -> &str {
        &self.inner.region
    }

    pub(super) fn partition(&self) -> &'static str {
        self.inner.partition
    }

    /// Wakes this when any alarm begins to fire.
    pub(super) fn attach(&self, wake: Wake) {
        let mut board = self.inner.board();
        board.wakes.retain(|wake| !wake.is_dead());
        board.wakes.push(wake);
    }

    /// Proves that these are quiet now. `what` they are to the service that listens to them, and what it would do
    /// `otherwise`.
    #[cfg(any(feature = "cloudformation", feature = "codedeploy", feature = "ecs"))]
    pub(crate) async fn prove(
        &self,
        ready: &mut Readiness,
        what: &str,
        names: &[String],
        otherwise: &str,
    ) -> Result<()> {
        let Some(states) = DESCRIBE_ALARMS.prove(ready, self.states(names).await)? else { return Ok(()) };
        for (name, state) in names.iter().zip(states) {
            let (among, note) = match state {
                State::Quiet => (&mut ready.proved, format!("{what} {name} does not fire")),
                State::Blind(why) => (&mut ready.not_provable, format!("that {what} {name} sees anything: {why}")),
                State::Fires(why) => {
                    (&mut ready.refused, format!("{what} {name} fires already: {otherwise}; it says: {why}"))
                }
                State::Missing => (&mut ready.refused, format!("{what} {name} is not there: {otherwise}")),
                State::Several => (&mut ready.refused, format!("{what} {name} names several alarms: {otherwise}")),
            };
            among.push(note.into());
        }
        Ok(())
    }

    /// What each of these would say to a service that listens to it now.
    #[cfg(any(feature = "cloudformation", feature = "codedeploy", feature = "ecs"))]
    async fn states(&self, names: &[String]) -> Result<Vec<State>> {
        let states = self.read_now(names).await.into_iter().map(|read| {
            Ok(match read.found {
                Found::One(alarm) => match (&alarm.state, &alarm.evaluation) {
                    (StateValue::Alarm, _) => State::Fires(alarm.reason.clone()),
                    (StateValue::Ok, None) => State::Quiet,
                    (StateValue::Ok, Some(how)) => State::Blind(format!("its evaluation is {how}")),
                    (StateValue::InsufficientData, _) => State::Blind("it has no data".into()),
                    (other, _) => State::Blind(format!("it is {other}")),
                },
                Found::Missing => State::Missing,
                Found::Several => State::Several,
                Found::Failed(failure) => return Err(failure.error()),
            })
        });
        states.collect()
    }

    /// What is known of these names, not older than the interval.
    pub(super) async fn read(&self, names: &[String]) -> Vec<Read> {
        self.read_until(names, |inner, sent, _| sent.elapsed() < inner.interval).await
    }

    /// What is true of these names now.
    pub(super) async fn read_now(&self, names: &[String]) -> Vec<Read> {
        self.read_until(names, |_, sent, began| sent >= began).await
    }

    async fn read_until(&self, names: &[String], good: fn(&Inner, Instant, Instant) -> bool) -> Vec<Read> {
        let began = Instant::now();
        let mut news = self.inner.news.subscribe();
        loop {
            news.borrow_and_update();
            {
                let mut board = self.inner.board();
                let mut found = Vec::with_capacity(names.len());
                for name in names {
                    let line = board.line(name);
                    line.asked = Instant::now();
                    found.extend(line.read.clone().filter(|read| good(&self.inner, read.sent, began)));
                }
                if found.len() == names.len() {
                    return found;
                }
                if !board.reading {
                    board.reading = true;
                    // A task of its own: whoever asked may be dropped half way, and others wait for the same answer.
                    tokio::spawn(Round(Arc::clone(&self.inner)).run(began));
                }
            }
            // The sender lives as long as we do.
            let _ = news.changed().await;
        }
    }
}

impl Board {
    fn line(&mut self, name: &str) -> &mut Line {
        if !self.lines.contains_key(name) {
            self.lines.insert(name.into(), Line { asked: Instant::now(), read: None });
        }
        self.lines.get_mut(name).expect("it was just put there")
    }
}

impl Inner {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another call may leave.
    async fn turn(&self) {
        let mut next = self.next.lock().await;
        sleep_until(*next).await;
        *next = Instant::now() + BETWEEN_CALLS;
    }

    /// Everything that is asked for, read again, those first that were not read for longest.
    fn due(&self, began: Instant) -> Vec<Arc<str>> {
        let mut board = self.board();
        let forget = (self.interval * 3).max(Duration::from_secs(60));
        board.lines.retain(|_, line| line.asked.elapsed() < forget);
        let mut due: Vec<(Option<Instant>, Arc<str>)> = board
            .lines
            .iter()
            .map(|(name, line)| (line.read.as_ref().map(|read| read.sent), Arc::clone(name)))
            .filter(|(sent, _)| sent.is_none_or(|sent| sent < began))
            .collect();
        due.sort_by_key(|(sent, _)| *sent);
        due.into_iter().map(|(_, name)| name).collect()
    }

    async fn describe(&self, names: &[Arc<str>]) -> Result<BTreeMap<String, Vec<Alarm>>> {
        let mut found: BTreeMap<String, Vec<Alarm>> = BTreeMap::new();
        let mut token = None;
        loop {
            self.turn().await;
            let call = self.client.describe_alarms();
            let call = call.set_alarm_names(Some(names.iter().map(|name| String::from(&**name)).collect()));
            // Of the kinds that are not asked for nothing is said, as if they were not there.
            let kinds = [AlarmType::MetricAlarm, AlarmType::CompositeAlarm, AlarmType::LogAlarm];
            let call = call.set_alarm_types(Some(kinds.into())).max_records(100).set_next_token(token);
            let said = call.send().await.map_err(|e| sorted("reading alarms", e))?;
            let mut add = |name: Option<&str>, alarm: Alarm| {
                found.entry(name.unwrap_or_default().to_owned()).or_default().push(alarm);
            };
            for alarm in said.metric_alarms() {
                add(
                    alarm.alarm_name(),
                    Alarm {
                        evaluation: alarm.evaluation_state().map(|state| state.as_str().to_owned()),
                        fires_after: fires_after(alarm),
                        ok_without_data: alarm.treat_missing_data() == Some("notBreaching"),
                        ignores_few: alarm.evaluate_low_sample_count_percentile() == Some("ignore"),
                        ..told(
                            alarm.alarm_arn(),
                            alarm.state_value(),
                            alarm.state_reason(),
                            alarm.state_transitioned_timestamp(),
                        )
                    },
                );
            }
            for alarm in said.composite_alarms() {
                add(
                    alarm.alarm_name(),
                    told(
                        alarm.alarm_arn(),
                        alarm.state_value(),
                        alarm.state_reason(),
                        alarm.state_transitioned_timestamp(),
                    ),
                );
            }
            for alarm in said.log_alarms() {
                add(
                    alarm.alarm_name(),
                    told(
                        alarm.alarm_arn(),
                        alarm.state_value(),
                        alarm.state_reason(),
                        alarm.state_transitioned_timestamp(),
                    ),
                );
            }
            token = said.next_token().filter(|token| !token.is_empty()).map(String::from);
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    fn store(&self, names: &[Arc<str>], sent: Instant, found: Result<BTreeMap<String, Vec<Alarm>>>) {
        let failed = found.as_ref().err().map(|e| Arc::new(Failure { kind: e.kind(), text: e.chain() }));
        let mut found = found.unwrap_or_default();
        let mut fires = false;
        let mut board = self.board();
        for name in names {
            let of_this_name = match (&failed, found.remove(&**name).unwrap_or_default()) {
                (Some(failure), _) => Found::Failed(Arc::clone(failure)),
                (None, mut all) => match (all.pop(), all.len()) {
                    (None, _) => Found::Missing,
                    (Some(one), 0) => Found::One(Arc::new(one)),
                    (Some(_), _) => Found::Several,
                },
            };
            let Some(line) = board.lines.get_mut(name) else { continue };
            let fired = line.read.as_ref().is_some_and(|read| read.found.fires());
            fires |= of_this_name.fires() && !fired;
            line.read = Some(Read { sent, found: of_this_name });
        }
        if fires {
            for wake in &board.wakes {
                wake.wake();
            }
        }
        drop(board);
        self.news.send_modify(|round| *round += 1);
    }
}

impl Found {
    fn fires(&self) -> bool {
        matches!(self, Self::One(alarm) if alarm.state == StateValue::Alarm)
    }
}

/// One reading of everything. However it ends, the next one may begin.
struct Round(Arc<Inner>);

impl Round {
    async fn run(self, began: Instant) {
        for names in self.0.due(began).chunks(Alarms::A_CALL) {
            let sent = Instant::now();
            let found = self.0.describe(names).await;
            self.0.store(names, sent, found);
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.0.board().reading = false;
        self.0.news.send_modify(|round| *round += 1);
    }
}

fn told(
    arn: Option<&str>,
    state: Option<&StateValue>,
    reason: Option<&str>,
    transitioned: Option<&aws_sdk_cloudwatch::primitives::DateTime>,
) -> Alarm {
    Alarm {
        arn: arn.unwrap_or_default().into(),
        // A state that is not told is none that we know.
        state: state.cloned().unwrap_or_else(|| StateValue::from("none")),
        reason: reason.unwrap_or_default().into(),
        transitioned: transitioned.and_then(|at| {
            i32::try_from(at.subsec_nanos()).ok().and_then(|nanos| Timestamp::new(at.secs(), nanos).ok())
        }),
        evaluation: None,
        fires_after: None,
        ok_without_data: false,
        ignores_few: false,
    }
}

/// So many bad periods, and the time that CloudWatch was observed to take after them.
fn fires_after(alarm: &aws_sdk_cloudwatch::types::MetricAlarm) -> Option<Duration> {
    let in_math = || alarm.metrics().iter().find_map(|query| query.metric_stat()?.period());
    let period = u32::try_from(alarm.period().or_else(in_math)?).ok()?;
    let periods = u32::try_from(alarm.datapoints_to_alarm().or_else(|| alarm.evaluation_periods())?).ok()?;
    Some(Duration::from_secs(u64::from(period) * u64::from(periods)) + TO_FIRE)
}

impl fmt::Debug for Alarms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alarms = self.inner.board().lines.len();
        f.debug_struct("Alarms").field("region", &self.inner.region).field("alarms", &alarms).finish_non_exhaustive()
    }
}

/// Two calls a second.
const BETWEEN_CALLS: Duration = Duration::from_millis(500);

/// Between the end of the last bad period and the alarm: 2 min 13 s were observed with a period of 60 s.
pub(super) const TO_FIRE: Duration = Duration::from_secs(135);
