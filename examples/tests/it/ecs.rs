//! ecs-deploy as a person runs it, on the simulator behind a socket.

use std::{path::PathBuf, time::Duration};

use rollback_aws::testing::{
    Server, Simulator,
    clock::VirtualClock,
    ecs::{Setup, Started},
};
use rollback_core::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::Command,
};

const DEPLOY: &str = env!("CARGO_BIN_EXE_ecs-deploy");

struct Stage {
    aws: Simulator,
    server: Server,
    probe: String,
    folder: tempfile::TempDir,
}

impl Stage {
    /// `shop/checkout` at `checkout:1`; `checkout:2` is good, and tasks of `checkout:3` end with 1. Its time passes twenty
    /// times as fast as ours.
    async fn set(config: Value) -> Self {
        let aws = Simulator::at(VirtualClock::starting(SystemClock.now()).pace(20), rollback_aws::testing::REGION);
        for environment in [&[][..], &[], &[("SIMULATOR_EXIT_CODE", "1")]] {
            aws.ecs().register("checkout", "registry.example/checkout", environment);
        }
        aws.ecs().service("shop", "checkout", "checkout:1", &Setup::new(config));
        aws.cloudwatch().alarm("checkout-errors");
        let server = aws.listen("127.0.0.1:0").await.unwrap();
        Self { aws, server, probe: healthy().await, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DEPLOY);
        command.arg("shop/checkout").args(args).args(["--bake", "500ms", "--every", "200ms", "--by", "ana"]);
        command.args(["--probe", &self.probe, "--endpoint-url", &self.server.endpoint_url()]);
        command.arg("--store").arg(self.file("store.db")).arg("--report").arg(self.file("report.md"));
        command.env("AWS_SECRET_ACCESS_KEY", "hunter2").env("AWS_ACCESS_KEY_ID", "AKIDSOMEBODY");
        for name in ["HTTP_PROXY", "http_proxy", "AWS_PROFILE", "AWS_REGION", "GITHUB_STEP_SUMMARY"] {
            command.env_remove(name);
        }
        command.kill_on_drop(true);
        command
    }

    /// Its status, and what it said.
    async fn run(&self, args: &[&str]) -> (i32, String) {
        said(&mut self.command(args)).await
    }

    fn last(&self) -> Started {
        self.aws.ecs().last("shop", "checkout").unwrap()
    }

    fn running(&self) -> Vec<(String, usize)> {
        self.aws.ecs().running("shop", "checkout").into_iter().collect()
    }

    fn report(&self) -> String {
        std::fs::read_to_string(self.file("report.md")).unwrap()
    }
}

async fn said(command: &mut Command) -> (i32, String) {
    let output = command.output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("hunter2"), "{text}");
    (output.status.code().unwrap(), text)
}

/// An address that answers every request with 200.
async fn healthy() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

fn canary() -> Value {
    json!({ "strategy": "CANARY", "canaryConfiguration": { "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 0 } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_task_definition_is_promoted_step_by_step_and_once_more_is_harmless() {
    let stage = Stage::set(canary()).await;
    let args =
        ["--task-definition", "checkout:2", "--steps", "0,10,100", "--set-pauses", "60m", "--because", "release 42"];
    let (status, text) = stage.run(&args).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("waiting before each shift and after the last"), "{text}");
    assert_eq!((stage.last().status.as_str(), stage.running()), ("SUCCESSFUL", vec![("checkout:2".into(), 4)]));
    let report = stage.report();
    assert!(report.contains("was promoted") && report.contains("release 42") && report.contains("ana"), "{report}");
    let (status, text) = stage.run(&args).await;
    assert_eq!((status, stage.aws.ecs().deployments("shop", "checkout").len()), (0, 2), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_that_fires_brings_the_old_task_definition_back_with_a_report() {
    let stage = Stage::set(canary()).await;
    // An alarm's evidence ends two minutes before the look, so only what goes back is quick.
    let alarms = ["--alarms", "checkout-errors"];
    let args = ["--task-definition", "checkout:2", "--steps", "10,100", "--set-pauses", "60m", alarms[0], alarms[1]];
    let mut command = stage.command(&args);
    let run = tokio::spawn(async move { said(&mut command).await });
    while stage.last().weight != Some(10.0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.aws.alarm_at("checkout-errors", stage.aws.clock().now());
    let (status, text) = run.await.unwrap();
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("checkout-errors"), "{text}");
    assert_eq!(
        (stage.last().status.as_str(), stage.running()),
        ("ROLLBACK_SUCCESSFUL", vec![("checkout:1".into(), 4)])
    );
    assert!(stage.report().contains("rolled back"), "{}", stage.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_end_are_told_with_their_reason() {
    let stage = Stage::set(json!({})).await;
    let (status, text) = stage.run(&["--task-definition", "checkout:3", "--set-circuit-breaker"]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("checkout ended with 1"), "{text}");
    assert_eq!(stage.running(), [("checkout:1".into(), 4)]);
    assert!(stage.report().contains("checkout ended with 1"), "{}", stage.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_is_registered_and_promoted() {
    let stage = Stage::set(json!({})).await;
    let (status, text) = stage.run(&["--image", "checkout", "registry.example/checkout:2"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("registry.example/checkout:2 is registered as checkout:4"), "{text}");
    assert_eq!(stage.running(), [("checkout:4".into(), 4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_ends_with_2_and_a_closed_way_with_3() {
    let stage = Stage::set(json!({})).await;
    for (args, status, words) in [
        (vec![], 2, "required"),
        (vec!["--task-definition", "checkout"], 2, "family:revision is accepted"),
        (vec!["--task-definition", "checkout:2", "--steps", "50,20,100"], 2, "step 2 of 3"),
        (vec!["--image", "app", "registry.example/checkout:2"], 2, "has no container app"),
        (vec!["--task-definition", "checkout:99"], 3, "there is no task definition checkout:99"),
        (vec!["--task-definition", "checkout:2", "--steps", "10,100"], 3, "only 100 %"),
        (vec!["--task-definition", "checkout:2", "--set-pauses", "1h"], 3, "shifts no traffic"),
    ] {
        let (got, text) = stage.run(&args).await;
        assert_eq!((got, text.contains(words)), (status, true), "{args:?}: {text}");
    }
    stage.aws.ecs().service("shop", "checkout", "checkout:1", &Setup::new(json!({})).controller("CODE_DEPLOY"));
    let (status, text) = stage.run(&["--task-definition", "checkout:2"]).await;
    assert_eq!((status, text.contains("use its deployment group")), (3, true), "{text}");
    assert_eq!(stage.aws.ecs().deployments("shop", "checkout").len(), 1, "something was deployed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_that_it_prints_is_all_that_it_needs() {
    let stage = Stage::set(canary()).await;
    let args = ["--image", "checkout", "registry.example/checkout:2", "--steps", "10,100", "--set-pauses", "1h"];
    let (status, policy) = stage.run(&[&args[..], &["--print-policy"]].concat()).await;
    assert_eq!(status, 0, "{policy}");
    let (status, out) = stage.run(&args).await;
    assert_eq!(status, 0, "{out}");
    for called in stage.aws.calls().keys() {
        assert!(policy.contains(&format!("{called:?}")), "{called} is called and not in {policy}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::set(canary()).await;
    let args = ["--task-definition", "checkout:2", "--steps", "10,100", "--set-pauses", "60m", "--settle", "20s"];
    let null = std::process::Stdio::null;
    let mut child = stage.command(&args).stdout(null()).stderr(null()).spawn().unwrap();
    while stage.last().weight != Some(10.0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().await.unwrap();
    let updates = stage.aws.calls()["ecs:UpdateService"];
    // The service is not set anew, nor an image registered, under the deployment that is on its way.
    let args = [
        "--image",
        "checkout",
        "registry.example/checkout:9",
        "--steps",
        "10,100",
        "--set-pauses",
        "90m",
        "--settle",
        "20s",
    ];
    let (status, text) = stage.run(&args).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("it goes on from there"), "{text}");
    assert_eq!(stage.running(), [("checkout:2".into(), 4)]);
    assert_eq!(stage.aws.calls()["ecs:UpdateService"], updates, "{text}");
    assert!(!stage.aws.calls().contains_key("ecs:RegisterTaskDefinition"), "{text}");
}
