//! Where a store is, for people, and what went wrong there.

use std::{fmt, io, path::PathBuf, time::Duration};

use sqlx::error::DatabaseError;

use crate::error::{Error, ErrorKind};

/// The name of a store: a file, or a server and its database. Never a user's password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Server(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the store file {}", path.display()),
            Self::Server(name) => write!(f, "the store {name}"),
        }
    }
}

impl Place {
    /// What an error of the database means to whoever called. The one place that knows the codes.
    ///
    /// The cause is kept as its text: the structure of a server's error may quote a row, and rows are private.
    pub(super) fn sort(&self, error: sqlx::Error) -> Error {
        let (kind, what) = match &error {
            sqlx::Error::Database(e) => match self {
                Self::File(_) => sqlite(&**e),
                Self::Server(_) => postgres(&**e),
            },
            sqlx::Error::Io(e) => return self.io(e),
            sqlx::Error::Tls(_) => (ErrorKind::Unavailable, "offers no TLS connection that we accept"),
            sqlx::Error::PoolTimedOut => (ErrorKind::Unavailable, "has no free connection"),
            sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "was closed"),
            sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) | sqlx::Error::BeginFailed => {
                (ErrorKind::Unavailable, "broke off the conversation")
            }
            sqlx::Error::Configuration(_) => (ErrorKind::Invalid, "is configured in a way that cannot work"),
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. } => return self.corrupt().because(error.to_string()),
            _ => (ErrorKind::Internal, "answered in an unexpected way"),
        };
        Error::new(kind, format!("{self} {what}")).because(error.to_string())
    }

    /// What a failed commit means: nobody knows, whatever the code says.
    pub(super) fn unknown(&self, error: sqlx::Error) -> Error {
        let cause = error.to_string();
        Error::new(ErrorKind::Unavailable, self.sort(error).to_string()).because(cause)
    }

    /// What an error of the operating system means.
    pub(super) fn io(&self, error: &io::Error) -> Error {
        let (kind, what) = match error.kind() {
            io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "may not be read and written by this user"),
            io::ErrorKind::ReadOnlyFilesystem => (ErrorKind::Denied, "is on a read-only file system"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::Unavailable, "cannot be written: the disk is full")
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if matches!(self, Self::File(_)) => {
                (ErrorKind::Invalid, "cannot be created: its folder does not exist")
            }
            _ => (ErrorKind::Unavailable, "cannot be reached"),
        };
        Error::new(kind, format!("{self} {what}")).because(error.to_string())
    }

    pub(super) fn corrupt(&self) -> Error {
        Error::invalid(format!("{self} is corrupt; restore it from a copy"))
    }

    pub(super) fn silent(&self, after: Duration) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{self} has not answered for {} s", after.as_secs()))
    }
}

/// <https://www.sqlite.org/rescode.html>
fn sqlite(error: &dyn DatabaseError) -> (ErrorKind, &'static str) {
    let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or(1);
    match code & 0xff {
        // 2067 and 1555: UNIQUE and PRIMARY KEY.
        19 if matches!(code, 1555 | 2067) => (ErrorKind::Conflict, "has another open rollout of this subject"),
        19 => (ErrorKind::Invalid, "refused the record"),
        5 | 6 | 15 => (ErrorKind::Unavailable, "is locked by another process"),
        13 => (ErrorKind::Unavailable, "cannot be written: the disk is full"),
        // The memory beside a write-ahead log could not be given its size.
        10 if code == 4874 => (ErrorKind::Unavailable, "cannot be written: the disk is full, or nearly"),
        7 | 9 | 10 => (ErrorKind::Unavailable, "cannot be read or written"),
        // Moved or deleted while we had it open.
        8 if code == 1032 => (ErrorKind::Unavailable, "was moved or deleted while in use"),
        3 | 8 | 23 => (ErrorKind::Denied, "is read-only"),
        14 => (ErrorKind::Denied, "cannot be opened, or files beside it cannot be created"),
        11 => (ErrorKind::Invalid, "is corrupt; restore it from a copy"),
        26 => (ErrorKind::Invalid, "is not a SQLite database"),
        18 => (ErrorKind::Invalid, "refused a record that is too large"),
        _ => (ErrorKind::Internal, "refused a statement"),
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres(error: &dyn DatabaseError) -> (ErrorKind, &'static str) {
    let code = error.code().unwrap_or_default();
    match &*code {
        "23505" => (ErrorKind::Conflict, "has another open rollout of this subject"),
        "42501" => (ErrorKind::Denied, "does not let this user do that"),
        "25006" => (ErrorKind::Denied, "is read-only, as a standby is"),
        "53100" => (ErrorKind::Unavailable, "cannot be written: the disk is full"),
        "53300" => (ErrorKind::Unavailable, "has no connection to spare"),
        "3D000" => (ErrorKind::Invalid, "does not exist; create the database first"),
        "3F000" => (ErrorKind::Invalid, "has no schema to create tables in; create it first"),
        "42P07" | "42710" => (ErrorKind::Invalid, "has tables of ours without our mark; it belongs to another program"),
        "42P01" | "42703" => (ErrorKind::Invalid, "lacks tables or columns that belong to a store"),
        "22021" | "22P05" => (ErrorKind::Invalid, "cannot keep this text, which has a NUL or an unknown character"),
        "XX001" | "XX002" => (ErrorKind::Invalid, "is corrupt; restore it from a copy"),
        "55P03" | "40001" | "40P01" => (ErrorKind::Unavailable, "is busy with other transactions"),
        code => match code.get(..2).unwrap_or_default() {
            "28" => (ErrorKind::Denied, "does not accept these credentials"),
            "08" | "53" | "57" | "58" => (ErrorKind::Unavailable, "is not ready to answer"),
            "22" | "23" => (ErrorKind::Invalid, "refused the record"),
            _ => (ErrorKind::Internal, "refused a statement"),
        },
    }
}
