//! What is the same on every service's wire: who is asked for what, who signed it, how an error looks.

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde_json::json;

use super::{cloudwatch, codedeploy, ecs, lambda, logs};

/// A service that has a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Lambda,
    CloudWatch,
    CodeDeploy,
    Ecs,
    Logs,
}

/// How a service writes what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// REST with JSON bodies: Lambda.
    RestJson,
    /// JSON with the operation in a header, as CloudWatch by boto3 (1.0).
    Json10,
    /// The same of version 1.1, as CodeDeploy and ECS.
    Json11,
    /// CBOR with the operation in the path, as CloudWatch by the Rust SDK.
    Cbor,
}

/// A request that a room has claimed.
#[derive(Clone, Debug)]
pub(super) struct Called {
    pub(super) service: Service,
    pub(super) protocol: Protocol,
    /// As in `UpdateAlias`.
    pub(super) operation: String,
}

/// The room that a request is for.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let rooms = [lambda::route, cloudwatch::route, codedeploy::route, ecs::route, logs::route];
    rooms.iter().find_map(|room| room(request))
}

impl Called {
    /// As policies name it, `lambda:UpdateAlias`.
    pub(super) fn action(&self) -> String {
        let service = match self.service {
            Service::Lambda => "lambda",
            Service::CloudWatch => "cloudwatch",
            Service::Logs => "logs",
            Service::CodeDeploy => "codedeploy",
            Service::Ecs => "ecs",
        };
        // The one operation of these whose action has another name.
        let action = if self.operation == "Invoke" { "InvokeFunction" } else { &self.operation };
        format!("{service}:{action}")
    }

    /// An error as this service writes it.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response<Bytes> {
        match self.protocol {
            Protocol::RestJson => lambda::refuse(refusal),
            Protocol::Json10 | Protocol::Cbor => cloudwatch::refuse(self, refusal),
            Protocol::Json11 => refuse_json_1_1(refusal),
        }
    }

    /// Throttling as this service spells it.
    pub(super) fn throttling(&self) -> Refusal {
        match self.service {
            Service::Lambda => Refusal::new(429, "TooManyRequestsException", "Rate exceeded"),
            _ => Refusal::new(400, "ThrottlingException", "Rate exceeded"),
        }
    }
}

/// A service's no: status, code and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// As in `ResourceNotFoundException`.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal with this status, code and message.
    pub fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }
}

/// Who signed a request, where and when (signature version 4). The signature itself is not checked: any secret is good.
pub(super) struct Signed<'a> {
    pub(super) access_key: &'a str,
    pub(super) region: &'a str,
    pub(super) at: Timestamp,
}

impl<'a> Signed<'a> {
    pub(super) fn of(request: &'a Request<Bytes>) -> Option<Self> {
        let text = |name| request.headers().get(name)?.to_str().ok();
        let (_, credential) = text("authorization")?.split_once("Credential=")?;
        // KEY/20260101/us-east-1/lambda/aws4_request, …
        let mut scope = credential.split([',', ' ']).next()?.split('/');
        let (access_key, _, region) = (scope.next()?, scope.next()?, scope.next()?);
        let at = DateTime::strptime("%Y%m%dT%H%M%SZ", text("x-amz-date")?).ok()?;
        Some(Self { access_key, region, at: at.to_zoned(TimeZone::UTC).ok()?.timestamp() })
    }
}

/// The operation of a JSON 1.1 request to the service with this prefix, as `CodeDeploy_20141006.`.
pub(super) fn json_1_1(request: &Request<Bytes>, prefix: &str) -> Option<String> {
    request.headers().get("x-amz-target")?.to_str().ok()?.strip_prefix(prefix).map(str::to_owned)
}

/// An error as services of JSON 1.1 write it: the code in the body.
fn refuse_json_1_1(refusal: &Refusal) -> Response<Bytes> {
    json_answer(refusal.status, JSON_1_1, &json!({ "__type": refusal.code, "message": refusal.message }))
}

/// The type of JSON 1.1.
pub(super) const JSON_1_1: &str = "application/x-amz-json-1.1";

/// What a request gets that is for no room.
pub(super) fn nobody(request: &Request<Bytes>) -> Response<Bytes> {
    let said =
        json!({ "__type": "UnknownOperationException", "message": format!("no room for {}", request.uri().path()) });
    json_answer(404, JSON_1_1, &said)
}

/// The body of a request in JSON 1.1; none is an empty object.
pub(super) fn json_body(request: &Request<Bytes>) -> Result<serde_json::Value, Refusal> {
    if request.body().is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(request.body())
        .map_err(|_| Refusal::new(400, "SerializationException", "the body cannot be read as JSON"))
}

/// A page of HTML, as something between client and service gives it.
pub(super) fn page(status: u16, body: &'static str) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/html"));
    answer
}

/// An answer of JSON, with a request id as every answer of AWS has one.
pub(super) fn json_answer(status: u16, kind: &'static str, body: &serde_json::Value) -> Response<Bytes> {
    bytes_answer(status, kind, Bytes::from(body.to_string()))
}

/// An answer of these bytes, with a request id as every answer of AWS has one.
pub(super) fn bytes_answer(status: u16, kind: &'static str, body: Bytes) -> Response<Bytes> {
    let id = uuid::Uuid::new_v4().to_string();
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .header("x-amzn-requestid", id)
        .body(body)
        .expect("a status between 100 and 599 and plain headers")
}
