#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod access;
mod client;
mod error;
pub mod gate;
mod object;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod watch;
pub mod workload;

pub use self::{client::Client, watch::Watches, workload::Workload};
