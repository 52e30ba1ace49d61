//! The state folder, and the processes that are found again through it.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rollback_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    admin::{Admin, Instance, Split},
    router::{Router, read_file, write_file},
    service::Build,
    traffic,
};

/// How many requests a second the users send.
const RATE: u32 = 100;
/// How long they do so at most; usually they stop when the router does.
const LONGEST: Duration = Duration::from_secs(600);
/// How long the router stays when no driver asks it anything: long enough to run the quickstart again after a crash.
const IDLE: Duration = Duration::from_secs(60);
/// How long processes may take to start.
const START: Duration = Duration::from_secs(10);

/// The state folder. Nobody else can use it as long as this value lives, and a crash lets go of it.
#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    _lock: File,
}

/// Where a running router is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Address {
    /// The router's process.
    pub pid: u32,
    /// Where users go.
    pub users: SocketAddr,
    admin: SocketAddr,
}

impl Address {
    /// A client of its admin port.
    pub const fn admin(&self) -> Admin {
        Admin::new(self.admin)
    }
}

impl Stage {
    /// Takes this folder, or one of the user's own under the system's folder for temporary files.
    ///
    /// # Errors
    /// `Invalid` when it cannot be used; `Conflict` when somebody else is using it.
    pub fn open(folder: Option<PathBuf>) -> Result<Self> {
        let folder = folder.unwrap_or_else(|| {
            let user = std::env::var("USER").or_else(|_| std::env::var("USERNAME")).unwrap_or_default();
            let user: String = user.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
            std::env::temp_dir().join(format!("rollback-quickstart-{user}").trim_end_matches('-'))
        });
        let unusable =
            |e: io::Error| Error::invalid(format!("cannot use {} as state folder", folder.display())).because(e);
        make_private(&folder).map_err(unusable)?;
        let lock = File::create(folder.join("lock")).map_err(unusable)?;
        check_owner(&folder, &lock).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Conflict,
                format!("another quickstart is using {}; wait for it, or give a folder with --state", folder.display()),
            )),
            Err(TryLockError::Error(e)) => Err(unusable(e)),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of the record store.
    pub fn store(&self) -> PathBuf {
        self.folder.join("rollouts.db")
    }

    /// Ends what an earlier run left behind, and forgets it.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn clear(&self) -> Result<()> {
        self.strike().await;
        for name in [
            "router.json",
            "split.json",
            "rollouts.db",
            "rollouts.db-wal",
            "rollouts.db-shm",
            "processes.log",
            "report.html",
            "report.md",
        ] {
            let file = self.folder.join(name);
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::invalid(format!("cannot remove {}", file.display())).because(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the processes of this folder and waits until the router is gone. One that does not listen ends when it has
    /// been idle; the users go when the router has gone.
    pub async fn strike(&self) {
        let Some(router) = self.found().await else { return };
        if router.admin().stop().await.is_ok() {
            let gone = || async move { Ok(router.admin().look().await.is_err()) };
            self.until(START, gone).await.expect("this look cannot fail");
        }
    }

    /// The router of this folder and users who use it: found again, or started. Says which of the two.
    ///
    /// # Errors
    /// `Unavailable` when something does not start within ten seconds; the message names the file with its last words.
    pub async fn set(&self) -> Result<(Address, bool)> {
        let found = self.found().await;
        let router = match found {
            Some(router) => router,
            None => self.start_router().await?,
        };
        // Users who come before the releases are up would be counted as failed.
        self.until(START, || async move {
            let starting = |instance: &Instance| *instance == Instance::Starting;
            Ok(!router.admin().look().await?.instances.values().any(starting))
        })
        .await?;
        if found.is_none() || !self.busy(router, Duration::from_millis(500)).await? {
            drop(self.spawn("traffic", &[router.users.to_string()])?);
            if !self.busy(router, START).await? {
                return Err(self.silent("the traffic"));
            }
        }
        Ok((router, found.is_some()))
    }

    /// The router that wrote `router.json`, if it still lives.
    async fn found(&self) -> Option<Address> {
        let written: Address = read_file(&self.folder.join("router.json")).ok()??;
        let seen = written.admin().look().await.ok()?;
        (seen.pid == written.pid).then_some(written)
    }

    async fn start_router(&self) -> Result<Address> {
        let mut child = self.spawn("router", &[self.folder.display().to_string()])?;
        let end = Instant::now() + START;
        while Instant::now() < end && !matches!(child.try_wait(), Ok(Some(_))) {
            match self.found().await {
                Some(router) if router.pid == child.id() => return Ok(router),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Err(self.silent("the router"))
    }

    /// Whether users come within this time.
    async fn busy(&self, router: Address, time: Duration) -> Result<bool> {
        let before = router.admin().counts().await?;
        let before = &before;
        self.until(time, || async move { Ok(router.admin().counts().await? != *before) }).await
    }

    /// Whether this comes true within this time.
    async fn until<F: Future<Output = Result<bool>> + Send>(
        &self,
        time: Duration,
        is: impl Fn() -> F + Send + Sync,
    ) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            match is().await? {
                false if Instant::now() < end => tokio::time::sleep(Duration::from_millis(20)).await,
                done => return Ok(done),
            }
        }
    }

    /// Starts this program again in another part. It outlives us, so it must end by itself.
    fn spawn(&self, part: &str, args: &[String]) -> Result<Child> {
        let start = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(part).args(args).stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(File::options().create(true).append(true).open(self.log())?);
            // Ctrl-C is for us; they stay, so that the rollout can be taken up again.
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command.spawn()
        };
        start()
            .map_err(|e: io::Error| Error::new(ErrorKind::Unavailable, format!("cannot start the {part}")).because(e))
    }

    fn silent(&self, what: &str) -> Error {
        let text = format!("{what} did not start; {} may say why", self.log().display());
        Error::new(ErrorKind::Unavailable, text)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("processes.log")
    }
}

/// The router's process: serves until it is told to end, or nobody has asked it anything for a minute.
///
/// # Errors
/// When it cannot start.
pub async fn run_router(folder: &Path) -> io::Result<()> {
    let router =
        Router::start(std::env::current_exe()?, folder.join("split.json"), Split::alone(Build::good("v1"))).await?;
    let address = Address { pid: std::process::id(), users: router.users, admin: router.admin };
    write_file(&folder.join("router.json"), &address)?;
    router.ended(IDLE).await;
    // Let the answer to whoever told us go out.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// The users' process.
pub async fn run_traffic(users: SocketAddr) {
    traffic::run(users, RATE, LONGEST).await;
}

#[cfg(unix)]
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// The name of the default folder can be guessed: refuse one that somebody else has put there.
#[cfg(unix)]
fn check_owner(folder: &Path, ours: &File) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if fs::symlink_metadata(folder)?.uid() == ours.metadata()?.uid() {
        Ok(())
    } else {
        Err(io::Error::other("it belongs to somebody else"))
    }
}

#[cfg(not(unix))]
fn check_owner(_: &Path, _: &File) -> io::Result<()> {
    Ok(())
}
