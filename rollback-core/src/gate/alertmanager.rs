//! A gate that asks an Alertmanager which alerts fire.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize};

#[cfg(feature = "prometheus")]
use super::prometheus::Server;
use super::{Evidence, HealthGate, Verdict, Window};
use crate::{
    backend::Readiness,
    error::{Error, Result},
    model::{Change, GateName, Note},
    plan::Plan,
    web::{self, Auth, Client},
};

/// Asks an Alertmanager (API v2) for the alerts that match, and is unhealthy while one fires that is new.
///
/// An alert fires when it is active: neither silenced nor inhibited. It is new when it began after the rollout was
/// created, and was not seen firing before; what fired before is [`Preexisting`]'s business.
///
/// No alerts is not health: a Prometheus that died sends none, and what it sent last vanishes after some minutes. So an
/// alert that always fires (the *heartbeat*, as the customary `Watchdog`) must be there, and the evidence reaches as far
/// as its last arrival: a bake passes on a heartbeat that came after its end. Prometheus repeats one every minute
/// (`--rules.alert.resend-delay`). Without it the gate has no data. Let the heartbeat's matchers name the Prometheus
/// whose alerts are asked for, where there are several: of those that match, the last one heard of counts.
///
/// Matchers are those of `amtool`: `name="value"`, and `!=`, `=~`, `!~`; an alert matches when all of them do. An alert
/// can only fire when its rule's `for` fits into the bake, which preflight finds out where `rules` names the Prometheus
/// that has them (with the feature `prometheus`).
///
/// ```
/// # use rollback_core::gate::{Alertmanager, Preexisting};
/// let gate = Alertmanager::new("alerts", "http://alertmanager:9093", [r#"target="checkout""#], [r#"alertname="Watchdog""#])?
///     .preexisting(Preexisting::Ignore("the disk alert is being worked on".into()));
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Alertmanager {
    name: GateName,
    url: Url,
    client: Client,
    matchers: Vec<String>,
    heartbeat: Vec<String>,
    fresh_for: Duration,
    preexisting: Preexisting,
    #[cfg(feature = "prometheus")]
    rules: Option<Server>,
}

/// What alerts mean that fired before the rollout was created. They never count against the candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Preexisting {
    /// The rollout does not begin. One that is heard of later is as with [`RequireRecovery`](Self::RequireRecovery). The
    /// default.
    #[default]
    Refuse,
    /// They are let be, for this reason, which the record shows; also when they end and fire again.
    Ignore(Note),
    /// The rollout begins, and has no data from this gate before they have ended. Firing again, they are new.
    RequireRecovery,
}

impl Alertmanager {
    /// How many alerts that fired before can be told from new ones; with more the gate has no data.
    pub const MAX_PREEXISTING: usize = 256;

    /// A gate on the alerts that these matchers select, of the Alertmanager at this address (with its path prefix, where
    /// it has one), with the heartbeat that these select.
    ///
    /// # Errors
    /// `Invalid` when the name is not 1 to 64 bytes of printable text, when the address is none or holds a password, or
    /// when there are no matchers or one is none.
    pub fn new<M: Into<String>>(
        name: &str,
        url: &str,
        matchers: impl IntoIterator<Item = M>,
        heartbeat: impl IntoIterator<Item = M>,
    ) -> Result<Self> {
        let name = GateName::try_from(name)?;
        let mut url = web::address(url).map_err(|e| e.during(format!("the address of gate {name} cannot be used")))?;
        url.path_segments_mut().expect("http and https have a path").pop_if_empty().extend(["api", "v2", "alerts"]);
        url.set_query(None);
        let (matchers, heartbeat) =
            (read_matchers(&name, "alerts", matchers)?, read_matchers(&name, "heartbeat", heartbeat)?);
        Ok(Self {
            name,
            url,
            client: Client::new()?,
            matchers,
            heartbeat,
            fresh_for: Duration::from_secs(180),
            preexisting: Preexisting::default(),
            #[cfg(feature = "prometheus")]
            rules: None,
        })
    }

    /// With these credentials.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.client = self.client.auth(auth);
        self
    }

    /// With this client instead of ours: a private authority, a client certificate, a proxy.
    #[must_use]
    pub fn client(mut self, client: reqwest::Client) -> Self {
        self.client = self.client.http(client);
        self
    }

    /// Waits at most this long for each of the two answers, which are asked for at the same time. Default 5 seconds;
    /// keep it below the policy's timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.client = self.client.timeout(timeout);
        self
    }

    /// A heartbeat that last came longer ago is none. Default 3 minutes, which is three of Prometheus' resends.
    #[must_use]
    pub const fn heartbeat_within(mut self, time: Duration) -> Self {
        self.fresh_for = time;
        self
    }

    /// What alerts mean that fired before the rollout was created.
    #[must_use]
    pub fn preexisting(mut self, preexisting: Preexisting) -> Self {
        self.preexisting = preexisting;
        self
    }

    /// With the Prometheus whose rules make the alerts: preflight asks it how long they wait (`for`), and tells of those
    /// that wait longer than a bake lasts. What fires is still asked of the Alertmanager alone.
    #[cfg(feature = "prometheus")]
    #[must_use]
    pub fn rules(mut self, prometheus: &Server) -> Self {
        self.rules = Some(prometheus.clone());
        self
    }

    /// What the alerts of this gate can see in time.
    async fn outlook(&self, plan: &Plan, readiness: Readiness) -> Readiness {
        #[cfg(feature = "prometheus")]
        if let Some(server) = &self.rules {
            return match server.alerting_rules().await {
                Ok(rules) => self.in_time(&rules, server, plan, readiness),
                Err(e) => readiness.not_provable(format!(
                    "that the alerts of gate {} can fire within a bake: {}",
                    self.name,
                    e.chain()
                )),
            };
        }
        let _ = plan;
        readiness.not_provable(format!(
            "that the alerts of gate {} can fire within a bake: see the `for` of their rules",
            self.name
        ))
    }

    #[cfg(feature = "prometheus")]
    fn in_time(
        &self,
        rules: &[super::prometheus::AlertingRule],
        server: &Server,
        plan: &Plan,
        mut readiness: Readiness,
    ) -> Readiness {
        let rules: Vec<_> = rules.iter().filter(|rule| self.may_match(rule)).collect();
        if rules.is_empty() {
            return readiness.not_provable(format!(
                "that gate {} ever hears of an alert: {} has no rule whose alerts match {}",
                self.name,
                server.shown(),
                self.matchers.join(",")
            ));
        }
        let bakes = plan.steps().iter().map(|step| step.bake).filter(|bake| !bake.is_zero());
        let (shortest, all) = (bakes.clone().min().unwrap_or_default(), bakes.sum::<Duration>());
        let (late, soon): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.duration > shortest.as_secs_f64());
        if let Some(longest) = soon.iter().map(|rule| rule.duration).reduce(f64::max) {
            readiness = readiness.proved(format!(
                "gate {}: {} of the rules that may make its alerts wait at most {longest} s, within the shortest bake \
                 of {} s",
                self.name,
                soon.len(),
                shortest.as_secs()
            ));
        }
        for rule in late.iter().take(3) {
            let when = match rule.duration > all.as_secs_f64() {
                true => format!("longer than all bakes together, {} s: it cannot fire in time", all.as_secs()),
                false => {
                    format!("over the shortest bake of {} s: what begins there is heard of later", shortest.as_secs())
                }
            };
            readiness = readiness.not_provable(format!(
                "that gate {} hears of {} in time: the rule waits {} s (`for`), {when}",
                self.name, rule.name, rule.duration
            ));
        }
        if late.len() > 3 {
            let more = late.len() - 3;
            readiness = readiness.not_provable(format!("that gate {} hears of {more} more alerts in time", self.name));
        }
        readiness
    }

    /// Whether a rule may make alerts that this gate asks for. Labels that a rule does not set come with its series, and
    /// can be anything; so can what an expression or a template makes of one.
    #[cfg(feature = "prometheus")]
    fn may_match(&self, rule: &super::prometheus::AlertingRule) -> bool {
        self.matchers.iter().all(|matcher| {
            let (name, rest) = matcher.split_at(matcher.find(['=', '!']).unwrap_or(matcher.len()));
            let set = if name == "alertname" { Some(&rule.name) } else { rule.labels.get(name) };
            let (Some(set), false) = (set, rest.contains('~')) else { return true };
            let wanted = rest.trim_start_matches(['!', '=']).trim_matches('"');
            set.contains("{{") || (set == wanted) != rest.starts_with('!')
        })
    }

    /// What fires, and when the heartbeat last came.
    async fn ask(&self) -> Result<(Vec<Alert>, Option<Timestamp>)> {
        let (alerts, beats) = tokio::try_join!(self.alerts(&self.matchers, false), self.alerts(&self.heartbeat, true))?;
        let is_beat = |alert: &Alert| beats.iter().any(|beat| beat.fingerprint == alert.fingerprint);
        let firing = alerts.into_iter().filter(|alert| alert.fires() && !is_beat(alert)).collect();
        Ok((firing, beats.iter().map(|beat| beat.updated_at).max()))
    }

    async fn alerts(&self, matchers: &[String], suppressed: bool) -> Result<Vec<Alert>> {
        let url = self.asking_for(matchers, suppressed);
        let answer = self.client.send(self.client.request(Method::GET, url)).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.error());
        }
        answer.json()
    }

    fn asking_for(&self, matchers: &[String], suppressed: bool) -> Url {
        let mut url = self.url.clone();
        let mut query = url.query_pairs_mut();
        // Each is said: what the server takes for granted has changed, and a word it does not know means false to it.
        let suppressed = if suppressed { "true" } else { "false" };
        query.append_pair("active", "true").append_pair("unprocessed", "false");
        query.append_pair("silenced", suppressed).append_pair("inhibited", suppressed);
        for matcher in matchers {
            query.append_pair("filter", matcher);
        }
        drop(query);
        url
    }

    fn beats(&self, heartbeat: Option<Timestamp>, now: Timestamp) -> Result<Timestamp, String> {
        let matchers = self.heartbeat.join(",");
        let Some(at) = heartbeat else {
            return Err(format!("no heartbeat {{{matchers}}}: whether alerts would come is unknown"));
        };
        let age = now.duration_since(at);
        if age > SignedDuration::try_from(self.fresh_for).unwrap_or(SignedDuration::MAX) {
            let (age, most) = (age.as_secs(), self.fresh_for.as_secs());
            return Err(format!("the heartbeat {{{matchers}}} came {age} s ago; at most {most} s are accepted"));
        }
        Ok(at)
    }
}

#[async_trait]
impl HealthGate for Alertmanager {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let memory = match window.last.as_ref().map(Evidence::recall::<Memory>).transpose() {
            Ok(memory) => memory.flatten().unwrap_or_default(),
            Err(e) => return Ok(window.no_data(e.to_string())),
        };
        let (firing, heartbeat) = self.ask().await?;
        let (old, new): (Vec<_>, Vec<_>) = firing
            .iter()
            .partition(|alert| alert.starts_at < window.created || memory.before.contains(&alert.fingerprint));
        let beats = self.beats(heartbeat, window.now);
        let mut before: Vec<String> = old.iter().map(|alert| alert.fingerprint.clone()).collect();
        if matches!(self.preexisting, Preexisting::Ignore(_)) || beats.is_err() {
            // To have ended takes a Prometheus that would say so.
            before.extend(memory.before);
        }
        before.sort_unstable();
        before.dedup();
        let many = before.len() > Self::MAX_PREEXISTING;
        let until = *beats.as_ref().unwrap_or(&window.since);
        let evidence = |until: Timestamp, summary: String| {
            let mut evidence = Evidence::new(until, summary)
                .fact("matchers", self.matchers.join(","))
                .fact("new", new.len())
                .fact("before", old.len());
            if let Some(at) = heartbeat {
                evidence = evidence.fact("heartbeat", at.to_string());
            }
            // More than can be kept would be cut somewhere, and what is cut would be new at the next look.
            match (many, &window.last) {
                (true, Some(last)) => Evidence { memory: last.memory.clone(), ..evidence },
                (true, None) => evidence,
                (false, _) => evidence.remember(serde_json::json!(Memory { before: before.clone() })),
            }
        };
        // Bad news needs no heartbeat.
        if !new.is_empty() {
            return Ok(Verdict::Unhealthy(evidence(window.now, format!("{} fire: {}", count(new.len()), list(&new)))));
        }
        if many {
            let why = format!("more than {} alerts fired before; narrow the matchers", Self::MAX_PREEXISTING);
            return Ok(Verdict::Inconclusive(evidence(until, why)));
        }
        if let Err(why) = beats {
            return Ok(Verdict::Inconclusive(evidence(until, why)));
        }
        if !old.is_empty() && !matches!(self.preexisting, Preexisting::Ignore(_)) {
            let why = format!("{} fired before the rollout and did not end: {}", count(old.len()), list(&old));
            return Ok(Verdict::Inconclusive(evidence(until, why)));
        }
        let why = match old.len() {
            0 => "no alert fires".into(),
            n => format!("no new alert fires, and {} from before that we ignore", count(n)),
        };
        Ok(Verdict::Healthy(evidence(until, why)))
    }

    async fn preflight(&self, _: &Change, plan: &Plan) -> Result<Readiness> {
        let readiness = Readiness::default();
        let (firing, heartbeat) = match self.ask().await {
            Ok(answer) => answer,
            Err(e) if e.is_transient() => return Err(e),
            Err(e) => return Ok(readiness.refused(format!("gate {} cannot ask: {}", self.name, e.chain()))),
        };
        if heartbeat.is_none() {
            return Ok(readiness.refused(format!(
                "gate {} finds no heartbeat {{{}}}; without one that no alert fires says nothing",
                self.name,
                self.heartbeat.join(",")
            )));
        }
        let readiness =
            readiness.proved(format!("gate {} can ask the Alertmanager, and its heartbeat is there", self.name));
        let readiness = self.outlook(plan, readiness).await;
        let firing: Vec<_> = firing.iter().collect();
        let says = format!("gate {}: {} fire already: {}", self.name, count(firing.len()), list(&firing));
        Ok(match &self.preexisting {
            _ if firing.is_empty() => readiness,
            _ if firing.len() > Self::MAX_PREEXISTING => readiness.refused(format!("{says}; narrow the matchers")),
            Preexisting::Refuse => {
                readiness.refused(format!("{says}; they must end first, or be silenced, or ignored"))
            }
            Preexisting::Ignore(why) => readiness.not_provable(format!("{says}; ignored: {why}")),
            Preexisting::RequireRecovery => readiness.not_provable(format!("{says}; no step passes before they end")),
        })
    }
}

/// What is kept from look to look.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    /// Fingerprints of what fired before the rollout: after a restart of its Prometheus an alert has a new beginning.
    before: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    fingerprint: String,
    starts_at: Timestamp,
    updated_at: Timestamp,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    state: State,
    silenced_by: Vec<String>,
    inhibited_by: Vec<String>,
}

#[derive(PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Active,
    Suppressed,
    Unprocessed,
}

impl Alert {
    fn fires(&self) -> bool {
        self.status.state == State::Active && self.status.silenced_by.is_empty() && self.status.inhibited_by.is_empty()
    }

    fn describe(&self) -> String {
        let name = self.labels.get("alertname").map_or("an alert without a name", String::as_str);
        match self.annotations.get("summary").or_else(|| self.annotations.get("description")) {
            Some(said) => format!("{name} ({said})"),
            None => name.into(),
        }
    }
}

fn count(alerts: usize) -> String {
    if alerts == 1 { "1 alert".into() } else { format!("{alerts} alerts") }
}

/// The first three, for people.
fn list(alerts: &[&Alert]) -> Note {
    let mut text = alerts.iter().take(3).map(|alert| alert.describe()).collect::<Vec<_>>().join(", ");
    if alerts.len() > 3 {
        text.push_str(", …");
    }
    Note::new(text)
}

fn read_matchers<M: Into<String>>(
    gate: &GateName,
    what: &str,
    matchers: impl IntoIterator<Item = M>,
) -> Result<Vec<String>> {
    let matchers: Vec<String> = matchers.into_iter().map(Into::into).collect();
    if matchers.is_empty() {
        return Err(Error::invalid(format!(
            "gate {gate} has no matchers for its {what}; at least one is needed, as alertname=\"Watchdog\""
        )));
    }
    for matcher in &matchers {
        let name = matcher.split(['=', '!']).next().unwrap_or_default();
        let is_label = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let rest = &matcher[name.len()..];
        let operator = ["=~", "!~", "!=", "="].into_iter().find(|operator| rest.starts_with(operator));
        if !is_label || operator.is_none_or(|operator| rest.len() == operator.len()) {
            return Err(Error::invalid(format!(
                "gate {gate} has {matcher:?} among the matchers of its {what}; name=\"value\" is accepted, and !=, =~, !~"
            )));
        }
    }
    Ok(matchers)
}
