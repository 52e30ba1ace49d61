//! Versions made of zips and images: once, whatever is lost on the way.

use std::time::Duration;

use rollback_aws::{
    lambda::{Code, PUBLISH},
    testing::{
        Refusal,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{ErrorKind, backend::DeploymentBackend as _, testing::backend::Bench as _};

use crate::support::Shop;

fn zip() -> Code {
    Code::zip("a new zip").unwrap()
}

/// The versions that there are.
async fn versions(shop: &Shop) -> Vec<String> {
    let found = shop.aws.account().lambda().list_versions_by_function().function_name("checkout").send().await.unwrap();
    found.versions().iter().filter_map(|it| it.version()).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_zip_becomes_a_version_that_users_do_not_see_and_only_once() {
    let shop = Shop::new();
    let made = shop.alias().publish(&zip()).await.unwrap();
    assert_eq!(made.id.as_str(), "4");
    assert_eq!(shop.alias().publish(&zip()).await.unwrap(), made, "the same code is the same version");
    assert_eq!(versions(&shop).await, ["$LATEST", "1", "2", "3", "4"]);
    assert_eq!(shop.at(), ("1".into(), None));
    assert_eq!(shop.aws.calls()["lambda:UpdateFunctionCode"], 1, "what is there is not uploaded again");
    let change = {
        let baseline = shop.alias().baseline().await.unwrap();
        let target = "checkout:live".parse().unwrap();
        rollback_core::model::Change { rollout: "r".parse().unwrap(), target, baseline, candidate: made }
    };
    let plan = rollback_core::plan::Plan::canary([10, 100], Duration::ZERO).unwrap();
    let found = shop.connect().await.preflight(&change, &plan).await.unwrap();
    assert_eq!(found.refused, [], "it is ready for a rollout");
}

#[tokio::test(start_paused = true)]
async fn images_and_objects_become_versions_too() {
    let shop = Shop::new();
    let registry = "123456789012.dkr.ecr.us-east-1.amazonaws.com/checkout";
    let by_tag = shop.alias().publish(&Code::image(format!("{registry}:v9"))).await.unwrap();
    let by_object = shop.alias().publish(&Code::s3("builds", "checkout.zip").object_version("7")).await.unwrap();
    assert_eq!((by_tag.id.as_str(), by_object.id.as_str()), ("4", "5"));
    let again = shop.alias().publish(&Code::s3("builds", "checkout.zip").object_version("7")).await.unwrap();
    assert_eq!(again, by_object, "uploaded again, and the same code is the same version");
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_on_the_way_there_is_one_version() {
    let codes = [zip, || Code::s3("builds", "checkout.zip")];
    for action in ["lambda:GetFunctionConfiguration", "lambda:UpdateFunctionCode", "lambda:PublishVersion"] {
        for trouble in [
            Trouble::LoseAnswer,
            Trouble::LoseRequest,
            Trouble::Throttle,
            Trouble::Refuse(Refusal::new(500, "ServiceException", "An error occurred")),
            Trouble::Refuse(Refusal::new(409, "ResourceConflictException", "An update is in progress")),
            Trouble::DelayAnswer(Duration::from_secs(40)),
            Trouble::Page { status: 502, body: "<html>Bad Gateway</html>" },
        ] {
            // Once, and for longer than the SDK tries.
            for times in [1, 4] {
                for code in codes {
                    let shop = Shop::new();
                    shop.aws.fault(Fault::of(action, trouble.clone()).times(times));
                    let made = shop.alias().publish(&code()).await;
                    let what = format!("{times} times {trouble:?} of {action}");
                    assert_eq!(made.unwrap_or_else(|e| panic!("{what}: {}", e.chain())).id.as_str(), "4", "{what}");
                    assert_eq!(versions(&shop).await, ["$LATEST", "1", "2", "3", "4"], "{what}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_calls_only_what_its_policy_allows_and_names_what_it_lacks() {
    let shop = Shop::new();
    shop.alias().publish(&zip()).await.unwrap();
    let called: Vec<String> = shop.aws.calls().into_keys().collect();
    let mut allowed: Vec<&str> = PUBLISH.iter().map(|permission| permission.action).collect();
    allowed.sort_unstable();
    assert_eq!(called, allowed);
    for permission in PUBLISH {
        let shop = Shop::new();
        shop.aws.deny(permission.action);
        let e = shop.alias().publish(&zip()).await.expect_err("it is denied");
        assert_eq!(e.kind(), ErrorKind::Denied);
        assert!(e.chain().contains(permission.action), "{}", e.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_uploaded_under_the_eyes_of_users() {
    let shop = Shop::new();
    shop.aws.lambda().point("checkout", "edge", "$LATEST", None);
    let e = shop.alias().publish(&zip()).await.expect_err("edge serves what is uploaded");
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("alias edge is at $LATEST"), "{e}");
    assert!(!shop.aws.calls().contains_key("lambda:UpdateFunctionCode"));
}

#[tokio::test(start_paused = true)]
async fn code_that_cannot_be_sent_or_started_is_told() {
    assert_eq!(Code::zip("").expect_err("nothing").kind(), ErrorKind::Invalid);
    let large = Code::zip(vec![0; 51 * 1024 * 1024]).expect_err("too large");
    assert!(large.to_string().contains("S3 takes more"), "{large}");
    let missing = Code::zip_file("/no/such/file.zip").await.expect_err("it is not there");
    assert!(missing.to_string().contains("/no/such/file.zip"), "{missing}");

    let shop = Shop::new();
    shop.aws.lambda().set_state("checkout", "$LATEST", "Active", "Failed");
    let failed = shop.alias().publish(&zip()).await.expect_err("the update fails");
    assert_eq!(failed.kind(), ErrorKind::Invalid);
    assert!(failed.to_string().contains("cannot be used"), "{failed}");
    assert_eq!(versions(&shop).await.len(), 4, "nothing was published");
}
