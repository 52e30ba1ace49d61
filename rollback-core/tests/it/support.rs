//! What the tests share, and what they need from outside.

#[cfg(all(feature = "alertmanager", feature = "http", feature = "prometheus", feature = "receiver"))]
pub(crate) mod alertmanager;
pub(crate) mod away;
#[cfg(any(feature = "email", feature = "webhook"))]
pub(crate) mod events;
#[cfg(any(feature = "email", feature = "webhook"))]
pub(crate) mod logs;
#[cfg(feature = "sql")]
pub(crate) mod postgres;
#[cfg(all(feature = "http", feature = "prometheus"))]
pub(crate) mod prometheus;
#[cfg(any(feature = "webhook", all(feature = "http", feature = "prometheus")))]
pub(crate) mod raw;
pub(crate) mod scene;
#[cfg(any(feature = "email", feature = "sql", feature = "webhook", all(feature = "http", feature = "prometheus")))]
mod skip;
#[cfg(all(feature = "sql", unix))]
pub(crate) mod target;
#[cfg(any(
    feature = "email",
    all(feature = "alertmanager", feature = "http", feature = "prometheus", feature = "receiver")
))]
pub(crate) mod tls;
#[cfg(all(feature = "sql", unix))]
pub(crate) mod trace;

#[cfg(any(
    feature = "email",
    feature = "sql",
    feature = "webhook",
    all(feature = "http", feature = "prometheus")
))]
pub(crate) use self::skip::skip;
