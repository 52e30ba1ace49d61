//! The Roles on the crate's page: those that the code prints, from the list that preflight checks.

use rollback_k8s::{
    HttpRoute, Watches, Workload, access,
    gate::{Conditions, Pods},
    store::Secrets,
    testing::Cluster,
};

const PAGE: &str = include_str!("../../README.md");

fn shows(what: &str, yaml: &str) {
    assert!(PAGE.contains(&format!("```yaml\n{yaml}```\n")), "the page does not show {what} as it is printed:\n{yaml}");
}

#[tokio::test]
async fn the_page_shows_the_roles_that_the_code_prints() {
    let client = Cluster::new().client();
    let watches = Watches::new(&client);
    let pods = Pods::of(&watches, "shop", "deployment/web").unwrap();
    let conditions = Conditions::of(&watches, "shop", "deployment/web").unwrap();
    let web = Workload::deployment(&client, "shop", "web").unwrap().watched_by(&watches);
    let rights = [web.rights(), pods.rights(), conditions.rights()].concat();
    shows("a Deployment's Role", &access::role("deployer", "shop", &rights).unwrap());

    let route = HttpRoute::new(&client, "shop", "web", ["web-a", "web-b"]).unwrap().watched_by(&watches);
    let pods = Pods::beside(&watches, "shop", "deployment/web-b", "deployment/web-a").unwrap();
    let rights = [route.rights(), pods.rights()].concat();
    shows("a route's Role", &access::role("deployer", "shop", &rights).unwrap());

    shows("the store's manifest", &Secrets::manifest("rollouts", "shop/deployer").unwrap());
}
