//! k8s-rollout as a person runs it, on a real API server.

use std::process::{Command, Output};

use crate::support::cluster::{self, Namespace, bad, deployment, good};

/// Runs it to the end: its status, and all it said.
fn run(space: &Namespace, args: &[&str]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.md");
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_k8s-rollout"))
        .arg("deployment/web")
        .args(args)
        .args(["--namespace", &space.name, "--bake", "2s", "--by", "ana", "--report"])
        .arg(&report)
        .arg("--kubeconfig")
        .arg(space.kubeconfig())
        .arg("--store")
        .arg(folder.path().join("store.db"))
        .env_remove("GITHUB_STEP_SUMMARY")
        .output()
        .unwrap();
    let report = std::fs::read_to_string(report).unwrap_or_default();
    let text = format!("{}{}{report}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    println!("{text}");
    (status.code().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_image_is_promoted_and_a_bad_one_is_back_before_any_progress_deadline() {
    let Some(space) = cluster::namespace().await else { return };
    space.apply(&deployment("web", &good(1)));
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let image = || space.kubectl(&["get", "deployment", "web", "-o", "jsonpath={..containers[0].image}"]);

    let (status, text) = run(&space, &[&format!("web={}", good(2))]);
    assert_eq!((status, image()), (0, good(2)), "{text}");
    assert!(text.contains("is promoted"), "{text}");

    let begun = std::time::Instant::now();
    let (status, text) = run(&space, &[&format!("web={}", bad())]);
    assert_eq!((status, image()), (1, good(2)), "{text}");
    assert!(text.contains("CrashLoopBackOff") || text.contains("Error"), "the pod's own words: {text}");
    assert!(begun.elapsed().as_secs() < 600, "kubectl would still wait");
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    let (status, text) = run(&space, &["wbe=shop:3"]);
    assert!(status == 2 && text.contains("has no container wbe; it has web"), "{status}: {text}");
    let (status, text) = run(&space, &["--print-rbac"]);
    assert_eq!(status, 0, "{text}");
    let rule = r#"- {apiGroups: ["apps"], resources: [deployments], verbs: ["#;
    assert!(text.contains("kind: Role") && text.contains(rule), "{text}");
}
