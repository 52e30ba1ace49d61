//! One connection of either dialect. Every statement of the store is text that both understand.

use sqlx::{
    AssertSqlSafe, Database, Encode, PgConnection, Row as _, SqliteConnection, Type, postgres::PgRow, query::Query,
    sqlite::SqliteRow,
};

use super::place::Place;
use crate::error::Result;

/// A connection, and the name of the place for its errors.
pub(super) struct Session<'c> {
    wire: Wire<'c>,
    place: &'c Place,
}

enum Wire<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

impl<'c> Session<'c> {
    pub(super) const fn sqlite(connection: &'c mut SqliteConnection, place: &'c Place) -> Self {
        Self { wire: Wire::Sqlite(connection), place }
    }

    pub(super) const fn postgres(connection: &'c mut PgConnection, place: &'c Place) -> Self {
        Self { wire: Wire::Postgres(connection), place }
    }

    pub(super) const fn is_sqlite(&self) -> bool {
        matches!(self.wire, Wire::Sqlite(_))
    }

    pub(super) const fn place(&self) -> &'c Place {
        self.place
    }

    /// All rows of a statement, with `$1`, `$2`, … bound.
    pub(super) async fn rows(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row<'c>>> {
        let place = self.place;
        let cells = match &mut self.wire {
            Wire::Sqlite(connection) => bound(sql, params)
                .fetch_all(&mut **connection)
                .await
                .map(|rows| rows.into_iter().map(Cells::Sqlite).collect::<Vec<_>>()),
            Wire::Postgres(connection) => bound(sql, params)
                .fetch_all(&mut **connection)
                .await
                .map(|rows| rows.into_iter().map(Cells::Postgres).collect::<Vec<_>>()),
        };
        let cells = cells.map_err(|e| place.sort(e))?;
        Ok(cells.into_iter().map(|cells| Row { cells, place }).collect())
    }

    /// The first row, if any.
    pub(super) async fn row(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<Option<Row<'c>>> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// Runs a statement that returns nothing, and says how many rows it changed.
    pub(super) async fn changed(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<u64> {
        let changed = match &mut self.wire {
            Wire::Sqlite(connection) => {
                bound(sql, params).execute(&mut **connection).await.map(|done| done.rows_affected())
            }
            Wire::Postgres(connection) => {
                bound(sql, params).execute(&mut **connection).await.map(|done| done.rows_affected())
            }
        };
        changed.map_err(|e| self.place.sort(e))
    }

    /// The one number that a statement without parameters returns.
    pub(super) async fn number(&mut self, sql: &'static str) -> Result<i64> {
        match self.row(sql, &[]).await? {
            Some(row) => row.int(0),
            None => Err(self.place.sort(sqlx::Error::RowNotFound)),
        }
    }

    /// Runs statements of our own making, without parameters and without rows.
    pub(super) async fn batch(&mut self, sql: String) -> Result<()> {
        let statements = sqlx::raw_sql(AssertSqlSafe(sql));
        let done = match &mut self.wire {
            Wire::Sqlite(connection) => statements.execute(&mut **connection).await.map(drop),
            Wire::Postgres(connection) => statements.execute(&mut **connection).await.map(drop),
        };
        done.map_err(|e| self.place.sort(e))
    }
}

/// A value bound to a statement.
#[derive(Clone, Copy)]
pub(super) enum Param<'a> {
    Int(i64),
    Text(&'a str),
    Maybe(Option<&'a str>),
}

fn bound<'q, DB>(sql: &'static str, params: &[Param<'_>]) -> Query<'q, DB, DB::Arguments>
where
    DB: Database,
    i64: for<'t> Encode<'t, DB> + Type<DB>,
    for<'t> Option<&'t str>: Encode<'t, DB> + Type<DB>,
{
    params.iter().fold(sqlx::query(sql), |query, param| match *param {
        Param::Int(number) => query.bind(number),
        Param::Text(text) => query.bind(Some(text)),
        Param::Maybe(text) => query.bind(text),
    })
}

/// A row of either dialect.
pub(super) struct Row<'c> {
    cells: Cells,
    place: &'c Place,
}

enum Cells {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row<'_> {
    pub(super) fn int(&self, column: usize) -> Result<i64> {
        self.maybe_int(column)?.ok_or_else(|| self.place.corrupt())
    }

    pub(super) fn text(&self, column: usize) -> Result<String> {
        self.maybe_text(column)?.ok_or_else(|| self.place.corrupt())
    }

    /// A number that is never negative.
    pub(super) fn count(&self, column: usize) -> Result<u64> {
        u64::try_from(self.int(column)?).map_err(|_| self.place.corrupt())
    }

    pub(super) fn maybe_int(&self, column: usize) -> Result<Option<i64>> {
        match &self.cells {
            Cells::Sqlite(row) => row.try_get(column),
            Cells::Postgres(row) => row.try_get(column),
        }
        .map_err(|e| self.place.sort(e))
    }

    pub(super) fn maybe_text(&self, column: usize) -> Result<Option<String>> {
        match &self.cells {
            Cells::Sqlite(row) => row.try_get(column),
            Cells::Postgres(row) => row.try_get(column),
        }
        .map_err(|e| self.place.sort(e))
    }
}
