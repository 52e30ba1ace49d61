#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "account")]
pub mod account;
#[cfg(feature = "cloudwatch")]
pub mod cloudwatch;
#[cfg(feature = "codedeploy")]
pub mod codedeploy;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
#[cfg(feature = "ecs")]
pub mod ecs;
#[cfg(feature = "account")]
pub mod error;
#[cfg(feature = "account")]
pub mod iam;
#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(feature = "responder")]
pub mod responder;
#[cfg(feature = "route53")]
pub mod route53;
#[cfg(feature = "sns")]
pub mod sns;
#[cfg(feature = "testing")]
pub mod testing;
