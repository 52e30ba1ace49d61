//! A rule of an HTTPRoute that divides requests between two Services.

use std::fmt;

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, Goal, Note, Observed, Part, Progress, Revision, Serves, TargetId, Version, Weight},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Client, Watches,
    access::{self, Access},
    endpoints,
    mark::{self, REVISION, Stand},
    object::{ENDPOINT_SLICES, ENDPOINTS, HTTP_ROUTES, Patch, SERVICES, Write, list, number, text},
    unsealed::Unsealed,
    watch,
    workload::{WRITES, hash, last_writer, preflight},
};

/// A rule of an HTTPRoute (Gateway API `v1`) as a target: the weights of its two Services are the candidate's share.
///
/// Both Services stand in the rule's `backendRefs` before the first rollout, one of them with a weight of 0. Which of them
/// is the baseline is read off the rule: the one that has all requests. What runs behind the other is deployed before the
/// rollout, with whatever deploys it; a rollout moves requests and nothing else, and so does going back, in one
/// conditional write of two numbers.
///
/// **Versions are checked.** The version is the object's uid, the hash of the rule's `backendRefs` and the nonce of the
/// last attempt, which is an annotation. A write holds only for the object as it was read for it. Several rules of one
/// HTTPRoute may be targets at the same time.
///
/// A share has arrived when every parent of the route (a Gateway, mostly) says `Accepted` and `ResolvedRefs` of the
/// generation that has it. How soon after that each of its proxies acts on it, the API does not tell.
///
/// **Not brought back**: what somebody changes behind the Services.
#[derive(Clone, Debug)]
pub struct HttpRoute {
    client: Client,
    namespace: String,
    name: String,
    services: [String; 2],
    rule: Option<String>,
    despite_gitops: Option<Note>,
    watches: Option<Watches>,
}

/// A revision, as it is sealed.
#[derive(Clone, Serialize, Deserialize)]
struct Snapshot {
    service: String,
    /// The rule that a baseline was read off, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// How the rule stood when it was read off. A candidate is not read off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stood: Option<Stand>,
    /// The weight that its Service had when it was read off, which it gets back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<i64>,
}

/// What a route is for a target, of one look.
struct Rule<'a> {
    /// Where its backends are: `/spec/rules/0/backendRefs`.
    path: String,
    refs: &'a Value,
}

/// What the parents of a route make of it, of its generation.
enum Taken {
    Yes,
    /// They have not seen it yet.
    Waiting(String),
    /// A parent does not accept it.
    Refused(String),
    /// They route by it, but not all backends can be found.
    Unresolved(String),
}

impl HttpRoute {
    /// The rule of the HTTPRoute of this name that has both these Services among its `backendRefs`, in whichever order.
    ///
    /// # Errors
    /// `Invalid` when a name is none, or the Services are one.
    pub fn new(client: &Client, namespace: &str, name: &str, services: [&str; 2]) -> Result<Self> {
        if services[0] == services[1] {
            return Err(Error::invalid(format!("both Services are {}; two are needed", services[0])));
        }
        Ok(Self {
            client: client.clone(),
            namespace: mark::checked("namespace of the HTTPRoute", namespace)?,
            name: mark::checked("name of the HTTPRoute", name)?,
            services: [mark::checked("first Service", services[0])?, mark::checked("second Service", services[1])?],
            rule: None,
            despite_gitops: None,
            watches: None,
        })
    }

    /// Only a rule of this name (`spec.rules[].name`), for routes where several rules have both Services.
    #[must_use]
    pub fn rule(mut self, name: &str) -> Self {
        self.rule = Some(name.to_owned());
        self
    }

    /// Goes ahead although Argo CD or Flux owns the route and would undo what is done here: you have seen to that, for this
    /// reason, which the record shows.
    #[must_use]
    pub fn despite_gitops(mut self, reason: impl Into<Note>) -> Self {
        self.despite_gitops = Some(reason.into());
        self
    }

    /// As [`Workload::watched_by`](crate::Workload::watched_by).
    #[must_use]
    pub fn watched_by(mut self, watches: &Watches) -> Self {
        self.watches = Some(watches.clone());
        self
    }

    /// What runs behind this Service, as a candidate. Give each build its own id: a Service's name stays when what runs
    /// behind it changes, and a revision that failed is not tried again under its id.
    ///
    /// # Errors
    /// `Invalid` when it is neither of the two Services, or the id is none.
    pub fn revision(&self, id: &str, service: &str) -> Result<Revision> {
        if !self.services.iter().any(|own| own == service) {
            let [one, two] = &self.services;
            return Err(Error::invalid(format!("{self} has no Service {service}; it has {one} and {two}")));
        }
        Revision::new(id)?.with_spec(&Snapshot { service: service.into(), of: None, stood: None, weight: None })
    }

    /// What this target takes to be allowed.
    pub fn rights(&self) -> Vec<Access> {
        let mut rights = NEEDED.to_vec();
        if self.watches.is_some() {
            rights.push(Watches::right(HTTP_ROUTES));
        }
        rights
    }

    /// The Role that this target takes, as YAML for `kubectl apply`.
    ///
    /// # Errors
    /// `Invalid` when the name is none.
    pub fn role(&self, name: &str) -> Result<String> {
        access::role(name, &self.namespace, &self.rights())
    }

    /// An id for it as a target: its namespace and name, its rule where that is named, and a sum of these, of both Services
    /// and of the cluster. So what an interrupted run left is taken up for the same rule of the same cluster, and for no
    /// other; by what the cluster is told from others, and where it has to be named for that, says
    /// [`Workload::target_id`](crate::Workload::target_id).
    pub fn target_id(&self) -> TargetId {
        let rule = self.rule.as_ref().map_or_else(String::new, |rule| format!("/{rule}"));
        let name = format!("{}/httproute/{}{rule}", self.namespace, self.name);
        mark::target_id(&self.client, &name, &self.about())
    }

    /// Tells this target from others on the same object.
    fn about(&self) -> String {
        hash(&json!([self.rule, self.sorted()]))[..8].to_owned()
    }

    fn sorted(&self) -> [&str; 2] {
        let mut services = [self.services[0].as_str(), &self.services[1]];
        services.sort_unstable();
        services
    }

    /// `rule api of HTTPRoute shop/web with shop-blue and shop-green`.
    fn rule_in_words(&self) -> String {
        let (rule, [one, two]) = (self.rule.as_deref().unwrap_or("any"), self.sorted());
        format!("rule {rule} of {self} with {one} and {two}")
    }

    /// Both revisions, if the baseline is of this rule: the weights of one would else be written into another.
    fn pair(&self, change: &Change) -> Result<Pair> {
        let pair = Pair::open(change, "names no Service; make it with HttpRoute::revision")?;
        let own = self.rule_in_words();
        match &pair.baseline.of {
            Some(of) if *of != own => Err(Error::invalid(format!("the rollout is of {of}, and this target is {own}"))),
            _ => Ok(pair),
        }
    }

    async fn heard(&self, last: Option<&Attempt>) -> Option<Value> {
        self.watches.as_ref()?.heard(HTTP_ROUTES, &self.namespace, &self.name, &self.about(), last?).await
    }

    async fn read(&self) -> Result<Value> {
        self.client.get(HTTP_ROUTES, &self.namespace, &self.name).await
    }

    async fn write(&self, patch: &Patch, write: Write) -> Result<Value> {
        self.client.patch(HTTP_ROUTES, &self.namespace, &self.name, patch, write).await
    }

    /// The rule that has both Services, or what is there instead.
    fn find<'a>(&self, object: &'a Value) -> Result<Rule<'a>, String> {
        let [one, two] = &self.services;
        let mut found = Vec::new();
        for (at, rule) in list(object, "/spec/rules").enumerate() {
            let named = self.rule.as_deref().is_none_or(|name| text(rule, "/name") == name);
            if named && self.services.iter().all(|service| self.place(&rule["backendRefs"], service).is_some()) {
                found.push(Rule { path: format!("/spec/rules/{at}/backendRefs"), refs: &rule["backendRefs"] });
            }
        }
        let of = self.rule.as_ref().map_or_else(String::new, |name| format!(" {name}"));
        match found.len() {
            0 => Err(format!("{self} has no rule{of} with both {one} and {two}")),
            1 => Ok(found.remove(0)),
            n => Err(format!("{self} has {n} rules with both {one} and {two}; name one of them")),
        }
    }

    /// The index of a Service among the backends of a rule.
    fn place(&self, refs: &Value, service: &str) -> Option<usize> {
        list(refs, "").position(|it| {
            let is = |name: &str, or: &str, wanted: &str| {
                it.get(name).and_then(Value::as_str).is_none_or(str::is_empty) && or == wanted
                    || text(it, &format!("/{name}")) == wanted
            };
            text(it, "/name") == service
                && is("kind", "Service", "Service")
                && is("group", "", "")
                && is("namespace", &self.namespace, &self.namespace)
        })
    }

    /// The weight that a Service has in a rule. The API fills in 1.
    fn weight(&self, rule: &Rule<'_>, service: &str) -> i64 {
        let at = self.place(rule.refs, service).and_then(|at| rule.refs.get(at));
        at.map_or(0, |it| it.get("weight").map_or(1, |_| number(it, "/weight")))
    }

    /// Whoever else has requests of this rule.
    fn others(&self, rule: &Rule<'_>) -> Option<String> {
        let ours: Vec<_> = self.services.iter().filter_map(|service| self.place(rule.refs, service)).collect();
        let mut others = list(rule.refs, "").enumerate().filter(|(at, _)| !ours.contains(at));
        others
            .find(|(_, it)| it.get("weight").is_none_or(|_| number(it, "/weight") > 0))
            .map(|(_, it)| text(it, "/name").to_owned())
    }

    fn stand(&self, object: &Value) -> Stand {
        let counts = self.find(object).map_or(Value::Null, |rule| rule.refs.clone());
        Stand::of(object, &self.about(), &counts)
    }

    /// The patch that gives the candidate this share of the rule, as the object was read.
    fn patch(&self, object: &Value, change: &Change, pair: &Pair, goal: Goal, nonce: &str) -> Result<Patch> {
        let rule = self.find(object).map_err(|why| Error::new(ErrorKind::Conflict, why))?;
        let share = i64::from(percent(goal));
        let rest = match goal {
            Goal::Baseline => pair.baseline.weight.unwrap_or(100),
            Goal::Split(_) | Goal::Candidate => 100 - share,
        };
        let mut refs = rule.refs.clone();
        let mut patch = mark::only_as_read(object);
        for (service, weight) in [(&pair.candidate.service, share), (&pair.baseline.service, rest)] {
            if let Some(at) = self.place(&refs, service) {
                refs[at]["weight"] = json!(weight);
                patch = patch.put(&format!("{}/{at}/weight", rule.path), json!(weight));
            }
        }
        // What has all requests in the end is known by its name again.
        let (service, id) = match goal {
            Goal::Baseline => (&pair.baseline.service, &change.baseline.id),
            Goal::Split(_) | Goal::Candidate => (&pair.candidate.service, &change.candidate.id),
        };
        let note = [(REVISION, format!("{service}={id}"))];
        Ok(mark::signed(patch, object, &self.about(), nonce, &refs, &note))
    }

    /// Every parent that the route names, by what it says of this generation.
    fn taken(&self, object: &Value) -> Taken {
        let mut unresolved = None;
        let mut named = 0;
        for parent in list(object, "/spec/parentRefs") {
            named += 1;
            let name = text(parent, "/name");
            let mut seen =
                list(object, "/status/parents").filter(|it| self.is_same(&it["parentRef"], parent)).peekable();
            if seen.peek().is_none() {
                return Taken::Waiting(format!("{name} has not looked at it yet"));
            }
            for said in seen {
                for wanted in ["Accepted", "ResolvedRefs"] {
                    let Some(condition) = list(said, "/conditions").find(|it| text(it, "/type") == wanted) else {
                        return Taken::Waiting(format!("{name} has not said {wanted} yet"));
                    };
                    if number(condition, "/observedGeneration") < number(object, "/metadata/generation") {
                        return Taken::Waiting(format!("{name} has not taken the change in yet"));
                    }
                    let why = format!("{} ({})", text(condition, "/message"), text(condition, "/reason"));
                    match (text(condition, "/status"), wanted) {
                        ("True", _) => {}
                        ("False", "Accepted") => return Taken::Refused(format!("{name} does not accept it: {why}")),
                        ("False", _) => unresolved = Some(format!("{name} does not find a backend: {why}")),
                        _ => return Taken::Waiting(format!("{name} does not know {wanted} yet")),
                    }
                }
            }
        }
        match unresolved {
            _ if named == 0 => Taken::Refused("it has no parent: nothing routes by it".into()),
            Some(why) => Taken::Unresolved(why),
            None => Taken::Yes,
        }
    }

    /// Whether two references to a parent mean the same, with what the API fills in.
    fn is_same(&self, one: &Value, other: &Value) -> bool {
        let full = |it: &Value| {
            let or = |name: &str, default: &str| match text(it, &format!("/{name}")) {
                "" => default.to_owned(),
                text => text.to_owned(),
            };
            let kind = (or("group", "gateway.networking.k8s.io"), or("kind", "Gateway"));
            (kind, or("namespace", &self.namespace), or("name", ""), or("sectionName", ""), number(it, "/port"))
        };
        full(one) == full(other)
    }

    async fn prove(&self, change: &Change, pair: &Pair) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let object = match self.read().await {
            Ok(object) => object,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                return Ok(ready.refused(format!("{self} cannot be read: {}", e.chain())));
            }
            Err(e) => return Err(e),
        };
        let stood = pair.stood()?;
        if text(&object, "/metadata/uid") != stood.uid {
            return Ok(ready.refused(format!("{self} was deleted and made again since the baseline was recorded")));
        }
        let rule = match self.find(&object) {
            Ok(rule) => rule,
            Err(why) => return Ok(ready.refused(why)),
        };
        if let Some(other) = self.others(&rule) {
            ready = ready.refused(format!("{other} has requests of the same rule of {self}: give it a weight of 0"));
        }
        if pair.candidate.service == pair.baseline.service {
            let idle = self.services.iter().find(|service| **service != pair.baseline.service);
            return Ok(ready.refused(format!(
                "the candidate is Service {}, which has the requests already; deploy it behind {}",
                pair.candidate.service,
                idle.map_or("the other one", String::as_str)
            )));
        }
        for right in NEEDED.iter().filter(|right| right.resource == HTTP_ROUTES.plural) {
            ready = right.prove(&self.client, &self.namespace, Some(&self.name), ready).await?;
        }
        if let Some(watches) = &self.watches {
            ready = watches.prove(HTTP_ROUTES, &self.namespace, ready).await?;
        }
        if ready.refused.is_empty() {
            ready = self.try_out(change, pair, &object, ready).await?;
        }
        ready = match self.taken(&object) {
            Taken::Yes => ready.proved("every parent of the route accepts it as it is, and finds its backends"),
            Taken::Waiting(why) | Taken::Refused(why) | Taken::Unresolved(why) => {
                ready.refused(format!("{self} is not in force as it stands: {why}"))
            }
        };
        for (what, service) in [("candidate", &pair.candidate.service), ("baseline", &pair.baseline.service)] {
            let because = match self.stands(service).await? {
                Ok(count) => {
                    ready = ready.proved(format!("Service {service} of the {what} has {count} ready endpoints"));
                    continue;
                }
                Err(because) => format!("Service {service} of the {what}: {because}"),
            };
            ready = if what == "candidate" { ready.refused(because) } else { ready.no_way_back(because) };
        }
        ready = preflight::owner(&object, self, self.despite_gitops.as_ref(), ready);
        Ok(ready.not_provable("how soon each proxy of the gateway acts on a change: the API does not tell"))
    }

    /// Both ways, carried out by the API server with admission and validation, and not kept.
    async fn try_out(&self, change: &Change, pair: &Pair, object: &Value, mut ready: Readiness) -> Result<Readiness> {
        for (goal, what) in [(Goal::Candidate, "the candidate's weights"), (Goal::Baseline, "the baseline's weights")] {
            let patch = self.patch(object, change, pair, goal, "tried out")?;
            let back = goal == Goal::Baseline;
            let answer = self.write(&patch, Write::Dry).await;
            let answer = answer.map(|after| self.share(&after, pair) == Some(percent(goal)));
            ready = preflight::Tried { what, of: self, back }.told(answer, ready)?;
        }
        Ok(ready)
    }

    /// How many endpoints of a Service are ready; or why none are.
    async fn stands(&self, service: &str) -> Result<Result<usize, String>> {
        let gone = |e: &Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied);
        if let Err(e) = self.client.get(SERVICES, &self.namespace, service).await {
            return if gone(&e) { Ok(Err(e.chain())) } else { Err(e) };
        }
        match endpoints::ready(&self.client, &self.namespace, service).await {
            Ok(ready) if ready.is_empty() => Ok(Err("no endpoint of it is ready".into())),
            Ok(ready) => Ok(Ok(ready.len())),
            Err(e) if gone(&e) => Ok(Err(e.chain())),
            Err(e) => Err(e),
        }
    }

    /// The candidate's share in whole percent, rounded, but never to all or nothing. None where nobody has any.
    fn share(&self, object: &Value, pair: &Pair) -> Option<u8> {
        let rule = self.find(object).ok()?;
        let (candidate, baseline) =
            (self.weight(&rule, &pair.candidate.service), self.weight(&rule, &pair.baseline.service));
        match (candidate, baseline) {
            (..=0, ..=0) => None,
            (..=0, _) => Some(0),
            (_, ..=0) => Some(100),
            _ => u8::try_from((candidate * 100 / (candidate + baseline)).clamp(1, 99)).ok(),
        }
    }
}

/// `HTTPRoute shop/web`.
impl fmt::Display for HttpRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTPRoute {}/{}", self.namespace, self.name)
    }
}

type Pair = Unsealed<Snapshot>;

impl Pair {
    fn stood(&self) -> Result<&Stand> {
        self.baseline.stood.as_ref().ok_or_else(|| mark::not_read_off("gives all requests to", &self.baseline.service))
    }
}

#[async_trait]
impl DeploymentBackend for HttpRoute {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    async fn baseline(&self) -> Result<Revision> {
        let object = self.read().await?;
        let rule = self.find(&object).map_err(|why| Error::new(ErrorKind::NotFound, why))?;
        let mixed = |text: String| Err(Error::new(ErrorKind::Mixed, format!("{self} sends requests to {text}")));
        if let Some(other) = self.others(&rule) {
            return mixed(format!("{other} too"));
        }
        let [one, two] = &self.services;
        let service = match (self.weight(&rule, one), self.weight(&rule, two)) {
            (1.., ..=0) => one,
            (..=0, 1..) => two,
            (..=0, ..=0) => return mixed(format!("neither {one} nor {two}")),
            _ => return mixed(format!("both {one} and {two}")),
        };
        let noted = mark::noted(&object, &self.about(), REVISION).and_then(|note| note.split_once('='));
        let id = noted.filter(|(of, _)| of == service).map_or(service.as_str(), |(_, id)| id);
        Revision::new(id)?.with_spec(&Snapshot {
            stood: Some(self.stand(&object)),
            of: Some(self.rule_in_words()),
            weight: Some(self.weight(&rule, service)),
            service: service.clone(),
        })
    }

    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        self.prove(change, &self.pair(change)?).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let pair = self.pair(change)?;
        if let Some(object) = self.heard(last).await {
            let look = self.look(&pair, goal, last, &object).await?;
            if watch::will_do(goal, &look) {
                return Ok(look);
            }
        }
        match self.read().await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let why = format!("{self} was deleted");
                Ok(Observed::new(Progress::Drifted(why.into()), Version::try_from("gone")?))
            }
            object => self.look(&pair, goal, last, &object?).await,
        }
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let pair = self.pair(change)?;
        // The gateway writes the status meanwhile, and every write changes what ours is tested against; what counts is
        // that it is still the version that was looked at.
        for _ in 0..WRITES {
            let object = self.read().await?;
            let stand = self.stand(&object);
            if stand.version()? != attempt.version || stand.uid != pair.stood()?.uid {
                return Err(Error::new(ErrorKind::Conflict, format!("{self} is not any more what was looked at")));
            }
            let patch = self.patch(&object, change, &pair, goal, attempt.nonce.as_str())?;
            match self.write(&patch, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                done => return done.map(drop),
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{self} changes faster than it can be written")))
    }

    fn attach(&self, wake: Wake) {
        if let Some(watches) = &self.watches {
            watches.namespace(&self.namespace).wake_on(HTTP_ROUTES, &self.name, wake);
        }
    }
}

impl HttpRoute {
    /// What this route, as it was read or heard of, says of the way to this goal.
    async fn look(&self, pair: &Pair, goal: Goal, last: Option<&Attempt>, object: &Value) -> Result<Observed> {
        let stood = pair.stood()?;
        let stand = self.stand(object);
        let landed = last.is_some_and(|last| stand.nonce.as_deref() == Some(last.nonce.as_str()));
        let look = |progress| Ok(Observed::new(progress, stand.version()?).landed(landed));
        let who = last_writer(object).map_or_else(String::new, |who| format!("; last written by {who}"));
        let drifted = |what: String| look(Progress::Drifted(format!("{what}{who}").into()));
        if stand.uid != stood.uid {
            return drifted(format!("{self} was deleted and made again"));
        }
        let rule = match self.find(object) {
            Ok(rule) => rule,
            Err(why) => return drifted(why),
        };
        if !stand.is_ours(stood) {
            return drifted(format!("the rule of {self} now has {}", told(&rule)));
        }
        let Some(share) = self.share(object, pair) else {
            return drifted(format!("neither Service of {self} has any requests"));
        };
        let taken = self.taken(object);
        let wanted = percent(goal);
        let progress = match &taken {
            _ if share != wanted => {
                Progress::Due(format!("give {} {}", pair.candidate.service, weight_of(wanted)?).into())
            }
            Taken::Yes => Progress::Reached,
            Taken::Waiting(why) => Progress::Underway(why.as_str().into()),
            // The candidate's Service may be the one that is missing, and has no requests any more.
            Taken::Unresolved(why) if goal == Goal::Baseline => match self.stands(&pair.baseline.service).await? {
                Ok(_) => Progress::Reached,
                Err(because) => Progress::Failed(format!("{why}; {because}").into()),
            },
            Taken::Refused(why) | Taken::Unresolved(why) => Progress::Failed(why.as_str().into()),
        };
        let serves = match (&taken, share) {
            // What the gateway goes by until then, nobody tells.
            (Taken::Waiting(_) | Taken::Refused(_), _) | (_, 1..=99) => Serves::Both,
            (_, 0) => Serves::Baseline,
            _ => Serves::Candidate,
        };
        let mut seen = look(progress)?.parts(vec![Part::new(&self.name, serves)]);
        if matches!(taken, Taken::Yes | Taken::Unresolved(_)) {
            seen.weight = Some(weight_of(share)?);
        }
        Ok(seen)
    }
}

/// What it takes to be allowed, however it looks.
const NEEDED: &[Access] = &[
    Access::to(HTTP_ROUTES, &["get"], "see the route"),
    Access::to(HTTP_ROUTES, &["patch"], "set the weights, and set them back"),
    Access::to(SERVICES, &["get"], "see whether both Services are there"),
    Access::to(ENDPOINT_SLICES, &["list"], "see whether anything is ready behind them"),
    Access::to(ENDPOINTS, &["get"], "see the same before Kubernetes 1.21"),
];

const fn percent(goal: Goal) -> u8 {
    match goal {
        Goal::Split(weight) => weight.percent(),
        Goal::Candidate => 100,
        Goal::Baseline => 0,
    }
}

fn weight_of(percent: u8) -> Result<Weight> {
    Weight::try_from(percent)
}

/// `shop-blue 70, shop-green 30`.
fn told(rule: &Rule<'_>) -> String {
    let one = |it: &Value| {
        let weight = it.get("weight").map_or(1, |_| number(it, "/weight"));
        format!("{} {weight}", text(it, "/name"))
    };
    list(rule.refs, "").map(one).collect::<Vec<_>>().join(", ")
}
