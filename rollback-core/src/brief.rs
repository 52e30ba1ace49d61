//! What a person wants to know of a rollout first, in plain sentences: messages and reports say the same.

use jiff::{SignedDuration, Timestamp};

use crate::{
    model::GateName,
    rollout::{Kind, Rollout},
    state::{Abandonment, Cause, Hold, Interrupted, Refusal, State},
};

/// What is to be said of this rollout, as it is now. Plain text: whoever shows it escapes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brief<'a>(pub(crate) &'a Rollout);

impl<'a> Brief<'a> {
    /// A line for a title or a subject: `checkout: v2 was rolled back`.
    pub(crate) fn title(self) -> String {
        let (target, candidate) = (&self.0.change.target, &self.0.change.candidate.id);
        let what = match &self.0.state {
            State::Preflight => "is about to be tried",
            State::Shifting { .. } | State::Baking { .. } => "is being tried",
            State::Promoting => "is being promoted",
            State::RollingBack { .. } => "is being rolled back",
            State::Holding { .. } => "waits for a person",
            State::Stuck { .. } => "is stuck: a person is needed",
            State::Promoted => "was promoted",
            State::RolledBack { .. } => "was rolled back",
            State::Refused { why: Refusal::AlreadyServes } => "serves already",
            State::Refused { .. } => "was refused, nothing was changed",
            State::Abandoned { .. } => "was abandoned, hands off",
        };
        let what = match &self.0.state {
            State::Holding { why: Hold::NoData { .. }, .. } => "waits for data",
            _ => what,
        };
        format!("{target}: {candidate} {what}")
    }

    /// What happened, in one sentence.
    pub(crate) fn happened(self) -> String {
        let change = &self.0.change;
        let (target, baseline, candidate) = (&change.target, &change.baseline.id, &change.candidate.id);
        let author = &self.0.author;
        match &self.0.state {
            State::Promoted => {
                format!("{target} went from {baseline} to {candidate}, as {author} asked{}.", self.took())
            }
            State::RolledBack { .. } => {
                let felt = match (self.0.times.breach, self.0.times.restored) {
                    (Some(breach), Some(restored)) => {
                        format!("; from the breach to traffic restored it took {}", between(breach, restored))
                    }
                    _ => String::new(),
                };
                format!("{target} was taken from {candidate} back to {baseline}, because {}{felt}.", self.because())
            }
            State::Refused { why: Refusal::AlreadyServes } => {
                format!("{target} was left alone: {candidate} serves already, alone.")
            }
            State::Refused { .. } => {
                format!("{target} was to go from {baseline} to {candidate}, and that was refused: {}.", self.because())
            }
            State::Abandoned { .. } => {
                format!("The rollout of {candidate} to {target} took its hands off, because it was {}.", self.because())
            }
            State::Stuck { .. } => {
                format!("The rollout of {candidate} to {target} cannot go on by itself: {}.", self.because())
            }
            State::Holding { .. } => format!("The rollout of {candidate} to {target} is held: {}.", self.because()),
            state => {
                let state = state.describe(&self.0.plan);
                format!("The rollout of {candidate} to {target}, from {baseline}, is under way: {state}.")
            }
        }
    }

    /// What serves users now, as far as anybody saw.
    pub(crate) fn serves(self) -> String {
        let change = &self.0.change;
        let (baseline, candidate) = (&change.baseline.id, &change.candidate.id);
        match &self.0.state {
            State::Promoted => format!("{candidate} alone, as the last look saw."),
            State::Refused { why: Refusal::AlreadyServes } => format!("{candidate} alone; nothing was changed."),
            State::RolledBack { .. } => format!("{baseline} alone, as a look has shown."),
            State::Refused { .. } => format!("{baseline}, as before: nothing was changed."),
            State::Abandoned { why: Abandonment::Drifted { why } } => {
                format!("What somebody else put there: {why}.")
            }
            _ => self.seen(),
        }
    }

    /// Why it came to this: the cause, the refusal, what it waits for. Nothing while it simply goes on.
    pub(crate) fn why(self) -> Option<String> {
        match &self.0.state {
            State::RollingBack { cause } | State::RolledBack { cause } => Some(cause.to_string()),
            State::Holding { why, .. } => Some(why.to_string()),
            State::Stuck { why, .. } => Some(why.to_string()),
            State::Refused { why } => Some(why.to_string()),
            State::Abandoned { why: Abandonment::Drifted { why } } => {
                Some(format!("overtaken by somebody else's change of the target: {why}"))
            }
            State::Abandoned { why } => Some(why.to_string()),
            _ => None,
        }
    }

    /// The gate that decided it, where one did.
    #[cfg_attr(not(feature = "report"), expect(dead_code, reason = "only reports show its evidence"))]
    pub(crate) const fn decider(self) -> Option<&'a GateName> {
        match &self.0.state {
            State::RollingBack { cause } | State::RolledBack { cause } => match cause {
                Cause::Unhealthy { gate, .. } | Cause::NoData { gate, .. } => Some(gate),
                _ => None,
            },
            State::Holding { why: Hold::Unhealthy { gate, .. } | Hold::NoData { gate, .. }, .. } => Some(gate),
            _ => None,
        }
    }

    /// What a person is to do next.
    pub(crate) fn to_do(self) -> String {
        let rollout = self.0;
        let (id, target) = (rollout.id(), &rollout.change.target);
        let (baseline, candidate) = (&rollout.change.baseline.id, &rollout.change.candidate.id);
        match &rollout.state {
            State::Promoted if rollout.not_restored.is_empty() => {
                format!("Nothing. Should {candidate} turn out bad after all, roll {target} back: {baseline} is known.")
            }
            State::Promoted => "Clear away what is left over.".into(),
            State::RolledBack { cause } => match cause {
                Cause::Unhealthy { .. } | Cause::Failed { .. } => format!(
                    "Find out what is wrong with {candidate}, and release a build that mends it. {candidate} itself is \
                     quarantined: it is tried again only if somebody says so."
                ),
                Cause::NoData { gate, .. } => format!(
                    "See to it that gate {gate} has data, then start again: nothing was found against {candidate}."
                ),
                Cause::Deadline { .. } => {
                    format!("Find out what took so long, then start again: nothing was found against {candidate}.")
                }
                Cause::Aborted { .. } => format!("Nothing: it is as was asked. {candidate} may be tried again."),
                Cause::Drifted { .. } => {
                    format!("Find out who else changes {target}, and keep them from it; then start again.")
                }
            },
            State::Refused { why } => match why {
                Refusal::AlreadyServes | Refusal::Aborted { .. } => "Nothing.".into(),
                Refusal::Quarantined { .. } => format!(
                    "Release a build that mends what was found, or start again and say why {candidate} is to be tried \
                     despite it."
                ),
                Refusal::NotReady { .. } => "Put right what is said here, then start again.".into(),
                Refusal::Deadline => "See what kept the proof from ending in time, then start again.".into(),
            },
            State::Abandoned { .. } => {
                format!("Look at {target}: nobody guards it. Then start a rollout from what serves there.")
            }
            State::Stuck { from, .. } if from.goes_forward() && rollout.terms().way_back => format!(
                "Look at {target}, then decide: abort rollout {id} to bring {baseline} back, resume it to go on, or give it \
                 up. Nothing moves until then."
            ),
            State::Stuck { .. } => {
                format!("Look at {target}, then decide: resume rollout {id}, or give it up. Nothing moves until then.")
            }
            State::Holding { from, why, until } => {
                let what = match why {
                    Hold::Paused { .. } => "Resume",
                    Hold::Approval => "Approve",
                    Hold::Unhealthy { .. } => "Look at what the gate found, then resume",
                    Hold::NoData { .. } => "Bring the data back, and it goes on by itself; or skip the gate, or resume",
                };
                let then = match (from, rollout.kind) {
                    (Interrupted::Preflight, _) => "it is refused".into(),
                    (_, Kind::Return) => "it is stuck".into(),
                    _ => format!("{baseline} is brought back"),
                };
                format!("{what} rollout {id}, or abort it. After {} {then}.", moment(*until))
            }
            _ => "Nothing: it goes on by itself.".into(),
        }
    }

    fn because(self) -> String {
        self.why().map_or_else(|| "it was so decided".into(), |why| why.trim_end_matches('.').to_owned())
    }

    fn took(self) -> String {
        self.0.log.last().map_or_else(String::new, |last| format!(", in {}", between(self.0.created, last.at)))
    }

    fn seen(self) -> String {
        let (baseline, candidate) = (&self.0.change.baseline.id, &self.0.change.candidate.id);
        match self.0.weight {
            Some(weight) => {
                format!("When last seen {candidate} had {weight} of the traffic, and {baseline} the rest.")
            }
            None => format!("Nobody saw. Before the rollout it was {baseline}."),
        }
    }
}

/// An instant as a person reads it: `2026-01-01 00:00:05 UTC`.
pub(crate) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The time between: `3m 20s`, and below ten seconds with its milliseconds. Never negative.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> String {
    let time = to.duration_since(from).max(SignedDuration::ZERO);
    let fine = time.as_secs() < 10;
    let unit = if fine {
        SignedDuration::from_millis(time.as_millis() as i64)
    } else {
        SignedDuration::from_secs(time.as_secs())
    };
    if unit.is_zero() { "0s".into() } else { format!("{unit:#}") }
}

/// Text from outside with everything in it to be seen: what a reader cannot see, or what turns the direction of the text
/// around it, is written out as `⟨U+202E⟩`; ends of lines and tabs are blanks.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => shown.push(' '),
            c if is_unseen(c) => shown.push_str(&format!("⟨U+{:04X}⟩", u32::from(c))),
            c => shown.push(c),
        }
    }
    shown
}

/// Control characters, what formats text without being seen, and what is no character.
const fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}'
            | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{fffe}' | '\u{ffff}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    ) || (c as u32 & 0xfffe) == 0xfffe
}

/// The text, cut to so many characters; what is cut shows as `…`.
#[cfg(any(feature = "courier", feature = "report"))]
pub(crate) fn clipped(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
