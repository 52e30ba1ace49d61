//! The platform of the quickstart: a weighted reverse proxy that starts and stops the releases it is told of.
//!
//! Its admin port takes one document, the [`Split`], against a version, as a Lambda alias or a Kubernetes object does.
//! It accepts a change before it carries it out, so a caller has to look until it has arrived.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{Method, Request, Response, StatusCode, body::Bytes, header::IF_MATCH};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    process::Command,
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    admin::{Counts, Instance, Seen, Split},
    http,
    service::Build,
};

/// A running router. Dropping it ends it and its releases.
#[derive(Debug)]
pub struct Router {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
    /// Where users go.
    pub users: SocketAddr,
    /// Where the split is changed.
    pub admin: SocketAddr,
}

impl Router {
    /// Starts a router that keeps its split in `file`, or finds it there. `program service <build>` starts a release.
    ///
    /// # Errors
    /// When no port is to be had, or the file cannot be read or written.
    pub async fn start(program: PathBuf, file: PathBuf, first: Split) -> std::io::Result<Self> {
        let kept = match read_file(&file)? {
            Some(kept) => kept,
            None => Kept { version: 1, split: first },
        };
        kept.write(&file)?;
        let shared = Arc::new(Shared {
            program,
            file,
            kept: Mutex::new(kept),
            running: Mutex::default(),
            counts: Mutex::default(),
            turn: AtomicU64::new(0),
            heard: Mutex::new(Instant::now()),
            ended: Notify::new(),
        });
        shared.carry_out();
        let users = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addresses = (users.local_addr()?, admin.local_addr()?);
        let (for_users, for_admin) = (Arc::clone(&shared), Arc::clone(&shared));
        let serving = tokio::spawn(http::serve(users, move |request| Arc::clone(&for_users).forward(request)));
        let steering = tokio::spawn(http::serve(admin, move |request| {
            let shared = Arc::clone(&for_admin);
            async move { shared.steer(&request) }
        }));
        let tasks = [serving.abort_handle(), steering.abort_handle()];
        Ok(Self { shared, tasks, users: addresses.0, admin: addresses.1 })
    }

    /// Waits until somebody asks for the end, or nobody has asked anything for this long.
    pub async fn ended(&self, idle: Duration) {
        let left_alone = async {
            loop {
                let heard = *lock(&self.shared.heard);
                tokio::time::sleep_until(heard + idle).await;
                if *lock(&self.shared.heard) == heard {
                    break;
                }
            }
        };
        tokio::select! { () = self.shared.ended.notified() => {}, () = left_alone => {} }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        lock(&self.shared.running).clear();
    }
}

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    file: PathBuf,
    kept: Mutex<Kept>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
    counts: Mutex<BTreeMap<String, Counts>>,
    turn: AtomicU64,
    heard: Mutex<Instant>,
    ended: Notify,
}

/// What outlives the router.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    version: u64,
    split: Split,
}

impl Kept {
    fn write(&self, file: &Path) -> std::io::Result<()> {
        write_file(file, self)
    }
}

impl Shared {
    /// Answers the admin port.
    fn steer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        // A Prometheus asks for ever, and is no reason to stay.
        if request.uri().path() != "/metrics" {
            *lock(&self.heard) = Instant::now();
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/split") => json(&self.seen()),
            (&Method::GET, "/counts") => json(&*lock(&self.counts)),
            (&Method::GET, "/metrics") => exposition(&self.counted()),
            (&Method::PUT, "/split") => match self.put(request) {
                Ok(()) => json(&self.seen()),
                Err((status, why)) => http::text(status, why),
            },
            (&Method::DELETE, "/") => {
                self.ended.notify_one();
                http::text(StatusCode::ACCEPTED, "good bye\n")
            }
            _ => {
                http::text(StatusCode::NOT_FOUND, "there is GET and PUT /split, GET /counts, GET /metrics, DELETE /\n")
            }
        }
    }

    /// Takes a split, if it names the current version.
    fn put(&self, request: &Request<Bytes>) -> Result<(), (StatusCode, String)> {
        let refuse = |status, why: String| Err((status, why));
        let Some(expected) = request.headers().get(IF_MATCH) else {
            return refuse(StatusCode::PRECONDITION_REQUIRED, "say which version this replaces: if-match".into());
        };
        let split: Split = match serde_json::from_slice(request.body()) {
            Ok(split) => split,
            Err(e) => return refuse(StatusCode::BAD_REQUEST, format!("not a split: {e}")),
        };
        if split.weight > 100 || (split.canary.is_none() && split.weight > 0) {
            return refuse(StatusCode::BAD_REQUEST, format!("nobody can get {} % of the traffic", split.weight));
        }
        if split.canary.as_ref().is_some_and(|canary| canary.release == split.stable.release) {
            return refuse(StatusCode::BAD_REQUEST, "two releases of one name".into());
        }
        let mut kept = lock(&self.kept);
        if expected.as_bytes() != kept.version.to_string().as_bytes() {
            return refuse(StatusCode::PRECONDITION_FAILED, format!("the version is {} by now", kept.version));
        }
        let next = Kept { version: kept.version + 1, split };
        if let Err(e) = next.write(&self.file) {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("writing {}: {e}", self.file.display()));
        }
        *kept = next;
        drop(kept);
        self.carry_out();
        Ok(())
    }

    /// Starts what shall stand and does not, and lets go of what shall not.
    fn carry_out(&self) {
        let kept = lock(&self.kept);
        let wanted = [Some(&kept.split.stable), kept.split.canary.as_ref()];
        let mut running = lock(&self.running);
        running.retain(|_, running| {
            wanted.contains(&Some(&running.build)) && !matches!(*running.instance.borrow(), Instance::Down(_))
        });
        for build in wanted.into_iter().flatten() {
            running
                .entry(build.release.clone())
                .or_insert_with(|| Arc::new(Running::start(&self.program, build.clone())));
        }
    }

    fn seen(&self) -> Seen {
        let kept = lock(&self.kept).clone();
        let running = lock(&self.running);
        let instances =
            running.iter().map(|(name, running)| (name.clone(), running.instance.borrow().clone())).collect();
        Seen { pid: std::process::id(), version: kept.version, split: kept.split, instances }
    }

    /// The counts, from zero for a release that nobody has asked yet: a counter that appears with its first failure hides
    /// that failure from `rate`.
    fn counted(&self) -> BTreeMap<String, Counts> {
        let mut counts = lock(&self.counts).clone();
        for release in lock(&self.running).keys() {
            counts.entry(release.clone()).or_default();
        }
        counts
    }

    /// Passes a user's request on, by weight, and counts what came of it.
    async fn forward(self: Arc<Self>, mut request: Request<Bytes>) -> Response<Bytes> {
        let begun = Instant::now();
        let release = self.choose();
        // Held until the answer is passed on: a release that is let go of finishes what it has begun.
        let running = lock(&self.running).get(&release).cloned();
        let instance = running.as_ref().map(|running| running.instance.borrow().clone());
        request.headers_mut().remove(hyper::header::CONNECTION);
        let answer = match instance {
            Some(Instance::Up(at)) => http::send(at, request)
                .await
                .unwrap_or_else(|e| http::text(StatusCode::BAD_GATEWAY, format!("{release}: {}\n", e.chain()))),
            _ => http::text(StatusCode::SERVICE_UNAVAILABLE, format!("{release} is not up\n")),
        };
        let mut counts = lock(&self.counts);
        let counts = counts.entry(release).or_default();
        counts.requests += 1;
        counts.failed += u64::from(answer.status().is_server_error());
        counts.slow += u64::from(begun.elapsed() > Duration::from_millis(250));
        answer
    }

    fn choose(&self) -> String {
        let kept = lock(&self.kept);
        let dice = self.turn.fetch_add(1, Ordering::Relaxed).wrapping_mul(37) % 100;
        let chosen = kept.split.canary.as_ref().filter(|_| dice < kept.split.weight.into());
        chosen.unwrap_or(&kept.split.stable).release.clone()
    }
}

/// The process of a release. It ends with this value.
#[derive(Debug)]
struct Running {
    build: Build,
    instance: watch::Receiver<Instance>,
    task: AbortHandle,
}

impl Running {
    fn start(program: &Path, build: Build) -> Self {
        let (tell, instance) = watch::channel(Instance::Starting);
        let args: [OsString; 2] = ["service".into(), serde_json::to_string(&build).expect("a build is JSON").into()];
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let task = tokio::spawn(async move {
            let why = match live(&mut command, &tell).await {
                Ok(why) => why,
                Err(e) => e.to_string(),
            };
            tell.send_replace(Instance::Down(why));
        });
        Self { build, instance, task: task.abort_handle() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a process, tells where it listens, and returns why it ended.
async fn live(command: &mut Command, tell: &watch::Sender<Instance>) -> std::io::Result<String> {
    let mut child = command.spawn()?;
    // Kept open for as long as the process shall live.
    let _stdin = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped"));
    let mut line = String::new();
    (&mut lines).take(100).read_line(&mut line).await?;
    if let Ok(at) = line.trim().parse() {
        tell.send_replace(Instance::Up(at));
    }
    Ok(child.wait().await?.to_string())
}

/// Reads JSON from a file, if it is there.
///
/// # Errors
/// When it cannot be read, or is something else.
pub fn read_file<T: DeserializeOwned>(file: &Path) -> std::io::Result<Option<T>> {
    match std::fs::read(file) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes JSON into a file, all of it or nothing.
///
/// # Errors
/// When it cannot be written; the file is as it was then.
pub fn write_file<T: Serialize>(file: &Path, value: &T) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(value)?)?;
    std::fs::File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, file)
}

/// The counts in the text format of Prometheus.
fn exposition(counts: &BTreeMap<String, Counts>) -> Response<Bytes> {
    let mut text = "# HELP shop_requests_total Requests of users, by the release that got them.\n\
                    # TYPE shop_requests_total counter\n"
        .to_owned();
    for (release, counts) in counts {
        let good = counts.requests - counts.failed;
        // All that the format wants escaped.
        let release = release.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
        for (outcome, count) in [("ok", good), ("failed", counts.failed)] {
            text += &format!("shop_requests_total{{release=\"{release}\",outcome=\"{outcome}\"}} {count}\n");
        }
    }
    http::text(StatusCode::OK, text)
}

fn json<T: Serialize>(value: &T) -> Response<Bytes> {
    match serde_json::to_vec(value) {
        Ok(json) => Response::new(json.into()),
        Err(e) => http::text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
