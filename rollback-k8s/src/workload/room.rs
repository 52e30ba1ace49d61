//! Whether a namespace's quotas and limits would let the pods in. The API server asks that when a pod is made, so trying out
//! a workload does not show it. Pure.
//!
//! The rules are those of its admission plugins (`LimitRanger`, `ResourceQuota`): what a container leaves open is filled in
//! from the LimitRanges first.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Kind, convergence};
use crate::object::{map, text};

/// Of a resource, in billionths: the smallest part that a quantity can name.
type Amounts = BTreeMap<String, i128>;

/// What a container, or a whole pod, asks for and may use at most.
#[derive(Clone, Debug, Default)]
struct Needs {
    requests: Amounts,
    limits: Amounts,
}

/// How many pods more there are at the height of a change than before and after.
pub(super) fn surge(kind: Kind, object: &Value) -> i64 {
    let at = match kind {
        Kind::Deployment if text(object, "/spec/strategy/type") != "Recreate" => {
            "/spec/strategy/rollingUpdate/maxSurge"
        }
        Kind::DaemonSet => "/spec/updateStrategy/rollingUpdate/maxSurge",
        Kind::Deployment | Kind::StatefulSet => return 0,
    };
    let pods = convergence::wanted(kind, object);
    let percent = |text: &str| Some((pods * text.strip_suffix('%')?.parse::<i64>().ok()? + 99) / 100);
    match object.pointer(at) {
        Some(Value::String(share)) => percent(share).unwrap_or(0),
        Some(number) => number.as_i64().unwrap_or(0),
        // The API server fills this in.
        None if kind == Kind::Deployment => percent("25%").unwrap_or(0),
        None => 0,
    }
}

/// Why pods of this template would be refused, by the limits of the namespace.
pub(super) fn refused(template: &Value, ranges: &[Value]) -> Vec<String> {
    let mut why = Vec::new();
    for range in ranges {
        let name = text(range, "/metadata/name");
        for item in range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten() {
            match text(item, "/type") {
                "Container" => {
                    for container in super::containers(template) {
                        let needs = Needs::of(container, ranges);
                        let container = text(container, "/name");
                        why.extend(
                            needs.against(item).map(|but| format!("LimitRange {name}: container {container} {but}")),
                        );
                    }
                }
                "Pod" => {
                    let needs = Needs::of_pod(template, ranges);
                    why.extend(needs.against(item).map(|but| format!("LimitRange {name}: the pod {but}")));
                }
                _ => {}
            }
        }
    }
    why
}

/// What a quota says to a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// Why it would not fit, or pods would be refused.
    pub(super) short: Vec<String>,
    /// Why pods would be refused on the way back. At its height that takes as much as the way there.
    pub(super) back: Vec<String>,
    /// What is not reckoned here.
    pub(super) unknown: Vec<String>,
}

/// Whether the quotas leave room for so many pods to go from one template to another, with so many more at the height.
pub(super) fn room(
    kind: Kind,
    from: &Value,
    to: &Value,
    [pods, surge]: [i64; 2],
    quotas: &[Value],
    ranges: &[Value],
) -> Room {
    let (pods, surge) = (i128::from(pods), i128::from(surge));
    let history = match kind {
        Kind::Deployment => "count/replicasets.apps",
        Kind::StatefulSet | Kind::DaemonSet => "count/controllerrevisions.apps",
    };
    let (old, new) = (Needs::of_pod(from, ranges), Needs::of_pod(to, ranges));
    let mut room = Room::default();
    for quota in quotas {
        let name = text(quota, "/metadata/name");
        let scopes: BTreeSet<&str> = quota
            .pointer("/spec/scopes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        // Pods of a workload have no deadline.
        if scopes.contains("Terminating") {
            continue;
        }
        if quota.pointer("/spec/scopeSelector").is_some() || scopes.iter().any(|scope| *scope != "NotTerminating") {
            room.unknown.push(format!("that ResourceQuota {name} leaves room: it is for some pods only"));
            continue;
        }
        let hard = if quota.pointer("/status/hard").is_some() { "/status/hard" } else { "/spec/hard" };
        for (resource, hard) in map(quota, hard) {
            let used = quota.pointer("/status/used").and_then(|used| used.get(resource)).and_then(amount).unwrap_or(0);
            if resource == history && from != to && amount(hard).is_some_and(|hard| used + BILLION > hard) {
                room.unknown.push(format!(
                    "that ResourceQuota {name} leaves room: of {resource} it leaves none, and a template that has none yet \
                     takes one"
                ));
            }
            let Some((old, new)) = old.charged(resource).zip(new.charged(resource)) else { continue };
            if let Some(without) = unsaid(from, resource, ranges) {
                room.back.push(format!("ResourceQuota {name} wants {resource} said of container {without}"));
            }
            if let Some(without) = unsaid(to, resource, ranges) {
                room.short.push(format!("ResourceQuota {name} wants {resource} said of container {without}"));
                continue;
            }
            let (old, new) = (old.unwrap_or(0), new.unwrap_or(0));
            // Of the larger ones as many as there are to be, and beside them as many as come on top.
            let more = if new >= old { pods * (new - old) + surge * old } else { surge * new };
            let Some(hard) = amount(hard) else { continue };
            if used > hard && pods > 0 && new > 0 {
                room.short.push(format!(
                    "ResourceQuota {name} leaves {} of {resource}, of which {} is in use: no pod that goes is replaced",
                    said(hard),
                    said(used)
                ));
                continue;
            }
            let left = (hard - used).max(0);
            if more > left {
                room.short.push(format!(
                    "ResourceQuota {name} leaves {} of {resource}, and the change takes {} more at its height",
                    said(left),
                    said(more)
                ));
            }
        }
    }
    room
}

/// The containers that a quota on this wants to find it said of. Where something is said of the pod as a whole, as from 1.34
/// on, nothing has to be said of containers.
fn unsaid(template: &Value, resource: &str, ranges: &[Value]) -> Option<String> {
    if !is_computed(resource) || ["requests", "limits"].iter().any(|of| !whole(template, of).is_empty()) {
        return None;
    }
    let without: Vec<&str> = super::containers(template)
        .filter(|container| Needs::of(container, ranges).charged(resource) == Some(None))
        .map(|container| text(container, "/name"))
        .collect();
    (!without.is_empty()).then(|| without.join(", "))
}

/// What is said of the pod as a whole.
fn whole(template: &Value, of: &str) -> Amounts {
    amounts(template, &format!("/spec/resources/{of}"))
}

impl Needs {
    /// Of a container, with what the LimitRanges fill in.
    fn of(container: &Value, ranges: &[Value]) -> Self {
        let mut needs = Self {
            requests: amounts(container, "/resources/requests"),
            limits: amounts(container, "/resources/limits"),
        };
        let fill = |into: &mut Amounts, from: Amounts| {
            for (resource, amount) in from {
                into.entry(resource).or_insert(amount);
            }
        };
        fill(&mut needs.requests, needs.limits.clone());
        for range in ranges {
            for item in range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten() {
                if text(item, "/type") == "Container" {
                    fill(&mut needs.limits, amounts(item, "/default"));
                    fill(&mut needs.requests, amounts(item, "/defaultRequest"));
                }
            }
        }
        needs
    }

    /// Of a whole pod: all its containers side by side, or the largest of those that run before them.
    fn of_pod(template: &Value, ranges: &[Value]) -> Self {
        let list = |at: &str| template.pointer(at).and_then(Value::as_array).into_iter().flatten();
        let mut sum = Self::default();
        let add = |into: &mut Amounts, more: Amounts| {
            for (resource, amount) in more {
                *into.entry(resource).or_default() += amount;
            }
        };
        let mut first: Vec<Self> = Vec::new();
        for container in list("/spec/initContainers") {
            let needs = Self::of(container, ranges);
            if text(container, "/restartPolicy") == "Always" {
                add(&mut sum.requests, needs.requests);
                add(&mut sum.limits, needs.limits);
            } else {
                first.push(needs);
            }
        }
        for container in list("/spec/containers") {
            let needs = Self::of(container, ranges);
            add(&mut sum.requests, needs.requests);
            add(&mut sum.limits, needs.limits);
        }
        let widen = |into: &mut Amounts, needs: &Amounts| {
            for (resource, amount) in needs {
                let most = into.entry(resource.clone()).or_default();
                *most = (*most).max(*amount);
            }
        };
        for needs in first {
            widen(&mut sum.requests, &needs.requests);
            widen(&mut sum.limits, &needs.limits);
        }
        // What is said of the pod as a whole holds, whatever its containers say; what it may use at most is what it asks for
        // where neither says that.
        sum.limits.extend(whole(template, "limits"));
        for (resource, limit) in whole(template, "limits") {
            sum.requests.entry(resource).or_insert(limit);
        }
        sum.requests.extend(whole(template, "requests"));
        let overhead = amounts(template, "/spec/overhead");
        add(&mut sum.requests, overhead.clone());
        let limited = overhead.into_iter().filter(|(resource, _)| sum.limits.contains_key(resource)).collect();
        add(&mut sum.limits, limited);
        sum
    }

    /// What a quota by this name charges for it: none where it does not say. None at all: it charges for something else.
    fn charged(&self, resource: &str) -> Option<Option<i128>> {
        let plain = ["cpu", "memory", "ephemeral-storage"];
        match resource {
            "pods" | "count/pods" => Some(Some(BILLION)),
            // Of volumes, not of pods.
            "requests.storage" => None,
            _ if plain.contains(&resource) => Some(self.requests.get(resource).copied()),
            _ => match resource.split_once('.') {
                Some(("requests", of)) => Some(self.requests.get(of).copied()),
                Some(("limits", of)) => Some(self.limits.get(of).copied()),
                _ => None,
            },
        }
    }

    /// What an item of a LimitRange has against it.
    fn against(&self, item: &Value) -> impl Iterator<Item = String> {
        let mut why = Vec::new();
        let request = |resource: &str| self.requests.get(resource).copied();
        let limit = |resource: &str| self.limits.get(resource).copied();
        for (resource, least) in amounts(item, "/min") {
            match request(&resource) {
                None => why.push(format!("asks for no {resource}, and {} is the least", said(least))),
                Some(asked) if asked < least || limit(&resource).is_some_and(|limit| limit < least) => {
                    why.push(format!("asks for less {resource} than {}", said(least)));
                }
                Some(_) => {}
            }
        }
        for (resource, most) in amounts(item, "/max") {
            match limit(&resource) {
                None => why.push(format!("has no limit of {resource}, and {} is the most", said(most))),
                Some(limit) if limit > most || request(&resource).is_some_and(|asked| asked > most) => {
                    why.push(format!("may use more {resource} than {}", said(most)));
                }
                Some(_) => {}
            }
        }
        for (resource, ratio) in amounts(item, "/maxLimitRequestRatio") {
            match (request(&resource), limit(&resource)) {
                (Some(asked @ 1..), Some(limit @ 1..)) if limit * BILLION <= asked * ratio => {}
                _ => why.push(format!("may use more than {} times the {resource} that it asks for", said(ratio))),
            }
        }
        why.into_iter()
    }
}

/// Whether a quota on this wants to find it said of every container.
fn is_computed(resource: &str) -> bool {
    let plain = resource.strip_prefix("requests.").or_else(|| resource.strip_prefix("limits.")).unwrap_or(resource);
    ["cpu", "memory"].contains(&plain)
}

fn amounts(at: &Value, pointer: &str) -> Amounts {
    map(at, pointer).filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// A quantity, in billionths: `100m`, `1.5`, `2Gi`, `1e3`.
fn amount(value: &Value) -> Option<i128> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    let binary = |power: u32| Some((1024_i128.checked_pow(power)?.checked_mul(BILLION)?, 0));
    let (times, tens): (i128, i32) = match suffix {
        "Ki" => binary(1)?,
        "Mi" => binary(2)?,
        "Gi" => binary(3)?,
        "Ti" => binary(4)?,
        "Pi" => binary(5)?,
        "Ei" => binary(6)?,
        "n" => (1, 0),
        "u" => (1, 3),
        "m" => (1, 6),
        "" => (1, 9),
        "k" => (1, 12),
        "M" => (1, 15),
        "G" => (1, 18),
        "T" => (1, 21),
        "P" => (1, 24),
        "E" => (1, 27),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?.checked_add(9)?),
    };
    let tens = tens.checked_sub(i32::try_from(part.len()).ok()?)?;
    let ten = 10_i128.checked_pow(tens.unsigned_abs())?;
    let all = digits.checked_mul(times)?;
    if tens < 0 { Some(all / ten) } else { all.checked_mul(ten) }
}

/// As people write it: in units, in thousandths, or in `Mi` from there on.
fn said(amount: i128) -> String {
    const MI: i128 = BILLION << 20;
    if amount >= MI {
        format!("{}Mi", amount / MI)
    } else if amount % BILLION == 0 {
        (amount / BILLION).to_string()
    } else {
        format!("{}m", amount / (BILLION / 1000))
    }
}

const BILLION: i128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: &Value) -> Value {
        json!({ "spec": { "containers": [{ "name": "web", "resources": resources }] } })
    }

    fn quota(hard: &Value, used: &Value) -> Value {
        json!({ "metadata": { "name": "small" }, "status": { "hard": hard, "used": used } })
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let table = [
            (json!("100m"), 100_000_000),
            (json!("1.5"), 1_500_000_000),
            (json!(2), 2_000_000_000),
            (json!("1e3"), 1_000_000_000_000),
            (json!("2Gi"), (2 << 30) * BILLION),
            (json!("0.5Mi"), (1 << 19) * BILLION),
            (json!("5k"), 5_000 * BILLION),
            (json!("1E"), 1_000_000_000_000_000_000 * BILLION),
            (json!("250u"), 250_000),
        ];
        for (text, wanted) in table {
            assert_eq!(amount(&text), Some(wanted), "{text}");
        }
        for text in ["", "much", "1.2.3", "1Zi", "1e99999"] {
            assert_eq!(amount(&json!(text)), None, "{text}");
        }
        assert_eq!([said(2 * BILLION), said(BILLION / 4), said((3 << 30) * BILLION)], ["2", "250m", "3072Mi"]);
    }

    #[test]
    fn a_surge_is_what_the_strategy_says_of_the_pods_that_are_wanted() {
        let deployment = |replicas: i64, surge: Value| {
            json!({ "spec": { "replicas": replicas,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge } } } })
        };
        assert_eq!(surge(Kind::Deployment, &deployment(10, json!("25%"))), 3);
        assert_eq!(surge(Kind::Deployment, &deployment(10, json!(2))), 2);
        assert_eq!(surge(Kind::Deployment, &json!({ "spec": { "replicas": 4 } })), 1);
        assert_eq!(
            surge(Kind::Deployment, &json!({ "spec": { "replicas": 4, "strategy": { "type": "Recreate" } } })),
            0
        );
        assert_eq!(surge(Kind::StatefulSet, &json!({ "spec": { "replicas": 4 } })), 0);
    }

    #[test]
    fn a_quota_is_short_by_what_the_height_of_the_change_takes() {
        let (small, large) =
            (pod(&json!({ "requests": { "cpu": "100m" } })), pod(&json!({ "requests": { "cpu": "300m" } })));
        let quotas =
            [quota(&json!({ "pods": "5", "requests.cpu": "1" }), &json!({ "pods": "4", "requests.cpu": "400m" }))];
        let room = |from: &Value, to: &Value, surge| room(Kind::Deployment, from, to, [4, surge], &quotas, &[]).short;
        assert_eq!(room(&small, &small, 1), Vec::<String>::new());
        assert_eq!(
            room(&small, &small, 2),
            ["ResourceQuota small leaves 1 of pods, and the change takes 2 more at its height"]
        );
        // Four of 300m and one of 100m, where there were four of 100m.
        assert_eq!(
            room(&small, &large, 1),
            ["ResourceQuota small leaves 600m of requests.cpu, and the change takes 900m more at its height"]
        );
        // On the way down it is one small one on top of four large ones.
        assert_eq!(room(&large, &small, 1), Vec::<String>::new());
        let silent = pod(&json!({}));
        assert_eq!(room(&silent, &silent, 1), ["ResourceQuota small wants requests.cpu said of container web"]);
    }

    #[test]
    fn what_is_said_of_the_pod_as_a_whole_holds_for_its_containers() {
        let quotas = [quota(&json!({ "requests.cpu": "2", "limits.memory": "1Gi" }), &json!({ "requests.cpu": "1" }))];
        let of = |resources: Value| {
            json!({ "spec": { "resources": resources, "containers": [{ "name": "web" }, { "name": "side",
                "resources": { "requests": { "cpu": "10m" } } }] } })
        };
        let room = |from: &Value, to: &Value| room(Kind::Deployment, from, to, [1, 1], &quotas, &[]);
        let small = of(json!({ "requests": { "cpu": "500m" }, "limits": { "memory": "100Mi" } }));
        assert_eq!(room(&small, &small), Room::default());
        let large = of(json!({ "limits": { "cpu": "1500m", "memory": "100Mi" }, "requests": { "cpu": "1500m" } }));
        assert_eq!(
            room(&small, &large).short,
            ["ResourceQuota small leaves 1 of requests.cpu, and the change takes 1500m more at its height"]
        );
        let silent = of(json!({}));
        assert_eq!(
            room(&silent, &small).back,
            [
                "ResourceQuota small wants limits.memory said of container web, side",
                "ResourceQuota small wants requests.cpu said of container web",
            ]
        );
        assert_eq!(room(&silent, &small).short, Vec::<String>::new());
    }

    #[test]
    fn a_quota_that_is_in_use_beyond_its_limit_lets_no_pod_be_replaced() {
        let web = pod(&json!({ "requests": { "cpu": "100m" } }));
        let room = |hard: &Value, used: &Value| {
            room(
                Kind::StatefulSet,
                &web,
                &pod(&json!({ "requests": { "cpu": "50m" } })),
                [4, 0],
                &[quota(hard, used)],
                &[],
            )
        };
        assert_eq!(room(&json!({ "pods": "4" }), &json!({ "pods": "4" })), Room::default());
        assert_eq!(
            room(&json!({ "pods": "3" }), &json!({ "pods": "4" })).short,
            ["ResourceQuota small leaves 3 of pods, of which 4 is in use: no pod that goes is replaced"]
        );
        let full =
            room(&json!({ "count/controllerrevisions.apps": "7" }), &json!({ "count/controllerrevisions.apps": "7" }));
        assert!(full.short.is_empty() && full.unknown[0].contains("of count/controllerrevisions.apps it leaves none"));
    }

    #[test]
    fn limits_fill_in_what_is_left_open_before_they_judge() {
        let range = |item: Value| json!({ "metadata": { "name": "limits" }, "spec": { "limits": [item] } });
        let filled =
            range(json!({ "type": "Container", "default": { "cpu": "1" }, "defaultRequest": { "cpu": "500m" },
            "max": { "cpu": "1" }, "min": { "cpu": "200m" }, "maxLimitRequestRatio": { "cpu": "4" } }));
        let ranges = [filled];
        let why = |resources: Value| refused(&pod(&resources), &ranges);
        assert_eq!(why(json!({})), Vec::<String>::new());
        assert_eq!(
            why(json!({ "limits": { "cpu": "2" } })),
            ["LimitRange limits: container web may use more cpu than 1"]
        );
        assert_eq!(
            why(json!({ "requests": { "cpu": "100m" } })),
            [
                "LimitRange limits: container web asks for less cpu than 200m",
                "LimitRange limits: container web may use more than 4 times the cpu that it asks for",
            ]
        );
        let whole = [range(json!({ "type": "Pod", "max": { "memory": "1Gi" } }))];
        assert_eq!(
            refused(&pod(&json!({ "limits": { "memory": "2Gi" } })), &whole),
            ["LimitRange limits: the pod may use more memory than 1024Mi"]
        );
    }
}
