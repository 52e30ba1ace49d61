//! Tests that lack what they need.

/// Says on standard error that a test is skipped, past the test harness, which hides what a passing test prints.
///
/// # Panics
/// When `ROLLBACK_TEST_REQUIRE` is `all` or names what is missing.
pub(crate) fn skip(missing: &str, why: &str) {
    use std::io::Write as _;
    let required = std::env::var("ROLLBACK_TEST_REQUIRE").unwrap_or_default();
    let required = required.split([',', ' ']).any(|name| name == "all" || name == missing);
    assert!(!required, "ROLLBACK_TEST_REQUIRE asks for {missing}: {why}");
    writeln!(std::io::stderr(), "skipped, {missing} is missing: {why}").expect("standard error is open");
}
