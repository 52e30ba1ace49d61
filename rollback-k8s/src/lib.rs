#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod error;
pub mod gate;
pub mod store;
mod watch;

pub use self::{client::Client, watch::Watches};
