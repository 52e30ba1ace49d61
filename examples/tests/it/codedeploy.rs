//! codedeploy-deploy as a person runs it, on the simulator behind a socket.

use std::{path::PathBuf, time::Duration};

use rollback_aws::testing::{Server, Simulator, clock::VirtualClock, codedeploy::Shape};
use rollback_core::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::Command,
};

const DEPLOY: &str = env!("CARGO_BIN_EXE_codedeploy-deploy");

struct Stage {
    aws: Simulator,
    server: Server,
    folder: tempfile::TempDir,
}

fn bundle(version: &str) -> Value {
    json!({ "revisionType": "S3",
        "s3Location": { "bucket": "builds", "key": "shop.zip", "bundleType": "zip", "version": version } })
}

fn key(version: &str) -> String {
    format!("builds|shop.zip|{version}|")
}

impl Stage {
    /// The group `shop/production` of three instances, where version `v1` of a bundle serves; what takes CodeDeploy a minute
    /// takes it a second and a half.
    async fn set() -> Self {
        let aws = Simulator::at(VirtualClock::starting(SystemClock.now()).pace(40), rollback_aws::testing::REGION);
        let instances = ["i-1", "i-2", "i-3"].map(str::to_owned).to_vec();
        aws.codedeploy().group("shop", "production", &Shape::InPlace(instances), "CodeDeployDefault.OneAtATime");
        for version in ["v1", "v2"] {
            aws.s3().put_version("builds", "shop.zip", version, version.as_bytes());
        }
        aws.codedeploy().serve("shop", "production", &bundle("v1"));
        aws.cloudwatch().alarm("shop-errors");
        let server = aws.listen("127.0.0.1:0").await.unwrap();
        Self { aws, server, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DEPLOY);
        command.args(args).args(["--bake", "1s", "--every", "200ms", "--poll", "200ms", "--by", "ana"]);
        command.args(["--endpoint-url", &self.server.endpoint_url()]);
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

    fn serves(&self) -> Vec<(String, f64)> {
        let mut all: Vec<_> = self.aws.codedeploy().serves("shop", "production").into_values().flatten().collect();
        all.dedup();
        all
    }

    fn deployments(&self) -> Vec<Value> {
        let hands = self.aws.codedeploy();
        hands.deployments("shop", "production").iter().map(|id| hands.deployment(id)).collect()
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

/// The address of something that answers 200 to everything.
async fn healthy() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    url
}

const V2: [&str; 10] =
    ["shop", "production", "--platform", "in-place", "--s3", "builds", "shop.zip", "v2", "--alarms", "shop-errors"];

#[tokio::test(flavor = "multi_thread")]
async fn a_good_revision_is_promoted_with_a_report_and_once_more_is_harmless() {
    let (stage, url) = (Stage::set().await, healthy().await);
    // Alarms tell of two minutes ago, and a test does not wait for that.
    let args = [&V2[..8], &["--probe", url.as_str()]].concat();
    let (status, text) = stage.run(&args).await;
    assert_eq!(status, 0, "{text}");
    assert_eq!(stage.serves(), [(key("v2"), 100.0)]);
    assert!(stage.report().contains("was promoted") && stage.report().contains("ana"), "{}", stage.report());
    let (status, text) = stage.run(&args).await;
    assert_eq!((status, stage.deployments().len()), (0, 2), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_under_which_an_alarm_fires_is_rolled_back_with_a_report() {
    let stage = Stage::set().await;
    let mut command = stage.command(&V2);
    let run = tokio::spawn(async move { said(&mut command).await });
    // As soon as the first instance serves it.
    while !stage.serves().iter().any(|(served, _)| *served == key("v2")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stage.aws.alarm_at("shop-errors", stage.aws.clock().now());
    let (status, text) = run.await.unwrap();
    assert_eq!(status, 1, "{text}");
    assert_eq!(stage.serves(), [(key("v1"), 100.0)], "{text}");
    let report = stage.report();
    assert!(report.contains("rolled back") && report.contains("shop-errors"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_cannot_be_installed_is_rolled_back_and_says_where() {
    let stage = Stage::set().await;
    stage.aws.codedeploy().break_at(&bundle("v2"), "ValidateService");
    let (status, text) = stage.run(&V2).await;
    assert_eq!(status, 1, "{text}");
    assert_eq!(stage.serves(), [(key("v1"), 100.0)]);
    assert!(stage.report().contains("ValidateService failed"), "{}", stage.report());
    // CodeDeploy's own rollback was followed: one of ours would be one too many.
    assert_eq!(stage.deployments().last().unwrap()["creator"], "codeDeployRollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_ends_with_2_and_a_closed_way_with_3() {
    let stage = Stage::set().await;
    let with = |args: &[&'static str]| [&["shop", "production", "--platform", "in-place"][..], args].concat();
    for (args, status, words) in [
        (with(&["--s3", "builds", "shop.zip"]), 2, "required"),
        (with(&["--alarms", "shop-errors"]), 2, "required"),
        (with(&["--alarms", "a", "--app-spec", "/no/such.json"]), 2, "cannot be read"),
        (vec!["shop", "nobody", "--platform", "ecs", "--s3", "b", "k", "--alarms", "shop-errors"], 2, "nobody"),
        (
            vec!["shop", "production", "--platform", "ecs", "--s3", "b", "k", "--alarms", "shop-errors"],
            3,
            "is taken for Ecs",
        ),
        (with(&["--s3", "builds", "shop.zip", "--alarms", "shop-errors", "--guarded"]), 3, "has no alarms of its own"),
        (
            with(&["--s3", "builds", "shop.zip", "--alarms", "shop-errors", "--config", "nothing"]),
            3,
            "no configuration",
        ),
        (with(&["--s3", "builds", "shop.zip", "v9", "--alarms", "shop-errors"]), 3, "no such version"),
    ] {
        let (got, text) = stage.run(&args).await;
        assert_eq!((got, text.contains(words)), (status, true), "{args:?}: {text}");
    }
    assert_eq!(stage.deployments().len(), 1, "something was deployed");
    let (status, text) = stage.run(&[&V2[..], &["--print-policy", "123456789012"]].concat()).await;
    assert_eq!((status, text.contains("deploymentgroup:shop/production")), (0, true), "{text}");
    assert!(text.contains("\"s3:GetObjectVersion\"") && text.contains("\"arn:aws:s3:::builds/*\""), "{text}");
    assert!(text.contains("\"cloudwatch:DescribeAlarms\"") && !text.contains("ecr:"), "{text}");
    let ecs = ["shop", "production", "--platform", "ecs", "--s3", "b", "k", "--alarms", "a", "--print-policy", "1"];
    let (status, text) = stage.run(&ecs).await;
    assert_eq!((status, text.contains("\"ecr:DescribeImages\"")), (0, true), "{text}");
    assert!(text.contains("\"ecs:DescribeTaskDefinition\""), "{text}");
    // What only moves at its own pace is given its time.
    takes_its_time(&stage).await;
}

/// A configuration that takes a quarter of an hour is refused within as much, and taken within more.
async fn takes_its_time(stage: &Stage) {
    let hands = stage.aws.codedeploy();
    hands.group("shop", "functions", &Shape::Lambda, "CodeDeployDefault.LambdaCanary10Percent15Minutes");
    let spec = |current: &str, target: &str| {
        json!({ "version": 0.0, "Resources": [{ "shop": { "Type": "AWS::Lambda::Function", "Properties": {
            "Name": "shop", "Alias": "live", "CurrentVersion": current, "TargetVersion": target } } }] })
        .to_string()
    };
    hands.serve("shop", "functions", &json!({ "appSpecContent": { "content": spec("0", "1") } }));
    std::fs::write(stage.file("appspec.json"), spec("1", "2")).unwrap();
    let file = stage.file("appspec.json");
    let args = ["shop", "functions", "--platform", "lambda", "--alarms", "shop-errors", "--app-spec"];
    let args = [&args[..], &[file.to_str().unwrap()]].concat();
    let (status, text) = stage.run(&args).await;
    assert!(status == 3 && text.contains("takes 15 min to move the traffic, and the plan allows 15 min"), "{text}");
    let (status, text) = stage.run(&[&args[..], &["--within", "16m"]].concat()).await;
    // No such function: the next thing that preflight looks for.
    assert!(status == 3 && text.contains("function shop has no version") && !text.contains("takes 15 min"), "{text}");
}
