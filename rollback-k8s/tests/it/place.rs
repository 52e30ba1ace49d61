//! A namespace of a real API server for one test, which removes it.

use std::{env, path::PathBuf, time::Duration};

use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The server that the environment names.
pub(crate) fn kubeconfig() -> Option<PathBuf> {
    env::var_os("ROLLBACK_TEST_KUBECONFIG").map(PathBuf::from)
}

/// A client of its server, without ours in between.
pub(crate) async fn kube(kubeconfig: &PathBuf) -> kube::Client {
    // Somebody else may have been faster.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("a cluster");
    kube::Client::try_from(config).expect("a client")
}

/// A namespace of its own.
pub(crate) struct Place {
    pub(crate) kube: kube::Client,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) namespace: String,
}

impl Place {
    /// None, and said so, where there is no server.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let Some(kubeconfig) = kubeconfig() else {
            crate::skip::skip("kubernetes", "ROLLBACK_TEST_KUBECONFIG names none");
            return None;
        };
        let kube = kube(&kubeconfig).await;
        let namespace = format!("{test}-{:08x}", fastrand::u32(..));
        let place = Self { kube, kubeconfig, namespace };
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": place.namespace } });
        place.send("POST", "/api/v1/namespaces", &namespace).await;
        Some(place)
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
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels, "annotations": { "fake-kubelet/ready-delay": "0.1" } },
                    "spec": { "containers": [{ "name": "app", "image": image }] },
                },
            },
        });
        self.send("POST", &self.deployments(), &deployment).await;
        self.until("it is rolled out", async || {
            let status = &self.send("GET", &format!("{}/{name}", self.deployments()), &Value::Null).await["status"];
            status["readyReplicas"].as_u64() == Some(replicas.into())
        })
        .await;
    }

    /// Changes the image as a rollout does that leaves this nonce.
    pub(crate) async fn set_image(&self, name: &str, image: &str, nonce: &str) {
        let patch = json!({
            "metadata": { "annotations": { "rollback.rs/attempt": nonce } },
            "spec": { "template": { "spec": { "containers": [{ "name": "app", "image": image }] } } },
        });
        self.send("PATCH", &format!("{}/{name}", self.deployments()), &patch).await;
    }

    pub(crate) async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !so().await {
            assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes everything. Not on a failure: then somebody may want to look.
    pub(crate) async fn remove(&self) {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        self.send("DELETE", &path, &Value::Null).await;
    }
}
