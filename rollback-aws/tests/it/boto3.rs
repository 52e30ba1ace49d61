//! The simulator before a client that nobody here wrote: boto3, in a Python that `ROLLBACK_TEST_PYTHON` names, else that of
//! `.ci/test`. Its raw answers are checked against AWS's own models; and MiniStack and moto, emulators of others, are put
//! through the same exchanges.
//!
//! What an emulator takes is no evidence; what it refuses is. So their differences are listed one by one, with the reason
//! why ours is right, in `tests/boto3/ministack.json` and `moto.json`; one that is not listed fails the test, and so does one
//! that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rollback_aws::{
    cloudformation, cloudwatch, codedeploy, codepipeline, dynamodb, ecr, ecs, lambda, route53, sns,
    testing::{
        Refusal, Simulator,
        clock::VirtualClock,
        fault::{Fault, Trouble},
    },
};
use rollback_core::clock::{Clock as _, SystemClock};
use serde::Deserialize;

/// What is run: a service, and after the slash the protocol where it is not boto3's own choice.
const SERVICES: &[&str] = &[
    "cloudformation",
    "cloudwatch",
    "cloudwatch/smithy-rpc-v2-cbor",
    "codedeploy",
    "codepipeline",
    "dynamodb",
    "ecr",
    "ecs",
    "lambda",
    "logs",
    "route53",
    "s3",
    "sns",
];

/// What MiniStack is put through: it knows no CodeDeploy, no CodePipeline and no service deployments of ECS.
const MINISTACKS: &[&str] = &[
    "cloudformation",
    "cloudwatch",
    "cloudwatch/smithy-rpc-v2-cbor",
    "dynamodb",
    "ecr",
    "ecs:BASICS",
    "lambda",
    "logs",
    "route53",
    "s3",
    "sns",
];

/// What moto is put through: of Lambda and CloudWatch it has too little.
const MOTOS: &[&str] = &["dynamodb", "ecr", "route53", "s3", "sns"];

/// One exchange as `run.py` tells it.
#[derive(Debug, Deserialize)]
struct Exchange {
    step: String,
    operations: Vec<String>,
    outcome: String,
    shown: serde_json::Value,
    as_wanted: bool,
    wanted: String,
    faults: Vec<String>,
}

/// A difference of an emulator's that is known.
#[derive(Debug, Deserialize)]
struct Known {
    step: String,
    /// What comes of it there.
    theirs: String,
    /// Why it is ours that is right, or why it does not matter.
    why: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boto3")
}

/// A Python with boto3. None where there is none, which was said.
fn python() -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    let named = std::env::var_os("ROLLBACK_TEST_PYTHON").map(PathBuf::from);
    let found = [named, Some(ours), Some("python3".into())].into_iter().flatten().find(|python| {
        let can = Command::new(python).args(["-c", "import boto3, cbor2"]).stderr(Stdio::null()).status();
        can.is_ok_and(|status| status.success())
    });
    if found.is_none() {
        skip("boto3", "no Python with boto3 and cbor2; run .ci/test, or set ROLLBACK_TEST_PYTHON to one");
    }
    found
}

/// Says on standard error that a test is skipped.
fn skip(missing: &str, why: &str) {
    let required = std::env::var("ROLLBACK_TEST_REQUIRE").unwrap_or_default();
    let required = required.split([',', ' ']).any(|name| name == "all" || name == missing);
    assert!(!required, "ROLLBACK_TEST_REQUIRE asks for {missing}: {why}");
    writeln!(std::io::stderr(), "skipped, {missing} is missing: {why}").expect("standard error is open");
}

/// Puts the server at this address through all exchanges.
async fn run(python: &Path, endpoint: &str, services: &[&str]) -> Vec<Exchange> {
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(folder().join("run.py"))
        .arg(endpoint)
        .args(services)
        .env("AWS_EC2_METADATA_DISABLED", "true");
    // Whatever this machine says of AWS is none of the test's business.
    for name in ["AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    let run = tokio::task::spawn_blocking(move || command.output());
    let Output { status, stdout, stderr } = run.await.expect("it does not panic").expect("Python starts");
    assert!(status.success(), "run.py: {}", String::from_utf8_lossy(&stderr));
    let lines = String::from_utf8(stdout).expect("JSON");
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// A simulator that is as fast as boto3: what takes Lambda a minute takes it a second.
fn simulator() -> Simulator {
    let now = SystemClock.now();
    let aws = Simulator::at(VirtualClock::starting(now).pace(10), rollback_aws::testing::REGION);
    aws.route53().rate(None);
    aws
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_every_answer_as_awss_models_and_the_table_want_it() {
    let Some(python) = python() else { return };
    let aws = simulator();
    let server = aws.listen("127.0.0.1:0").await.unwrap();
    let exchanges = run(&python, &server.endpoint_url(), SERVICES).await;
    let wrong: Vec<&Exchange> = exchanges.iter().filter(|it| !it.as_wanted || !it.faults.is_empty()).collect();
    assert!(wrong.is_empty(), "{} of {} exchanges: {wrong:#?}", wrong.len(), exchanges.len());

    let ran: BTreeSet<&str> = exchanges.iter().flat_map(|it| &it.operations).map(String::as_str).collect();
    let lists = [
        cloudformation::ROLLOUT,
        codepipeline::ROLLOUT,
        lambda::ROLLOUT,
        lambda::PUBLISH,
        cloudwatch::LOOK,
        cloudwatch::MEASURE,
        cloudwatch::KEEP,
        cloudwatch::EXPLAIN,
        codedeploy::ROLLOUT,
        codedeploy::BESIDES,
        &[codedeploy::PUT_HOOK],
        dynamodb::STORE,
        &[ecr::GET_IMAGES],
        ecs::REGISTER,
        ecs::ROLLOUT,
        ecs::SET,
        route53::ROLLOUT,
        &[sns::PUBLISH, sns::LOOK],
    ];
    let called = lists.into_iter().flatten().map(|permission| permission.action);
    for action in called {
        let (_, operation) = action.split_once(':').expect("service:Operation");
        assert!(ran.contains(operation), "the library calls {action}, and no exchange of the table does");
    }
    // Its actions have other names.
    assert!(ran.contains("HeadObject"), "the library looks at objects of S3, and no exchange of the table does");
    eprintln!("boto3: {} exchanges over {} operations, none violating", exchanges.len(), ran.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_field_or_code_that_is_wrong_is_found() {
    let Some(python) = python() else { return };
    let good = r#""AliasArn":"arn:aws:lambda:us-east-1:123456789012:function:canaried:live","Name":"live""#;
    let page = |body: &'static str| Trouble::Page { status: 200, body };
    let leak = |rest: &str| page(Box::leak(format!("{{{good},{rest}}}").into_boxed_str()));
    for (trouble, found) in [
        (leak(r#""FunctionVersion":"1","Colour":"red""#), "unknown member"),
        (leak(r#""FunctionVersion":1"#), "not a string"),
        (leak(r#""FunctionVersion":"one""#), "does not match"),
        (leak(r#""FunctionVersion":"1","RoutingConfig":null"#), "null"),
        (leak(r#""FunctionVersion":"1","RoutingConfig":{"AdditionalVersionWeights":{"2":1.5}}"#), "is more than 1.0"),
        (page("<html>"), "cannot be read"),
        (Trouble::Refuse(Refusal::new(400, "AliasAsleepException", "It sleeps")), "is not declared for it"),
        (Trouble::Refuse(Refusal::new(400, "ResourceNotFoundException", "Not here")), "instead of 404"),
    ] {
        let aws = simulator();
        aws.fault(Fault::of("lambda:GetAlias", trouble.clone()));
        let server = aws.listen("127.0.0.1:0").await.unwrap();
        let exchanges = run(&python, &server.endpoint_url(), &["lambda"]).await;
        let faults: Vec<&String> = exchanges.iter().flat_map(|it| &it.faults).collect();
        assert!(faults.iter().any(|fault| fault.contains(found)), "{trouble:?}: {faults:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_ministack_differs_is_known_and_explained() {
    let Some(python) = python() else { return };
    let Some(ministack) = Emulator::ministack().await else { return };
    compare(&python, &ministack, MINISTACKS, "ministack.json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_moto_differs_is_known_and_explained() {
    let Some(python) = python() else { return };
    let Some(moto) = Emulator::moto().await else { return };
    compare(&python, &moto, MOTOS, "moto.json").await;
}

/// Puts an emulator through the exchanges, and holds what comes of it against the list of what is known.
async fn compare(python: &Path, emulator: &Emulator, services: &[&str], list: &str) {
    let exchanges = run(python, &emulator.endpoint, services).await;
    let listed = std::fs::read_to_string(folder().join(list)).expect("the list is there");
    let listed: Vec<Known> = serde_json::from_str(&listed).expect("the list can be read");
    let mut known: BTreeMap<&str, &Known> = listed.iter().map(|it| (it.step.as_str(), it)).collect();
    assert_eq!(known.len(), listed.len(), "a step is listed twice");
    let mut news = Vec::new();
    for it in &exchanges {
        let theirs = theirs(it);
        match (known.remove(it.step.as_str()), theirs) {
            (Some(known), Some(theirs)) => {
                assert!(known.why.len() > 20, "{known:?} explains nothing");
                if known.theirs != theirs {
                    news.push(format!("{}: {theirs}, and the list says {}", it.step, known.theirs));
                }
            }
            (Some(known), None) => news.push(format!("{}: no difference any more; was {}", it.step, known.theirs)),
            (None, Some(theirs)) => news.push(format!("{}: {theirs}", it.step)),
            (None, None) => {}
        }
    }
    assert!(known.is_empty(), "listed, and no exchange: {:?}", known.keys());
    assert!(news.is_empty(), "differences that {list} does not tell:\n{}", news.join("\n"));
    eprintln!("{list}: {} exchanges, {} differences, all listed", exchanges.len(), listed.len());
}

/// In which way an emulator's answer is not what the table wants.
fn theirs(it: &Exchange) -> Option<String> {
    if it.as_wanted {
        return None;
    }
    Some(match (it.outcome == it.wanted, it.outcome.as_str()) {
        (true, _) => format!("shows {}", it.shown),
        (false, "ok") => format!("takes it, instead of {}", it.wanted),
        (false, code) => format!("{code} instead of {}", it.wanted),
    })
}

/// An emulator of others, stopped when it is dropped.
pub(crate) struct Emulator {
    pub(crate) endpoint: String,
    process: Child,
    _home: tempfile::TempDir,
}

impl Emulator {
    /// The program that `ROLLBACK_TEST_MINISTACK` names, else the one on the PATH. None where there is none, which was said.
    pub(crate) async fn ministack() -> Option<Self> {
        Self::start("ministack", "ROLLBACK_TEST_MINISTACK", "ministack", |command, port| {
            // It listens on all addresses unless it is told.
            command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port);
        })
        .await
    }

    /// The `moto_server` that `ROLLBACK_TEST_MOTO` names, else the one on the PATH. None where there is none, which was said.
    pub(crate) async fn moto() -> Option<Self> {
        Self::start("moto", "ROLLBACK_TEST_MOTO", "moto_server", |command, port| {
            command.args(["-H", "127.0.0.1", "-p", port]);
        })
        .await
    }

    async fn start(what: &str, named: &str, else_: &str, arrange: impl Fn(&mut Command, &str)) -> Option<Self> {
        let program = std::env::var_os(named).map_or_else(|| else_.into(), PathBuf::from);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program);
        command.env("HOME", home.path());
        arrange(&mut command, &port.to_string());
        command.current_dir(home.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(process) = command.spawn() else {
            skip(what, &format!("no such program; run .ci/test, or set {named} to it"));
            return None;
        };
        let mut started = Self { endpoint: format!("http://127.0.0.1:{port}"), process, _home: home };
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(started);
            }
            let ended = started.process.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended at once: {ended:?}", program.display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} did not listen within a minute", program.display());
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
