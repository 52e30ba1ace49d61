#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod api;
mod app;
mod candidate;
pub mod client;
mod fleet;
pub mod gate;
mod history;
mod promotion;
mod site;
#[cfg(feature = "testing")]
pub mod testing;
mod upload;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use self::{app::App, candidate::Candidate, client::Client, promotion::Promotion};
