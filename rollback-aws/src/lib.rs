#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "account")]
pub mod account;
#[cfg(feature = "cloudformation")]
pub mod cloudformation;
#[cfg(feature = "cloudwatch")]
pub mod cloudwatch;
#[cfg(feature = "codepipeline")]
pub mod codepipeline;
#[cfg(feature = "account")]
pub mod error;
#[cfg(feature = "account")]
pub mod iam;
#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(feature = "responder")]
pub mod responder;
#[cfg(feature = "testing")]
pub mod testing;
