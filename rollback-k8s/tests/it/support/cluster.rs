//! A real API server: the one that `ROLLBACK_TEST_KUBECONFIG` names, else one of our own on free ports, from what
//! `tests/kubernetes/build.sh` built into the folder that `ROLLBACK_TEST_KUBERNETES` names, or into the cache of `.ci/test`.
//! Its fake kubelet's pods behave as their image says.

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rollback_k8s::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Tests that run side by side share one; the last to end stops it.
static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// A cluster, stopped when it is dropped, or when this process ends in any other way.
pub(crate) struct Cluster {
    kubeconfig: PathBuf,
    own: Option<Child>,
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
        let programs = programs()?;
        // Held together until all are known, so that no two are the same, and let go before they are used.
        let held: Vec<TcpListener> = (0..4).map_while(|_| TcpListener::bind("127.0.0.1:0").ok()).collect();
        let ports = held.iter().filter_map(|port| Some(port.local_addr().ok()?.port().to_string()));
        let ports: Vec<String> = ports.collect();
        drop(held);
        let [etcd, peers, api, controllers] = &*ports else { return Err("there are no free ports".into()) };
        let mut own = Command::new("bash")
            .args(["-c", SCRIPT])
            .env("SCRIPTS", Path::new(env!("CARGO_MANIFEST_DIR")).join("../rollback-k8s/tests/kubernetes"))
            .env("K8S_BIN", programs)
            .envs([("ETCD_PORT", etcd), ("ETCD_PEER_PORT", peers), ("API_PORT", api), ("KCM_PORT", controllers)])
            .env("FAKE_KUBELET_ARGS", "--ready-delay 0.4 --terminate-delay 0.2 --crash-interval 1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("bash does not start: {e}"))?;
        let mut folder = String::new();
        let out = own.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut folder).map_err(|e| e.to_string())?;
        if folder.trim().is_empty() {
            return Err(format!("it was built, but does not start: {:?}", own.wait()));
        }
        Ok(Self { kubeconfig: Path::new(folder.trim()).join("kubeconfig"), own: Some(own) })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(own) = &mut self.own {
            // The script waits for its standard input to end.
            drop(own.stdin.take());
            drop(own.wait());
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
        // What only a later server knows is left out by an earlier one.
        let out = self.run(&["apply", "--validate=false", "-f", "-"], Some(&object.to_string()));
        assert!(out.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&out.stderr));
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).expect("JSON")
    }

    /// Waits until a workload, as `deployment/web`, is rolled out.
    pub(crate) fn rolled_out(&self, workload: &str) {
        self.kubectl(&["rollout", "status", workload, &format!("--timeout={}s", PATIENCE.as_secs())]);
    }

    /// Kubectl too calls it rolled out, without waiting: what a rollout says is done is not still under way.
    pub(crate) fn is_rolled_out(&self, workload: &str) {
        let said = self.kubectl(&["rollout", "status", workload, "--watch=false"]);
        assert!(said.contains("successfully rolled out"), "{workload} was said to be done: {said}");
    }

    /// Waits until this is so.
    pub(crate) async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !so().await {
            assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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

/// An image whose pods come up. On a cluster of somebody else all of them are the same one: tell releases apart by
/// [`release`].
pub(crate) fn good(version: u32) -> String {
    env::var("ROLLBACK_TEST_IMAGE_GOOD").unwrap_or_else(|_| format!("shop:{version}"))
}

/// An image whose pods crash over and over.
pub(crate) fn bad() -> String {
    env::var("ROLLBACK_TEST_IMAGE_BAD").unwrap_or_else(|_| "shop:bad".into())
}

/// Makes a pod template that of this good release, which differs from every other one's whatever images there are.
pub(crate) fn release(template: &mut Value, number: u32) {
    template["spec"]["containers"][0]["image"] = json!(good(number));
    template["metadata"]["annotations"]["release"] = json!(number.to_string());
}

/// Which release a pod, or a pod template, is of: the one of [`release`], and its image.
pub(crate) fn release_of(pod: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let image = text(&pod["spec"]["containers"][0]["image"]);
    format!("{} {image}", text(&pod["metadata"]["annotations"]["release"]))
}

/// A Deployment of two pods with this image.
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

/// The same of this good release, for a cluster.
pub(crate) fn released(name: &str, number: u32) -> Value {
    let mut object = deployment(name, "");
    release(&mut object["spec"]["template"], number);
    object["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
    object["spec"]["minReadySeconds"] = json!(min_ready_seconds());
    object
}

/// The same with these labels on its pods, by which it knows them.
pub(crate) fn labelled(mut object: Value, labels: &Value) -> Value {
    object["spec"]["selector"]["matchLabels"] = labels.clone();
    object["spec"]["template"]["metadata"]["labels"] = labels.clone();
    object
}

/// On a cluster of somebody else containers may run, and one that crashes is ready for a moment before.
pub(crate) fn min_ready_seconds() -> u32 {
    if env::var_os("ROLLBACK_TEST_KUBECONFIG").is_some() { 3 } else { 0 }
}

/// How long a cluster may take: to pull an image, to start a pod, to see it crash again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The folder with `kube-apiserver` and the others.
fn programs() -> Result<PathBuf, String> {
    let cache = || {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")));
        cache.map(|cache| cache.join("rollback-ci/kubernetes"))
    };
    let named = env::var_os("ROLLBACK_TEST_KUBERNETES").map(PathBuf::from).or_else(cache);
    let folders = named.into_iter().flat_map(|folder| [folder.join("bin"), folder]);
    folders.into_iter().find(|folder| folder.join("kube-apiserver").is_file()).ok_or_else(|| {
        "set ROLLBACK_TEST_KUBECONFIG, or ROLLBACK_TEST_KUBERNETES to what tests/kubernetes/build.sh built".into()
    })
}

/// Ends with the process that started it, however that ends: then its standard input is closed.
const SCRIPT: &str = r#"
set -e
folder=$(mktemp -d "${TMPDIR:-/tmp}/rollback-kubernetes.XXXXXX")
export K8S_RUN=$folder/run
trap '"$SCRIPTS/stop.sh" > /dev/null 2>&1; rm -rf "$folder"' EXIT
trap '' HUP INT TERM
"$SCRIPTS/start.sh" > "$folder/log" 2>&1 < /dev/null || { cat "$folder/log" >&2; exit 1; }
# Nobody waits for the end of what we might still say.
exec 2> /dev/null
echo "$K8S_RUN"
cat > /dev/null
"#;
