//! Events posted to a webhook, as signed JSON.

use std::fmt;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    Listener, RolloutEvent, Tally, Tell,
    channel::{Channel, Courier},
};
use crate::{
    clock::{Clock, SystemClock},
    error::{Error, ErrorKind, Result},
    web::{self, Auth, Client, Secret, reqwest},
};

/// Posts events as JSON to an address of yours.
///
/// The body is described by [`Self::SCHEMA`]; fields may be added to it within version 1. It holds what a reader needs:
/// target, revisions, why, what serves now, what to do. Nothing sealed is in it.
///
/// A message is tried up to eight times within some minutes: after a lost connection, a 5xx, a 408, 425 or 429, whose
/// `Retry-After` is heeded up to a minute; any other status but 2xx is final, and so is a certificate that we do not
/// trust, of which the log tells at once. All of that happens on a thread of its
/// own, so a receiver that hangs delays no rollout and no other listener. 256 messages may wait; [`Tally`] counts what
/// does not arrive. A message may arrive twice: its `id` is the same then. Messages of one listener come in order.
///
/// ```no_run
/// # use rollback_core::{engine::Engine, listener::Webhook, store::Memory};
/// let webhook = Webhook::new("https://ci.example/hooks/rollouts")?.signed("a long random key")?;
/// let tally = webhook.tally();
/// let engine = Engine::builder(Memory::new()).listener(webhook).build()?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
///
/// # Signature
/// With a key, two headers prove who wrote it, and when: `X-Rollback-Timestamp` has the seconds since 1970, and
/// `X-Rollback-Signature` is the HMAC-SHA256 in 64 hex digits, by that key, of the timestamp, a colon and the body: the
/// form that the feature `receiver` takes. Compare in constant time, and refuse what is older than five minutes. Each try is signed anew.
#[derive(Debug)]
pub struct Webhook(Channel<Post>);

impl Webhook {
    /// What the body looks like: a JSON Schema (2020-12).
    pub const SCHEMA: &str = include_str!("../../schemas/event-v1.json");
    /// The header with the time of the signature.
    pub const TIMESTAMP_HEADER: &str = "X-Rollback-Timestamp";
    /// The header with the signature.
    pub const SIGNATURE_HEADER: &str = "X-Rollback-Signature";

    /// Posts to this address, which is kept to itself but for its scheme, host and port.
    ///
    /// # Errors
    /// `Invalid` when it is no address, has another scheme than `http` and `https`, or holds a password.
    pub fn new(url: impl AsRef<str>) -> Result<Self> {
        Ok(Self(Channel::new(Post::new(url.as_ref())?)))
    }

    /// Signed with this key, which the receiver knows as well.
    ///
    /// # Errors
    /// `Invalid` when it is empty.
    pub fn signed(mut self, key: impl Into<Secret>) -> Result<Self> {
        let key = key.into();
        if key.expose().is_empty() {
            return Err(Error::invalid("the key that signs messages is empty"));
        }
        self.0.courier.key = Some(key);
        Ok(self)
    }

    /// With credentials beside or instead of a signature.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.0.courier.client = self.0.courier.client.auth(auth);
        self
    }

    /// Through this client: a proxy, a private authority, a client certificate.
    #[must_use]
    pub fn client(mut self, http: reqwest::Client) -> Self {
        self.0.courier.client = self.0.courier.client.http(http);
        self
    }

    /// These events. By default [`Tell::Decisions`].
    #[must_use]
    pub const fn tell(mut self, tell: Tell) -> Self {
        self.0.tell = tell;
        self
    }

    /// Counts what becomes of the messages.
    pub fn tally(&self) -> Tally {
        self.0.tally.clone()
    }
}

impl Listener for Webhook {
    fn on(&self, event: &RolloutEvent) {
        self.0.on(event);
    }
}

/// An address that JSON is posted to.
#[derive(Clone)]
pub(super) struct Post {
    url: reqwest::Url,
    client: Client,
    name: String,
    key: Option<Secret>,
}

impl Post {
    pub(super) fn new(url: &str) -> Result<Self> {
        let url = web::address(url).map_err(|e| e.during("the address of a webhook cannot be used"))?;
        // The path of such an address is often the password. And a message whose taking was said has been taken, however
        // long or slow the rest of the answer is: it must not come twice for that.
        let client = Client::new()?.hide_path().timeout(TIMEOUT).limit(0);
        let name = client.shown(&url);
        Ok(Self { url, client, name, key: None })
    }

    pub(super) fn through(&mut self, http: reqwest::Client) {
        self.client = self.client.clone().http(http);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Posts once. Whatever is not a 2xx is an error; a transient one may be tried again.
    pub(super) async fn post(&self, body: String, headers: &[(&'static str, &str)]) -> Result<()> {
        let mut request =
            self.client.request(reqwest::Method::POST, self.url.clone()).header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.key {
            let timestamp = SystemClock.now().as_second().to_string();
            let signature = sign(key, &timestamp, body.as_bytes());
            request = request.header(Webhook::TIMESTAMP_HEADER, timestamp).header(Webhook::SIGNATURE_HEADER, signature);
        }
        let answer = self.client.send(request.body(body)).await.map_err(|failure| {
            if failure.is_untrusted() {
                let remedy = "say client with one that trusts its authority";
                return Error::invalid(format!("{}; {remedy}", failure.message));
            }
            failure.into()
        })?;
        if answer.status.is_success() {
            return Ok(());
        }
        let error = answer.error();
        let kind = match answer.status.as_u16() {
            408 | 425 => ErrorKind::Unavailable,
            _ => error.kind(),
        };
        // What the receiver says may quote the address, whose path nobody may see.
        let told = Error::new(kind, format!("{} answered {}", self.name, answer.status.as_u16()));
        Err(match error.retry_after() {
            Some(after) => told.retry_in(after),
            None => told,
        })
    }
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("to", &self.name).field("signed", &self.key.is_some()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Courier for Post {
    fn name(&self) -> &str {
        &self.name
    }

    async fn carry(&self, event: &RolloutEvent, number: &str) -> Result<()> {
        self.post(event.to_json(number)?, &[("X-Rollback-Event", event.what.name())]).await
    }
}

/// In hexadecimal.
fn sign(key: &Secret, timestamp: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).expect("a key of any length will do");
    mac.update(timestamp.as_bytes());
    mac.update(b":");
    mac.update(body);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For one try.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_that_others_compute() {
        // printf '%s' '1700000000:{"a":1}' | openssl dgst -sha256 -hmac 'key'
        assert_eq!(sign(&Secret::new("key"), "1700000000", br#"{"a":1}"#), SIGNED);
    }

    #[test]
    fn neither_key_nor_path_is_ever_shown() {
        let hook = Webhook::new("https://chat.example/services/T000/s3cr3t?token=s3cr3t").unwrap();
        let hook = hook.signed("s3cr3t").unwrap().auth(Auth::bearer("s3cr3t").unwrap());
        let shown = format!("{hook:?}");
        assert!(shown.contains("https://chat.example") && !shown.contains("s3cr3t"), "{shown}");
        for bad in ["ftp://h/s3cr3t", "https://u:s3cr3t@h/", "s3cr3t"] {
            assert!(!Webhook::new(bad).unwrap_err().chain().contains("s3cr3t"), "{bad}");
        }
    }

    const SIGNED: &str = "ba2e91a1c006db43265dd2b67e179429a9e29cf81ab88294ad07ec4e03b6c5a3";
}
