//! What this library writes into the log, line by line.

use std::{
    fmt::{self, Write as _},
    sync::{Mutex, Once, PoisonError},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The lines so far that contain this text, of all tests of the process. From the first call on they are kept.
pub(crate) fn with(text: &str) -> Vec<String> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| tracing::subscriber::set_global_default(Kept).expect("no other test takes the log"));
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| line.contains(text)).cloned().collect()
}

/// Keeps all of it, at every level: spans too, because what they hold is written beside each event.
struct Kept;

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("rollback")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        keep(|line| span.record(line));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        keep(|line| values.record(line));
    }

    fn event(&self, event: &Event<'_>) {
        keep(|line| event.record(line));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn keep(write: impl FnOnce(&mut Line)) {
    let mut line = Line(String::new());
    write(&mut line);
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line.0);
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{field}={value:?} ").expect("a string takes any text");
    }
}
