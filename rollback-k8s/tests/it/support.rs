//! What the tests share.

pub(crate) mod cluster;
pub(crate) mod gateway;
pub(crate) mod process;
pub(crate) mod trial;

#[path = "../../../rollback-core/tests/it/support/skip.rs"]
mod skip;

pub(crate) use self::skip::skip;
