//! What the tests share: an app to try backends on.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{backend::DeploymentBackend, model::Revision, testing::backend::Bench};
use rollback_heroku::{
    App, Candidate,
    testing::{Heroku, Slug},
};

/// Lets the platform's time pass.
pub(crate) const SETTLE: Duration = Duration::from_secs(5);
/// A config var's value: it may be shown nowhere.
pub(crate) const VALUE: &str = "hunter2";

/// Ids of the fake are counted: after a reset the same slug has the same id.
pub(crate) type Make = fn(&Heroku) -> Revision;

/// The app `shop` at v1, and a candidate.
pub(crate) struct Shop {
    pub(crate) heroku: Heroku,
    pub(crate) make: Make,
    pub(crate) app: fn(App) -> App,
    /// Whether each reset looks back and finds at most one release of the candidate, and one of the baseline.
    once: bool,
}

impl Shop {
    pub(crate) fn new(make: Make) -> Self {
        Self { heroku: Heroku::new(), make, app: |app| app, once: false }
    }

    pub(crate) fn app(mut self, app: fn(App) -> App) -> Self {
        self.app = app;
        self
    }

    pub(crate) const fn once(mut self) -> Self {
        self.once = true;
        self
    }

    pub(crate) fn backend(&self) -> App {
        let app = App::new(&self.heroku.client(), "shop").expect("a good name").clock(self.heroku.clock());
        (self.app)(app)
    }
}

pub(crate) fn a_slug(heroku: &Heroku) -> Revision {
    heroku.app("shop", Slug::good());
    let slug = heroku.slug("shop", Slug::good());
    Candidate::slug(&slug).and_then(Candidate::revision).expect("a good id")
}

pub(crate) const SOURCE: &str = "https://sources.example/shop.tgz?signature=s3cr3t";
/// The SHA-256 of "tarball".
pub(crate) const SUM: &str = "db4b4d0d1cb480bf9aeea253771c00febe627f236765fa37d6a5614f079a3aa0";

pub(crate) fn a_source(heroku: &Heroku) -> Revision {
    heroku.app("shop", Slug::good());
    heroku.blob(SOURCE, "tarball");
    Candidate::source(SOURCE, SUM).and_then(Candidate::revision).expect("a good source")
}

pub(crate) const OLD_IMAGE: &str = "0123456789abcdef";

pub(crate) fn an_image(heroku: &Heroku) -> Revision {
    heroku.app("shop", Slug::good());
    heroku.container("shop", OLD_IMAGE);
    let id = format!("sha256:{}", "ab".repeat(32));
    Candidate::image("web", &id).and_then(Candidate::revision).expect("a good image")
}

/// How many releases put the candidate in place, and how many brought the baseline back.
pub(crate) fn released(heroku: &Heroku, app: &str) -> (usize, usize) {
    let releases = heroku.releases(app);
    let back = |text: &str| text.starts_with("Rollback to") || text.contains("/baseline]");
    let back = releases.iter().skip(1).filter(|(_, _, text, _)| back(text)).count();
    (releases.len() - 1 - back, back)
}

#[async_trait]
impl Bench for Shop {
    async fn reset(&self) {
        if self.once && self.heroku.has("shop") {
            let (forth, back) = released(&self.heroku, "shop");
            assert!(forth <= 1 && back <= 1, "released more than once: {:#?}", self.heroku.releases("shop"));
        }
        self.heroku.clear();
        (self.make)(&self.heroku);
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.backend())
    }

    fn candidate(&self) -> Revision {
        // On a Heroku of its own, so that asking has no effect.
        (self.make)(&Heroku::new())
    }

    fn missing(&self) -> Revision {
        Candidate::slug("00000000-0000-4000-8000-00000000dead").and_then(Candidate::revision).expect("a good id")
    }

    async fn settle(&self) {
        tokio::time::sleep(SETTLE).await;
    }

    async fn drift(&self) -> bool {
        let releases = self.heroku.releases("shop");
        if releases.iter().any(|(.., slug)| slug.is_none()) {
            self.heroku.set_config("shop", "FLAG", "on");
        } else {
            let slug = self.heroku.slug("shop", Slug::good());
            self.heroku.somebody_releases("shop", &slug);
        }
        true
    }

    fn secret(&self) -> Option<String> {
        Some(VALUE.into())
    }
}
