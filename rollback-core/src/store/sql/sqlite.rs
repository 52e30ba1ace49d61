//! Records in one SQLite file: many readers, and one writer that commits for everybody at once.

use std::{
    error::Error as _,
    fs::{self, OpenOptions},
    io,
    path::Path,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    place::Place,
    schema,
    session::Session,
    work::{Answer, Write, update_open},
};
use crate::error::{Error, ErrorKind, Result};

/// A file.
#[derive(Clone)]
pub(super) struct Sqlite {
    readers: SqlitePool,
    /// The way to the writer and its task, until the store is closed.
    writer: Arc<Mutex<Option<Line>>>,
}

struct Line {
    queue: mpsc::Sender<Job>,
    task: JoinHandle<()>,
}

/// A write that waits for the next transaction.
struct Job {
    write: Write,
    keep: i64,
    reply: oneshot::Sender<Result<Answer>>,
}

impl Sqlite {
    /// The file that this URL names.
    pub(super) fn parse(url: &str) -> Result<(SqliteConnectOptions, Place)> {
        let refuse = |why| Error::invalid(format!("the store URL {url:?} {why}; expected sqlite:path/to/file.db"));
        let path = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest)).unwrap_or_default();
        if path.is_empty() {
            return Err(refuse("names no file"));
        }
        if path.starts_with(":memory:") {
            return Err(refuse("keeps nothing, for which there is store::Memory"));
        }
        if path.contains('?') {
            return Err(refuse("has parameters, which a store does not take"));
        }
        let options = SqliteConnectOptions::from_str(url).map_err(|_| refuse("cannot be read"))?;
        let options = options.synchronous(SqliteSynchronous::Full).busy_timeout(BUSY);
        let place = Place::File(options.get_filename().into());
        Ok((options.disable_statement_logging(), place))
    }

    /// Opens the file, or creates it, and brings its tables up to date.
    pub(super) async fn open(options: SqliteConnectOptions, place: &Place) -> Result<Self> {
        prepare(options.get_filename(), place)?;
        let mut first = options.connect().await.map_err(|e| place.sort(e))?;
        // Look before anything is changed: it may not be ours. In one transaction, because another process may be
        // creating the tables at this moment, and half of what it did looks like somebody else's file.
        exec(&mut first, "BEGIN", place).await?;
        let version = schema::version(&mut Session::sqlite(&mut first, place)).await;
        exec(&mut first, "ROLLBACK", place).await?;
        if version? != schema::VERSION {
            exec(&mut first, "BEGIN IMMEDIATE", place).await?;
            schema::migrate(&mut Session::sqlite(&mut first, place)).await?;
            exec(&mut first, "COMMIT", place).await?;
        }
        write_ahead(&mut first, place).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(BUSY)
            .idle_timeout(Duration::from_secs(60))
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().pragma("query_only", "ON"));
        let (queue, jobs) = mpsc::channel(1024);
        let writer = Writer { options, place: place.clone(), connection: Some(first) };
        let line = Line { queue, task: tokio::spawn(writer.serve(jobs)) };
        Ok(Self { readers, writer: Arc::new(Mutex::new(Some(line))) })
    }

    pub(super) async fn write(&self, write: Write, keep: i64, place: &Place) -> Result<Answer> {
        let gone = || Error::new(ErrorKind::Unavailable, format!("{place} was closed"));
        let queue = self.line().as_ref().map(|line| line.queue.clone()).ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        queue.send(Job { write, keep, reply }).await.map_err(|_| gone())?;
        // Our end of the queue must not keep the writer alive while it works.
        drop(queue);
        answer.await.map_err(|_| gone())?
    }

    pub(super) async fn reader(&self, place: &Place) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>> {
        self.readers.acquire().await.map_err(|e| place.sort(e))
    }

    pub(super) async fn close(self) {
        self.readers.close().await;
        let line = self.line().take();
        if let Some(Line { queue, task }) = line {
            drop(queue);
            drop(task.await);
        }
    }

    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owns the one connection that writes. It runs in a task of its own, so that a caller who stops waiting leaves no
/// transaction half done.
struct Writer {
    options: SqliteConnectOptions,
    place: Place,
    connection: Option<SqliteConnection>,
}

/// What a transaction does about a write that is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// It ends there: most have none, and need not pay for the other.
    None,
    /// Each write has a savepoint, and it goes on with the next.
    Savepoints,
}

/// How a transaction went wrong.
enum Broken {
    /// Nothing of it is saved: one of its writes was refused and took it down.
    Before(Error),
    /// It could not begin, or its commit failed: repeating it at once would not help, or might do it twice.
    Beyond(Error),
}

impl Writer {
    async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, 1024).await > 0 {
            // Whoever has stopped waiting would have to look anyway; let them find that nothing happened.
            batch.retain(|job| !job.reply.is_closed());
            let jobs = std::mem::take(&mut batch);
            let mut outcome = self.transact(&jobs, Care::None).await;
            if matches!(outcome, Err(Broken::Before(_))) && jobs.len() > 1 {
                // One was refused, as happens now and then; this time only that one is taken back.
                outcome = self.transact(&jobs, Care::Savepoints).await;
            }
            if matches!(outcome, Err(Broken::Before(_))) && jobs.len() > 1 {
                // One took the transaction with it, such as a record too large for the disk.
                for job in jobs {
                    let outcome = self.transact(std::slice::from_ref(&job), Care::None).await;
                    answer(vec![job], outcome);
                }
            } else {
                answer(jobs, outcome);
            }
        }
        if let Some(connection) = self.connection {
            drop(connection.close().await);
        }
    }

    /// Runs all of them in one transaction, and commits once.
    async fn transact(&mut self, jobs: &[Job], care: Care) -> Result<Vec<Result<Answer>>, Broken> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let place = &self.place;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.options.connect().await.map_err(|e| Broken::Beyond(place.sort(e)))?),
        };
        let outcome = transact(connection, jobs, care, place).await;
        // A full disk may have ended the transaction already: then there is none to roll back, and the code is 1.
        if outcome.is_err() {
            let clean = match sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await {
                Ok(_) => true,
                Err(sqlx::Error::Database(e)) => e.code().as_deref() == Some("1"),
                Err(_) => false,
            };
            if !clean {
                self.connection = None;
            }
        }
        outcome
    }
}

async fn transact(
    connection: &mut SqliteConnection,
    jobs: &[Job],
    care: Care,
    place: &Place,
) -> Result<Vec<Result<Answer>>, Broken> {
    if let [Job { write: Write::Update(record, expected), .. }] = jobs {
        // SQLite commits one statement by itself: one way to the thread that waits for the disk and back, instead of
        // three. What its commit can fail with is `Unavailable`, as for any commit.
        let mut session = Session::sqlite(connection, place);
        if update_open(&mut session, record, *expected).await.map_err(Broken::Beyond)? {
            return Ok(vec![Ok(Answer::Serial(expected.next()))]);
        }
    }
    exec(connection, "BEGIN IMMEDIATE", place).await.map_err(Broken::Beyond)?;
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        if care == Care::Savepoints {
            let next = if answers.is_empty() { "SAVEPOINT one" } else { "RELEASE one; SAVEPOINT one" };
            exec(connection, next, place).await.map_err(Broken::Before)?;
        }
        match job.write.run(&mut Session::sqlite(connection, place), job.keep).await {
            Ok(answer) => answers.push(Ok(answer)),
            Err(why) if care == Care::None => return Err(Broken::Before(why)),
            Err(why) => match exec(connection, "ROLLBACK TO one", place).await {
                Ok(()) => answers.push(Err(why)),
                Err(_) => return Err(Broken::Before(why)),
            },
        }
    }
    let committed = sqlx::raw_sql("COMMIT").execute(connection).await;
    committed.map_err(|e| Broken::Beyond(place.unknown(e)))?;
    Ok(answers)
}

/// Tells each what came of its write.
fn answer(jobs: Vec<Job>, outcome: Result<Vec<Result<Answer>>, Broken>) {
    match outcome {
        Ok(answers) => {
            for (job, answer) in jobs.into_iter().zip(answers) {
                // Nobody listens any more: it is saved all the same.
                drop(job.reply.send(answer));
            }
        }
        Err(Broken::Before(why) | Broken::Beyond(why)) => {
            for job in jobs {
                let copy = Error::new(why.kind(), why.to_string());
                let copy = match why.source() {
                    Some(source) => copy.because(source.to_string()),
                    None => copy,
                };
                drop(job.reply.send(Err(copy)));
            }
        }
    }
}

async fn exec(connection: &mut SqliteConnection, sql: &'static str, place: &Place) -> Result<()> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop).map_err(|e| place.sort(e))
}

/// Turns the write-ahead log on, which stays in the file.
async fn write_ahead(connection: &mut SqliteConnection, place: &Place) -> Result<()> {
    // SQLite does not wait for others here, whatever the busy timeout says.
    let mut patience = BUSY;
    loop {
        let told = sqlx::query_scalar::<_, String>("PRAGMA journal_mode = WAL").fetch_one(&mut *connection).await;
        match told.map_err(|e| place.sort(e)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{place} keeps journal mode {mode}; a store needs a disk of this machine that can do WAL"),
                ));
            }
            Err(e) if e.kind() == ErrorKind::Unavailable && !patience.is_zero() => {
                patience = patience.saturating_sub(TURN);
                tokio::time::sleep(TURN).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Makes sure that there is a file, and that others cannot read what we are about to write. SQLite gives the files
/// beside it the same mode.
fn prepare(path: &Path, place: &Place) -> Result<()> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return match create_private(path) {
                // Another process was faster.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                created => created.map_err(|e| place.io(&e)),
            };
        }
        Err(e) => return Err(place.io(&e)),
    };
    if !found.is_file() {
        return Err(Error::invalid(format!("{place} is not a file")));
    }
    // SQLite would look at what the user may do, and root may do anything.
    if found.permissions().readonly() {
        return Err(Error::new(ErrorKind::Denied, format!("{place} is read-only")));
    }
    if found.len() == 0 {
        make_private(path).map_err(|e| place.io(&e))?;
    } else if let Some(mode) = public_mode(&found) {
        tracing::warn!(%place, mode = %format_args!("{mode:o}"), "others may read or write the store; 600 is private");
    }
    Ok(())
}

#[cfg(unix)]
fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

#[cfg(unix)]
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

#[cfg(unix)]
fn public_mode(found: &fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Some(found.permissions().mode() & 0o777).filter(|mode| mode & 0o077 != 0)
}

#[cfg(not(unix))]
fn create_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path).map(drop)
}

#[cfg(not(unix))]
fn make_private(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn public_mode(_: &fs::Metadata) -> Option<u32> {
    None
}

/// How long another process may keep the file locked before we say so.
const BUSY: Duration = Duration::from_secs(5);
const TURN: Duration = Duration::from_millis(50);
