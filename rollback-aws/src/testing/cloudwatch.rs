//! CloudWatch's room.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Datum,
    wire::{self, Called, Protocol, Refusal, Service},
};

/// What CloudWatch knows.
#[derive(Debug)]
pub(super) struct Room {
    data: VecDeque<Datum>,
}

impl Room {
    pub(super) const fn new(_region: &str, _now: Timestamp) -> Self {
        Self { data: VecDeque::new() }
    }

    /// Takes what a service, or a test, measured.
    pub(super) fn record(&mut self, datum: Datum) {
        self.data.push_back(datum);
    }

    /// Lets everything happen that was to happen until now.
    pub(super) fn pass(&mut self, now: Timestamp) {
        // Three hours, which is how long CloudWatch keeps points finer than a minute.
        while self.data.front().is_some_and(|datum| now.duration_since(datum.at).as_hours() >= 3) {
            self.data.pop_front();
        }
    }

    pub(super) fn answer(
        &self,
        called: &Called,
        _request: &Request<Bytes>,
        _now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        Err(Refusal::new(404, "UnknownOperationException", format!("{} is not simulated", called.operation)))
    }
}

/// Whether a request is for CloudWatch: in JSON (boto3) or in CBOR (the Rust SDK).
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let called = |protocol, operation: &str| {
        Some(Called { service: Service::CloudWatch, protocol, operation: operation.into() })
    };
    if let Some(operation) = request.uri().path().strip_prefix("/service/GraniteServiceVersion20100801/operation/") {
        return called(Protocol::Cbor, operation);
    }
    let target = request.headers().get("x-amz-target")?.to_str().ok()?;
    called(Protocol::Json10, target.strip_prefix("GraniteServiceVersion20100801.")?)
}

/// An error as CloudWatch writes it.
pub(super) fn refuse(_called: &Called, refusal: &Refusal) -> Response<Bytes> {
    let said = json!({ "__type": refusal.code, "message": refusal.message });
    wire::json_answer(refusal.status, "application/x-amz-json-1.0", &said)
}
