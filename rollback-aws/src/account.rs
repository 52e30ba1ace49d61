//! The way into an AWS account: credentials, role, region, endpoint, and the HTTP client with its timeouts.
//!
//! An [`Account`] is what backends and gates are made from. [`Login`] opens one; who has an [`SdkConfig`] already brings
//! that, and who has a service's client brings the client.

use std::{fmt, time::Duration};

use aws_config::{BehaviorVersion, SdkConfig, sts::AssumeRoleProvider};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_http_client::{
    Builder as HttpBuilder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::region::Region;
use rollback_core::{Error, Result};

/// One account as one set of credentials sees it, in one region. Clones share connections and cached credentials.
#[derive(Clone)]
pub struct Account {
    sdk: SdkConfig,
}

impl Account {
    /// The account of the environment: the SDK's default chain of variables, profile, container and instance.
    ///
    /// # Errors
    /// `Invalid` when no region is configured.
    pub async fn from_env() -> Result<Self> {
        Login::new().open().await
    }

    /// The account of an `SdkConfig` that was made elsewhere. What it lacks of HTTP client and timeouts is filled in
    /// with ours: without timeouts a call may hang for ever, and a guard with it.
    ///
    /// # Errors
    /// `Invalid` when it has no region.
    pub fn from_sdk(sdk: SdkConfig) -> Result<Self> {
        let mut filled = sdk.to_builder();
        if sdk.region().is_none() {
            return Err(Error::invalid(NO_REGION));
        }
        if sdk.http_client().is_none() {
            filled.set_http_client(Some(https()));
        }
        if sdk.timeout_config().is_none_or(|timeouts| !timeouts.has_timeouts()) {
            filled.set_timeout_config(Some(timeouts()));
        }
        if sdk.behavior_version().is_none() {
            filled.set_behavior_version(Some(BehaviorVersion::latest()));
        }
        Ok(Self { sdk: filled.build() })
    }

    /// The region, as in `eu-west-1`.
    pub fn region(&self) -> &str {
        self.sdk.region().map_or("", Region::as_ref)
    }

    /// The partition that the region belongs to, as in `aws`: the second word of its ARNs.
    pub fn partition(&self) -> &'static str {
        partition(self.region())
    }

    /// What clients of the SDK are made from.
    pub const fn sdk(&self) -> &SdkConfig {
        &self.sdk
    }

    /// A client for CloudFormation.
    #[cfg(feature = "cloudformation")]
    pub fn cloudformation(&self) -> aws_sdk_cloudformation::Client {
        aws_sdk_cloudformation::Client::new(&self.sdk)
    }

    /// A client for CodePipeline.
    #[cfg(feature = "codepipeline")]
    pub fn codepipeline(&self) -> aws_sdk_codepipeline::Client {
        aws_sdk_codepipeline::Client::new(&self.sdk)
    }

    /// A client for Lambda.
    #[cfg(feature = "lambda")]
    pub fn lambda(&self) -> aws_sdk_lambda::Client {
        aws_sdk_lambda::Client::new(&self.sdk)
    }

    /// A client for CloudWatch Logs.
    #[cfg(feature = "logs")]
    pub fn logs(&self) -> aws_sdk_cloudwatchlogs::Client {
        aws_sdk_cloudwatchlogs::Client::new(&self.sdk)
    }

    /// A client for CodeDeploy.
    #[cfg(feature = "codedeploy")]
    pub fn codedeploy(&self) -> aws_sdk_codedeploy::Client {
        aws_sdk_codedeploy::Client::new(&self.sdk)
    }

    /// A client for ECR.
    #[cfg(feature = "ecr")]
    pub fn ecr(&self) -> aws_sdk_ecr::Client {
        aws_sdk_ecr::Client::new(&self.sdk)
    }

    /// A client for ECS.
    #[cfg(feature = "ecs")]
    pub fn ecs(&self) -> aws_sdk_ecs::Client {
        aws_sdk_ecs::Client::new(&self.sdk)
    }

    /// A client for CloudWatch.
    #[cfg(feature = "cloudwatch")]
    pub fn cloudwatch(&self) -> aws_sdk_cloudwatch::Client {
        aws_sdk_cloudwatch::Client::new(&self.sdk)
    }

    /// A client for DynamoDB.
    #[cfg(feature = "dynamodb")]
    pub fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::new(&self.sdk)
    }

    /// A client for Route 53.
    #[cfg(feature = "route53")]
    pub fn route53(&self) -> aws_sdk_route53::Client {
        aws_sdk_route53::Client::new(&self.sdk)
    }

    /// A client for S3. At an endpoint of one's own a bucket is named in the path, as few of those have a host for each.
    #[cfg(feature = "s3")]
    pub fn s3(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::from(&self.sdk);
        aws_sdk_s3::Client::from_conf(config.force_path_style(self.sdk.endpoint_url().is_some()).build())
    }

    /// A client for SNS.
    #[cfg(feature = "sns")]
    pub fn sns(&self) -> aws_sdk_sns::Client {
        aws_sdk_sns::Client::new(&self.sdk)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.sdk.endpoint_url();
        f.debug_struct("Account").field("region", &self.region()).field("endpoint", &endpoint).finish_non_exhaustive()
    }
}

/// How to open an [`Account`]. What is not said comes from the environment, as every AWS tool takes it.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::account::{Login, Role};
///
/// let prod = Login::new()
///     .region("eu-west-1")
///     .role(Role::new("arn:aws:iam::123456789012:role/deployer").external_id("rollback"))
///     .open()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Login {
    region: Option<String>,
    profile: Option<String>,
    endpoint: Option<String>,
    credentials: Option<SharedCredentialsProvider>,
    http: Option<SharedHttpClient>,
    timeouts: Option<TimeoutConfig>,
    role: Option<Role>,
}

impl Login {
    /// Everything from the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// In this region, as in `eu-west-1`.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// With this profile of the shared configuration files.
    #[must_use]
    pub fn profile(mut self, profile: impl Into<String>) -> Self {
        self.profile = Some(profile.into());
        self
    }

    /// At this URL instead of the services' own: a simulator, an emulator, a VPC endpoint.
    #[must_use]
    pub fn endpoint_url(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// At a simulator or an emulator: at this URL, with placeholder credentials instead of anybody's own, and in `us-east-1`
    /// unless a region was named before.
    #[must_use]
    pub fn simulator(mut self, url: impl Into<String>) -> Self {
        self.region.get_or_insert_with(|| "us-east-1".into());
        let nobody = Credentials::new("placeholder", "placeholder", None, None, "placeholder");
        self.endpoint_url(url).credentials(SharedCredentialsProvider::new(nobody))
    }

    /// With these credentials, or a provider of them. A provider is asked again when what it gave expires; fixed session
    /// credentials are good until they expire, and a long rollout may outlive them.
    #[must_use]
    pub fn credentials(mut self, credentials: SharedCredentialsProvider) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// As this role, assumed with the credentials found so far and renewed before it expires.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = Some(role);
        self
    }

    /// Over this HTTP client: a proxy, a private authority, mTLS. Ours speaks TLS by rustls with ring, and trusts what
    /// the machine trusts.
    #[must_use]
    pub fn http_client(mut self, client: SharedHttpClient) -> Self {
        self.http = Some(client);
        self
    }

    /// With these timeouts instead of ours: 3 s to connect, 10 s an attempt, 25 s an operation with its retries.
    #[must_use]
    pub fn timeouts(mut self, timeouts: TimeoutConfig) -> Self {
        self.timeouts = Some(timeouts);
        self
    }

    /// Opens the account. Nothing is asked of AWS: wrong credentials show at the first call, and in preflight.
    ///
    /// # Errors
    /// `Invalid` when no region is configured.
    pub async fn open(self) -> Result<Account> {
        // Without a client of its own `load` panics with the default chain: the metadata service's client is made there.
        let http = self.http.unwrap_or_else(https);
        let mut config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(self.timeouts.unwrap_or_else(timeouts));
        if let Some(region) = self.region {
            config = config.region(Region::new(region));
        }
        if let Some(profile) = self.profile {
            config = config.profile_name(profile);
        }
        if let Some(url) = self.endpoint {
            config = config.endpoint_url(url);
        }
        if let Some(credentials) = self.credentials {
            config = config.credentials_provider(credentials);
        }
        let sdk = config.load().await;
        if sdk.region().is_none() {
            return Err(Error::invalid(NO_REGION));
        }
        let Some(role) = self.role else { return Account::from_sdk(sdk) };
        let provider = role.provider(&sdk).await;
        let assumed = sdk.to_builder().credentials_provider(SharedCredentialsProvider::new(provider));
        Account::from_sdk(assumed.build())
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("region", &self.region)
            .field("profile", &self.profile)
            .field("endpoint", &self.endpoint)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A role to assume.
#[derive(Clone)]
pub struct Role {
    arn: String,
    session: String,
    external_id: Option<String>,
}

impl Role {
    /// The role with this ARN, in sessions named `rollback`.
    pub fn new(arn: impl Into<String>) -> Self {
        Self { arn: arn.into(), session: "rollback".into(), external_id: None }
    }

    /// With this name for the session, which CloudTrail shows beside each call.
    #[must_use]
    pub fn session(mut self, name: impl Into<String>) -> Self {
        self.session = name.into();
        self
    }

    /// With the external id that the role's trust policy asks for.
    #[must_use]
    pub fn external_id(mut self, id: impl Into<String>) -> Self {
        self.external_id = Some(id.into());
        self
    }

    async fn provider(&self, sdk: &SdkConfig) -> AssumeRoleProvider {
        let mut builder = AssumeRoleProvider::builder(&self.arn).session_name(&self.session).configure(sdk);
        if let Some(id) = &self.external_id {
            builder = builder.external_id(id);
        }
        builder.build().await
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The external id is a shared secret of a kind.
        f.debug_struct("Role").field("arn", &self.arn).field("session", &self.session).finish_non_exhaustive()
    }
}

/// The partition of a region (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>).
pub(crate) fn partition(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ if region.starts_with("us-iso-") => "aws-iso",
        _ if region.starts_with("us-isob-") => "aws-iso-b",
        _ if region.starts_with("us-isof-") => "aws-iso-f",
        _ if region.starts_with("eu-isoe-") => "aws-iso-e",
        _ if region.starts_with("eusc-") => "aws-eusc",
        _ => "aws",
    }
}

/// TLS by rustls with ring, passed explicitly: beside another provider rustls could not tell which is meant.
fn https() -> SharedHttpClient {
    HttpBuilder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .read_timeout(Duration::from_secs(10))
        .operation_attempt_timeout(Duration::from_secs(10))
        .operation_timeout(Duration::from_secs(25))
        .build()
}

const NO_REGION: &str = "no region is configured; set AWS_REGION, or name one in the login, as in eu-west-1";
