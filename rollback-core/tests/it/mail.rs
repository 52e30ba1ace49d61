//! E-mail to a real SMTP server: aiosmtpd, in a Python that `ROLLBACK_TEST_PYTHON` names, else that of `.ci/test`.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use rollback_core::listener::{Email, Listener as _, Tell};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    self,
    events::{rolled_back, until},
    logs,
};

/// A server, stopped when it is dropped.
struct Smtp {
    port: u16,
    authority: String,
    process: Child,
    said: BufReader<ChildStdout>,
    _folder: TempDir,
}

impl Smtp {
    /// One that speaks TLS this way (`starttls`, `tls`, `none`), and is too busy for the first messages. Nothing where
    /// there is none, which was said.
    fn start(how: &str, busy: usize) -> Option<Self> {
        let python = python().or_else(|| {
            support::skip("smtp", "no Python with aiosmtpd; run .ci/test, or set ROLLBACK_TEST_PYTHON to one");
            None
        })?;
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let authority = support::tls::certify(&certificate, &key).inspect_err(|why| support::skip("smtp", why)).ok()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/smtp.py");
        let mut process = Command::new(python)
            .arg(script)
            .arg(how)
            .args([certificate, key])
            .arg(busy.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It tells of each talk that we break off.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        let mut port = String::new();
        said.read_line(&mut port).unwrap();
        let port = port.trim().parse().expect("the server says its port first");
        Some(Self { port, authority, process, said, _folder: folder })
    }

    fn email(&self) -> Email {
        let email = Email::new("localhost", "Rollouts <rollouts@example.com>", ["ops@example.com", "b@example.com"]);
        email.unwrap().port(self.port).tell(Tell::Ends)
    }

    /// Stops it, and tells all it said.
    fn stop(mut self) -> Vec<Value> {
        drop(self.process.stdin.take());
        let mut said = Vec::new();
        for line in self.said.by_ref().lines() {
            said.push(serde_json::from_str(&line.unwrap()).unwrap());
        }
        said
    }
}

impl Drop for Smtp {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        drop(self.process.wait());
    }
}

fn python() -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    let named = std::env::var_os("ROLLBACK_TEST_PYTHON").map(PathBuf::from);
    [named, Some(ours), Some("python3".into())].into_iter().flatten().find(|python| {
        let can = Command::new(python).args(["-c", "import aiosmtpd.controller"]).stderr(Stdio::null()).status();
        can.is_ok_and(|status| status.success())
    })
}

#[test]
fn a_report_is_mailed_over_tls_begun_either_way() {
    for how in ["starttls", "tls"] {
        let Some(server) = Smtp::start(how, 0) else { return };
        let email = if how == "tls" { server.email().tls_first().port(server.port) } else { server.email() };
        let email = email.trust(server.authority.as_bytes()).unwrap().login("ops", "s3cr3t");
        let tally = email.tally();
        rolled_back("checkout").iter().for_each(|event| email.on(event));
        drop(email);
        assert_eq!((tally.delivered(), tally.given_up(), tally.dropped()), (1, 0, 0), "{how}");
        let said = server.stop();
        let [mail] = said.as_slice() else { panic!("{how}: {said:?}") };
        assert_eq!((&mail["tls"], &mail["user"]), (&Value::Bool(true), &Value::from("ops")), "{how}");
        assert_eq!(mail["from"], "rollouts@example.com");
        assert_eq!(mail["to"], serde_json::json!(["ops@example.com", "b@example.com"]));
        let text = mail["text"].as_str().unwrap();
        assert!(text.contains("\r\nSubject: checkout: v2 was rolled back\r\n"), "{text}");
        assert!(text.contains("v1 alone, as a look has shown."), "{text}");
        assert!(text.contains("37 of 1,200 requests failed; at most 12 may"), "{text}");
    }
}

#[test]
fn a_server_that_speaks_no_tls_or_whose_authority_is_unknown_gets_no_mail_and_no_password_and_that_is_told_at_once() {
    logs::with("");
    for (how, says) in [
        ("none", "STARTTLS"),
        ("starttls", "; say trust with the certificate"),
        ("tls", "; say trust with the certificate"),
    ] {
        let Some(server) = Smtp::start(how, 0) else { return };
        let email = if how == "tls" { server.email().tls_first().port(server.port) } else { server.email() };
        // Where there is no TLS the authority would not help; where there is, it is not trusted.
        let email = email.login("ops", "s3cr3t");
        let (tally, events) = (email.tally(), rolled_back("checkout"));
        events.iter().for_each(|event| email.on(event));
        // Well before the tries that other troubles get.
        until("the mail is given up", || tally.given_up() == 1);
        drop(email);
        assert_eq!(tally.delivered(), 0, "{how}");
        assert_eq!(server.stop(), Vec::<Value>::new(), "{how}");
        let lines = logs::with(&format!("rollout={}", events[0].rollout.id()));
        assert!(lines.iter().any(|line| line.contains("given up") && line.contains(says)), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("tried again")), "{lines:#?}");
    }
}

#[test]
fn a_busy_server_is_tried_again_and_a_refusal_is_final() {
    logs::with("");
    let Some(server) = Smtp::start("starttls", 2) else { return };
    let email = server.email().trust(server.authority.as_bytes()).unwrap();
    let tally = email.tally();
    rolled_back("checkout").iter().for_each(|event| email.on(event));
    until("the mail is delivered", || tally.delivered() == 1);
    drop(email);
    let said = server.stop();
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!((&said[0]["busy"], &said[1]["busy"]), (&Value::Bool(true), &Value::Bool(true)));

    let Some(server) = Smtp::start("starttls", 0) else { return };
    let email = server.email().trust(server.authority.as_bytes()).unwrap().login("ops", "wr0ng-passw0rd");
    let tally = email.tally();
    rolled_back("checkout").iter().for_each(|event| email.on(event));
    until("the mail is given up", || tally.given_up() == 1);
    drop(email);
    assert_eq!(server.stop().len(), 1, "one login, refused");
    // The server's refusal says the password back.
    assert!(logs::with("given up").iter().any(|line| line.contains("took no message: status 535")));
    for secret in ["s3cr3t", "wr0ng-passw0rd"] {
        assert_eq!(logs::with(secret), [""; 0]);
    }
}

#[test]
fn nothing_from_outside_adds_a_header_or_hides_in_the_subject() {
    let Some(server) = Smtp::start("starttls", 0) else { return };
    let email = server.email().trust(server.authority.as_bytes()).unwrap();
    rolled_back("pay\u{202e}Bcc: evil@example.com").iter().for_each(|event| email.on(event));
    drop(email);
    let said = server.stop();
    let text = said[0]["text"].as_str().unwrap();
    let (headers, _) = text.split_once("\r\n\r\n").unwrap();
    assert!(!headers.lines().any(|line| line.starts_with("Bcc")), "{headers}");
    assert!(!text.contains('\u{202e}') && headers.contains("Subject: =?utf-8?"), "{headers}");
}

#[test]
fn a_server_that_never_greets_holds_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let email = Email::new("localhost", "a@example.com", ["b@example.com"]).unwrap().port(port);
    let tally = email.tally();
    let event = rolled_back("checkout").remove(0);
    for _ in 0..10 {
        email.on(&event);
    }
    let _held = listener.accept().unwrap();
    drop(email);
    assert_eq!((tally.delivered(), tally.given_up() + tally.dropped()), (0, 10), "{tally:?}");
}
