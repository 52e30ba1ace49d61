//! One process that talks TLS through the client of every backend: providers of cryptography that stand side by side make
//! rustls panic, and only a binary with all of them would find out. A new backend adds its client here.

use std::sync::Arc;

use rollback_core::{
    backend::DeploymentBackend as _,
    gate::prometheus::{Counts, Matcher, Selector, Server},
    gate::source::{MetricSource as _, Query, Serving},
    model::{RevisionId, TargetId},
};
use rollback_heroku::{
    App, Client,
    client::Http,
    testing::{Heroku, Slug},
};

use crate::support::{prometheus::client_that_trusts, tls::Secure};

const REFUSED: &str = "invalid peer certificate";

#[tokio::test(flavor = "multi_thread")]
async fn every_client_refuses_whom_nobody_vouches_for_and_talks_to_whom_the_caller_does() {
    let heroku = Heroku::new();
    heroku.app("shop", Slug::good());
    let serving = heroku.serve().await.unwrap();
    let Some(secure) = Secure::before(serving.url()).await else { return };
    // rollback-heroku.
    let app = |http: Http| {
        let client = Client::over(Arc::new(http), Heroku::TOKEN).unwrap().api_url(&secure.url("")).unwrap();
        App::new(&client, "shop").unwrap()
    };
    let said = app(Http::new().unwrap()).baseline().await.unwrap_err().chain();
    assert!(said.contains(REFUSED), "{said}");
    assert_eq!(heroku.exchanges().len(), 0, "whom we do not trust is told nothing");
    let trusted = app(Http::over(client_that_trusts(&secure.authority)).unwrap());
    trusted.baseline().await.unwrap();

    // rollback-core, and what all its features share.
    let server = Server::new(&secure.url("")).unwrap();
    let requests = Selector::new("up").unwrap().revision("version").unwrap();
    let now = jiff::Timestamp::UNIX_EPOCH;
    let query = Query {
        target: TargetId::try_from("shop").unwrap(),
        baseline: RevisionId::try_from("v1").unwrap(),
        candidate: RevisionId::try_from("v2").unwrap(),
        serving: Serving::Both,
        since: now,
        now,
    };
    let asked = async |server: &Server| {
        let source = Counts::new(server, &requests, Matcher::is("code", "500").unwrap()).unwrap();
        source.read(&query).await.unwrap_err().chain()
    };
    let said = asked(&server).await;
    assert!(said.contains(REFUSED), "{said}");
    // It is no Prometheus who answers, but somebody does.
    let said = asked(&server.client(client_that_trusts(&secure.authority))).await;
    assert!(said.contains("answered "), "{said}");

    #[cfg(feature = "aws")]
    aws(&secure).await;
    #[cfg(feature = "k8s")]
    kubernetes(&secure).await;
}

/// rollback-aws, by the SDK.
#[cfg(feature = "aws")]
async fn aws(secure: &Secure) {
    use aws_smithy_http_client::{
        Builder,
        tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
    };
    use rollback_aws::{account::Login, lambda::Alias};

    let asked = async |login: Login| {
        let account = login.simulator(secure.url("")).open().await.unwrap();
        Alias::new(&account, "checkout:live").unwrap().baseline().await.unwrap_err().chain()
    };
    let said = asked(Login::new()).await;
    assert!(said.contains(REFUSED), "{said}");
    let store = TrustStore::empty().with_pem_certificate(secure.authority.as_bytes());
    let context = TlsContext::builder().with_trust_store(store).build().unwrap();
    let trusting = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https();
    let said = asked(Login::new().http_client(trusting)).await;
    assert!(said.contains("the answer is not AWS's"), "{said}");
}

/// rollback-k8s, by kube.
#[cfg(feature = "k8s")]
async fn kubernetes(secure: &Secure) {
    use rollback_k8s::{Client, Workload};

    let folder = tempfile::tempdir().unwrap();
    let [authority, kubeconfig] = ["authority.pem", "kubeconfig"].map(|name| folder.path().join(name));
    std::fs::write(&authority, &secure.authority).unwrap();
    let asked = async |authority: Option<&std::path::Path>| {
        let mut cluster = serde_json::json!({ "server": secure.url("") });
        if let Some(file) = authority {
            cluster["certificate-authority"] = serde_json::json!(file);
        }
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "here", "cluster": cluster }],
            "users": [{ "name": "me", "user": { "token": "hunter2" } }],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "me" } }],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let client = Client::from_kubeconfig(&kubeconfig, None).await.unwrap();
        Workload::deployment(&client, "shop", "web").unwrap().baseline().await.unwrap_err().chain()
    };
    let said = asked(None).await;
    assert!(said.contains(REFUSED), "{said}");
    let said = asked(Some(&authority)).await;
    // Heroku does not speak as Kubernetes does, but it hears and answers.
    assert!(said.contains("(status 406)"), "{said}");
}
