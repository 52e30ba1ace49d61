//! Where artefacts lie: S3, ECS's task definitions and ECR, through CodeDeploy's preflight and through an ECS service's.

use std::time::Duration;

use rollback_aws::{
    account::Login,
    codedeploy::{Artefact, Group, OnShelf, Platform, Poller, Shelf},
    ecr::Images,
    ecs::{Service, Shape},
    testing::{
        Refusal, Simulator,
        ecs::Setup,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    Error, ErrorKind,
    backend::{DeploymentBackend, Readiness},
    model::{Change, Revision, RolloutId, TargetId},
    plan::Plan,
};
use serde_json::{Value, json};

use crate::{
    codedeploy_group::{APP, GROUP, Shop},
    codedeploy_preflight::told,
};

const BUCKET: &str = "builds";
const KEY: &str = "shop/1.zip";

/// What a rollout of this candidate would be refused for, and what of it is proved.
async fn prove(backend: &dyn DeploymentBackend, candidate: Revision) -> Readiness {
    let target = TargetId::try_from("shop").unwrap();
    let baseline = backend.baseline().await.unwrap();
    let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
    backend.preflight(&change, &Plan::all_at_once(Duration::from_secs(300)).unwrap()).await.unwrap()
}

fn says(found: &Readiness, wanted: &str) {
    assert!(told(found).contains(wanted), "{wanted} is not in\n{}", told(found));
}

fn bundle() -> Artefact {
    Artefact::s3(BUCKET, KEY)
}

async fn gone(shelf: &dyn Shelf, artefact: &Artefact) -> String {
    match shelf.look(artefact).await {
        Ok(OnShelf::Gone(why)) => why.to_string(),
        other => panic!("{artefact:?}: {other:?}"),
    }
}

async fn unknown(shelf: &dyn Shelf, artefact: &Artefact) -> Error {
    match shelf.look(artefact).await {
        Err(e) => e,
        Ok(other) => panic!("{artefact:?}: {other:?}"),
    }
}

async fn there(shelf: &dyn Shelf, artefact: &Artefact) -> bool {
    matches!(shelf.look(artefact).await, Ok(OnShelf::There(_)))
}

#[tokio::test(start_paused = true)]
async fn a_bundle_is_there_deleted_overwritten_or_archived() {
    let aws = Simulator::new();
    let (s3, hands) = (aws.account().s3(), aws.s3());
    let first = hands.put(BUCKET, KEY, b"one");
    let tag = s3.head_object().bucket(BUCKET).key(KEY).send().await.unwrap().e_tag.unwrap();
    assert!(there(&s3, &bundle()).await && there(&s3, &bundle().version(&first).e_tag(&tag)).await);
    assert!(there(&s3, &bundle().e_tag(tag.trim_matches('"'))).await, "an ETag is the same without its quotes");

    // Overwritten: the version is what it was, and the key is something else.
    hands.put(BUCKET, KEY, b"two");
    assert!(there(&s3, &bundle().version(&first).e_tag(&tag)).await);
    assert!(gone(&s3, &bundle().e_tag(&tag)).await.contains("it was overwritten"));

    // Deleted: what names no version meets the mark, and what names the mark meets it too.
    let mark = s3.delete_object().bucket(BUCKET).key(KEY).send().await.unwrap().version_id.unwrap();
    assert!(there(&s3, &bundle().version(&first)).await);
    assert!(gone(&s3, &bundle()).await.contains("it was deleted"));
    assert!(gone(&s3, &bundle().version(mark)).await.contains("the mark of its deletion"));
    s3.delete_object().bucket(BUCKET).key(KEY).version_id(&first).send().await.unwrap();
    assert!(gone(&s3, &bundle().version(&first)).await.contains("no such version"));
    assert!(gone(&s3, &Artefact::s3(BUCKET, "never.zip")).await.contains("no such object"));
    assert!(gone(&s3, &Artefact::s3("nobody-s-bucket", KEY)).await.contains("no such bucket"));

    // Archived: a copy that is asked for is not there yet, and one that is there is not there for long.
    hands.put(BUCKET, KEY, b"three");
    hands.transition(BUCKET, KEY, "GLACIER_IR");
    assert!(there(&s3, &bundle()).await);
    for class in ["GLACIER", "DEEP_ARCHIVE"] {
        hands.transition(BUCKET, KEY, class);
        assert!(gone(&s3, &bundle()).await.contains(class));
    }
    hands.restore(BUCKET, KEY, false);
    assert!(gone(&s3, &bundle()).await.contains("restore it first"));
    hands.restore(BUCKET, KEY, true);
    let Ok(OnShelf::Partly(_, ends)) = s3.look(&bundle()).await else { panic!("it is a copy") };
    assert!(ends.as_str().contains("expiry-date"), "{ends}");

    for other in [Artefact::github("acme/shop", "0123abc"), Artefact::app_spec("{}")] {
        assert_eq!(s3.look(&other).await.unwrap(), OnShelf::NotMine);
    }
}

#[tokio::test(start_paused = true)]
async fn what_s3_does_not_tell_is_not_known() {
    let aws = Simulator::new();
    let (s3, hands) = (aws.account().s3(), aws.s3());
    let version = hands.put(BUCKET, KEY, b"one");
    // Denied: without the permission to list, what is gone is denied too.
    aws.deny("s3:GetObjectVersion");
    assert_eq!(unknown(&s3, &bundle().version(&version)).await.kind(), ErrorKind::Denied);
    assert!(there(&s3, &bundle()).await, "it is another permission");
    aws.allow("s3:GetObjectVersion");
    aws.deny("s3:ListBucket");
    let e = unknown(&s3, &Artefact::s3(BUCKET, "never.zip")).await;
    assert!(e.kind() == ErrorKind::Denied && e.to_string().contains("s3:ListBucket"), "{e}");
    assert!(there(&s3, &bundle()).await);
    aws.allow("s3:ListBucket");
    // Another region.
    hands.elsewhere("far-builds", "eu-west-1");
    let e = unknown(&s3, &Artefact::s3("far-builds", KEY)).await;
    assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains("is in eu-west-1"), "{e}");
    // Throttled, and refused: a HEAD is answered without a word.
    for (status, code) in [(503, "SlowDown"), (400, "ExpiredToken"), (500, "InternalError")] {
        aws.fault(Fault::of("s3:HeadObject", Trouble::Refuse(Refusal::new(status, code, ""))).times(99));
        let e = unknown(&s3, &bundle()).await;
        assert!(e.to_string().contains(&format!("AWS answers {status}, and does not say why")), "{e}");
        aws.forget_faults();
    }
    // The connection breaks.
    aws.fault(Fault::of("s3:HeadObject", Trouble::LoseRequest).times(99));
    assert_eq!(unknown(&s3, &bundle()).await.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn an_answer_that_is_not_s3s_proves_nothing() {
    let aws = Simulator::new();
    aws.s3().put(BUCKET, KEY, b"one");
    let server = aws.listen("127.0.0.1:0").await.unwrap();
    let remote = Login::new().simulator(server.endpoint_url()).open().await.unwrap();
    // Over HTTP a HEAD has no body: only S3's own id tells who has answered.
    for s3 in [aws.account().s3(), remote.s3()] {
        assert!(there(&s3, &bundle()).await);
        for status in [404, 403, 200, 301] {
            aws.fault(Fault::of("s3:HeadObject", Trouble::Page { status, body: "<html>" }));
            let e = unknown(&s3, &bundle()).await;
            assert!(!matches!(e.kind(), ErrorKind::NotFound), "{status}: {e}");
            assert!(e.to_string().contains("is not AWS's") || e.to_string().contains("is not S3's"), "{status}: {e}");
        }
    }
}

/// A group in place whose baseline is in S3, and a candidate there.
fn bundled() -> (Shop, Group, Artefact, String) {
    let shop = Shop::new(Platform::InPlace);
    let [one, two] = ["shop/1.zip", "shop/2.zip"].map(|key| shop.aws.s3().put(BUCKET, key, key.as_bytes()));
    let place = json!({ "bucket": BUCKET, "key": "shop/1.zip", "version": one, "bundleType": "zip" });
    shop.aws.codedeploy().serve(APP, GROUP, &json!({ "revisionType": "S3", "s3Location": place }));
    let group = shop.group().shelf(shop.aws.account().s3());
    (shop, group, Artefact::s3(BUCKET, "shop/2.zip").version(two), one)
}

#[tokio::test(start_paused = true)]
async fn preflight_looks_for_both_bundles_in_s3() {
    let (shop, group, candidate, first) = bundled();
    let found = prove(&group, candidate.revision().unwrap()).await;
    assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
    says(&found, "proved: the baseline is there: s3://builds/shop/1.zip is in S3");
    says(&found, "proved: the candidate is there: s3://builds/shop/2.zip is in S3");
    assert!(!told(&found).contains("names is still there"), "{}", told(&found));
    // By its key alone it may be overwritten.
    let loose = Artefact::s3(BUCKET, "shop/2.zip").revision().unwrap();
    says(&prove(&group, loose).await, "not provable: that s3://builds/shop/2.zip is what it was");

    let s3 = shop.aws.account().s3();
    let look = || prove(&group, candidate.revision().unwrap());
    shop.aws.s3().transition(BUCKET, "shop/2.zip", "GLACIER");
    says(&look().await, "refused: the candidate s3://builds/shop/2.zip");
    s3.delete_object().bucket(BUCKET).key("shop/1.zip").version_id(first).send().await.unwrap();
    says(&look().await, "no way back: the baseline s3://builds/shop/1.zip");
    // What may not be looked at refuses nothing.
    shop.aws.deny("s3:GetObjectVersion");
    let found = look().await;
    assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
    says(&found, "not provable: that the baseline is still there: S3 denies the look");
    says(&found, "not provable: that what the candidate names is still there");
}

/// An AppSpec of an ECS service that deploys this task definition.
fn app_spec(task_definition: &str) -> String {
    json!({ "version": 0.0, "Resources": [{ "TargetService": { "Type": "AWS::ECS::Service", "Properties": {
        "TaskDefinition": task_definition,
        "LoadBalancerInfo": { "ContainerName": "shop", "ContainerPort": 80 } } } }] })
    .to_string()
}

/// A CodeDeploy group and an ECS service with two task definitions, `shop:1` and `shop:2`, of these images.
fn fleet(images: impl FnOnce(&Simulator) -> [String; 2]) -> (Simulator, Group, Service) {
    let aws = Simulator::new();
    for image in images(&aws) {
        aws.ecs().register("shop", &image, &[]);
    }
    let hands = aws.codedeploy();
    let shape = rollback_aws::testing::codedeploy::Shape::Ecs("prod:shop".into());
    hands.group(APP, GROUP, &shape, "CodeDeployDefault.ECSAllAtOnce");
    let revision: Value = json!({ "appSpecContent": { "content": app_spec("shop:1") } });
    hands.serve(APP, GROUP, &revision);
    aws.ecs().service("prod", "shop", "shop:1", &Setup::new(json!({})));
    let account = aws.account();
    let (poller, images) = (Poller::new(&account), Images::new(&account));
    let group = Group::new(&poller, APP, GROUP, Platform::Ecs).unwrap();
    let group = group.shelf(account.ecs()).shelf(images.clone());
    let service = Service::new(&account, "prod/shop", Shape::rolling()).unwrap().images(&images);
    (aws, group, service)
}

fn candidate() -> Revision {
    Artefact::app_spec(app_spec("shop:2")).revision().unwrap()
}

/// What the preflights of both find.
async fn both(group: &Group, service: &Service) -> [Readiness; 2] {
    [prove(group, candidate()).await, prove(service, Revision::new("shop:2").unwrap()).await]
}

#[tokio::test(start_paused = true)]
async fn a_task_definition_is_active_deregistered_or_never_was() {
    let (aws, group, _) = fleet(|_| ["registry.example/shop:1".into(), "registry.example/shop:2".into()]);
    let found = prove(&group, candidate()).await;
    assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
    says(&found, "proved: the baseline is there: shop:1 is ACTIVE");
    says(&found, "proved: the candidate is there: shop:2 is ACTIVE");
    aws.ecs().deregister("shop:2");
    says(&prove(&group, candidate()).await, "cannot be deployed: task definition shop:2 is INACTIVE");
    aws.ecs().deregister("shop:1");
    let found = prove(&group, candidate()).await;
    says(&found, "no way back: the baseline");
    says(&found, "task definition shop:1 is INACTIVE");
    let never = Artefact::app_spec(app_spec("shop:99")).revision().unwrap();
    says(&prove(&group, never).await, "cannot be deployed: there is no task definition shop:99");
    // Each shelf by itself knows that nothing is there.
    let only = Artefact::app_spec(app_spec("shop:99"));
    assert!(gone(&aws.account().ecs(), &only).await.contains("no task definition shop:99"));
    assert!(gone(&Images::new(&aws.account()), &only).await.contains("no task definition shop:99"));
    aws.deny("ecs:DescribeTaskDefinition");
    let found = prove(&group, candidate()).await;
    assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
    says(&found, "not provable: that the baseline is still there: reading task definition shop:1");
    // YAML is not read.
    let yaml = Artefact::app_spec("version: 0.0\nResources: []");
    assert_eq!(aws.account().ecs().look(&yaml).await.unwrap(), OnShelf::NotMine);
    assert_eq!(Images::new(&aws.account()).look(&yaml).await.unwrap(), OnShelf::NotMine);
}

#[tokio::test(start_paused = true)]
async fn images_by_digest_are_proved_and_those_that_are_gone_are_named() {
    let (aws, group, service) = fleet(|aws| {
        ["1", "2"].map(|tag| {
            let (name, digest) = aws.ecr().push("shop", tag, tag);
            format!("{name}@{digest}")
        })
    });
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
        let images =
            found.proved.iter().filter(|it| it.as_str().contains("dkr.ecr.us-east-1.amazonaws.com/shop@sha256:"));
        assert_eq!(images.count(), 2, "{}", told(&found));
        assert!(!told(&found).contains("pulled"), "{}", told(&found));
    }
    aws.ecr().archive("shop", "2");
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (1, 0), "{}", told(&found));
        assert!(found.refused[0].as_str().contains("is in ECR's archive"), "{}", told(&found));
    }
    aws.ecr().delete("shop", "1");
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (1, 1), "{}", told(&found));
        assert!(found.no_way_back[0].as_str().contains("there is no image"), "{}", told(&found));
    }
    aws.deny("ecr:DescribeImages");
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
        assert!(found.not_provable.iter().any(|it| it.as_str().contains("ecr:DescribeImages")), "{}", told(&found));
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_by_its_tag_is_there_and_may_be_another_one_tomorrow() {
    let (aws, group, service) =
        fleet(|aws| ["1", "2"].map(|tag| format!("{}:{tag}", aws.ecr().push("shop", tag, tag).0)));
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
        let images = found.proved.iter().filter(|it| it.as_str().contains(".amazonaws.com/shop:"));
        assert_eq!(images.count(), 2, "{}", told(&found));
        says(&found, "shop:1 is what it was: a tag can be moved");
        assert!(!told(&found).contains("names is still there"), "{}", told(&found));
    }
    aws.ecr().delete("shop", "1");
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 1), "{}", told(&found));
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_in_ecr_refuses_nothing() {
    let elsewhere = ["nginx:1.27", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop:1"];
    let (aws, group, service) = fleet(|_| elsewhere.map(str::to_owned));
    for found in both(&group, &service).await {
        assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
        for image in elsewhere {
            says(&found, &format!("that image {image} can be pulled: it is not in ECR in us-east-1"));
        }
    }
    assert!(!aws.calls().contains_key("ecr:DescribeImages"), "nobody was asked");
    // Throttled, or answered by something else: it stays open.
    let (aws, group, service) =
        fleet(|aws| ["1", "2"].map(|tag| format!("{}:{tag}", aws.ecr().push("shop", tag, tag).0)));
    for trouble in
        [Trouble::Throttle, Trouble::Page { status: 404, body: "<html>" }, Trouble::Page { status: 200, body: "{}" }]
    {
        aws.fault(Fault::of("ecr:DescribeImages", trouble).times(99));
        for found in both(&group, &service).await {
            assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{}", told(&found));
            says(&found, "shop:1 can be pulled: ");
        }
        aws.forget_faults();
    }
    let bare = Service::new(&aws.account(), "prod/shop", Shape::rolling()).unwrap();
    says(&prove(&bare, Revision::new("shop:2").unwrap()).await, "Service::images looks in ECR");
}
