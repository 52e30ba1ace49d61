//! Who is let in: by a bearer token, or by a signature over timestamp and body.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use tokio::time::Instant;

use super::Refusal;
use crate::error::{Error, Result};

/// The secrets that open one kind of route, and the signatures that were spent on it.
#[derive(Default)]
pub(super) struct Door {
    /// Digests of the tokens: equally long, so that comparing them tells nothing of their lengths either.
    tokens: Vec<[u8; 32]>,
    keys: Vec<Hmac<Sha256>>,
    spent: Mutex<Spent>,
}

/// Signatures that were accepted, and since when they have been known, oldest first.
#[derive(Default)]
struct Spent {
    order: VecDeque<([u8; 32], Instant)>,
    known: HashSet<[u8; 32]>,
}

/// What a caller showed before its body was read.
pub(super) enum Shown {
    /// A token that opens.
    Token,
    /// A signature that is still to be checked against the body.
    Signature { timestamp: String, mac: [u8; 32] },
}

impl Door {
    pub(super) const SIGNATURE: &str = "x-rollback-signature";
    pub(super) const TIMESTAMP: &str = "x-rollback-timestamp";
    /// A signature counts this long before and after its timestamp.
    const WINDOW: SignedDuration = SignedDuration::from_mins(5);
    /// No signature can be accepted twice once this has passed since it was accepted first.
    const KEPT: Duration = Duration::from_secs(2 * 5 * 60);
    /// How many accepted signatures are remembered; more in ten minutes are refused.
    const MOST: usize = 10_000;
    const LEAST_SECRET: usize = 16;

    pub(super) fn token(&mut self, token: &str) -> Result<()> {
        check_secret("bearer token", token.as_bytes())?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid("the bearer token has a blank or a byte beyond ASCII, which no header carries"));
        }
        self.tokens.push(Sha256::digest(token).into());
        Ok(())
    }

    pub(super) fn key(&mut self, key: &[u8]) -> Result<()> {
        check_secret("signing key", key)?;
        self.keys.push(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"));
        Ok(())
    }

    pub(super) const fn is_walled_up(&self) -> bool {
        self.tokens.is_empty() && self.keys.is_empty()
    }

    /// Looks at the headers. Whoever shows nothing that could open is sent away before a byte of the body is read.
    pub(super) fn look(&self, headers: &HeaderMap) -> Result<Shown, Refusal> {
        if let Some(given) = headers.get(AUTHORIZATION) {
            let given: [u8; 32] = Sha256::digest(bearer(given.as_bytes()).unwrap_or_default()).into();
            let opens = self.tokens.iter().fold(Choice::from(0), |opens, token| opens | token.ct_eq(&given));
            return if opens.into() { Ok(Shown::Token) } else { Err(stranger()) };
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        match (text(Self::TIMESTAMP), text(Self::SIGNATURE).and_then(from_hex)) {
            (Some(timestamp), Some(mac)) if !self.keys.is_empty() => {
                Ok(Shown::Signature { timestamp: timestamp.to_owned(), mac })
            }
            _ => Err(stranger()),
        }
    }

    /// Checks a signature over `timestamp:` and these parts, and spends it.
    pub(super) fn check(&self, shown: Shown, signed: &[&[u8]], now: Timestamp) -> Result<(), Refusal> {
        let Shown::Signature { timestamp, mac } = shown else { return Ok(()) };
        let opens = self.keys.iter().fold(false, |opens, key| {
            let mut key = key.clone();
            key.update(timestamp.as_bytes());
            key.update(b":");
            signed.iter().for_each(|part| key.update(part));
            // `verify_slice` takes equally long whatever differs; every key is tried.
            opens | key.verify_slice(&mac).is_ok()
        });
        if !opens {
            return Err(stranger());
        }
        // Only whoever knows the key hears more than "no".
        let signed_at = timestamp.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        let Some(signed_at) = signed_at else {
            let why = format!("{} must be the seconds since 1970 as a whole number", Self::TIMESTAMP);
            return Err(Refusal::new(StatusCode::FORBIDDEN, why));
        };
        let age = now.duration_since(signed_at);
        if age.abs() > Self::WINDOW {
            let when = if age.is_negative() { "ahead of our clock" } else { "old" };
            let why = format!("the signature is {} s {when}; at most 300 s are accepted", age.abs().as_secs());
            return Err(Refusal::new(StatusCode::FORBIDDEN, why));
        }
        self.spend(mac)
    }

    fn spend(&self, mac: [u8; 32]) -> Result<(), Refusal> {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        // Not by the wall clock, which somebody may set back.
        while let Some((old, _)) = spent.order.pop_front_if(|(_, at)| at.elapsed() > Self::KEPT) {
            spent.known.remove(&old);
        }
        if spent.known.contains(&mac) {
            let why = "this signature was used before; sign every try anew, with the time of the try";
            return Err(Refusal::new(StatusCode::CONFLICT, why));
        }
        if spent.known.len() >= Self::MOST {
            let why = format!("{} signed requests came in ten minutes, and no more are remembered", Self::MOST);
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, why));
        }
        spent.order.push_back((mac, Instant::now()));
        spent.known.insert(mac);
        Ok(())
    }
}

fn check_secret(what: &str, secret: &[u8]) -> Result<()> {
    if secret.len() < Door::LEAST_SECRET {
        let (len, least) = (secret.len(), Door::LEAST_SECRET);
        return Err(Error::invalid(format!("a {what} of {len} bytes can be guessed; {least} or more are accepted")));
    }
    Ok(())
}

/// The same words whatever was wrong.
fn stranger() -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "not let in: a bearer token or a signature that opens is needed")
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}
