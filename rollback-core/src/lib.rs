#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
#[cfg(any(feature = "courier", feature = "report"))]
mod brief;
pub mod clock;
pub mod engine;
pub mod error;
pub mod gate;
pub mod hook;
pub mod listener;
pub mod model;
pub mod plan;
#[cfg(feature = "receiver")]
pub mod receiver;
#[cfg(feature = "report")]
pub mod report;
pub mod request;
pub mod rollout;
pub mod state;
pub mod store;
pub mod strategy;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "email", feature = "web"))]
mod tls;
mod wake;
#[cfg(feature = "web")]
pub mod web;

pub use self::{
    error::{Error, ErrorKind, Result},
    wake::Wake,
};
