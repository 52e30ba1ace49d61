//! What the quickstart is made of. Start with [`proxy`]: it is the tutorial "write your own backend".
//!
//! | module | what it is |
//! |---|---|
//! | [`proxy`] | the backend: all that a platform of your own needs |
//! | [`gates`] | two health gates: an error rate that remembers, and a probe |
//! | [`admin`] | the platform's API and a client for it: what the backend and the gates talk to |
//! | [`router`] | the platform: a small weighted reverse proxy that starts and stops releases |
//! | [`service`] | what is released: a small HTTP service |
//! | [`traffic`] | its users |
//! | [`stage`] | the state folder, and the processes that are found again through it |
//! | [`timeline`] | the report at the end |
//! | [`http`] | HTTP over loopback |
//! | `aws` | what the tools for AWS share (feature `aws`) |
//! | `tool` | what the tools for real platforms share (their features) |
//! | `heroku` | what `heroku-release` and `heroku-promote` share (feature `heroku`) |

pub mod admin;
#[cfg(feature = "aws")]
pub mod aws;
pub mod gates;
#[cfg(feature = "heroku")]
pub mod heroku;
pub mod http;
pub mod proxy;
pub mod router;
pub mod service;
pub mod stage;
pub mod timeline;
#[cfg(any(feature = "aws", feature = "heroku", feature = "k8s"))]
pub mod tool;
pub mod traffic;
