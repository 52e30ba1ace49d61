//! Which cluster is meant.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use rollback_core::ErrorKind;
use rollback_k8s::{Client, HttpRoute, Workload, testing::Cluster};

const GOOD: &str = "apiVersion: v1\nkind: Config\ncurrent-context: shop\n\
                    contexts: [{name: shop, context: {cluster: c, user: u, namespace: checkout}}]\n\
                    clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                    users: [{name: u, user: {token: hunter2}}]\n";
const TORN: &str = "apiVersion: v1\nkind: Config\nusers: [{name: u, user: {token: hunter2\n";

/// What a process says that has this environment: the namespace of its cluster, or why it has none.
fn from_env(kubeconfig: &str, home: &Path) -> String {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "client::a_process_says_which_cluster_it_means", "--nocapture"]);
    child.env("HOME", home).env("KUBECONFIG", kubeconfig).env(ASKED, "1");
    // As on a runner that is itself a pod.
    child.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", "1");
    let said = child.stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let (_, said) = said.split_once(SAYS).unwrap_or_else(|| panic!("no answer in {said}"));
    said.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_process_says_which_cluster_it_means() {
    if env::var_os(ASKED).is_none() {
        return;
    }
    match Client::from_env().await {
        Ok(client) => println!("{SAYS}{}", client.namespace()),
        Err(e) => println!("{SAYS}{:?} {}", e.kind(), e.chain().replace('\n', " ")),
    }
}

#[test]
fn a_kubeconfig_that_is_named_is_used_or_refused_and_never_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = home.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let (good, torn) = (file("good", GOOD), file("torn", TORN));
    assert_eq!(from_env(&good, home.path()), "checkout");
    let lost = home.path().join("typo").display().to_string();
    for (named, blamed) in [(&lost, &lost), (&torn, &torn), (&format!("{good}:{lost}"), &lost)] {
        let said = from_env(named, home.path());
        assert!(said.starts_with(&format!("Invalid the kubeconfig {blamed} cannot be used")), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    let said = from_env("", home.path());
    assert!(said.starts_with("Invalid no cluster is configured: no KUBECONFIG, no ~/.kube/config, and not"), "{said}");
    fs::create_dir(home.path().join(".kube")).unwrap();
    let usual = file(".kube/config", TORN);
    let said = from_env("", home.path());
    assert!(said.starts_with(&format!("Invalid the kubeconfig {usual} cannot be used")), "{said}");
    file(".kube/config", GOOD);
    assert_eq!(from_env("", home.path()), "checkout");
}

#[tokio::test]
async fn a_kubeconfig_that_does_not_parse_or_lacks_the_context_is_told_by_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, context) in [(TORN, None), (GOOD, Some("pages")), ("", None), ("[]", None)] {
        fs::write(file.path(), text).unwrap();
        let error = Client::from_kubeconfig(file.path(), context).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let said = error.chain();
        assert!(said.starts_with(&format!("the kubeconfig {} cannot be used: ", file.path().display())), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

const ASKED: &str = "ROLLBACK_TEST_FROM_ENV";
const SAYS: &str = "it says: ";

#[tokio::test]
async fn a_target_has_one_id_in_every_process_and_another_in_another_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let client = async |server: &str| {
        let file = folder.path().join("kubeconfig");
        fs::write(&file, GOOD.replace("http://127.0.0.1:1", server)).unwrap();
        Client::from_kubeconfig(&file, None).await.unwrap()
    };
    let (staging, again) = (client("https://staging:6443").await, client("https://ana:secret@staging:6443/").await);
    assert_eq!((staging.server(), again.server()), (Some("staging:6443"), Some("staging:6443")));
    let shared = client("https://rancher.example/k8s/clusters/c-1").await;
    assert_eq!(shared.server(), Some("rancher.example/k8s/clusters/c-1"));

    let web = |client: &Client| Workload::deployment(client, "shop", "web").unwrap().target_id();
    assert_eq!(web(&staging), web(&again));
    assert!(web(&staging).as_str().starts_with("shop/deployment/web #"), "{}", web(&staging));
    let route = |services| HttpRoute::new(&staging, "shop", "web", services).unwrap();
    let (api, pages) = (route(["blue", "green"]).rule("api"), route(["blue", "green"]).rule("pages"));
    assert_eq!(api.target_id(), route(["green", "blue"]).rule("api").target_id());
    assert!(api.target_id().as_str().starts_with("shop/httproute/web/api #"), "{}", api.target_id());
    let others = [web(&staging), web(&shared), api.target_id(), pages.target_id(), route(["a", "b"]).target_id()];
    assert_eq!(others.iter().collect::<std::collections::BTreeSet<_>>().len(), 5, "{others:?}");
    // Whichever way leads there; and a name is no address.
    let named = |client: &Client, name: &str| web(&client.clone().named(name).unwrap());
    assert_eq!(named(&staging, "prod"), named(&shared, "prod"));
    assert_eq!(named(&staging, "prod"), named(&Cluster::new().client(), "prod"));
    let others = [web(&staging), named(&staging, "prod"), named(&staging, "test"), named(&staging, "staging:6443")];
    assert_eq!(others.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{others:?}");
    for bad in ["", "pr od", "prod\n", "größe", &"p".repeat(254)] {
        let said = staging.clone().named(bad).unwrap_err();
        assert!(said.kind() == ErrorKind::Invalid && said.to_string().contains("1 to 253 bytes of ASCII"), "{said}");
    }
    let long = Workload::deployment(&staging, "shop", &"w".repeat(253)).unwrap().target_id();
    assert_eq!(long.as_str().len(), 110);
}
