//! What a workload's pods say about the candidate. Pure: the pods, what was seen before, the time.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollback_core::gate::{Facts, Standing};
use serde::{Deserialize, Serialize};

use super::pod::{Container, Pod, Said};

/// From when on a fault is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// So many ends of one container, or so many pods with an end each.
    pub(crate) crashes: u32,
    /// How long a pull may go on failing.
    pub(crate) pull: Duration,
    /// How long a pod may wait for a node.
    pub(crate) schedule: Duration,
    /// How long a pod may be without being ready, for no reason that it gives.
    pub(crate) ready: Duration,
    /// What a container logged may be told.
    pub(crate) logs: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            crashes: 2,
            pull: Duration::from_secs(60),
            schedule: Duration::from_secs(120),
            ready: Duration::from_secs(300),
            logs: false,
        }
    }
}

/// What is wrong with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Its image can never be had: the name is wrong, or may not be pulled.
    Image,
    /// It names a ConfigMap, Secret or key that is not there.
    Config,
    /// The runtime cannot make or start it.
    Start,
    /// Its image was not pulled yet, and the kubelet waits before it tries again.
    PullBackOff,
    /// Its image was not pulled.
    Pull,
    /// It ends and is started again.
    Crash,
    /// It was evicted, or its node refused it.
    Evicted,
    /// No node takes it.
    Unschedulable,
    /// It is not ready, and does not say why.
    NotReady,
}

/// What is wrong with a pod, in its own words.
#[derive(Clone, Debug)]
pub(crate) struct Fault<'p> {
    pub(crate) kind: Kind,
    pub(crate) pod: &'p Pod,
    pub(crate) container: Option<&'p Container>,
    pub(crate) said: Option<&'p Said>,
    /// For [`Kind::Crash`]: how often it ended since the rollout began.
    pub(crate) times: u32,
    /// Its message may be from a log, and is not told.
    pub(crate) is_hushed: bool,
}

/// What a judgement wants to know the next time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// When it was judged last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    /// Faults that are borne for a while: by pod and kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    borne: BTreeMap<String, Borne>,
    /// Of pods that are older than the rollout: how often their containers had ended when they were looked at first. None:
    /// the pod was over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    before: BTreeMap<String, Option<u32>>,
}

/// Since when, last counted when, how often. In milliseconds, for the memory of a gate is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Borne(i64, i64, u32);

/// What is to be said.
#[derive(Debug)]
pub(crate) struct Ruling {
    pub(crate) standing: Standing,
    pub(crate) summary: String,
    pub(crate) facts: Facts,
    /// Whose log and events explain it.
    pub(crate) culprit: Option<Culprit>,
    /// When a fault that is borne now becomes final, if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// The pod that is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Culprit {
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) container: Option<String>,
    /// Its container was started again: what it said last is in the log of the one before.
    pub(crate) restarted: bool,
}

/// Judges the candidate's pods, beside the pods of the revision to keep.
pub(crate) fn judge<'p>(
    rules: &Rules,
    memory: &mut Memory,
    new: &[&'p Pod],
    old: &[&'p Pod],
    created: Timestamp,
    now: Timestamp,
) -> Ruling {
    memory.begin(new, old, created, now);
    let count = |pods: &[&'p Pod], memory: &Memory| -> Vec<&'p Pod> {
        pods.iter().copied().filter(|pod| !pod.leaving && !memory.is_left_over(pod, created)).collect()
    };
    let (counted, baseline) = (count(new, memory), count(old, memory));
    let mut faults: Vec<Fault<'_>> = counted.iter().filter_map(|pod| fault(pod, memory, created)).collect();
    if !rules.logs {
        faults.iter_mut().for_each(Fault::hush);
    }
    memory.heed(&faults, now);
    // A pod that is over is never ready, and a ReplicaSet leaves it there beside the one that it makes instead.
    let staying: Vec<&Pod> = counted.iter().copied().filter(|pod| pod.failed.is_none()).collect();
    let ready = staying.iter().filter(|pod| pod.ready).count();
    let mut facts = Facts::from_iter([
        ("pods", staying.len().into()),
        ("ready", ready.into()),
        ("of the baseline", baseline.len().into()),
        ("trips on", serde_json::Value::from(rules.said())),
    ]);
    if let Some(fault) = worst(&faults) {
        fault.tell(&mut facts);
    }
    let culprit = |fault: &Fault<'_>| Some(fault.culprit());
    if let Some(fatal) = rules.fatal(&faults, counted.len(), memory, now) {
        fatal.tell(&mut facts);
        let failing = baseline.iter().filter(|pod| ails_like(pod, fatal.kind, memory, created)).count();
        facts.insert("failing", faults.len());
        facts.insert("failing of the baseline", failing);
        let all = baseline.len();
        // Half the candidate's share of failing pods is enough: what ails both is not the candidate's doing.
        let both = failing > 0 && failing * 2 * counted.len() >= faults.len() * all;
        return Ruling {
            standing: if both { Standing::Inconclusive } else { Standing::Unhealthy },
            summary: match both {
                true => format!(
                    "{}, but {failing} of {all} pods of the baseline fail too: rolling back would not help",
                    fatal.summary()
                ),
                false => fatal.summary(),
            },
            culprit: culprit(fatal),
            facts,
            again: None,
        };
    }
    let (standing, summary) = match worst(&faults) {
        _ if staying.is_empty() => (Standing::Inconclusive, "the candidate has no pods".into()),
        Some(fault) if !fault.pod.ready && fault.kind != Kind::Evicted => {
            (Standing::Inconclusive, format!("{}, {}", fault.summary(), rules.patience(fault.kind)))
        }
        _ if ready < staying.len() => (Standing::Inconclusive, format!("{ready} of {} pods are ready", staying.len())),
        Some(fault) => (Standing::Healthy, format!("{ready} pods are ready; {}", fault.summary())),
        None => (Standing::Healthy, format!("{ready} pods are ready")),
    };
    let again = faults.iter().filter_map(|fault| rules.due(fault, memory, now)).min();
    Ruling { standing, summary, facts, culprit: worst(&faults).and_then(culprit), again }
}

/// The fault that a person should hear of first.
fn worst<'f, 'p>(faults: &'f [Fault<'p>]) -> Option<&'f Fault<'p>> {
    faults.iter().min_by_key(|fault| (fault.kind, std::cmp::Reverse(fault.times)))
}

/// What is wrong with a pod, the gravest of several.
fn fault<'p>(pod: &'p Pod, memory: &Memory, created: Timestamp) -> Option<Fault<'p>> {
    let plain = |kind, said| Fault { kind, pod, container: None, said, times: 0, is_hushed: false };
    if let Some(said) = &pod.failed {
        return Some(plain(Kind::Evicted, Some(said)));
    }
    let times = memory.ends_since(pod, created);
    let most = pod.containers.iter().max_by_key(|container| container.ends()).filter(|_| times > 0);
    let of = |kind, c, said, times| Fault { kind, pod, container: Some(c), said, times, is_hushed: false };
    let crash = most.map(|c| of(Kind::Crash, c, c.last_words(), times));
    let waiting = pod.containers.iter().find_map(|c| {
        let said = c.waiting.as_ref()?;
        Some(of(waits_for(said.reason())?, c, Some(said), 0))
    });
    let unscheduled = || pod.unscheduled.as_ref().map(|said| plain(Kind::Unschedulable, Some(said)));
    let unready = || (!pod.ready).then(|| plain(Kind::NotReady, None));
    crash.or(waiting).or_else(unscheduled).or_else(unready)
}

/// Whether a pod of the baseline has a trouble that could be this one. What is merely not ready counts only against
/// what is merely not ready: pods of the baseline come and go in a rollout.
fn ails_like(pod: &Pod, kind: Kind, memory: &Memory, created: Timestamp) -> bool {
    pod.containers.iter().any(Container::has_just_ended)
        || fault(pod, memory, created).is_some_and(|fault| fault.kind != Kind::NotReady || kind == Kind::NotReady)
}

/// The waiting reasons of the kubelet, as its source names them. Others (`ContainerCreating`, `PodInitializing`) are the
/// way of things.
fn waits_for(reason: &str) -> Option<Kind> {
    Some(match reason {
        "InvalidImageName" | "ErrImageNeverPull" => Kind::Image,
        "CreateContainerConfigError" => Kind::Config,
        "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError" => Kind::Start,
        "ImagePullBackOff" => Kind::PullBackOff,
        "ErrImagePull" | "ImageInspectError" | "RegistryUnavailable" | "SignatureValidationFailed" => Kind::Pull,
        _ => return None,
    })
}

impl Container {
    /// How often it has ended, the end that it has not been started again from among them.
    fn ends(&self) -> u32 {
        self.restarts + u32::from(self.has_just_ended())
    }

    /// It has ended, and was not started again yet.
    fn has_just_ended(&self) -> bool {
        self.down || self.waiting.as_ref().is_some_and(|said| said.reason() == "CrashLoopBackOff")
    }

    fn last_words(&self) -> Option<&Said> {
        self.ended.as_ref().map(|ended| &ended.said).or(self.waiting.as_ref())
    }
}

impl Fault<'_> {
    fn hush(&mut self) {
        self.is_hushed = self.kind == Kind::Crash && self.container.is_some_and(|c| c.ends_with_its_log);
    }

    fn message(&self) -> &str {
        self.said.filter(|_| !self.is_hushed).map(Said::message).unwrap_or_default()
    }

    /// In a clause: `container app of pod web-1 crashed 2 times (OOMKilled, exit code 137)`.
    fn summary(&self) -> String {
        let who = match self.container {
            Some(container) => format!("container {} of pod {}", container.name, self.pod.name),
            None => format!("pod {}", self.pod.name),
        };
        let said = match self.said {
            Some(said) if self.message().is_empty() => said.reason().to_owned(),
            Some(said) if said.reason().is_empty() => self.message().to_owned(),
            Some(said) => format!("{}: {}", said.reason(), self.message()),
            None => String::new(),
        };
        let with =
            |what: &str| if said.is_empty() { format!("{who} {what}") } else { format!("{who} {what} ({said})") };
        match self.kind {
            Kind::Image | Kind::Pull | Kind::PullBackOff => with("cannot pull its image"),
            Kind::Config => with("lacks configuration"),
            Kind::Start => with("cannot be started"),
            Kind::Evicted => with("has failed"),
            Kind::Unschedulable => with("finds no node"),
            Kind::NotReady => with("is not ready"),
            Kind::Crash => {
                let times = if self.times == 1 { "once".into() } else { format!("{} times", self.times) };
                let end = self.container.and_then(|container| container.ended.as_ref());
                let mut why: Vec<String> = Vec::new();
                if !said.is_empty() {
                    why.push(said);
                }
                why.extend(end.map(|end| format!("exit code {}", end.exit_code)));
                let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(", ")) };
                format!("{who} crashed {times}{why}")
            }
        }
    }

    fn tell(&self, facts: &mut Facts) {
        facts.insert("pod", &*self.pod.name);
        if let Some(container) = self.container {
            facts.insert("container", &*container.name);
            facts.insert("restarts", container.restarts);
            if let Some(ended) = &container.ended {
                facts.insert("exit code", ended.exit_code);
            }
            if let Some(waiting) = &container.waiting {
                facts.insert("waits for", waiting.reason());
            }
        }
        if let Some(said) = self.said {
            facts.insert("reason", said.reason());
            facts.insert("message", self.message());
        }
    }

    fn culprit(&self) -> Culprit {
        Culprit {
            pod: self.pod.name.as_ref().into(),
            uid: self.pod.uid.as_ref().into(),
            container: self.container.map(|container| container.name.as_ref().into()),
            restarted: self.container.is_some_and(|container| container.restarts > 0 && !container.down),
        }
    }
}

impl Rules {
    /// The first fault that nobody need bear any longer.
    fn fatal<'f, 'p>(
        &self,
        faults: &'f [Fault<'p>],
        pods: usize,
        memory: &Memory,
        now: Timestamp,
    ) -> Option<&'f Fault<'p>> {
        let of = |kind| faults.iter().filter(move |fault| fault.kind == kind);
        // Of many pods one now and then ends by itself: a tenth of them is needed, and never fewer than the rule says.
        let many = pods.div_ceil(10).max(self.crashes as usize);
        let again = of(Kind::Crash).filter(|fault| fault.times >= self.crashes).max_by_key(|fault| fault.times);
        let worst = faults.iter().filter(|fault| self.due(fault, memory, now) == Some(Duration::ZERO));
        again
            .or_else(|| of(Kind::Crash).next().filter(|_| of(Kind::Crash).count() >= many))
            .or_else(|| of(Kind::Evicted).next().filter(|_| of(Kind::Evicted).count() >= 2))
            .or_else(|| worst.min_by_key(|fault| fault.kind))
    }

    /// When a fault becomes final that is borne for a while; zero when it is.
    fn due(&self, fault: &Fault<'_>, memory: &Memory, now: Timestamp) -> Option<Duration> {
        let Borne(since, last, times) = memory.borne.get(&fault.key()).copied()?;
        let now = now.as_millisecond();
        let grace = |grace: Duration| {
            let over = since.saturating_add(i64::try_from(grace.as_millis()).unwrap_or(i64::MAX));
            Duration::from_millis(over.saturating_sub(now).try_into().unwrap_or(0))
        };
        match fault.kind {
            Kind::Image => Some(Duration::ZERO),
            _ if times >= fault.kind.sightings()? => Some(Duration::ZERO),
            Kind::Config | Kind::Start => {
                let next = last + i64::try_from(fault.kind.apart().as_millis()).unwrap_or(i64::MAX);
                Some(Duration::from_millis((next - now).max(1).try_into().unwrap_or(1)))
            }
            Kind::PullBackOff | Kind::Pull => Some(grace(self.pull)),
            Kind::Unschedulable => Some(grace(self.schedule)),
            Kind::NotReady => Some(grace(self.ready)),
            Kind::Crash | Kind::Evicted => None,
        }
    }

    fn patience(&self, kind: Kind) -> String {
        match kind {
            Kind::Image => "which is final".into(),
            Kind::Config | Kind::Start => "which is final when it is seen once more".into(),
            Kind::PullBackOff | Kind::Pull => format!("which is borne for {:?}", self.pull),
            Kind::Crash => format!("which is borne until it happens {} times", self.crashes),
            Kind::Evicted => "which is borne once".into(),
            Kind::Unschedulable => format!("which is borne for {:?}", self.schedule),
            Kind::NotReady => format!("which is borne for {:?}", self.ready),
        }
    }

    fn said(&self) -> String {
        format!(
            "a container that ends {} times, or as many pods with an end each; an image that is not pulled twice in a \
             row or within {:?}; missing configuration; no node within {:?}; not ready within {:?}; two evictions",
            self.crashes, self.pull, self.schedule, self.ready
        )
    }
}

impl Kind {
    /// Under what it is remembered. A pull that fails and the wait after it are one trouble.
    const fn letter(self) -> char {
        match self {
            Self::Image => 'i',
            Self::Config => 'c',
            Self::Start => 's',
            Self::Pull | Self::PullBackOff => 'p',
            Self::Crash => 'x',
            Self::Evicted => 'e',
            Self::Unschedulable => 'u',
            Self::NotReady => 'r',
        }
    }

    /// How often a fault of one pod has to be seen. A registry that fails for a moment fails for many pods at once, so
    /// other pods do not count.
    const fn sightings(self) -> Option<u32> {
        Some(match self {
            Self::Image => 1,
            Self::Config | Self::Start | Self::PullBackOff => 2,
            Self::Pull | Self::Unschedulable | Self::NotReady => u32::MAX,
            Self::Crash | Self::Evicted => return None,
        })
    }

    /// How far apart two sightings are that count as two. The kubelet's back-off begins with ten seconds.
    const fn apart(self) -> Duration {
        match self {
            Self::PullBackOff => Duration::from_secs(12),
            _ => Duration::from_secs(2),
        }
    }
}

impl Fault<'_> {
    fn key(&self) -> String {
        format!("{}/{}", key(self.pod), self.kind.letter())
    }
}

impl Memory {
    /// So many pods are remembered at most: a gate's memory is small, and more would not change the verdict.
    const MOST: usize = 32;
    /// A longer time without a judgement says nothing of what happened meanwhile, and adds to no patience.
    const GAP: SignedDuration = SignedDuration::from_secs(60);

    fn begin(&mut self, new: &[&Pod], old: &[&Pod], created: Timestamp, now: Timestamp) {
        if let Some(at) = self.at.replace(now) {
            let gap = now.duration_since(at);
            if gap > Self::GAP {
                let gap = i64::try_from(gap.as_millis()).unwrap_or(0);
                for Borne(since, ..) in self.borne.values_mut() {
                    *since += gap;
                }
            }
            return;
        }
        let older = new.iter().chain(old).filter(|pod| is_older(pod, created));
        let (over, running): (Vec<&&Pod>, Vec<_>) = older.partition(|pod| pod.failed.is_some());
        let ended =
            running.iter().map(|pod| (key(pod).to_owned(), Some(ends(pod)))).filter(|(_, ends)| *ends > Some(0));
        let over = over.iter().map(|pod| (key(pod).to_owned(), None));
        self.before = ended.chain(over).take(Self::MOST).collect();
    }

    /// Whether something about this pod is older than the rollout, and was not remembered for there was too much.
    fn has_forgotten(&self, pod: &Pod, created: Timestamp) -> bool {
        self.before.len() >= Self::MOST && is_older(pod, created) && !self.before.contains_key(key(pod))
    }

    /// How often its containers have ended since the rollout began. Of what is forgotten only an end counts that can be
    /// seen now.
    fn ends_since(&self, pod: &Pod, created: Timestamp) -> u32 {
        if self.has_forgotten(pod, created) {
            return pod.containers.iter().map(|container| u32::from(container.has_just_ended())).sum();
        }
        ends(pod).saturating_sub(self.before.get(key(pod)).copied().flatten().unwrap_or(0))
    }

    /// Whether it was over when the rollout began: what was evicted last week stays listed until somebody deletes it.
    fn is_left_over(&self, pod: &Pod, created: Timestamp) -> bool {
        let was_over = self.before.get(key(pod)).is_some_and(Option::is_none);
        pod.failed.is_some() && (was_over || self.has_forgotten(pod, created))
    }

    fn heed(&mut self, faults: &[Fault<'_>], now: Timestamp) {
        let now = now.as_millisecond();
        let count = |fault: &Fault<'_>| {
            let key = fault.key();
            let apart = i64::try_from(fault.kind.apart().as_millis()).unwrap_or(i64::MAX);
            let Borne(since, last, times) = self.borne.get(&key).copied().unwrap_or(Borne(now, now - apart, 0));
            // A pull that has failed just now was not given up yet.
            let counts = now - last >= apart && fault.kind != Kind::Pull;
            (key, if counts { Borne(since, now, times.saturating_add(1)) } else { Borne(since, last, times) })
        };
        let mut borne: Vec<(String, Borne)> =
            faults.iter().filter(|fault| fault.kind.sightings().is_some()).map(count).collect();
        // Those that have been borne longest are the next to become final.
        borne.sort_by_key(|(_, Borne(since, ..))| *since);
        borne.truncate(Self::MOST);
        self.borne = borne.into_iter().collect();
    }
}

fn is_older(pod: &Pod, created: Timestamp) -> bool {
    pod.created.is_none_or(|at| at < created)
}

/// How often its containers have ended.
fn ends(pod: &Pod) -> u32 {
    pod.containers.iter().map(Container::ends).sum()
}

/// Enough of a pod's uid to tell the pods of a namespace apart.
fn key(pod: &Pod) -> &str {
    pod.uid.get(..13).unwrap_or(&pod.uid)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const H: Standing = Standing::Healthy;
    const U: Standing = Standing::Unhealthy;
    const I: Standing = Standing::Inconclusive;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    /// A pod as the API server tells it.
    fn pod(name: &str, status: Value) -> Pod {
        let created = "2027-01-15T08:00:01Z";
        let meta = json!({ "name": name, "uid": format!("{name}-uid"), "creationTimestamp": created });
        serde_json::from_value(json!({ "metadata": meta, "status": status })).unwrap()
    }

    fn ready(name: &str) -> Pod {
        pod(name, status(true, 0, json!({ "running": {} })))
    }

    fn status(ready: bool, restarts: u32, state: Value) -> Value {
        let end = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        let last = if restarts > 0 { end } else { json!({}) };
        json!({
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
            "containerStatuses": [{ "name": "app", "restartCount": restarts, "state": state, "lastState": last }],
        })
    }

    fn waiting(name: &str, reason: &str) -> Pod {
        pod(name, status(false, 0, json!({ "waiting": { "reason": reason, "message": "in its own words" } })))
    }

    fn crashed(name: &str, restarts: u32) -> Pod {
        pod(name, status(false, restarts, json!({ "waiting": { "reason": "CrashLoopBackOff" } })))
    }

    fn evicted(name: &str) -> Pod {
        pod(name, json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on memory." }))
    }

    /// The same from before the rollout.
    fn older(pod: Pod) -> Pod {
        Pod { created: Some(at(-1000)), ..pod }
    }

    fn restarted(name: &str, restarts: u32) -> Pod {
        pod(name, status(true, restarts, json!({ "running": {} })))
    }

    fn pending(name: &str) -> Pod {
        let condition =
            json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3" });
        pod(name, json!({ "phase": "Pending", "conditions": [condition] }))
    }

    /// Judges the same pods at each of these seconds, and returns what is said.
    fn said(new: &[Pod], old: &[Pod], seconds: &[i64]) -> Vec<Standing> {
        let (new, old): (Vec<&Pod>, Vec<&Pod>) = (new.iter().collect(), old.iter().collect());
        let mut memory = Memory::default();
        let mut judged = |second: &i64| {
            // Through the record and back, as between two judgements.
            memory = serde_json::from_value(serde_json::to_value(&memory).unwrap()).unwrap();
            judge(&Rules::default(), &mut memory, &new, &old, at(0), at(*second)).standing
        };
        seconds.iter().map(&mut judged).collect()
    }

    #[test]
    fn each_trouble_is_final_at_once_or_when_seen_again_or_after_its_grace() {
        type Row<'a> = (&'a str, Vec<Pod>, &'a [i64], &'a [Standing]);
        let table: &[Row<'_>] = &[
            ("none", vec![ready("a"), ready("b")], &[2, 12], &[H, H]),
            ("no pods", vec![], &[2, 600], &[I, I]),
            ("no such image name", vec![ready("a"), waiting("b", "InvalidImageName")], &[2], &[U]),
            ("never to be pulled", vec![waiting("a", "ErrImageNeverPull")], &[2], &[U]),
            ("a missing ConfigMap", vec![waiting("a", "CreateContainerConfigError")], &[2, 3, 4], &[I, I, U]),
            ("a runtime that cannot", vec![waiting("a", "RunContainerError")], &[2, 4], &[I, U]),
            ("waiting after a pull", vec![waiting("a", "ImagePullBackOff")], &[2, 13, 14], &[I, I, U]),
            // A registry that fails for a moment fails for all.
            ("of many", vec![waiting("a", "ImagePullBackOff"), waiting("b", "ImagePullBackOff")], &[2, 13], &[I, I]),
            ("a pull that fails", vec![waiting("a", "ErrImagePull")], &[2, 30, 61, 62], &[I, I, I, U]),
            (
                "being made",
                vec![waiting("a", "ContainerCreating")],
                &[2, 62, 122, 182, 242, 301, 302],
                &[I, I, I, I, I, I, U],
            ),
            ("one crash", vec![ready("b"), crashed("a", 0)], &[2, 12], &[I, I]),
            ("crashed twice", vec![ready("b"), crashed("a", 1)], &[2], &[U]),
            ("two that crashed", vec![crashed("a", 0), crashed("b", 0)], &[2], &[U]),
            ("one eviction, and a pod instead", vec![ready("a"), evicted("b")], &[2, 12], &[H, H]),
            ("one eviction, and none", vec![evicted("b")], &[2, 12], &[I, I]),
            ("a pod instead that comes up", vec![waiting("a", "ContainerCreating"), evicted("b")], &[2, 12], &[I, I]),
            ("two evictions", vec![ready("a"), evicted("b"), evicted("c")], &[2], &[U]),
            ("no node", vec![ready("a"), pending("b")], &[2, 60, 120, 122], &[I, I, I, U]),
        ];
        for (name, pods, seconds, expected) in table {
            assert_eq!(said(pods, &[], seconds), *expected, "{name}");
        }
    }

    #[test]
    fn a_container_that_runs_between_two_crashes_is_known_by_its_restarts() {
        let between = |restarts| pod("a", status(true, restarts, json!({ "running": {} })));
        assert_eq!(said(&[between(2)], &[], &[2]), [U]);
        // Once is borne where it came back, and told.
        let mut memory = Memory::default();
        let ruling = judge(&Rules::default(), &mut memory, &[&between(1)], &[], at(0), at(2));
        assert_eq!(ruling.standing, H);
        assert_eq!(ruling.summary, "1 pods are ready; container app of pod a crashed once (OOMKilled, exit code 137)");
    }

    #[test]
    fn of_many_pods_a_tenth_has_to_crash_once() {
        let mut pods: Vec<Pod> = (0..97).map(|n| ready(&format!("ready-{n}"))).collect();
        pods.extend((0..3).map(|n| pod(&format!("restarted-{n}"), status(true, 1, json!({ "running": {} })))));
        assert_eq!(said(&pods, &[], &[2]), [H]);
        pods.extend((3..11).map(|n| pod(&format!("restarted-{n}"), status(true, 1, json!({ "running": {} })))));
        assert_eq!(said(&pods, &[], &[2]), [U]);
    }

    #[test]
    fn what_ended_before_the_rollout_is_not_its_doing() {
        let mut old = pod("a", status(true, 7, json!({ "running": {} })));
        old.created = Some(at(-1000));
        let mut memory = Memory::default();
        let mut judge =
            |pod: &Pod, second| judge(&Rules::default(), &mut memory, &[pod], &[], at(0), at(second)).standing;
        assert_eq!(judge(&old, 2), H);
        old.containers[0].restarts = 8;
        assert_eq!(judge(&old, 12), H, "one crash");
        old.containers[0].restarts = 9;
        assert_eq!(judge(&old, 22), U, "two");
    }

    #[test]
    fn what_ails_the_baseline_too_is_not_cured_by_going_back() {
        let new = [crashed("n1", 1), crashed("n2", 1)];
        assert_eq!(said(&new, &[ready("o1"), ready("o2")], &[2]), [U]);
        assert_eq!(said(&new, &[crashed("o1", 40), crashed("o2", 40)], &[2, 12]), [I, I]);
        assert_eq!(said(&new, &[ready("o1"), crashed("o2", 40)], &[2]), [I], "half of them");
        let mostly_well = [ready("o1"), ready("o2"), ready("o3"), crashed("o4", 40)];
        assert_eq!(said(&new, &mostly_well, &[2]), [U], "a quarter of them, where all of the candidate's crash");
        let pulls = [waiting("n1", "ErrImageNeverPull")];
        assert_eq!(said(&pulls, &[waiting("o1", "ImagePullBackOff")], &[2]), [I], "the registry is away");
        // A pod of the baseline that is not ready is on its way out, or comes up.
        assert_eq!(said(&new, &[pod("o1", status(false, 0, json!({ "running": {} })))], &[2]), [U]);

        let (new, old) = (crashed("n1", 1), crashed("o1", 40));
        let ruling = judge(&Rules::default(), &mut Memory::default(), &[&new], &[&old], at(0), at(2));
        let expected = "container app of pod n1 crashed 2 times (OOMKilled, exit code 137), but 1 of 1 pods of the \
                        baseline fail too: rolling back would not help";
        assert_eq!(ruling.summary, expected);
    }

    #[test]
    fn what_happened_to_the_baseline_before_the_rollout_is_no_excuse() {
        let new = [crashed("n1", 1)];
        let mut old: Vec<Pod> = (0..3).map(|n| older(evicted(&format!("gone-{n}")))).collect();
        old.extend((0..3).map(|n| older(ready(&format!("o{n}")))));
        assert_eq!(said(&new, &old, &[2, 12]), [U, U], "evicted, and still listed");
        for many in [3, 100] {
            let old: Vec<Pod> = (0..many).map(|n| older(restarted(&format!("o{n}"), 1))).collect();
            assert_eq!(said(&new, &old, &[2, 12]), [U, U], "{many} that restarted once, long ago");
            let old: Vec<Pod> = (0..many).map(|n| older(crashed(&format!("o{n}"), 40))).collect();
            assert_eq!(said(&new, &old, &[2, 12]), [I, I], "{many} that wait to be started again");
        }
    }

    #[test]
    fn what_happens_to_the_baseline_from_then_on_is_one() {
        let new = [crashed("n1", 0), evicted("n2"), evicted("n3")];
        let (well, gone) = (older(restarted("o1", 7)), older(evicted("o1")));
        let again = older(restarted("o1", 8));
        for (later, expected) in [(&gone, I), (&again, I), (&well, U)] {
            let mut memory = Memory::default();
            judge(&Rules::default(), &mut memory, &[], &[&well], at(0), at(2));
            let new: Vec<&Pod> = new.iter().collect();
            let ruling = judge(&Rules::default(), &mut memory, &new, &[later], at(0), at(12));
            assert_eq!(ruling.standing, expected, "{}", ruling.summary);
        }
    }

    #[test]
    fn what_happened_to_the_candidate_before_the_rollout_is_not_held_against_it() {
        let gone = |n: i32| older(evicted(&format!("gone-{n}")));
        assert_eq!(said(&[ready("a"), gone(1), gone(2)], &[], &[2, 12]), [H, H]);
        let mut many: Vec<Pod> = (0..100).map(gone).collect();
        many.extend((0..100).map(|n| older(restarted(&format!("r{n}"), 3))));
        assert_eq!(said(&many, &[], &[2, 12]), [H, H], "more than are remembered");
        many.extend((0..20).map(|n| older(crashed(&format!("c{n}"), 3))));
        assert_eq!(said(&many, &[], &[2]), [U], "what has ended just now is seen all the same");
    }

    #[test]
    fn pods_that_leave_are_not_judged() {
        let leaving = Pod { leaving: true, ..crashed("a", 5) };
        assert_eq!(said(&[ready("b"), leaving], &[], &[2]), [H]);
    }

    #[test]
    fn time_without_a_judgement_uses_up_no_patience() {
        assert_eq!(said(&[pending("a")], &[], &[2, 1000, 1060, 1118, 1119, 1121]), [I, I, I, I, I, U]);
    }

    #[test]
    fn what_is_found_names_the_pod_and_its_words() {
        let bad = waiting("web-1", "InvalidImageName");
        let ruling = judge(&Rules::default(), &mut Memory::default(), &[&bad], &[], at(0), at(2));
        assert_eq!(
            ruling.summary,
            "container app of pod web-1 cannot pull its image (InvalidImageName: in its own words)"
        );
        assert_eq!(ruling.facts["pod"], "web-1");
        assert_eq!(ruling.facts["waits for"], "InvalidImageName");
        assert_eq!(ruling.culprit.unwrap().container.as_deref(), Some("app"));
        let crash = crashed("web-2", 3);
        let ruling = judge(&Rules::default(), &mut Memory::default(), &[&crash], &[], at(0), at(2));
        assert_eq!((&ruling.facts["exit code"], &ruling.facts["reason"]), (&json!(137), &json!("OOMKilled")));
        assert!(ruling.culprit.unwrap().restarted, "its last words are in the log of the container before");
    }

    #[test]
    fn what_a_container_logged_is_told_only_where_that_is_allowed() {
        for (policy, logs, told) in [
            (None, false, true),
            (Some("File"), false, true),
            (Some("FallbackToLogsOnError"), false, false),
            (Some("FallbackToLogsOnError"), true, true),
        ] {
            let end = json!({ "terminated": { "exitCode": 1, "reason": "Error", "message": "token=hunter2" } });
            let meta = json!({ "name": "web-1", "uid": "u", "creationTimestamp": "2027-01-15T08:00:01Z" });
            let status = |name: &str| json!({ "name": name, "restartCount": 4, "lastState": end });
            let spec = |name: &str| json!({ "name": name, "terminationMessagePolicy": policy });
            let pod: Pod = serde_json::from_value(json!({ "metadata": meta,
                "spec": { "initContainers": [spec("migrate")], "containers": [{ "name": "app" }] },
                "status": { "initContainerStatuses": [status("migrate")], "containerStatuses": [] } }))
            .unwrap();
            let rules = Rules { logs, ..Rules::default() };
            let ruling = judge(&rules, &mut Memory::default(), &[&pod], &[], at(0), at(2));
            let all = format!("{} {:?}", ruling.summary, ruling.facts);
            assert!(all.contains("Error"), "{all}");
            assert_eq!(all.contains("hunter2"), told, "{policy:?}, logs {logs}: {all}");
        }
    }

    #[test]
    fn init_containers_that_are_done_have_not_crashed_and_those_that_failed_have() {
        let init = |exit: i32| {
            let state = json!({ "terminated": { "exitCode": exit, "reason": "Completed" } });
            let mut status = status(true, 0, json!({ "running": {} }));
            status["initContainerStatuses"] = json!([{ "name": "migrate", "restartCount": 1, "state": state }]);
            pod("a", status)
        };
        assert_eq!(said(&[init(0)], &[], &[2]), [H], "restarted once, and done");
        assert_eq!(said(&[init(1)], &[], &[2]), [U]);
    }

    #[test]
    fn the_memory_of_a_thousand_failing_pods_fits_its_slot() {
        let pods: Vec<Pod> = (0..1000).map(|n| pending(&format!("{n:036}"))).collect();
        let old: Vec<Pod> = (0..1000).map(|n| crashed(&format!("old-{n:036}"), 3)).collect();
        let (new, old): (Vec<&Pod>, Vec<&Pod>) = (pods.iter().collect(), old.iter().collect());
        let mut memory = Memory::default();
        judge(&Rules::default(), &mut memory, &new, &old, at(0), at(2));
        let len = serde_json::to_string(&memory).unwrap().len();
        assert!(len <= 6 * 1024, "{len} bytes");
    }

    #[test]
    fn a_fault_that_is_borne_tells_when_it_becomes_final() {
        let again = |pods: &[Pod]| {
            let pods: Vec<&Pod> = pods.iter().collect();
            judge(&Rules::default(), &mut Memory::default(), &pods, &[], at(0), at(2)).again
        };
        assert_eq!(again(&[ready("a")]), None);
        assert_eq!(again(&[waiting("a", "CreateContainerConfigError"), pending("b")]), Some(Duration::from_secs(2)));
        assert_eq!(again(&[pending("b")]), Some(Duration::from_secs(120)));
    }
}
