//! The one error of this crate: [`kind`](Error::kind) for code, `Display` for people, `source` for the cause.

use std::{error::Error as StdError, fmt, time::Duration};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, said for the person who reads it at night.
///
/// `Display` is one lower-case clause without its source, so a chain reads well:
/// `shifting checkout to 25 %: throttled`. Match on [`kind`](Self::kind), never on the text.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    retry_after: Option<Duration>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind. The message is one lower-case clause that names the thing, the value and what would
    /// have been accepted.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, source: None }
    }

    /// [`ErrorKind::Invalid`]: the input can never work.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// With the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// With the time the service asked us to wait.
    #[must_use]
    pub const fn retry_in(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// This error as the cause of a wider one of the same kind: `Error` of "reading the target" becomes
    /// "preflight of checkout: reading the target".
    #[must_use]
    pub fn during(self, what: impl fmt::Display) -> Self {
        let kind = self.kind;
        let retry_after = self.retry_after;
        Self { kind, message: what.to_string(), retry_after, source: Some(Box::new(self)) }
    }

    /// What the caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// How long the service asked us to wait, where it said so.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the same call may succeed later: `Throttled` or `Unavailable`.
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Throttled | ErrorKind::Unavailable)
    }

    /// Whether the service said that nothing was changed. Everything else (a timeout, a cut connection, a 500) leaves
    /// it unknown.
    pub const fn changed_nothing(&self) -> bool {
        match self.kind {
            ErrorKind::NotFound
            | ErrorKind::Denied
            | ErrorKind::Invalid
            | ErrorKind::Unsupported
            | ErrorKind::Conflict
            | ErrorKind::Mixed
            | ErrorKind::Throttled => true,
            ErrorKind::Unavailable | ErrorKind::Internal => false,
        }
    }

    /// The whole chain in one line, cause after cause.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

/// What the caller of a failed operation can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The thing named does not exist.
    NotFound,
    /// We may not: credentials are missing, expired or lack a permission.
    Denied,
    /// The input can never work; the message says what would.
    Invalid,
    /// The platform or backend cannot do this.
    Unsupported,
    /// Somebody was faster: look again, then decide again.
    Conflict,
    /// Some parts of the target serve one revision and some another.
    Mixed,
    /// Asked too often; nothing was changed. See [`Error::retry_after`].
    Throttled,
    /// No answer, or none that tells what happened: the call may have landed.
    Unavailable,
    /// A broken answer, a panic, or a bug; the call may have landed.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Conflict => "conflict",
            Self::Mixed => "mixed",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        })
    }
}
