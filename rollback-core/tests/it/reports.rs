//! Reports of whole rollouts: kept as golden files in `tests/reports`, and of hostile ones: nothing from outside gets
//! through. `ROLLBACK_UPDATE_REPORTS=1` writes the files anew; look at them before you commit them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use jiff::SignedDuration;
use rollback_core::{
    engine::{Engine, NewRollout, Target},
    gate::{self, Evidence, Policy, Standing, Verdict},
    listener::{Listener as _, ReportFiles, RolloutEvent},
    model::{Actor, Change, GateName, Note, Revision, RevisionId, RolloutId, TargetId, Weight},
    plan::{Approval, Plan, Step},
    report::Report,
    request::{Ask, Request},
    rollout::{Entry, Rollout, What},
    state::{Cause, State},
    store::Memory,
    strategy::AskPerson,
    testing::{
        clock::TestClock,
        fakes::Fake,
        gates::{Answer, Scripted},
    },
};

const MINUTE: Duration = Duration::from_secs(60);

/// A gate as they are: unhealthy from this weight on, with what it had to go on.
fn error_rate(bad_from: u8) -> impl gate::HealthGate {
    gate::from_fn("error-rate", move |window| async move {
        let bad = window.weight.percent() >= bad_from;
        let failed = if bad { 37 } else { 2 };
        let evidence = Evidence::new(window.now, format!("{failed} of 1,200 requests failed; at most 12 may"))
            .fact("failed", failed)
            .fact("requests", 1200)
            .fact("query", r#"sum(rate(http_requests_total{code=~"5.."}[1m]))"#)
            .fact("threshold", 0.01)
            .fact("would have tripped it", "more than 12 of 1,200");
        Ok(if bad { Verdict::Unhealthy(evidence) } else { Verdict::Healthy(evidence) })
    })
    .unwrap()
}

struct Scene {
    engine: Engine,
    fake: Fake,
}

impl Scene {
    fn new(fake: Fake, target: impl FnOnce(Target) -> Target) -> Self {
        let engine = Engine::builder(Memory::new()).clock(TestClock::new()).build().unwrap();
        engine.register(target(Target::new("checkout", fake.clone()).unwrap())).unwrap();
        Self { engine, fake }
    }

    async fn start(&self, plan: Plan) -> rollback_core::engine::Handle {
        let new = NewRollout::new("checkout", Revision::new("v2").unwrap(), plan).unwrap();
        let new = new.by("ana").unwrap().because("release 42").id(RolloutId::try_from("checkout-42").unwrap());
        self.engine.start(new).await.unwrap()
    }
}

fn canary() -> Plan {
    Plan::canary([10, 50, 100], 5 * MINUTE).unwrap()
}

async fn rolled_back() -> Arc<Rollout> {
    let fake = Fake::new("v1", "v2").does_not_restore("the database schema: migration 7 stays");
    let latency = Scripted::new("latency", [Answer::Inconclusive, Answer::Inconclusive, Answer::Healthy]);
    let scene = Scene::new(fake, |target| {
        target.gate(error_rate(50), Policy::default().unhealthy_after(3, 5)).gate(latency, Policy::default())
    });
    scene.start(canary()).await.finished().await.rollout
}

async fn promoted() -> Arc<Rollout> {
    let scene = Scene::new(Fake::new("v1", "v2"), |target| target.gate(error_rate(101), Policy::default()));
    let half = Weight::try_from(50).unwrap();
    let steps = [Step::new(half, MINUTE).approved_by(Approval::anyone()), Step::new(Weight::ALL, MINUTE)];
    let handle = scene.start(Plan::new(steps).unwrap()).await;
    let mut seen = handle.clone();
    while !matches!(handle.status().state, State::Holding { .. }) {
        seen.changed().await.unwrap();
    }
    handle.approve("ana", "it is mine").await.unwrap_err();
    tokio::time::sleep(20 * MINUTE).await;
    handle.approve("bob", "looks good").await.unwrap();
    handle.finished().await.rollout
}

async fn refused() -> Arc<Rollout> {
    let scene = Scene::new(Fake::new("v1", "v2"), |target| target);
    scene.fake.refuse_preflight("the image of v1 is gone; push it again");
    scene.start(canary()).await.finished().await.rollout
}

async fn holding() -> Arc<Rollout> {
    let scene =
        Scene::new(Fake::new("v1", "v2"), |target| target.gate(error_rate(50), Policy::default()).strategy(AskPerson));
    let handle = scene.start(canary()).await;
    let mut seen = handle.clone();
    while !matches!(handle.status().state, State::Holding { .. }) {
        seen.changed().await.unwrap();
    }
    handle.status()
}

async fn abandoned() -> Arc<Rollout> {
    let scene = Scene::new(Fake::new("v1", "v2"), |target| target.gate(error_rate(101), Policy::default()));
    scene.fake.build("v3");
    let handle = scene.start(canary()).await;
    let mut seen = handle.clone();
    while !matches!(handle.status().state, State::Baking { step: 1, .. }) {
        seen.changed().await.unwrap();
    }
    scene.fake.drift(&[("v3", 100)]);
    handle.finished().await.rollout
}

/// Compares with the golden file of this name, or writes it.
fn golden(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reports").join(name);
    if std::env::var_os("ROLLBACK_UPDATE_REPORTS").is_some() {
        return fs::write(&file, text).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    let line = kept.lines().zip(text.lines()).position(|(kept, now)| kept != now);
    let line = line.unwrap_or_else(|| kept.lines().count().min(text.lines().count()));
    assert!(
        kept == text,
        "{name} is not what was kept, from line {}:\n kept: {:?}\n  now: {:?}",
        line + 1,
        kept.lines().nth(line),
        text.lines().nth(line)
    );
}

/// Whether the page is whole and asks for nothing from outside: well-formed, without script, link, form or handler.
fn check(html: &str) {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let page = roxmltree::Document::parse_with_options(html, options).unwrap_or_else(|e| panic!("{e}\n{html}"));
    let known = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "p",
        "h1",
        "h2",
        "section",
        "ul",
        "li",
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "svg",
        "desc",
        "pattern",
        "path",
        "rect",
        "text",
    ];
    let mut ids = std::collections::HashSet::new();
    for node in page.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(known.contains(&name), "an element of this kind came from outside: {name}");
        for attribute in node.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            assert!(!name.starts_with("on") && !["src", "href", "style"].contains(&name), "{name}={value}");
            assert!(!value.contains("url(") || value.starts_with("url(#"), "{name}={value}");
            assert!(name != "id" || ids.insert(value), "two elements have the id {value}");
        }
        for id in node.attribute("aria-labelledby").unwrap_or_default().split_whitespace() {
            assert!(html.contains(&format!("id=\"{id}\"")), "nothing has the id {id}");
        }
    }
    let style = page.descendants().find(|node| node.has_tag_name("style")).unwrap().text().unwrap();
    assert!(!style.contains("url(") && !style.contains("@import"));
}

#[tokio::test(start_paused = true)]
async fn reports_of_whole_rollouts_are_as_they_were_read_and_agreed_to() {
    for (name, rollout) in [
        ("rolled-back", rolled_back().await),
        ("promoted", promoted().await),
        ("refused", refused().await),
        ("holding", holding().await),
        ("abandoned", abandoned().await),
    ] {
        let report = Report::new(&rollout);
        check(&report.html());
        golden(&format!("{name}.md"), &report.markdown());
        golden(&format!("{name}.html"), &report.html());
    }
}

/// A rollout of which everything that can come from outside is hostile, and as long as it can be.
async fn hostile() -> Rollout {
    const EVIL: &str = "\u{202e}]]></title></style></svg></td>\"'><script>alert(1)</script><img src=x onerror=alert(1)> \
                        | `x` **b** [click](https://evil.example) ![i](https://evil.example/i.png) &lt; <!-- \u{200b}\u{feff}";
    fn name<T: for<'a> TryFrom<&'a str, Error = rollback_core::Error>>(most: usize) -> T {
        let start = EVIL.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= most).last().unwrap();
        T::try_from(EVIL[..start].trim()).unwrap()
    }
    let long = Note::new(EVIL.repeat(20));
    let mut rollout = (*rolled_back().await).clone();
    let (baseline, candidate) = (name::<RevisionId>(256), name::<RevisionId>(256));
    rollout.change = Arc::new(Change {
        rollout: name::<RolloutId>(128),
        target: name::<TargetId>(128),
        baseline: Revision::new(baseline).unwrap().with_spec("hunter2").unwrap(),
        candidate: Revision::new(candidate).unwrap().with_spec("hunter2").unwrap(),
    });
    rollout.author = name::<Actor>(128);
    rollout.reason = long.clone();
    rollout.despite_quarantine = Some(long.clone());
    rollout.irreversible = Some(long.clone());
    rollout.not_restored = vec![long.clone(); 50];
    Arc::make_mut(&mut rollout.readiness).proved = vec![long.clone(); 50];
    Arc::make_mut(&mut rollout.readiness).not_provable = vec![long.clone(); 50];
    let gate = name::<GateName>(64);
    rollout.state = State::RolledBack { cause: Cause::Unhealthy { gate: gate.clone(), why: long.clone() } };
    for slot in &mut rollout.gates {
        let mut evidence = slot
            .evidence
            .as_deref()
            .cloned()
            .unwrap()
            .fact(EVIL, EVIL)
            .fact("tree", serde_json::json!({ EVIL: [EVIL] }));
        evidence.summary = format!("{EVIL}\r\n\u{0}\u{1b}[31m\u{85}").repeat(10);
        slot.evidence = Some(evidence.into());
    }
    rollout.gates[0].name = gate.clone();
    let start = rollout.created;
    rollout.log = (0..200)
        .map(|second| {
            let request = Request { ask: Ask::PromoteNow, by: name::<Actor>(128), reason: long.clone() };
            let what = match second % 4 {
                0 => What::Asked { request, answer: long.clone() },
                1 => What::Troubled { why: long.clone() },
                2 => What::Judged { gate: gate.clone(), standing: Standing::Unhealthy, why: long.clone() },
                _ => What::Tripped { gate: gate.clone(), why: long.clone() },
            };
            Entry { at: start + SignedDuration::from_secs(second), what }
        })
        .collect();
    rollout
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_from_outside_the_page_is_whole_and_runs_and_loads_nothing() {
    let rollout = hostile().await;
    let html = Report::new(&rollout).html();
    check(&html);
    for bad in
        ["<script", "<img", "<!--", "]]>", "\u{202e}", "\u{200b}", "\u{feff}", "\u{1b}", "\u{85}", "\0", "hunter2"]
    {
        assert!(!html.contains(bad), "{bad:?} got through");
    }
    assert!(html.contains("⟨U+202E⟩") && html.contains("&lt;script&gt;"));
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_from_outside_the_markdown_has_the_tables_it_should_and_fits_a_job_summary() {
    let rollout = hostile().await;
    let text = Report::new(&rollout).markdown();
    assert!((100_000..=Report::MAX_MARKDOWN).contains(&text.len()), "{}", text.len());
    for bad in ["\u{202e}", "\u{200b}", "\u{feff}", "\u{1b}", "\u{85}", "\0", "\r", "hunter2"] {
        assert!(!text.contains(bad), "{bad:?} got through");
    }
    let (mut columns, mut tables) = (None, 0);
    for line in text.lines() {
        // What is not escaped is markup.
        let mut markup = String::new();
        let mut letters = line.chars();
        while let Some(c) = letters.next() {
            if c == '\\' {
                letters.next();
            } else {
                markup.push(c)
            }
        }
        for bad in ['<', '>', '`', '[', ']', '!'] {
            assert!(!markup.contains(bad), "{bad:?} in {line}");
        }
        assert!(!markup.contains("://"), "a link in {line}");
        let pipes = markup.matches('|').count();
        if pipes == 0 {
            columns = None;
        } else {
            tables += usize::from(columns.is_none());
            assert_eq!(*columns.get_or_insert(pipes), pipes, "{line}");
        }
    }
    assert!(tables >= 4, "{tables}");
    let mut long = rollout;
    long.not_restored = vec![long.reason.clone(); 2000];
    let text = Report::new(&long).markdown();
    assert!(text.len() <= Report::MAX_MARKDOWN && text.ends_with("has all of it.*\n"), "{}", text.len());
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_comes_to_rest_leaves_its_report_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let files = ReportFiles::new(folder.path().join("reports")).unwrap();
    let rollout = rolled_back().await;
    let (markdown, html) = (files.markdown(rollout.id()), files.html(rollout.id()));
    let at = rollout.log.last().unwrap().at;
    let tell = |what: What| files.on(&RolloutEvent { rollout: Arc::clone(&rollout), at, what });
    tell(What::Created);
    assert!(!markdown.exists() && !html.exists(), "it is not at rest yet");
    for _ in 0..2 {
        tell(What::Entered { to: rollout.state.clone() });
        assert_eq!(fs::read_to_string(&markdown).unwrap(), Report::new(&rollout).markdown());
        assert_eq!(fs::read_to_string(&html).unwrap(), Report::new(&rollout).html());
    }
    assert_eq!(fs::read_dir(folder.path().join("reports")).unwrap().count(), 2, "nothing half written is left");
}

#[tokio::test(start_paused = true)]
async fn where_the_platform_sets_the_pace_each_weight_that_was_seen_is_in_the_report() {
    let scene = Scene::new(Fake::new("v1", "v2").providers_pace(10, Duration::from_secs(30)), |target| target);
    let rollout = scene.start(Plan::all_at_once(MINUTE).unwrap()).await.finished().await.rollout;
    let weights: Vec<u8> = rollout.weights.iter().map(|seen| seen.weight.percent()).collect();
    assert_eq!(weights, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
    let text = Report::new(&rollout).markdown();
    for weight in weights {
        assert!(text.contains(&format!("seen: the candidate has {weight} %")), "{text}");
    }
}
