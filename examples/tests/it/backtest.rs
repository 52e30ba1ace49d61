//! judge-backtest as a person runs it.

use std::{fs, path::Path, process::Command};

/// Its status, and what it said.
fn run(file: &str, options: &[&str]) -> (i32, String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(file);
    let mut command = Command::new(env!("CARGO_BIN_EXE_judge-backtest"));
    let output = command.arg(file).args(options).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[test]
fn a_regression_in_a_table_is_found_and_dated() {
    let (status, said) = run("regression.csv", &["--evidence"]);
    assert_eq!(status, 1, "{said}");
    // It begins with the sample at 110 seconds.
    assert!(
        said.contains("2026-01-01T00:01:50Z  unhealthy") || said.contains("2026-01-01T00:02:00Z  unhealthy"),
        "{said}"
    );
    assert!(said.contains("would have been rolled back") && said.contains("\"odds_borne\": 1.5"), "{said}");
    let (status, said) = run("regression.csv", &["--odds", "40"]);
    assert_eq!(status, 0, "as bad as that is borne: {said}");
}

#[test]
fn counters_that_restart_are_no_regression() {
    let (status, said) = run("healthy-counters.json", &["--cumulative"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("would not have been rolled back in 30 samples over 290 s"), "{said}");
    assert!(said.contains("what would have tripped it then"), "{said}");
    let (status, said) = run("healthy-counters.json", &["--cumulative", "--floor", "1000000"]);
    assert_eq!(status, 4, "{said}");
}

#[test]
fn what_a_prometheus_answered_is_judged() {
    let (status, said) = run("prometheus-range.json", &["--candidate", "v2", "--baseline", "v1"]);
    assert_eq!(status, 1, "{said}");
    let (status, said) = run("prometheus-range.json", &["--candidate", "v1", "--baseline", "v2"]);
    assert_eq!(status, 0, "{said}");
    let (status, said) = run("prometheus-range.json", &[]);
    assert_eq!(status, 2);
    assert!(said.contains("no series has the label version with the value candidate or baseline"), "{said}");
}

#[test]
fn bad_input_is_named() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (name, text, why) in [
        (
            "none.csv",
            "time,candidate_requests,candidate_failures,baseline_requests,baseline_failures\n",
            "has no samples",
        ),
        ("columns.csv", "time,requests\n1,2\n", "the first line has no column candidate_requests"),
        (
            "number.csv",
            "time,candidate_requests,candidate_failures,baseline_requests,baseline_failures\n1,2,x,3,4\n",
            "line 2: candidate_failures is \"x\"",
        ),
        (
            "time.csv",
            "time,candidate_requests,candidate_failures,baseline_requests,baseline_failures\nnoon,2,1,3,1\n",
            "the time \"noon\"",
        ),
        (
            "twice.csv",
            "time,candidate_requests,candidate_failures,baseline_requests,baseline_failures\n1,2,1,3,1\n1,2,1,3,1\n",
            "two samples",
        ),
        (
            "more.csv",
            "time,candidate_requests,candidate_failures,baseline_requests,baseline_failures\n1,2,3,3,1\n",
            "more failures than requests",
        ),
        ("error.json", r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#, "parse error"),
        ("vector.json", r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#, "is no matrix"),
        ("broken.json", "[{", "EOF"),
    ] {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        let (status, said) = run(file.to_str().unwrap(), &[]);
        assert_eq!(status, 2, "{name}: {said}");
        assert!(said.contains(why), "{name}: {said}");
    }
    assert_eq!(run("missing.csv", &[]).0, 2);
    let (status, said) = run("regression.csv", &["--alpha", "2"]);
    assert_eq!((status, said.contains("0.000001 to 0.5")), (2, true), "{said}");
}
