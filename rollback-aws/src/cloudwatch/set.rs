//! The alarms that a stage needs, as one set: planned, then created, updated and removed on request.

use std::{collections::BTreeMap, fmt, time::Duration};

use aws_sdk_cloudwatch::{
    Client,
    types::{ComparisonOperator, Dimension, Metric as Sdk, MetricAlarm, MetricDataQuery, MetricStat, Statistic, Tag},
};
use rollback_core::{Error, ErrorKind, Result, model::Note, plan::Plan};
use serde_json::{Map, Value, json};

use super::{Metric, alarms::TO_FIRE};
use crate::{account::Account, error::sorted};

/// How strict the alarms of a stage are.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// As in `prod`; part of every alarm's name.
    pub name: String,
    /// How many periods are looked at.
    pub periods: u32,
    /// How many of them must be bad.
    pub to_alarm: u32,
    /// More percent of the requests than this may not fail.
    pub failed_percent: f64,
    /// Of a load balancer's minute with fewer requests no rate is taken.
    pub least_requests: u32,
    /// Of a Lambda version's minute with fewer calls no rate is taken.
    pub least_calls: u32,
    /// The p99 of a load balancer's latency, in seconds.
    pub latency_seconds: f64,
    /// The p99 of a Lambda function's duration, in milliseconds.
    pub duration_ms: f64,
    /// Errors of a Lambda alias in a minute.
    pub alias_errors: f64,
    /// Throttled calls of a Lambda alias in a minute, from which on the alarm fires.
    pub throttles: f64,
    /// Processor time, in percent.
    pub cpu_percent: f64,
    /// Memory, in percent.
    pub memory_percent: f64,
    /// Disk, in percent.
    pub disk_percent: f64,
    /// A count of your own in a period, from which on the alarm fires.
    pub custom: f64,
}

impl Stage {
    /// Before production: three of five minutes, and thresholds that a little traffic does not cross by chance.
    pub fn gamma() -> Self {
        Self {
            name: "gamma".into(),
            periods: 5,
            to_alarm: 3,
            failed_percent: 5.0,
            least_requests: 20,
            least_calls: 5,
            latency_seconds: 1.0,
            duration_ms: 3000.0,
            alias_errors: 3.0,
            throttles: 5.0,
            cpu_percent: 90.0,
            memory_percent: 90.0,
            disk_percent: 90.0,
            custom: 5.0,
        }
    }

    /// Production: two of three minutes, stricter thresholds.
    pub fn prod() -> Self {
        Self {
            name: "prod".into(),
            periods: 3,
            to_alarm: 2,
            failed_percent: 1.0,
            least_requests: 100,
            least_calls: 20,
            latency_seconds: 0.5,
            duration_ms: 1000.0,
            alias_errors: 0.0,
            throttles: 1.0,
            cpu_percent: 80.0,
            memory_percent: 85.0,
            disk_percent: 85.0,
            custom: 1.0,
        }
    }
}

/// One alarm as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    name: String,
    watched: Watched,
    comparison: ComparisonOperator,
    threshold: f64,
    /// `breaching`, where running things always measure, else `notBreaching`.
    missing: &'static str,
    period: u32,
    periods: u32,
    to_alarm: u32,
    actions: Vec<String>,
}

/// What an alarm watches.
#[derive(Clone, Debug, PartialEq)]
pub enum Watched {
    /// A statistic of a metric.
    One {
        /// The metric.
        metric: Metric,
        /// As in `Sum` or `p99`.
        statistic: String,
    },
    /// An expression of metric math.
    Math {
        /// As in `100 * err / inv`.
        expression: String,
        /// What graphs call it.
        label: String,
        /// The sums (or other statistics) that it is made of, by id.
        metrics: Vec<(String, Metric, String)>,
    },
}

impl Definition {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it watches.
    pub const fn watched(&self) -> &Watched {
        &self.watched
    }

    /// How long bad data may take to make it fire.
    pub fn fires_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.period) * u64::from(self.to_alarm)) + TO_FIRE
    }

    /// As PutMetricAlarm takes it, without tags.
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        let mut put = |name: &str, value: Value| {
            all.insert(name.to_owned(), value);
        };
        put("AlarmName", json!(self.name));
        put("ActionsEnabled", json!(true));
        put("EvaluationPeriods", json!(self.periods));
        put("DatapointsToAlarm", json!(self.to_alarm));
        put("ComparisonOperator", json!(self.comparison.as_str()));
        put("Threshold", json!(self.threshold));
        put("TreatMissingData", json!(self.missing));
        if !self.actions.is_empty() {
            put("AlarmActions", json!(self.actions));
        }
        match &self.watched {
            Watched::One { metric, statistic } => {
                put("Namespace", json!(metric.namespace()));
                put("MetricName", json!(metric.name()));
                put("Dimensions", dimensions_json(metric));
                put("Period", json!(self.period));
                put(if is_percentile(statistic) { "ExtendedStatistic" } else { "Statistic" }, json!(statistic));
                if is_percentile(statistic) {
                    put("EvaluateLowSampleCountPercentile", json!("ignore"));
                }
            }
            Watched::Math { expression, label, metrics } => {
                let mut queries =
                    vec![json!({ "Id": "rate", "Expression": expression, "Label": label, "ReturnData": true })];
                queries.extend(metrics.iter().map(|(id, metric, statistic)| {
                    json!({
                        "Id": id, "ReturnData": false, "MetricStat": {
                            "Metric": {
                                "Namespace": metric.namespace(), "MetricName": metric.name(),
                                "Dimensions": dimensions_json(metric),
                            },
                            "Period": self.period, "Stat": statistic,
                        },
                    })
                }));
                put("Metrics", json!(queries));
            }
        }
        Value::Object(all)
    }

    /// What of an alarm that is there differs from this, as "Threshold 5 → 1".
    fn differs(&self, there: &MetricAlarm) -> Vec<String> {
        let (wanted, found) = (self.to_json(), found_json(there));
        let names: std::collections::BTreeSet<&String> =
            [&wanted, &found].into_iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
        let said = |value: &Value| if value.is_null() { "nothing".into() } else { value.to_string() };
        names
            .into_iter()
            .filter(|name| !same(&wanted[name.as_str()], &found[name.as_str()]))
            .map(|name| format!("{name} {} → {}", said(&found[name.as_str()]), said(&wanted[name.as_str()])))
            .collect()
    }

    async fn put(&self, client: &Client, tag: Option<Tag>) -> Result<()> {
        let call = client
            .put_metric_alarm()
            .alarm_name(&self.name)
            .actions_enabled(true)
            .evaluation_periods(self.periods as i32)
            .datapoints_to_alarm(self.to_alarm as i32)
            .comparison_operator(self.comparison.clone())
            .threshold(self.threshold)
            .treat_missing_data(self.missing)
            .set_alarm_actions(Some(self.actions.clone()))
            .set_tags(tag.map(|tag| vec![tag]));
        let call = match &self.watched {
            Watched::One { metric, statistic } => {
                let call = call
                    .namespace(metric.namespace())
                    .metric_name(metric.name())
                    .set_dimensions(Some(dimensions(metric)))
                    .period(self.period as i32);
                if is_percentile(statistic) {
                    call.extended_statistic(statistic).evaluate_low_sample_count_percentile("ignore")
                } else {
                    call.statistic(Statistic::from(statistic.as_str()))
                }
            }
            Watched::Math { expression, label, metrics } => {
                let queries = metrics.iter().map(|(id, metric, statistic)| {
                    let sdk = Sdk::builder().namespace(metric.namespace()).metric_name(metric.name());
                    let sdk = sdk.set_dimensions(Some(dimensions(metric))).build();
                    let stat = MetricStat::builder().metric(sdk).period(self.period as i32).stat(statistic).build();
                    MetricDataQuery::builder().id(id).metric_stat(stat).return_data(false).build()
                });
                let rate = MetricDataQuery::builder().id("rate").expression(expression).label(label).return_data(true);
                call.set_metrics(Some(std::iter::once(rate.build()).chain(queries).collect()))
            }
        };
        call.send().await.map(drop).map_err(|e| sorted(format_args!("putting the alarm {}", self.name), e))
    }
}

/// The alarms of one thing in one stage. Making one asks nothing of AWS.
///
/// ```
/// use rollback_aws::cloudwatch::{AlarmSet, Stage};
///
/// let set = AlarmSet::new("checkout", Stage::prod()).function("checkout", "live", "42").action("arn:aws:sns:us-east-1:123456789012:oncall");
/// assert_eq!(set.alarms()[0].name(), "checkout-prod-v42-error-rate");
/// ```
#[derive(Clone, Debug)]
pub struct AlarmSet {
    name: String,
    stage: Stage,
    alarms: Vec<Definition>,
    actions: Vec<String>,
}

/// The key of the tag that says which set an alarm belongs to.
const TAG: &str = "rollback:alarm-set";

impl AlarmSet {
    /// No alarms yet. Names begin with `NAME-STAGE-`, and what begins so and is tagged as ours belongs to the set.
    pub fn new(name: impl Into<String>, stage: Stage) -> Self {
        Self { name: name.into(), stage, alarms: Vec::new(), actions: Vec::new() }
    }

    /// The alarms, as they are to be.
    pub fn alarms(&self) -> &[Definition] {
        &self.alarms
    }

    /// The names of the alarms, for an [`AlarmGate`](super::AlarmGate).
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.alarms.iter().map(|alarm| alarm.name.clone())
    }

    /// Tells this (an SNS topic, a Lambda function, by ARN) when an alarm of the set fires. At most five.
    #[must_use]
    pub fn action(mut self, arn: impl Into<String>) -> Self {
        self.actions.push(arn.into());
        for alarm in &mut self.alarms {
            alarm.actions.clone_from(&self.actions);
        }
        self
    }

    /// A load balancer (`app/web/50dc…`) with its target groups (`targetgroup/web-blue/73e2…`): failures and latency of each
    /// target group, whether it has a healthy host, and failures that the load balancer sees.
    ///
    /// Of a blue/green pair give both: which one is the candidate's changes with every rollout. With more than one the
    /// group's own name becomes part of the alarms' names.
    #[must_use]
    pub fn load_balancer(mut self, balancer: &str, groups: &[&str]) -> Self {
        let all = |name: &str| Metric::new("AWS/ApplicationELB", name).dimension("LoadBalancer", balancer);
        let Stage { failed_percent, least_requests, latency_seconds, .. } = self.stage;
        for group in groups {
            let short = group.split('/').nth(1).unwrap_or(group);
            let what = |what: &str| if groups.len() > 1 { format!("{short}-{what}") } else { what.to_owned() };
            let of = |name: &str| all(name).dimension("TargetGroup", *group);
            let rate = Watched::Math {
                expression: format!("IF(req >= {least_requests}, 100 * e5 / req, 0)"),
                label: "target 5xx %".into(),
                metrics: vec![sum("e5", of("HTTPCode_Target_5XX_Count")), sum("req", of("RequestCount"))],
            };
            self.add(&what("target-5xx-rate"), rate, Above(failed_percent), QUIET);
            self.add(&what("latency-p99"), one(of("TargetResponseTime"), "p99"), Above(latency_seconds), QUIET);
            self.add(&what("no-healthy-hosts"), one(of("HealthyHostCount"), "Minimum"), Below(1.0), ALWAYS);
        }
        let failed = Watched::Math {
            // RequestCount leaves out requests that found no target.
            expression: format!("IF(req + elb >= {least_requests}, 100 * (elb + tgt) / (req + elb), 0)"),
            label: "failed requests %".into(),
            metrics: vec![
                sum("elb", all("HTTPCode_ELB_5XX_Count")),
                sum("tgt", all("HTTPCode_Target_5XX_Count")),
                sum("req", all("RequestCount")),
            ],
        };
        self.add("request-failures", failed, Above(failed_percent), QUIET);
        self
    }

    /// An ECS service: processor and memory, of the service as a whole.
    #[must_use]
    pub fn service(mut self, cluster: &str, service: &str) -> Self {
        let of = |name: &str| {
            Metric::new("AWS/ECS", name).dimension("ClusterName", cluster).dimension("ServiceName", service)
        };
        let (cpu, memory) = (self.stage.cpu_percent, self.stage.memory_percent);
        self.add("cpu", one(of("CPUUtilization"), "Average"), Above(cpu), ALWAYS);
        self.add("mem", one(of("MemoryUtilization"), "Average"), Above(memory), ALWAYS);
        self
    }

    /// Tasks that an ECS service wants and does not have, which is what failing tasks look like. Takes Container Insights.
    #[must_use]
    pub fn missing_tasks(mut self, cluster: &str, service: &str) -> Self {
        let of = |name: &str| {
            let metric = Metric::new("ECS/ContainerInsights", name);
            metric.dimension("ClusterName", cluster).dimension("ServiceName", service)
        };
        let missing = Watched::Math {
            expression: "want - run".into(),
            label: "missing tasks".into(),
            metrics: vec![
                ("want".into(), of("DesiredTaskCount"), "Maximum".into()),
                ("run".into(), of("RunningTaskCount"), "Minimum".into()),
            ],
        };
        self.add("missing-tasks", missing, AtLeast(1.0), ALWAYS);
        self
    }

    /// A version of a Lambda function behind an alias: failures and duration of that version, failures of the alias, throttles.
    #[must_use]
    pub fn function(mut self, function: &str, alias: &str, version: &str) -> Self {
        let all = |name: &str| {
            let metric = Metric::new("AWS/Lambda", name).dimension("FunctionName", function);
            metric.dimension("Resource", format!("{function}:{alias}"))
        };
        let of = |name: &str| all(name).dimension("ExecutedVersion", version);
        let Stage { failed_percent, least_calls, duration_ms, alias_errors, throttles, .. } = self.stage;
        let rate = Watched::Math {
            expression: format!("IF(inv >= {least_calls}, 100 * err / inv, 0)"),
            label: "errors %".into(),
            metrics: vec![sum("err", of("Errors")), sum("inv", of("Invocations"))],
        };
        self.add(&format!("v{version}-error-rate"), rate, Above(failed_percent), QUIET);
        self.add("alias-errors", one(all("Errors"), "Sum"), Above(alias_errors), QUIET);
        let duration = one(of("Duration"), "p99");
        self.add(&format!("v{version}-duration-p99"), duration, Above(duration_ms), QUIET);
        self.add("throttles", one(all("Throttles"), "Sum"), AtLeast(throttles), QUIET);
        self
    }

    /// An EC2 instance: processor and status checks.
    #[must_use]
    pub fn instance(mut self, instance: &str) -> Self {
        let of = |name: &str| Metric::new("AWS/EC2", name).dimension("InstanceId", instance);
        let cpu = self.stage.cpu_percent;
        self.add(&format!("{instance}-cpu"), one(of("CPUUtilization"), "Average"), Above(cpu), ALWAYS);
        let checks = one(of("StatusCheckFailed"), "Maximum");
        self.add(&format!("{instance}-status-checks"), checks, AtLeast(1.0), ALWAYS);
        self
    }

    /// An Auto Scaling group: processor, status checks, and at least so many instances in service. The count takes the
    /// group's metrics, which are off at first.
    #[must_use]
    pub fn scaling_group(mut self, group: &str, least: u32) -> Self {
        let of = |space: &str, name: &str| Metric::new(space, name).dimension("AutoScalingGroupName", group);
        let cpu = self.stage.cpu_percent;
        self.add("instances-cpu", one(of("AWS/EC2", "CPUUtilization"), "Average"), Above(cpu), ALWAYS);
        let checks = one(of("AWS/EC2", "StatusCheckFailed"), "Maximum");
        self.add("instances-status-checks", checks, AtLeast(1.0), ALWAYS);
        let count = one(of("AWS/AutoScaling", "GroupInServiceInstances"), "Minimum");
        self.add("instances-in-service", count, Below(f64::from(least)), ALWAYS);
        self
    }

    /// Memory and disk by the CloudWatch agent, with the dimensions that its configuration gives them.
    #[must_use]
    pub fn agent(mut self, memory: &[(&str, &str)], disk: &[(&str, &str)]) -> Self {
        let of = |name: &str, dimensions: &[(&str, &str)]| {
            let metric = Metric::new("CWAgent", name);
            dimensions.iter().fold(metric, |metric, (name, value)| metric.dimension(*name, *value))
        };
        let (most, disk_most) = (self.stage.memory_percent, self.stage.disk_percent);
        self.add("memory", one(of("mem_used_percent", memory), "Average"), Above(most), ALWAYS);
        self.add("disk", one(of("disk_used_percent", disk), "Maximum"), Above(disk_most), ALWAYS);
        self
    }

    /// A count of failures of your own, by the minute, or by ten seconds where it is stored with a resolution of one
    /// second: then three of six periods must be bad.
    #[must_use]
    pub fn failures(mut self, what: &str, metric: Metric, every_ten_seconds: bool) -> Self {
        let custom = self.stage.custom;
        self.add(what, one(metric, "Sum"), AtLeast(custom), QUIET);
        if every_ten_seconds && let Some(alarm) = self.alarms.last_mut() {
            (alarm.period, alarm.periods, alarm.to_alarm) = (10, 6, 3);
        }
        self
    }

    fn add(&mut self, what: &str, watched: Watched, limit: Limit, missing: &'static str) {
        let (comparison, threshold) = limit.parts();
        let Stage { name: stage, periods, to_alarm, .. } = &self.stage;
        self.alarms.push(Definition {
            name: format!("{}-{stage}-{what}", self.name),
            watched,
            comparison,
            threshold,
            missing,
            period: 60,
            periods: *periods,
            to_alarm: *to_alarm,
            actions: self.actions.clone(),
        });
    }

    fn prefix(&self) -> String {
        format!("{}-{}-", self.name, self.stage.name)
    }

    fn tag(&self) -> Tag {
        Tag::builder().key(TAG).value(format!("{}-{}", self.name, self.stage.name)).build()
    }

    /// Where a step of this plan is too short for an alarm of the set to fire in it.
    pub fn warnings(&self, plan: &Plan) -> Vec<Note> {
        let mut found = Vec::new();
        for (at, step) in plan.steps().iter().enumerate() {
            let late: Vec<&Definition> = self.alarms.iter().filter(|alarm| alarm.fires_after() > step.bake).collect();
            if let Some(slowest) = late.iter().max_by_key(|alarm| alarm.fires_after()) {
                found.push(Note::new(format!(
                    "step {} bakes for {} s, in which {} of {} alarms cannot fire; {} takes up to {} s",
                    at + 1,
                    step.bake.as_secs(),
                    late.len(),
                    self.alarms.len(),
                    slowest.name,
                    slowest.fires_after().as_secs()
                )));
            }
        }
        found
    }

    /// What would have to be done to have these alarms. Changes nothing.
    ///
    /// # Errors
    /// `Invalid` when the set has two alarms of one name, or more than five actions; else what kept it from looking.
    pub async fn plan(&self, account: &Account) -> Result<Planned> {
        let mut wanted: BTreeMap<&str, &Definition> = BTreeMap::new();
        for alarm in &self.alarms {
            if wanted.insert(&alarm.name, alarm).is_some() {
                return Err(Error::invalid(format!(
                    "two alarms of the set are named {}; name one otherwise",
                    alarm.name
                )));
            }
        }
        if self.actions.len() > 5 {
            let count = self.actions.len();
            return Err(Error::invalid(format!("the set has {count} actions; CloudWatch takes at most 5 an alarm")));
        }
        let client = account.cloudwatch();
        let mut planned = Planned::of(self.clone());
        let mut token = None;
        loop {
            let call = client.describe_alarms().alarm_name_prefix(self.prefix()).max_records(100);
            let said = call.set_next_token(token).send().await;
            let said = said.map_err(|e| sorted(format_args!("reading the alarms {}*", self.prefix()), e))?;
            for there in said.metric_alarms() {
                let name = there.alarm_name().unwrap_or_default();
                let ours = self.is_ours(&client, there).await?;
                match (wanted.remove(name), ours) {
                    (Some(_), false) => planned.others.push(name.to_owned()),
                    (Some(alarm), true) => {
                        let differs = alarm.differs(there);
                        if differs.is_empty() {
                            planned.keep.push(name.to_owned());
                        } else {
                            planned.update.push((alarm.clone(), differs));
                        }
                    }
                    (None, true) => planned.remove.push(name.to_owned()),
                    // Somebody else's, and none of our business.
                    (None, false) => {}
                }
            }
            token = said.next_token().filter(|token| !token.is_empty()).map(String::from);
            if token.is_none() {
                break;
            }
        }
        planned.create = wanted.into_values().cloned().collect();
        Ok(planned)
    }

    async fn is_ours(&self, client: &Client, alarm: &MetricAlarm) -> Result<bool> {
        let name = alarm.alarm_name().unwrap_or_default();
        let call = client.list_tags_for_resource().resource_arn(alarm.alarm_arn().unwrap_or_default());
        let said = call.send().await.map_err(|e| sorted(format_args!("reading the tags of the alarm {name}"), e))?;
        let tag = self.tag();
        Ok(said.tags().iter().any(|found| found.key() == tag.key() && found.value() == tag.value()))
    }

    /// A dashboard of the set, as PutDashboard takes its body: a graph an alarm, with the threshold drawn in.
    pub fn dashboard(&self, region: &str) -> Value {
        let widgets = self.alarms.iter().enumerate().map(|(at, alarm)| {
            let row = |metric: &Metric, more: Value| {
                let mut row = vec![json!(metric.namespace()), json!(metric.name())];
                row.extend(metric.dimensions().iter().flat_map(|(name, value)| [json!(name), json!(value)]));
                row.push(more);
                json!(row)
            };
            let metrics = match &alarm.watched {
                Watched::One { metric, statistic } => vec![row(metric, json!({ "stat": statistic }))],
                Watched::Math { expression, label, metrics } => {
                    let mut rows = vec![json!([{ "expression": expression, "label": label, "id": "rate" }])];
                    rows.extend(metrics.iter().map(|(id, metric, statistic)| {
                        row(metric, json!({ "id": id, "stat": statistic, "visible": false }))
                    }));
                    rows
                }
            };
            json!({
                "type": "metric", "x": (at % 2) * 12, "y": (at / 2) * 6, "width": 12, "height": 6,
                "properties": {
                    "title": alarm.name, "region": region, "view": "timeSeries", "period": alarm.period,
                    "metrics": metrics,
                    "annotations": { "horizontal": [{ "label": "alarm", "value": alarm.threshold }] },
                },
            })
        });
        json!({ "widgets": widgets.collect::<Vec<_>>() })
    }
}

/// What a set would do; `Display` is for people. Nothing is done before [`apply`](Self::apply) or
/// [`clean`](Self::clean).
#[derive(Clone, Debug)]
pub struct Planned {
    set: AlarmSet,
    /// Alarms that are not there.
    pub create: Vec<Definition>,
    /// Alarms of ours that differ, and in what.
    pub update: Vec<(Definition, Vec<String>)>,
    /// Alarms of ours that are as they should be.
    pub keep: Vec<String>,
    /// Alarms of ours that the set has no more, as those of old versions.
    pub remove: Vec<String>,
    /// Alarms with a name of the set that are not tagged as ours. They are never touched.
    pub others: Vec<String>,
}

impl Planned {
    const fn of(set: AlarmSet) -> Self {
        Self { set, create: Vec::new(), update: Vec::new(), keep: Vec::new(), remove: Vec::new(), others: Vec::new() }
    }

    /// Creates and updates. May be repeated; what was done before an error stays done.
    ///
    /// # Errors
    /// `Conflict`, before anything is done, when an alarm of somebody else has a name of the set; else what CloudWatch
    /// refuses.
    pub async fn apply(&self, account: &Account) -> Result<()> {
        if let Some(name) = self.others.first() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the alarm {name} is there and not tagged as ours; rename it or the set, or tag it {TAG}"),
            ));
        }
        let client = account.cloudwatch();
        let updates = self.update.iter().map(|(alarm, _)| alarm);
        let creates = self.create.iter().map(|alarm| (alarm, Some(self.set.tag())));
        // An update takes no tags, and the alarm has its own already.
        for (alarm, tag) in creates.chain(updates.map(|alarm| (alarm, None))) {
            alarm.put(&client, tag).await?;
            // Three a second are granted (AWS's user guide, "CloudWatch service quotas").
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        Ok(())
    }

    /// Removes what the set has no more. Do it when no rollout watches those alarms any longer.
    ///
    /// # Errors
    /// What CloudWatch refuses.
    pub async fn clean(&self, account: &Account) -> Result<()> {
        let client = account.cloudwatch();
        for names in self.remove.chunks(100) {
            let call = client.delete_alarms().set_alarm_names(Some(names.to_vec()));
            call.send().await.map_err(|e| sorted(format_args!("deleting {} alarms", names.len()), e))?;
        }
        Ok(())
    }

    /// Whether nothing would be done.
    pub const fn is_nothing(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.remove.is_empty() && self.others.is_empty()
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for alarm in &self.create {
            writeln!(f, "create {}", alarm.name)?;
        }
        for (alarm, differs) in &self.update {
            writeln!(f, "update {}: {}", alarm.name, differs.join(", "))?;
        }
        for name in &self.remove {
            writeln!(f, "remove {name}")?;
        }
        for name in &self.others {
            writeln!(f, "leave {name}: it is not tagged as ours")?;
        }
        write!(f, "keep {}", self.keep.len())
    }
}

#[derive(Clone, Copy)]
enum Limit {
    Above(f64),
    AtLeast(f64),
    Below(f64),
}
use Limit::{Above, AtLeast, Below};

impl Limit {
    const fn parts(self) -> (ComparisonOperator, f64) {
        match self {
            Above(limit) => (ComparisonOperator::GreaterThanThreshold, limit),
            AtLeast(limit) => (ComparisonOperator::GreaterThanOrEqualToThreshold, limit),
            Below(limit) => (ComparisonOperator::LessThanThreshold, limit),
        }
    }
}

fn one(metric: Metric, statistic: &str) -> Watched {
    Watched::One { metric, statistic: statistic.into() }
}

fn sum(id: &str, metric: Metric) -> (String, Metric, String) {
    (id.into(), metric, "Sum".into())
}

fn is_percentile(statistic: &str) -> bool {
    statistic.starts_with('p')
}

fn dimensions(metric: &Metric) -> Vec<Dimension> {
    let each = metric.dimensions().iter();
    each.map(|(name, value)| Dimension::builder().name(name).value(value).build()).collect()
}

fn dimensions_json(metric: &Metric) -> Value {
    let each = metric.dimensions().iter().map(|(name, value)| json!({ "Name": name, "Value": value }));
    Value::Array(each.collect())
}

/// An alarm that is there, in the words of [`Definition::to_json`].
fn found_json(alarm: &MetricAlarm) -> Value {
    let dimension = |one: &Dimension| json!({ "Name": one.name(), "Value": one.value() });
    let mut all = json!({
        "AlarmName": alarm.alarm_name(),
        "ActionsEnabled": alarm.actions_enabled(),
        "EvaluationPeriods": alarm.evaluation_periods(),
        "DatapointsToAlarm": alarm.datapoints_to_alarm().or_else(|| alarm.evaluation_periods()),
        "ComparisonOperator": alarm.comparison_operator().map(ComparisonOperator::as_str),
        "Threshold": alarm.threshold(),
        "TreatMissingData": alarm.treat_missing_data().unwrap_or("missing"),
        "Namespace": alarm.namespace(),
        "MetricName": alarm.metric_name(),
        "Period": alarm.period(),
        "Statistic": alarm.statistic().map(Statistic::as_str),
        "ExtendedStatistic": alarm.extended_statistic(),
        "EvaluateLowSampleCountPercentile": alarm.evaluate_low_sample_count_percentile(),
    });
    if alarm.metric_name().is_some() {
        all["Dimensions"] = alarm.dimensions().iter().map(dimension).collect();
    }
    if !alarm.alarm_actions().is_empty() {
        all["AlarmActions"] = json!(alarm.alarm_actions());
    }
    if !alarm.metrics().is_empty() {
        let query = |query: &MetricDataQuery| {
            let mut said = json!({ "Id": query.id(), "ReturnData": query.return_data().unwrap_or(true) });
            for (name, value) in [("Expression", query.expression()), ("Label", query.label())] {
                if let Some(value) = value {
                    said[name] = json!(value);
                }
            }
            if let Some(stat) = query.metric_stat() {
                let metric = stat.metric();
                let each = metric.map(Sdk::dimensions).unwrap_or_default().iter().map(dimension);
                said["MetricStat"] = json!({
                    "Metric": {
                        "Namespace": metric.and_then(Sdk::namespace), "MetricName": metric.and_then(Sdk::metric_name),
                        "Dimensions": each.collect::<Vec<_>>(),
                    },
                    "Period": stat.period(), "Stat": stat.stat(),
                });
            }
            said
        };
        all["Metrics"] = alarm.metrics().iter().map(query).collect();
    }
    all
}

/// Whether two values say the same, 5 and 5.0 included.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => (one - other).abs() < 1e-9,
        _ => one == other,
    }
}

/// No data while nothing is called is no trouble.
const QUIET: &str = "notBreaching";
/// What runs measures; without data it does not run.
const ALWAYS: &str = "breaching";
