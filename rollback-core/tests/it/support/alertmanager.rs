//! An Alertmanager: the one that `ROLLBACK_TEST_ALERTMANAGER` names, else one of our own on a free port, with its data in
//! a temporary folder.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rollback_core::web::reqwest;
use serde_json::Value;

use super::prometheus::{client, stop};

/// A server, stopped when it is dropped.
pub(crate) struct Server {
    url: String,
    own: Option<Child>,
}

/// The server, or nothing where there is none, which was said.
pub(crate) async fn server() -> Option<Server> {
    match env::var("ROLLBACK_TEST_ALERTMANAGER") {
        Ok(url) => ready(Ok(Server { url: url.trim_end_matches('/').to_owned(), own: None })).await,
        Err(_) => own("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").await,
    }
}

/// One of our own with this configuration.
pub(crate) async fn own(config: &str) -> Option<Server> {
    ready(Server::start(config)).await
}

async fn ready(server: Result<Server, String>) -> Option<Server> {
    let server = match server {
        Ok(server) => server,
        Err(why) => {
            super::skip("alertmanager", &why);
            return None;
        }
    };
    let ready = async {
        while !client().get(format!("{}/-/ready", server.url)).send().await.is_ok_and(|a| a.status().is_success()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("Alertmanager must be ready within a minute");
    Some(server)
}

impl Server {
    fn start(config: &str) -> Result<Self, String> {
        let mut own = Command::new("sh")
            .args(["-c", SCRIPT])
            .env("CONFIG", config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("the shell does not start: {e}"))?;
        let mut log = BufReader::new(own.stdout.take().expect("it is piped")).lines();
        let mut last = String::new();
        let port = log.by_ref().map_while(Result::ok).find_map(|line| {
            let port = line.contains("\"Listening on\"").then(|| line.rsplit_once("address=127.0.0.1:"));
            last = line.clone();
            port.flatten().and_then(|(_, port)| port.trim().parse::<u16>().ok())
        });
        // It must not stop because nobody reads what it says.
        std::thread::spawn(move || log.for_each(drop));
        match port {
            Some(port) => Ok(Self { url: format!("http://127.0.0.1:{port}"), own: Some(own) }),
            None => {
                stop(&mut own);
                Err(format!("no alertmanager on the PATH that starts ({last:?}); set ROLLBACK_TEST_ALERTMANAGER"))
            }
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Posts to its API, as `alerts` or `silences`.
    pub(crate) async fn post(&self, what: &str, body: &Value) {
        let answer: reqwest::Response = client()
            .post(format!("{}/api/v2/{what}", self.url))
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .expect("it listens");
        let status = answer.status();
        assert!(status.is_success(), "{status}: {}", answer.text().await.unwrap_or_default());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(own) = &mut self.own {
            stop(own);
        }
    }
}

/// Ends with the process that started it, however that ends: then its standard input is closed. Debian's name comes
/// first, its makers' second. Without an empty cluster address it opens a port that all share.
const SCRIPT: &str = r#"
set -e
program=$(command -v prometheus-alertmanager || command -v alertmanager)
folder=$(mktemp -d "${TMPDIR:-/tmp}/rollback-alertmanager.XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap '' INT TERM
printf %s "$CONFIG" > "$folder/alertmanager.yml"
"$program" --config.file="$folder/alertmanager.yml" --storage.path="$folder/data" --log.level=info \
    --web.listen-address=127.0.0.1:0 --cluster.listen-address= 2>&1 < /dev/null &
server=$!
# Only the server holds it now, so that its end is heard.
exec > /dev/null
cat
kill -KILL $server
wait $server || true
"#;
