//! P1–P18 under random schedules: random plans, gates, targets, requests, faults, drift, clock jumps and restarts. What
//! must hold is checked on the record, on what was published, and on the target's trace.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseError};
use rollback_core::{
    ErrorKind,
    engine::{Handle, Target},
    gate::{NoData, Policy, Standing, Verdict},
    model::{Goal, Progress, Weight},
    plan::{Approval, Deadlines, Plan, Step},
    request::{Ask, Request},
    rollout::{Rollout, What},
    state::{Cause, Hold, State},
    store::Memory,
    strategy::{AskPerson, Decision, Never, RollbackStrategy},
    testing::{
        clock::TestClock,
        fakes::{Fake, Fault, Happened, Seen, Until},
        gates::{Answer, Scripted},
    },
};
use tokio::time::Instant;

use crate::support::scene::{Scene, checkout, deploy};

type Checked = Result<(), TestCaseError>;

// ---------------------------------------------------------------------------------------------------------------- plans

/// Steps as somebody may write them: mostly valid.
fn steps() -> impl Strategy<Value = Vec<(u8, u64, bool)>> {
    let step = (0_u8..=100, 0_u64..90, prop::bool::weighted(0.15));
    (vec(step, 0..4), 0_u64..90).prop_map(|(mut steps, bake)| {
        steps.sort_by_key(|step| step.0);
        steps.push((100, bake, false));
        steps
    })
}

fn plan(steps: &[(u8, u64, bool)]) -> Plan {
    let steps = steps.iter().map(|(percent, bake, approval)| {
        let step = Step::new(Weight::try_from(*percent).unwrap(), Duration::from_secs(*bake));
        if *approval { step.approved_by(Approval::anyone()) } else { step }
    });
    Plan::new(steps.collect::<Vec<_>>()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_that_is_valid_is_the_same_after_a_round_trip(steps in steps(), seconds in vec(1_u64..1_000_000, 6)) {
        let time = |at: usize| Duration::from_secs(seconds[at]);
        let deadlines = Deadlines {
            preflight: time(0), shift: time(1), overtime: time(2), hold: time(3), promote: time(4), roll_back: time(5),
        };
        let plan = plan(&steps).with_deadlines(deadlines).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan, "{}", json);
    }

    #[test]
    fn a_plan_that_cannot_work_is_refused_by_its_first_bad_step(percents in vec(0_u8..=120, 1..6)) {
        let count = percents.len();
        let bad = percents.iter().position(|percent| *percent > 100);
        let falls = (1..count).find(|at| percents[*at] < percents[at - 1]);
        let json = percents.iter().map(|percent| format!(r#"{{"weight":{percent},"bake":"1m"}}"#)).collect::<Vec<_>>();
        let json = serde_json::from_str::<Plan>(&format!(r#"{{"steps":[{}]}}"#, json.join(",")));
        let built = Plan::canary(percents.iter().copied(), Duration::from_secs(60));
        prop_assert_eq!(json.is_ok(), built.is_ok(), "code and JSON are checked alike");
        let (named, value) = match (bad, falls) {
            (Some(at), _) => (at + 1, percents[at]),
            (None, Some(at)) => (at + 1, percents[at]),
            (None, None) if percents[count - 1] != 100 => (count, percents[count - 1]),
            (None, None) => {
                prop_assert!(built.is_ok());
                return Ok(());
            }
        };
        let refused = built.unwrap_err();
        prop_assert_eq!(refused.kind(), ErrorKind::Invalid);
        let text = refused.chain();
        prop_assert!(text.contains(&format!("step {named}")) && text.contains(&value.to_string()), "{}", text);
    }
}

// ------------------------------------------------------------------------------------------------------------ schedules

/// What somebody or something does to a rollout.
#[derive(Clone, Debug)]
enum Deed {
    Ask(Ask, &'static str),
    Drift(u8),
    /// The next shift but so many suffers this.
    Fault(usize, Fault),
    /// The next look but so many fails.
    FailLook(usize),
    /// So many looks at the way back say that the platform has failed.
    FailBack(usize),
    LandLate,
    /// The wall clock jumps by so many seconds.
    Jump(i64),
    /// The process is told to end, and another one goes on.
    Restart,
}

/// What the target's strategy makes of a tripped gate.
#[derive(Clone, Copy, Debug)]
enum Trip {
    RollsBack,
    AsksPerson,
    Stops,
    CarriesOn,
}

#[derive(Clone, Debug)]
struct CarryOn;

impl RollbackStrategy for CarryOn {
    fn decide(&self, _: &Rollout, _: &Verdict) -> Decision {
        Decision::Continue
    }
}

#[derive(Clone, Debug)]
struct Gate {
    answers: Vec<Answer>,
    policy: Policy,
}

#[derive(Clone, Debug)]
struct Case {
    steps: Vec<(u8, u64, bool)>,
    deadlines: [u64; 6],
    gates: Vec<Gate>,
    several: bool,
    unchecked: bool,
    parts: usize,
    retake: bool,
    answers_a_trip: Trip,
    deeds: Vec<(u64, Deed)>,
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let answer = prop_oneof![
        12 => Just(Answer::Healthy),
        1 => Just(Answer::Unhealthy),
        2 => Just(Answer::Inconclusive),
        1 => Just(Answer::Fail(ErrorKind::Unavailable)),
        1 => Just(Answer::Hang),
        1 => Just(Answer::Panic),
    ];
    vec(answer, 1..24)
}

fn gate() -> impl Strategy<Value = Gate> {
    (answers(), 1_u32..3, 1_u32..4, 1_u32..3, 5_u64..60, any::<bool>()).prop_map(
        |(answers, n, more, k, after, holds)| {
            let after = Duration::from_secs(after);
            let no_data = if holds { NoData::Hold { after } } else { NoData::RollBack { after } };
            let policy = Policy::default().every(Duration::from_secs(5)).timeout(Duration::from_secs(8));
            Gate { answers, policy: policy.unhealthy_after(n, n + more - 1).healthy_after(k).no_data(no_data) }
        },
    )
}

fn deed() -> impl Strategy<Value = Deed> {
    let fault = prop_oneof![
        Just(Fault::Fail(ErrorKind::Unavailable)),
        Just(Fault::Fail(ErrorKind::Throttled)),
        Just(Fault::Fail(ErrorKind::Denied)),
        Just(Fault::Fail(ErrorKind::Conflict)),
        Just(Fault::Fail(ErrorKind::Internal)),
        Just(Fault::LoseAnswer),
        Just(Fault::NoEffect),
        Just(Fault::Panic),
        Just(Fault::Repeat),
        Just(Fault::LandLate(Until::Told)),
        any::<bool>().prop_map(|landed| Fault::Hang { landed }),
    ];
    let who = prop_oneof![Just("ana"), Just("ben")];
    let ask = prop_oneof![
        3 => Just(Ask::Resume),
        2 => Just(Ask::Approve),
        1 => Just(Ask::Abort),
        1 => Just(Ask::Pause),
        1 => Just(Ask::GiveUp),
        1 => Just(Ask::PromoteNow),
        1 => Just(Ask::SkipGate("gate-0".parse().unwrap())),
    ];
    prop_oneof![
        6 => (ask, who).prop_map(|(ask, who)| Deed::Ask(ask, who)),
        1 => (0_u8..=100).prop_map(Deed::Drift),
        6 => (0_usize..4, fault).prop_map(|(at, fault)| Deed::Fault(at, fault)),
        2 => (0_usize..4).prop_map(Deed::FailLook),
        2 => (1_usize..4).prop_map(Deed::FailBack),
        2 => Just(Deed::LandLate),
        1 => (-600_i64..600).prop_map(Deed::Jump),
        2 => Just(Deed::Restart),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let trip = prop_oneof![
        3 => Just(Trip::RollsBack),
        2 => Just(Trip::AsksPerson),
        1 => Just(Trip::Stops),
        2 => Just(Trip::CarriesOn),
    ];
    let target = (any::<bool>(), prop::bool::weighted(0.3), 0_usize..3, any::<bool>(), trip);
    let deeds = vec((0_u64..60, deed()), 0..10);
    (steps(), prop::array::uniform6(30_u64..240), vec(gate(), 0..3), target, deeds).prop_map(
        |(steps, deadlines, gates, (several, unchecked, parts, retake, answers_a_trip), deeds)| Case {
            steps,
            deadlines,
            gates,
            several,
            unchecked,
            parts,
            retake,
            answers_a_trip,
            deeds,
        },
    )
}

/// A whole run, as seen from outside.
struct Run {
    case: Case,
    fake: Fake,
    scene: Scene,
    handle: Handle,
    /// Every rollout that was published, oldest first.
    published: Vec<Rollout>,
    took: Duration,
}

impl Case {
    fn plan(&self) -> Plan {
        let [preflight, shift, overtime, hold, promote, roll_back] = self.deadlines.map(Duration::from_secs);
        let deadlines = Deadlines { preflight, shift, overtime, hold, promote, roll_back };
        plan(&self.steps).with_deadlines(deadlines).unwrap()
    }

    fn target(&self, fake: &Fake, gates: &[Scripted]) -> Target {
        let target = checkout(fake).limits(Duration::from_secs(10), Duration::from_secs(20), Duration::from_secs(20));
        let target = match self.answers_a_trip {
            Trip::RollsBack => target,
            Trip::AsksPerson => target.strategy(AskPerson),
            Trip::Stops => target.strategy(Never::because("the schema was migrated")),
            Trip::CarriesOn => target.strategy(CarryOn),
        };
        self.gates.iter().zip(gates).fold(target, |target, (gate, scripted)| target.gate(scripted.clone(), gate.policy))
    }

    /// P8: as long as it may take to come to rest.
    fn bound(&self) -> Duration {
        let seconds = |at: usize| self.deadlines[at];
        let bakes: u64 = self.steps.iter().map(|step| step.1).sum();
        let once = |n: u64| n * (seconds(1) + seconds(2) + seconds(3)) + bakes;
        let whole = seconds(0) + once(self.steps.len() as u64) + seconds(4) + seconds(5);
        // A state is entered once more, with a deadline of its own, after each answer of a gate that ends a hold without
        // data and after each resume; a wall clock that is set back gives the time back.
        let again: u64 = self.gates.iter().map(|gate| gate.answers.len() as u64).sum();
        let resumes =
            self.deeds.iter().filter(|(_, deed)| matches!(deed, Deed::Ask(..) | Deed::Restart)).count() as u64;
        let back: u64 =
            self.deeds.iter().map(|(_, deed)| if let Deed::Jump(by) = deed { by.unsigned_abs() } else { 0 }).sum();
        let waits: u64 = self.deeds.iter().map(|(wait, _)| wait).sum();
        let every = self.deadlines.iter().sum::<u64>() + bakes;
        Duration::from_secs(whole + (again + resumes) * every + back + waits + 600)
    }

    async fn run(self) -> Run {
        let mut fake = Fake::new("v1", "v2");
        if self.several {
            fake = fake.several_effects();
        }
        if self.unchecked {
            fake = fake.unchecked(Duration::from_secs(25));
        }
        if self.parts > 0 {
            fake = fake.parts(self.parts, Duration::from_secs(3));
        }
        let gates: Vec<Scripted> = (0..)
            .zip(&self.gates)
            .map(|(n, gate)| Scripted::new(&format!("gate-{n}"), gate.answers.iter().copied()))
            .collect();
        let clock = TestClock::new();
        let mut scene = Scene::on(Memory::new(), clock.clone());
        scene.target(self.target(&fake, &gates));
        let begun = Instant::now();
        let new = deploy(self.plan()).id("checkout-1".parse().unwrap());
        let new = if self.retake { new.retake_after_drift() } else { new };
        let mut handle = scene.engine.start(new).await.unwrap();
        let mut published = vec![Rollout::clone(&handle.status())];
        for (wait, deed) in self.deeds.clone() {
            follow(&mut handle, Duration::from_secs(wait), &mut published).await;
            if !handle.status().state.is_open() {
                break;
            }
            match deed {
                // Whatever the answer is: what makes no sense is refused.
                Deed::Ask(ask, by) => drop(handle.ask(ask, by, "by chance").await),
                Deed::Drift(share) => fake.drift(&[("v1", 100 - share), ("v2", share)]),
                Deed::Fault(at, fault) => fake.fault(fake.calls() + at, fault),
                Deed::FailLook(at) => fake.fail_read(fake.reads() + at, ErrorKind::Unavailable),
                Deed::FailBack(times) => fake.fail_goal(Goal::Baseline, times),
                Deed::LandLate => drop(fake.land_late()),
                Deed::Jump(by) => clock.jump(SignedDuration::from_secs(by)),
                Deed::Restart => {
                    scene.engine.shutdown(Duration::from_secs(30)).await;
                    let before = handle.status();
                    published.push(Rollout::clone(&before));
                    scene = Scene::on(scene.store.clone(), clock.clone());
                    scene.target(self.target(&fake, &gates));
                    let resumed = scene.engine.resume_all().await.unwrap();
                    assert!(resumed.refused.is_empty(), "{resumed:?}");
                    if let Some(taken) = resumed.handles.into_iter().next() {
                        handle = taken;
                        published.push(Rollout::clone(&handle.status()));
                    } else {
                        assert!(!before.state.is_open(), "{before} was not taken up");
                    }
                }
            }
        }
        let bound = self.bound();
        while !handle.status().state.is_at_rest() && begun.elapsed() < bound {
            follow(&mut handle, Duration::from_secs(60), &mut published).await;
        }
        published.push(Rollout::clone(&handle.status()));
        Run { took: begun.elapsed(), case: self, fake, scene, handle, published }
    }
}

/// Keeps what is published in this time.
async fn follow(handle: &mut Handle, time: Duration, published: &mut Vec<Rollout>) {
    let until = Instant::now() + time;
    while let Ok(Some(rollout)) = tokio::time::timeout_at(until, handle.changed()).await {
        published.push(Rollout::clone(&rollout));
        if rollout.state.is_at_rest() {
            break;
        }
    }
    if !handle.status().state.is_at_rest() {
        tokio::time::sleep_until(until).await;
    }
}

impl Run {
    fn end(&self) -> &Rollout {
        self.published.last().expect("the first is there")
    }

    fn asked(&self, ask: &Ask) -> impl Iterator<Item = (Timestamp, &Request)> {
        self.end().log.iter().filter_map(move |entry| match &entry.what {
            What::Asked { request, answer } if request.ask == *ask && !answer.as_str().starts_with("refused: ") => {
                Some((entry.at, request))
            }
            _ => None,
        })
    }

    fn trace(&self) -> Vec<Seen> {
        self.fake.trace()
    }

    /// After the first attempt to go back nothing asks for more candidate. In the trace calls stand in their order.
    fn p1_no_way_forward_after_the_way_back(&self) -> Checked {
        let mut back = false;
        for seen in self.trace() {
            if let Happened::Asked(call) = &seen.what {
                prop_assert!(!back || call.goal == Goal::Baseline, "P1: {:?} after a rollback began", call);
                back |= call.goal == Goal::Baseline;
            }
        }
        let mut rolling = false;
        for rollout in &self.published {
            let state = &rollout.state;
            let on_its_way = matches!(state, State::RollingBack { .. } | State::RolledBack { .. });
            let ended = matches!(state, State::Stuck { .. } | State::Abandoned { .. });
            prop_assert!(!rolling || on_its_way || ended, "P1: {} after a rollback was decided", rollout);
            rolling |= on_its_way;
        }
        Ok(())
    }

    /// A tripped gate stays tripped, also across restarts, until somebody resumes.
    fn p1_a_trip_is_kept(&self) -> Checked {
        let resumed = self.asked(&Ask::Resume).next().is_some();
        for pair in self.published.windows(2) {
            for slot in &pair[0].gates {
                let after = pair[1].gate(&slot.name).expect("gates do not come and go");
                let kept = slot.tripped.is_none() || after.tripped == slot.tripped || resumed;
                prop_assert!(kept, "P1: gate {} tripped and nobody resumed", slot.name);
            }
        }
        Ok(())
    }

    fn last_look(&self) -> Option<(Goal, Progress, Weight)> {
        self.trace().into_iter().rev().find_map(|seen| match seen.what {
            Happened::Looked { goal, progress, weight, .. } => Some((goal, progress, weight)),
            _ => None,
        })
    }

    /// Promoted: the last look saw only the candidate serve, or, when the promotion was out of time, all traffic on it.
    fn p2_promoted_is_seen(&self) -> Checked {
        if self.end().state != State::Promoted {
            return Ok(());
        }
        let (goal, progress, weight) = self.last_look().expect("a promotion looks");
        prop_assert!(goal == Goal::Candidate && weight == Weight::ALL, "P2: {:?} {:?} {:?}", goal, progress, weight);
        prop_assert!(progress == Progress::Reached || !self.end().not_restored.is_empty(), "P2: leftovers are named");
        Ok(())
    }

    /// Rolled back: the last look saw only the baseline.
    fn p3_rolled_back_is_seen(&self) -> Checked {
        if let State::RolledBack { .. } = self.end().state {
            prop_assert_eq!(self.last_look(), Some((Goal::Baseline, Progress::Reached, Weight::NONE)), "P3");
            let times = self.end().times;
            prop_assert!(times.decision.is_some() && times.restored.is_some() && times.verified.is_some(), "P3");
        }
        Ok(())
    }

    /// A state that goes on, restarted or not, keeps its deadline; and what a gate has counted is not forgotten.
    fn p7_a_restart_resets_nothing(&self) -> Checked {
        for pair in self.published.windows(2) {
            let same = pair[0].entered == pair[1].entered && pair[0].state.name() == pair[1].state.name();
            if same {
                prop_assert_eq!(pair[0].deadline, pair[1].deadline, "P7: {}", pair[1]);
            }
            if let (State::Baking { step: a, watched: before }, State::Baking { step: b, watched: after }) =
                (&pair[0].state, &pair[1].state)
            {
                prop_assert!(
                    !same || a != b || before <= after,
                    "P7: {:?} of the bake were watched, then {:?}",
                    before,
                    after
                );
            }
            for slot in &pair[0].gates {
                let after = pair[1].gate(&slot.name).expect("gates do not come and go");
                prop_assert!(slot.judged <= after.judged, "P7: {} verdicts of gate {}", after.judged, slot.name);
                let memory = |evidence: &Option<std::sync::Arc<rollback_core::gate::Evidence>>| {
                    evidence.as_ref().and_then(|evidence| evidence.recall::<u64>().unwrap()).unwrap_or_default()
                };
                prop_assert!(memory(&slot.evidence) <= memory(&after.evidence), "P7: gate {} forgets", slot.name);
            }
        }
        Ok(())
    }

    /// It comes to rest in bounded time, whatever happens.
    fn p8_comes_to_rest(&self) -> Checked {
        prop_assert!(self.end().state.is_at_rest(), "P8: still {} after {:?}", self.end(), self.took);
        for rollout in &self.published {
            let waits = !rollout.state.is_at_rest();
            prop_assert_eq!(rollout.deadline.is_some(), waits, "P8: {} has a deadline if it waits", rollout);
        }
        Ok(())
    }

    /// Promoted by itself: every gate that counts said healthy last before the promotion, and no bake was cut short.
    fn p9_no_data_is_no_pass(&self) -> Checked {
        let end = self.end();
        let broken = self.asked(&Ask::PromoteNow).next().is_some();
        if end.state != State::Promoted || broken {
            return Ok(());
        }
        let mut last: BTreeMap<&str, Standing> = BTreeMap::new();
        let mut watched = vec![Duration::ZERO; end.plan.steps().len()];
        for entry in &end.log {
            match &entry.what {
                What::Judged { gate, standing, .. } => drop(last.insert(gate.as_str(), *standing)),
                What::Entered { to: State::Promoting } => break,
                _ => {}
            }
        }
        for slot in end.gates.iter().filter(|slot| slot.counts()) {
            let says = last.get(slot.name.as_str());
            prop_assert_eq!(says, Some(&Standing::Healthy), "P9: gate {} before the promotion", slot.name);
        }
        for rollout in &self.published {
            if let State::Baking { step, watched: seen } = rollout.state {
                watched[step] = watched[step].max(seen);
            }
        }
        let jumps = self.case.deeds.iter().any(|(_, deed)| matches!(deed, Deed::Jump(_)));
        for (at, step) in end.plan.steps().iter().enumerate() {
            let entered = |state: &State| matches!(state, State::Baking { step, .. } if *step == at);
            let begun = end.log.iter().find(|entry| matches!(&entry.what, What::Entered { to } if entered(to)));
            let next = end.log.iter().rev().find(|entry| match &entry.what {
                What::Entered { to: State::Shifting { step } } => *step == at + 1,
                What::Entered { to: State::Promoting } => at + 1 == end.plan.steps().len(),
                _ => false,
            });
            let (begun, next) = (begun.expect("it baked").at, next.expect("it went on").at);
            let time = Duration::try_from(next.duration_since(begun)).unwrap_or_default();
            prop_assert!(jumps || time >= step.bake, "P9: step {} baked for {:?} of {:?}", at + 1, time, step.bake);
        }
        Ok(())
    }

    /// Every decision says who or what, and why, in the record.
    fn p18_is_explained(&self) -> Checked {
        let log = &self.end().log;
        prop_assert!(log.len() <= Rollout::MAX_LOG, "the log has {} lines", log.len());
        if log.iter().any(|entry| matches!(entry.what, What::Cut { .. })) {
            return Ok(());
        }
        let tripped = |name: &str| {
            log.iter().any(|entry| matches!(&entry.what, What::Tripped { gate, why } if gate.as_str() == name && !why.as_str().is_empty()))
        };
        let asked = |wanted: &Ask, who: &str| self.asked(wanted).any(|(_, request)| request.by.as_str() == who);
        let without_data = |name: &str| {
            log.iter().any(|entry| matches!(&entry.what, What::Judged { gate, standing: Standing::Inconclusive, .. } if gate.as_str() == name))
        };
        for entry in log {
            let What::Entered { to } = &entry.what else { continue };
            let explained = match to {
                State::RollingBack { cause } | State::RolledBack { cause } => match cause {
                    Cause::Unhealthy { gate, why } => tripped(gate.as_str()) && !why.as_str().is_empty(),
                    Cause::NoData { gate, why } => without_data(gate.as_str()) && !why.as_str().is_empty(),
                    Cause::Aborted { by, .. } => asked(&Ask::Abort, by.as_str()),
                    Cause::Failed { why } | Cause::Deadline { why } | Cause::Drifted { why } => {
                        !why.as_str().is_empty()
                    }
                },
                State::Holding { why, .. } => match why {
                    Hold::Paused { by, .. } => asked(&Ask::Pause, by.as_str()),
                    Hold::Approval => true,
                    Hold::Unhealthy { gate, .. } => tripped(gate.as_str()),
                    Hold::NoData { gate, .. } => without_data(gate.as_str()),
                },
                State::Stuck { why, .. } => !why.as_str().is_empty(),
                _ => true,
            };
            prop_assert!(explained, "P18: nothing explains {}", to.describe(&self.end().plan));
        }
        Ok(())
    }

    /// What is published is what a record holds.
    fn every_status_survives_the_record(&self) -> Checked {
        for rollout in &self.published {
            let record = rollout.to_record(None, 0).unwrap();
            prop_assert_eq!(&Rollout::from_record(&record).unwrap(), rollout);
        }
        Ok(())
    }

    /// Asking for what is over, or deploying what serves, changes nothing and says so.
    async fn p16_saying_it_again_is_harmless(&self) -> Checked {
        if self.end().state.is_open() {
            return Ok(());
        }
        let calls = self.fake.calls();
        for ask in [Ask::Abort, Ask::Pause, Ask::Resume, Ask::PromoteNow] {
            let answer = self.scene.engine.ask(self.handle.id(), Request::new(ask, "ben", "again").unwrap()).await;
            let answer = answer.map_err(|e| TestCaseError::fail(format!("P16: {}", e.chain())))?;
            prop_assert!(answer.as_str().starts_with("nothing to do"), "P16: {}", answer);
        }
        if self.end().state == State::Promoted && self.fake.only("v2") {
            let again = self.scene.engine.start(deploy(self.case.plan())).await.unwrap().finished().await;
            prop_assert!(again.is_success() && again.rollout.state.name() == "refused", "P16: {}", again);
        }
        prop_assert_eq!(self.fake.calls(), calls, "P16");
        Ok(())
    }

    async fn holds(&self) -> Checked {
        self.p8_comes_to_rest()?;
        self.p1_no_way_forward_after_the_way_back()?;
        self.p1_a_trip_is_kept()?;
        self.p2_promoted_is_seen()?;
        self.p3_rolled_back_is_seen()?;
        self.p7_a_restart_resets_nothing()?;
        self.p9_no_data_is_no_pass()?;
        self.p18_is_explained()?;
        self.every_status_survives_the_record()?;
        self.p16_saying_it_again_is_harmless().await
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_to_a_rollout_the_properties_hold(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let run = case.run().await;
            let held = run.holds().await;
            held.map_err(|e| {
                let lines: Vec<String> =
                    run.end().log.iter().map(|entry| format!("{} {}", entry.at, entry.what.describe(&run.end().plan))).collect();
                TestCaseError::fail(format!("{e}\n{}\n{:#?}", lines.join("\n"), run.fake.trace()))
            })
        })?;
    }
}
