//! A gate on what the candidate's pods do.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use kube::core::{Request, params::ListParams, subresource::LogParams};
use rollback_core::{
    Result, Wake,
    backend::Readiness,
    gate::{Evidence, HealthGate, Standing, Verdict, Window},
    model::{Change, GateName},
    plan::Plan,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{task::JoinHandle, time};

use super::{
    Named,
    judgement::{Culprit, Memory, Rules, judge},
    missing, not_in_place,
    pod::Pod,
    prove, rights,
};
use crate::{
    access::Access,
    object::PODS,
    watch::{Namespace, Set, Watches, asking},
    workload::Kind,
};

/// Judges the candidate's pods, beside those of the baseline: by watch, and woken the moment one of them changes.
///
/// | what a pod says | unhealthy |
/// |---|---|
/// | `InvalidImageName`, `ErrImageNeverPull` | at once |
/// | `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError` | when it says so again, 2 s later |
/// | a container ends: `CrashLoopBackOff`, `OOMKilled`, `Error`, restarts that rise | at the second end of one pod; or two pods, at least a tenth of all, with one each |
/// | `ImagePullBackOff` | when it says so again, 12 s later |
/// | `ErrImagePull` | after a minute |
/// | `Evicted`, or refused by its node | at the second such pod |
/// | `Unschedulable` | after 2 minutes: an autoscaler may bring a node |
/// | not ready, for no reason that it gives | after 5 minutes |
///
/// It is healthy when every pod of the candidate that is not over is ready, and inconclusive while one comes up, when there
/// is none, and when **the baseline's pods fail as well**, at half the candidate's rate or more: a registry or a node is ill
/// then, and rolling back would not help. What ended, or was evicted, before the rollout is not counted on either side.
///
/// The evidence holds the pod's own words: reason, message, exit code, restarts, what the cluster's events say of it, and
/// where it is allowed the last lines of its log. Between two crashes a pod looks well; its restarts tell.
pub struct Pods {
    name: GateName,
    watches: Watches,
    namespace: Box<str>,
    of: Of,
    rules: Rules,
    log_lines: u32,
    awake: Arc<Mutex<Awake>>,
}

/// Whose pods are the candidate's.
enum Of {
    /// A workload that is rolled by its controller: those of its newest template.
    Rolled(Named),
    /// Two workloads side by side: all of the first.
    Beside { candidate: Named, baseline: Named },
}

#[derive(Default)]
struct Awake {
    wakes: Vec<Wake>,
    alarm: Option<JoinHandle<()>>,
}

/// The candidate's pods, the baseline's, and up to when they are known.
struct Sorted {
    new: Vec<Arc<Pod>>,
    old: Vec<Arc<Pod>>,
    until: Timestamp,
}

impl Pods {
    /// Watches the pods of a workload that its own controller rolls, as `deployment/web`, `statefulset/db` or
    /// `daemonset/agent`, by the name `pods`. The pods of its newest template are the candidate's, from the moment that
    /// this rollout has changed it.
    ///
    /// # Errors
    /// `Invalid` when it is not a workload's kind and name.
    pub fn of(watches: &Watches, namespace: &str, workload: &str) -> Result<Self> {
        Named::parse(workload).map(|named| Self::new(watches, namespace, Of::Rolled(named)))
    }

    /// Watches the pods of two workloads that stand side by side, as `deployment/web-canary` and `deployment/web`: a
    /// canary pair, or two colours.
    ///
    /// # Errors
    /// `Invalid` when one of them is not a workload's kind and name.
    pub fn beside(watches: &Watches, namespace: &str, candidate: &str, baseline: &str) -> Result<Self> {
        let of = Of::Beside { candidate: Named::parse(candidate)?, baseline: Named::parse(baseline)? };
        Ok(Self::new(watches, namespace, of))
    }

    fn new(watches: &Watches, namespace: &str, of: Of) -> Self {
        Self {
            name: GateName::try_from("pods").expect("a good name"),
            watches: watches.clone(),
            namespace: namespace.into(),
            of,
            rules: Rules::default(),
            log_lines: 0,
            awake: Arc::default(),
        }
    }

    /// With this name, where one target has several.
    ///
    /// # Errors
    /// `Invalid` when it is not a gate's name.
    pub fn named(mut self, name: &str) -> Result<Self> {
        self.name = GateName::try_from(name)?;
        Ok(self)
    }

    /// So many ends of one pod's containers are too many, and so many pods with an end each (default 2, at least 1).
    #[must_use]
    pub const fn crashes(mut self, times: u32) -> Self {
        self.rules.crashes = if times == 0 { 1 } else { times };
        self
    }

    /// How long an image may fail to be pulled (default a minute).
    #[must_use]
    pub const fn pulls_within(mut self, time: Duration) -> Self {
        self.rules.pull = time;
        self
    }

    /// How long a pod may wait for a node (default 2 minutes).
    #[must_use]
    pub const fn schedules_within(mut self, time: Duration) -> Self {
        self.rules.schedule = time;
        self
    }

    /// How long a pod may be without being ready (default 5 minutes).
    #[must_use]
    pub const fn ready_within(mut self, time: Duration) -> Self {
        self.rules.ready = time;
        self
    }

    /// Puts so many last lines of the log of a pod that fails into the evidence, at most 2 KiB. Off by default: **logs may
    /// hold what is private**, and evidence goes into records, reports and messages. Needs `get` on `pods/log`.
    ///
    /// With it goes the message of an end that a container takes from its log (`terminationMessagePolicy:
    /// FallbackToLogsOnError`); without it that message is left out.
    #[must_use]
    pub const fn with_log_lines(mut self, lines: u32) -> Self {
        self.log_lines = lines;
        self.rules.logs = lines > 0;
        self
    }

    /// What the gate takes to be allowed. Without the rights on events and logs it judges as well, and explains less.
    pub fn rights(&self) -> Vec<Access> {
        let mut rights = self.needed();
        rights.push(Access { group: "", resource: "events", verbs: &["list"], why: "explain what a pod does" });
        if self.log_lines > 0 {
            rights.push(Access { group: "", resource: "pods/log", verbs: &["get"], why: "show what a pod said last" });
        }
        rights
    }

    fn needed(&self) -> Vec<Access> {
        let mut rights = rights(self.workloads());
        rights.push(Access::to(PODS, &["list", "watch"], "see what the candidate's pods do"));
        rights
    }

    /// The workloads that it looks at.
    fn workloads(&self) -> impl Iterator<Item = &Named> {
        let (one, other) = match &self.of {
            Of::Rolled(named) => (named, None),
            Of::Beside { candidate, baseline } => (candidate, Some(baseline)),
        };
        [one].into_iter().chain(other)
    }

    /// The pods, or why there is nothing to be judged.
    async fn sort(&self, namespace: &Namespace, window: &Window) -> Result<Result<Sorted, String>> {
        let mut until = namespace.pods.fresh().await?;
        let candidate = self.workloads().next().expect("one is always looked at");
        let feed = namespace.objects(candidate.kind.resource());
        until = until.min(feed.fresh().await?);
        let Some(workload) = feed.get(&candidate.name) else {
            return Ok(Err(missing(candidate, &self.namespace).to_string()));
        };
        let sets = match candidate.kind {
            Kind::Deployment => Some(&namespace.replica_sets),
            Kind::DaemonSet => Some(&namespace.controller_revisions),
            Kind::StatefulSet => None,
        };
        if let Some(sets) = sets {
            until = until.min(sets.fresh().await?);
        }
        if let Of::Beside { baseline, .. } = &self.of {
            let feed = namespace.objects(baseline.kind.resource());
            until = until.min(feed.fresh().await?);
            if baseline.kind == Kind::Deployment {
                until = until.min(namespace.replica_sets.fresh().await?);
            }
            let Some(old) = feed.get(&baseline.name) else {
                return Ok(Err(missing(baseline, &self.namespace).to_string()));
            };
            let new = pods_of(namespace, candidate.kind, &workload.uid);
            return Ok(Ok(Sorted { new, old: pods_of(namespace, baseline.kind, &old.uid), until }));
        }
        if let Some(why) = not_in_place(&workload, candidate, window) {
            return Ok(Err(why));
        }
        let newest: Option<Box<str>> = match sets {
            None => workload.update_revision.clone(),
            Some(sets) => {
                let sets = sets.owned_by(&workload.uid);
                let newest = match candidate.kind {
                    Kind::Deployment => sets.iter().find(|set| Some(set.revision) == workload.revision),
                    _ => sets.iter().max_by_key(|set| set.revision),
                };
                newest.and_then(|set: &Arc<Set>| set.hash.clone())
            }
        };
        let Some(newest) = newest else {
            return Ok(Err(format!("{candidate} does not say which of its templates is the newest")));
        };
        let all = pods_of(namespace, candidate.kind, &workload.uid);
        let (new, old) = all.into_iter().partition(|pod| pod.hash.as_ref() == Some(&newest));
        Ok(Ok(Sorted { new, old, until }))
    }

    /// What events and log say of a pod, for a moment only: nothing may hold a verdict up.
    async fn explain(&self, mut evidence: Evidence, culprit: Option<&Culprit>) -> Evidence {
        let Some(culprit) = culprit else { return evidence };
        let (events, log) =
            tokio::join!(time::timeout(EXPLAIN, self.events(culprit)), time::timeout(EXPLAIN, self.log(culprit)),);
        if let Some(events) = events.ok().and_then(Result::ok).filter(|events| !events.is_empty()) {
            evidence = evidence.fact("events", events);
        }
        if let Some(log) = log.ok().and_then(Result::ok).filter(|log| !log.is_empty()) {
            evidence = evidence.fact("log", log);
        }
        evidence
    }

    /// The last few, newest last. Events are kept for an hour, and only as well as may be.
    async fn events(&self, culprit: &Culprit) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Events {
            items: Vec<Event>,
        }
        #[derive(Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        #[derive(Default)]
        struct Event {
            reason: Option<String>,
            message: Option<String>,
            last_timestamp: Option<String>,
            event_time: Option<String>,
        }
        let params = ListParams::default().fields(&format!("involvedObject.uid={}", culprit.uid)).limit(50);
        let request = Request::new(format!("/api/v1/namespaces/{}/events", self.namespace)).list(&params);
        let what = format!("reading the events of pod {}", culprit.pod);
        let Events { mut items } = self.watches.client().call(&what, asking(request)?).await?;
        items.sort_by(|a, b| (&a.last_timestamp, &a.event_time).cmp(&(&b.last_timestamp, &b.event_time)));
        let last = items.len().saturating_sub(3);
        let said = |event: Event| {
            let said = format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            said.chars().take(200).collect()
        };
        Ok(items.into_iter().skip(last).map(said).collect())
    }

    async fn log(&self, culprit: &Culprit) -> Result<String> {
        let Some(container) = culprit.container.as_ref().filter(|_| self.log_lines > 0) else {
            return Ok(String::new());
        };
        let params = LogParams {
            container: Some(container.clone()),
            previous: culprit.restarted,
            tail_lines: Some(self.log_lines.into()),
            limit_bytes: Some(LOG_BYTES),
            ..LogParams::default()
        };
        let request = Request::new(format!("/api/v1/namespaces/{}/pods", self.namespace)).logs(&culprit.pod, &params);
        self.watches.client().text(&format!("reading the log of pod {}", culprit.pod), asking(request)?).await
    }

    /// Asks to be judged again when a fault that is borne becomes final.
    fn look_again(&self, after: Option<Duration>) {
        let mut awake = self.awake.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(alarm) = awake.alarm.take() {
            alarm.abort();
        }
        let Some(after) = after else { return };
        let shared = Arc::downgrade(&self.awake);
        awake.alarm = Some(tokio::spawn(async move {
            time::sleep(after).await;
            if let Some(awake) = shared.upgrade() {
                awake.lock().unwrap_or_else(PoisonError::into_inner).wakes.iter().for_each(Wake::wake);
            }
        }));
    }
}

/// All pods of a workload.
fn pods_of(namespace: &Namespace, kind: Kind, uid: &str) -> Vec<Arc<Pod>> {
    match kind {
        Kind::Deployment => {
            let sets = namespace.replica_sets.owned_by(uid);
            sets.iter().flat_map(|set| namespace.pods.owned_by(&set.uid)).collect()
        }
        Kind::StatefulSet | Kind::DaemonSet => namespace.pods.owned_by(uid),
    }
}

#[async_trait]
impl HealthGate for Pods {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let mut memory = match window.last.as_ref().map(Evidence::recall::<Memory>) {
            None => Memory::default(),
            Some(Ok(memory)) => memory.unwrap_or_default(),
            Some(Err(e)) => return Ok(window.no_data(e.chain())),
        };
        let namespace = self.watches.namespace(&self.namespace);
        let Sorted { new, old, until } = match self.sort(&namespace, window).await? {
            Ok(sorted) => sorted,
            Err(why) => return Ok(window.no_data(why)),
        };
        let (new, old): (Vec<&Pod>, Vec<&Pod>) =
            (new.iter().map(|pod| &**pod).collect(), old.iter().map(|pod| &**pod).collect());
        let ruling = judge(&self.rules, &mut memory, &new, &old, window.created, window.now);
        self.look_again(ruling.again);
        let mut evidence = Evidence::new(until.min(window.now), ruling.summary).remember(json!(memory));
        evidence.facts = ruling.facts;
        Ok(match ruling.standing {
            Standing::Healthy => Verdict::Healthy(evidence),
            Standing::Inconclusive => Verdict::Inconclusive(evidence),
            Standing::Unhealthy => Verdict::Unhealthy(self.explain(evidence, ruling.culprit.as_ref()).await),
        })
    }

    async fn preflight(&self, _change: &Change, _plan: &Plan) -> Result<Readiness> {
        let mut readiness = prove(&self.needed(), &self.watches, &self.namespace).await?;
        if !readiness.refused.is_empty() {
            return Ok(readiness);
        }
        let namespace = self.watches.namespace(&self.namespace);
        namespace.pods.fresh().await?;
        for named in self.workloads() {
            let feed = namespace.objects(named.kind.resource());
            feed.fresh().await?;
            if feed.get(&named.name).is_none() {
                readiness = readiness.refused(missing(named, &self.namespace).to_string());
            }
        }
        Ok(readiness)
    }

    fn attach(&self, wake: Wake) {
        let namespace = self.watches.namespace(&self.namespace);
        for named in self.workloads() {
            namespace.wake_on(named.kind.resource(), &named.name, wake.clone());
        }
        let mut awake = self.awake.lock().unwrap_or_else(PoisonError::into_inner);
        awake.wakes.retain(|wake| !wake.is_dead());
        awake.wakes.push(wake);
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.look_again(None);
    }
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of: Vec<String> = self.workloads().map(ToString::to_string).collect();
        f.debug_struct("Pods").field("name", &self.name).field("of", &of).finish_non_exhaustive()
    }
}

/// How long a verdict waits for what explains it.
const EXPLAIN: Duration = Duration::from_millis(500);
/// The most that is kept of a log.
const LOG_BYTES: i64 = 2048;
