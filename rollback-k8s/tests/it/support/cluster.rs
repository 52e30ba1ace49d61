//! A real API server: the one that `ROLLBACK_TEST_KUBECONFIG` names, else one of our own from the programs in
//! `ROLLBACK_TEST_KUBERNETES` (see `tests/kubernetes`), with a fake kubelet whose pods behave as their image says.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rollback_k8s::Client;
use serde_json::{Value, json};

/// Tests that run side by side share one; the last to end stops it.
static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// A cluster, stopped when it is dropped.
pub(crate) struct Cluster {
    kubeconfig: PathBuf,
    own: Option<tempfile::TempDir>,
}

/// A namespace of its own for one test, deleted when it is dropped.
pub(crate) struct Namespace {
    pub(crate) client: Client,
    pub(crate) name: String,
    cluster: Arc<Cluster>,
}

/// A namespace in the cluster, or nothing where there is none, which was said.
pub(crate) async fn namespace() -> Option<Namespace> {
    let cluster = {
        let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.upgrade() {
            Some(cluster) => cluster,
            None => match Cluster::start() {
                Ok(cluster) => {
                    let cluster = Arc::new(cluster);
                    *shared = Arc::downgrade(&cluster);
                    cluster
                }
                Err(why) => {
                    super::skip("kubernetes", &why);
                    return None;
                }
            },
        }
    };
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("rollback-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let client = Client::from_kubeconfig(&cluster.kubeconfig, None).await.expect("its kubeconfig");
    let namespace = Namespace { client, name, cluster };
    namespace.kubectl(&["create", "namespace", &namespace.name]);
    // Pods are refused until it is there.
    while !namespace.try_kubectl(&["get", "serviceaccount", "default"]) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Some(namespace)
}

impl Cluster {
    fn start() -> Result<Self, String> {
        if let Some(kubeconfig) = env::var_os("ROLLBACK_TEST_KUBECONFIG") {
            return Ok(Self { kubeconfig: kubeconfig.into(), own: None });
        }
        let programs = env::var("ROLLBACK_TEST_KUBERNETES").map_err(
            |_| "set ROLLBACK_TEST_KUBECONFIG, or ROLLBACK_TEST_KUBERNETES to what tests/kubernetes/build.sh built",
        )?;
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mut start = Command::new(script("start.sh"));
        start.env("K8S_BIN", &programs).env("K8S_RUN", folder.path());
        for name in ["ETCD_PORT", "ETCD_PEER_PORT", "API_PORT", "KCM_PORT"] {
            start.env(name, free_port().to_string());
        }
        let out = start.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        let cluster = Self { kubeconfig: folder.path().join("kubeconfig"), own: Some(folder) };
        if !out.status.success() {
            return Err(format!("the cluster does not start: {}", String::from_utf8_lossy(&out.stderr)));
        }
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(folder) = &self.own {
            let stop = Command::new(script("stop.sh")).env("K8S_RUN", folder.path()).output();
            drop(stop);
        }
    }
}

impl Namespace {
    /// Where its server is.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.cluster.kubeconfig
    }

    /// Runs kubectl in it, which must succeed, and gives what it printed.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let out = self.run(args, None);
        assert!(out.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }

    /// As a person who keeps manifests does.
    pub(crate) fn apply(&self, object: &Value) {
        let out = self.run(&["apply", "-f", "-"], Some(&object.to_string()));
        assert!(out.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&out.stderr));
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).expect("JSON")
    }

    /// Whether kubectl says yes.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> bool {
        self.run(args, None).status.success()
    }

    pub(crate) fn run(&self, args: &[&str], input: Option<&str>) -> std::process::Output {
        use std::io::Write as _;
        let mut kubectl = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&self.cluster.kubeconfig)
            .args(["--namespace", &self.name])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is on the PATH");
        let mut stdin = kubectl.stdin.take().expect("it is piped");
        stdin.write_all(input.unwrap_or_default().as_bytes()).expect("it reads");
        drop(stdin);
        kubectl.wait_with_output().expect("it ends")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.run(&["delete", "namespace", &self.name, "--wait=false"], None);
    }
}

/// An image whose pods come up.
pub(crate) fn good(version: u32) -> String {
    env::var("ROLLBACK_TEST_IMAGE_GOOD").unwrap_or_else(|_| format!("shop:{version}"))
}

/// An image whose pods crash over and over.
pub(crate) fn bad() -> String {
    env::var("ROLLBACK_TEST_IMAGE_BAD").unwrap_or_else(|_| "shop:bad".into())
}

/// A Deployment of two pods.
pub(crate) fn deployment(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "web", "image": image }] },
            },
        },
    })
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes").join(name)
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
