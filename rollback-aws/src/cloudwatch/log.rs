//! What a service said last, as an explanation.

use std::{collections::VecDeque, time::Duration};

use aws_sdk_cloudwatchlogs::{Client, types::FilteredLogEvent};
use jiff::Timestamp;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    clock::{Clock as _, SystemClock},
    model::Note,
};
use tokio::time;

use super::{FILTER_LOG_EVENTS, Names};
use crate::{account::Account, error::sorted};

/// The last lines of a log group, for the evidence of an [`AlarmGate`](super::AlarmGate) that is unhealthy.
///
/// **Logs may hold what is private**, and evidence goes into records, reports and messages: choose a filter that says no
/// more than you want said.
///
/// They explain and decide nothing: the verdict waits a second for them, and goes without them then. What is read are the
/// two minutes before the look, within the step.
#[derive(Clone, Debug)]
pub struct LogLines {
    logs: Client,
    group: String,
    filter: Option<String>,
    streams: Option<String>,
    most: usize,
}

impl LogLines {
    /// The last five lines of this log group, by its name, as in `/aws/lambda/checkout`.
    ///
    /// # Errors
    /// `Invalid` when the name is empty or longer than CloudWatch Logs allows (512 characters).
    pub fn of(account: &Account, group: impl Into<String>) -> Result<Self> {
        let group = group.into();
        if group.is_empty() || group.chars().count() > 512 {
            let long = group.chars().count();
            return Err(Error::invalid(format!("a log group's name has {long} characters; 1 to 512 are accepted")));
        }
        Ok(Self { logs: account.logs(), group, filter: None, streams: None, most: 5 })
    }

    /// Only lines that this [filter pattern] picks, as in `?ERROR ?panicked`.
    ///
    /// [filter pattern]: https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
    #[must_use]
    pub fn filter(mut self, pattern: impl Into<String>) -> Self {
        self.filter = Some(pattern.into());
        self
    }

    /// Only of log streams whose names begin so, with [placeholders](super#placeholders): the candidate's, where its streams
    /// can be told by their names, as in `checkout/{{candidate}}/`.
    #[must_use]
    pub fn streams(mut self, prefix: impl Into<String>) -> Self {
        self.streams = Some(prefix.into());
        self
    }

    /// At most so many lines, 1 to 20.
    #[must_use]
    pub fn most(mut self, lines: usize) -> Self {
        self.most = lines.clamp(1, 20);
        self
    }

    /// The last of them until now; nothing when they do not come in time.
    pub(super) async fn read(&self, names: Names<'_>, since: Timestamp, now: Timestamp) -> Option<String> {
        let from = now.checked_sub(BACK).unwrap_or(now).max(since);
        let mut last = VecDeque::new();
        // What has come when the time is over is told: the oldest lines come first.
        if let Ok(Err(e)) = time::timeout(PATIENCE, self.pages(names, from, now, &mut last)).await {
            last.push_back(format!("({})", e.chain()));
        }
        let lines: Vec<String> = last.into();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    async fn pages(&self, names: Names<'_>, from: Timestamp, to: Timestamp, last: &mut VecDeque<String>) -> Result<()> {
        let mut token = None;
        loop {
            let (events, next) = self.page(names, from, to, token).await?;
            for event in events {
                if last.len() == self.most {
                    last.pop_front();
                }
                last.push_back(line(&event));
            }
            token = next;
            if token.is_none() {
                return Ok(());
            }
        }
    }

    async fn page(
        &self,
        names: Names<'_>,
        from: Timestamp,
        to: Timestamp,
        token: Option<String>,
    ) -> Result<(Vec<FilteredLogEvent>, Option<String>)> {
        let call = self.logs.filter_log_events().log_group_name(&self.group).set_next_token(token);
        let call = call.start_time(from.as_millisecond()).end_time(to.as_millisecond());
        let call = call.set_filter_pattern(self.filter.clone());
        let call = call.set_log_stream_name_prefix(self.streams.as_ref().map(|prefix| names.render(prefix)));
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading the log group {}", self.group), e))?;
        Ok((answer.events.unwrap_or_default(), answer.next_token))
    }

    /// That it is there and may be read.
    pub(super) async fn prove(&self, names: Names<'_>, ready: &mut Readiness) -> Result<()> {
        let now = SystemClock.now();
        let ago = now.checked_sub(BACK).unwrap_or(now);
        match FILTER_LOG_EVENTS.prove(ready, self.page(names, ago, now, None).await) {
            // Its name, or the filter.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                ready.refused.push(Note::new(e.chain()));
                Ok(())
            }
            answer => answer.map(drop),
        }
    }
}

/// One line, however many the event has.
fn line(event: &FilteredLogEvent) -> String {
    let text = event.message().unwrap_or_default().trim_end();
    let mut line: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// How far back lines are worth reading.
const BACK: Duration = Duration::from_secs(120);

/// How long a verdict waits for its explanation.
const PATIENCE: Duration = Duration::from_secs(1);

/// The most characters of a line that are told.
const LONGEST: usize = 300;
