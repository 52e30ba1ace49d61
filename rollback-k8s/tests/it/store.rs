//! The store of Secrets against the suite, and what is its own.

use rollback_core::testing::store as suite;
use rollback_k8s::{Client, store::Secrets};

async fn client() -> Client {
    Client::from_kubeconfig(std::env::var("ROLLBACK_TEST_KUBECONFIG").unwrap(), None).await.unwrap()
}

#[tokio::test]
async fn secrets_on_a_real_server_keep_every_promise() {
    let client = client().await;
    let store = Secrets::new(&client, "default").unwrap();
    let t = std::time::Instant::now();
    suite::all(&store).await;
    eprintln!("all {:?}", t.elapsed());
    suite::two_handles_share_one_truth(&store, &Secrets::new(&client, "default").unwrap()).await;
    suite::two_handles_share_one_truth(&store, &store.clone()).await;
    suite::retention(&store.clone().keep(1), 1).await;
    suite::retention(&store.clone().keep(3), 3).await;
    suite::reopening_finds_everything(async || Secrets::new(&client, "default").unwrap()).await;
    eprintln!("{:?}", t.elapsed());
}
