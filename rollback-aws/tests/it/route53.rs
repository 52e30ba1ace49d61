//! Weighted records as a backend: the conformance suite, the sweeps, and what is special about them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rollback_aws::{
    route53::{CHANGE, ROLLOUT, Weighted},
    testing::{
        Refusal, Simulator,
        fault::{Fault, Trouble},
        route53::Snapshot,
    },
};
use rollback_core::{
    ErrorKind,
    backend::{DeploymentBackend, Readiness},
    engine::{Engine, NewRollout, Target},
    model::{Change, Goal, Progress, Revision, RolloutId, TargetId, Weight},
    plan::Plan,
    store::Memory,
    testing::{
        backend::{self, Bench, Driver, Outcome},
        sweep::Sweep,
    },
};

const ZONE: &str = "Z1EXAMPLE";
const NAME: &str = "api.example.com";

/// A zone with weighted records of two types, blue serving.
struct Dns {
    aws: Simulator,
    pristine: Snapshot,
    resets: AtomicU64,
    propagation: Duration,
}

impl Dns {
    fn new() -> Self {
        let aws = Simulator::new();
        aws.route53().zone(ZONE, "example.com");
        for (kind, blue, green) in [("A", "192.0.2.1", "192.0.2.2"), ("AAAA", "2001:db8::1", "2001:db8::2")] {
            aws.route53().weighted(ZONE, NAME, kind, "blue", 255, blue);
            aws.route53().weighted(ZONE, NAME, kind, "green", 0, green);
            aws.route53().weighted(ZONE, NAME, kind, "red", 0, blue);
        }
        // Neighbours in the order of the list.
        for other in ["ap.example.com", "a.api.example.com", "zz.api.example.com", "apj.example.com"] {
            aws.route53().simple(ZONE, other, "A", "192.0.2.9");
        }
        let pristine = aws.route53().snapshot();
        Self { aws, pristine, resets: AtomicU64::new(0), propagation: Duration::from_secs(120) }
    }

    /// The same where everything takes seconds: a sweep is some hundred rollouts.
    fn quick() -> Self {
        let quick = Self { propagation: Duration::from_secs(2), ..Self::new() };
        quick.aws.route53().propagation(Duration::from_secs(1));
        for kind in ["A", "AAAA"] {
            quick.aws.route53().ttl(ZONE, NAME, kind, Duration::from_secs(1));
        }
        quick.aws.route53().rate(None);
        let pristine = quick.aws.route53().snapshot();
        Self { pristine, ..quick }
    }

    fn weighted(&self) -> Weighted {
        Weighted::new(&self.aws.account(), ZONE, NAME).expect("good names").propagation(self.propagation)
    }

    fn weights(&self) -> BTreeMap<String, u64> {
        let a = self.aws.route53().weights(ZONE, NAME, "A");
        assert_eq!(a, self.aws.route53().weights(ZONE, NAME, "AAAA"), "both types go together");
        a
    }

    /// Who may be answered with, by anybody.
    fn answers(&self) -> Vec<String> {
        let answers = self.aws.route53().answers(ZONE, NAME, "A");
        assert_eq!(answers, self.aws.route53().answers(ZONE, NAME, "AAAA"));
        answers.into_keys().collect()
    }
}

#[async_trait]
impl Bench for Dns {
    async fn reset(&self) {
        self.aws.forget_faults();
        self.aws.route53().restore(&self.pristine);
        // With another marker than in the run before, which late calls of that run may still hold.
        let n = self.resets.fetch_add(1, Ordering::Relaxed);
        self.aws.route53().simple(ZONE, &format!("_rollback.{NAME}"), "TXT", &format!("\"reset {n}\""));
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.weighted())
    }

    fn candidate(&self) -> Revision {
        Revision::new("green").expect("a good id")
    }

    fn missing(&self) -> Revision {
        Revision::new("pink").expect("a good id")
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }

    fn tells_at_once(&self) -> bool {
        false
    }

    async fn drift(&self) -> bool {
        self.aws.route53().weighted(ZONE, NAME, "A", "red", 10, "192.0.2.1");
        true
    }

    fn secret(&self) -> Option<String> {
        Some("simulated-secret-access-key".into())
    }
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept() {
    let dns = Dns::new();
    dns.aws.route53().rate(None);
    let skipped: Vec<_> =
        backend::all(&dns).await.into_iter().filter(|(_, outcome)| *outcome != Outcome::Kept).collect();
    assert_eq!(
        skipped,
        [("an_inexpressible_weight_is_unsupported", Outcome::Skipped("every weight can be given here"))]
    );
}

macro_rules! sweeps {
    ($($name:ident: $kind:ident;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let dns = Dns::quick();
            eprintln!("{}: {}", stringify!($kind), Sweep::of(&dns).$kind().await);
        }
    )*};
}

sweeps! {
    a_crash_at_any_side_effect_is_got_over: crashes;
    a_failure_of_any_side_effect_is_got_over: failures;
    a_lost_answer_to_any_side_effect_is_got_over: lost_answers;
    a_call_that_lands_late_is_got_over: late;
    a_repeated_side_effect_is_got_over: repeats;
    a_store_that_goes_away_at_any_side_effect_is_got_over: store_away;
    a_driver_that_is_taken_over_at_any_side_effect_is_got_over: takeovers;
}

/// A goal is reached when no resolver that keeps to the TTL answers otherwise any more, and not before; in this process,
/// and in one that knows nothing of the change.
#[tokio::test(start_paused = true)]
async fn nothing_is_reached_while_a_resolver_may_answer_otherwise() {
    for knows_change in [true, false] {
        for takes in [0, 30, 100] {
            let dns = Dns::new();
            dns.aws.route53().propagation(Duration::from_secs(takes));
            let mut driver = Driver::new(&dns).await;
            for (goal, wanted) in [
                (Goal::Split(Weight::try_from(20).unwrap()), vec!["blue", "green"]),
                (Goal::Candidate, vec!["green"]),
                (Goal::Baseline, vec!["blue"]),
            ] {
                if !knows_change {
                    let due = driver.look(goal).await;
                    let attempt = driver.save(goal, &due.version);
                    driver.send(&attempt).await.expect("it is accepted");
                    driver = driver.successor().await;
                }
                driver.drive(goal).await;
                assert_eq!(dns.answers(), wanted, "{goal} after {takes} s, knows the change: {knows_change}");
            }
        }
    }
}

/// The waits are no longer than they must be: a rollback of an hour would be none.
#[tokio::test(start_paused = true)]
async fn a_goal_is_reached_soon_after_the_change_is_in_sync() {
    let dns = Dns::new();
    let mut driver = Driver::new(&dns).await;
    let from = tokio::time::Instant::now();
    driver.drive(Goal::Candidate).await;
    let took = from.elapsed().as_secs();
    assert!((90..=120).contains(&took), "30 s to be in sync, 60 s TTL, and the looks: {took} s");
    let from = tokio::time::Instant::now();
    driver.drive(Goal::Baseline).await;
    assert!(from.elapsed().as_secs() <= 120);
}

#[tokio::test(start_paused = true)]
async fn a_whole_rollout_is_promoted_and_one_that_is_aborted_comes_back() {
    for abort in [false, true] {
        let dns = Dns::new();
        let engine = Engine::builder(Memory::new()).clock(dns.aws.clock().clone()).build().unwrap();
        engine.register(Target::new("api", dns.weighted()).unwrap()).unwrap();
        let plan = Plan::canary([10, 50, 100], Duration::from_secs(300)).unwrap();
        let started = NewRollout::new("api", dns.candidate(), plan).unwrap().by("ana").unwrap();
        let handle = engine.start(started).await.unwrap();
        if abort {
            while dns.weights()["green"] == 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            handle.abort("ana", "enough").await.unwrap();
        }
        let ended = handle.finished().await;
        let (wanted, serves) = if abort { (0, "blue") } else { (100, "green") };
        assert_eq!(ended.exit_code(), u8::from(abort), "{ended}");
        assert_eq!(
            dns.weights(),
            BTreeMap::from([("blue".into(), 100 - wanted), ("green".into(), wanted), ("red".into(), 0)])
        );
        assert_eq!(dns.answers(), [serves]);
    }
}

fn change() -> Change {
    let target = TargetId::try_from("api").unwrap();
    Change {
        rollout: RolloutId::fresh(&target),
        target,
        baseline: Revision::new("blue").unwrap(),
        candidate: Revision::new("green").unwrap(),
    }
}

async fn preflight(dns: &Dns) -> Readiness {
    let plan = Plan::canary([10, 100], Duration::from_secs(300)).unwrap();
    dns.aws.route53().rate(None);
    dns.weighted().preflight(&change(), &plan).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn preflight_proves_every_permission_and_names_the_one_that_is_missing() {
    let dns = Dns::new();
    dns.aws.route53().health(ZONE, NAME, "A", "green", "check-1", true);
    let ready = preflight(&dns).await;
    assert!(ready.refused.is_empty(), "{ready:?}");
    let before = dns.aws.route53().weights(ZONE, NAME, "A");
    for permission in ROLLOUT {
        assert!(ready.proved.iter().any(|proved| proved.as_str().contains(permission.action)), "{permission:?}");
        dns.aws.deny(permission.action);
        let ready = preflight(&dns).await;
        assert_eq!(ready.refused.len(), 1, "{permission:?}: {ready:?}");
        assert!(ready.refused[0].as_str().contains(permission.action), "{permission:?}: {ready:?}");
        dns.aws.allow(permission.action);
    }
    assert_eq!(dns.aws.route53().weights(ZONE, NAME, "A"), before);
    let policy = dns.weighted().policy().to_string();
    for part in ["arn:aws:route53:::hostedzone/Z1EXAMPLE", "arn:aws:route53:::change/*", CHANGE.action] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
}

/// Arranges a zone.
type Arrange = fn(&Dns);

/// Each of what a person may have left behind, and what is said of it.
#[tokio::test(start_paused = true)]
async fn what_stands_in_the_way_is_refused_with_its_name() {
    let refused: [(&str, Arrange, &str); 6] = [
        (
            "left at 20",
            |dns| {
                for kind in ["A", "AAAA"] {
                    dns.aws.route53().weighted(ZONE, NAME, kind, "blue", 80, "x");
                    dns.aws.route53().weighted(ZONE, NAME, kind, "green", 20, "x");
                }
            },
            "is left with 20 %",
        ),
        ("a third", |dns| dns.aws.route53().weighted(ZONE, NAME, "A", "red", 9, "x"), "the A record red has weight 9"),
        ("one type", |dns| dns.aws.route53().remove(ZONE, NAME, "AAAA", "green"), "there is no AAAA record green"),
        (
            "all zero",
            |dns| {
                dns.aws.route53().weighted(ZONE, NAME, "A", "blue", 0, "x");
            },
            "the A records blue and green have weights 0 and 0",
        ),
        (
            "candidate ill",
            |dns| dns.aws.route53().health(ZONE, NAME, "A", "green", "c", false),
            "finds green unhealthy",
        ),
        (
            "none",
            |dns| {
                for set in ["blue", "green", "red"] {
                    for kind in ["A", "AAAA"] {
                        dns.aws.route53().remove(ZONE, NAME, kind, set);
                    }
                }
            },
            "there are no weighted records",
        ),
    ];
    for (what, arrange, said) in refused {
        let dns = Dns::new();
        arrange(&dns);
        let ready = preflight(&dns).await;
        assert!(ready.refused.iter().any(|why| why.as_str().contains(said)), "{what}: {ready:?}");
    }
    let dns = Dns::new();
    dns.aws.route53().health(ZONE, NAME, "A", "blue", "c", false);
    let ready = preflight(&dns).await;
    assert!(ready.no_way_back[0].as_str().contains("finds blue unhealthy"), "{ready:?}");

    let mixed = |dns: &Dns| {
        dns.aws.route53().weighted(ZONE, NAME, "A", "green", 1, "x");
    };
    let dns = Dns::new();
    mixed(&dns);
    let error = dns.weighted().baseline().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mixed);
    assert!(error.to_string().contains("blue (255) and green (1)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn aliases_of_load_balancers_and_ttls_are_kept_as_they_are() {
    let dns = Dns::new();
    for set in ["blue", "green"] {
        dns.aws.route53().alias(ZONE, NAME, "A", set, &format!("{set}.elb.us-east-1.amazonaws.com"));
    }
    dns.aws.route53().ttl(ZONE, NAME, "AAAA", Duration::from_secs(20));
    let before = dns.aws.account().route53().list_resource_record_sets().hosted_zone_id(ZONE).send().await.unwrap();
    let mut driver = Driver::new(&dns).await;
    driver.drive(Goal::Candidate).await;
    driver.drive(Goal::Baseline).await;
    let after = dns.aws.account().route53().list_resource_record_sets().hosted_zone_id(ZONE).send().await.unwrap();
    let weightless = |sets: Vec<aws_sdk_route53::types::ResourceRecordSet>| -> Vec<_> {
        let ours = sets.into_iter().filter(|set| !set.name.starts_with("_rollback"));
        ours.map(|mut set| {
            set.weight = set.weight.map(|_| 0);
            set
        })
        .collect()
    };
    assert_eq!(weightless(before.resource_record_sets), weightless(after.resource_record_sets));
}

/// What Route 53 says in between is told as what it is, and got over.
#[tokio::test(start_paused = true)]
async fn a_busy_zone_and_a_busy_account_are_waited_for() {
    let dns = Dns::new();
    let mut driver = Driver::new(&dns).await;
    let look = driver.look(Goal::Candidate).await;
    dns.aws.route53().busy(1);
    let attempt = driver.save(Goal::Candidate, &look.version);
    let error = driver.send(&attempt).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled, "{}", error.chain());
    dns.aws.fault(Fault::of(CHANGE.action, Trouble::Throttle));
    assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Throttled);
    dns.aws.fault(Fault::of("route53:ListResourceRecordSets", Trouble::Throttle).times(2));
    driver.drive(Goal::Candidate).await;
    assert_eq!(dns.weights()["green"], 100);

    let refusal = Refusal::new(400, "InvalidChangeBatch", "[Record set protection prevents the deletion]");
    dns.aws.fault(Fault::of(CHANGE.action, Trouble::Refuse(refusal)));
    let look = driver.look(Goal::Baseline).await;
    let attempt = driver.save(Goal::Baseline, &look.version);
    let error = driver.send(&attempt).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("Record set protection prevents the deletion"), "{error}");
}

/// A write whose answer was lost is not written twice: the marker tells that it was ours.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_seen_by_its_marker() {
    let dns = Dns::new();
    let mut driver = Driver::new(&dns).await;
    let goal = Goal::Split(Weight::try_from(50).unwrap());
    let look = driver.look(goal).await;
    dns.aws.fault(Fault::of(CHANGE.action, Trouble::LoseAnswer));
    let attempt = driver.save(goal, &look.version);
    assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let seen = driver.look(goal).await;
    assert!(seen.landed, "{seen:?}");
    assert!(matches!(seen.progress, Progress::Underway(_)), "{seen:?}");
    assert_eq!(driver.drive(goal).await.len(), 0, "nothing is written again");
    assert_eq!(dns.aws.calls()[CHANGE.action], 1);
    let values = dns.aws.account().route53().list_resource_record_sets().hosted_zone_id(ZONE).send().await.unwrap();
    let marker = values.resource_record_sets.iter().find(|set| set.name.starts_with("_rollback")).unwrap();
    assert!(!format!("{marker:?}").contains(driver.change.rollout.as_str()), "DNS is public: {marker:?}");
}

#[tokio::test(start_paused = true)]
async fn names_and_zones_that_are_none_are_refused() {
    let account = Simulator::new().account();
    for (zone, name) in [("", NAME), ("z1", NAME), ("Z1/x", NAME), (ZONE, "com"), (ZONE, "a b.example.com")] {
        let error = Weighted::new(&account, zone, name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{zone} {name}");
        assert!(error.to_string().contains("is accepted"), "{error}");
    }
    Weighted::new(&account, "/hostedzone/Z1", "*.example.com.").unwrap();
}
