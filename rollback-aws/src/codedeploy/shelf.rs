//! Where artefacts lie, and whether they are still there.

use std::fmt;

use async_trait::async_trait;
use rollback_core::{Result, model::Note};

use super::Artefact;
#[cfg(feature = "s3")]
use crate::iam::Permission;

/// A place where artefacts lie. Preflight asks it whether the baseline and the candidate are still there, so that a rollback
/// does not find an empty shelf: CodeDeploy itself looks only when it deploys.
///
/// These are, each with a feature of its own:
///
/// | shelf | feature | looks for | needs |
/// |---|---|---|---|
/// | S3's client | `s3` | the bundle, in its version, by its ETag, not archived | [`s3:GetObject`, `s3:GetObjectVersion`, `s3:ListBucket`][head] |
/// | ECS's client | `ecs` | the AppSpec's task definition, ACTIVE | `ecs:DescribeTaskDefinition` |
/// | `ecr::Images` | `ecr` | the images of that task definition | `ecr:DescribeImages`, `ecs:DescribeTaskDefinition` |
/// | Lambda's client | `lambda` | the AppSpec's versions, Active | `lambda:GetFunctionConfiguration` |
///
/// An AppSpec is read where it is JSON. What a shelf may not look at is listed as not provable, and refuses nothing. That it is
/// there for the caller is not that the instances may read it, with the role that they have. For another place, as GitHub, write
/// your own:
///
/// ```
/// use async_trait::async_trait;
/// use rollback_aws::codedeploy::{Artefact, OnShelf, Shelf};
///
/// #[derive(Debug)]
/// struct Commits;
///
/// #[async_trait]
/// impl Shelf for Commits {
///     async fn look(&self, artefact: &Artefact) -> rollback_core::Result<OnShelf> {
///         let Some((repository, commit)) = artefact.github_commit() else { return Ok(OnShelf::NotMine) };
///         // Ask the forge for it.
/// #       let found = !repository.is_empty() && !commit.is_empty();
///         Ok(if found { OnShelf::There("its commit is there".into()) } else { OnShelf::Gone("it is gone".into()) })
///     }
/// }
/// ```
///
/// [head]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
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
    /// What could be seen of it is there, and not all of it could be seen: both.
    Partly(Note, Note),
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

#[cfg(feature = "ecs")]
#[async_trait]
impl Shelf for aws_sdk_ecs::Client {
    async fn look(&self, artefact: &Artefact) -> Result<OnShelf> {
        use crate::ecs::definition;

        let names = artefact.task_definitions();
        for name in &names {
            let found = definition::read(self, name).await?;
            if let Some(why) = definition::unfit(name, found.as_ref().map(|it| &it.0)) {
                return Ok(OnShelf::Gone(why));
            }
        }
        Ok(match names.is_empty() {
            true => OnShelf::NotMine,
            false => OnShelf::There(Note::new(format!("{} is ACTIVE", names.join(", ")))),
        })
    }
}

/// To look for a bundle in S3: objects, their versions, and the bucket, without which S3 does not tell what is gone from what
/// may not be seen.
#[cfg(feature = "s3")]
pub const LOOK_S3: &[Permission] = &[
    Permission::new("s3:GetObject", "look at a bundle"),
    Permission::new("s3:GetObjectVersion", "look at a version of a bundle"),
    Permission::new("s3:ListBucket", "be told that a bundle is gone"),
];

#[cfg(feature = "s3")]
#[async_trait]
impl Shelf for aws_sdk_s3::Client {
    /// S3 answers a HEAD without words, so its status has to say it.
    async fn look(&self, artefact: &Artefact) -> Result<OnShelf> {
        use aws_sdk_s3::operation::RequestId as _;
        use rollback_core::{Error, ErrorKind};

        let Some((bucket, key, version)) = artefact.s3_object() else { return Ok(OnShelf::NotMine) };
        let gone = |why: String| Ok(OnShelf::Gone(Note::new(why)));
        let call = self.head_object().bucket(bucket).key(key).set_version_id(version.map(Into::into));
        let found = match call.send().await {
            Ok(found) if found.request_id().is_some() => found,
            // Something between answers everything.
            Ok(_) => {
                let why = format!("the answer about s3://{bucket}/{key} is not S3's; a proxy may have given it");
                return Err(Error::new(ErrorKind::Internal, why));
            }
            Err(e) => {
                let raw = e.raw_response();
                let header = |name: &str| raw.and_then(|raw| raw.headers().get(name));
                // Without its id it is not S3 that answered, and nothing is known.
                let status =
                    raw.filter(|_| header("x-amz-request-id").is_some()).map_or(0, |raw| raw.status().as_u16());
                let here = self.config().region().map(|region| region.as_ref());
                let elsewhere = header("x-amz-bucket-region").filter(|region| Some(*region) != here);
                return match (status, elsewhere) {
                    (404, _) if header("x-amz-delete-marker").is_some() => {
                        gone("it was deleted from its bucket".into())
                    }
                    (404, _) if version.is_some() => gone("there is no such version of it, or no such bucket".into()),
                    (404, _) => gone("there is no such object, or no such bucket".into()),
                    (405, _) => gone("that version is the mark of its deletion".into()),
                    // A redirection, or a signature for the wrong region.
                    (301 | 307 | 400, Some(region)) => {
                        let why = format!("bucket {bucket} is in {region}; give a client of that region as the shelf");
                        Err(Error::new(ErrorKind::Unsupported, why))
                    }
                    (403, _) => Err(Error::new(
                        ErrorKind::Denied,
                        "S3 denies the look, which without s3:ListBucket is also its answer for what is gone; allow \
                         s3:GetObject, s3:GetObjectVersion and s3:ListBucket",
                    )),
                    _ => Err(crate::error::sorted(format_args!("looking at s3://{bucket}/{key}"), e)),
                };
            }
        };
        let bare = |tag: &str| tag.trim_matches('"').to_owned();
        if let (Some(meant), Some(is)) = (artefact.s3_e_tag().map(bare), found.e_tag().map(bare))
            && meant != is
        {
            return gone(format!("it was overwritten: its ETag is {is}, and {meant} is meant"));
        }
        // Restored copies are read as if nothing had been (API reference, HeadObject), for as long as there are any.
        let restored = found.restore().filter(|it| it.contains("ongoing-request=\"false\""));
        let class = found.storage_class().map(|it| it.as_str()).filter(|it| matches!(*it, "GLACIER" | "DEEP_ARCHIVE"));
        match (class.or_else(|| found.archive_status().map(|it| it.as_str())), restored) {
            (Some(class), None) => gone(format!("it is archived ({class}); restore it first")),
            (Some(class), Some(copy)) => Ok(OnShelf::Partly(
                Note::new(format!("s3://{bucket}/{key} is in S3")),
                Note::new(format!("that it stays: it is a copy of what is archived ({class}), and ends ({copy})")),
            )),
            (None, _) => Ok(OnShelf::There(Note::new(format!("s3://{bucket}/{key} is in S3")))),
        }
    }
}
