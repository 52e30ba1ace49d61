//! A gateway that routes nothing: HTTPRoutes as the API server knows them, and what a gateway would say of one.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Namespace;

/// Makes HTTPRoutes known to the API server, where they are not yet, and leaves them known: tests that run side by side
/// share them.
pub(crate) async fn install(space: &Namespace) {
    // Whoever runs a gateway has them already, and better.
    if !space.try_kubectl(&["get", "crd", ROUTES]) {
        space.apply(&definition());
    }
    space.kubectl(&["wait", "--for=condition=Established", &format!("crd/{ROUTES}"), "--timeout=30s"]);
    // It is established a moment before it is served.
    for _ in 0..600 {
        if space.try_kubectl(&["get", ROUTES]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("HTTPRoutes are not served");
}

/// What a gateway says of the route, once for every generation: it is accepted, and its Services are found.
pub(crate) fn play(space: &Namespace, route: &str) {
    if let Some(judged) = judged(space.get(ROUTES, route)) {
        let path = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes/{route}/status", space.name);
        // A write of somebody else may be faster: the next round says it again.
        space.run(&["replace", "--raw", &path, "-f", "-"], Some(&judged.to_string()));
    }
}

/// The route with what a gateway says of it, where that is not what it says already.
pub(crate) fn judged(mut route: Value) -> Option<Value> {
    let generation = route["metadata"]["generation"].clone();
    if route["status"]["parents"][0]["conditions"][0]["observedGeneration"] == generation {
        return None;
    }
    let condition = |name: &str| {
        json!({ "type": name, "status": "True", "reason": name, "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    let parents = route["spec"]["parentRefs"].as_array().expect("parents").iter();
    let parents: Vec<Value> = parents
        .map(|parent| {
            json!({ "parentRef": parent, "controllerName": "example.com/test",
                "conditions": [condition("Accepted"), condition("ResolvedRefs")] })
        })
        .collect();
    route["status"] = json!({ "parents": parents });
    Some(route)
}

/// The weights of the two backends of a rule.
pub(crate) fn weights(space: &Namespace, route: &str, rule: usize) -> (Value, Value) {
    let refs = space.get(ROUTES, route)["spec"]["rules"][rule]["backendRefs"].clone();
    (refs[0]["weight"].clone(), refs[1]["weight"].clone())
}

/// The least that the API server has to know of HTTPRoutes.
fn definition() -> Value {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": ROUTES,
            "annotations": { "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api" } },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": { "plural": "httproutes", "singular": "httproute", "kind": "HTTPRoute", "listKind": "HTTPRouteList" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": any, "status": any } } } }],
        },
    })
}

const ROUTES: &str = "httproutes.gateway.networking.k8s.io";
