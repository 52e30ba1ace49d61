//! This program once more, as a process that a test may kill, or stop and continue.

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{Instant, sleep};

/// A child, which does not outlive the test.
pub(crate) struct Process(Child);

impl Process {
    /// Runs the ignored test of this name, with its job in this variable. What it says on standard error is added to this
    /// file.
    pub(crate) fn start(test: &str, variable: &str, job: &impl Serialize, stderr: &Path) -> Self {
        let stderr = fs::OpenOptions::new().append(true).create(true).open(stderr).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--ignored", "--nocapture"]);
        command.env(variable, serde_json::to_string(job).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        Self(command.spawn().expect("this program starts once more"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let send = format!("kill -{signal} {}", self.0.id());
        Command::new("sh").args(["-c", &send]).status().expect("there is a shell");
    }

    /// Its exit status, once it has ended.
    pub(crate) async fn ends(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().expect("it ends by itself");
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "process {} does not end", self.0.id());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
