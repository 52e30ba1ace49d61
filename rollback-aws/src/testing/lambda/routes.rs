//! Which request is which operation.

use std::borrow::Cow;

use bytes::Bytes;
use http::{Method, Request};
use percent_encoding::percent_decode_str;

use crate::testing::wire::{Called, Protocol, Service};

/// The operation of a request for Lambda.
pub(in crate::testing) fn route(request: &Request<Bytes>) -> Option<Called> {
    let path = Path::of(request);
    let method = request.method();
    let rest: Vec<&str> = path.rest.iter().map(String::as_str).collect();
    let operation = match (path.dated.as_str(), method, path.function.is_empty(), rest.as_slice()) {
        ("2015-03-31", &Method::POST, true, []) => "CreateFunction",
        ("2015-03-31", &Method::GET, false, []) => "GetFunction",
        ("2015-03-31", &Method::DELETE, false, []) => "DeleteFunction",
        ("2015-03-31", &Method::GET, false, ["configuration"]) => "GetFunctionConfiguration",
        ("2015-03-31", &Method::PUT, false, ["configuration"]) => "UpdateFunctionConfiguration",
        ("2015-03-31", &Method::PUT, false, ["code"]) => "UpdateFunctionCode",
        ("2015-03-31", &Method::POST, false, ["versions"]) => "PublishVersion",
        ("2015-03-31", &Method::GET, false, ["versions"]) => "ListVersionsByFunction",
        ("2015-03-31", &Method::POST, false, ["aliases"]) => "CreateAlias",
        ("2015-03-31", &Method::GET, false, ["aliases"]) => "ListAliases",
        ("2015-03-31", &Method::GET, false, ["aliases", _]) => "GetAlias",
        ("2015-03-31", &Method::PUT, false, ["aliases", _]) => "UpdateAlias",
        ("2015-03-31", &Method::DELETE, false, ["aliases", _]) => "DeleteAlias",
        ("2015-03-31", &Method::POST, false, ["invocations"]) => "Invoke",
        ("2019-09-30", &Method::PUT, false, ["provisioned-concurrency"]) => "PutProvisionedConcurrencyConfig",
        ("2019-09-30", &Method::DELETE, false, ["provisioned-concurrency"]) => "DeleteProvisionedConcurrencyConfig",
        ("2019-09-30", &Method::GET, false, ["provisioned-concurrency"]) => match path.query("List").as_deref() {
            Some("ALL") => "ListProvisionedConcurrencyConfigs",
            _ => "GetProvisionedConcurrencyConfig",
        },
        _ => return None,
    };
    Some(Called { service: Service::Lambda, protocol: Protocol::RestJson, operation: operation.into() })
}

/// `/2015-03-31/functions/{function}/{rest…}?{query}`, decoded.
#[derive(Debug, Default)]
pub(super) struct Path {
    dated: String,
    pub(super) function: String,
    rest: Vec<String>,
    query: Vec<(String, String)>,
}

impl Path {
    pub(super) fn of(request: &Request<Bytes>) -> Self {
        let mut parts = request.uri().path().trim_matches('/').split('/').map(decoded);
        let (dated, functions) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if functions != "functions" {
            return Self::default();
        }
        let query = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        Self {
            dated,
            function: parts.next().unwrap_or_default(),
            rest: parts.collect(),
            query: query.map(|(name, value)| (decoded(name), decoded(value))).collect(),
        }
    }

    /// A parameter of the query.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// The last part: an alias's name.
    pub(super) fn name(&self) -> &str {
        self.rest.last().map_or("", String::as_str)
    }
}

fn decoded(text: &str) -> String {
    match percent_decode_str(text).decode_utf8_lossy() {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(text) => text,
    }
}
