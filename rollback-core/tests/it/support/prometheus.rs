//! A Prometheus: the one that `ROLLBACK_TEST_PROMETHEUS` names, else one of our own on a free port, with its data in a
//! temporary folder. Samples are pushed by remote write, so that tests wait for no scrape.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use rollback_core::web::reqwest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::raw::Raw;

/// Tests that run side by side share one server; the last to end stops it.
static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// A server, stopped when it is dropped.
pub(crate) struct Server {
    url: String,
    own: Option<(Child, tempfile::TempDir)>,
}

/// The server, or nothing where there is none, which was said.
pub(crate) async fn server() -> Option<Arc<Server>> {
    let server = {
        let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.upgrade() {
            Some(server) => server,
            None => match Server::start() {
                Ok(server) => {
                    let server = Arc::new(server);
                    *shared = Arc::downgrade(&server);
                    server
                }
                Err(why) => {
                    super::skip("prometheus", &why);
                    return None;
                }
            },
        }
    };
    let http = client();
    let ready = async {
        while !http.get(format!("{}/-/ready", server.url)).send().await.is_ok_and(|answer| answer.status().is_success())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("Prometheus must be ready within a minute");
    Some(server)
}

impl Server {
    fn start() -> Result<Self, String> {
        if let Ok(url) = env::var("ROLLBACK_TEST_PROMETHEUS") {
            return Ok(Self { url: url.trim_end_matches('/').to_owned(), own: None });
        }
        Self::own(&[("prometheus.yml", "global: {}\n")], &[])
    }

    /// One of our own, with these files, the first of which is its configuration, and these options more.
    pub(crate) fn own(files: &[(&str, &str)], options: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).map_err(|e| e.to_string())?;
        }
        let mut own = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(format!("--config.file={}", folder.path().join(files[0].0).display()))
            .args(options)
            .env("FOLDER", folder.path())
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
            Some(port) => Ok(Self { url: format!("http://127.0.0.1:{port}"), own: Some((own, folder)) }),
            None => {
                stop(&mut own);
                Err(format!("no prometheus on the PATH that starts ({last:?}); set ROLLBACK_TEST_PROMETHEUS"))
            }
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Writes these series: a name with its labels, as `up{job="a"}`, and samples at seconds of the epoch.
    pub(crate) async fn push(&self, series: &[(&str, Vec<(f64, f64)>)]) {
        let mut request = Vec::new();
        for (name, samples) in series {
            field(&mut request, 1, &time_series(name, samples));
        }
        let answer = client()
            .post(format!("{}/api/v1/write", self.url))
            .header("Content-Encoding", "snappy")
            .header("Content-Type", "application/x-protobuf")
            .header("X-Prometheus-Remote-Write-Version", "0.1.0")
            .body(snappy(&request))
            .send()
            .await
            .expect("it takes samples");
        let status = answer.status();
        assert!(status.is_success(), "{status}: {}", answer.text().await.unwrap_or_default());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((own, _)) = &mut self.own {
            stop(own);
        }
    }
}

pub(crate) fn stop(own: &mut Child) {
    // The script waits for its standard input to end.
    drop(own.stdin.take());
    drop(own.wait());
}

/// A Prometheus that is not there any more.
pub(crate) async fn gone() -> String {
    super::raw::nobody().await
}

/// One that answers everything with these bytes.
pub(crate) async fn saying(body: &str) -> Raw {
    Raw::page("200 OK", "Content-Type: application/json\r\n", body).await
}

pub(crate) fn client() -> reqwest::Client {
    // Plain HTTP, yet the builder wants to know how TLS is spoken.
    trusting(rustls::RootCertStore::empty())
}

/// One that trusts this certificate, as PEM, and no other.
pub(crate) fn client_that_trusts(authority: &str) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM")).expect("a certificate");
    trusting(roots)
}

fn trusting(roots: rustls::RootCertStore) -> reqwest::Client {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().expect("a client")
}

/// `prometheus.TimeSeries` of `name{label="value",…}`: labels in order, then samples.
fn time_series(name: &str, samples: &[(f64, f64)]) -> Vec<u8> {
    let (metric, labels) = name.split_once('{').unwrap_or((name, "}"));
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
    let mut labels: Vec<(&str, &str)> = labels
        .map(|label| label.split_once('=').expect("a label has a value"))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .chain([("__name__", metric)])
        .collect();
    labels.sort_unstable();
    let mut out = Vec::new();
    for (name, value) in labels {
        let mut label = Vec::new();
        field(&mut label, 1, name.as_bytes());
        field(&mut label, 2, value.as_bytes());
        field(&mut out, 1, &label);
    }
    for (at, value) in samples {
        let mut sample = vec![0x09];
        sample.extend_from_slice(&value.to_le_bytes());
        sample.push(0x10);
        varint(&mut sample, (at * 1000.0).round() as u64);
        field(&mut out, 2, &sample);
    }
    out
}

/// A field of protobuf with a length.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Snappy's block format with nothing but literals: valid, and not shorter.
fn snappy(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, bytes.len() as u64);
    for chunk in bytes.chunks(60) {
        out.push((chunk.len() as u8 - 1) << 2);
        out.extend_from_slice(chunk);
    }
    out
}

/// Ends with the process that started it, however that ends: then its standard input is closed.
const SCRIPT: &str = r#"
set -e
trap 'rm -rf "$FOLDER"' EXIT
trap '' INT TERM
prometheus --storage.tsdb.path="$FOLDER/data" --web.listen-address=127.0.0.1:0 --web.enable-remote-write-receiver \
    --log.level=info "$@" 2>&1 < /dev/null &
server=$!
# Only the server holds it now, so that its end is heard.
exec > /dev/null
cat
kill -KILL $server
wait $server || true
"#;
