//! Where artefacts lie, and whether they are still there.

use std::fmt;

use async_trait::async_trait;
use rollback_core::{Result, model::Note};

use super::Artefact;

/// A place where artefacts lie. Preflight asks it whether the baseline and the candidate are still there, so that a rollback
/// does not find an empty shelf: CodeDeploy itself looks only when it deploys.
///
/// With the feature `lambda` a Lambda client is one, for the versions that an AppSpec names. For objects in S3, images, and task
/// definitions write your own, over the client that you have anyway:
///
/// ```
/// use async_trait::async_trait;
/// use rollback_aws::codedeploy::{Artefact, OnShelf, Shelf};
///
/// #[derive(Debug)]
/// struct Bundles;
///
/// #[async_trait]
/// impl Shelf for Bundles {
///     async fn look(&self, artefact: &Artefact) -> rollback_core::Result<OnShelf> {
///         let Some((bucket, key, version)) = artefact.s3_object() else { return Ok(OnShelf::NotMine) };
///         // Ask for its head: `client.head_object()`.
/// #       let found = !bucket.is_empty() && !key.is_empty() && version.is_some();
///         Ok(if found { OnShelf::There("its bundle is in S3".into()) } else { OnShelf::Gone("it was deleted".into()) })
///     }
/// }
/// ```
#[async_trait]
pub trait Shelf: fmt::Debug + Send + Sync + 'static {
    /// Whether this artefact is there and could be deployed now. Has no effects.
    ///
    /// # Errors
    /// What kept it from looking. Preflight lists that as not provable.
    async fn look(&self, artefact: &Artefact) -> Result<OnShelf>;
}

/// What a look at a [`Shelf`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnShelf {
    /// It is there: what was seen.
    There(Note),
    /// It is gone, or cannot be deployed: why.
    Gone(Note),
    /// It lies elsewhere.
    NotMine,
}

#[cfg(feature = "lambda")]
#[async_trait]
impl Shelf for aws_sdk_lambda::Client {
    async fn look(&self, artefact: &Artefact) -> Result<OnShelf> {
        use aws_sdk_lambda::types::State;
        use rollback_core::ErrorKind;

        let versions = artefact.lambda_versions();
        for (function, version) in &versions {
            let call = self.get_function_configuration().function_name(function).qualifier(version).send();
            let told = format!("reading version {version} of function {function}");
            match call.await.map_err(|e| crate::error::sorted(told, e)) {
                Ok(found) if matches!(found.state(), None | Some(State::Active)) => {}
                Ok(found) => {
                    let state = found.state().map_or("", |it| it.as_str());
                    return Ok(OnShelf::Gone(Note::new(format!(
                        "version {version} of function {function} is {state}, not Active"
                    ))));
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return Ok(OnShelf::Gone(Note::new(format!("function {function} has no version {version}"))));
                }
                Err(e) => return Err(e),
            }
        }
        let named: Vec<String> = versions.iter().map(|(function, version)| format!("{function}:{version}")).collect();
        Ok(match named.is_empty() {
            true => OnShelf::NotMine,
            false => OnShelf::There(Note::new(format!("{} is published and Active", named.join(", ")))),
        })
    }
}
