//! What all services share: the way in, the sorting of errors, the simulator's clock and faults.

use std::{collections::HashMap, time::Duration};

use aws_sdk_lambda::types::AliasRoutingConfiguration;
use rollback_aws::{
    account::{Account, Login},
    error::sorted,
    testing::{
        Refusal, Simulator,
        fault::{Fault, Trouble},
        lambda::Build,
    },
};
use rollback_core::{Error, ErrorKind, clock::Clock as _};

fn simulator() -> Simulator {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2"));
    aws.lambda().point("checkout", "live", "1", None);
    aws
}

async fn read(account: &Account) -> Result<String, Error> {
    let alias = account.lambda().get_alias().function_name("checkout").name("live").send().await;
    let alias = alias.map_err(|e| sorted("reading the alias checkout:live", e))?;
    Ok(alias.revision_id().expect("every alias has one").to_owned())
}

async fn write(account: &Account, revision: &str, weight: f64) -> Result<(), Error> {
    let weights = HashMap::from([("2".to_owned(), weight)]);
    let routing = AliasRoutingConfiguration::builder().set_additional_version_weights(Some(weights)).build();
    let lambda = account.lambda();
    let call = lambda.update_alias().function_name("checkout").name("live").function_version("1");
    let sent = call.routing_config(routing).revision_id(revision).send().await;
    sent.map(drop).map_err(|e| sorted("writing the alias checkout:live", e))
}

#[tokio::test(start_paused = true)]
async fn the_sdk_reads_and_writes_an_alias_without_a_socket() {
    let aws = simulator();
    let account = aws.account();
    let revision = read(&account).await.expect("it is there");
    write(&account, &revision, 0.25).await.expect("the revision is current");
    let pointed = aws.lambda().alias("checkout", "live").expect("it is there");
    assert_eq!((pointed.version.as_str(), pointed.other), ("1", Some(("2".to_owned(), 0.25))));
    let stale = write(&account, &revision, 0.5).await.expect_err("the revision is spent");
    assert_eq!(stale.kind(), ErrorKind::Conflict, "{}", stale.chain());
    let calls = aws.calls();
    assert_eq!((calls["lambda:GetAlias"], calls["lambda:UpdateAlias"]), (1, 2));
}

#[tokio::test]
async fn the_same_simulator_answers_on_loopback() {
    let aws = simulator();
    let server = aws.listen("127.0.0.1:0").await.expect("a port");
    // Over the library's own HTTP client, whose TLS is not asked for here.
    let key = aws_credential_types::Credentials::new("AKID", "secret", None, None, "test");
    let login = Login::new().region("us-east-1").endpoint_url(server.endpoint_url());
    let credentials = aws_credential_types::provider::SharedCredentialsProvider::new(key);
    let account = login.credentials(credentials).open().await.expect("a region is named");
    let revision = read(&account).await.expect("it is there");
    write(&account, &revision, 0.25).await.expect("the revision is current");
    assert_eq!(read(&aws.account()).await.expect("it is there").len(), 36);

    aws.fault(Fault::of("lambda:UpdateAlias", Trouble::LoseAnswer).times(9));
    let revision = read(&account).await.expect("it is there");
    let lost = write(&account, &revision, 0.5).await.expect_err("all answers are lost");
    assert_eq!(lost.kind(), ErrorKind::Unavailable, "{}", lost.chain());
    assert_eq!(aws.lambda().alias("checkout", "live").expect("it is there").other, Some(("2".to_owned(), 0.5)));
}

#[tokio::test(start_paused = true)]
async fn every_trouble_is_sorted_by_what_the_caller_can_do() {
    let html = Trouble::Page { status: 502, body: "<html>bad gateway</html>" };
    let proxy = Trouble::Page { status: 404, body: "<html>not found</html>" };
    let refuse = |status, code: &str| Trouble::Refuse(Refusal::new(status, code, "a test"));
    for (trouble, kind, said) in [
        (Trouble::Throttle, ErrorKind::Throttled, "throttles"),
        (refuse(400, "ThrottlingException"), ErrorKind::Throttled, "throttles"),
        (refuse(400, "ValidationException"), ErrorKind::Invalid, "refuses it (ValidationException)"),
        (refuse(412, "PreconditionFailedException"), ErrorKind::Conflict, "moved on"),
        (refuse(500, "ServiceException"), ErrorKind::Unavailable, "may have landed"),
        (refuse(403, "ExpiredTokenException"), ErrorKind::Denied, "expired"),
        (html, ErrorKind::Unavailable, "not AWS's"),
        (proxy, ErrorKind::Internal, "not AWS's"),
        (Trouble::LoseRequest, ErrorKind::Unavailable, "no answer"),
        (Trouble::LoseAnswer, ErrorKind::Unavailable, "no answer"),
        (Trouble::DelayAnswer(Duration::from_secs(60)), ErrorKind::Unavailable, "no answer in time"),
    ] {
        let aws = simulator();
        aws.fault(Fault::any(trouble.clone()).times(9));
        let error = read(&aws.account()).await.expect_err("everything goes wrong");
        assert_eq!(error.kind(), kind, "{trouble:?}: {}", error.chain());
        assert!(error.to_string().contains(said), "{trouble:?}: {error}");
        assert!(error.to_string().starts_with("reading the alias checkout:live: "), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_call_is_tried_again_by_the_sdk() {
    let aws = simulator();
    aws.fault(Fault::any(Trouble::Throttle).times(2));
    read(&aws.account()).await.expect("the third attempt goes well");
    assert_eq!(aws.calls()["lambda:GetAlias"], 3);
}

#[tokio::test(start_paused = true)]
async fn a_late_call_lands_after_its_sender_has_given_up() {
    let aws = simulator();
    let account = aws.account();
    let revision = read(&account).await.expect("it is there");
    aws.fault(Fault::of("lambda:UpdateAlias", Trouble::DelayRequest(Duration::from_secs(90))).times(9));
    let lost = write(&account, &revision, 0.5).await.expect_err("the connection broke");
    assert_eq!(lost.kind(), ErrorKind::Unavailable);
    assert_eq!(aws.lambda().alias("checkout", "live").expect("it is there").other, None);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(aws.lambda().alias("checkout", "live").expect("it is there").other, Some(("2".to_owned(), 0.5)));
    assert_eq!(aws.lambda().writes().len(), 2, "of three attempts with one revision id, one lands");
}

#[tokio::test(start_paused = true)]
async fn credentials_permissions_region_and_clock_are_checked_as_aws_checks_them() {
    let aws = simulator();
    aws.expire("AKIDOLD");
    let error = read(&aws.account_as("AKIDOLD")).await.expect_err("they have expired");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("have expired; renew them"), "{error}");
    read(&aws.account()).await.expect("these have not");

    aws.deny("lambda:GetAlias");
    let error = read(&aws.account()).await.expect_err("no policy allows it");
    assert!(error.to_string().contains("lacks the permission lambda:GetAlias"), "{error}");
    assert!(error.changed_nothing());
    aws.allow("lambda:GetAlias");

    let elsewhere = aws.account().sdk().to_builder().region(aws_types::region::Region::new("eu-west-1")).build();
    let error = read(&Account::from_sdk(elsewhere).expect("a region")).await.expect_err("another region");
    assert!(error.to_string().contains("another region"), "{error}");

    aws.check_clocks();
    read(&aws.account()).await.expect("it signs by the simulator's clock");
    let slow =
        rollback_aws::testing::clock::VirtualClock::starting(aws.clock().now() - jiff::SignedDuration::from_mins(20));
    let skewed = aws.account().sdk().to_builder().time_source(slow).disable_clock_skew_correction(true).build();
    let error = read(&Account::from_sdk(skewed).expect("a region")).await.expect_err("20 minutes slow");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("clock"), "{error}");
}

#[tokio::test]
async fn without_a_region_there_is_no_account() {
    let sdk = aws_types::SdkConfig::builder().build();
    let error = Account::from_sdk(sdk).expect_err("no region");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("AWS_REGION"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn missing_credentials_are_denied_and_nothing_is_sent() {
    let aws = simulator();
    let none = aws_types::SdkConfig::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .region(aws_types::region::Region::new("us-east-1"))
        .credentials_provider(aws_credential_types::provider::SharedCredentialsProvider::new(Nobody))
        .http_client(aws.http_client())
        .build();
    let error = read(&Account::from_sdk(none).expect("a region")).await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
    assert!(error.changed_nothing() && aws.calls().is_empty());
}

#[derive(Debug)]
struct Nobody;

impl aws_credential_types::provider::ProvideCredentials for Nobody {
    fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let none = aws_credential_types::provider::error::CredentialsError::not_loaded("a test");
        aws_credential_types::provider::future::ProvideCredentials::ready(Err(none))
    }
}
