//! A simulated AWS account on a port, for every AWS client: see `--help`.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use rollback_aws::testing::{Simulator, clock::VirtualClock, codedeploy::Shape, ecs::Setup, lambda::Build};
use rollback_core::clock::{Clock as _, SystemClock};
use rollback_examples::tool::say;
use serde_json::json;

/// A simulated AWS account on a port of this machine: Lambda functions, versions and aliases, CloudWatch alarms, CodeDeploy
/// groups and deployments, ECS services and their deployments, bundles in S3 and images in ECR, with AWS's refusals.
///
/// It forgets everything when it ends. Any credentials will do. With --demo it has the function checkout, whose alias live is
/// at version 1 and is called 600 times a minute; version 2 is good, and 3 of 10 calls of version 3 fail; the deployment group
/// production of the application shop, three instances on which version v1 of s3://builds/shop.zip serves (there are v2 and v3), with the alarm
/// shop-errors; and the service shop/checkout, a canary of 10 % at checkout:1; checkout:2 is good, and tasks of checkout:3 end
/// with 1.
#[derive(Parser)]
#[command(name = "aws-simulator")]
#[command(
    after_help = "Try it: aws-simulator --demo, and lambda-canary checkout:live --version 2 --smoke '{}' --bake 20s \
    --endpoint-url with the address that is printed. It answers no request from outside this machine unless it is told \
    such an address to listen at."
)]
struct Args {
    /// Listen here; port 0 is any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4566")]
    listen: String,
    /// In this region.
    #[arg(long, value_name = "NAME", default_value = rollback_aws::testing::REGION)]
    region: String,
    /// Its time passes so many times as fast.
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    pace: u32,
    /// Begin with the function checkout and the service shop/checkout.
    #[arg(long)]
    demo: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let aws = Simulator::at(VirtualClock::starting(SystemClock.now()).pace(args.pace.max(1)), &args.region);
    if args.demo {
        let lambda = aws.lambda();
        for build in [Build::new("v1"), Build::new("v2"), Build::new("v3").fails(0.3).takes(Duration::from_millis(80))]
        {
            lambda.publish("checkout", &build);
        }
        lambda.point("checkout", "live", "1", None);
        lambda.traffic("checkout", "live", 600.0);
        let instances = ["i-1", "i-2", "i-3"].map(str::to_owned).to_vec();
        aws.codedeploy().group("shop", "production", &Shape::InPlace(instances), "CodeDeployDefault.OneAtATime");
        for version in ["v1", "v2", "v3"] {
            aws.s3().put_version("builds", "shop.zip", version, version.as_bytes());
        }
        let bundle = json!({ "bucket": "builds", "key": "shop.zip", "bundleType": "zip", "version": "v1" });
        aws.codedeploy().serve("shop", "production", &json!({ "revisionType": "S3", "s3Location": bundle }));
        aws.cloudwatch().alarm("shop-errors");
        let ecs = aws.ecs();
        for environment in [&[][..], &[], &[("SIMULATOR_EXIT_CODE", "1")]] {
            ecs.register("checkout", "registry.example/checkout", environment);
        }
        let canary = json!({ "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 0 });
        let breaker = json!({ "enable": true, "rollback": true });
        let config = json!({
            "strategy": "CANARY", "canaryConfiguration": canary, "deploymentCircuitBreaker": breaker,
        });
        ecs.service("shop", "checkout", "checkout:1", &Setup::new(config));
        aws.cloudwatch().alarm("checkout-errors");
    }
    let server = match aws.listen(&args.listen).await {
        Ok(server) => server,
        Err(e) => {
            eprintln!("aws-simulator: cannot listen at {}: {e}", args.listen);
            return 2.into();
        }
    };
    say(&format!("listening at {}", server.endpoint_url()));
    tokio::select! {
        () = server.ended() => 70.into(),
        _ = tokio::signal::ctrl_c() => ExitCode::SUCCESS,
    }
}
