//! S3's room: buckets, with versions where they keep them, and what a look at an object finds.
//!
//! As far as a deployment's bundle needs it: an object is put, looked at and deleted. What is in it is not kept. A HEAD is
//! refused without a word, as over HTTP: the status says all that is said.
//!
//! Not simulated, and refused in so many words: reading, listing, uploads in parts, and everything about a bucket but its
//! versions.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, LAST_MODIFIED, LOCATION},
};
use jiff::{Timestamp, tz::TimeZone};
use percent_encoding::percent_decode_str;
use rollback_core::clock::Clock as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Simulator,
    wire::{self, Called, Protocol, Refusal, Service, Signed},
};

/// What S3 knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    buckets: BTreeMap<String, Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Where it lies, if that is elsewhere.
    region: Option<String>,
    keeps_versions: bool,
    /// The newest is the last.
    objects: BTreeMap<String, Vec<Version>>,
}

#[derive(Clone, Debug)]
struct Version {
    /// `null` in a bucket that keeps none.
    id: String,
    at: Timestamp,
    /// None of a delete marker.
    object: Option<Object>,
}

#[derive(Clone, Debug)]
struct Object {
    e_tag: String,
    length: usize,
    class: String,
    /// What is said of a copy out of an archive.
    restore: Option<String>,
}

/// Buckets and objects, without an HTTP call.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(super) &'a Simulator);

impl Hands<'_> {
    /// Somebody puts an object, in a bucket that keeps versions; it is made when it is missing. The object's version.
    pub fn put(&self, bucket: &str, key: &str, content: &[u8]) -> String {
        let now = self.0.clock.now();
        let mut world = self.0.world();
        let bucket = world.s3.buckets.entry(bucket.into()).or_default();
        bucket.keeps_versions = true;
        bucket.put(key, content, "STANDARD", now).id.clone()
    }

    /// The same, where the version was called this.
    pub fn put_version(&self, bucket: &str, key: &str, version: &str, content: &[u8]) {
        let made = self.put(bucket, key, content);
        let mut world = self.0.world();
        let versions = world.s3.buckets.get_mut(bucket).and_then(|bucket| bucket.objects.get_mut(key));
        let Some(versions) = versions else { return };
        versions.retain(|known| known.id != version);
        for known in versions.iter_mut().filter(|known| known.id == made) {
            known.id = version.into();
        }
    }

    /// Somebody deletes an object without naming a version.
    pub fn delete(&self, bucket: &str, key: &str) {
        let now = self.0.clock.now();
        if let Some(bucket) = self.0.world().s3.buckets.get_mut(bucket) {
            bucket.delete(key, None, now);
        }
    }

    /// A lifecycle rule moves every version of an object to this storage class, as `GLACIER`.
    pub fn transition(&self, bucket: &str, key: &str, class: &str) {
        let mut world = self.0.world();
        let versions = world.s3.buckets.get_mut(bucket).and_then(|bucket| bucket.objects.get_mut(key));
        for object in versions.into_iter().flatten().filter_map(|version| version.object.as_mut()) {
            object.class = class.into();
        }
    }

    /// Every version of an object is being restored out of the archive, or was: then there is a copy for a day.
    pub fn restore(&self, bucket: &str, key: &str, done: bool) {
        let until = self.0.clock.now() + std::time::Duration::from_secs(24 * 3600);
        let mut world = self.0.world();
        let versions = world.s3.buckets.get_mut(bucket).and_then(|bucket| bucket.objects.get_mut(key));
        for object in versions.into_iter().flatten().filter_map(|version| version.object.as_mut()) {
            object.restore = Some(match done {
                false => "ongoing-request=\"true\"".into(),
                true => format!("ongoing-request=\"false\", expiry-date=\"{}\"", date(until)),
            });
        }
    }

    /// There is a bucket of this name in another region.
    pub fn elsewhere(&self, bucket: &str, region: &str) {
        let bucket_there = Bucket { region: Some(region.into()), ..Bucket::default() };
        self.0.world().s3.buckets.insert(bucket.into(), bucket_there);
    }
}

/// Bucket and key of a request: the bucket in the host's name, else first in the path.
fn place(request: &Request<Bytes>) -> (String, String) {
    let host = request.uri().host().or_else(|| request.headers().get(HOST)?.to_str().ok()).unwrap_or_default();
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy();
    let path = path.trim_start_matches('/');
    let (bucket, key) = match host.split_once(".s3.") {
        Some((bucket, _)) => (bucket, path),
        None => path.split_once('/').unwrap_or((path, "")),
    };
    (bucket.into(), key.into())
}

/// A parameter of a request's query; one without a value is empty.
fn asked(request: &Request<Bytes>, name: &str) -> Option<String> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    let found = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(known, _)| *known == name);
    found.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// The operation of a request that is signed for S3.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    if Signed::of(request)?.service != "s3" {
        return None;
    }
    let of_object = !place(request).1.is_empty();
    let operation = match (request.method(), of_object) {
        (&Method::PUT, false) if asked(request, "versioning").is_some() => "PutBucketVersioning",
        (&Method::PUT, false) => "CreateBucket",
        (&Method::PUT, true) => "PutObject",
        (&Method::HEAD, true) => "HeadObject",
        (&Method::DELETE, true) => "DeleteObject",
        _ => "Other",
    };
    Some(Called { service: Service::S3, protocol: Protocol::RestXml, operation: operation.into() })
}

/// What whoever sends this must be allowed: a look is a read, and of a version by another name.
pub(super) fn needs(operation: &str, request: &Request<Bytes>) -> String {
    let version = if asked(request, "versionId").is_some() { "Version" } else { "" };
    match operation {
        "HeadObject" => format!("s3:GetObject{version}"),
        "DeleteObject" => format!("s3:DeleteObject{version}"),
        other => format!("s3:{other}"),
    }
}

/// An error as S3 writes it: without a word where a HEAD was asked.
pub(super) fn refuse(operation: &str, refusal: &Refusal) -> Response<Bytes> {
    let mut text = String::new();
    if operation != "HeadObject" {
        text.push_str("<Error>");
        wire::xml(&mut text, &json!({ "Code": refusal.code, "Message": refusal.message }));
        text.push_str("</Error>");
    }
    answer(refusal.status, HeaderMap::new(), text)
}

/// What is said, with the ids by which S3 is known.
fn answer(status: u16, said: HeaderMap, text: String) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from(text));
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    *answer.headers_mut() = said;
    let id = Uuid::new_v4().simple().to_string().to_uppercase();
    answer.headers_mut().insert("x-amz-request-id", plain(&id[..16]));
    answer.headers_mut().insert("x-amz-id-2", plain(&id));
    answer.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/xml"));
    answer
}

fn plain(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.into(), buckets: BTreeMap::new() }
    }

    /// `may_list`: whether the caller may list buckets. Who may not is not told that something is not there.
    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
        may_list: bool,
    ) -> Result<Response<Bytes>, Refusal> {
        let (name, key) = place(request);
        let version = asked(request, "versionId");
        let known = self.buckets.get_mut(&name);
        if let Some(region) = known.as_ref().and_then(|bucket| bucket.region.as_deref()) {
            let mut said = HeaderMap::new();
            said.insert("x-amz-bucket-region", plain(region));
            return Ok(answer(301, said, String::new()));
        }
        if called.operation == "CreateBucket" {
            // In this region alone it is no error to make it twice (API reference, CreateBucket).
            if known.is_some() && self.region != super::REGION {
                let why = "Your previous request to create the named bucket succeeded and you already own it.";
                return Err(Refusal::new(409, "BucketAlreadyOwnedByYou", why));
            }
            self.buckets.entry(name.clone()).or_default();
            let said = HeaderMap::from_iter([(LOCATION, plain(&format!("/{name}")))]);
            return Ok(answer(200, said, String::new()));
        }
        let missing = || Refusal::new(404, "NoSuchBucket", "The specified bucket does not exist");
        let bucket = match known {
            Some(bucket) => bucket,
            None if may_list => return Err(missing()),
            None => return Err(denied()),
        };
        match called.operation.as_str() {
            "PutBucketVersioning" => {
                let text = String::from_utf8_lossy(request.body());
                bucket.keeps_versions = text.contains("<Status>Enabled</Status>");
                Ok(answer(200, HeaderMap::new(), String::new()))
            }
            "PutObject" => {
                let class = request.headers().get("x-amz-storage-class").and_then(|it| it.to_str().ok());
                let made = bucket.put(&key, request.body(), class.unwrap_or("STANDARD"), now).clone();
                let mut said = HeaderMap::new();
                if bucket.keeps_versions {
                    said.insert("x-amz-version-id", plain(&made.id));
                }
                said.extend(made.object.map(|object| (ETAG, plain(&object.e_tag))));
                Ok(answer(200, said, String::new()))
            }
            "HeadObject" => bucket.look(&key, version.as_deref(), may_list),
            "DeleteObject" => Ok(bucket.delete(&key, version.as_deref(), now)),
            _ => {
                let why = format!("{} {} is not simulated", request.method(), request.uri().path());
                Err(Refusal::new(501, "NotImplemented", why))
            }
        }
    }
}

fn date(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn denied() -> Refusal {
    Refusal::new(403, "AccessDenied", "Access Denied")
}

impl Bucket {
    fn put(&mut self, key: &str, content: &[u8], class: &str, at: Timestamp) -> &Version {
        let id = if self.keeps_versions { Uuid::new_v4().simple().to_string() } else { "null".into() };
        // Half a hash: what an ETag is made of is S3's own business.
        let hash = Sha256::digest(content).iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        let object = Object { e_tag: format!("\"{hash}\""), length: content.len(), class: class.into(), restore: None };
        let versions = self.objects.entry(key.into()).or_default();
        versions.retain(|version| version.id != id);
        versions.push(Version { id, at, object: Some(object) });
        &versions[versions.len() - 1]
    }

    fn delete(&mut self, key: &str, version: Option<&str>, at: Timestamp) -> Response<Bytes> {
        let mut said = HeaderMap::new();
        let versions = self.objects.entry(key.into()).or_default();
        if let Some(id) = version {
            said.insert("x-amz-version-id", plain(id));
            versions.retain(|version| version.id != id);
        } else if self.keeps_versions {
            let id = Uuid::new_v4().simple().to_string();
            said.insert("x-amz-version-id", plain(&id));
            said.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
            versions.push(Version { id, at, object: None });
        } else {
            versions.clear();
        }
        answer(204, said, String::new())
    }

    fn look(&self, key: &str, version: Option<&str>, may_list: bool) -> Result<Response<Bytes>, Refusal> {
        let versions = self.objects.get(key).map(Vec::as_slice).unwrap_or_default();
        let found = match version {
            Some(id) => versions.iter().find(|version| version.id == id),
            None => versions.last(),
        };
        let Some(found) = found else {
            return Err(if may_list { Refusal::new(404, "NoSuchKey", "The key does not exist.") } else { denied() });
        };
        let mut said = HeaderMap::new();
        if found.id != "null" {
            said.insert("x-amz-version-id", plain(&found.id));
        }
        let Some(object) = &found.object else {
            said.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
            // A marker that is named can only be deleted.
            said.extend(version.map(|_| (ALLOW, HeaderValue::from_static("DELETE"))));
            return Ok(answer(if version.is_some() { 405 } else { 404 }, said, String::new()));
        };
        said.extend([
            (ETAG, plain(&object.e_tag)),
            (LAST_MODIFIED, plain(&date(found.at))),
            (CONTENT_LENGTH, object.length.into()),
            (CONTENT_TYPE, HeaderValue::from_static("binary/octet-stream")),
        ]);
        if object.class != "STANDARD" {
            said.insert("x-amz-storage-class", plain(&object.class));
        }
        if let Some(copy) = &object.restore {
            said.insert("x-amz-restore", plain(copy));
        }
        Ok(answer(200, said, String::new()))
    }
}
