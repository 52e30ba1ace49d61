//! A gate that says what the test wants it to say.

use std::{
    collections::VecDeque,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind, Result},
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{GateName, Weight},
    wake::Wake,
};

/// One thing a [`Scripted`] gate can do when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Says [`Verdict::Healthy`].
    Healthy,
    /// Says [`Verdict::Unhealthy`].
    Unhealthy,
    /// Says [`Verdict::Inconclusive`].
    Inconclusive,
    /// Fails with this kind of error.
    Fail(ErrorKind),
    /// Never answers.
    Hang,
    /// Panics.
    Panic,
}

/// A gate with a script. Clones share the script and the count, so a test keeps one and hands out another.
///
/// Each verdict's evidence ends at [`Window::now`], unless [`late_by`](Self::late_by) says otherwise. Its memory counts
/// the verdicts of this rollout through [`Window::last`], so that a test can see whether any was forgotten.
///
/// ```
/// # use rollback_core::{error::ErrorKind, model::Weight, testing::gates::{Answer, Scripted}};
/// let fit = Scripted::healthy("probe");
/// let bad_under_load = Scripted::unhealthy_from("errors", Weight::try_from(50)?);
/// let flaky = Scripted::new("latency", [Answer::Fail(ErrorKind::Unavailable), Answer::Healthy, Answer::Unhealthy]);
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scripted {
    name: GateName,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    next: VecDeque<Answer>,
    then: Answer,
    unhealthy_from: Option<Weight>,
    late_by: Duration,
    asked: u64,
    wakes: Vec<Wake>,
}

impl Scripted {
    /// Gives these answers, one a call, then the last one for ever.
    ///
    /// # Panics
    /// When the name is not a gate's name, or there are no answers.
    pub fn new(name: &str, answers: impl IntoIterator<Item = Answer>) -> Self {
        let name = GateName::try_from(name).unwrap_or_else(|e| panic!("{e}"));
        let mut next: VecDeque<Answer> = answers.into_iter().collect();
        let then = next.pop_back().unwrap_or_else(|| panic!("the script of gate {name} is empty"));
        let script = Script { next, then, unhealthy_from: None, late_by: Duration::ZERO, asked: 0, wakes: Vec::new() };
        Self { name, script: Arc::new(Mutex::new(script)) }
    }

    /// Healthy for ever.
    ///
    /// # Panics
    /// When the name is not a gate's name.
    pub fn healthy(name: &str) -> Self {
        Self::new(name, [Answer::Healthy])
    }

    /// Healthy, but unhealthy whenever the candidate has this share of traffic or more.
    ///
    /// # Panics
    /// When the name is not a gate's name.
    pub fn unhealthy_from(name: &str, weight: Weight) -> Self {
        let gate = Self::healthy(name);
        gate.script().unhealthy_from = Some(weight);
        gate
    }

    /// Its data ends this long before it is asked, as that of a slow metrics server.
    #[must_use]
    pub fn late_by(self, lag: Duration) -> Self {
        self.script().late_by = lag;
        self
    }

    /// From now on it gives this answer, whatever the script said.
    pub fn set(&self, answer: Answer) {
        let mut script = self.script();
        script.next.clear();
        script.then = answer;
        script.unhealthy_from = None;
    }

    /// Makes the engine ask it now.
    pub fn wake(&self) {
        let mut script = self.script();
        script.wakes.retain(|wake| !wake.is_dead());
        script.wakes.iter().for_each(Wake::wake);
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.script().asked
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Script {
    fn answer(&mut self, window: &Window) -> Answer {
        self.asked += 1;
        match self.unhealthy_from {
            Some(weight) if window.weight >= weight => Answer::Unhealthy,
            _ => self.next.pop_front().unwrap_or(self.then),
        }
    }
}

#[async_trait]
impl HealthGate for Scripted {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let (answer, asked, late_by) = {
            let mut script = self.script();
            (script.answer(window), script.asked, script.late_by)
        };
        let seen: u64 = match window.last.as_ref().map(Evidence::recall).transpose()? {
            Some(Some(before)) => before,
            _ => 0,
        };
        let until = window.now.checked_sub(late_by).unwrap_or(window.now);
        let evidence = |says: &str| {
            Evidence::new(until, format!("scripted: {says} at {}", window.weight))
                .fact("asked", asked)
                .remember((seen + 1).into())
        };
        match answer {
            Answer::Healthy => Ok(Verdict::Healthy(evidence("healthy"))),
            Answer::Unhealthy => Ok(Verdict::Unhealthy(evidence("unhealthy"))),
            Answer::Inconclusive => Ok(Verdict::Inconclusive(evidence("no data"))),
            Answer::Fail(kind) => Err(Error::new(kind, format!("gate {} fails by script", self.name))),
            Answer::Hang => future::pending().await,
            Answer::Panic => panic!("gate {} panics by script", self.name),
        }
    }

    fn attach(&self, wake: Wake) {
        self.script().wakes.push(wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock as _, gate::Standing, model::RevisionId, testing::clock::TestClock, wake::Bell};

    fn window(percent: u8, last: Option<Evidence>) -> Window {
        let now = TestClock::new().now();
        Window {
            rollout: "r".parse().unwrap(),
            target: "checkout".parse().unwrap(),
            baseline: RevisionId::try_from("v1").unwrap(),
            candidate: RevisionId::try_from("v2").unwrap(),
            step: 0,
            weight: Weight::try_from(percent).unwrap(),
            created: now,
            since: now,
            now,
            last,
        }
    }

    #[tokio::test]
    async fn a_script_is_followed_and_its_last_answer_repeated() {
        let gate = Scripted::new("g", [Answer::Healthy, Answer::Fail(ErrorKind::Throttled), Answer::Unhealthy]);
        let other_hand = gate.clone();
        assert_eq!(gate.judge(&window(5, None)).await.unwrap().standing(), Standing::Healthy);
        assert_eq!(other_hand.judge(&window(5, None)).await.unwrap_err().kind(), ErrorKind::Throttled);
        for _ in 0..3 {
            assert_eq!(gate.judge(&window(5, None)).await.unwrap().standing(), Standing::Unhealthy);
        }
        assert_eq!(other_hand.asked(), 5);
        other_hand.set(Answer::Inconclusive);
        assert_eq!(gate.judge(&window(5, None)).await.unwrap().standing(), Standing::Inconclusive);
    }

    #[tokio::test]
    async fn a_gate_that_is_unhealthy_from_a_weight_is_healthy_below_it() {
        let gate = Scripted::unhealthy_from("g", Weight::try_from(50).unwrap());
        for (percent, standing) in [(49, Standing::Healthy), (50, Standing::Unhealthy), (49, Standing::Healthy)] {
            assert_eq!(gate.judge(&window(percent, None)).await.unwrap().standing(), standing, "{percent} %");
        }
    }

    #[tokio::test]
    async fn its_memory_counts_through_the_window_and_not_through_the_gate() {
        let first = Scripted::healthy("g").judge(&window(5, None)).await.unwrap();
        let second = Scripted::healthy("g").judge(&window(5, Some(first.evidence().clone()))).await.unwrap();
        assert_eq!(second.evidence().recall::<u64>().unwrap(), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn it_hangs_and_panics_in_the_call_and_nowhere_else() {
        let gate = Scripted::new("g", [Answer::Hang, Answer::Panic, Answer::Healthy]);
        let call = || {
            let gate = gate.clone();
            tokio::spawn(async move { gate.judge(&window(5, None)).await.unwrap().standing() })
        };
        let hung = call();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!hung.is_finished());
        assert!(call().await.unwrap_err().is_panic());
        assert_eq!(call().await.unwrap(), Standing::Healthy);
        hung.abort();
    }

    #[test]
    fn a_wake_of_the_test_reaches_the_engine() {
        let bell = Arc::new(Bell::default());
        let gate = Scripted::healthy("g");
        gate.attach(Wake::new(Arc::downgrade(&bell), Bell::gate_line(0)));
        assert_eq!(bell.take(), 0);
        gate.wake();
        assert_eq!(bell.take(), 1 << Bell::gate_line(0));
    }

    #[tokio::test]
    async fn late_data_ends_before_the_window_does() {
        let gate = Scripted::healthy("g").late_by(Duration::from_secs(30));
        let window = window(5, None);
        let verdict = gate.judge(&window).await.unwrap();
        assert_eq!(window.now.duration_since(verdict.evidence().until).as_secs(), 30);
    }
}
