//! The calls that the store makes.

use jiff::Timestamp;
use kube::core::{
    Request,
    params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use rollback_core::{Error, ErrorKind, Result, model::DriverId};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::secret::{DRIVER, Meta, PART, Secret, lease_name};
use crate::{Client, watch::asking};

#[derive(Debug)]
pub(super) struct Api {
    client: Client,
    namespace: String,
    secrets: String,
    leases: String,
}

/// A Lease, as far as it is read.
#[derive(Deserialize)]
pub(super) struct Lease {
    metadata: Meta,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LeaseSpec {
    holder_identity: Option<String>,
    renew_time: Option<Timestamp>,
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMeta,
    /// Null where there are none, in lists of metadata (observed on 1.20).
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "continue")]
    go_on: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Meta,
}

impl Api {
    pub(super) fn new(client: &Client, namespace: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if namespace.is_empty() || namespace.len() > 63 || !namespace.chars().all(plain) {
            return Err(Error::invalid(format!(
                "the store's namespace is {namespace:?}; 1 to 63 of a-z, 0-9 and - are accepted"
            )));
        }
        Ok(Self {
            client: client.clone(),
            namespace: namespace.into(),
            secrets: format!("/api/v1/namespaces/{namespace}/secrets"),
            leases: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) async fn secret(&self, name: &str) -> Result<Option<Secret>> {
        let request = Request::new(&self.secrets).get(name, &GetParams::default());
        maybe(self.call(&format!("reading Secret {name}"), request).await)
    }

    /// `Conflict` when there is one of this name.
    pub(super) async fn create(&self, secret: &Secret) -> Result<Meta> {
        let what = format!("creating Secret {}", secret.metadata.name);
        let request = Request::new(&self.secrets).create(&self.posting(), bytes(secret)?);
        self.call::<Named>(&what, request).await.map(|named| named.metadata)
    }

    /// `Conflict` when it has another version than the given one has.
    pub(super) async fn replace(&self, secret: &Secret) -> Result<Meta> {
        let name = &secret.metadata.name;
        let request = Request::new(&self.secrets).replace(name, &self.posting(), bytes(secret)?);
        let saved = self.call::<Named>(&format!("writing Secret {name}"), request).await;
        match saved {
            // It was deleted since it was read: the version that was seen is gone.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::Conflict, format!("the Secret {name} is gone")).because(e))
            }
            saved => saved.map(|named| named.metadata),
        }
    }

    pub(super) async fn delete_secret(&self, name: &str) -> Result<()> {
        let request = Request::new(&self.secrets).delete(name, &DeleteParams::default());
        maybe(self.call::<Value>(&format!("deleting Secret {name}"), request).await).map(drop)
    }

    /// What stands beside the Secrets with these labels. Not the Secrets, so that it stays small.
    pub(super) async fn list(&self, labels: &str) -> Result<Vec<Meta>> {
        let all: Vec<Named> = self.pages(&self.secrets, labels, true).await?;
        Ok(all.into_iter().map(|named| named.metadata).collect())
    }

    pub(super) async fn leases(&self) -> Result<Vec<Lease>> {
        self.pages(&self.leases, &format!("{PART}={DRIVER}"), false).await
    }

    async fn pages<T: DeserializeOwned>(&self, path: &str, labels: &str, only_metadata: bool) -> Result<Vec<T>> {
        let what = format!("listing {} with labels {labels}", path.rsplit('/').next().unwrap_or(path));
        let mut all = Vec::new();
        let mut params = ListParams::default().labels(labels).limit(500);
        loop {
            let request = match only_metadata {
                true => Request::new(path).list_metadata(&params),
                false => Request::new(path).list(&params),
            };
            let page: List<T> = self.call(&what, request).await?;
            all.extend(page.items.into_iter().flatten());
            match page.metadata.go_on.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// Renews a driver's Lease, and returns the sign that was left on it, which is empty if none was.
    pub(super) async fn beat(&self, driver: &DriverId, now: Timestamp) -> Result<String> {
        let name = lease_name(driver);
        // Exactly six digits, or the API server refuses it.
        let now = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let what = format!("renewing Lease {name}");
        let patch = Patch::Merge(json!({ "spec": { "renewTime": now } }));
        let request = Request::new(&self.leases).patch(&name, &self.patching(), &patch);
        let renewed = maybe(self.call::<Lease>(&what, request).await)?;
        let lease = match renewed {
            Some(lease) => lease,
            None => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": { "name": name, "labels": { PART: DRIVER } },
                    "spec": { "holderIdentity": driver, "acquireTime": now, "renewTime": now },
                });
                let request = Request::new(&self.leases).create(&self.posting(), bytes(&lease)?);
                self.call(&format!("creating Lease {name}"), request).await?
            }
        };
        Ok(lease.metadata.annotations.get(SIGN).cloned().unwrap_or_default())
    }

    /// Leaves a sign for a driver on its Lease, if it has one.
    pub(super) async fn sign(&self, driver: &DriverId, sign: &str) -> Result<()> {
        let name = lease_name(driver);
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { SIGN: sign } } }));
        let request = Request::new(&self.leases).patch(&name, &self.patching(), &patch);
        maybe(self.call::<Value>(&format!("leaving a sign on Lease {name}"), request).await).map(drop)
    }

    /// Deletes a Lease that has not changed since it was read.
    pub(super) async fn delete_lease(&self, lease: &Lease) -> Result<()> {
        let Meta { name, resource_version, uid, .. } = lease.metadata.clone();
        let params = DeleteParams::default().preconditions(Preconditions { resource_version, uid });
        let request = Request::new(&self.leases).delete(&name, &params);
        maybe(self.call::<Value>(&format!("deleting Lease {name}"), request).await).map(drop)
    }

    fn posting(&self) -> PostParams {
        PostParams { field_manager: Some(self.client.manager().into()), ..PostParams::default() }
    }

    fn patching(&self) -> PatchParams {
        PatchParams { field_manager: Some(self.client.manager().into()), ..PatchParams::default() }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T> {
        self.client.call(what, asking(request)?).await
    }
}

impl Lease {
    pub(super) fn holder(&self) -> Option<&String> {
        self.spec.holder_identity.as_ref()
    }

    pub(super) fn is_silent_since(&self, at: Timestamp) -> bool {
        self.spec.renew_time.is_none_or(|renewed| renewed < at)
    }

    /// Whose it is, and a number that changes with every beat.
    pub(super) fn beat(self) -> Option<(String, u64)> {
        let renewed = self.spec.renew_time?.as_microsecond();
        Some((self.spec.holder_identity?, renewed.cast_unsigned()))
    }
}

fn bytes(object: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(object)
        .map_err(|e| Error::new(ErrorKind::Internal, "an object cannot be written as JSON").because(e))
}

/// What is not there is nothing.
fn maybe<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The annotation of a Lease that changes whenever its driver is asked something.
const SIGN: &str = "rollback.rs/asked";
