//! The programs, and their parts.

#[cfg(feature = "compare")]
mod backtest;
#[cfg(feature = "aws")]
mod codedeploy;
#[cfg(feature = "aws")]
mod ecs;
#[cfg(feature = "heroku")]
mod heroku;
#[cfg(feature = "k8s")]
mod k8s;
#[cfg(feature = "aws")]
mod lambda;
mod proxy;
mod quickstart;
#[cfg(feature = "aws-responder")]
mod responder;
mod servers;
mod support;
#[cfg(feature = "heroku")]
mod tls;
