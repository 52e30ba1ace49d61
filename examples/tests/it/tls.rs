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

#[tokio::test(flavor = "multi_thread")]
async fn every_client_refuses_whom_nobody_vouches_for_and_talks_to_whom_the_caller_does() {
    let heroku = Heroku::new();
    heroku.app("shop", Slug::good());
    let serving = heroku.serve().await.unwrap();
    let Some(secure) = Secure::before(serving.url()).await else { return };
    let refused = "no secure connection for us: invalid peer certificate";

    // rollback-heroku.
    let app = |http: Http| {
        let client = Client::over(Arc::new(http), Heroku::TOKEN).unwrap().api_url(&secure.url("")).unwrap();
        App::new(&client, "shop").unwrap()
    };
    let said = app(Http::new().unwrap()).baseline().await.unwrap_err().chain();
    assert!(said.contains(refused), "{said}");
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
    assert!(said.contains(refused), "{said}");
    // It is no Prometheus who answers, but somebody does.
    let said = asked(&server.client(client_that_trusts(&secure.authority))).await;
    assert!(said.contains("answered "), "{said}");
}
