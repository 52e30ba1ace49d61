//! The quickstart's service under real monitoring: Prometheus scrapes its router, Alertmanager tells of its alerts.

use std::{
    future::{Future, IntoFuture as _},
    path::PathBuf,
    time::Duration,
};

use rollback_core::{
    engine::{Engine, NewRollout, Outcome, Target},
    gate::{
        self, Budget, Compare, HealthGate, Policy,
        prometheus::{Counts, Matcher, Selector, Server},
    },
    plan::Plan,
    receiver::Receiver,
    report::Report,
    state::{Cause, State},
    store::Memory,
};
use rollback_examples::{
    admin::{Admin, Split},
    http,
    proxy::{Proxy, revision},
    router::Router,
    service::{Build, RELEASE},
    traffic,
};
use tokio::task::AbortHandle;

use crate::support::{alertmanager, prometheus, skip};

/// The service behind its router, v1 alone, and its users.
struct Shop {
    router: Router,
    users: AbortHandle,
}

impl Shop {
    async fn open(name: &str) -> Self {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
        let _ = std::fs::remove_file(&file);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_quickstart"));
        let router = Router::start(program, file, Split::alone(Build::good("v1"))).await.unwrap();
        let up =
            async { while !http::get(router.users, "/").await.is_ok_and(|answer| answer.status().is_success()) {} };
        soon("v1 is up", up).await;
        let users = tokio::spawn(traffic::run(router.users, 100, Duration::from_secs(600))).abort_handle();
        Self { router, users }
    }

    fn admin(&self) -> Admin {
        Admin::new(self.router.admin)
    }

    fn target(&self, gate: impl HealthGate, policy: Policy) -> Target {
        Target::new("shop", Proxy::new(self.admin())).unwrap().gate(gate, policy)
    }

    /// A Prometheus that scrapes it five times a second, with these rules.
    fn prometheus(&self, rules: &str, alertmanager: Option<&alertmanager::Server>) -> Option<prometheus::Server> {
        let alertmanagers = alertmanager.map_or_else(String::new, |server| {
            format!("{{static_configs: [{{targets: ['{}']}}]}}", server.url().trim_start_matches("http://"))
        });
        let config = format!(
            "
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: [rules.yml]
alerting: {{alertmanagers: [{alertmanagers}]}}
scrape_configs:
  - job_name: shop
    static_configs: [{{targets: ['{}']}}]
",
            self.router.admin
        );
        let files = [("prometheus.yml", config.as_str()), ("rules.yml", rules)];
        prometheus::Server::own(&files, &["--rules.alert.resend-delay=1s"]).map_err(|why| skip("prometheus", &why)).ok()
    }

    /// v1 is all that stands, and all that users get.
    async fn is_back_on_v1(&self) {
        assert_eq!(self.admin().look().await.unwrap().split.to_string(), "v1");
        for _ in 0..100 {
            let answer = http::get(self.router.users, "/").await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.headers()[RELEASE]), (200, &"v1".parse().unwrap()));
        }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.users.abort();
    }
}

/// v2 as it must not stay: a quarter of its answers are a 500. No step ends before the test does, so only the gate can be
/// the reason to go back.
fn bad_release() -> NewRollout {
    let plan = Plan::canary([20, 100], Duration::from_secs(3600)).unwrap();
    NewRollout::new("shop", revision(&Build::bad("v2")).unwrap(), plan).unwrap()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

fn unhealthy(outcome: &Outcome) -> &str {
    match &outcome.rollout.state {
        State::RolledBack { cause: Cause::Unhealthy { why, .. } } => why.as_str(),
        _ => panic!("{outcome}"),
    }
}

const TOKEN: &str = "a-token-of-this-test";

const RULES: &str = r#"
groups:
  - name: shop
    rules:
      - alert: ShopErrors
        expr: >
          sum by (release) (rate(shop_requests_total{outcome="failed"}[5s]))
            / sum by (release) (rate(shop_requests_total[5s])) > 0.05
        labels: {target: shop}
        annotations: {summary: '{{ $value | humanizePercentage }} of the requests to {{ $labels.release }} failed'}
      - alert: Watchdog
        expr: vector(1)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_on_its_error_rate_takes_the_service_back() {
    let shop = Shop::open("alert").await;
    let engine = Engine::new(Memory::new()).unwrap();
    let (alarms, signal) = gate::signal("alarms").unwrap();
    // Asked so seldom that only a push can be the reason to go back.
    engine.register(shop.target(alarms, Policy::default().every(Duration::from_secs(3600)))).unwrap();
    let receiver = Receiver::new(&engine).signal("shop", signal).unwrap().bearer(TOKEN).unwrap();
    let router = receiver.heartbeat("alertname", "Watchdog").router().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());

    let config = format!(
        "
route: {{receiver: rollback, group_by: ['...'], group_wait: 0s, group_interval: 200ms, repeat_interval: 1s}}
receivers:
  - name: rollback
    webhook_configs:
      - url: http://{at}/alertmanager
        http_config: {{authorization: {{credentials: {TOKEN}}}}}
"
    );
    let Some(alertmanager) = alertmanager::own(&config).await else { return };
    let Some(_prometheus) = shop.prometheus(RULES, Some(&alertmanager)) else { return };

    let mut handle = engine.start(bad_release()).await.unwrap();
    let baking = async {
        while handle.status().state.name() != "baking" {
            handle.changed().await.expect("it goes on");
        }
    };
    soon("v2 has a part of the traffic", baking).await;
    let outcome = soon("it goes back", handle.finished()).await;
    let why = unhealthy(&outcome);
    assert!(why.contains("alert ShopErrors") && why.contains("of the requests to v2 failed"), "{why}");
    shop.is_back_on_v1().await;
    let report = Report::new(&outcome.rollout).markdown();
    assert!(report.contains("ShopErrors"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_with_the_baseline_takes_the_service_back() {
    let shop = Shop::open("compared").await;
    let Some(prometheus) = shop.prometheus("groups: []\n", None) else { return };
    let server = Server::new(prometheus.url()).unwrap().client(prometheus::client());
    let requests = Selector::new("shop_requests_total").unwrap().revision("release").unwrap();
    let source = Counts::new(&server, &requests, Matcher::is("outcome", "failed").unwrap()).unwrap();
    let gate = Compare::failures("errors", source, Budget::default().whole()).unwrap();
    let engine = Engine::new(Memory::new()).unwrap();
    engine.register(shop.target(gate, Policy::default().every(Duration::from_millis(500)))).unwrap();

    let handle = engine.start(bad_release()).await.unwrap();
    let outcome = soon("it goes back", handle.finished()).await;
    let why = unhealthy(&outcome);
    assert!(why.contains("requests failed") && why.contains("evidence"), "{why}");
    shop.is_back_on_v1().await;
    let evidence = outcome.rollout.gates[0].evidence.as_ref().unwrap();
    let failed = |arm: &str| evidence.facts[arm]["failures"].as_u64().unwrap();
    assert!(failed("candidate") > 0 && failed("baseline") == 0, "{evidence:#?}");
    assert!(evidence.facts["candidate"]["requests"].as_u64() < evidence.facts["baseline"]["requests"].as_u64());
    for fact in ["e_value", "enough", "alpha", "odds_borne"] {
        assert!(evidence.facts.get(fact).is_some(), "{fact} is missing in {evidence:#?}");
    }
    assert!(evidence.facts["candidate"]["rate_at_all_times_95"][0].as_f64().unwrap() > 0.0, "{evidence:#?}");
    let report = Report::new(&outcome.rollout).markdown();
    assert!(report.contains(why), "{report}");

    // The same judge, the same Prometheus: what is no worse goes through.
    let plan = Plan::canary([50, 100], Duration::from_secs(2)).unwrap();
    let good = NewRollout::new("shop", revision(&Build::good("v3")).unwrap(), plan).unwrap();
    let outcome = soon("v3 is promoted", engine.start(good).await.unwrap().finished()).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let said = &outcome.rollout.gates[0].evidence.as_ref().unwrap().summary;
    assert!(said.contains("nothing speaks against it"), "{said}");
}
