//! One line a rollout on a terminal.

use std::{
    collections::HashMap,
    fmt,
    io::{IsTerminal, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{Listener, RolloutEvent};
use crate::{
    gate::{Slot, Standing},
    model::{Note, RolloutId},
    rollout::{Rollout, What},
    state::State,
};

/// Shows on standard error what happens to rollouts.
///
/// On a terminal each open rollout has a line, redrawn as it goes, and leaves one that says how it ended:
///
/// ```text
/// checkout  2/4  25 %  ━━━━━━╌╌╌╌ 3m of 5m  errors ✓ latency ? queue –  baking
/// ```
///
/// Step, weight as last observed, how much of the bake was watched, what each gate says (✓ healthy, ✗ unhealthy or
/// tripped, ? no data, – not asked yet or skipped), and the state in words. Between events the bar moves on its own while
/// every gate has data; the record knows better, and puts it right with the next event.
///
/// Elsewhere, as in a CI log, there is one line for everything that a person would want to read there:
///
/// ```text
/// 2026-03-01T12:00:05Z checkout: shifting to 25 % (step 2 of 4)
/// ```
///
/// What cannot be written, because the terminal or the pipe has gone away, is lost without harm.
pub struct Progress(Form);

enum Form {
    Lines(Arc<Mutex<Lines>>),
    Plain(Mutex<Box<dyn Write + Send>>),
}

impl Progress {
    /// The most rollouts that have a line at the same time. The others get one as soon as there is room, and tell how
    /// they ended in any case.
    pub const MAX_LINES: usize = 50;

    /// Lines that are redrawn where standard error is a terminal that can do that, else plain ones.
    pub fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if dumb || !std::io::stderr().is_terminal() {
            return Self::plain();
        }
        Self::on(ProgressDrawTarget::stderr())
    }

    /// Plain lines on standard error, terminal or not.
    pub fn plain() -> Self {
        Self::plain_to(std::io::stderr())
    }

    /// Plain lines to this writer. It is flushed after each.
    pub fn plain_to(out: impl Write + Send + 'static) -> Self {
        Self(Form::Plain(Mutex::new(Box::new(out))))
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let lines = Arc::new(Mutex::new(Lines::new(target)));
        let redrawn = Arc::downgrade(&lines);
        // Without a thread the bars move at events only: worse, and no reason to fail.
        let _ = thread::Builder::new().name("rollback-progress".into()).spawn(move || redraw(&redrawn));
        Self(Form::Lines(lines))
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Form::Lines(_) => "Progress(lines)",
            Form::Plain(_) => "Progress(plain)",
        })
    }
}

impl Listener for Progress {
    fn on(&self, event: &RolloutEvent) {
        match &self.0 {
            Form::Lines(lines) => lock(lines).tell(event),
            Form::Plain(out) => {
                if let Some(line) = plain(event) {
                    let mut out = lock(out);
                    // One write a line, so that lines of several processes do not mix.
                    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
                }
            }
        }
    }
}

/// What is on the terminal.
struct Lines {
    screen: MultiProgress,
    style: ProgressStyle,
    open: HashMap<RolloutId, Line>,
}

struct Line {
    bar: ProgressBar,
    rollout: Arc<Rollout>,
    /// When this was news.
    told: Instant,
}

impl Lines {
    fn new(target: ProgressDrawTarget) -> Self {
        // Cut to the width of the terminal, so that a line is one line.
        let style = ProgressStyle::with_template("{wide_msg}").expect("the template is well formed");
        Self { screen: MultiProgress::with_draw_target(target), style, open: HashMap::new() }
    }

    fn tell(&mut self, event: &RolloutEvent) {
        let id = event.rollout.id();
        if !event.rollout.state.is_open() {
            if let Some(line) = self.open.remove(id) {
                line.bar.finish_and_clear();
                self.screen.remove(&line.bar);
            }
        } else if let Some(line) = self.open.get_mut(id) {
            line.rollout = Arc::clone(&event.rollout);
            line.told = Instant::now();
            line.draw();
        } else if self.open.len() < Progress::MAX_LINES {
            let bar = self.screen.add(ProgressBar::no_length());
            bar.set_style(self.style.clone());
            let line = Line { bar, rollout: Arc::clone(&event.rollout), told: Instant::now() };
            line.draw();
            self.open.insert(id.clone(), line);
        }
        if let Some(end) = ending(event) {
            let _ = self.screen.println(end);
        }
    }
}

impl Line {
    fn draw(&self) {
        // Even when it says the same: the screen may have been too slow for the last event.
        self.bar.set_message(line(&self.rollout, self.told.elapsed()));
    }
}

/// Redraws until the listener is gone.
fn redraw(lines: &Weak<Mutex<Lines>>) {
    while let Some(lines) = lines.upgrade() {
        lock(&lines).open.values().for_each(Line::draw);
        drop(lines);
        thread::park_timeout(Duration::from_millis(250));
    }
}

/// A rollout in one line, so long after it was news.
fn line(rollout: &Rollout, since: Duration) -> String {
    let steps = rollout.plan.steps();
    let mut words = vec![rollout.change.target.to_string()];
    if let Some(step) = rollout.state.step() {
        words.push(format!("{}/{}", step + 1, steps.len()));
    }
    words.extend(rollout.weight.map(|weight| weight.to_string()));
    if let State::Baking { step, watched } = &rollout.state {
        let blind = rollout.gates.iter().any(|slot| slot.counts() && slot.is_blind());
        let watched = watched.saturating_add(if blind { Duration::ZERO } else { since });
        words.push(bar(watched, steps[*step].bake));
    }
    let gates: Vec<String> = rollout.gates.iter().map(|slot| format!("{} {}", slot.name, mark(slot))).collect();
    words.extend((!gates.is_empty()).then(|| gates.join(" ")));
    words.push(match &rollout.state {
        State::Shifting { .. } => "shifting".into(),
        State::Baking { .. } => "baking".into(),
        state => state.describe(&rollout.plan),
    });
    let mut line = words.join("  ");
    if let Some(what) = &rollout.waiting_for {
        line.push_str(&format!(" ({what})"));
    }
    line
}

fn bar(watched: Duration, bake: Duration) -> String {
    let watched = watched.min(bake);
    let full = if bake.is_zero() { 10 } else { (watched.as_millis() * 10 / bake.as_millis().max(1)) as usize };
    format!("{}{} {} of {}", "━".repeat(full), "╌".repeat(10 - full), humane(watched), humane(bake))
}

const fn mark(slot: &Slot) -> char {
    match slot.standing {
        _ if !slot.counts() => '–',
        _ if slot.tripped.is_some() => '✗',
        Standing::Healthy => '✓',
        Standing::Unhealthy => '✗',
        Standing::Inconclusive if slot.judged == 0 => '–',
        Standing::Inconclusive => '?',
    }
}

/// An event in one line, unless only a log of everything would tell it.
fn plain(event: &RolloutEvent) -> Option<String> {
    let rollout = &*event.rollout;
    let line = match &event.what {
        What::Judged { .. } | What::Attempted { .. } | What::Troubled { .. } | What::Cut { .. } => return None,
        what => match ending(event) {
            Some(end) => end,
            None => format!("{}: {}", rollout.change.target, what.describe(&rollout.plan)),
        },
    };
    Some(format!("{} {line}", event.at.strftime("%Y-%m-%dT%H:%M:%SZ")))
}

/// How a rollout ended, if this is its end.
fn ending(event: &RolloutEvent) -> Option<String> {
    let What::Entered { to } = &event.what else { return None };
    if to.is_open() {
        return None;
    }
    let rollout = &*event.rollout;
    let mut line = format!("{}: {}", rollout.change.target, to.describe(&rollout.plan));
    line.push_str(&format!(", {} in all", between(rollout.created, event.at)));
    if let (Some(breach), Some(restored)) = (rollout.times.breach, rollout.times.restored) {
        line.push_str(&format!(", {} from breach to traffic restored", between(breach, restored)));
    }
    if !rollout.not_restored.is_empty() {
        let what: Vec<&str> = rollout.not_restored.iter().map(Note::as_str).collect();
        line.push_str(&format!("; not brought back: {}", what.join(", ")));
    }
    Some(line)
}

fn between(from: Timestamp, to: Timestamp) -> String {
    humane(to.duration_since(from).try_into().unwrap_or_default())
}

/// In whole seconds where there are any: `3m 20s`, `450ms`.
fn humane(time: Duration) -> String {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    if time.as_secs() > 0 {
        format!("{:#}", SignedDuration::from_secs(time.as_secs()))
    } else {
        format!("{:#}", SignedDuration::from_millis(time.as_millis() as i64))
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io;

    use indicatif::InMemoryTerm;

    use super::*;
    use crate::{
        gate::{Evidence, Policy, Skip, Verdict},
        model::{Actor, Attempt, Change, GateName, Goal, Nonce, TargetId, Version, Weight},
        request::{Ask, Request},
        rollout::{self, Times},
        state::{Cause, Hold, Interrupted},
    };

    fn after(seconds: i64) -> Timestamp {
        rollout::sample().created + SignedDuration::from_secs(seconds)
    }

    fn named(target: &str) -> Rollout {
        let mut rollout = rollout::sample();
        let change = (*rollout.change).clone();
        let (target, id) = (TargetId::try_from(target).unwrap(), RolloutId::try_from(target).unwrap());
        rollout.change = Arc::new(Change { target, rollout: id, ..change });
        rollout
    }

    fn baking(watched: u64) -> State {
        State::Baking { step: 1, watched: Duration::from_secs(watched) }
    }

    fn unhealthy() -> Cause {
        Cause::Unhealthy { gate: GateName::try_from("errors").unwrap(), why: "9 of 100 failed".into() }
    }

    /// A gate after this verdict.
    fn gate(name: &str, says: Option<fn(Evidence) -> Verdict>) -> Slot {
        let mut slot = Slot::new(GateName::try_from(name).unwrap());
        if let Some(says) = says {
            slot.heed(&Policy::default().unhealthy_after(2, 2), says(Evidence::new(after(0), "")), after(0));
        }
        slot
    }

    fn tell(progress: &Progress, rollout: &Rollout, second: i64, what: What) {
        progress.on(&RolloutEvent { rollout: Arc::new(rollout.clone()), at: after(second), what });
    }

    fn enter(progress: &Progress, rollout: &mut Rollout, second: i64, to: State) {
        rollout.state = to.clone();
        tell(progress, rollout, second, What::Entered { to });
    }

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn without_a_terminal_each_transition_is_a_line_with_its_time() {
        let paper = Paper::default();
        let progress = Progress::plain_to(paper.clone());
        let mut rollout = rollout::sample();
        let errors = GateName::try_from("errors").unwrap();
        tell(&progress, &rollout, 0, What::Created);
        enter(&progress, &mut rollout, 1, State::Shifting { step: 0 });
        tell(&progress, &rollout, 1, What::Troubled { why: "throttled".into() });
        let attempt = Attempt {
            nonce: Nonce::try_from("checkout-1/2/split-5").unwrap(),
            goal: Goal::Split(Weight::try_from(5).unwrap()),
            version: Version::try_from("7").unwrap(),
            at: after(1),
        };
        tell(&progress, &rollout, 1, What::Attempted { effect: "set weight to 5 %".into(), attempt });
        enter(&progress, &mut rollout, 2, State::Baking { step: 0, watched: Duration::ZERO });
        let says = What::Judged { gate: errors.clone(), standing: Standing::Unhealthy, why: "9 of 100 failed".into() };
        tell(&progress, &rollout, 60, says);
        let request = Request::new(Ask::Pause, "ana", "lunch").unwrap();
        tell(&progress, &rollout, 61, What::Asked { request, answer: "granted".into() });
        tell(&progress, &rollout, 124, What::Tripped { gate: errors, why: "9 of 100 failed".into() });
        enter(&progress, &mut rollout, 124, State::RollingBack { cause: unhealthy() });
        rollout.times = Times { breach: Some(after(120)), restored: Some(after(125)), ..Times::default() };
        rollout.not_restored = vec!["config".into(), "schema".into()];
        enter(&progress, &mut rollout, 130, State::RolledBack { cause: unhealthy() });
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            written.lines().collect::<Vec<_>>(),
            [
                "1970-01-02T00:00:00Z checkout: created",
                "1970-01-02T00:00:01Z checkout: shifting to 5 % (step 1 of 4)",
                "1970-01-02T00:00:02Z checkout: baking at 5 % (step 1 of 4)",
                "1970-01-02T00:01:01Z checkout: pause by ana (lunch): granted",
                "1970-01-02T00:02:04Z checkout: gate errors tripped: 9 of 100 failed",
                "1970-01-02T00:02:04Z checkout: rolling back: gate errors is unhealthy: 9 of 100 failed",
                "1970-01-02T00:02:10Z checkout: rolled back: gate errors is unhealthy: 9 of 100 failed, 2m 10s in all, \
                 5s from breach to traffic restored; not brought back: config, schema",
            ]
        );
    }

    #[test]
    fn a_line_has_step_weight_bake_gates_and_state() {
        let mut rollout = rollout::sample();
        assert_eq!(line(&rollout, Duration::ZERO), "checkout  proving both ways");
        rollout.state = State::Shifting { step: 1 };
        rollout.weight = Some(Weight::try_from(5).unwrap());
        rollout.waiting_for = Some("2 of 5 pods".into());
        assert_eq!(line(&rollout, Duration::ZERO), "checkout  2/4  5 %  shifting (2 of 5 pods)");
        rollout.waiting_for = None;
        rollout.weight = Some(Weight::try_from(25).unwrap());
        rollout.state = baking(180);
        let mut skipped = gate("pods", Some(Verdict::Unhealthy));
        skipped.skipped =
            Some(Box::new(Skip { by: Actor::try_from("ana").unwrap(), why: "known".into(), at: after(0) }));
        rollout.gates = vec![
            gate("errors", Some(Verdict::Healthy)),
            gate("latency", Some(Verdict::Unhealthy)),
            gate("queue", None),
            skipped,
        ];
        assert_eq!(
            line(&rollout, Duration::ZERO),
            "checkout  2/4  25 %  ━━━━━━╌╌╌╌ 3m of 5m  errors ✓ latency ✗ queue – pods –  baking"
        );
        let (from, until) = (Interrupted::Baking { step: 1, watched: Duration::ZERO }, after(9));
        rollout.state = State::Holding { from, why: Hold::Approval, until };
        rollout.gates.clear();
        assert_eq!(line(&rollout, Duration::ZERO), "checkout  2/4  25 %  holding: waiting for approval");
    }

    #[test]
    fn the_bar_moves_between_events_but_not_past_the_bake_nor_without_data() {
        let mut rollout = rollout::sample();
        rollout.state = baking(180);
        let seen = |rollout: &Rollout, seconds| line(rollout, Duration::from_secs(seconds));
        assert_eq!(seen(&rollout, 61), "checkout  2/4  ━━━━━━━━╌╌ 4m 1s of 5m  baking");
        assert_eq!(seen(&rollout, 999), "checkout  2/4  ━━━━━━━━━━ 5m of 5m  baking");
        rollout.gates = vec![gate("errors", Some(Verdict::Inconclusive))];
        assert_eq!(seen(&rollout, 61), "checkout  2/4  ━━━━━━╌╌╌╌ 3m of 5m  errors ?  baking");
        assert_eq!(bar(Duration::ZERO, Duration::ZERO), "━━━━━━━━━━ 0s of 0s");
        assert_eq!(bar(Duration::from_millis(450), Duration::from_millis(900)), "━━━━━╌╌╌╌╌ 450ms of 900ms");
    }

    #[test]
    fn a_gate_that_tripped_shows_it_even_when_it_is_healthy_again() {
        let mut slot = gate("errors", Some(Verdict::Healthy));
        assert_eq!(mark(&slot), '✓');
        slot.heed(&Policy::default(), Verdict::Unhealthy(Evidence::new(after(0), "")), after(0));
        slot.heed(&Policy::default(), Verdict::Healthy(Evidence::new(after(0), "")), after(0));
        assert_eq!(mark(&slot), '✗');
    }

    #[test]
    fn on_a_terminal_open_rollouts_have_a_line_and_finished_ones_leave_one() {
        let screen = InMemoryTerm::new(10, 60);
        let progress = Progress::on(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        let (mut checkout, mut search) = (named("checkout"), named("search"));
        tell(&progress, &checkout, 0, What::Created);
        tell(&progress, &search, 0, What::Created);
        enter(&progress, &mut search, 1, State::Shifting { step: 0 });
        assert_eq!(screen.contents(), "checkout  proving both ways\nsearch  1/4  shifting");
        search.waiting_for = Some("words that do not fit on a line of sixty columns".into());
        enter(&progress, &mut search, 2, State::Shifting { step: 1 });
        let fits = "search  2/4  shifting (words that do not fit on a line of si";
        assert_eq!(screen.contents(), format!("checkout  proving both ways\n{fits}"));
        enter(&progress, &mut checkout, 65, State::Promoted);
        assert_eq!(screen.contents(), format!("checkout: promoted, 1m 5s in all\n{fits}"));
        enter(&progress, &mut search, 66, State::RolledBack { cause: Cause::Failed { why: "no image".into() } });
        let ends = "checkout: promoted, 1m 5s in all\nsearch: rolled back: failed: no image, 1m 6s in all";
        assert_eq!(screen.contents(), ends);
    }

    #[test]
    fn a_rollout_past_the_last_line_still_says_how_it_ended() {
        let screen = InMemoryTerm::new(Progress::MAX_LINES as u16 + 10, 60);
        let progress = Progress::on(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        let mut rollouts: Vec<_> = (0..=Progress::MAX_LINES).map(|number| named(&format!("shop-{number}"))).collect();
        rollouts.iter().for_each(|rollout| tell(&progress, rollout, 0, What::Created));
        assert_eq!(screen.contents().lines().count(), Progress::MAX_LINES);
        let last = rollouts.last_mut().unwrap();
        enter(&progress, last, 5, State::Promoted);
        let contents = screen.contents();
        assert_eq!(contents.lines().next(), Some("shop-50: promoted, 5s in all"));
        assert_eq!(contents.lines().count(), Progress::MAX_LINES + 1);
    }

    #[test]
    fn the_last_of_many_events_is_not_lost_to_the_refresh_rate() {
        let screen = InMemoryTerm::new(10, 60);
        let progress = Progress::on(ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 20));
        let mut rollout = rollout::sample();
        for percent in 0..=100 {
            rollout.weight = Some(Weight::try_from(percent).unwrap());
            enter(&progress, &mut rollout, 0, State::Promoting);
        }
        let shown = || screen.contents() == "checkout  100 %  promoting the candidate";
        let patience = 1000;
        assert!((0..patience).any(|_| shown() || {
            thread::park_timeout(Duration::from_millis(10));
            false
        }));
    }

    #[derive(Debug)]
    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    impl indicatif::TermLike for Gone {
        fn width(&self) -> u16 {
            0
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn write_line(&self, _: &str) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn write_str(&self, _: &str) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn clear_line(&self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_terminal_that_has_gone_away_does_no_harm() {
        for progress in [Progress::plain_to(Gone), Progress::on(ProgressDrawTarget::term_like(Box::new(Gone)))] {
            let mut rollout = rollout::sample();
            tell(&progress, &rollout, 0, What::Created);
            enter(&progress, &mut rollout, 1, baking(0));
            if let Form::Lines(lines) = &progress.0 {
                lock(lines).open.values().for_each(Line::draw);
            }
            enter(&progress, &mut rollout, 2, State::Promoted);
        }
    }

    #[test]
    fn the_redrawing_thread_ends_with_the_listener() {
        let lines = Arc::new(Mutex::new(Lines::new(ProgressDrawTarget::hidden())));
        let weak = Arc::downgrade(&lines);
        let thread = thread::spawn(move || redraw(&weak));
        drop(lines);
        thread.thread().unpark();
        thread.join().unwrap();
    }
}
