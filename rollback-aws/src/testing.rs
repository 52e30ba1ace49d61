//! A simulator of AWS: one account in one region, in memory, with a clock and faults that obey the test.
//!
//! It is the SDK's HTTP client, so that a test needs no socket ([`Simulator::account`]), and a server on loopback for
//! every other AWS client ([`Simulator::listen`]); both go through the same router. Time is virtual
//! ([`clock`]), and what goes wrong is asked for ([`fault`]).
//!
//! What it refuses, and in which words, is what AWS was recorded or documented to refuse; what it accepts proves nothing
//! by itself.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! use std::time::Duration;
//! use rollback_aws::testing::Simulator;
//! use rollback_core::clock::Clock;
//!
//! let aws = Simulator::new();
//! let before = aws.clock().now();
//! tokio::time::sleep(Duration::from_secs(90)).await;
//! aws.clock().advance(Duration::from_secs(30));
//! assert_eq!(aws.clock().now().duration_since(before).as_secs(), 120);
//! # }
//! ```
//!
//! # Rooms
//! Each service has a room of its own, a module that knows its operations and its way of writing errors. The router asks
//! each room whether a request is for it; everything else (credentials, permissions, faults, the clock) is the same for
//! all and happens here.

mod client;
pub mod clock;
pub mod cloudformation;
pub mod cloudwatch;
pub mod codedeploy;
pub mod codepipeline;
pub mod dynamodb;
pub mod ecr;
pub mod ecs;
pub mod fault;
pub mod lambda;
pub mod logs;
mod metric;
pub mod route53;
pub mod s3;
mod server;
pub mod sns;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_config::BehaviorVersion;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::{SdkConfig, region::Region};
use bytes::Bytes;
use http::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use rollback_core::clock::Clock as _;

use self::{
    clock::VirtualClock,
    fault::{Fault, Trouble},
    wire::{Called, Service},
};
pub use self::{metric::Datum, server::Server, wire::Refusal};
use crate::account::Account;

/// A simulated account in one region. Clones are the same one.
#[derive(Clone)]
pub struct Simulator {
    region: Arc<str>,
    clock: VirtualClock,
    world: Arc<Mutex<World>>,
}

/// Everything there is, behind one lock: AWS's services change each other (traffic of a function makes metrics, metrics
/// make alarms), and a test wants one order of events.
#[derive(Debug)]
struct World {
    cloudformation: cloudformation::Room,
    cloudwatch: cloudwatch::Room,
    codedeploy: codedeploy::Room,
    codepipeline: codepipeline::Room,
    dynamodb: dynamodb::Room,
    ecr: ecr::Room,
    ecs: ecs::Room,
    lambda: lambda::Room,
    logs: logs::Room,
    route53: route53::Room,
    s3: s3::Room,
    sns: sns::Room,
    /// Access keys whose credentials have expired.
    expired: BTreeSet<String>,
    /// Actions that no policy allows, as in `lambda:UpdateAlias`.
    denied: BTreeSet<String>,
    checks_clocks: bool,
    faults: Vec<Fault>,
    calls: BTreeMap<String, u64>,
}

/// The id of the one account.
pub const ACCOUNT: &str = "123456789012";

/// The region, unless another is asked for.
pub const REGION: &str = "us-east-1";

impl Simulator {
    /// An empty account in `us-east-1`. Its clock says [`VirtualClock::START`] and follows tokio's time.
    pub fn new() -> Self {
        Self::at(VirtualClock::new(), REGION)
    }

    /// An empty account with this clock, in this region.
    pub fn at(clock: VirtualClock, region: &str) -> Self {
        let world = World {
            cloudformation: cloudformation::Room::new(region),
            cloudwatch: cloudwatch::Room::new(region, clock.now()),
            codedeploy: codedeploy::Room::new(region),
            codepipeline: codepipeline::Room::new(region),
            dynamodb: dynamodb::Room::new(region),
            ecr: ecr::Room::new(region),
            ecs: ecs::Room::new(region, clock.now()),
            lambda: lambda::Room::new(region, clock.now()),
            logs: logs::Room::default(),
            route53: route53::Room::new(),
            s3: s3::Room::new(region),
            sns: sns::Room::new(region),
            expired: BTreeSet::new(),
            denied: BTreeSet::new(),
            checks_clocks: false,
            faults: Vec::new(),
            calls: BTreeMap::new(),
        };
        Self { region: region.into(), clock, world: Arc::new(Mutex::new(world)) }
    }

    /// Its clock.
    pub const fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    /// A way in, in process, with credentials of its own, signed by the simulator's clock.
    pub fn account(&self) -> Account {
        self.account_as("AKIDSIMULATOR")
    }

    /// A way in with this access key, so that it can expire by itself ([`Self::expire`]).
    pub fn account_as(&self, access_key: &str) -> Account {
        let credentials = Credentials::new(access_key, SECRET, None, None, "simulator");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(String::from(&*self.region)))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(self.http_client())
            .time_source(self.clock.clone())
            .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new())
            .build();
        Account::from_sdk(sdk).expect("the region is set")
    }

    /// The simulator as the SDK's HTTP client, for a config made by hand.
    pub fn http_client(&self) -> SharedHttpClient {
        client::in_process(self.clone())
    }

    /// Serves it at this address, as `127.0.0.1:0`, to every AWS client.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn listen(&self, at: impl tokio::net::ToSocketAddrs) -> std::io::Result<Server> {
        Server::bind(self.clone(), at).await
    }

    /// From now on the credentials with this access key have expired.
    pub fn expire(&self, access_key: &str) {
        self.world().expired.insert(access_key.into());
    }

    /// They are good again.
    pub fn renew(&self, access_key: &str) {
        self.world().expired.remove(access_key);
    }

    /// From now on no policy allows this action, as in `lambda:UpdateAlias`.
    pub fn deny(&self, action: &str) {
        self.world().denied.insert(action.into());
    }

    /// It is allowed again.
    pub fn allow(&self, action: &str) {
        self.world().denied.remove(action);
    }

    /// From now on requests must be dated within five minutes of the simulator's clock, as AWS wants it.
    ///
    /// Off at first: a client of the loopback server dates by its machine's clock, and virtual time runs off.
    pub fn check_clocks(&self) {
        self.world().checks_clocks = true;
    }

    /// Something goes wrong, once unless it says otherwise.
    pub fn fault(&self, fault: Fault) {
        self.world().faults.push(fault);
    }

    /// What was asked for and has not yet gone wrong is forgotten.
    pub fn forget_faults(&self) {
        self.world().faults.clear();
    }

    /// How often each operation was called, as `lambda:GetAlias`, refused calls included.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.world().calls.clone()
    }

    /// Functions, without an HTTP call.
    pub const fn lambda(&self) -> lambda::Hands<'_> {
        lambda::Hands(self)
    }

    /// Stacks, without an HTTP call.
    pub const fn cloudformation(&self) -> cloudformation::Hands<'_> {
        cloudformation::Hands(self)
    }

    /// Pipelines, without an HTTP call.
    pub const fn codepipeline(&self) -> codepipeline::Hands<'_> {
        codepipeline::Hands(self)
    }

    /// Alarms and metrics, without an HTTP call.
    pub const fn cloudwatch(&self) -> cloudwatch::Hands<'_> {
        cloudwatch::Hands(self)
    }

    /// Log groups, without an HTTP call.
    pub const fn logs(&self) -> logs::Hands<'_> {
        logs::Hands(self)
    }

    /// Applications, deployment groups and deployments, without an HTTP call.
    pub const fn codedeploy(&self) -> codedeploy::Hands<'_> {
        codedeploy::Hands(self)
    }

    /// Repositories of images, without an HTTP call.
    pub const fn ecr(&self) -> ecr::Hands<'_> {
        ecr::Hands(self)
    }

    /// ECS services and their deployments, without an HTTP call.
    pub const fn ecs(&self) -> ecs::Hands<'_> {
        ecs::Hands(self)
    }

    /// Tables, without an HTTP call.
    pub const fn dynamodb(&self) -> dynamodb::Hands<'_> {
        dynamodb::Hands(self)
    }

    /// Hosted zones and what name servers answer, without an HTTP call.
    pub const fn route53(&self) -> route53::Hands<'_> {
        route53::Hands(self)
    }

    /// Buckets and objects, without an HTTP call.
    pub const fn s3(&self) -> s3::Hands<'_> {
        s3::Hands(self)
    }

    /// Topics, without an HTTP call.
    pub const fn sns(&self) -> sns::Hands<'_> {
        sns::Hands(self)
    }

    /// From then on this alarm fires, whatever its metrics say; an alarm that is not there is made.
    pub fn alarm_at(&self, name: &str, at: Timestamp) {
        if self.cloudwatch().state(name).is_none() {
            self.cloudwatch().alarm(name);
        }
        self.cloudwatch().at(name, at, Some(cloudwatch::State::Alarm));
    }

    /// Answers a request as AWS would. `None` is a connection that breaks: whether anything was done is not told.
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let Some(called) = wire::route(&request) else {
            return Some(wire::nobody(&request));
        };
        let trouble = {
            let mut world = self.world();
            *world.calls.entry(called.action()).or_default() += 1;
            fault::due(&mut world.faults, &called)
        };
        match trouble {
            None => Some(self.carry_out(&called, &request)),
            Some(Trouble::Throttle) => Some(called.refuse(&called.throttling())),
            Some(Trouble::Refuse(refusal)) => Some(called.refuse(&refusal)),
            Some(Trouble::Page { status, body }) => Some(wire::page(status, body)),
            Some(Trouble::LoseRequest) => None,
            Some(Trouble::LoseAnswer) => {
                self.carry_out(&called, &request);
                None
            }
            Some(Trouble::DelayAnswer(by)) => {
                let answer = self.carry_out(&called, &request);
                tokio::time::sleep(by).await;
                Some(answer)
            }
            Some(Trouble::DelayRequest(by)) => {
                let late = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    late.carry_out(&called, &request);
                });
                None
            }
        }
    }

    /// Does what is asked, at once.
    fn carry_out(&self, called: &Called, request: &Request<Bytes>) -> Response<Bytes> {
        let now = self.clock.now();
        let mut world = self.world();
        world.catch_up(now);
        if let Err(refusal) = self.admit(&world, called, request, now) {
            return called.refuse(&refusal);
        }
        let answer = match called.service {
            Service::CloudFormation => world.cloudformation.answer(called, request, now),
            Service::CloudWatch => world.cloudwatch.answer(called, request, now),
            Service::CodeDeploy => world.codedeploy.answer(called, request, now),
            Service::CodePipeline => world.codepipeline.answer(called, request, now),
            Service::DynamoDb => world.dynamodb.answer(called, request, now),
            Service::Ecr => world.ecr.answer(&called.operation, request, now),
            Service::Ecs => world.ecs(called, request, now),
            Service::Lambda => world.lambda(called, request, now),
            Service::Logs => world.logs.answer(&called.operation, request),
            Service::Route53 => world.route53.answer(called, request, now),
            Service::S3 => {
                let may_list = !world.denied.contains("s3:ListBucket");
                world.s3.answer(called, request, now, may_list)
            }
            Service::Sns => world.sns.answer(called, request, now),
        };
        answer.unwrap_or_else(|refusal| called.refuse(&refusal))
    }

    /// What AWS checks before it looks at what is asked: region, date, credentials, permission.
    fn admit(&self, world: &World, called: &Called, request: &Request<Bytes>, now: Timestamp) -> Result<(), Refusal> {
        let signed = wire::Signed::of(request)
            .ok_or_else(|| Refusal::new(403, "MissingAuthenticationTokenException", "Missing Authentication Token"))?;
        // Route 53 is one for all regions of a partition, and signed for in this one.
        let region = if called.service == Service::Route53 { REGION } else { &*self.region };
        if signed.region != region {
            let why = "Credential should be scoped to a valid region.";
            return Err(Refusal::new(403, "InvalidSignatureException", why));
        }
        if world.checks_clocks {
            let off = now.duration_since(signed.at);
            if off.abs() > SignedDuration::from_mins(5) {
                let (word, than) =
                    if off.is_positive() { ("expired", "earlier") } else { ("not yet current", "later") };
                let why = format!("Signature {word}: {} is now {than} than {now}", signed.at);
                return Err(Refusal::new(403, "InvalidSignatureException", why));
            }
        }
        if world.expired.contains(signed.access_key) {
            let why = "The security token included in the request is expired";
            return Err(Refusal::new(403, "ExpiredTokenException", why));
        }
        if let Some(action) = called.needs(request).iter().find(|action| world.denied.contains(*action)) {
            let partition = crate::account::partition(&self.region);
            let why = format!(
                "User: arn:{partition}:iam::{ACCOUNT}:user/simulated is not authorized to perform: {action} because no \
                 identity-based policy allows the {action} action"
            );
            return Err(Refusal::new(403, "AccessDeniedException", why));
        }
        Ok(())
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Lets everything happen that was to happen until now, one thing after the other, so that what one service makes of a
    /// moment reaches the others in order.
    fn catch_up(&mut self, now: Timestamp) {
        while let Some(next) = self.next(now) {
            self.pass(next);
        }
        self.pass(now);
    }

    /// When something is to happen next, until now.
    fn next(&self, now: Timestamp) -> Option<Timestamp> {
        [self.lambda.next_minute(now), self.codedeploy.next(now), self.ecs.next_due(now)].into_iter().flatten().min()
    }

    fn pass(&mut self, until: Timestamp) {
        for datum in self.lambda.pass(until) {
            self.cloudwatch.record(datum);
        }
        self.cloudwatch.pass(until);
        self.cloudformation.pass(until, &self.cloudwatch);
        self.codedeploy.pass(until, &self.cloudwatch);
        self.codepipeline.pass(until);
        let Self { cloudwatch, ecs, .. } = self;
        ecs.pass(until, &|alarm| cloudwatch.fires(alarm));
        self.dynamodb.pass(until);
        self.route53.pass(until);
    }

    fn ecs(&mut self, called: &Called, request: &Request<Bytes>, now: Timestamp) -> Result<Response<Bytes>, Refusal> {
        let Self { cloudwatch, ecs, .. } = self;
        ecs.answer(called, request, now, &|alarm| cloudwatch.fires(alarm))
    }

    fn lambda(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let answer = self.lambda.answer(called, request, now);
        for datum in self.lambda.take_data() {
            self.cloudwatch.record(datum);
        }
        answer
    }
}

impl Default for Simulator {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("region", &self.region).field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// What no error and no `Debug` may show.
const SECRET: &str = "simulated-secret-access-key";

/// How long until a virtual time, zero if it has passed.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}
