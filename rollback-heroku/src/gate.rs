//! Gates that ask Heroku how an app does: its dynos, its router's metrics, its log.

mod dynos;
mod logs;
mod router;

use rollback_core::{Result, gate::Window};

pub use self::{dynos::Dynos, logs::Logs, router::Router};
use crate::{
    App,
    api::Release,
    history::{tag, tagged},
    site::ours,
};

impl App {
    /// The release that is current, if it put this rollout's candidate in place.
    async fn candidates_release(&self, window: &Window) -> Result<Result<Release, String>> {
        let client = &self.site.client;
        let history = self.site.history(client).await?;
        let Some(current) = history.current() else { return Ok(Err("no release is current".into())) };
        let by_tag = tag(current.description())
            .and_then(tagged)
            .is_some_and(|(rollout, goal)| rollout == window.rollout.as_str() && goal != "baseline");
        let mut is_candidate = by_tag || history.code(current) == window.candidate.as_str();
        if !is_candidate && window.candidate.as_str().starts_with("source:") {
            let builds = self.site.builds(client).await?;
            is_candidate = ours(&builds, &window.rollout)
                .any(|build| build.release.as_ref().is_some_and(|release| release.id == current.id));
        }
        Ok(match is_candidate {
            true => Ok(current.clone()),
            false => Err(format!("v{} serves, which is not the candidate", current.version)),
        })
    }
}
