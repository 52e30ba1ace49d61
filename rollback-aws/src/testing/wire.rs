//! What is the same on every service's wire: who is asked for what, who signed it, how an error looks.

use std::{collections::BTreeMap, fmt::Write as _};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde_json::{Value, json};

use super::{cloudformation, cloudwatch, codedeploy, codepipeline, dynamodb, ecr, ecs, lambda, logs, route53, s3, sns};

/// A service that has a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    CloudFormation,
    CloudWatch,
    CodeDeploy,
    CodePipeline,
    DynamoDb,
    Ecr,
    Ecs,
    Lambda,
    Logs,
    Route53,
    S3,
    Sns,
}

/// How a service writes what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// REST with JSON bodies: Lambda.
    RestJson,
    /// JSON with the operation in a header (1.0): DynamoDB, and CloudWatch by boto3.
    Json10,
    /// The same of version 1.1, as CodeDeploy, ECR and ECS.
    Json11,
    /// CBOR with the operation in the path, as CloudWatch by the Rust SDK.
    Cbor,
    /// A form with the operation in it, answered in XML: CloudFormation, SNS.
    Query,
    /// REST with bodies of XML: Route 53, S3.
    RestXml,
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
    let rooms = [
        // First, as its paths are anybody's.
        s3::route,
        cloudformation::route,
        cloudwatch::route,
        codedeploy::route,
        codepipeline::route,
        dynamodb::route,
        ecr::route,
        ecs::route,
        lambda::route,
        logs::route,
        route53::route,
        sns::route,
    ];
    rooms.iter().find_map(|room| room(request))
}

impl Called {
    /// As policies name it, `lambda:UpdateAlias`.
    pub(super) fn action(&self) -> String {
        let service = match self.service {
            Service::CloudWatch => "cloudwatch",
            Service::CodeDeploy => "codedeploy",
            Service::DynamoDb => "dynamodb",
            Service::Ecr => "ecr",
            Service::Ecs => "ecs",
            Service::Lambda => "lambda",
            Service::Logs => "logs",
            Service::Route53 => "route53",
            Service::S3 => "s3",
            Service::Sns => "sns",
            Service::CloudFormation => "cloudformation",
            Service::CodePipeline => "codepipeline",
        };
        // The one operation of these whose action has another name.
        let action = if self.operation == "Invoke" { "InvokeFunction" } else { &self.operation };
        format!("{service}:{action}")
    }

    /// What whoever sends this must be allowed: its own action, except where it is allowed by what it is made of.
    pub(super) fn needs(&self, request: &Request<Bytes>) -> Vec<String> {
        match (self.service, self.operation.as_str()) {
            (Service::CodeDeploy, "CreateDeployment") => codedeploy::needs(request),
            (Service::DynamoDb, "TransactWriteItems") => dynamodb::needs(request),
            (Service::Ecs, _) => ecs::needs(self, request),
            (Service::S3, operation) => vec![s3::needs(operation, request)],
            _ => vec![self.action()],
        }
    }

    /// An error as this service writes it.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response<Bytes> {
        match self.protocol {
            _ if self.service == Service::DynamoDb => dynamodb::refuse(refusal),
            Protocol::RestJson => lambda::refuse(refusal),
            Protocol::Json10 | Protocol::Cbor => cloudwatch::refuse(self, refusal),
            Protocol::Json11 => refuse_json_1_1(refusal),
            Protocol::Query if self.service == Service::CloudFormation => {
                query_refusal(cloudformation::NAMESPACE, refusal)
            }
            Protocol::Query => query_refusal(sns::NAMESPACE, &sns::spelled(refusal)),
            Protocol::RestXml if self.service == Service::S3 => s3::refuse(&self.operation, &spelled(refusal)),
            Protocol::RestXml => query_refusal(route53::NAMESPACE, &spelled(refusal)),
        }
    }

    /// Throttling as this service spells it.
    pub(super) fn throttling(&self) -> Refusal {
        match self.service {
            Service::Lambda => Refusal::new(429, "TooManyRequestsException", "Rate exceeded"),
            Service::CloudWatch
            | Service::CodeDeploy
            | Service::CodePipeline
            | Service::Ecr
            | Service::Ecs
            | Service::Logs => Refusal::new(400, "ThrottlingException", "Rate exceeded"),
            Service::DynamoDb => Refusal::new(
                400,
                "ProvisionedThroughputExceededException",
                "The level of configured provisioned throughput for the table was exceeded. Consider increasing your \
                 provisioning level with the UpdateTable API.",
            ),
            Service::CloudFormation | Service::Route53 => Refusal::new(400, "Throttling", "Rate exceeded"),
            Service::S3 => Refusal::new(503, "SlowDown", "Please reduce your request rate."),
            Service::Sns => Refusal::new(429, "Throttled", "Rate exceeded"),
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
    pub(super) service: &'a str,
    pub(super) at: Timestamp,
}

impl<'a> Signed<'a> {
    pub(super) fn of(request: &'a Request<Bytes>) -> Option<Self> {
        let text = |name| request.headers().get(name)?.to_str().ok();
        let (_, credential) = text("authorization")?.split_once("Credential=")?;
        // KEY/20260101/us-east-1/lambda/aws4_request, …
        let mut scope = credential.split([',', ' ']).next()?.split('/');
        let (access_key, _, region, service) = (scope.next()?, scope.next()?, scope.next()?, scope.next()?);
        let at = DateTime::strptime("%Y%m%dT%H%M%SZ", text("x-amz-date")?).ok()?;
        Some(Self { access_key, region, service, at: at.to_zoned(TimeZone::UTC).ok()?.timestamp() })
    }
}

/// An error of the front door as Route 53 and S3 spell it.
fn spelled(refusal: &Refusal) -> Refusal {
    let code = match refusal.code.as_str() {
        "AccessDeniedException" => "AccessDenied",
        "ExpiredTokenException" => "ExpiredToken",
        "InvalidSignatureException" => "SignatureDoesNotMatch",
        "MissingAuthenticationTokenException" => "MissingAuthenticationToken",
        other => other,
    };
    Refusal { code: code.into(), ..refusal.clone() }
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
pub(super) fn json_body(request: &Request<Bytes>) -> Result<Value, Refusal> {
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
pub(super) fn json_answer(status: u16, kind: &'static str, body: &Value) -> Response<Bytes> {
    bytes_answer(status, kind, Bytes::from(body.to_string()))
}

/// The form of a request by the query protocol.
pub(super) fn query(request: &Request<Bytes>) -> Option<BTreeMap<String, String>> {
    let decoded = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced).decode_utf8().ok().map(String::from)
    };
    let body = std::str::from_utf8(request.body()).ok()?;
    body.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decoded(name)?, decoded(value)?))
        })
        .collect()
}

/// An answer by the query protocol: the result within the operation's two wrappers. A list is written as `member`s.
pub(super) fn query_answer(operation: &str, namespace: &str, result: Option<&Value>) -> Response<Bytes> {
    let metadata = json!({ "RequestId": uuid::Uuid::new_v4().to_string() });
    // The result comes first: the SDK looks for it nowhere else.
    let result = result.map(|result| (format!("{operation}Result"), result));
    let parts = result.into_iter().chain([("ResponseMetadata".to_owned(), &metadata)]);
    xml_answer(200, &format!("{operation}Response"), namespace, parts)
}

fn xml_answer<'a>(
    status: u16,
    root: &str,
    namespace: &str,
    parts: impl IntoIterator<Item = (String, &'a Value)>,
) -> Response<Bytes> {
    let mut text = format!("<{root} xmlns=\"{namespace}\">");
    for (name, part) in parts {
        element(&mut text, &name, part);
    }
    let _ = write!(text, "</{root}>");
    bytes_answer(status, "text/xml", Bytes::from(text))
}

fn element(text: &mut String, name: &str, value: &Value) {
    let _ = write!(text, "<{name}>");
    xml(text, value);
    let _ = write!(text, "</{name}>");
}

/// Objects are elements, the members of lists are called `member`.
pub(super) fn xml(text: &mut String, value: &Value) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (name, member) in members.iter().filter(|(_, member)| !member.is_null()) {
                // The entries of a map stand side by side.
                if let (Value::Array(entries), "entry") = (member, name.as_str()) {
                    for entry in entries {
                        xml(text, &json!({ "entry": entry }));
                    }
                    continue;
                }
                element(text, name, member);
            }
        }
        Value::Array(members) => {
            for member in members {
                element(text, "member", member);
            }
        }
        Value::String(words) => {
            for c in words.chars() {
                match c {
                    '&' => text.push_str("&amp;"),
                    '<' => text.push_str("&lt;"),
                    '>' => text.push_str("&gt;"),
                    // A bare one would be read as a line feed.
                    '\r' => text.push_str("&#13;"),
                    c => text.push(c),
                }
            }
        }
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

/// An error by the query protocol.
fn query_refusal(namespace: &str, refusal: &Refusal) -> Response<Bytes> {
    let whose = if refusal.status >= 500 { "Receiver" } else { "Sender" };
    let error = json!({ "Type": whose, "Code": refusal.code, "Message": refusal.message });
    let id = json!(uuid::Uuid::new_v4().to_string());
    let parts = [("Error".to_owned(), &error), ("RequestId".to_owned(), &id)];
    xml_answer(refusal.status, "ErrorResponse", namespace, parts)
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
