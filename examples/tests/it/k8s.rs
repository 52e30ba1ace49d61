//! k8s-rollout and k8s-canary as a person runs them, on a real API server.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    cluster::{self, Namespace, PATIENCE, bad, good, release, release_of, released},
    gateway,
};

/// What was said: the status, and all text, the report included.
type Said = (i32, String);

/// A program beside a namespace, with a record and a report of its own.
struct Tool<'s> {
    space: &'s Namespace,
    program: &'static str,
    folder: tempfile::TempDir,
}

impl<'s> Tool<'s> {
    fn new(space: &'s Namespace, program: &'static str) -> Self {
        Self { space, program, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs it to the end, and does this all the while.
    async fn run(&self, args: &[&str], mut meanwhile: impl FnMut()) -> Said {
        let (out, err) = (self.file("out"), self.file("err"));
        // Reports are added to.
        drop(fs::remove_file(self.file("report.md")));
        let mut command = Command::new(self.program);
        command.args(args).args(["--namespace", &self.space.name, "--by", "ana"]);
        command.arg("--kubeconfig").arg(self.space.kubeconfig());
        command.arg("--report").arg(self.file("report.md")).arg("--store").arg(self.file("store.db"));
        command.env_remove("GITHUB_STEP_SUMMARY").stdin(Stdio::null());
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        let mut child = Running(command.spawn().unwrap());
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.0.try_wait().unwrap() {
                break status;
            }
            meanwhile();
            let text = || [&out, &err].map(|file| fs::read_to_string(file).unwrap()).concat();
            assert!(begun.elapsed() < 2 * PATIENCE, "{args:?} does not end: {}", text());
            sleep(Duration::from_millis(50)).await;
        };
        let files = [out, err, self.file("report.md")];
        let text = files.map(|file| fs::read_to_string(file).unwrap_or_default()).concat();
        println!("{text}");
        (status.code().expect("it ends by itself"), text)
    }
}

/// A child that does not outlive the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_image_is_promoted_and_a_bad_one_is_back_before_any_progress_deadline() {
    let Some(space) = cluster::namespace().await else { return };
    let tool = Tool::new(&space, env!("CARGO_BIN_EXE_k8s-rollout"));
    space.apply(&released("web", 1));
    space.rolled_out("deployment/web");
    let template = || space.get("deployment", "web")["spec"]["template"].clone();
    let run = async |args: &[&str]| tool.run(&[&["deployment/web", "--bake", "2s"], args].concat(), || {}).await;

    // A cluster of somebody else may have but one good image, which serves already.
    if good(1) != good(2) {
        let (status, text) = run(&[&format!("web={}", good(2))]).await;
        assert_eq!((status, release_of(&template())), (0, format!("1 {}", good(2))), "{text}");
        assert!(text.contains("is promoted"), "{text}");
    }
    let mut next = template();
    release(&mut next, 3);
    let file = tool.file("template.json");
    fs::write(&file, next.to_string()).unwrap();
    let (status, text) = run(&["--template", file.to_str().unwrap(), "--named", "release 3"]).await;
    assert_eq!((status, template()), (0, next.clone()), "{text}");
    assert!(text.contains("is promoted"), "{text}");

    let begun = Instant::now();
    let (status, text) = run(&[&format!("web={}", bad())]).await;
    let took = begun.elapsed();
    assert_eq!((status, template()), (1, next), "{text}");
    assert!(text.contains("CrashLoopBackOff") || text.contains("Error"), "the pod's own words: {text}");
    assert!(took < PATIENCE, "{took:?}, which is no better than the progress deadline of 600 s");
    space.rolled_out("deployment/web");
}

#[tokio::test(flavor = "multi_thread")]
async fn k8s_rollout_says_what_it_takes_and_what_it_does_not_accept() {
    let Some(space) = cluster::namespace().await else { return };
    let tool = Tool::new(&space, env!("CARGO_BIN_EXE_k8s-rollout"));
    space.apply(&released("web", 1));
    space.rolled_out("deployment/web");
    let before = space.get("deployment", "web")["spec"].clone();
    for (args, status, words) in [
        (vec!["deployment/web", "wbe=shop:3"], 2, "has no container wbe; it has web"),
        (vec!["deployment/web", "web="], 2, "web=registry.example/shop:2 is accepted"),
        (vec!["cronjob/web", "web=shop:3"], 2, "daemonset/NAME are accepted"),
        (vec!["deployment/nobody", "web=shop:3"], 2, "not found"),
        (vec!["deployment/web"], 2, "required"),
        (vec!["deployment/web", "--template", "/no/such.json", "--named", "x"], 2, "cannot be read"),
        (vec!["--help"], 0, "brings the old pod template back"),
    ] {
        let (got, text) = tool.run(&args, || {}).await;
        assert_eq!((got, text.contains(words)), (status, true), "{args:?}: {text}");
    }
    assert_eq!(space.get("deployment", "web")["spec"], before);
    let (status, text) = tool.run(&["deployment/web", "--print-rbac"], || {}).await;
    let rule = r#"- {apiGroups: ["apps"], resources: [deployments], verbs: [get, patch, list, watch]}"#;
    assert!(status == 0 && text.contains("kind: Role") && text.contains(rule), "{text}");
    assert!(space.run(&["apply", "-f", "-"], Some(&text)).status.success(), "{text}");
}

/// Two colours behind a route, blue with all requests. Its gateway is to be played.
async fn colours(space: &Namespace) {
    gateway::install(space).await;
    for color in ["blue", "green"] {
        space.apply(&released(color, 1));
        let ports = json!([{ "port": 80 }]);
        space.apply(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": color },
            "spec": { "selector": { "app": color }, "ports": ports } }));
    }
    let backend = |name: &str, weight: u8| json!({ "name": name, "port": 80, "weight": weight });
    let rule = json!({ "backendRefs": [backend("blue", 100), backend("green", 0)] });
    space.apply(&json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "shop" }, "spec": { "parentRefs": [{ "name": "outer" }], "rules": [rule] } }));
    for color in ["blue", "green"] {
        space.rolled_out(&format!("deployment/{color}"));
    }
    gateway::play(space, "shop");
}

const CANARY: [&str; 9] =
    ["shop", "--from", "blue", "--to", "green", "--pods", "deployment/green", "deployment/blue", "--steps=10,50,100"];

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_crashes_loses_its_requests_within_seconds_and_a_good_one_gets_them_all() {
    let Some(space) = cluster::namespace().await else { return };
    let tool = Tool::new(&space, env!("CARGO_BIN_EXE_k8s-canary"));
    colours(&space).await;
    let weights = || gateway::weights(&space, "shop", 0);

    // It is well until it has its first requests.
    let (mut spoilt, mut crashed, mut back) = (false, None, None);
    let args = [&LONG[..], &CANARY[..]].concat();
    let (status, text) = tool
        .run(&args, || {
            gateway::play(&space, "shop");
            if crashed.is_none() && spoilt && crashes(&space) {
                crashed = Some(Instant::now());
            }
            let has_some = weights() != (json!(100), json!(0));
            if has_some && !spoilt {
                spoilt = true;
                space.kubectl(&["set", "image", "deployment/green", &format!("web={}", bad())]);
            }
            if back.is_none() && spoilt && !has_some {
                back = Some(Instant::now());
            }
        })
        .await;
    assert_eq!((status, weights()), (1, (json!(100), json!(0))), "{text}");
    assert!(text.contains("container web of pod green-"), "the pod's own words: {text}");
    // It may be back before we have seen why.
    let took = crashed.map_or(Duration::ZERO, |at| back.expect("it is back").duration_since(at));
    println!("from the second end of a container to all requests back: {took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");

    space.apply(&released("green", 2));
    space.rolled_out("deployment/green");
    let args = [&["--build", "2", "--bake", "1s"][..], &CANARY[..]].concat();
    let (status, text) = tool.run(&args, || gateway::play(&space, "shop")).await;
    assert_eq!((status, weights()), (0, (json!(0), json!(100))), "{text}");
    assert!(text.contains("is promoted"), "{text}");
    let (status, text) = tool.run(&args, || gateway::play(&space, "shop")).await;
    assert_eq!((status, weights()), (0, (json!(0), json!(100))), "once more is harmless: {text}");
}

/// A bake so long that only what the pods say can end it.
const LONG: [&str; 4] = ["--build", "1", "--bake", "10m"];

/// Whether a pod of green has ended twice.
fn crashes(space: &Namespace) -> bool {
    let pods = space.get("pods", "-lapp=green");
    let ends = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        let ended = container["state"]["running"].is_null();
        container["restartCount"].as_i64().unwrap_or(0) + i64::from(ended)
    };
    pods["items"].as_array().unwrap().iter().any(|pod| ends(pod) >= 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn k8s_canary_says_what_it_takes_and_what_it_does_not_accept() {
    let Some(space) = cluster::namespace().await else { return };
    let tool = Tool::new(&space, env!("CARGO_BIN_EXE_k8s-canary"));
    colours(&space).await;
    let pods = ["--pods", "deployment/green", "deployment/blue"];
    let with = |args: &[&'static str]| [&["shop", "--build", "1"], args, &pods[..]].concat();
    for (args, status, words) in [
        (with(&["--from", "blue", "--to", "red"]), 2, "red"),
        (with(&["--from", "blue", "--to", "blue"]), 2, "blue"),
        (with(&["--from", "green", "--to", "blue"]), 3, "which has the requests already"),
        (with(&["--from", "blue", "--to", "green", "--steps", "50,20,100"]), 2, "step 2 of 3"),
        (with(&["--from", "blue", "--to", "green", "--rule", "others"]), 2, "others"),
        (vec!["shop", "--from", "blue", "--to", "green", "--build", "1"], 2, "required"),
        (vec!["shop", "--from", "blue", "--to", "green", pods[0], pods[1], pods[2]], 2, "--build"),
        (vec!["--help"], 0, "gives them back when it misbehaves"),
    ] {
        let (got, text) = tool.run(&args, || {}).await;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!((got, flat.contains(words)), (status, true), "{args:?}: {text}");
    }
    assert_eq!(gateway::weights(&space, "shop", 0), (json!(100), json!(0)));
    let args = [&["shop", "--from", "blue", "--to", "green", "--print-rbac"], &pods[..]].concat();
    let (status, text) = tool.run(&args, || {}).await;
    let rule = r#"- {apiGroups: ["gateway.networking.k8s.io"], resources: [httproutes], verbs: [get, patch, list, watch]}"#;
    assert!(status == 0 && text.contains("kind: Role") && text.contains(rule), "{text}");
    assert!(space.run(&["apply", "-f", "-"], Some(&text)).status.success(), "{text}");
}
