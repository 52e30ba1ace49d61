//! The way into a cluster: credentials, timeouts, and one place where requests are sent and answers are sorted.

use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    fmt, mem,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::{
    Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::{Status, WatchEvent},
};
use rollback_core::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;

use crate::error;

/// The API server of one cluster, as one set of credentials sees it. Clones share connections.
///
/// Every call has a timeout, 10 seconds unless said otherwise, and is sent once: what may be asked again the engine asks
/// again, and a repeated write whose first answer was lost would be taken for somebody else's. `Retry-After` is handed
/// on and obeyed there.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
    manager: Arc<str>,
    timeout: Duration,
    server: Option<Arc<str>>,
    cluster: Option<Arc<str>>,
}

impl Client {
    /// The largest answer, in bytes: a page of 500 large objects.
    const MAX_ANSWER: usize = 64 << 20;

    /// The cluster of the environment: what `KUBECONFIG` names, else `~/.kube/config` where there is one, else the cluster
    /// that this process runs in.
    ///
    /// What is named is used or refused. A kubeconfig that cannot be used never leads to the cluster that the process
    /// happens to run in: that is another one.
    ///
    /// # Errors
    /// `Invalid` when there is none, or it cannot be used; the error names the file.
    pub async fn from_env() -> Result<Self> {
        // Not by kube's own `Config::infer`, which takes the cluster around it whatever is wrong with a kubeconfig.
        let files = kubeconfigs(env::var_os("KUBECONFIG"), env::home_dir());
        if files.is_empty() {
            return Self::new(Config::incluster().map_err(|e| {
                Error::invalid("no cluster is configured: no KUBECONFIG, no ~/.kube/config, and not in a pod")
                    .because(e)
            })?);
        }
        Self::from_files(&files, None).await
    }

    /// The cluster that this process runs in as a pod, by its service account.
    ///
    /// # Errors
    /// `Invalid` when it does not run in a cluster.
    pub fn in_cluster() -> Result<Self> {
        let config = Config::incluster();
        Self::new(
            config
                .map_err(|e| Error::invalid("this process does not run as a pod with a service account").because(e))?,
        )
    }

    /// The cluster of a kubeconfig file, in this context or else its current one.
    ///
    /// # Errors
    /// `Invalid` when the file cannot be read, is no kubeconfig, or has no such context.
    pub async fn from_kubeconfig(file: impl AsRef<Path>, context: Option<&str>) -> Result<Self> {
        Self::from_files(&[file.as_ref().to_owned()], context).await
    }

    /// As kubectl merges them: whatever says something first holds.
    async fn from_files(files: &[PathBuf], context: Option<&str>) -> Result<Self> {
        let mut merged = Kubeconfig::default();
        for file in files {
            let read = Kubeconfig::read_from(file).and_then(|read| merged.merge(read));
            merged = read.map_err(|e| unusable(slice::from_ref(file), e))?;
        }
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        Self::new(Config::from_custom_kubeconfig(merged, &options).await.map_err(|e| unusable(files, e))?)
    }

    /// A client that was made elsewhere: a proxy, an impersonation, a private authority. Leave out kube's own retries
    /// (`default_retry`): they repeat writes too.
    pub fn from_kube(kube: kube::Client) -> Self {
        Self { kube, manager: "rollback".into(), timeout: Duration::from_secs(10), server: None, cluster: None }
    }

    fn new(mut config: Config) -> Result<Self> {
        // Beside another provider rustls could not tell which is meant, and would panic.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may have been faster, and is as welcome.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        config.connect_timeout = Some(Duration::from_secs(3));
        // For what hangs in the middle of an answer. Watches are silent for longer, but no longer than this: their
        // server sends bookmarks, and ends them.
        config.read_timeout = Some(Duration::from_secs(60));
        config.reset_reader_on_write = true;
        config.default_retry = false;
        let server = server_of(&config.cluster_url);
        let kube = kube::Client::try_from(config)
            .map_err(|e| Error::invalid("the cluster's configuration cannot be used").because(e))?;
        Ok(Self { server: Some(server.into()), ..Self::from_kube(kube) })
    }

    /// Calls the cluster by this name, the same wherever this process runs and whichever way it takes to it.
    ///
    /// The ids of targets ([`Workload::target_id`](crate::Workload::target_id)) then go by the name, and else by
    /// [`server`](Self::server), which is an address and no name: in a pod it is one that another cluster may have too
    /// (`10.96.0.1` in every one that kubeadm made with its defaults), from outside the same cluster has another one, and of a
    /// client that was made elsewhere there is none. So name the cluster where a store is shared by tools that run in the
    /// pods of several clusters, by tools in and outside of one, or by clients that were made elsewhere.
    ///
    /// # Errors
    /// `Invalid` when it is not 1 to 253 bytes of ASCII without white space.
    pub fn named(mut self, cluster: &str) -> Result<Self> {
        if cluster.is_empty() || cluster.len() > 253 || !cluster.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid(format!(
                "the cluster is called {cluster:?}; 1 to 253 bytes of ASCII without white space are accepted"
            )));
        }
        self.cluster = Some(cluster.into());
        Ok(self)
    }

    /// With this name as the manager of the fields that are written (at most 128 bytes). Default `rollback`.
    #[must_use]
    pub fn field_manager(mut self, name: &str) -> Self {
        self.manager = name.into();
        self
    }

    /// Waits at most this long for an answer.
    #[must_use]
    pub const fn timeout(mut self, time: Duration) -> Self {
        self.timeout = time;
        self
    }

    /// The namespace of the context, of the pod, or `default`.
    pub fn namespace(&self) -> &str {
        self.kube.default_namespace()
    }

    /// Which API server it is, as its configuration names it: host, port where one is named, and path. In a pod it is
    /// what the pod is told, which another cluster's pods may be told too. None of a client that was made elsewhere.
    pub fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// What the cluster was [called](Self::named).
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    pub(crate) fn manager(&self) -> &str {
        &self.manager
    }

    /// Sends a request and reads its answer.
    ///
    /// Not by kube's own `request`, which writes an answer that it cannot read into the log: it may be a Secret.
    pub(crate) async fn call<T: DeserializeOwned>(&self, what: &str, request: Request<Vec<u8>>) -> Result<T> {
        let answered = async {
            let (code, body) = self.answer(what, request).await?;
            serde_json::from_slice(&body).map_err(|e| {
                let text = format!("{what}: the answer (status {}) is not what was asked for", code.as_u16());
                Error::new(ErrorKind::Internal, text).because(e)
            })
        };
        tokio::time::timeout(self.timeout, answered).await.unwrap_or_else(|_| Err(self.late(what)))
    }

    /// Sends a request whose answer is text: a container's log.
    pub(crate) async fn text(&self, what: &str, request: Request<Vec<u8>>) -> Result<String> {
        let answered = async {
            let (_, body) = self.answer(what, request).await?;
            Ok(String::from_utf8_lossy(&body).into_owned())
        };
        tokio::time::timeout(self.timeout, answered).await.unwrap_or_else(|_| Err(self.late(what)))
    }

    /// Begins a watch. Only its beginning has a timeout; its events come when they come.
    pub(crate) async fn events<T: Clone + DeserializeOwned>(
        &self,
        what: &str,
        mut request: Request<Vec<u8>>,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>>> + use<T>> {
        // From 1.37 on every event is compressed by itself, and kube's client would read no further than the first.
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let begun = tokio::time::timeout(self.timeout, self.send(what, request)).await;
        let (_, body) = begun.map_err(|_| self.late(what))??;
        let what: Arc<str> = what.into();
        let lines = stream::try_unfold(Lines::of(body), async |mut lines| Ok(lines.next().await?.zip(Some(lines))));
        Ok(lines.map(move |line| {
            let line = line.map_err(|e| broken_off(&what, e))?;
            serde_json::from_slice(&line).map_err(|e| {
                let text = format!("{what}: an event is not what was asked for");
                Error::new(ErrorKind::Internal, text).because(e)
            })
        }))
    }

    async fn answer(&self, what: &str, request: Request<Vec<u8>>) -> Result<(StatusCode, Vec<u8>)> {
        let (code, body) = self.send(what, request).await?;
        read(body).await.map(|body| (code, body)).map_err(|e| broken_off(what, e))
    }

    /// Sends a request that succeeds; what is said to one that does not is sorted.
    ///
    /// Watches too: by kube's own `request_events` what a header says of how long to wait would be lost, and a busy API
    /// server says it nowhere else.
    async fn send(&self, what: &str, mut request: Request<Vec<u8>>) -> Result<(StatusCode, Body)> {
        request.headers_mut().entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
        let answer = self.kube.send(request.map(Body::from)).await.map_err(|e| error::sent(what, e))?;
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok((head.status, body));
        }
        let body = read(body).await.map_err(|e| broken_off(what, e))?;
        // A proxy's page is no Status: then the number alone has to do.
        let said = serde_json::from_slice::<Status>(&body).unwrap_or_default();
        let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Err(error::status(what, head.status, &said, after.map(Duration::from_secs)))
    }

    fn late(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{what}: no answer within {:?}", self.timeout))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("namespace", &self.namespace()).finish_non_exhaustive()
    }
}

fn unusable(files: &[PathBuf], error: KubeconfigError) -> Error {
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let said = format!("the kubeconfig {} cannot be used", files.join(", "));
    match error {
        // Its text shows the lines around, and tokens are in them.
        KubeconfigError::Parse(e) => {
            let at = e.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
            Error::invalid(format!("{said}: it is not YAML of a kubeconfig{}", at.unwrap_or_default()))
        }
        e => Error::invalid(said).because(e),
    }
}

/// The files that are named, or the one that is there without being named.
fn kubeconfigs(named: Option<OsString>, home: Option<PathBuf>) -> Vec<PathBuf> {
    let named: Vec<PathBuf> =
        named.iter().flat_map(env::split_paths).filter(|file| !file.as_os_str().is_empty()).collect();
    if !named.is_empty() {
        return named;
    }
    let usual = home.map(|home| home.join(".kube").join("config"));
    // One that may not even be looked at is there.
    usual.into_iter().filter(|file| !matches!(file.try_exists(), Ok(false))).collect()
}

/// Without a name and password, which an address may have.
fn server_of(address: &http::Uri) -> String {
    let (host, path) = (address.host().unwrap_or_default(), address.path().trim_end_matches('/'));
    address.port_u16().map_or_else(|| format!("{host}{path}"), |port| format!("{host}:{port}{path}"))
}

async fn read(body: Body) -> Result<Vec<u8>, BoxError> {
    Ok(Limited::new(body, Client::MAX_ANSWER).collect().await?.to_bytes().to_vec())
}

fn broken_off(what: &str, error: BoxError) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what}: the answer broke off")).because(error)
}

/// An answer line by line, as it comes.
struct Lines {
    body: Body,
    whole: VecDeque<Vec<u8>>,
    begun: Vec<u8>,
}

impl Lines {
    const fn of(body: Body) -> Self {
        Self { body, whole: VecDeque::new(), begun: Vec::new() }
    }

    /// None at the end; what has no end of line by then was cut, and is nothing.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, BoxError> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await.transpose()? else { return Ok(None) };
            let Ok(data) = frame.into_data() else { continue };
            let mut parts = data.split(|byte| *byte == b'\n');
            self.begun.extend_from_slice(parts.next().unwrap_or_default());
            for part in parts {
                self.whole.push_back(mem::replace(&mut self.begun, part.to_vec()));
            }
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const USER_AGENT: &str = concat!("rollback-k8s/", env!("CARGO_PKG_VERSION"));
