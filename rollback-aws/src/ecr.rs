//! Images in ECR: whether those that a task definition names are still there.
//!
//! A task definition holds names. Lifecycle policies and people delete images that old revisions still name, or move them to
//! the archive, and nobody notices before a rollback cannot pull. So preflight looks: that of
//! [`ecs::Service`](crate::ecs::Service::images), and that of a CodeDeploy group that has [`Images`] as a shelf.
//!
//! An image that a pull-through cache would fetch at the first pull is not there before that, and is told as gone.

use std::collections::BTreeSet;

use aws_sdk_ecr::{
    Client,
    types::{ImageDetail, ImageIdentifier, ImageStatus},
};
use aws_sdk_ecs::types::TaskDefinition;

use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// To see whether images are still there.
pub const GET_IMAGES: Permission = Permission::new("ecr:DescribeImages", "see whether images are still there");

/// The images of one region's registries, as far as the account may look into them.
#[derive(Clone, Debug)]
pub struct Images {
    client: Client,
    #[cfg(feature = "codedeploy")]
    ecs: aws_sdk_ecs::Client,
}

/// What a look at the images of a task definition found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// These are there.
    pub(crate) there: Vec<String>,
    /// Why it cannot be pulled, of each that cannot.
    pub(crate) gone: Vec<String>,
    /// What could not be seen, and why.
    pub(crate) unseen: Vec<String>,
}

/// A name of an image in ECR.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    registry: &'a str,
    region: &'a str,
    repository: &'a str,
    digest: Option<&'a str>,
    tag: Option<&'a str>,
}

impl Images {
    /// Those of the account's region.
    pub fn new(account: &Account) -> Self {
        Self {
            client: account.ecr(),
            #[cfg(feature = "codedeploy")]
            ecs: account.ecs(),
        }
    }

    /// The least that [`ecs::Service::images`](crate::ecs::Service::images) and a shelf of these need, on `*`: a task definition
    /// may name images of any repository.
    pub fn policy() -> Policy {
        Policy::new().allow(&[GET_IMAGES, crate::ecs::GET_TASK_DEFINITION], ["*"])
    }

    /// Looks at each image that a task definition names. What cannot be seen is told, not failed for.
    pub(crate) async fn of(&self, definition: &TaskDefinition) -> Found {
        let mut found = Found::default();
        let images: BTreeSet<&str> = definition.container_definitions().iter().filter_map(|it| it.image()).collect();
        for image in images {
            self.look(image, &mut found).await;
        }
        found
    }

    async fn look(&self, image: &str, found: &mut Found) {
        let region = self.client.config().region().map_or("", |region| region.as_ref());
        let Some(name) = Name::parse(image).filter(|name| name.region == region) else {
            found.unseen.push(format!("that image {image} can be pulled: it is not in ECR in {region}"));
            return;
        };
        let mut id = ImageIdentifier::builder().set_image_digest(name.digest.map(Into::into));
        // A digest says all, and the tag beside it may have moved on.
        if name.digest.is_none() {
            id = id.image_tag(name.tag.unwrap_or("latest"));
        }
        let call = self.client.describe_images().registry_id(name.registry).repository_name(name.repository);
        match call.image_ids(id.build()).send().await {
            Ok(answer) if answer.image_details().is_empty() => {
                found.unseen.push(format!("that image {image} can be pulled: the answer tells of none"));
            }
            Ok(answer) if !answer.image_details().iter().all(is_active) => {
                found.gone.push(format!("image {image} is in ECR's archive; restore it first"));
            }
            Ok(_) => {
                found.there.push(image.into());
                if name.digest.is_none() {
                    found.unseen.push(format!(
                        "that image {image} is what it was: a tag can be moved, unless the repository forbids it; a digest \
                         cannot"
                    ));
                }
            }
            Err(e)
                if e.as_service_error()
                    .is_some_and(|e| e.is_image_not_found_exception() || e.is_repository_not_found_exception()) =>
            {
                found.gone.push(format!("there is no image {image} in ECR"));
            }
            Err(e) => {
                let e = sorted(format_args!("looking for image {image}"), e);
                found.unseen.push(format!("that image {image} can be pulled: {}", e.chain()));
            }
        }
    }
}

/// Whether it can be pulled: what is archived, or not yet back from there, cannot.
fn is_active(image: &ImageDetail) -> bool {
    matches!(image.image_status(), None | Some(ImageStatus::Active))
}

impl<'a> Name<'a> {
    /// `123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop/web:1.4.2`, also by digest; FIPS and dual-stack names of the
    /// registry too (<https://docs.aws.amazon.com/general/latest/gr/ecr.html>).
    fn parse(image: &'a str) -> Option<Self> {
        let (host, path) = image.split_once('/')?;
        let mut words = host.split('.');
        let registry = words.next().filter(|it| it.len() == 12 && it.chars().all(|c| c.is_ascii_digit()))?;
        let region = match words.next()? {
            "dkr" => words.next().filter(|it| matches!(*it, "ecr" | "ecr-fips")).and_then(|_| words.next())?,
            "dkr-ecr" | "dkr-ecr-fips" => words.next()?,
            _ => return None,
        };
        let (path, digest) = path.split_once('@').map_or((path, None), |(path, digest)| (path, Some(digest)));
        let (repository, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        Some(Self { registry, region, repository, digest, tag })
    }
}

#[cfg(feature = "codedeploy")]
#[async_trait::async_trait]
impl crate::codedeploy::Shelf for Images {
    async fn look(&self, artefact: &crate::codedeploy::Artefact) -> rollback_core::Result<crate::codedeploy::OnShelf> {
        use crate::{codedeploy::OnShelf, ecs::definition};
        use rollback_core::{Error, ErrorKind};

        let (mut there, mut unseen) = (Vec::new(), Vec::new());
        let names = artefact.task_definitions();
        for name in &names {
            let found = definition::read(&self.ecs, name).await?;
            let Some((definition, _)) = found else {
                return Ok(OnShelf::Gone(definition::unfit(name, None).expect("there is none")));
            };
            let found = self.of(&definition).await;
            if !found.gone.is_empty() {
                return Ok(OnShelf::Gone(found.gone.join("; ").into()));
            }
            there.extend(found.there);
            unseen.extend(found.unseen);
        }
        let (seen, unseen) = (format!("{} is in ECR", there.join(", ")), unseen.join("; "));
        match (there.is_empty(), unseen.is_empty()) {
            (false, true) => Ok(OnShelf::There(seen.into())),
            (false, false) => Ok(OnShelf::Partly(seen.into(), unseen.into())),
            (true, false) => Err(Error::new(ErrorKind::Unsupported, unseen)),
            (true, true) => Ok(OnShelf::NotMine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_in_ecr_by_each_of_its_names_and_nowhere_else() {
        let of = |image: &'static str| {
            Name::parse(image).map(|it| (it.registry, it.region, it.repository, it.digest, it.tag))
        };
        let (registry, region) = ("123456789012", "eu-west-1");
        for (image, repository, digest, tag) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop:1.4", "shop", None, Some("1.4")),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn/a/b", "a/b", None, None),
            ("123456789012.dkr.ecr-fips.eu-west-1.amazonaws.com/shop@sha256:0a", "shop", Some("sha256:0a"), None),
            ("123456789012.dkr-ecr.eu-west-1.on.aws/shop:1@sha256:0a", "shop", Some("sha256:0a"), Some("1")),
        ] {
            assert_eq!(of(image), Some((registry, region, repository, digest, tag)), "{image}");
        }
        for image in
            ["nginx", "library/nginx:1", "public.ecr.aws/nginx/nginx:1", "12.dkr.ecr.eu-west-1.amazonaws.com/a"]
        {
            assert_eq!(of(image), None, "{image}");
        }
    }
}
