//! Real servers: the same as for the tests of rollback-core.

#![expect(dead_code, reason = "these tests do not need all that those need")]

#[path = "../../../rollback-core/tests/it/support/alertmanager.rs"]
pub(crate) mod alertmanager;
#[cfg(feature = "k8s")]
#[path = "../../../rollback-k8s/tests/it/support/cluster.rs"]
pub(crate) mod cluster;
#[cfg(feature = "k8s")]
#[path = "../../../rollback-k8s/tests/it/support/gateway.rs"]
pub(crate) mod gateway;
#[path = "../../../rollback-core/tests/it/support/prometheus.rs"]
pub(crate) mod prometheus;
#[path = "../../../rollback-core/tests/it/support/raw.rs"]
mod raw;
#[path = "../../../rollback-core/tests/it/support/skip.rs"]
mod skip;
#[cfg(feature = "heroku")]
#[path = "../../../rollback-core/tests/it/support/tls.rs"]
pub(crate) mod tls;

pub(crate) use self::skip::skip;
