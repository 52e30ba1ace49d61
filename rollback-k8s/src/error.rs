//! What the API server says, sorted: [`status`] and [`sent`] are the places that know its words.

use std::time::Duration;

use http::StatusCode;
use kube::core::Status;
use rollback_core::{Error, ErrorKind};

/// An answer of 400 or more as core's error: `what` says what was being done, as in "reading Deployment web".
///
/// Two things are read with care. A failed `test` of a JSON patch is a 422 like any other invalid object, and means that
/// somebody was faster. And a 409 `AlreadyExists` is a conflict too: the thing that was to be made is there.
pub(crate) fn status(what: &str, code: StatusCode, status: &Status, retry_after: Option<Duration>) -> Error {
    let said = if status.message.is_empty() { "no reason was given" } else { status.message.as_str() };
    let patch_failed = code == StatusCode::UNPROCESSABLE_ENTITY
        && ["the server rejected our request due to an error in our request", "testing path", "test failed"]
            .iter()
            .any(|words| said.contains(words))
        // What a webhook or a policy refuses is refused, in whatever words.
        && !said.contains("denied")
        && status.details.as_ref().is_none_or(|details| details.causes.is_empty());
    let (kind, clause) = match code.as_u16() {
        401 => (ErrorKind::Denied, "these credentials are not accepted; renew them, and it goes on".to_owned()),
        403 if said.contains("exceeded quota") => (ErrorKind::Invalid, said.to_owned()),
        403 => (ErrorKind::Denied, said.to_owned()),
        // A webhook with side effects, which 1.20 lets in and newer API servers do not.
        400 if said.ends_with("does not support dry run") => (ErrorKind::Unsupported, said.to_owned()),
        404 => (ErrorKind::NotFound, said.to_owned()),
        409 => (ErrorKind::Conflict, said.to_owned()),
        422 if patch_failed => (ErrorKind::Conflict, "it is not any more what was looked at".to_owned()),
        400 | 405 | 406 | 413 | 415 | 422 => (ErrorKind::Invalid, said.to_owned()),
        // The version to go on from, or the page to continue, is too old.
        410 => (ErrorKind::Conflict, said.to_owned()),
        429 => (ErrorKind::Throttled, "the API server is busy".to_owned()),
        _ => (ErrorKind::Unavailable, said.to_owned()),
    };
    let error = Error::new(kind, format!("{what}: {clause} (status {}{})", code.as_u16(), reason(status)));
    let asked = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
    match retry_after.or_else(|| asked.map(|seconds| Duration::from_secs(seconds.into()))) {
        Some(after) if matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable) => error.retry_in(after),
        _ => error,
    }
}

fn reason(status: &Status) -> String {
    if status.reason.is_empty() { String::new() } else { format!(", {}", status.reason) }
}

/// A request without an answer: it may have been carried out, unless it could not even be signed.
pub(crate) fn sent(what: &str, error: kube::Error) -> Error {
    let (kind, clause) = match &error {
        kube::Error::Auth(_) => (ErrorKind::Denied, "there are no usable credentials"),
        kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => (ErrorKind::Internal, "the request cannot be made"),
        _ => (ErrorKind::Unavailable, "no answer"),
    };
    Error::new(kind, format!("{what}: {clause}")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: u16, message: &str) -> ErrorKind {
        let said = Status { message: message.into(), ..Status::default() };
        status("writing Deployment web", StatusCode::from_u16(code).unwrap(), &said, None).kind()
    }

    #[test]
    fn answers_are_sorted_by_what_the_caller_can_do() {
        assert_eq!(kind(401, "Unauthorized"), ErrorKind::Denied);
        assert_eq!(kind(403, "deployments.apps \"web\" is forbidden: User \"bot\" cannot patch"), ErrorKind::Denied);
        assert_eq!(kind(403, "pods \"web\" is forbidden: exceeded quota: small"), ErrorKind::Invalid);
        assert_eq!(kind(404, "deployments.apps \"web\" not found"), ErrorKind::NotFound);
        assert_eq!(kind(409, "Operation cannot be fulfilled: the object has been modified"), ErrorKind::Conflict);
        assert_eq!(kind(422, "the server rejected our request due to an error in our request"), ErrorKind::Conflict);
        assert_eq!(kind(422, "Deployment.apps \"web\" is invalid: spec.replicas: Invalid value"), ErrorKind::Invalid);
        let webhook = "admission webhook \"smoke.shop\" denied the request: smoke test failed";
        assert_eq!(kind(422, webhook), ErrorKind::Invalid);
        assert_eq!(kind(400, "admission webhook \"a.b\" does not support dry run"), ErrorKind::Unsupported);
        assert_eq!(kind(429, "too many requests"), ErrorKind::Throttled);
        assert_eq!(kind(500, "etcdserver: request timed out"), ErrorKind::Unavailable);
        assert_eq!(kind(503, ""), ErrorKind::Unavailable);
    }

    #[test]
    fn who_is_told_to_wait_knows_how_long() {
        let said = Status::default();
        let busy = status("listing pods", StatusCode::TOO_MANY_REQUESTS, &said, Some(Duration::from_secs(7)));
        assert_eq!(busy.retry_after(), Some(Duration::from_secs(7)));
        let gone = status("listing pods", StatusCode::NOT_FOUND, &said, Some(Duration::from_secs(7)));
        assert_eq!(gone.retry_after(), None);
    }
}
