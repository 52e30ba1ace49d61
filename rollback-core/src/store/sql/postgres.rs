//! Records in PostgreSQL: a pool, and a transaction for every write.

use std::{str::FromStr, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    place::Place,
    schema,
    session::Session,
    work::{Answer, Write},
};
use crate::error::{Error, Result};

/// A server.
#[derive(Clone)]
pub(super) struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Where this URL leads, without what is secret in it.
    pub(super) fn parse(url: &str) -> Result<(PgConnectOptions, Place)> {
        // The words of the parser may quote the URL, and with it the password.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| Error::invalid("the store URL cannot be read; expected postgres://user@host:5432/database"))?;
        // What the address says is not secret; what comes before the @ is nobody's business.
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().into(),
        };
        let database = options.get_database().unwrap_or_default();
        let place = Place::Server(format!("postgres://{host}:{}/{database}", options.get_port()));
        let named = options.get_application_name().is_some();
        let options = if named { options } else { options.application_name("rollback") };
        Ok((sqlx::ConnectOptions::disable_statement_logging(options), place))
    }

    /// Connects and brings the tables up to date.
    pub(super) async fn connect(options: PgConnectOptions, place: &Place) -> Result<Self> {
        // Not through the pool, which would retry a wrong address until it can only say that time was up.
        let mut first = PgConnection::connect_with(&options).await.map_err(|e| place.sort(e))?;
        if schema::version(&mut Session::postgres(&mut first, place)).await? != schema::VERSION {
            let mut transaction = first.begin_with(BEGIN).await.map_err(|e| place.sort(e))?;
            let mut session = Session::postgres(&mut transaction, place);
            // Two processes may start at once; the second finds the tables ready.
            session.number("SELECT 1::bigint FROM pg_advisory_xact_lock(5930022817)").await?;
            schema::migrate(&mut session).await?;
            transaction.commit().await.map_err(|e| place.sort(e))?;
        }
        drop(first.close().await);
        let pool = PgPoolOptions::new()
            .max_connections(10)
            .acquire_timeout(Duration::from_secs(5))
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(MANNERS).execute(connection).await.map(drop) })
            })
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    pub(super) async fn write(&self, write: &Write, keep: i64, place: &Place) -> Result<Answer> {
        let mut transaction = self.pool.begin_with(BEGIN).await.map_err(|e| place.sort(e))?;
        let answer = write.run(&mut Session::postgres(&mut transaction, place), keep).await?;
        transaction.commit().await.map_err(|e| place.unknown(e))?;
        Ok(answer)
    }

    pub(super) async fn reader(&self, place: &Place) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>> {
        self.pool.acquire().await.map_err(|e| place.sort(e))
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// The statements rely on seeing what others committed while they waited for a row.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// Whatever the server's defaults are: what we call saved is on its disk, and no statement outlives its caller by much.
const MANNERS: &str = "
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
    SET statement_timeout = '10s';
    SET idle_in_transaction_session_timeout = '30s'";
