#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod access;
mod client;
mod error;
mod object;
#[cfg(feature = "testing")]
pub mod testing;
pub mod workload;

pub use self::{client::Client, workload::Workload};
