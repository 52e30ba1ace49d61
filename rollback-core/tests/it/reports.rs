//! Reports of whole rollouts: kept as golden files in `tests/reports`, and of hostile ones: nothing from outside gets
//! through. `ROLLBACK_UPDATE_REPORTS=1` writes the files anew; look at them before you commit them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    engine::{Engine, NewRollout, Target},
    gate::{self, Evidence, FromFn, Policy, Standing, Verdict},
    model::{Actor, GateName, Note, Revision, RolloutId, TargetId, Weight},
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
