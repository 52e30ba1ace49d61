//! The quickstart as a person runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rollback_examples::{router::read_file, stage::Address};

/// A folder of its own for one test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn command(folder: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command.arg("--state").arg(folder).args(options).stdin(Stdio::null());
    command
}

/// Runs it to the end: its status as a shell sees it, and its report.
fn run(folder: &Path, options: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = command(folder, options).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    println!("{text}");
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    #[cfg(not(unix))]
    let signal = None;
    (status.code().or(signal).unwrap(), text)
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for wanted in wanted {
        let at = rest.find(wanted).unwrap_or_else(|| panic!("{wanted:?} is missing, or not in its place, in:\n{text}"));
        rest = &rest[at + wanted.len()..];
    }
}

fn address(folder: &Path) -> Address {
    read_file(&folder.join("router.json")).unwrap().expect("a router has been there")
}

/// Waits for the end of the router, which is the end of all.
#[track_caller]
fn nothing_runs(folder: &Path) {
    let users = address(folder).users;
    assert!(std::net::TcpStream::connect(users).is_err(), "somebody still answers at {users}");
}

/// How many user requests failed, by the report.
fn failed(text: &str) -> u64 {
    let users = text.lines().find(|line| line.trim_start().starts_with("users")).expect("a line about users");
    users.split(", ").nth(1).and_then(|failed| failed.split(' ').next()).and_then(|n| n.parse().ok()).expect(users)
}

#[test]
fn a_bad_release_is_rolled_back_and_the_report_says_what_it_cost() {
    let folder = folder("plain");
    let (status, text) = run(&folder, &[]);
    assert_eq!(status, 0);
    says(
        &text,
        &[
            "What happened to shop, v1 to v2",
            "asked: start v2",
            "asked: give v2 10 % of the traffic",
            "gate error-rate tripped",
            "asked: give v2 0 % of the traffic",
            "rolled back",
            "What it came to",
            "serves now  v1; running: v1",
            "gate        probe did not trip: /healthz",
            "restored",
            "the report is in",
        ],
    );
    let report = fs::read_to_string(folder.join("report.md")).unwrap();
    says(
        &report,
        &["# shop: v2 was rolled back", "v1 alone, as a look has shown", "gate | error-rate", "traffic restored"],
    );
    assert!(fs::read_to_string(folder.join("report.html")).unwrap().contains("shop: v2 was rolled back"));
    // 25 % of a tenth of the traffic for a few seconds; all of it would be hundreds.
    assert!((1..100).contains(&failed(&text)), "{}", failed(&text));
    nothing_runs(&folder);
}

#[test]
fn a_good_release_is_promoted_and_no_request_fails() {
    let folder = folder("healthy");
    let (status, text) = run(&folder, &["--healthy"]);
    assert_eq!(status, 0);
    says(&text, &["baking at 10 %", "baking at 50 %", "baking at 100 %", "promoted", "serves now  v2; running: v2"]);
    assert_eq!(failed(&text), 0);
    nothing_runs(&folder);
}

#[test]
fn killed_half_way_it_goes_on_from_there() {
    let folder = folder("crash");
    let (status, text) = run(&folder, &["--crash"]);
    assert_eq!(status, 137);
    assert!(!text.contains("What happened"), "it died before the end");
    let before = address(&folder);
    assert!(std::net::TcpStream::connect(before.users).is_ok(), "users are still served");

    let (status, text) = run(&folder, &[]);
    assert_eq!(status, 0);
    says(
        &text,
        &[
            &format!("http://{}/ (router found again)", before.users),
            "resuming it",
            "asked: start v2",
            "taken up by process",
            "gate error-rate tripped",
            "serves now  v1; running: v1",
        ],
    );
    assert_eq!(text.matches("asked: start v2").count(), 1, "it was not started over");
    nothing_runs(&folder);
}

#[cfg(unix)]
#[test]
fn the_router_may_die_with_it() {
    let folder = folder("both");
    assert_eq!(run(&folder, &["--healthy", "--crash"]).0, 137);
    let pid = address(&folder).pid.to_string();
    assert!(Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap().success());
    let (status, text) = run(&folder, &[]);
    assert_eq!(status, 0, "it is still the healthy one");
    says(&text, &["(router started)", "resuming it", "taken up by process", "promoted", "serves now  v2; running: v2"]);
    nothing_runs(&folder);
}

#[test]
fn a_folder_that_is_in_use_or_no_folder_is_bad_input() {
    let folder = folder("used");
    let mut first = command(&folder, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&folder.join("router.json"));
    let (status, text) = run(&folder, &[]);
    assert_eq!(status, 2);
    says(&text, &["another quickstart is using", "used"]);
    assert_eq!(first.wait().unwrap().code(), Some(0), "the first did not notice");

    let (status, text) = run(Path::new("/dev/null/folder"), &[]);
    assert_eq!(status, 2);
    says(&text, &["cannot use /dev/null/folder as state folder"]);
    assert_eq!(run(&folder, &["--no-such-option"]).0, 2);
}

#[expect(clippy::disallowed_methods, reason = "a plain thread waits for a file of another process")]
fn wait_for(file: &Path) {
    let end = Instant::now() + Duration::from_secs(30);
    while !file.exists() {
        assert!(Instant::now() < end, "{} did not appear", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
