//! The simulator's Lambda, against what the real one was recorded to say.
//!
//! The texts are recordings of the real service in LocalStack's repository (`localstack/localstack` 8b9a79f,
//! `tests/aws/services/lambda_/test_lambda_api.snapshot.json`), unless a test names another source.

use std::{collections::HashMap, fmt, time::Duration};

use aws_sdk_lambda::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::update_alias::builders::UpdateAliasFluentBuilder,
    primitives::Blob,
    types::{AliasRoutingConfiguration, Environment, FunctionCode, LastUpdateStatus, State},
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use rollback_aws::testing::{Simulator, lambda::Build};

const ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:checkout";

/// A function with versions 1 and 2, and an alias `live` of the first.
fn simulator() -> (Simulator, Client) {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2"));
    aws.lambda().point("checkout", "live", "1", None);
    let client = aws.account().lambda();
    (aws, client)
}

fn routing<const N: usize>(weights: [(&str, f64); N]) -> AliasRoutingConfiguration {
    let weights = weights.into_iter().map(|(version, weight)| (version.to_owned(), weight)).collect();
    AliasRoutingConfiguration::builder().set_additional_version_weights(Some(weights)).build()
}

fn update(lambda: &Client) -> UpdateAliasFluentBuilder {
    lambda.update_alias().function_name("checkout").name("live")
}

/// What was refused: status, code and message.
fn refusal<T: fmt::Debug, E>(answer: Result<T, SdkError<E, HttpResponse>>) -> (u16, String, String)
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let error = answer.expect_err("it is refused");
    let status = error.raw_response().expect("an answer came").status().as_u16();
    let (code, message) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
    (status, code.to_owned(), message.to_owned())
}

fn no(status: u16, code: &str, message: impl Into<String>) -> (u16, String, String) {
    (status, code.to_owned(), message.into())
}

#[tokio::test(start_paused = true)]
async fn weights_are_refused_in_awss_words() {
    let (aws, lambda) = simulator();
    aws.lambda().publish("checkout", &Build::new("v3"));
    let two = update(&lambda).routing_config(routing([("2", 0.1), ("3", 0.1)])).send().await;
    assert_eq!(
        refusal(two),
        no(
            400,
            "InvalidParameterValueException",
            "Number of items in AdditionalVersionWeights cannot be greater than 1"
        )
    );
    // The end of this text is from LocalStack's provider.py, which was written from the recording.
    for (weight, value) in [(2.0, "{2=2.0}"), (-1.0, "{2=-1.0}")] {
        let outside = update(&lambda).routing_config(routing([("2", weight)])).send().await;
        let why = format!(
            "1 validation error detected: Value '{value}' at 'routingConfig.additionalVersionWeights' failed to satisfy \
             constraint: Map value must satisfy constraint: [Member must have value less than or equal to 1.0, Member \
             must have value greater than or equal to 0.0, Member must not be null]"
        );
        assert_eq!(refusal(outside), no(400, "ValidationException", why));
    }
    let same = update(&lambda).routing_config(routing([("1", 0.1)])).send().await;
    let why = "Invalid function version 1. Function version 1 is already included in routing configuration.";
    assert_eq!(refusal(same), no(400, "InvalidParameterValueException", why));
    let latest = update(&lambda).function_version("$LATEST").routing_config(routing([("1", 0.1)])).send().await;
    let why = "$LATEST is not supported for an alias pointing to more than 1 version";
    assert_eq!(refusal(latest), no(400, "InvalidParameterValueException", why));
    let (status, code, why) = refusal(update(&lambda).routing_config(routing([("$LATEST", 0.1)])).send().await);
    assert_eq!((status, code.as_str()), (400, "ValidationException"));
    assert!(why.contains("Member must satisfy regular expression pattern: [0-9]+"), "{why}");
    let missing = update(&lambda).routing_config(routing([("10", 0.1)])).send().await;
    assert_eq!(refusal(missing), no(404, "ResourceNotFoundException", format!("Function not found: {ARN}:10")));
    assert_eq!(aws.lambda().writes().len(), 1, "nothing of this was written");
}

#[tokio::test(start_paused = true)]
async fn both_versions_need_one_role_and_one_dead_letter_target() {
    let (aws, lambda) = simulator();
    let other = aws.lambda().publish("checkout", &Build::new("v3").role("arn:aws:iam::123456789012:role/other"));
    let refused = update(&lambda).routing_config(routing([(&other, 0.1)])).send().await;
    let why = "Specified versions must be associated with the same execution role";
    assert_eq!(refusal(refused), no(400, "InvalidParameterValueException", why));
    let queue = "arn:aws:sqs:us-east-1:123456789012:failed";
    let other = aws.lambda().publish("checkout", &Build::new("v4").dead_letters(queue));
    // That it is refused is documented (developer guide, configuration-aliases); how is not.
    let (status, code, _) = refusal(update(&lambda).routing_config(routing([(&other, 0.1)])).send().await);
    assert_eq!((status, code.as_str()), (400, "InvalidParameterValueException"));
}

#[tokio::test(start_paused = true)]
async fn aliases_that_are_there_or_missing_are_told_in_awss_words() {
    let (_, lambda) = simulator();
    let again = lambda.create_alias().function_name("checkout").name("live").function_version("1").send().await;
    assert_eq!(refusal(again), no(409, "ResourceConflictException", format!("Alias already exists: {ARN}:live")));
    let read = lambda.get_alias().function_name("checkout").name("dead").send().await;
    assert_eq!(refusal(read), no(404, "ResourceNotFoundException", format!("Cannot find alias arn: {ARN}:dead")));
    let write = lambda.update_alias().function_name("checkout").name("dead").function_version("1").send().await;
    assert_eq!(refusal(write), no(404, "ResourceNotFoundException", format!("Alias not found: {ARN}:dead")));
    let latest = lambda.create_alias().function_name("checkout").name("edge").function_version("$LATEST").send().await;
    latest.expect("an alias without weights may point to $LATEST");
    let missing = lambda.get_function_configuration().function_name("checkout").qualifier("10").send().await;
    assert_eq!(refusal(missing), no(404, "ResourceNotFoundException", format!("Function not found: {ARN}:10")));
}

#[tokio::test(start_paused = true)]
async fn a_revision_id_is_spent_by_every_write_and_then_refused() {
    let (_, lambda) = simulator();
    let read = lambda.get_alias().function_name("checkout").name("live").send().await.expect("it is there");
    assert!(read.routing_config().is_none(), "without weights there is no RoutingConfig in the answer");
    let first = read.revision_id().expect("there is one").to_owned();
    let same = update(&lambda).revision_id(&first).function_version("1").send().await.expect("nothing changes");
    assert_ne!(same.revision_id(), Some(first.as_str()), "a write that changes nothing spends it all the same");
    let stale = update(&lambda).revision_id(&first).function_version("1").send().await;
    let why = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to \
               retrieve the latest Revision Id";
    assert_eq!(refusal(stale), no(412, "PreconditionFailedException", why));
    let (_, code, _) = refusal(update(&lambda).revision_id("never").function_version("99").send().await);
    assert_eq!(code, "PreconditionFailedException", "the revision id is looked at first");
    let cleared = update(&lambda).routing_config(routing([])).send().await.expect("no weights");
    assert!(cleared.routing_config().is_none());
}

#[tokio::test(start_paused = true)]
async fn provisioned_concurrency_and_weights_exclude_each_other() {
    let (aws, lambda) = simulator();
    let put = |qualifier: &str| {
        let call = lambda.put_provisioned_concurrency_config().function_name("checkout").qualifier(qualifier);
        call.provisioned_concurrent_executions(1).send()
    };
    update(&lambda).routing_config(routing([("2", 0.1)])).send().await.expect("good weights");
    // aws/serverless-application-model#1296 and hashicorp/terraform-provider-aws#24957 quote it.
    let why = "Alias with weights can not be used with Provisioned Concurrency";
    assert_eq!(refusal(put("live").await), no(400, "InvalidParameterValueException", why));
    update(&lambda).routing_config(routing([])).send().await.expect("no weights");
    put("1").await.expect("a version of its own");
    let why = "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version";
    assert_eq!(refusal(put("live").await), no(409, "ResourceConflictException", why));
    let delete = lambda.delete_provisioned_concurrency_config().function_name("checkout").qualifier("1").send().await;
    delete.expect("it is there");
    put("live").await.expect("no weights, and the version has none");
    let why = "Version is pointed by a Provisioned Concurrency alias";
    assert_eq!(refusal(put("1").await), no(409, "ResourceConflictException", why));

    // hashicorp/terraform-provider-aws PR 48116: AWS itself puts the old version in until the new one is provisioned.
    let moved = update(&lambda).function_version("2").send().await.expect("a version that is there");
    let weights = moved.routing_config().and_then(|it| it.additional_version_weights()).cloned();
    assert_eq!(weights, Some(HashMap::from([("1".to_owned(), 1.0)])));
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(aws.lambda().alias("checkout", "live").expect("it is there").other, None);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_an_alias_uses_is_not_deleted() {
    let (aws, lambda) = simulator();
    update(&lambda).routing_config(routing([("2", 0.1)])).send().await.expect("good weights");
    let used = lambda.delete_function().function_name("checkout").qualifier("2").send().await;
    // Quoted by tools that delete old versions; the status is in the API reference.
    let why = "Unable to delete version because the following aliases reference it: [live]";
    assert_eq!(refusal(used), no(409, "ResourceConflictException", why));
    aws.lambda().point("checkout", "live", "1", None);
    lambda.delete_function().function_name("checkout").qualifier("2").send().await.expect("nobody uses it");
    let read = lambda.get_function_configuration().function_name("checkout").qualifier("2").send().await;
    assert_eq!(refusal(read).0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_function_is_created_updated_and_published_step_by_step() {
    let aws = Simulator::new();
    let lambda = aws.account().lambda();
    let read =
        || async { lambda.get_function_configuration().function_name("cart").send().await.expect("it is there") };
    let code = FunctionCode::builder().zip_file(Blob::new("one")).build();
    let made = lambda.create_function().function_name("cart").role("arn:aws:iam::123456789012:role/lambda").code(code);
    let made = made.runtime("provided.al2023".into()).handler("bootstrap").send().await.expect("a good request");
    assert_eq!(made.state(), Some(&State::Pending));
    let early = lambda.publish_version().function_name("cart").send().await;
    let (status, code, why) = refusal(early);
    assert_eq!((status, code.as_str()), (409, "ResourceConflictException"));
    assert!(why.ends_with("is currently in the following state: 'Pending'. StateReasonCode: 'Creating'"), "{why}");

    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(read().await.state(), Some(&State::Active));
    let first = lambda.publish_version().function_name("cart").send().await.expect("it is active");
    assert_eq!((first.version(), first.state()), (Some("1"), Some(&State::Pending)));
    let again = lambda.publish_version().function_name("cart").send().await.expect("the same code");
    assert_eq!(again.version(), Some("1"), "unchanged code is not published twice");

    let update = || lambda.update_function_code().function_name("cart").zip_file(Blob::new("two"));
    let updated = update().send().await.expect("no update is under way");
    assert_eq!(updated.last_update_status(), Some(&LastUpdateStatus::InProgress));
    // Quoted in bug reports, as in hashicorp/terraform-provider-aws; the status is in the API reference.
    let why = "The operation cannot be performed at this time. An update is in progress for resource: \
               arn:aws:lambda:us-east-1:123456789012:function:cart";
    assert_eq!(refusal(update().send().await), no(409, "ResourceConflictException", why));
    assert_eq!(refusal(lambda.publish_version().function_name("cart").send().await).0, 409);

    tokio::time::sleep(Duration::from_secs(1)).await;
    let settled = read().await;
    assert_eq!(settled.last_update_status(), Some(&LastUpdateStatus::Successful));
    assert_ne!(settled.revision_id(), updated.revision_id(), "the end of an update makes a new revision id");
    let stale = lambda.publish_version().function_name("cart").revision_id(updated.revision_id().expect("one"));
    assert_eq!(refusal(stale.send().await).1, "PreconditionFailedException");
    let other = lambda.publish_version().function_name("cart").code_sha256("bm90IGl0").send().await;
    let sha = settled.code_sha256().expect("there is one");
    let why = format!(
        "CodeSHA256 (bm90IGl0) is different from current CodeSHA256 in $LATEST ({sha}). Please try again with the \
         CodeSHA256 in $LATEST."
    );
    assert_eq!(refusal(other), no(400, "InvalidParameterValueException", why));
    let second = lambda.publish_version().function_name("cart").code_sha256(sha).send().await.expect("its code");
    assert_eq!(second.version(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn reads_lag_behind_writes_when_asked_to() {
    let (aws, lambda) = simulator();
    aws.lambda().lag(Duration::from_secs(10));
    update(&lambda).routing_config(routing([("2", 0.1)])).send().await.expect("good weights");
    let read = || async {
        let alias = lambda.get_alias().function_name("checkout").name("live").send().await.expect("it is there");
        alias.routing_config().is_some()
    };
    assert!(!read().await, "not seen yet");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!read().await, "not seen yet");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(read().await);
}

#[tokio::test(start_paused = true)]
async fn calls_are_split_by_weight_and_fail_as_the_version_does() {
    let (aws, lambda) = simulator();
    let bad = aws.lambda().publish("checkout", &Build::new("bad").fails(0.5));
    update(&lambda).routing_config(routing([(&bad, 0.25)])).send().await.expect("good weights");
    let mut seen = HashMap::<String, (u32, u32)>::new();
    for _ in 0..40 {
        let call = lambda.invoke().function_name("checkout").qualifier("live").payload(Blob::new("{}"));
        let answer = call.send().await.expect("it runs");
        let (calls, failed) = seen.entry(answer.executed_version().expect("a version").to_owned()).or_default();
        *calls += 1;
        *failed += u32::from(answer.function_error().is_some());
    }
    assert_eq!(seen, HashMap::from([("1".to_owned(), (30, 0)), (bad, (10, 5))]));
}

#[tokio::test(start_paused = true)]
async fn a_function_may_be_called_by_any_of_its_names() {
    let (_, lambda) = simulator();
    for name in ["checkout", ARN, "123456789012:function:checkout"] {
        lambda.get_alias().function_name(name).name("live").send().await.expect("it is there");
    }
    let elsewhere = ARN.replace("us-east-1", "eu-west-1");
    assert_eq!(refusal(lambda.get_alias().function_name(elsewhere).name("live").send().await).0, 404);
    let environment = Environment::builder().variables("SIMULATOR_ERROR_RATE", "1").build();
    let slow = lambda.update_function_configuration().function_name("checkout").environment(environment).send().await;
    assert_eq!(slow.expect("a good request").last_update_status(), Some(&LastUpdateStatus::InProgress));
}
