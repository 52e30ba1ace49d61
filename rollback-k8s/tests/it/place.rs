//! A namespace of a real API server for one test, which removes it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::cluster;

/// A client of its server, without ours in between.
pub(crate) async fn kube(kubeconfig: &Path) -> kube::Client {
    kube_as(kubeconfig, None).await
}

/// As this user, who is granted nothing yet.
pub(crate) async fn kube_as(kubeconfig: &Path, user: Option<&str>) -> kube::Client {
    // Somebody else may have been faster.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options).await.expect("a cluster");
    config.auth_info.impersonate = user.map(Into::into);
    kube::Client::try_from(config).expect("a client")
}

/// A namespace of its own.
pub(crate) struct Place {
    pub(crate) kube: kube::Client,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) namespace: String,
    /// Deleted with it.
    _kept: cluster::Namespace,
}

impl Place {
    /// None, and said so, where there is no server.
    pub(crate) async fn new() -> Option<Self> {
        let kept = cluster::namespace().await?;
        let kubeconfig = kept.kubeconfig().to_owned();
        Some(Self { kube: kube(&kubeconfig).await, kubeconfig, namespace: kept.name.clone(), _kept: kept })
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.kube.request(request.body(body).unwrap()).await.unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    pub(crate) fn deployments(&self) -> String {
        format!("/apis/apps/v1/namespaces/{}/deployments", self.namespace)
    }

    /// Deployment `web`.
    pub(crate) async fn web(&self) -> Value {
        self.send("GET", &format!("{}/web", self.deployments()), &Value::Null).await
    }

    pub(crate) fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    /// A Deployment with this image, rolled out.
    pub(crate) async fn deployment(&self, name: &str, image: &str, replicas: u32) {
        let labels = json!({ "app": name });
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": cluster::min_ready_seconds(),
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels, "annotations": { "fake-kubelet/ready-delay": "0.1" } },
                    "spec": { "containers": [{ "name": "app", "image": real(image) }], "terminationGracePeriodSeconds": 1 },
                },
            },
        });
        self.send("POST", &self.deployments(), &deployment).await;
        self.until("it is rolled out", async || {
            let status = &self.send("GET", &format!("{}/{name}", self.deployments()), &Value::Null).await["status"];
            status["availableReplicas"].as_u64() == Some(replicas.into())
        })
        .await;
    }

    /// Changes the image as a rollout does that leaves this nonce.
    pub(crate) async fn set_image(&self, name: &str, image: &str, nonce: &str) {
        let patch = json!({
            "metadata": { "annotations": { "rollback.rs/attempt": nonce } },
            "spec": { "template": {
                // Where two good images are the same one it is a new template all the same.
                "metadata": { "annotations": { "image": image } },
                "spec": { "containers": [{ "name": "app", "image": real(image) }] },
            } },
        });
        self.send("PATCH", &format!("{}/{name}", self.deployments()), &patch).await;
    }

    pub(crate) async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !so().await {
            assert!(begun.elapsed() < cluster::PATIENCE, "waited in vain until {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The image that is meant.
fn real(image: &str) -> String {
    match image {
        "good" => cluster::good(1),
        "good2" => cluster::good(2),
        "good3" => cluster::good(3),
        "bad" => cluster::bad(),
        // Of no registry there is.
        other => format!("registry.invalid/app:{other}"),
    }
}
