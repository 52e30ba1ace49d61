//! What Heroku's refusals mean: the one place that knows its codes.

use std::{fmt::Write as _, time::Duration};

use rollback_core::{Error, ErrorKind};
use serde::Deserialize;

use super::{Answer, Client};

/// The body of a refusal, where it is one: the router in front of the API answers in HTML.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    id: String,
    message: String,
}

/// An answer that means failure, as an error. `token` is cut out of whatever it says.
pub(super) fn refusal(what: &str, answer: &Answer, token: &str) -> Error {
    let said: Said = serde_json::from_slice(&answer.body).unwrap_or_default();
    let status = answer.status.as_u16();
    let kind = match status {
        401..=403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        406 => ErrorKind::Internal,
        409 | 412 => ErrorKind::Conflict,
        429 => ErrorKind::Throttled,
        400..=499 => ErrorKind::Invalid,
        500.. => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let advice = match (status, said.id.as_str()) {
        (401, _) => "the token is not accepted; make a new one with `heroku authorizations:create`",
        (402, _) => "the account owes money or has no verified card",
        (403, "two_factor") => {
            "it asks for a second factor, which a machine has not; use the token of an authorization"
        }
        (403, _) => {
            "the token may not do this; it needs the scope write-protected or global, and the permission deploy"
        }
        (429, _) => "the account's budget of requests is used up",
        _ => "",
    };
    let mut text = format!("{what} answered {status}");
    for part in [said.id.as_str(), said.message.trim().trim_end_matches('.'), advice] {
        if !part.is_empty() {
            let _ = write!(text, ": {part}");
        }
    }
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    let mut text = one_line(&text.replace(token, "[redacted]"));
    if let Some(id) = header("request-id") {
        let _ = write!(text, " (request {id})");
    }
    let error = Error::new(kind, text);
    match header("retry-after").and_then(|text| text.trim().parse().ok()) {
        Some(seconds) => error.retry_in(Duration::from_secs(seconds)),
        // Heroku names no time. One request comes back in less than a second, and others wait for it too.
        None if kind == ErrorKind::Throttled => {
            error.retry_in(Duration::from_secs(300 / u64::from(Client::PER_MINUTE)))
        }
        None => error,
    }
}

fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = line.char_indices().nth(600) {
        line.truncate(at);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use rollback_core::web::reqwest::{StatusCode, header::HeaderMap};

    use super::*;

    fn said(status: u16, body: &str) -> Error {
        let headers = [("request-id", "7f2a")].map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter(headers),
            body: body.into(),
        };
        refusal("GET api.heroku.com/apps/shop", &answer, "s3cr3t")
    }

    #[test]
    fn every_refusal_has_a_kind_and_says_what_to_do() {
        use ErrorKind as K;
        for (status, body, kind, words) in [
            (401, r#"{"id":"unauthorized","message":"Invalid credentials."}"#, K::Denied, "authorizations:create"),
            (402, r#"{"id":"delinquent","message":"Pay."}"#, K::Denied, "owes money"),
            (403, r#"{"id":"two_factor","message":"A second factor."}"#, K::Denied, "second factor"),
            (403, r#"{"id":"forbidden","message":"No."}"#, K::Denied, "scope"),
            (404, r#"{"id":"not_found","message":"Couldn't find that app."}"#, K::NotFound, "Couldn't find that app"),
            (406, "", K::Internal, "406"),
            (409, "{}", K::Conflict, "409"),
            (416, "{}", K::Invalid, "416"),
            (422, r#"{"id":"invalid_params","message":"Bad slug."}"#, K::Invalid, "Bad slug"),
            (429, r#"{"id":"rate_limit","message":"Slow down."}"#, K::Throttled, "budget"),
            (500, "{}", K::Unavailable, "500"),
            (503, "<html>Application error</html>", K::Unavailable, "503"),
            (302, "", K::Internal, "302"),
        ] {
            let error = said(status, body);
            assert_eq!(error.kind(), kind, "{status} {body}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.to_string().ends_with("(request 7f2a)"), "{error}");
        }
    }

    #[test]
    fn being_throttled_says_how_long_to_wait() {
        assert!(said(429, "").retry_after().is_some());
    }

    #[test]
    fn a_refusal_that_quotes_the_token_does_not_show_it() {
        let error = said(403, r#"{"id":"forbidden","message":"s3cr3t may not"}"#);
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
        assert!(error.to_string().contains("[redacted]"), "{error}");
    }
}
