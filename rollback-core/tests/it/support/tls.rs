//! A server that speaks TLS with a certificate of its own making.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

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

/// Speaks TLS in front of a server that does not, under the name `localhost`.
pub(crate) struct Secure {
    port: u16,
    /// Its certificate, as PEM.
    pub(crate) authority: String,
    task: tokio::task::JoinHandle<()>,
}

impl Secure {
    /// In front of the server at this address: `http://127.0.0.1:9090`. Nothing where there is no OpenSSL, which was said.
    pub(crate) async fn before(url: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let authority = certify(&certificate, &key).inspect_err(|why| super::skip("openssl", why)).ok()?;
        let chain = CertificateDer::pem_slice_iter(authority.as_bytes()).collect::<Result<_, _>>().unwrap();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let behind = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, behind) = (acceptor.clone(), behind.clone());
                tokio::spawn(async move {
                    // Who does not trust us goes away, which is what the tests want to see.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut plain = TcpStream::connect(behind).await.unwrap();
                    drop(copy_bidirectional(&mut stream, &mut plain).await);
                });
            }
        });
        Some(Self { port, authority, task })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.task.abort();
    }
}
