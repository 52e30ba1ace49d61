//! heroku-release and heroku-promote as a person, or a workflow, runs them, on the fake behind a socket.

use std::{path::Path, process::Stdio, time::Duration};

use rollback_heroku::testing::{Heroku, Run, Serving, Slug, Token, Traffic};
use tokio::process::Command;

struct Stage {
    heroku: Heroku,
    serving: Serving,
    folder: tempfile::TempDir,
}

/// Real time: everything is as quick as it may be.
const QUICK: [&str; 8] = ["--bake", "3s", "--steady", "1s", "--every", "300ms", "--settle", "5s"];

impl Stage {
    async fn set() -> Self {
        let heroku = Heroku::new();
        heroku.takes(Duration::from_millis(300), Duration::from_millis(500));
        heroku.app("shop", Slug::good());
        let serving = heroku.serve().await.unwrap();
        Self { heroku, serving, folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).args(QUICK).args(["--api-url", self.serving.url(), "--by", "ana"]);
        command.arg("--store").arg(self.file("store.db")).arg("--report").arg(self.file("report.md"));
        command.env("HEROKU_API_KEY", Heroku::TOKEN).env("GITHUB_STEP_SUMMARY", self.file("summary.md"));
        command.env_remove("HTTP_PROXY").env_remove("http_proxy").kill_on_drop(true);
        command
    }

    /// Its status, and what it said.
    async fn run(&self, program: &str, args: &[&str]) -> (i32, String) {
        let output = self.command(program, args).output().await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!text.contains(Heroku::TOKEN) && !text.contains("hunter2"), "{text}");
        (output.status.code().unwrap(), text)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn descriptions(&self, app: &str) -> Vec<String> {
        self.heroku.releases(app).into_iter().map(|(_, _, text, _)| text).collect()
    }
}

const RELEASE: &str = env!("CARGO_BIN_EXE_heroku-release");
const PROMOTE: &str = env!("CARGO_BIN_EXE_heroku-promote");

#[tokio::test(flavor = "multi_thread")]
async fn a_good_slug_is_promoted_and_told_to_the_workflow() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug, "--because", "release 42"]).await;
    assert_eq!(status, 0, "{said}");
    assert_eq!(stage.heroku.serving("shop"), 2);
    let report = std::fs::read_to_string(stage.file("report.md")).unwrap();
    assert!(report.contains("was promoted") && report.contains("release 42") && report.contains("ana"), "{report}");
    assert_eq!(report, std::fs::read_to_string(stage.file("summary.md")).unwrap());
    // Once more is harmless, and says so.
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug]).await;
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("serves"), "{said}");
    assert_eq!(stage.heroku.releases("shop").len(), 2);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(stage.file("store.db")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "others may read the record: {mode:o}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tarball_whose_dynos_crash_is_rolled_back() {
    let stage = Stage::set().await;
    stage.heroku.builds_make("shop", Slug::that(Run::CrashAfter(Duration::from_millis(1800))));
    let tarball = stage.file("shop.tgz");
    std::fs::write(&tarball, "a tarball").unwrap();
    let (status, said) = stage.run(RELEASE, &["shop", "--tarball", tarball.to_str().unwrap()]).await;
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("has crashed") || said.contains("have crashed"), "{said}");
    assert_eq!(stage.descriptions("shop").last().unwrap(), "Rollback to v1");
    assert_eq!(stage.heroku.serving("shop"), 3);
    assert!(std::fs::read_to_string(stage.file("report.md")).unwrap().contains("rolled back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_slug_with_todays_config_is_the_way_back_where_that_is_asked_for() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::that(Run::CrashAtBoot));
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug, "--code-only"]).await;
    assert_eq!(status, 1, "{said}");
    assert!(
        stage.descriptions("shop")[2].starts_with("Back to v1 by rollback [shop-"),
        "{:?}",
        stage.descriptions("shop")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_ends_with_2_and_a_closed_way_with_3() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    let gone = "00000000-0000-4000-8000-00000000dead";
    for (args, status, words) in [
        (vec!["shop", "--slug", "v12"], 2, "a UUID is accepted"),
        (vec!["no-such-app", "--slug", &slug], 2, "Couldn't find that app"),
        (vec!["shop", "--tarball", "/no/such/file"], 2, "cannot be read"),
        (vec!["shop"], 2, "required"),
        (vec!["shop", "--slug", &slug, "--bake", "soon"], 2, "is no time"),
        (vec!["shop", "--slug", gone], 3, "is no slug of app shop"),
        (vec!["shop", "--image", "web=latest"], 2, "sha256:"),
    ] {
        let output = stage.command(RELEASE, &[]).args(&args).output().await.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // The bake is said twice there, which is bad input as well.
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(words) || args.contains(&"soon"), "{args:?}: {said}");
    }
    stage.heroku.maintenance("shop", true);
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug]).await;
    assert_eq!((status, said.contains("maintenance mode")), (3, true), "{said}");
    stage.heroku.token(Token::Revoked);
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug]).await;
    assert_eq!((status, said.contains("authorizations:create")), (2, true), "{said}");
    let mut command = stage.command(RELEASE, &["shop", "--slug", &slug]);
    let output = command.env_remove("HEROKU_API_KEY").env("HOME", "/nowhere").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "without a token");
    assert_eq!(stage.heroku.effects(), 0, "something was asked for");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    let mut command = stage.command(RELEASE, &["shop", "--slug", &slug]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while stage.heroku.releases("shop").len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().await.unwrap();
    // It waits for the lease, to see that the first is dead, and for whatever that one may have asked for unseen.
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug]).await;
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("it goes on from there"), "{said}");
    assert_eq!(stage.heroku.releases("shop").len(), 2, "released once");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_interrupted_ends_with_130_and_goes_on_at_once() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    let mut command = stage.command(RELEASE, &["shop", "--slug", &slug]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while stage.heroku.releases("shop").len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let id = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.code(), said.contains("run it again")), (Some(130), true), "{said}");
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug]).await;
    assert_eq!((status, said.contains("it goes on from there")), (0, true), "{said}");
    assert_eq!(stage.heroku.releases("shop").len(), 2, "released once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_heroku_lets_fail_both_ways_ends_with_4() {
    let stage = Stage::set().await;
    // Its release phase fails whenever it runs again.
    stage.heroku.app("shop", Slug::good().release_phase(Duration::from_millis(100)));
    stage.heroku.fail_release_phases("shop", &[false, false]);
    let slug = stage.heroku.slug("shop", Slug::that(Run::CrashAtBoot));
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug]).await;
    assert_eq!((status, said.contains("failed in its release phase: v2 still serves")), (4, true), "{said}");
    let descriptions = stage.descriptions("shop");
    assert_eq!(descriptions[2], "Rollback to v1");
    assert!(descriptions[3].starts_with("Back to v1 by rollback ["), "{descriptions:?}");
    assert_eq!(descriptions.len(), 4, "each way once");
    assert!(std::fs::read_to_string(stage.file("report.md")).unwrap().contains("stuck"));
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_release_ends_with_5_and_is_left_alone() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    let args = ["shop", "--slug", &slug];
    let run = stage.run(RELEASE, &args);
    let meddle = async {
        while stage.heroku.releases("shop").len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stage.heroku.set_config("shop", "FLAG", "hunter2");
    };
    let ((status, said), ()) = tokio::join!(run, meddle);
    assert_eq!((status, said.contains("Set FLAG config vars")), (5, true), "{said}");
    assert_eq!((stage.heroku.releases("shop").len(), stage.heroku.serving("shop")), (3, 3));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_read_from_the_netrc_file_where_the_environment_has_none() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    let netrc =
        format!("machine git.heroku.com\n  password no\nmachine api.heroku.com\n  password {}\n", Heroku::TOKEN);
    std::fs::write(stage.file(".netrc"), netrc).unwrap();
    let mut command = stage.command(RELEASE, &["shop", "--slug", &slug]);
    let output = command.env_remove("HEROKU_API_KEY").env("HOME", stage.folder.path()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_goes_to_the_canary_and_then_to_the_rest() {
    let stage = Stage::set().await;
    pipeline(&stage, Slug::good());
    let args = ["staging", "--to", "shop-canary", "--then", "shop-eu", "--then", "shop-us"];
    let (status, said) = stage.run(PROMOTE, &args).await;
    assert_eq!(status, 0, "{said}");
    for app in ["shop-canary", "shop-eu", "shop-us"] {
        assert_eq!(stage.heroku.serving(app), 2, "{app}");
    }
    let report = std::fs::read_to_string(stage.file("report.md")).unwrap();
    assert_eq!(report.matches("was promoted").count(), 2, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_canary_is_rolled_back_and_the_rest_never_hears_of_it() {
    let stage = Stage::set().await;
    pipeline(&stage, Slug::that(Run::CrashAtBoot));
    let args = ["staging", "--to", "shop-canary", "--then", "shop-eu"];
    let (status, said) = stage.run(PROMOTE, &args).await;
    assert_eq!(status, 1, "{said}");
    assert_eq!((stage.heroku.serving("shop-canary"), stage.heroku.releases("shop-eu").len()), (3, 1));
    assert_eq!(stage.descriptions("shop-canary").last().unwrap(), "Rollback to v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_on_metrics_that_are_not_there_is_refused_before_the_start() {
    let stage = Stage::set().await;
    let slug = stage.heroku.slug("shop", Slug::good());
    stage.heroku.traffic("shop", Traffic { ok: 100.0, ..Traffic::default() });
    stage.heroku.no_metrics();
    let (status, said) = stage.run(RELEASE, &["shop", "--slug", &slug, "--max-errors", "0.05"]).await;
    assert_eq!((status, said.contains("metrics API is not there")), (3, true), "{said}");
    assert_eq!(stage.heroku.releases("shop").len(), 1);
}

fn pipeline(stage: &Stage, slug: Slug) {
    stage.heroku.app("staging", Slug::good());
    stage.heroku.couple("staging", "staging");
    for app in ["shop-canary", "shop-eu", "shop-us"] {
        stage.heroku.app(app, Slug::good());
        stage.heroku.couple(app, "production");
    }
    let slug = stage.heroku.slug("staging", slug);
    stage.heroku.somebody_releases("staging", &slug);
}

#[test]
fn the_sample_workflow_calls_the_program_with_options_that_it_has() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/heroku-workflow.md")).unwrap();
    let help = std::process::Command::new(RELEASE).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout);
    let options: Vec<&str> =
        page.split([' ', '\n', '`']).filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(options.len() >= 5, "{options:?}");
    for option in options {
        let known = help.contains(option)
            || ["--features", "--bin", "--release", "--format=tar.gz", "--output=shop.tgz"].contains(&option);
        assert!(known, "{option} is in the workflow and not in --help");
    }
}
