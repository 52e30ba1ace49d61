//! A server that speaks TLS with a certificate of its own making.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// A certificate for `localhost`, signed by itself; it as PEM.
pub(crate) fn certify(certificate: &Path, key: &Path) -> Result<String, String> {
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost".split(' '),
        )
        .args("-addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE".split(' '))
        .arg("-keyout")
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .stderr(Stdio::null())
        .status();
    match made {
        Ok(status) if status.success() => Ok(fs::read_to_string(certificate).unwrap()),
        status => Err(format!("openssl makes no certificate: {status:?}")),
    }
}

/// OpenSSL's own server, which answers every GET with a page about the connection.
pub(crate) struct Secure {
    port: u16,
    /// Its certificate, as PEM.
    pub(crate) authority: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Secure {
    /// Nothing where there is no OpenSSL, which was said.
    pub(crate) fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let authority = certify(&certificate, &key).inspect_err(|why| super::skip("openssl", why)).ok()?;
        let mut process = Command::new("openssl")
            .args(["s_server", "-www", "-accept", "127.0.0.1:0", "-cert"])
            .arg(certificate)
            .arg("-key")
            .arg(key)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let port =
            said.lines().find_map(|line| line.unwrap().strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.parse().ok());
        Some(Self { port: port.expect("the server says where it listens"), authority, process, _folder: folder })
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/", self.port)
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
