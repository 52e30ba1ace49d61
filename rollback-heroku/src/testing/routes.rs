//! What the API takes and answers.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rollback_core::web::reqwest::{
    Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, RANGE},
};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Exchange, Fault, Heroku, Token,
    schema::SCHEMA,
    world::{App, Build, Dyno, Release, US, World},
};
use crate::{
    candidate::hex,
    client::{Answer, Request},
};

/// What a route says: a status, and JSON; and how to order it, where it is a list.
struct Said {
    status: u16,
    body: Value,
    /// The attributes that a list can be ranged over.
    ranges: &'static [&'static str],
}

type Heard = Result<Said, Said>;

fn ok(body: Value) -> Heard {
    Ok(Said { status: 200, body, ranges: &[] })
}

fn created(body: Value) -> Heard {
    Ok(Said { status: 201, body, ranges: &[] })
}

fn list(items: Vec<Value>, ranges: &'static [&'static str]) -> Heard {
    Ok(Said { status: 200, body: Value::Array(items), ranges })
}

fn refused(status: u16, id: &str, message: impl Into<String>) -> Said {
    Said { status, body: json!({ "id": id, "message": message.into() }), ranges: &[] }
}

fn not_found(what: &str) -> Said {
    refused(404, "not_found", format!("Couldn't find that {what}."))
}

impl World {
    /// The answer, and whether it is lost on its way.
    pub(super) fn hear(&mut self, request: &Request) -> (Answer, bool) {
        let path = request.url.path().to_owned();
        if path.starts_with("/blobs/") || path.starts_with("/logs/") || !is_api(request) {
            let answer = self.stranger(request);
            self.note(request, &path, &answer);
            return (answer, false);
        }
        let effect = request.method != Method::GET;
        let fault = match effect {
            true => {
                self.effects += 1;
                self.faults.remove(&(self.effects - 1))
            }
            false if self.failing_reads > 0 => {
                self.failing_reads -= 1;
                Some(Fault::UnavailableBefore)
            }
            false => None,
        };
        let answer = match fault {
            Some(Fault::UnavailableBefore) => unavailable(),
            Some(Fault::Throttle) => {
                self.finish(refused(429, "rate_limit", "Your account reached the API rate limit."))
            }
            Some(Fault::UnavailableAfter) => {
                self.checked(request, &path);
                unavailable()
            }
            Some(Fault::LoseAnswer) | None => self.checked(request, &path),
        };
        self.note(request, &path, &answer);
        self.catch_up();
        (answer, fault == Some(Fault::LoseAnswer))
    }

    fn note(&mut self, request: &Request, path: &str, answer: &Answer) {
        let at = self.now().duration_since(rollback_core::testing::clock::TestClock::START);
        let at = at.try_into().unwrap_or_default();
        let (method, path, status) = (request.method.clone(), path.to_owned(), answer.status.as_u16());
        self.exchanges.push(Exchange { method, path, status, at });
    }

    /// A request that must keep to the schema, and its answer, which must as well.
    fn checked(&mut self, request: &Request, path: &str) -> Answer {
        let said = match self.admit(request) {
            Err(said) => said,
            Ok(()) => {
                match self.body(request).and_then(|body| Ok((self.schema(request, path, body.as_ref())?, body))) {
                    Err(why) => self.broken(why),
                    Ok((admitted, body)) => {
                        let said = self.route(request, path, body.as_ref().unwrap_or(&Value::Null));
                        let said = self.corrupted(said.unwrap_or_else(|refused| refused), path);
                        let good = said.status >= 300;
                        match if good { Ok(()) } else { SCHEMA.answer(&admitted, &said.body) } {
                            Ok(()) => self.ranged(said, request),
                            Err(why) => self.broken(format!("{} {path}: {why}", request.method)),
                        }
                    }
                }
            }
        };
        unless_known(request, self.finish(said))
    }

    fn broken(&mut self, why: String) -> Said {
        self.violations.push(why.clone());
        refused(500, "schema_broken", why)
    }

    fn body(&self, request: &Request) -> Result<Option<Value>, String> {
        if request.body.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&request.body).map(Some).map_err(|e| format!("a body that is not JSON: {e}"))
    }

    fn schema(&self, request: &Request, path: &str, body: Option<&Value>) -> Result<super::schema::Admitted, String> {
        let mut body = body.cloned();
        // The one variant that we use and that is not in the schema: container images in a formation.
        if is_docker(request) && path.ends_with("/formation") {
            for update in body.as_mut().and_then(|body| body["updates"].as_array_mut()).into_iter().flatten() {
                let image = update.as_object_mut().and_then(|update| update.remove("docker_image"));
                let good = image
                    .as_ref()
                    .and_then(Value::as_str)
                    .is_some_and(|id| id.starts_with("sha256:") && id.len() == 71);
                if !good {
                    return Err(format!("docker_image is {image:?}"));
                }
            }
        }
        SCHEMA.request(request.method.as_str(), path, body.as_ref())
    }

    /// Who may ask, and how often.
    fn admit(&mut self, request: &Request) -> Result<(), Said> {
        let header = |name: &HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
        if !header(&ACCEPT).is_some_and(|accept| accept.starts_with("application/vnd.heroku+json; version=3")) {
            return Err(refused(406, "not_acceptable", "The request's Accept header names no version."));
        }
        let known = header(&AUTHORIZATION) == Some(&format!("Bearer {}", Heroku::TOKEN));
        match self.token {
            _ if !known => return Err(refused(401, "unauthorized", "Invalid credentials provided.")),
            Token::Revoked => return Err(refused(401, "unauthorized", "Invalid credentials provided.")),
            Token::TwoFactor => return Err(refused(403, "two_factor", "A second authentication factor is required.")),
            Token::ReadOnly if request.method != Method::GET => {
                return Err(refused(403, "forbidden", "You do not have access to do that."));
            }
            Token::ReadOnly | Token::Good => {}
        }
        // Asking what is left costs nothing.
        if request.url.path() != "/account/rate-limits" {
            if self.left() < 1.0 {
                return Err(refused(429, "rate_limit", "Your account reached the API rate limit."));
            }
            self.budget.0 -= 1.0;
        }
        Ok(())
    }

    fn corrupted(&self, mut said: Said, path: &str) -> Said {
        let Some((resource, property, value)) = &self.corrupt else { return said };
        let singular = |part: &str| part == resource || part.strip_suffix('s') == Some(resource);
        if !path.split('/').any(singular) {
            return said;
        }
        let items = match &mut said.body {
            Value::Array(items) => items.as_mut_slice(),
            one => std::slice::from_mut(one),
        };
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.insert(property.clone(), value.clone());
        }
        said
    }

    /// The page of a list that was asked for: 206 when there is more.
    fn ranged(&self, said: Said, request: &Request) -> Said {
        let Value::Array(mut items) = said.body else { return said };
        let asked = request.headers.get(RANGE).and_then(|value| value.to_str().ok()).unwrap_or("id ..");
        let Some(range) = Range::parse(asked) else {
            return refused(416, "bad_range", format!("The range {asked:?} is none."));
        };
        if !said.ranges.contains(&range.by.as_str()) && range.by != "id" {
            return refused(416, "bad_range", format!("The range {asked:?} is over none of {:?}.", said.ranges));
        }
        let key = |item: &Value| match &item[&range.by] {
            Value::Number(number) => format!("{:020}", number.as_u64().unwrap_or_default()),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        items.sort_by_key(key);
        if range.descending {
            items.reverse();
        }
        if let Some(after) = &range.after {
            let beyond = |item: &Value| if range.descending { key(item) < *after } else { key(item) > *after };
            items.retain(beyond);
        }
        let most = range.most.min(self.page);
        let more = items.len() > most;
        items.truncate(most);
        let next = match items.last() {
            Some(last) if more => {
                let order = if range.descending { "desc" } else { "asc" };
                Some(format!("{} ]{}..; max={most}, order={order}", range.by, key(last)))
            }
            _ => None,
        };
        match next {
            // The range travels in the body up to `finish`, which alone writes headers.
            Some(next) => Said { status: 206, body: json!({ "items": items, "next": next }), ranges: said.ranges },
            None => Said { status: 200, body: Value::Array(items), ranges: said.ranges },
        }
    }

    fn finish(&mut self, mut said: Said) -> Answer {
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: String| {
            headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value).expect("plain text"));
        };
        put("content-type", "application/json".into());
        put("request-id", format!("fake-{}", self.exchanges.len()));
        // The last answers of a budget say nought.
        put("ratelimit-remaining", format!("{}", self.left().max(0.0).floor()));
        if said.status == 206 {
            put("next-range", said.body["next"].as_str().unwrap_or_default().into());
            said.body = said.body["items"].take();
        }
        let status = StatusCode::from_u16(said.status).expect("a status");
        Answer { status, headers, body: said.body.to_string().into_bytes() }
    }

    /// A host that is not Heroku's: it must not see the token.
    fn stranger(&mut self, request: &Request) -> Answer {
        if request.headers.contains_key(AUTHORIZATION) {
            self.violations.push(format!("the token was shown to {}", request.url));
        }
        let plain = |status: u16, body: Vec<u8>| Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body,
        };
        let url = request.url.as_str();
        match request.url.path().strip_prefix("/logs/") {
            Some(app) => plain(200, self.logs(app).into_bytes()),
            None if request.method == Method::PUT => {
                self.blobs.insert(url.replace("/put/", "/get/"), request.body.clone());
                plain(200, Vec::new())
            }
            None => match self.blobs.get(url) {
                Some(blob) => plain(206, blob.iter().take(1).copied().collect()),
                None => plain(404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
            },
        }
    }

    fn logs(&mut self, app: &str) -> String {
        let Some(app) = self.find_app(app) else { return String::new() };
        let line =
            |(at, text): &(Timestamp, String)| format!("{} {text}\n", at.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"));
        app.logs.iter().rev().take(1500).rev().map(line).collect()
    }

    fn route(&mut self, request: &Request, path: &str, body: &Value) -> Heard {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let now = self.now();
        let shows = now - SignedDuration::try_from(self.lag).unwrap_or_default();
        let method = request.method.as_str();
        match (method, parts.as_slice()) {
            ("GET", ["account"]) => return ok(account()),
            ("GET", ["account", "rate-limits"]) => return ok(json!({ "remaining": self.left().floor() as u64 })),
            ("POST", ["sources"]) => {
                let (id, base) = (self.id(), self.base.clone());
                return created(json!({ "source_blob": {
                    "get_url": format!("{base}/blobs/get/{id}?signature=s3cr3t"),
                    "put_url": format!("{base}/blobs/put/{id}?signature=s3cr3t"),
                }}));
            }
            ("POST", ["pipeline-promotions"]) => return self.promote(body),
            ("GET", ["pipeline-promotions", id]) => return self.promotion(id),
            ("GET", ["pipeline-promotions", id, "promotion-targets"]) => return self.promotion_targets(id),
            _ => {}
        }
        let ["apps", name, rest @ ..] = parts.as_slice() else { return Err(not_found("page")) };
        let (metrics, base) = (self.metrics, self.base.clone());
        let Some(app) = self.find_app(name) else { return Err(not_found("app")) };
        let app_name = app.name.clone();
        match (method, rest) {
            ("GET", []) => ok(app_json(app)),
            ("GET", ["config-vars"]) => ok(json!(app.config)),
            ("GET", ["collaborators", id]) => match &app.permissions {
                Some(permissions) if *id == ACCOUNT => ok(collaborator(app, permissions)),
                _ => Err(not_found("collaborator")),
            },
            ("GET", ["dynos"]) => list(app.dynos.iter().map(|dyno| dyno_json(app, dyno, now)).collect(), &["name"]),
            ("GET", ["formation"]) => list(formation_json(app), &["type"]),
            ("PATCH", ["formation"]) if is_docker(request) => {
                if app.stack != "container" {
                    return Err(refused(422, "invalid_params", "This app's stack takes no images."));
                }
                let mut images: Vec<(String, String)> = Vec::new();
                for update in body["updates"].as_array().into_iter().flatten() {
                    let id = update["docker_image"].as_str().unwrap_or_default();
                    let kind = update["type"].as_str().unwrap_or_default();
                    images.push((kind.into(), id.trim_start_matches("sha256:").chars().take(12).collect()));
                }
                let text: Vec<String> = images.iter().map(|(kind, id)| format!("{kind} ({id})")).collect();
                let description = format!("Deployed {}", text.join(", "));
                let formation = formation_json(app);
                let unchanged = app.releases.last().is_some_and(|last| last.description == description);
                if !unchanged {
                    let image = images.first().map(|(_, id)| id.clone());
                    self.release(&app_name, None, image, description, US, now);
                }
                ok(Value::Array(formation))
            }
            ("GET", ["features", "preboot"]) if !app.fir => ok(feature(app)),
            ("GET", ["features", _]) => Err(not_found("app feature")),
            ("GET", ["releases"]) => {
                let shown = app.releases.iter().filter(|release| release.created <= shows || release.version == 1);
                list(shown.map(|release| release_json(app, release)).collect(), &["version"])
            }
            ("POST", ["releases"]) => self.post_release(&app_name, body),
            ("GET", ["releases", id]) => match find_release(app, id) {
                Some(release) => ok(release_json(app, release)),
                None => Err(not_found("release")),
            },
            ("GET", ["releases", id, "config-vars"]) => match find_release(app, id) {
                Some(release) => ok(json!(release.config)),
                None => Err(not_found("release")),
            },
            ("GET", ["slugs", id]) => self.slug_json(&app_name, id),
            ("GET", ["builds"]) => {
                let shown = app.builds.iter().filter(|build| build.created <= shows);
                list(shown.map(|build| build_json(app, build)).collect(), &["created_at", "started_at"])
            }
            ("POST", ["builds"]) => {
                let id = self.build(&app_name, &body["source_blob"]);
                let app = self.app_mut(&app_name);
                created(build_json(app, app.builds.iter().find(|build| build.id == id).expect("just made")))
            }
            ("DELETE", ["builds", id]) => match app.builds.iter().position(|build| build.id == *id) {
                Some(at) if app.builds[at].status == "pending" => {
                    let build = &mut app.builds[at];
                    (build.status, build.ends, build.updated) = ("failed", None, now);
                    ok(build_json(app, &app.builds[at]))
                }
                Some(_) => Err(refused(422, "invalid_params", "The build has ended.")),
                None => Err(not_found("build")),
            },
            ("GET", ["pipeline-couplings"]) => match &app.stage {
                Some(stage) => ok(json!({
                    "app": { "id": app.id }, "created_at": app.created, "id": PIPELINE,
                    "pipeline": { "id": PIPELINE }, "stage": stage, "updated_at": app.created,
                })),
                None => Err(not_found("pipeline coupling")),
            },
            ("POST", ["log-sessions"]) => created(json!({
                "created_at": now, "id": PIPELINE, "updated_at": now,
                "logplex_url": format!("{base}/logs/{app_name}?signature=s3cr3t"),
            })),
            ("GET", ["router-metrics" | "formation", ..]) if !metrics => Err(not_found("page")),
            ("GET", ["router-metrics", what]) => series(app, what, request, now),
            _ => Err(refused(501, "not_implemented", format!("the fake does not know {method} {path}"))),
        }
    }

    fn post_release(&mut self, app: &str, body: &Value) -> Heard {
        let now = self.now();
        let version = match (&body["slug"], &body["release"]) {
            (Value::String(slug), _) => {
                match self.slugs.get(slug) {
                    None => return Err(not_found("slug")),
                    Some(slug) if slug.deleted.is_some() => {
                        return Err(refused(422, "invalid_params", "That slug was deleted."));
                    }
                    Some(_) => {}
                }
                let description = body["description"].as_str().unwrap_or("Deploy").to_owned();
                self.release(app, Some(slug.clone()), None, description, US, now)
            }
            (_, Value::String(release)) => {
                let found = find_release(self.app_mut(app), release).map(|it| (it.version, it.status, it.slug.clone()));
                let Some((version, status, slug)) = found else { return Err(not_found("release")) };
                let gone = slug.is_some_and(|slug| self.slugs[&slug].deleted.is_some());
                if status != "succeeded" || gone {
                    return Err(refused(422, "invalid_params", "Cannot roll back to that release."));
                }
                self.restore(app, version, US)
            }
            _ => return Err(refused(422, "invalid_params", "A slug or a release is needed.")),
        };
        self.catch_up();
        let app = self.app_mut(app);
        let made = app.releases.iter().find(|release| release.version == version).expect("just made");
        created(release_json(app, made))
    }

    fn slug_json(&self, app: &str, id: &str) -> Heard {
        let Some(slug) = self.slugs.get(id).filter(|slug| slug.app == app) else { return Err(not_found("slug")) };
        let mut types = json!({ "web": "bin/server" });
        if slug.slug.phase.is_some() {
            types["release"] = json!("bin/migrate");
        }
        ok(json!({
            "blob": { "method": "get", "url": "https://slugs.example/?signature=s3cr3t" },
            "buildpack_provided_description": null, "checksum": null, "commit": slug.commit,
            "commit_description": null, "created_at": slug.created, "id": id, "process_types": types,
            "size": 2048, "stack": { "id": PIPELINE, "name": "heroku-24" },
            "updated_at": slug.created, "deleted_at": slug.deleted,
        }))
    }

    fn promote(&mut self, body: &Value) -> Heard {
        let now = self.now();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (source, release) = (text(&body["source"]["app"]["id"]), text(&body["source"]["release"]["id"]));
        let Some(app) = self.find_app(&source) else { return Err(not_found("app")) };
        let name = app.name.clone();
        let found = match release.as_str() {
            "" => app.releases.iter().find(|it| it.version == app.current),
            id => find_release(app, id),
        };
        let Some(release) = found.cloned() else { return Err(not_found("release")) };
        let mut targets = Vec::new();
        for target in body["targets"].as_array().cloned().unwrap_or_default() {
            let id = text(&target["app"]["id"]);
            let Some(app) = self.find_app(&id) else { return Err(not_found("app")) };
            let (target_name, refused) = (app.name.clone(), app.refuses_promotions.clone());
            let made = match &refused {
                Some(_) => None,
                None => {
                    let description = format!("Promote {name} v{} 0123abcd", release.version);
                    let (slug, image) = (release.slug.clone(), release.image.clone());
                    let version = self.release(&target_name, slug, image, description, US, now);
                    Some(self.release_mut(&target_name, version).id.clone())
                }
            };
            targets.push(super::world::Target { id: self.id(), app: id, release: made, refused });
        }
        let id = self.id();
        let promotion =
            super::world::Promotion { id: id.clone(), app: source, release: release.id, created: now, targets };
        self.promotions.push(promotion);
        self.catch_up();
        self.promotion(&id).map(|said| Said { status: 201, ..said })
    }

    fn promotion(&self, id: &str) -> Heard {
        let Some(it) = self.promotions.iter().find(|it| it.id == id) else { return Err(not_found("promotion")) };
        let pending = it.targets.iter().any(|target| self.target_status(target) == "pending");
        ok(json!({
            "created_at": it.created, "id": it.id, "pipeline": { "id": PIPELINE },
            "source": { "app": { "id": it.app }, "release": { "id": it.release } },
            "status": if pending { "pending" } else { "completed" }, "updated_at": it.created,
        }))
    }

    fn promotion_targets(&self, id: &str) -> Heard {
        let Some(it) = self.promotions.iter().find(|it| it.id == id) else { return Err(not_found("promotion")) };
        let target = |target: &super::world::Target| {
            json!({
                "app": { "id": target.app }, "error_message": target.refused, "id": target.id,
                "pipeline_promotion": { "id": it.id }, "status": self.target_status(target),
                "release": target.release.as_ref().map(|id| json!({ "id": id })),
            })
        };
        list(it.targets.iter().map(target).collect(), &[])
    }

    fn target_status(&self, target: &super::world::Target) -> &'static str {
        let Some(release) = &target.release else { return "failed" };
        let releases = self.apps.values().flat_map(|app| &app.releases);
        releases.into_iter().find(|it| it.id == *release).map_or("failed", |it| it.status)
    }
}

/// A `Range` of the API: `version ..; max=10, order=desc`.
struct Range {
    by: String,
    after: Option<String>,
    most: usize,
    descending: bool,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (range, settings) = text.split_once(';').unwrap_or((text, ""));
        let (by, span) = range.trim().split_once(' ')?;
        let (from, _to) = span.split_once("..")?;
        let mut parsed = Self { by: by.into(), after: None, most: 200, descending: false };
        parsed.after = from.strip_prefix(']').map(ToOwned::to_owned);
        for setting in settings.split([',', ';']).map(str::trim).filter(|it| !it.is_empty()) {
            match setting.split_once('=')? {
                ("max", most) => parsed.most = most.parse().ok().filter(|most| (1..=1000).contains(most))?,
                ("order", order) => parsed.descending = order == "desc",
                _ => return None,
            }
        }
        Some(parsed)
    }
}

/// 304 and no body where the asker has this very answer, by its `ETag`.
fn unless_known(request: &Request, mut answer: Answer) -> Answer {
    if request.method != Method::GET || answer.status != StatusCode::OK {
        return answer;
    }
    let digest: String = hex(&Sha256::digest(&answer.body)).chars().take(32).collect();
    let tag = HeaderValue::try_from(format!("W/\"{digest}\"")).expect("plain text");
    if request.headers.get(IF_NONE_MATCH) == Some(&tag) {
        answer.status = StatusCode::NOT_MODIFIED;
        answer.body.clear();
    }
    answer.headers.insert(ETAG, tag);
    answer
}

fn is_api(request: &Request) -> bool {
    let host = request.url.host_str().unwrap_or_default();
    host.ends_with("heroku.com") || matches!(host, "127.0.0.1" | "localhost")
}

fn is_docker(request: &Request) -> bool {
    request.headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().ends_with(b"3.docker-releases"))
}

fn unavailable() -> Answer {
    let body = b"<html><body>Application Error</body></html>".to_vec();
    Answer { status: StatusCode::SERVICE_UNAVAILABLE, headers: HeaderMap::new(), body }
}

fn find_release<'a>(app: &'a App, id: &str) -> Option<&'a Release> {
    app.releases.iter().find(|release| release.id == id || release.version.to_string() == id)
}

fn app_json(app: &App) -> Value {
    let (generation, id) = (if app.fir { "fir" } else { "cedar" }, PIPELINE);
    let owner = if app.permissions.is_none() { (ACCOUNT, US) } else { (PIPELINE, "owner@example.com") };
    json!({
        "acm": false, "archived_at": null, "buildpack_provided_description": null,
        "build_stack": { "id": id, "name": app.stack }, "created_at": app.created,
        "generation": { "id": id, "name": generation },
        "git_url": format!("https://git.heroku.com/{}.git", app.name), "id": app.id, "internal_routing": null,
        "maintenance": app.maintenance, "name": app.name, "owner": { "email": owner.1, "id": owner.0 },
        "organization": null, "team": null, "region": { "id": id, "name": "eu" }, "released_at": app.created,
        "repo_size": null, "slug_size": null, "space": null, "stack": { "id": id, "name": app.stack },
        "updated_at": app.created, "web_url": null,
    })
}

fn release_json(app: &App, release: &Release) -> Value {
    let mut artifacts = Vec::new();
    if let Some(slug) = &release.slug {
        artifacts.push(json!({ "type": "slug", "id": slug }));
    }
    if let Some(id) = release.image.as_ref().and_then(|image| image.strip_prefix("oci:")) {
        artifacts.push(json!({ "type": "oci-image", "id": id }));
    }
    json!({
        "addon_plan_names": release.addons, "artifacts": artifacts, "app": { "name": app.name, "id": app.id },
        "created_at": release.created, "description": release.description, "id": release.id,
        "updated_at": release.updated, "slug": release.slug.as_ref().map(|id| json!({ "id": id })),
        "status": release.status, "user": { "id": ACCOUNT, "email": release.user }, "version": release.version,
        "current": release.version == app.current, "output_stream_url": null,
        "eligible_for_rollback": release.eligible && release.status == "succeeded",
    })
}

fn build_json(app: &App, build: &Build) -> Value {
    let reference = |id: &Option<String>| id.as_ref().map(|id| json!({ "id": id }));
    json!({
        "app": { "id": app.id }, "buildpacks": null, "created_at": build.created, "id": build.id,
        "output_stream_url": "https://streams.example/?signature=s3cr3t",
        "source_blob": {
            "checksum": build.checksum, "url": build.url, "version": build.version,
            "version_description": build.version_description,
        },
        "release": reference(&build.release), "slug": reference(&build.slug), "stack": app.stack,
        "status": build.status, "updated_at": build.updated, "user": { "id": ACCOUNT, "email": US },
    })
}

fn dyno_json(app: &App, dyno: &Dyno, now: Timestamp) -> Value {
    let (state, since) = dyno.state(now);
    let release = app.releases.iter().find(|release| release.version == dyno.version).expect("it runs one");
    let name = match app.fir {
        false => format!("{}.{}", dyno.kind, dyno.number),
        true => format!("{}-1234abcde-{:05}", dyno.kind, dyno.number),
    };
    json!({
        "attach_url": null, "command": "bin/server", "created_at": dyno.started, "id": dyno.id, "name": name,
        "release": { "id": release.id, "version": release.version }, "app": { "name": app.name, "id": app.id },
        "size": "standard-1X", "state": state, "type": dyno.kind, "updated_at": since,
    })
}

fn formation_json(app: &App) -> Vec<Value> {
    let part = |(at, (kind, quantity)): (usize, (&String, &u64))| {
        json!({
            "app": { "name": app.name, "id": app.id }, "command": "bin/server", "created_at": app.created,
            "dyno_size": { "id": PIPELINE, "name": "standard-1X" }, "id": format!("{at:08x}-0000-4000-8000-00000000f0a7"),
            "quantity": quantity, "size": "standard-1X", "type": kind, "updated_at": app.created,
        })
    };
    app.formation.iter().enumerate().map(part).collect()
}

fn feature(app: &App) -> Value {
    json!({
        "created_at": app.created, "description": "Preboot", "doc_url": "https://devcenter.heroku.com/articles/preboot",
        "enabled": app.preboot, "id": PIPELINE, "name": "preboot", "state": "general", "updated_at": app.created,
        "display_name": "Preboot", "feedback_email": "feedback@example.com",
    })
}

fn account() -> Value {
    json!({
        "allow_tracking": false, "beta": false, "created_at": "2020-01-01T00:00:00Z", "email": US, "federated": false,
        "id": ACCOUNT, "identity_provider": null, "last_login": null, "name": null, "sms_number": null,
        "suspended_at": null, "delinquent_at": null, "two_factor_authentication": true,
        "updated_at": "2020-01-01T00:00:00Z", "verified": true, "country_of_residence": null,
        "default_organization": null, "default_team": null,
    })
}

fn collaborator(app: &App, permissions: &[String]) -> Value {
    let permissions: Vec<Value> =
        permissions.iter().map(|name| json!({ "name": name, "description": "It may." })).collect();
    json!({
        "app": { "name": app.name, "id": app.id }, "created_at": app.created, "id": PIPELINE,
        "permissions": permissions, "role": "collaborator", "updated_at": app.created,
        "user": { "email": US, "federated": false, "id": ACCOUNT },
    })
}

/// The series of the metrics API, one value a minute. A minute before the traffic was told has no value.
fn series(app: &App, what: &str, request: &Request, now: Timestamp) -> Heard {
    let query: BTreeMap<String, String> = request.url.query_pairs().into_owned().collect();
    let time = |key: &str| query.get(key).and_then(|text| text.parse::<Timestamp>().ok());
    let (Some(start), Some(end)) = (time("start_time"), time("end_time")) else {
        return Err(refused(400, "bad_request", "start_time and end_time are needed"));
    };
    if query.get("process_type").is_some_and(|kind| !app.formation.contains_key(kind)) {
        return Err(refused(400, "bad_request", "invalid process_type provided"));
    }
    let mut data: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    let mut put = |at: usize, key: String, value: f64| {
        let values = data.entry(key).or_default();
        values.resize(at.max(values.len()), None);
        values.push(Some(value));
    };
    let first = start.as_second().div_euclid(60) * 60;
    let minutes = (end.as_second() - first).max(0).div_euclid(60) as usize;
    for at in 0..minutes {
        let begins = Timestamp::from_second(first + 60 * at as i64).expect("a time of now");
        if begins + SignedDuration::from_mins(1) > now {
            break;
        }
        let Some((_, traffic)) = app.traffic.iter().rev().find(|(since, _)| *since <= begins) else { continue };
        match what {
            "status" => {
                put(at, "status_2xx".into(), traffic.ok);
                put(at, "status_5xx".into(), traffic.failed);
            }
            "errors" => traffic.errors.iter().for_each(|(code, count)| put(at, code.clone(), *count)),
            _ => {
                let names = ["p50", "p95", "p99"].iter().zip(traffic.latency);
                names.for_each(|(name, value)| put(at, format!("latency.ms.{name}"), value));
            }
        }
    }
    for values in data.values_mut() {
        values.resize(minutes, None);
    }
    let start = Timestamp::from_second(first).expect("a time of now");
    let data: Map<String, Value> = data.into_iter().map(|(key, values)| (key, json!(values))).collect();
    ok(json!({ "data": data, "start_time": start, "end_time": end, "step": 1 }))
}

const ACCOUNT: &str = "0ac00000-0000-4000-8000-000000000001";
const PIPELINE: &str = "0b1e0000-0000-4000-8000-000000000002";
