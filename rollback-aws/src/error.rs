//! What AWS says, sorted: [`sorted`] is the one place that knows its codes.
//!
//! Every backend and gate of this crate fails with [`rollback_core::Error`]. Services spell one and the same trouble in
//! many ways (`Throttling`, `ThrottlingException`, `RequestLimitExceeded`, …; with and without `Exception`; modelled or
//! not), so codes are compared without their ending and without regard to the service.

use std::{error::Error as StdError, fmt};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::{
    client::{orchestrator::HttpResponse, result::SdkError},
    http::Headers,
};
use aws_smithy_types::error::{display::DisplayErrorContext, metadata::ProvideErrorMetadata};
use rollback_core::{Error, ErrorKind};

/// An SDK error as core's: `what` says what was being done, as in "reading the alias checkout:live".
///
/// An answer that was lost is `Unavailable`, whatever the SDK made of it: the call may have landed. An answer that is no
/// AWS error at all (a proxy's HTML, an emulator's 404 page) is never taken for one.
pub fn sorted<E>(what: impl fmt::Display, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    // Before anything else: without credentials no request was signed, so none was sent.
    if let Some(credentials) = credentials_error(&error) {
        let why = format!("{what}: there are no usable credentials; renew them, and it goes on");
        return Error::new(ErrorKind::Denied, why).because(Said(DisplayErrorContext(credentials).to_string()));
    }
    match &error {
        SdkError::ServiceError(context) => {
            let metadata = context.err().meta();
            said(what, context.raw(), metadata.code(), metadata.message())
        }
        SdkError::ResponseError(context) => said(what, context.raw(), None, None),
        SdkError::ConstructionFailure(_) => {
            Error::invalid(format!("{what}: the request cannot be made")).because(told(&error))
        }
        SdkError::TimeoutError(_) => {
            Error::new(ErrorKind::Unavailable, format!("{what}: no answer in time")).because(told(&error))
        }
        _ => Error::new(ErrorKind::Unavailable, format!("{what}: no answer")).because(told(&error)),
    }
}

/// Sorts an answer that came. Without a code it is not AWS that speaks, or not in words that the SDK understands.
fn said(what: impl fmt::Display, raw: &HttpResponse, code: Option<&str>, message: Option<&str>) -> Error {
    let status = raw.status().as_u16();
    let id = ["x-amzn-requestid", "x-amz-request-id"].iter().find_map(|name| raw.headers().get(*name));
    // S3's SDK makes this code of any 404 without a body, whoever answered.
    let code = code.filter(|code| *code != "NotFound" || id.is_some());
    let full = code.unwrap_or_default();
    let message = message.unwrap_or_default();
    let kind = kind(status, full, message);
    let clause = match id {
        // S3 has no words for a HEAD.
        Some(_) if full.is_empty() && raw.body().bytes().is_none_or(<[u8]>::is_empty) => {
            format!("AWS answers {status}, and does not say why")
        }
        _ => clause(kind, status, full, message),
    };
    let id = id.unwrap_or("none");
    let text = match code {
        Some(code) => format!("{code}: {message} (status {status}, request {id})"),
        None => format!("an answer without an AWS error code (status {status}, request {id})"),
    };
    let error = Error::new(kind, format!("{what}: {clause}")).because(Said(text));
    match retry_after(raw.headers()) {
        Some(after) if kind == ErrorKind::Throttled => error.retry_in(after),
        _ => error,
    }
}

/// What the caller can do about an answer.
fn kind(status: u16, full: &str, message: &str) -> ErrorKind {
    let code = bare(full);
    match code {
        // Spelled this way by one service or another, and all are one thing; a 400 as often as a 429 or a 503.
        "Throttling"
        | "Throttled"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "SlowDown"
        | "BandwidthLimitExceeded"
        | "EC2Throttled"
        | "KMSThrottling"
        | "ProvisionedThroughputExceeded"
        | "PriorRequestNotComplete" => ErrorKind::Throttled,
        "AccessDenied"
        | "UnauthorizedOperation"
        | "NotAuthorized"
        | "AuthFailure"
        | "OptInRequired"
        | "Forbidden"
        | "UnrecognizedClient"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "MissingAuthenticationToken"
        | "IncompleteSignature"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "RequestInTheFuture"
        | "KMSAccessDenied"
        | "PublicPolicy" => ErrorKind::Denied,
        "PreconditionFailed"
        | "ResourceConflict"
        | "Conflict"
        | "ConcurrentModification"
        | "OperationAborted"
        | "ResourceInUse" => ErrorKind::Conflict,
        // Unmodelled wherever a value breaks the model's own limits, so the SDK has no variant for it.
        "Validation"
        | "ValidationError"
        | "InvalidParameterValue"
        | "InvalidParameterCombination"
        | "InvalidParameter"
        | "InvalidParameterInput"
        | "MissingParameter"
        | "MissingRequiredParameter"
        | "Serialization"
        | "InvalidRequestContent"
        | "MalformedInput" => ErrorKind::Invalid,
        "UnknownOperation" | "InvalidAction" | "UnsupportedOperation" | "NotImplemented" | "OperationNotPermitted" => {
            ErrorKind::Unsupported
        }
        "Service"
        | "ServiceUnavailable"
        | "InternalFailure"
        | "InternalServer"
        | "InternalServiceError"
        | "InternalServiceFault"
        | "Internal"
        | "InternalError"
        | "RequestTimeout"
        | "ServerError" => ErrorKind::Unavailable,
        // CloudWatch's and others' name for a rate, and for a quota: only the text tells.
        "LimitExceeded" if message.contains("Rate") || message.contains("rate") => ErrorKind::Throttled,
        _ if code.ends_with("NotFound") || code.ends_with("DoesNotExist") => ErrorKind::NotFound,
        "" => by_status_alone(status),
        _ => match status {
            401 | 403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            408 => ErrorKind::Unavailable,
            409 | 412 => ErrorKind::Conflict,
            429 => ErrorKind::Throttled,
            501 => ErrorKind::Unsupported,
            400..=499 => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        },
    }
}

/// Whoever answered, it did not answer in AWS's words: a 404 page proves nothing about what was asked for.
fn by_status_alone(status: u16) -> ErrorKind {
    match status {
        401 | 403 | 407 => ErrorKind::Denied,
        412 => ErrorKind::Conflict,
        429 => ErrorKind::Throttled,
        408 | 500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

/// The clause for the person on call.
fn clause(kind: ErrorKind, status: u16, full: &str, message: &str) -> String {
    if full.is_empty() {
        return format!("the answer is not AWS's (status {status}); a proxy or another server may have given it");
    }
    match bare(full) {
        "ExpiredToken" | "TokenRefreshRequired" | "RequestExpired" => {
            return "the credentials have expired; renew them, and it goes on".into();
        }
        "RequestTimeTooSkewed" | "RequestInTheFuture" => return SKEWED.into(),
        "InvalidSignature" | "SignatureDoesNotMatch" if is_skew(message) => return SKEWED.into(),
        "InvalidSignature" if message.contains("scoped to a valid region") => {
            return "the endpoint belongs to another region than the client's".into();
        }
        _ => {}
    }
    match (kind, missing_action(message)) {
        (ErrorKind::Denied, Some(action)) => format!("the caller lacks the permission {action}"),
        (ErrorKind::Denied, None) => format!("AWS denies it ({full})"),
        (ErrorKind::Throttled, _) => "AWS throttles it".into(),
        (ErrorKind::Conflict, _) => "the target has moved on, or is being changed".into(),
        (ErrorKind::NotFound, _) => "there is no such thing".into(),
        (ErrorKind::Unavailable, _) => format!("AWS failed ({full}), so it may have landed"),
        (ErrorKind::Unsupported, _) => format!("this endpoint cannot do it ({full})"),
        _ => format!("AWS refuses it ({full})"),
    }
}

const SKEWED: &str = "this machine's clock is more than five minutes off AWS's; set it right, and it goes on";

/// How AWS words a signature that is too old, or from the future.
fn is_skew(message: &str) -> bool {
    message.contains("Signature expired") || message.contains("Signature not yet current")
}

/// The action that a denial names: "… is not authorized to perform: lambda:UpdateAlias on resource: …".
pub(crate) fn missing_action(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("not authorized to perform: ")?;
    rest.split([' ', ',']).next().filter(|action| action.contains(':'))
}

/// The code without what only some spellings have: a namespace before `#`, an address after `:`, `Exception` at the end.
fn bare(code: &str) -> &str {
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.split(':').next().unwrap_or(code);
    code.strip_suffix("Exception").unwrap_or(code)
}

/// Whole seconds; dates in this header are not seen from AWS.
fn retry_after(headers: &Headers) -> Option<std::time::Duration> {
    headers.get("retry-after")?.trim().parse().ok().map(std::time::Duration::from_secs)
}

/// The error of the credentials' provider, wherever in the chain it is.
fn credentials_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<CredentialsError>() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

fn told<E: StdError + Send + Sync + 'static>(error: &SdkError<E, HttpResponse>) -> Said {
    Said(DisplayErrorContext(error).to_string())
}

/// What AWS, or the way to it, said, as text: the SDK's own errors carry whole answers in their `Debug`.
#[derive(Debug)]
struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Said {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_throttling_are_one_kind() {
        for (status, code) in [
            (400, "Throttling"),
            (400, "ThrottlingException"),
            (429, "TooManyRequestsException"),
            (503, "RequestLimitExceeded"),
            (400, "RequestThrottledException"),
            (400, "com.amazonaws.service#ThrottlingException"),
            (400, "ThrottlingException:http://internal.amazon.com/coral/"),
            (503, "SlowDown"),
            (400, "PriorRequestNotComplete"),
            (429, "SomethingNew"),
            (429, ""),
        ] {
            assert_eq!(kind(status, code, ""), ErrorKind::Throttled, "{status} {code:?}");
        }
    }

    #[test]
    fn a_page_that_is_not_from_aws_proves_nothing() {
        assert_eq!(kind(404, "", ""), ErrorKind::Internal);
        assert_eq!(kind(200, "", ""), ErrorKind::Internal);
        assert_eq!(kind(502, "", ""), ErrorKind::Unavailable);
        assert!(!Error::new(kind(404, "", ""), "x").changed_nothing());
    }

    #[test]
    fn codes_the_model_does_not_declare_are_sorted_all_the_same() {
        assert_eq!(kind(400, "ValidationException", ""), ErrorKind::Invalid);
        assert_eq!(kind(412, "PreconditionFailedException", ""), ErrorKind::Conflict);
        assert_eq!(kind(404, "ResourceNotFoundException", ""), ErrorKind::NotFound);
        assert_eq!(kind(400, "DeploymentDoesNotExistException", ""), ErrorKind::NotFound);
        assert_eq!(kind(403, "ExpiredTokenException", ""), ErrorKind::Denied);
        assert_eq!(kind(400, "ExpiredToken", ""), ErrorKind::Denied);
        assert_eq!(kind(500, "ServiceException", ""), ErrorKind::Unavailable);
        assert_eq!(kind(418, "SomethingNewException", ""), ErrorKind::Invalid);
        assert_eq!(kind(599, "SomethingNewException", ""), ErrorKind::Unavailable);
    }

    #[test]
    fn a_denial_names_the_action_and_a_wrong_clock_is_called_one() {
        let denied = "User: arn:aws:iam::123456789012:user/ci is not authorized to perform: lambda:UpdateAlias on \
                      resource: arn:aws:lambda:us-east-1:123456789012:function:checkout because no identity-based \
                      policy allows the lambda:UpdateAlias action";
        assert_eq!(missing_action(denied), Some("lambda:UpdateAlias"));
        let said = clause(ErrorKind::Denied, 403, "AccessDeniedException", denied);
        assert_eq!(said, "the caller lacks the permission lambda:UpdateAlias");
        let skewed = "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z";
        assert!(clause(ErrorKind::Denied, 403, "InvalidSignatureException", skewed).contains("clock"));
    }
}
