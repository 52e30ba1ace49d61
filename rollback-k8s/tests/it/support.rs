//! What the tests share.

pub(crate) mod cluster;

#[path = "../../../rollback-core/tests/it/support/skip.rs"]
mod skip;

pub(crate) use self::skip::skip;
