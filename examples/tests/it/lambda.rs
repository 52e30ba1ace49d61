//! lambda-canary as a person runs it, on the simulator behind a socket; and aws-simulator itself.

use std::{path::PathBuf, process::Stdio, time::Duration};

use rollback_aws::testing::{Server, Simulator, lambda::Build};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

const CANARY: &str = env!("CARGO_BIN_EXE_lambda-canary");
const SIMULATOR: &str = env!("CARGO_BIN_EXE_aws-simulator");

struct Stage {
    aws: Simulator,
    server: Server,
    folder: tempfile::TempDir,
}

impl Stage {
    /// `checkout:live` at version 1; version 2 is good, and half the calls of version 3 fail.
    async fn set() -> Self {
        let aws = Simulator::new();
        for build in [Build::new("v1"), Build::new("v2"), Build::new("v3").fails(0.5)] {
            aws.lambda().publish("checkout", &build);
        }
        aws.lambda().point("checkout", "live", "1", None);
        let server = aws.listen("127.0.0.1:0").await.unwrap();
        Self { aws, server, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = canary(args, &self.server.endpoint_url());
        command.arg("--store").arg(self.file("store.db")).arg("--report").arg(self.file("report.md"));
        command
    }

    /// Its status, and what it said.
    async fn run(&self, args: &[&str]) -> (i32, String) {
        said(&mut self.command(args)).await
    }

    /// What the alias is at: its version, and whether there is another.
    fn at(&self) -> (String, bool) {
        let alias = self.aws.lambda().alias("checkout", "live").unwrap();
        (alias.version, alias.other.is_some())
    }
}

fn canary(args: &[&str], endpoint: &str) -> Command {
    let mut command = Command::new(CANARY);
    command.args(args).args(["--bake", "500ms", "--every", "200ms", "--by", "ana", "--endpoint-url", endpoint]);
    command.env("AWS_SECRET_ACCESS_KEY", "hunter2").env("AWS_ACCESS_KEY_ID", "AKIDSOMEBODY");
    for name in ["HTTP_PROXY", "http_proxy", "AWS_PROFILE", "AWS_REGION", "GITHUB_STEP_SUMMARY"] {
        command.env_remove(name);
    }
    command.kill_on_drop(true);
    command
}

async fn said(command: &mut Command) -> (i32, String) {
    let output = command.output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("hunter2"), "{text}");
    (output.status.code().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_version_is_promoted_and_once_more_is_harmless() {
    let stage = Stage::set().await;
    let args = ["checkout:live", "--version", "2", "--smoke", "{}", "--because", "release 42"];
    let (status, text) = stage.run(&args).await;
    assert_eq!(status, 0, "{text}");
    assert_eq!(stage.at(), ("2".into(), false));
    let weights: Vec<f64> =
        stage.aws.lambda().writes().iter().filter_map(|it| it.weights.values().next().copied()).collect();
    assert_eq!(weights, [0.1, 0.5, 1.0]);
    let report = std::fs::read_to_string(stage.file("report.md")).unwrap();
    assert!(report.contains("was promoted") && report.contains("release 42") && report.contains("ana"), "{report}");
    let writes = stage.aws.lambda().writes().len();
    let (status, text) = stage.run(&args).await;
    assert_eq!((status, stage.aws.lambda().writes().len()), (0, writes), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_version_is_rolled_back_with_a_report_before_any_user_meets_it() {
    let stage = Stage::set().await;
    let args = ["checkout:live", "--version", "3", "--smoke", "{}", "--steps", "0,10,100"];
    let (status, text) = stage.run(&args).await;
    assert_eq!(status, 1, "{text}");
    assert_eq!(stage.at(), ("1".into(), false));
    let writes = stage.aws.lambda().writes();
    assert!(writes.iter().all(|it| it.weights.values().all(|share| *share == 0.0)), "{writes:?}");
    let report = std::fs::read_to_string(stage.file("report.md")).unwrap();
    assert!(report.contains("rolled back") && report.contains("of 3 calls of version 3 failed"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zip_is_published_and_promoted() {
    let stage = Stage::set().await;
    // What is uploaded takes the configuration that is there, and with it how the function behaves.
    stage.aws.lambda().publish("checkout", &Build::new("v4"));
    let zip = stage.file("checkout.zip");
    std::fs::write(&zip, "a zip").unwrap();
    let (status, text) = stage.run(&["checkout:live", "--zip", zip.to_str().unwrap(), "--smoke", "{}"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("checkout is published as version 5"), "{text}");
    assert_eq!(stage.at(), ("5".into(), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_ends_with_2_and_a_closed_way_with_3() {
    let stage = Stage::set().await;
    for (args, status, words) in [
        (vec!["checkout:live", "--version", "2"], 2, "required"),
        (vec!["checkout:live", "--smoke", "{}"], 2, "required"),
        (vec!["checkout", "--version", "2", "--smoke", "{}"], 2, "names no alias"),
        (vec!["checkout:dead", "--version", "2", "--smoke", "{}"], 2, "Cannot find alias"),
        (vec!["checkout:live", "--version", "2", "--smoke", "{"], 2, "is not JSON"),
        (vec!["checkout:live", "--version", "2", "--smoke", "{}", "--steps", "50,20,100"], 2, "step 2 of 3"),
        (vec!["checkout:live", "--zip", "/no/such.zip", "--smoke", "{}"], 2, "cannot be read"),
        (vec!["checkout:live", "--version", "99", "--smoke", "{}"], 3, "has no version 99"),
        (
            vec!["arn:aws:lambda:eu-west-1:123456789012:function:checkout:live", "--version", "2", "--smoke", "{}"],
            2,
            "in the alias's region",
        ),
    ] {
        let (got, text) = stage.run(&args).await;
        assert_eq!((got, text.contains(words)), (status, true), "{args:?}: {text}");
    }
    stage.aws.deny("lambda:UpdateAlias");
    let (status, text) = stage.run(&["checkout:live", "--version", "2", "--smoke", "{}"]).await;
    assert_eq!((status, text.contains("allow lambda:UpdateAlias")), (3, true), "{text}");
    assert_eq!(stage.aws.lambda().writes().len(), 1, "something was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_that_it_prints_is_all_that_it_needs() {
    let stage = Stage::set().await;
    let (status, text) = stage.run(&["checkout:live", "--version", "2", "--smoke", "{}", "--print-policy"]).await;
    assert_eq!(status, 0, "{text}");
    let (status, out) = stage.run(&["checkout:live", "--version", "2", "--smoke", "{}"]).await;
    assert_eq!(status, 0, "{out}");
    for called in stage.aws.calls().keys() {
        assert!(text.contains(&format!("{called:?}")), "{called} is called and not in {text}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::set().await;
    let args = ["checkout:live", "--version", "2", "--smoke", "{}"];
    let mut child = stage.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !stage.at().1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().await.unwrap();
    let (status, text) = stage.run(&args).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("it goes on from there"), "{text}");
    assert_eq!(stage.at(), ("2".into(), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulators_demo_has_a_good_version_and_a_bad_one() {
    let mut command = Command::new(SIMULATOR);
    command.args(["--listen", "127.0.0.1:0", "--demo"]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut simulator = command.spawn().unwrap();
    let mut lines = BufReader::new(simulator.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("it says where it listens");
    let endpoint = line.strip_prefix("listening at ").expect("it says where it listens");
    let folder = tempfile::tempdir().unwrap();
    for (version, wanted) in [("2", 0), ("3", 1)] {
        let mut command = canary(&["checkout:live", "--version", version, "--smoke", "{}"], endpoint);
        let (status, text) = said(command.arg("--store").arg(folder.path().join("store.db"))).await;
        assert_eq!(status, wanted, "version {version}: {text}");
    }
    let output = Command::new(SIMULATOR).args(["--listen", "nowhere"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
}
