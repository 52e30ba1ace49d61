//! What several processes did, in one file that each of them appends to.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    path::Path,
    process,
    sync::Arc,
};

use jiff::Timestamp;
use rollback_core::{
    clock::{Clock as _, SystemClock},
    model::{Goal, Nonce, Serial, Version},
    rollout::{Rollout, What},
    state::State,
};
use serde::{Deserialize, Serialize};

/// The end of the trace that a process writes to. Each line is one write to a file in append mode, so lines of several
/// processes never mix, and a killed process leaves its lines behind.
#[derive(Clone, Debug)]
pub(crate) struct Trace(Arc<File>);

/// One line: who did what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) pid: u32,
    pub(crate) at: Timestamp,
    pub(crate) what: Did,
}

/// Something that a process did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Did {
    /// It is set up: it waits for the word to start, or stands by.
    Ready,
    /// It looked which rollouts are open.
    Listed,
    /// Its target saw this; told when it is not what it saw last.
    Looked { goal: Goal, progress: String, version: Version },
    /// A shift was entered.
    Asked { nonce: Nonce, goal: Goal, version: Version },
    /// It landed. Told while nobody else can shift; a process may be killed before it can tell.
    Landed { nonce: Nonce },
    /// It was turned away.
    Refused { nonce: Nonce },
    /// It is about to save this.
    Saving(Saved),
    /// It heard that this is saved. A process may be killed before it hears.
    Saved(Saved),
    /// It did not hear that it is saved.
    NotSaved { expected: Serial, kind: String },
    /// It was not allowed to start.
    Denied { conflict: bool, why: String },
    /// It no longer drives the rollout.
    Left { state: String, code: u8 },
}

/// A record, as far as the checks need it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// The serial that it has, or is to have.
    pub(crate) serial: Serial,
    pub(crate) state: String,
    pub(crate) open: bool,
    pub(crate) nonce: Option<Nonce>,
    /// The watched part of a bake, in microseconds.
    pub(crate) watched: Option<u64>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) tripped: bool,
    /// Every state that was entered, in order.
    pub(crate) entered: Vec<String>,
}

impl Trace {
    pub(crate) fn at(path: &Path) -> Self {
        Self(Arc::new(OpenOptions::new().append(true).create(true).open(path).expect("the folder is ours")))
    }

    pub(crate) fn tell(&self, what: Did) {
        let line = Line { pid: process::id(), at: SystemClock.now(), what };
        // The line break before it ends the line of a process that was killed within its write.
        let text = format!("\n{}\n", serde_json::to_string(&line).expect("a line is JSON"));
        let mut file = &*self.0;
        assert_eq!(file.write(text.as_bytes()).expect("the disk has room"), text.len(), "a line is one write");
    }
}

impl Saved {
    pub(crate) fn new(rollout: &Rollout, serial: Serial) -> Self {
        let entered = |what: &What| match what {
            What::Entered { to } => Some(name(to)),
            _ => None,
        };
        Self {
            serial,
            state: name(&rollout.state),
            open: rollout.state.is_open(),
            nonce: rollout.attempt.as_ref().map(|attempt| attempt.nonce.clone()),
            watched: match rollout.state {
                State::Baking { watched, .. } => Some(u64::try_from(watched.as_micros()).expect("short bakes")),
                _ => None,
            },
            deadline: rollout.deadline,
            tripped: rollout.gates.iter().any(|slot| slot.tripped.is_some()),
            entered: rollout.log.iter().filter_map(|entry| entered(&entry.what)).collect(),
        }
    }
}

/// `shifting 0`: the state, and the step where it has one.
pub(crate) fn name(state: &State) -> String {
    match state {
        State::Shifting { step } | State::Baking { step, .. } => format!("{} {step}", state.name()),
        _ => state.name().into(),
    }
}

/// The end of the trace that is read: everything that was told so far.
#[derive(Debug)]
pub(crate) struct Tail {
    file: File,
    rest: String,
    /// Lines that a killed process did not finish.
    pub(crate) torn: usize,
    pub(crate) lines: Vec<Line>,
}

impl Tail {
    pub(crate) fn of(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).expect("the folder is ours");
        Self { file, rest: String::new(), torn: 0, lines: Vec::new() }
    }

    /// Reads what is new.
    pub(crate) fn read(&mut self) -> &[Line] {
        self.file.read_to_string(&mut self.rest).expect("lines are text");
        let Some(end) = self.rest.rfind('\n') else { return &self.lines };
        let rest = self.rest.split_off(end + 1);
        for line in std::mem::replace(&mut self.rest, rest).lines().filter(|line| !line.is_empty()) {
            match serde_json::from_str(line) {
                Ok(line) => self.lines.push(line),
                Err(_) => self.torn += 1,
            }
        }
        &self.lines
    }
}
