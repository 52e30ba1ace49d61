//! Every store against the suite, and what each does with bad input.

use rollback_core::{store::Memory, testing::store as suite};

#[tokio::test]
async fn memory_keeps_every_promise() {
    let store = Memory::new();
    suite::all(&store).await;
    suite::all(&store).await;
    suite::two_handles_share_one_truth(&store, &store.clone()).await;
    suite::retention(&Memory::new().keep(1), 1).await;
    suite::retention(&Memory::new().keep(3), 3).await;
}

#[cfg(feature = "sql")]
mod sql {
    use std::{
        fs,
        path::{Path, PathBuf},
        sync::Arc,
    };

    use rollback_core::{
        Error, ErrorKind,
        model::{DriverId, RolloutId, Serial, TargetId},
        store::{Record, Sql, Standing, Store},
        testing::store as suite,
    };
    use tempfile::TempDir;

    use crate::support::postgres;

    // Either dialect.

    #[tokio::test]
    async fn sqlite_keeps_every_promise() {
        let folder = Folder::new();
        let store = folder.store().await;
        suite::all(&store).await;
        suite::all(&store).await;
        suite::two_handles_share_one_truth(&store, &folder.store().await).await;
        suite::retention(&store.clone().keep(1), 1).await;
        suite::retention(&store.keep(3), 3).await;
    }

    #[tokio::test]
    async fn postgres_keeps_every_promise() {
        let Some(server) = postgres::server().await else { return };
        let url = server.schema().await;
        let store = connect(&url).await;
        suite::all(&store).await;
        suite::all(&store).await;
        suite::two_handles_share_one_truth(&store, &connect(&url).await).await;
        suite::retention(&store.clone().keep(1), 1).await;
        suite::retention(&store.keep(3), 3).await;
        server.remove(&url).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn stores_keep_their_promises_while_others_use_them() {
        let folder = Folder::new();
        let mut urls = vec![folder.url()];
        let server = postgres::server().await;
        if let Some(server) = &server {
            urls.push(server.schema().await);
        }
        for url in &urls {
            let mut users = tokio::task::JoinSet::new();
            for _ in 0..3 {
                let url = url.clone();
                // All three find the store empty and create its tables at once.
                users.spawn(async move { suite::all(&connect(&url).await).await });
            }
            users.join_all().await;
        }
        if let Some(server) = &server {
            server.remove(&urls[1]).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_opens_a_file_while_another_creates_its_tables_finds_a_store() {
        for _ in 0..30 {
            let folder = Folder::new();
            let mut users = tokio::task::JoinSet::new();
            for _ in 0..6 {
                let url = folder.url();
                users.spawn(async move { connect(&url).await.open().await.expect("a store without rollouts") });
            }
            users.join_all().await;
        }
    }

    #[tokio::test]
    async fn a_store_that_is_opened_again_has_everything() {
        let folder = Folder::new();
        suite::reopening_finds_everything(|| folder.store()).await;
        let Some(server) = postgres::server().await else { return };
        let url = server.schema().await;
        suite::reopening_finds_everything(|| connect(&url)).await;
        server.remove(&url).await;
    }

    #[tokio::test]
    async fn drivers_that_ended_long_ago_are_forgotten() {
        let folder = Folder::new();
        let server = postgres::server().await;
        let mut urls = vec![folder.url()];
        if let Some(server) = &server {
            urls.push(server.schema().await);
        }
        for url in &urls {
            let store = connect(url).await;
            let (gone, busy, recent) = (DriverId::fresh(), DriverId::fresh(), DriverId::fresh());
            for driver in [&gone, &busy, &recent] {
                store.beat(driver).await.expect("beat");
            }
            let record = Record { driver: Some(busy.clone()), ..record("driven") };
            store.create(&record).await.expect("create");
            let age = format!("UPDATE rollback_drivers SET changed = changed - 90000 WHERE driver <> '{recent}'");
            store.batch(age).await.expect("ages");
            store.beat(&DriverId::fresh()).await.expect("beat");
            // A row that is still there refuses to be added again.
            let add = async |driver: &DriverId| {
                let row = format!("INSERT INTO rollback_drivers (driver, beat, changed) VALUES ('{driver}', 1, 1)");
                store.batch(row).await
            };
            assert!(add(&gone).await.is_ok(), "a driver that drives nothing for a day must be forgotten");
            assert!(add(&busy).await.is_err(), "a driver that drives something must be kept");
            assert!(add(&recent).await.is_err(), "a driver that beat lately must be kept");
        }
        if let Some(server) = &server {
            server.remove(&urls[1]).await;
        }
    }

    #[tokio::test]
    async fn an_export_carries_every_record_to_another_store() {
        let folder = Folder::new();
        let store = folder.store().await;
        let open = Record { heard: 2, ..record("checkout") };
        let body: Arc<str> = r#"{ "share":0.10000000000000001, "count":18446744073709551615 }"#.into();
        let promoted = Record { standing: Standing::Promoted, body, ..record("billing") };
        let broken = Record { standing: Standing::Over, body: "not JSON".into(), ..record("search") };
        for record in [&open, &promoted, &broken] {
            store.create(record).await.expect("create");
        }
        store.update(&open, Serial(1)).await.expect("update");
        let export = store.export().await.expect("export");
        assert!(export.starts_with(r#"{"rollback_export":1,"records":["#), "{export}");

        let elsewhere = Folder::new();
        let server = postgres::server().await;
        let mut urls = vec![elsewhere.url()];
        if let Some(server) = &server {
            urls.push(server.schema().await);
        }
        for url in &urls {
            let other = connect(url).await;
            assert_eq!(other.import(&export).await.expect("import"), 3);
            for (record, serial) in [(&open, 2), (&promoted, 1), (&broken, 1)] {
                assert_eq!(other.load(&record.id).await.expect("load"), (record.clone(), Serial(serial)));
            }
            assert_eq!(other.export().await.expect("export"), export, "an export of an import is the export");
            // Requests are numbered after those that the record has heard elsewhere.
            let abort = rollback_core::request::Request::new(rollback_core::request::Ask::Abort, "test", "why");
            other.ask(&open.id, &abort.expect("a name")).await.expect("ask");
            let asked = other.beat(open.driver.as_ref().expect("it has one")).await.expect("beat");
            assert_eq!(asked.iter().map(|(_, asked)| asked.number).collect::<Vec<_>>(), [3]);

            assert_eq!(other.import(&export).await.expect("the same again"), 0);
        }
        if let Some(server) = &server {
            server.remove(&urls[1]).await;
        }
    }

    #[tokio::test]
    async fn an_import_adds_all_or_nothing() {
        let (here, there) = (Folder::new(), Folder::new());
        let (store, other) = (here.store().await, there.store().await);
        let (new, known) = (record("new"), record("known"));
        other.create(&new).await.expect("create");
        other.create(&known).await.expect("create");
        let export = other.export().await.expect("export");

        let different = Record { body: "{}".into(), ..known.clone() };
        store.create(&different).await.expect("create");
        refused(store.import(&export).await, ErrorKind::Conflict, &[known.id.as_str(), "taken"]);
        refused(store.load(&new.id).await, ErrorKind::NotFound, &[]);

        let third = Folder::new();
        let store = third.store().await;
        let rival = record("known");
        store.create(&rival).await.expect("create");
        refused(store.import(&export).await, ErrorKind::Conflict, &["known", rival.id.as_str()]);
        refused(store.load(&new.id).await, ErrorKind::NotFound, &[]);

        let newer = export.replace(r#""rollback_export":1"#, r#""rollback_export":2"#);
        refused(store.import(&newer).await, ErrorKind::Unsupported, &["format 2"]);
        refused(store.import(r#"{"records":[]}"#).await, ErrorKind::Invalid, &["not an export"]);
        let secret = export.replace(r#""heard":0"#, r#""heard":"hunter2""#);
        let error = refused(store.import(&secret).await, ErrorKind::Invalid, &["not an export"]);
        assert!(!format!("{error:?}").contains("hunter2"), "what is private must not be quoted: {error:?}");
    }

    // SQLite.

    #[tokio::test]
    async fn updates_that_come_together_share_a_commit() {
        let folder = Folder::new();
        let store = folder.store().await;
        let mut records = Vec::new();
        for n in 0..200 {
            let record = record(&format!("target-{n}"));
            store.create(&record).await.expect("create");
            records.push(record);
        }
        let before = folder.commits();
        store.update(&records[0], Serial(1)).await.expect("update");
        assert_eq!(folder.commits() - before, 1, "a single update is one commit");

        let before = folder.commits();
        let mut updates = tokio::task::JoinSet::new();
        for record in records.drain(1..) {
            let store = store.clone();
            updates.spawn(async move { store.update(&record, Serial(1)).await });
        }
        for update in updates.join_all().await {
            assert_eq!(update.expect("update"), Serial(2));
        }
        let commits = folder.commits() - before;
        assert!((1..=20).contains(&commits), "199 updates at once took {commits} commits");
    }

    #[tokio::test]
    async fn one_refused_write_does_not_fail_those_beside_it() {
        let folder = Folder::new();
        let store = folder.store().await;
        let taken = record("taken");
        store.create(&taken).await.expect("create");
        // Its first record is new, its second is refused.
        let (new, rival) = (record("new"), record("taken"));
        let elsewhere = Folder::new();
        let other = elsewhere.store().await;
        other.create(&new).await.expect("create");
        other.create(&rival).await.expect("create");
        let export = other.export().await.expect("export");

        let before = folder.commits();
        let mut creates = tokio::task::JoinSet::new();
        for n in 0..50 {
            let (store, export) = (store.clone(), export.clone());
            // Every fifth goes for the subject that is busy.
            let record = if n % 5 == 0 { record("taken") } else { record(&format!("free-{n}")) };
            creates.spawn(async move {
                if n == 25 {
                    refused(store.import(&export).await, ErrorKind::Conflict, &["taken"]);
                }
                (n, store.create(&record).await, store.load(&record.id).await)
            });
        }
        for (n, created, loaded) in creates.join_all().await {
            if n % 5 == 0 {
                refused(created, ErrorKind::Conflict, &[taken.id.as_str()]);
                refused(loaded, ErrorKind::NotFound, &[]);
            } else {
                assert_eq!(created.expect("create"), Serial(1));
                assert_eq!(loaded.expect("what was said to be saved is there").1, Serial(1));
            }
        }
        refused(store.load(&new.id).await, ErrorKind::NotFound, &[]);
        let commits = folder.commits() - before;
        assert!((1..=10).contains(&commits), "51 writes at once, some refused, took {commits} commits");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_that_create_one_file_none_takes_it_for_somebody_elses() {
        for _ in 0..30 {
            let folder = Folder::new();
            let mut connects = tokio::task::JoinSet::new();
            for n in 0..12 {
                let url = folder.url();
                connects.spawn(async move {
                    // Spread, so that some look while another is half way.
                    tokio::time::sleep(std::time::Duration::from_micros(300 * n)).await;
                    connect(&url).await
                });
            }
            assert_eq!(connects.join_all().await.len(), 12);
        }
    }

    #[tokio::test]
    async fn callers_that_stop_waiting_harm_nobody() {
        let folder = Folder::new();
        let store = folder.store().await;
        let first = record("checkout");
        store.create(&first).await.expect("create");
        for round in 0..50_u64 {
            let (_, serial) = store.load(&first.id).await.expect("load");
            let next = Record { body: format!("{{\"round\":{round}}}").into(), ..first.clone() };
            let update = store.update(&next, serial);
            tokio::select! {
                biased;
                () = async { for _ in 0..round % 5 { tokio::task::yield_now().await } } => {}
                // One that was given up earlier may have landed since we loaded.
                done = update => assert!(done.is_ok_and(|n| n == serial.next()) || landed(&store, &first, serial).await),
            }
        }
        // Writes are done in turn: when this one is done, those given up are done or will never be.
        store.beat(&DriverId::fresh()).await.expect("beat");
        let (_, serial) = store.load(&first.id).await.expect("load");
        assert_eq!(store.update(&first, serial).await.expect("update"), serial.next());
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_loses_nothing() {
        let folder = Folder::new();
        let store = folder.store().await;
        let first = record("checkout");
        let serial = store.create(&first).await.expect("create");
        store.batch("PRAGMA max_page_count = 40").await.expect("a small disk");

        let large = Record { body: "x".repeat(600 * 1024).into(), ..first.clone() };
        for _ in 0..2 {
            refused(store.update(&large, serial).await, ErrorKind::Unavailable, &["the disk is full", &folder.name()]);
            assert_eq!(store.load(&first.id).await.expect("load"), (first.clone(), serial));
        }
        let small = Record { body: "{}".into(), ..first.clone() };
        let serial = store.update(&small, serial).await.expect("what fits is still saved");

        store.batch("PRAGMA max_page_count = 100000").await.expect("a large disk");
        assert_eq!(store.load(&first.id).await.expect("load"), (small, serial));
        let serial = store.update(&large, serial).await.expect("update");
        store.close().await;
        assert_eq!(folder.store().await.load(&first.id).await.expect("load"), (large, serial));
    }

    #[tokio::test]
    async fn a_write_that_fills_the_disk_fails_alone() {
        let folder = Folder::new();
        let store = folder.store().await;
        store.batch("PRAGMA max_page_count = 60").await.expect("a small disk");
        let mut creates = tokio::task::JoinSet::new();
        for n in 0..20 {
            let store = store.clone();
            let mut record = record(&format!("target-{n}"));
            if n == 7 {
                record.body = "x".repeat(600 * 1024).into();
            }
            creates.spawn(async move { (n, store.create(&record).await, store.load(&record.id).await) });
        }
        for (n, created, loaded) in creates.join_all().await {
            if n == 7 {
                refused(created, ErrorKind::Unavailable, &["the disk is full"]);
                refused(loaded, ErrorKind::NotFound, &[]);
            } else {
                created.expect("a small record fits");
                loaded.expect("what was said to be saved is there");
            }
        }
    }

    #[tokio::test]
    async fn a_write_that_takes_its_transaction_with_it_fails_alone() {
        let folder = Folder::new();
        let store = folder.store().await;
        // As SQLite does by itself when a disk fills up or fails in the middle of a statement.
        let trap = "CREATE TRIGGER trap BEFORE INSERT ON rollback_rollouts WHEN new.subject = 'target-7'
            BEGIN SELECT raise(ROLLBACK, 'gone'); END";
        store.batch(trap).await.expect("batch");
        let mut creates = tokio::task::JoinSet::new();
        for n in 0..20 {
            let store = store.clone();
            let record = record(&format!("target-{n}"));
            creates.spawn(async move { (n, store.create(&record).await, store.load(&record.id).await) });
        }
        for (n, created, loaded) in creates.join_all().await {
            if n == 7 {
                refused(created, ErrorKind::Invalid, &["refused the record", &folder.name()]);
                refused(loaded, ErrorKind::NotFound, &[]);
            } else {
                created.expect("the others are saved");
                loaded.expect("what was said to be saved is there");
            }
        }
    }

    #[tokio::test]
    async fn a_closed_store_says_so() {
        let folder = Folder::new();
        let store = folder.store().await;
        let (record, clone) = (record("checkout"), store.clone());
        store.create(&record).await.expect("create");
        store.close().await;
        refused(clone.load(&record.id).await, ErrorKind::Unavailable, &["closed", &folder.name()]);
        refused(clone.update(&record, Serial(1)).await, ErrorKind::Unavailable, &["closed", &folder.name()]);
        assert!(!folder.beside("-wal").exists(), "closing folds the log into the file");
        folder.store().await.load(&record.id).await.expect("load");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let folder = Folder::new();
        let store = folder.store().await;
        store.create(&record("checkout")).await.expect("create");
        for path in [folder.path(), folder.beside("-wal"), folder.beside("-shm")] {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        // A file that somebody made for us is empty, and becomes private before anything is in it.
        let folder = Folder::new();
        fs::write(folder.path(), "").expect("write");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o644)).expect("chmod");
        let _store = folder.store().await;
        assert_eq!(mode(&folder.path()), 0o600);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_store_is_refused_and_left_alone() {
        let folder = Folder::new();
        let text = "These are the notes of last week's meeting.\n".repeat(100);
        fs::write(folder.path(), &text).expect("write");
        refused(Sql::connect(&folder.url()).await, ErrorKind::Invalid, &["not a SQLite database", &folder.name()]);
        assert_eq!(fs::read_to_string(folder.path()).expect("read"), text);

        for (mark, kind, says) in [
            (Mark::Application(0x1234), ErrorKind::Invalid, "another program"),
            // An application that never set its mark.
            (Mark::Application(0), ErrorKind::Invalid, "another program"),
            (Mark::Version(99), ErrorKind::Unsupported, "version 99"),
        ] {
            let folder = Folder::new();
            let store = folder.store().await;
            store.create(&record("checkout")).await.expect("create");
            store.close().await;
            mark.set(&folder.path());
            let before = fs::read(folder.path()).expect("read");
            refused(Sql::connect(&folder.url()).await, kind, &[says, &folder.name()]);
            assert!(fs::read(folder.path()).expect("read") == before, "a file that is not ours was changed");
        }
    }

    #[tokio::test]
    async fn a_store_with_a_newer_table_of_versions_is_refused() {
        let folder = Folder::new();
        let store = folder.store().await;
        store.batch("UPDATE rollback_meta SET version = 99").await.expect("batch");
        refused(Sql::connect(&folder.url()).await, ErrorKind::Unsupported, &["version 99", &folder.name()]);
    }

    #[tokio::test]
    async fn a_read_only_file_is_refused() {
        let folder = Folder::new();
        let store = folder.store().await;
        store.create(&record("checkout")).await.expect("create");
        store.close().await;
        let mut permissions = fs::metadata(folder.path()).expect("it is there").permissions();
        permissions.set_readonly(true);
        fs::set_permissions(folder.path(), permissions).expect("chmod");
        refused(Sql::connect(&folder.url()).await, ErrorKind::Denied, &["read-only", &folder.name()]);
    }

    #[tokio::test]
    async fn a_corrupt_page_is_said_and_never_guessed_over() {
        let folder = Folder::new();
        let store = folder.store().await;
        let record = record("checkout");
        store.create(&record).await.expect("create");
        store.close().await;
        let mut bytes = fs::read(folder.path()).expect("read");
        // All but the first page, which says what kind of file it is.
        bytes[4096..].fill(0xA5);
        fs::write(folder.path(), bytes).expect("write");
        let said = async {
            let store = Sql::connect(&folder.url()).await?;
            store.load(&record.id).await
        };
        refused(said.await, ErrorKind::Invalid, &["corrupt", &folder.name()]);
    }

    #[tokio::test]
    async fn a_corrupt_envelope_is_said_and_never_guessed_over() {
        let folder = Folder::new();
        let store = folder.store().await;
        let record = record("checkout");
        store.create(&record).await.expect("create");
        for damage in ["driver = ''", "heard = -1", "format = 5000000000", "body = CAST(x'ff' AS TEXT)"] {
            store.batch(format!("UPDATE rollback_rollouts SET {damage}")).await.expect("batch");
            refused(store.load(&record.id).await, ErrorKind::Invalid, &["corrupt", &folder.name()]);
            store.batch("UPDATE rollback_rollouts SET driver = 'd', heard = 0, format = 1").await.expect("batch");
        }
    }

    #[tokio::test]
    async fn a_place_where_no_file_can_be_is_refused() {
        let folder = Folder::new();
        let missing = format!("sqlite:{}/missing/store.db", folder.0.path().display());
        refused(Sql::connect(&missing).await, ErrorKind::Invalid, &["missing/store.db", "folder"]);
        let itself = format!("sqlite:{}", folder.0.path().display());
        refused(Sql::connect(&itself).await, ErrorKind::Invalid, &["not a file"]);
    }

    #[tokio::test]
    async fn a_url_that_is_none_is_refused() {
        for url in ["", "sqlite", "sqlite:", "sqlite://", "sqlite::memory:", "sqlite:x.db?mode=memory", "mysql://x/y"] {
            refused(Sql::connect(url).await, ErrorKind::Invalid, &["expected sqlite:path/to/file.db"]);
        }
        assert!(!Path::new("x.db").exists(), "a refused URL creates no file");
    }

    // PostgreSQL.

    #[tokio::test]
    async fn a_password_is_never_in_an_error() {
        let mut urls = vec![
            "postgres://deploy:hunter2@127.0.0.1:1/db".to_owned(),
            "postgres://deploy:hunter2@127.0.0.1:port/db".into(),
            "postgres://deploy:hunter2@[bad/db".into(),
            "postgres://deploy:hunter2@localhost/db?sslmode=hunter2".into(),
            "postgres//deploy:hunter2@localhost/db".into(),
            "deploy:hunter2@localhost/db".into(),
            "hunter2:x".into(),
        ];
        let server = postgres::server().await;
        if let Some(url) = server.as_ref().and_then(|server| server.with_password("hunter2")) {
            refused(Sql::connect(&url).await, ErrorKind::Denied, &["credentials"]);
            urls.push(url);
        }
        for url in urls {
            let error = Sql::connect(&url).await.expect_err("it cannot be reached");
            let said = format!("{error} {error:#} {error:?} {}", error.chain());
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_listen_is_unavailable_and_named() {
        let error = Sql::connect("postgres://deploy@127.0.0.1:1/rollouts").await;
        refused(error, ErrorKind::Unavailable, &["127.0.0.1:1/rollouts"]);
    }

    #[tokio::test]
    async fn a_postgres_database_that_is_not_ours_is_refused() {
        let Some(server) = postgres::server().await else { return };
        let url = server.schema().await;
        let store = connect(&url).await;
        store.batch("UPDATE rollback_meta SET version = 99").await.expect("batch");
        refused(Sql::connect(&url).await, ErrorKind::Unsupported, &["version 99"]);
        store.batch("UPDATE rollback_meta SET version = 1, application = 'other'").await.expect("batch");
        refused(Sql::connect(&url).await, ErrorKind::Invalid, &["another program"]);
        store.batch("DROP TABLE rollback_meta").await.expect("batch");
        refused(Sql::connect(&url).await, ErrorKind::Invalid, &["another program"]);
        server.remove(&url).await;
        refused(Sql::connect(&url).await, ErrorKind::Invalid, &["schema"]);
    }

    #[tokio::test]
    async fn what_postgres_cannot_keep_is_refused_by_name() {
        let Some(server) = postgres::server().await else { return };
        let url = server.schema().await;
        let store = connect(&url).await;
        let nul = Record { body: "\0".into(), ..record("checkout") };
        refused(store.create(&nul).await, ErrorKind::Invalid, &["NUL"]);
        let record = record("checkout");
        store.create(&record).await.expect("a refused record leaves nothing behind");
        let reader = connect(&format!("{url}%20-c%20default_transaction_read_only%3Don")).await;
        reader.update(&record, Serial(1)).await.expect("our writes ask for a transaction that writes");
        server.remove(&url).await;
    }

    /// A folder with a store in it.
    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder for temporary files"))
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("store.db")
        }

        fn name(&self) -> String {
            self.path().display().to_string()
        }

        fn beside(&self, suffix: &str) -> PathBuf {
            self.0.path().join(format!("store.db{suffix}"))
        }

        fn url(&self) -> String {
            format!("sqlite:{}", self.path().display())
        }

        async fn store(&self) -> Sql {
            connect(&self.url()).await
        }

        /// How many commits the write-ahead log holds: <https://www.sqlite.org/fileformat2.html#walformat>.
        fn commits(&self) -> usize {
            let log = fs::read(self.beside("-wal")).expect("the log is there");
            let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().expect("four bytes"));
            let (page, salt) = (word(8) as usize, word(16));
            let frames = (32..log.len()).step_by(24 + page);
            frames.filter(|at| word(at + 8) == salt && word(at + 4) != 0).count()
        }
    }

    /// Something in the first page of a SQLite file: <https://www.sqlite.org/fileformat2.html#the_database_header>.
    enum Mark {
        Application(u32),
        Version(u32),
    }

    impl Mark {
        fn set(self, path: &Path) {
            let (at, value) = match self {
                Self::Version(version) => (60, version),
                Self::Application(id) => (68, id),
            };
            let mut bytes = fs::read(path).expect("read");
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            fs::write(path, bytes).expect("write");
        }
    }

    async fn landed(store: &Sql, record: &Record, since: Serial) -> bool {
        store.load(&record.id).await.expect("load").1 > since
    }

    async fn connect(url: &str) -> Sql {
        Sql::connect(url).await.unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    fn record(subject: &str) -> Record {
        let subject = TargetId::try_from(subject).expect("a short name");
        Record {
            id: RolloutId::fresh(&subject),
            subject,
            driver: Some(DriverId::fresh()),
            standing: Standing::Open,
            format: 1,
            heard: 0,
            body: r#"{"text":"new"}"#.into(),
        }
    }

    #[track_caller]
    fn refused<T>(result: Result<T, Error>, kind: ErrorKind, says: &[&str]) -> Error {
        let Err(error) = result else { panic!("it must be refused ({kind})") };
        assert_eq!(error.kind(), kind, "{}", error.chain());
        for word in says {
            assert!(error.to_string().contains(word), "must say {word:?}: {}", error.chain());
        }
        error
    }
}
