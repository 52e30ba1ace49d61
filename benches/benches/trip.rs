//! From a pushed unhealthy signal to `shift` being entered: median and 99th percentile, and with SQLite against one bare
//! commit of the same size on the same disk.

use std::{path::Path, sync::Arc, time::Duration};

use rollback_benches::{Figures, Fleet, measures, quick, two_cores};
use rollback_core::store::{Memory, Sql};
use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::sleep;

/// Trips are spread over the gates' interval, so that they meet the fleet in every phase of it.
const PAUSE: Duration = Duration::from_millis(12);

fn main() {
    if !measures() {
        return;
    }
    let (trips, most) = if quick() { (200, 1_000) } else { (1_000, 10_000) };
    for live in [1, 1_000, 10_000].into_iter().filter(|live| *live <= most) {
        let runtime = two_cores();
        let figures = runtime.block_on(memory(live, trips));
        println!("signal to shift, memory, {live} live: {figures}");
        runtime.shutdown_background();
    }
    for live in [1, 1_000, 10_000].into_iter().filter(|live| *live <= most) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on the disk");
        let runtime = two_cores();
        let (figures, bare) = runtime.block_on(sqlite(live, trips, folder.path()));
        let ratio = figures.median().as_secs_f64() / bare.median().as_secs_f64();
        println!("signal to shift, SQLite, {live} live: {figures}");
        println!("    a bare commit of the same size meanwhile: {bare}");
        println!("    ratio of the medians: {ratio:.2}");
        runtime.shutdown_background();
    }
}

async fn memory(live: usize, trips: usize) -> Figures {
    let mut fleet = Fleet::new(Memory::new());
    let mut figures = Figures::default();
    fleet.live(live).await;
    run(&mut fleet, trips, &mut figures, async || {}).await;
    figures
}

async fn sqlite(live: usize, trips: usize, folder: &Path) -> (Figures, Figures) {
    let url = format!("sqlite:{}", folder.join("rollouts.db").display());
    let store = Sql::connect(&url).await.expect("a store");
    let mut fleet = Fleet::new(store);
    let (mut figures, mut bare) = (Figures::default(), Figures::default());
    fleet.live(live).await;
    let record = fleet.status(0).to_record(None, 0).expect("a record");
    let mut commit = Bare::open(&folder.join("bare.db"), record.body).await;
    run(&mut fleet, trips, &mut figures, async || bare.push(commit.commit().await)).await;
    (figures, bare)
}

/// Trips one rollout after the other; each is replaced by a new one before the next.
async fn run(fleet: &mut Fleet, trips: usize, figures: &mut Figures, mut between: impl AsyncFnMut()) {
    for _ in 0..trips {
        sleep(PAUSE).await;
        figures.push(fleet.trip_oldest().await);
        // After the same rest: a disk and a processor that have just worked are faster.
        sleep(PAUSE).await;
        between().await;
    }
}

/// One row of the size of a record, in a file of its own beside the store, with the store's promises.
struct Bare {
    connection: SqliteConnection,
    body: Arc<str>,
}

impl Bare {
    async fn open(path: &Path, body: Arc<str>) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging();
        let mut connection = options.connect().await.expect("a file");
        let table = "CREATE TABLE records (id INTEGER PRIMARY KEY, serial INTEGER NOT NULL, body TEXT NOT NULL) STRICT";
        sqlx::raw_sql(table).execute(&mut connection).await.expect("a table");
        let insert = sqlx::query("INSERT INTO records VALUES (1, 1, $1)").bind(&*body);
        insert.execute(&mut connection).await.expect("a row");
        Self { connection, body }
    }

    async fn commit(&mut self) -> Duration {
        let begun = tokio::time::Instant::now();
        let update = sqlx::query("UPDATE records SET serial = serial + 1, body = $1 WHERE id = 1").bind(&*self.body);
        update.execute(&mut self.connection).await.expect("a commit");
        begun.elapsed()
    }
}
