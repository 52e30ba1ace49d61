#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod access;
mod client;
mod endpoints;
mod error;
pub mod flux;
pub mod gate;
mod mark;
mod object;
pub mod pair;
pub mod route;
pub mod service;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod unsealed;
mod watch;
pub mod workload;

pub use self::{
    client::Client, pair::CanaryPair, route::HttpRoute, service::ServiceSwitch, watch::Watches,
    workload::StatefulSetCanary, workload::Workload,
};
