//! What the tests share, and what they need from outside.

#[cfg(all(feature = "alertmanager", feature = "http", feature = "prometheus", feature = "receiver"))]
pub(crate) mod alertmanager;
pub(crate) mod away;
#[cfg(any(feature = "email", feature = "webhook"))]
pub(crate) mod events;
#[cfg(feature = "sql")]
pub(crate) mod postgres;
#[cfg(all(feature = "http", feature = "prometheus"))]
pub(crate) mod prometheus;
#[cfg(all(feature = "http", feature = "prometheus"))]
pub(crate) mod raw;
pub(crate) mod scene;
#[cfg(all(feature = "sql", unix))]
pub(crate) mod target;
#[cfg(any(feature = "email", all(feature = "http", feature = "prometheus")))]
pub(crate) mod tls;
#[cfg(all(feature = "sql", unix))]
pub(crate) mod trace;

/// Says on standard error that a test is skipped, past the test harness, which hides what a passing test prints.
///
/// # Panics
/// When `ROLLBACK_TEST_REQUIRE` is `all` or names what is missing.
#[cfg(any(feature = "email", feature = "sql", feature = "webhook", all(feature = "http", feature = "prometheus")))]
pub(crate) fn skip(missing: &str, why: &str) {
    use std::io::Write as _;
    let required = std::env::var("ROLLBACK_TEST_REQUIRE").unwrap_or_default();
    let required = required.split([',', ' ']).any(|name| name == "all" || name == missing);
    assert!(!required, "ROLLBACK_TEST_REQUIRE asks for {missing}: {why}");
    writeln!(std::io::stderr(), "skipped, {missing} is missing: {why}").expect("standard error is open");
}
