//! Hints from Heroku's webhooks: they wake a rollout early, and decide nothing.
//!
//! Subscribe with the level `sync`, so that Heroku repeats what was not taken:
//!
//! ```sh
//! heroku webhooks:add -a shop -i api:release,dyno -l sync -s "$SECRET" -u https://deploy.example.com/hooks/heroku
//! ```
//!
//! and mount the router in any `axum` application, behind your TLS; beside core's
//! [`Receiver`](https://docs.rs/rollback-core/latest/rollback_core/receiver/), where that is in use:
//!
//! ```
//! # use rollback_heroku::{App, testing::{Heroku, Slug}, webhook::Hints};
//! # fn main() -> rollback_core::Result<()> {
//! # let (heroku, secret) = (Heroku::new(), "a-secret-of-32-bytes-or-more-1234");
//! # let shop = App::new(&heroku.client(), "shop")?;
//! let hooks = Hints::new(secret)?.app(&shop).router();
//! let app: axum::Router = axum::Router::new().nest("/hooks", hooks); // POST /hooks/heroku
//! # Ok(())
//! # }
//! ```
//!
//! Heroku signs the body with the secret (`Heroku-Webhook-Hmac-SHA256`, HMAC-SHA256 in base64: Dev Center, "App webhooks").
//! Nothing that the body says is believed beyond the app's name: a rollout that is woken looks for itself. So a hint that was
//! copied and sent again costs a look. Whoever loses a hint looks at the usual pace.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rollback_core::{Error, Result};
use serde::Deserialize;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::{App, Promotion, app::Wakes};

/// Takes webhooks for apps and promotions, and wakes their rollouts.
#[derive(Clone)]
pub struct Hints {
    key: Hmac<Sha256>,
    wakes: BTreeMap<String, Vec<Wakes>>,
}

/// What is read of a webhook's body.
#[derive(Deserialize)]
struct Hint {
    resource: String,
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    app: Named,
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

impl Hints {
    /// The most bytes of a body: 256 KiB.
    pub const MAX_BODY: usize = 256 * 1024;
    /// How long a body may take to arrive.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Takes what is signed with this secret, the one that the webhook was added with.
    ///
    /// # Errors
    /// `Invalid` when it has less than 16 bytes.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self> {
        let secret = secret.as_ref();
        if secret.len() < 16 {
            let len = secret.len();
            return Err(Error::invalid(format!(
                "a webhook's secret of {len} bytes can be guessed; 16 or more are accepted"
            )));
        }
        let key = Hmac::new_from_slice(secret).expect("a key of any length is accepted");
        Ok(Self { key, wakes: BTreeMap::new() })
    }

    /// Wakes rollouts of this app.
    #[must_use]
    pub fn app(mut self, app: &App) -> Self {
        self.wakes.entry(app.name().into()).or_default().push(Arc::clone(app.wakes()));
        self
    }

    /// Wakes rollouts of this promotion when one of its targets says something.
    #[must_use]
    pub fn promotion(mut self, promotion: &Promotion) -> Self {
        for name in promotion.names() {
            self.wakes.entry(name.into()).or_default().push(Arc::clone(promotion.wakes()));
        }
        self
    }

    /// The router: `POST /heroku`. It answers 204 when it was taken, also where nobody waits for it; 401 when the signature
    /// is not good; 400 when it is no webhook; 413 and 408 when the body is too long, or too slow.
    pub fn router(self) -> Router {
        Router::new().route("/heroku", post(take)).with_state(Arc::new(self))
    }

    /// Whether this body was signed with our secret.
    fn is_signed(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let Some(shown) = headers.get(SIGNATURE).and_then(|value| STANDARD.decode(value.as_bytes()).ok()) else {
            return false;
        };
        let good = self.key.clone().chain_update(body).finalize().into_bytes();
        good.as_slice().ct_eq(&shown).into()
    }

    fn wake(&self, hint: &Hint) {
        // An app's own events name it one level higher.
        let name = if hint.data.app.name.is_empty() { &hint.data.name } else { &hint.data.app.name };
        for wakes in self.wakes.get(name).into_iter().flatten() {
            let mut wakes = wakes.lock().unwrap_or_else(PoisonError::into_inner);
            wakes.retain(|wake| !wake.is_dead());
            wakes.iter().for_each(rollback_core::Wake::wake);
        }
    }
}

async fn take(State(hints): State<Arc<Hints>>, request: Request) -> StatusCode {
    let (parts, body) = request.into_parts();
    let body: Bytes = match tokio::time::timeout(Hints::PATIENCE, to_bytes(body, Hints::MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return StatusCode::PAYLOAD_TOO_LARGE,
        Err(_) => return StatusCode::REQUEST_TIMEOUT,
    };
    if !hints.is_signed(&parts.headers, &body) {
        return StatusCode::UNAUTHORIZED;
    }
    match serde_json::from_slice::<Hint>(&body) {
        Ok(hint) => {
            // Collaborators, domains and the rest are nothing that a rollout waits for.
            if matches!(hint.resource.as_str(), "release" | "dyno" | "formation" | "build") {
                hints.wake(&hint);
            }
            StatusCode::NO_CONTENT
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

/// Without the secret.
impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hints").field("apps", &self.wakes.keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

const SIGNATURE: &str = "heroku-webhook-hmac-sha256";
