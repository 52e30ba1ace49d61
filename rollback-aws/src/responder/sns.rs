//! Messages of SNS, and whether SNS wrote them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rollback_core::{Error, ErrorKind, Result, web};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use webpki::EndEntityCert;

/// Reads an address of AWS: the certificate that SNS signs with, and what confirms a subscription.
#[async_trait]
pub trait Fetch: fmt::Debug + Send + Sync + 'static {
    /// The body of a `GET` that was answered with 200. The address was checked to be SNS's own.
    ///
    /// # Errors
    /// Whatever kept it from coming, any other status and a redirect included.
    async fn get(&self, url: &str) -> Result<Vec<u8>>;
}

/// A message as SNS posts it (AWS's developer guide, "Parsing Amazon SNS message formats").
pub(super) struct Message {
    pub(super) kind: String,
    pub(super) topic: String,
    pub(super) text: String,
    pub(super) at: Timestamp,
    signed: String,
    signature: Vec<u8>,
    certificate: String,
    subscribe: Option<String>,
}

impl Message {
    pub(super) fn read(body: &[u8]) -> Result<Self> {
        let said: Value =
            serde_json::from_slice(body).map_err(|e| Error::invalid("the body is no message of SNS").because(e))?;
        let word = |name: &str| said[name].as_str();
        let must = |name: &str| {
            word(name).map(String::from).ok_or_else(|| Error::invalid(format!("the message has no {name}")))
        };
        let kind = must("Type")?;
        let version = must("SignatureVersion")?;
        if version != "2" {
            return Err(Error::new(
                ErrorKind::Denied,
                format!("the message is signed by version {version}; set the topic's SignatureVersion to 2 (SHA-256)"),
            ));
        }
        // These, in this order, those that are there (AWS's developer guide, "Verifying the signatures").
        let names: &[&str] = match kind.as_str() {
            "Notification" => &["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"],
            _ => &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
        };
        let each = names.iter().filter_map(|name| Some(format!("{name}\n{}\n", word(name)?)));
        let at = must("Timestamp")?;
        Ok(Self {
            signed: each.collect(),
            topic: must("TopicArn")?,
            text: must("Message")?,
            at: at.parse().map_err(|_| Error::invalid(format!("the message's Timestamp {at:?} is no time")))?,
            signature: STANDARD
                .decode(must("Signature")?)
                .map_err(|_| Error::invalid("the message's Signature is not base64"))?,
            certificate: must("SigningCertURL")?,
            subscribe: word("SubscribeURL").map(Into::into),
            kind,
        })
    }

    /// An address must be SNS's own, in the region of the topic.
    fn is_of_sns<'u>(&self, url: &'u str, path: &str) -> Result<&'u str> {
        let not = || {
            Error::new(ErrorKind::Denied, format!("{url:?} is not an address of SNS in the region of {}", self.topic))
        };
        let mut arn = self.topic.split(':');
        let (Some("arn"), Some(partition), Some("sns"), Some(region)) =
            (arn.next(), arn.next(), arn.next(), arn.next())
        else {
            return Err(not());
        };
        let end = if partition == "aws-cn" { ".cn" } else { "" };
        let host = format!("https://sns.{region}.amazonaws.com{end}/");
        let rest = url.strip_prefix(&host).ok_or_else(not)?;
        if rest.starts_with(path) && rest.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(url) } else { Err(not()) }
    }
}

/// Certificates that SNS was seen to sign with, by address.
#[derive(Default)]
pub(super) struct Signatures {
    fetch: Option<Arc<dyn Fetch>>,
    known: Mutex<BTreeMap<String, CertificateDer<'static>>>,
}

impl Signatures {
    pub(super) fn by(fetch: impl Fetch) -> Self {
        Self { fetch: Some(Arc::new(fetch)), known: Mutex::default() }
    }

    pub(super) async fn check(&self, message: &Message) -> Result<()> {
        let url = message.is_of_sns(&message.certificate, "SimpleNotificationService-")?;
        if !url.ends_with(".pem") {
            return Err(Error::new(ErrorKind::Denied, format!("{url:?} is no certificate")));
        }
        let certificate = self.certificate(url).await?;
        let broken =
            |e| Error::new(ErrorKind::Denied, format!("the certificate at {url} cannot be read")).because(Told(e));
        let certificate = EndEntityCert::try_from(&certificate).map_err(broken)?;
        let algorithm = webpki::ring::RSA_PKCS1_2048_8192_SHA256;
        certificate.verify_signature(algorithm, message.signed.as_bytes(), &message.signature).map_err(|e| {
            let why = format!("the message of {} is not signed by SNS", message.topic);
            Error::new(ErrorKind::Denied, why).because(Told(e))
        })
    }

    pub(super) async fn confirm(&self, message: &Message) -> Result<()> {
        let url = message.subscribe.as_deref().ok_or_else(|| Error::invalid("the message has no SubscribeURL"))?;
        let url = message.is_of_sns(url, "?Action=ConfirmSubscription&")?;
        self.get(url).await.map(drop).map_err(|e| e.during(format!("confirming the subscription to {}", message.topic)))
    }

    async fn certificate(&self, url: &str) -> Result<CertificateDer<'static>> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(url) {
            return Ok(known.clone());
        }
        let pem = self.get(url).await.map_err(|e| e.during("reading the certificate of SNS"))?;
        let certificate = CertificateDer::from_pem_slice(&pem)
            .map_err(|_| Error::new(ErrorKind::Denied, format!("what is at {url} is no certificate")))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // SNS changes its certificate a few times a year; more than a few are somebody's mistake.
        if known.len() >= 16 {
            known.clear();
        }
        known.insert(url.into(), certificate.clone());
        Ok(certificate)
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>> {
        if let Some(fetch) = &self.fetch {
            return fetch.get(url).await;
        }
        let client = super::fetcher()?;
        let address = web::address(url)?;
        let answer = client.send(client.request(web::reqwest::Method::GET, address)).await?;
        if answer.status.as_u16() != 200 || answer.cut || answer.redirected.is_some() {
            return Err(answer.error());
        }
        Ok(answer.body)
    }
}

impl fmt::Debug for Signatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Signatures").field("known", &known.keys()).finish_non_exhaustive()
    }
}

/// webpki's errors are no `Error`s without its own features.
#[derive(Debug)]
struct Told(webpki::Error);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Told {}
