//! ECR's room: repositories, and the images in them by digest and tag.
//!
//! As far as it takes to see whether an image is there. Layers, scans, policies and replication are not simulated.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use rollback_core::clock::Clock as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    ACCOUNT, Simulator,
    wire::{self, Called, JSON_1_1, Protocol, Refusal, Service},
};

/// What ECR knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    repositories: BTreeMap<String, Repository>,
}

#[derive(Debug)]
struct Repository {
    made: Timestamp,
    images: Vec<Image>,
}

#[derive(Debug)]
struct Image {
    digest: String,
    tags: BTreeSet<String>,
    size: usize,
    pushed: Timestamp,
    is_archived: bool,
}

/// Repositories of images, without an HTTP call.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(super) &'a Simulator);

impl Hands<'_> {
    /// Somebody pushes an image; the repository is made when it is missing. Its name without a tag, and its digest.
    pub fn push(&self, repository: &str, tag: &str, manifest: &str) -> (String, String) {
        let now = self.0.clock.now();
        let mut world = self.0.world();
        let name = world.ecr.name(repository);
        let known = world.ecr.repositories.entry(repository.into());
        let known = known.or_insert_with(|| Repository { made: now, images: Vec::new() });
        (name, known.push(Some(tag), manifest, now))
    }

    /// Somebody deletes an image by its tag, or a lifecycle policy does.
    pub fn delete(&self, repository: &str, tag: &str) {
        if let Some(repository) = self.0.world().ecr.repositories.get_mut(repository) {
            repository.images.retain(|image| !image.tags.contains(tag));
        }
    }

    /// A lifecycle policy moves an image to the archive, from which nothing can be pulled.
    pub fn archive(&self, repository: &str, tag: &str) {
        let mut world = self.0.world();
        let images = world.ecr.repositories.get_mut(repository).into_iter().flat_map(|it| &mut it.images);
        for image in images.filter(|image| image.tags.contains(tag)) {
            image.is_archived = true;
        }
    }
}

/// The operation of a request for ECR.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let operation = wire::json_1_1(request, "AmazonEC2ContainerRegistry_V20150921.")?;
    Some(Called { service: Service::Ecr, protocol: Protocol::Json11, operation })
}

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.into(), repositories: BTreeMap::new() }
    }

    /// A repository's name as a task definition says it.
    fn name(&self, repository: &str) -> String {
        let end = if self.region.starts_with("cn-") { ".cn" } else { "" };
        format!("{ACCOUNT}.dkr.ecr.{}.amazonaws.com{end}/{repository}", self.region)
    }

    pub(super) fn answer(
        &mut self,
        operation: &str,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let body = wire::json_body(request)?;
        let name = body["repositoryName"].as_str().unwrap_or_default();
        let registry = body["registryId"].as_str().unwrap_or(ACCOUNT);
        let said = match operation {
            "CreateRepository" => self.create(name, now)?,
            "PutImage" => self.repository(registry, name)?.put(name, &body, now)?,
            "DescribeImages" => self.repository(registry, name)?.describe(name, &body)?,
            "BatchDeleteImage" => self.repository(registry, name)?.delete(&body),
            other => return Err(Refusal::new(400, "UnknownOperationException", format!("{other} is not simulated"))),
        };
        Ok(wire::json_answer(200, JSON_1_1, &said))
    }

    fn create(&mut self, name: &str, now: Timestamp) -> Result<Value, Refusal> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
        if !(2..=256).contains(&name.len()) || !name.chars().all(good) {
            let why = format!("Invalid parameter at 'repositoryName' failed to satisfy constraint: '{name}'");
            return Err(Refusal::new(400, "InvalidParameterException", why));
        }
        if self.repositories.contains_key(name) {
            let why = format!("The repository with name '{name}' already exists in the registry with id '{ACCOUNT}'");
            return Err(Refusal::new(400, "RepositoryAlreadyExistsException", why));
        }
        self.repositories.insert(name.into(), Repository { made: now, images: Vec::new() });
        let partition = crate::account::partition(&self.region);
        Ok(json!({ "repository": {
            "repositoryArn": format!("arn:{partition}:ecr:{}:{ACCOUNT}:repository/{name}", self.region),
            "registryId": ACCOUNT,
            "repositoryName": name,
            "repositoryUri": self.name(name),
            "createdAt": self.repositories[name].made.as_millisecond() as f64 / 1e3,
            "imageTagMutability": "MUTABLE",
        } }))
    }

    fn repository(&mut self, registry: &str, name: &str) -> Result<&mut Repository, Refusal> {
        let known = self.repositories.get_mut(name).filter(|_| registry == ACCOUNT);
        known.ok_or_else(|| {
            let why = format!("The repository with name '{name}' does not exist in the registry with id '{registry}'");
            Refusal::new(400, "RepositoryNotFoundException", why)
        })
    }
}

impl Repository {
    /// A tag is one image's: it moves to what is pushed last.
    fn push(&mut self, tag: Option<&str>, manifest: &str, now: Timestamp) -> String {
        let hash: String = Sha256::digest(manifest).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hash}");
        for image in &mut self.images {
            image.tags.retain(|known| Some(known.as_str()) != tag);
        }
        let tag = tag.map(str::to_owned);
        match self.images.iter_mut().find(|image| image.digest == digest) {
            Some(image) => image.tags.extend(tag),
            None => self.images.push(Image {
                digest: digest.clone(),
                tags: tag.into_iter().collect(),
                size: manifest.len(),
                pushed: now,
                is_archived: false,
            }),
        }
        digest
    }

    fn find(&self, id: &Value) -> Option<&Image> {
        let (digest, tag) = (id["imageDigest"].as_str(), id["imageTag"].as_str());
        let is = |image: &&Image| {
            digest.is_none_or(|digest| image.digest == digest) && tag.is_none_or(|tag| image.tags.contains(tag))
        };
        self.images.iter().find(is)
    }

    fn put(&mut self, name: &str, body: &Value, now: Timestamp) -> Result<Value, Refusal> {
        let (manifest, tag) = (body["imageManifest"].as_str().unwrap_or_default(), body["imageTag"].as_str());
        let known: BTreeSet<String> = self
            .images
            .iter()
            .filter(|image| tag.is_some_and(|tag| image.tags.contains(tag)))
            .map(|image| image.digest.clone())
            .collect();
        let digest = self.push(tag, manifest, now);
        if known.contains(&digest) {
            let why = format!(
                "Image with digest '{digest}' and tag '{}' already exists in the repository with name '{name}' in registry \
                 with id '{ACCOUNT}'",
                tag.unwrap_or_default()
            );
            return Err(Refusal::new(400, "ImageAlreadyExistsException", why));
        }
        let mut id = json!({ "imageDigest": digest });
        if let Some(tag) = tag {
            id["imageTag"] = json!(tag);
        }
        Ok(json!({ "image": {
            "registryId": ACCOUNT, "repositoryName": name, "imageId": id, "imageManifest": manifest,
        } }))
    }

    fn describe(&self, name: &str, body: &Value) -> Result<Value, Refusal> {
        let images: Vec<&Image> = match body["imageIds"].as_array() {
            None => self.images.iter().collect(),
            Some(ids) => ids
                .iter()
                .map(|id| {
                    self.find(id).ok_or_else(|| {
                        let text = |name: &str| id[name].as_str().unwrap_or("null");
                        let why = format!(
                            "The image with imageId {{imageDigest:'{}', imageTag:'{}'}} does not exist within the \
                             repository with name '{name}' in the registry with id '{ACCOUNT}'",
                            text("imageDigest"),
                            text("imageTag")
                        );
                        Refusal::new(400, "ImageNotFoundException", why)
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        let described = images.iter().map(|image| {
            json!({
                "registryId": ACCOUNT,
                "repositoryName": name,
                "imageDigest": image.digest,
                "imageTags": image.tags,
                "imageSizeInBytes": image.size,
                "imagePushedAt": image.pushed.as_millisecond() as f64 / 1e3,
                "imageStatus": if image.is_archived { "ARCHIVED" } else { "ACTIVE" },
            })
        });
        Ok(json!({ "imageDetails": described.collect::<Vec<_>>() }))
    }

    /// By digest the image goes, by tag the tag, and with its last tag the image.
    fn delete(&mut self, body: &Value) -> Value {
        let (mut done, mut failures) = (Vec::new(), Vec::new());
        for id in body["imageIds"].as_array().into_iter().flatten() {
            let Some(digest) = self.find(id).map(|image| image.digest.clone()) else {
                let why = "Requested image not found";
                failures.push(json!({ "imageId": id, "failureCode": "ImageNotFound", "failureReason": why }));
                continue;
            };
            let tag = id["imageTag"].as_str();
            self.images.retain_mut(|image| {
                if image.digest != digest {
                    return true;
                }
                image.tags.retain(|known| Some(known.as_str()) != tag);
                tag.is_some() && !image.tags.is_empty()
            });
            let mut said = id.clone();
            said["imageDigest"] = json!(digest);
            done.push(said);
        }
        json!({ "imageIds": done, "failures": failures })
    }
}
