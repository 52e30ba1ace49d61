//! What the gate that compares would have said of a rollout that is over: see `--help`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use async_trait::async_trait;
use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use rollback_core::{
    Error, ErrorKind, Result,
    gate::{
        Budget, Compare, Evidence, HealthGate, Standing, Window,
        sequential::Tolerance,
        source::{Count, MetricSource, Pair, Query, Reading, Samples, rise},
    },
    model::{RevisionId, Weight},
};
use serde::Deserialize;

/// Judges recorded samples of a candidate and its baseline as the gate would have, and says when it would have tripped.
///
/// csv: a line with the names of the columns, then one line an interval and label:
/// time,candidate_requests,candidate_failures,baseline_requests,baseline_failures and where wanted label. The time is the interval's end,
/// in seconds since 1970 or as in 2026-01-31T12:00:00Z; the counts are those of the interval, or with --cumulative counters
/// as they stood.
///
/// json: an array of objects with these names.
///
/// prometheus: the answer of /api/v1/query_range to a query of bare counters, such as
/// sum by (version, code) (http_requests_total), with --revision-label version --candidate v2 --baseline v1 --failed code=5.
#[derive(Parser)]
#[command(name = "judge-backtest", verbatim_doc_comment)]
#[command(
    after_help = "Exit status: 0 it would have gone on to its end, 1 rolled back, 2 bad input, 4 it would have waited \
    for a person at the end, 70 internal error."
)]
struct Args {
    /// The samples.
    file: PathBuf,
    /// How they are written [default: by the file's name, csv or json; json that a Prometheus wrote is found out].
    #[arg(long)]
    format: Option<Format>,
    /// The counts are counters as they stood, of processes that may have restarted.
    #[arg(long)]
    cumulative: bool,
    /// The part of healthy rollouts that may be rolled back by mistake.
    #[arg(long, default_value_t = 0.01)]
    alpha: f64,
    /// How many times the baseline's odds of failing are borne.
    #[arg(long, default_value_t = 1.5)]
    odds: f64,
    /// The fewest requests of either revision.
    #[arg(long, default_value_t = 20)]
    floor: u64,
    /// prometheus: the label that tells the revisions apart.
    #[arg(long, value_name = "LABEL", default_value = "version")]
    revision_label: String,
    /// prometheus: its value of the revision to judge.
    #[arg(long, value_name = "VALUE", default_value = "candidate")]
    candidate: String,
    /// prometheus: its value of the revision to keep.
    #[arg(long, value_name = "VALUE", default_value = "baseline")]
    baseline: String,
    /// prometheus: the label that tells failures, and how its value begins then.
    #[arg(long, value_name = "LABEL=START", default_value = "code=5")]
    failed: String,
    /// prometheus: judge each value of this label by itself.
    #[arg(long, value_name = "LABEL")]
    by: Option<String>,
    /// Print the whole evidence of the last verdict as JSON, too.
    #[arg(long)]
    evidence: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Csv,
    Json,
    Prometheus,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(status) => status.into(),
        Err(e) => {
            eprintln!("judge-backtest: {}", e.chain());
            let status = if matches!(e.kind(), ErrorKind::Invalid | ErrorKind::NotFound) { 2 } else { 70 };
            status.into()
        }
    }
}

async fn run(args: &Args) -> Result<u8> {
    let samples = read(args)?;
    let (Some((begin, _)), Some((end, _))) = (samples.first_key_value(), samples.last_key_value()) else {
        return Err(Error::invalid(format!("{} has no samples", args.file.display())));
    };
    let (begin, end, looks) = (*begin, *end, samples.len());
    let ends: Vec<Timestamp> = samples.keys().copied().collect();
    let tolerance = Tolerance::new(args.odds, args.odds * 4.0 / 3.0)?;
    let recorded = Recorded { samples, cumulative: args.cumulative, last: Mutex::default() };
    let share = Budget::new(args.alpha)?.whole();
    let gate = Compare::failures("backtest", recorded, share)?.tolerate(tolerance).floor(args.floor);

    let mut out = io::stdout();
    let mut last: Option<Evidence> = None;
    let mut before = None;
    for now in ends {
        let window = window(begin, now, last)?;
        let verdict = gate.judge(&window).await?;
        let (standing, evidence) = (verdict.standing(), verdict.evidence());
        if before != Some(standing) {
            tell(&mut out, format_args!("{now}  {standing}: {}", evidence.summary))?;
        }
        before = Some(standing);
        let trips = standing == Standing::Unhealthy;
        if trips {
            let after = now.duration_since(begin).as_secs();
            tell(&mut out, format_args!("would have been rolled back {after} s after the first sample"))?;
        }
        last = Some(evidence.clone());
        if trips {
            break;
        }
    }
    let evidence = last.expect("there is a first sample");
    if before != Some(Standing::Unhealthy) {
        let seconds = end.duration_since(begin).as_secs();
        tell(&mut out, format_args!("would not have been rolled back in {looks} samples over {seconds} s"))?;
        tell(&mut out, format_args!("at the end: {}", evidence.summary))?;
        if let Some(trips) = evidence.facts.get("would_trip").and_then(|trips| trips.as_str()) {
            tell(&mut out, format_args!("what would have tripped it then: {trips}"))?;
        }
    }
    if args.evidence {
        let facts = serde_json::to_string_pretty(&evidence.facts);
        tell(&mut out, format_args!("{}", facts.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?))?;
    }
    Ok(match before {
        Some(Standing::Unhealthy) => 1,
        Some(Standing::Healthy) => 0,
        Some(Standing::Inconclusive) | None => 4,
    })
}

fn tell(out: &mut impl Write, line: std::fmt::Arguments<'_>) -> Result<()> {
    writeln!(out, "{line}").map_err(|e| Error::new(ErrorKind::Internal, "writing to standard output").because(e))
}

fn window(since: Timestamp, now: Timestamp, last: Option<Evidence>) -> Result<Window> {
    Ok(Window {
        rollout: "backtest".parse()?,
        target: "backtest".parse()?,
        baseline: RevisionId::try_from("baseline")?,
        candidate: RevisionId::try_from("candidate")?,
        created: since,
        step: 0,
        // Both serve: where the candidate had all traffic, there is nothing to compare.
        weight: Weight::try_from(50)?,
        // Just before the first sample, so that it counts.
        since: since.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap_or(since),
        now,
        last,
    })
}

/// By the interval's end, by label.
type Recording = BTreeMap<Timestamp, BTreeMap<String, Pair<Count>>>;

/// The samples, played back.
#[derive(Debug)]
struct Recorded {
    samples: Recording,
    cumulative: bool,
    /// A label that is missing from a line stands where it stood.
    last: Mutex<BTreeMap<String, Pair<Count>>>,
}

#[async_trait]
impl MetricSource for Recorded {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let counts = self.samples.get(&query.now).cloned().unwrap_or_default();
        if !self.cumulative {
            return Ok(Reading::since(query.now, Samples::Counts(counts)));
        }
        let mut last = self.last.lock().expect("nothing panics with it");
        last.extend(counts);
        Ok(Reading::totals(query.now, Samples::Counts(last.clone())))
    }
}

fn read(args: &Args) -> Result<Recording> {
    let name = args.file.display();
    let text = fs::read_to_string(&args.file).map_err(|e| Error::invalid(format!("reading {name}")).because(e))?;
    let format = args.format.unwrap_or_else(|| guess(&args.file, &text));
    let read = match format {
        Format::Csv => csv(&text).and_then(gather),
        Format::Json => serde_json::from_str(&text).map_err(|e| Error::invalid(e.to_string())).and_then(gather),
        Format::Prometheus => prometheus(args, &text),
    };
    read.map_err(|e| e.during(format_args!("reading {name}")))
}

fn guess(file: &Path, text: &str) -> Format {
    match file.extension().and_then(|end| end.to_str()) {
        Some("json") if text.trim_start().starts_with('{') => Format::Prometheus,
        Some("json") => Format::Json,
        _ => Format::Csv,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    time: Time,
    candidate_requests: u64,
    candidate_failures: u64,
    baseline_requests: u64,
    baseline_failures: u64,
    #[serde(default)]
    label: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

impl Time {
    fn at(&self) -> Result<Timestamp> {
        match self {
            Self::Seconds(seconds) => at(*seconds),
            Self::Text(text) => match text.parse::<f64>() {
                Ok(seconds) => at(seconds),
                Err(_) => text.parse().map_err(|e: jiff::Error| {
                    Error::invalid(format!("the time {text:?} is neither seconds nor as in 2026-01-31T12:00:00Z"))
                        .because(e)
                }),
            },
        }
    }
}

fn at(seconds: f64) -> Result<Timestamp> {
    Timestamp::from_millisecond((seconds * 1000.0).round() as i64)
        .map_err(|e| Error::invalid(format!("the time {seconds} is out of range")).because(e))
}

fn gather(rows: Vec<Row>) -> Result<Recording> {
    let mut recording = Recording::new();
    for row in rows {
        let pair = Pair {
            candidate: Count::new(row.candidate_requests, row.candidate_failures),
            baseline: Count::new(row.baseline_requests, row.baseline_failures),
        };
        let time = row.time.at()?;
        if recording.entry(time).or_default().insert(row.label.clone(), pair).is_some() {
            return Err(Error::invalid(format!("there are two samples of label {:?} at {time}", row.label)));
        }
    }
    Ok(recording)
}

fn csv(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, head) = lines.next().ok_or_else(|| Error::invalid("the file is empty"))?;
    let names: Vec<&str> = head.split(',').map(str::trim).collect();
    let column = |name: &str| {
        names.iter().position(|found| *found == name).ok_or_else(|| {
            Error::invalid(format!(
                "the first line has no column {name}; it needs {}, and may have label",
                COLUMNS.join(",")
            ))
        })
    };
    let columns: Vec<usize> = COLUMNS.iter().map(|name| column(name)).collect::<Result<_>>()?;
    let label = names.iter().position(|name| *name == "label");
    lines
        .map(|(at, line)| {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let cell = |column: usize| {
                cells.get(column).copied().ok_or_else(|| Error::invalid(format!("line {} has too few columns", at + 1)))
            };
            let number = |column: usize| {
                let text = cell(columns[column])?;
                text.parse().map_err(|_| {
                    Error::invalid(format!("line {}: {} is {text:?}; a count is accepted", at + 1, COLUMNS[column]))
                })
            };
            Ok(Row {
                time: Time::Text(cell(columns[0])?.into()),
                candidate_requests: number(1)?,
                candidate_failures: number(2)?,
                baseline_requests: number(3)?,
                baseline_failures: number(4)?,
                label: label.map_or(Ok(""), cell)?.into(),
            })
        })
        .collect()
}

const COLUMNS: [&str; 5] =
    ["time", "candidate_requests", "candidate_failures", "baseline_requests", "baseline_failures"];

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

fn prometheus(args: &Args, text: &str) -> Result<Recording> {
    let answer: Answer = serde_json::from_str(text).map_err(|e| Error::invalid(e.to_string()))?;
    if answer.status != "success" {
        return Err(Error::invalid(format!("the answer is of status {:?}: {}", answer.status, answer.error)));
    }
    let data = answer.data.filter(|data| data.result_type == "matrix");
    let data =
        data.ok_or_else(|| Error::invalid("the answer is no matrix; that of /api/v1/query_range is accepted"))?;
    let (failed, start) = args.failed.split_once('=').ok_or_else(|| {
        Error::invalid(format!(
            "--failed is {:?}; a label and how its value begins is accepted, as in code=5",
            args.failed
        ))
    })?;
    let mut recording = Recording::new();
    for series in &data.result {
        let of = |label: &str| series.metric.get(label).map(String::as_str);
        let is_candidate = match of(&args.revision_label) {
            Some(revision) if revision == args.candidate => true,
            Some(revision) if revision == args.baseline => false,
            _ => continue,
        };
        let has_failed = of(failed).is_some_and(|value| value.starts_with(start));
        let label = args.by.as_deref().and_then(of).unwrap_or_default();
        for pair in series.values.windows(2) {
            let number = |text: &str| text.parse().unwrap_or(f64::NAN);
            // A sample that is no number says nothing of the interval before it, nor of the one after.
            let Some(rose) = rise([number(&pair[0].1), number(&pair[1].1)]) else { continue };
            let counts = recording.entry(at(pair[1].0)?).or_default().entry(label.into()).or_default();
            let arm = if is_candidate { &mut counts.candidate } else { &mut counts.baseline };
            arm.requests += rose;
            arm.failures += if has_failed { rose } else { 0 };
        }
    }
    if recording.is_empty() {
        return Err(Error::invalid(format!(
            "no series has the label {} with the value {} or {}, and two samples",
            args.revision_label, args.candidate, args.baseline
        )));
    }
    Ok(recording)
}
