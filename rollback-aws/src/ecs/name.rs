//! Which service is meant, and which task definition.

use std::fmt;

use rollback_core::{Error, Result, model::RevisionId};

/// A service in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) cluster: String,
    pub(super) service: String,
    pub(super) region: String,
    pub(super) partition: &'static str,
    /// Known only of an ARN.
    account: Option<String>,
}

impl Name {
    /// `cluster/service`, or the ARN of one, in this region.
    pub(super) fn parse(text: &str, region: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!(
                "{text:?} names no ECS service: {why}; cluster/service is accepted, as shop/checkout, or its ARN"
            ))
        };
        let partition = crate::account::partition(region);
        let (path, account) = if text.starts_with("arn:") {
            let parts: Vec<&str> = text.splitn(6, ':').collect();
            let [_, named, "ecs", there, account, resource] = parts[..] else { return Err(bad("it is no ARN of ECS")) };
            if there != region || named != partition {
                let why = format!("it is in {there}, and the account was opened in {region}");
                return Err(bad(&format!("{why}; open the account in the service's region")));
            }
            let path = resource.strip_prefix("service/").ok_or_else(|| bad("it is the ARN of something else"))?;
            (path, Some(account.to_owned()))
        } else {
            (text, None)
        };
        let Some((cluster, service)) = path.split_once('/') else { return Err(bad("it names no cluster")) };
        for name in [cluster, service] {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 255 || !name.chars().all(good) {
                return Err(bad("a name has 1 to 255 letters, digits, - and _"));
            }
        }
        Ok(Self { cluster: cluster.into(), service: service.into(), region: region.into(), partition, account })
    }

    /// The ARNs of everything that calls about this service are about; with any account where none is known.
    pub(super) fn resources(&self) -> Vec<String> {
        let Self { cluster, service, region, partition, account } = self;
        let account = account.as_deref().unwrap_or("*");
        let of = |kind: &str, rest: &str| format!("arn:{partition}:ecs:{region}:{account}:{kind}/{cluster}{rest}");
        vec![
            of("service", &format!("/{service}")),
            of("service-deployment", &format!("/{service}/*")),
            of("service-revision", &format!("/{service}/*")),
            of("task", "/*"),
            format!("arn:{partition}:ecs:{region}:{account}:container-instance/{cluster}/*"),
        ]
    }

    /// The ARN of all task definitions where the service is.
    pub(super) fn task_definitions(&self) -> String {
        let Self { region, partition, account, .. } = self;
        format!("arn:{partition}:ecs:{region}:{}:task-definition/*", account.as_deref().unwrap_or("*"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.service)
    }
}

/// `family:revision`, of that or of an ARN.
pub(super) fn short(task_definition: &str) -> &str {
    task_definition.rsplit('/').next().unwrap_or(task_definition)
}

/// The task definition that a revision is, as `family:revision`.
pub(super) fn task_definition(id: &RevisionId) -> Result<&str> {
    let name = short(id.as_str());
    match name.split_once(':') {
        Some((family, revision))
            if !family.is_empty() && !revision.starts_with('0') && revision.parse::<u32>().is_ok() =>
        {
            Ok(name)
        }
        _ => Err(Error::invalid(format!(
            "{:?} is no revision of a task definition; family:revision is accepted, as checkout:42, or its ARN: a family \
             alone is whatever was registered last",
            id.as_str()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_with_its_cluster_or_by_its_arn_in_the_same_region() {
        let name = Name::parse("shop/checkout", "us-east-1").expect("a good name");
        assert_eq!(name.to_string(), "shop/checkout");
        let arn = "arn:aws:ecs:us-east-1:123456789012:service/shop/checkout";
        let of_arn = Name::parse(arn, "us-east-1").expect("a good ARN");
        assert_eq!((of_arn.to_string(), of_arn.resources()[0].as_str()), (name.to_string(), arn));
        for (text, words) in [
            ("checkout", "names no cluster"),
            ("shop/", "1 to 255"),
            ("shop/check out", "1 to 255"),
            ("arn:aws:ecs:eu-west-1:123456789012:service/shop/checkout", "in the service's region"),
            ("arn:aws:ecs:us-east-1:123456789012:service/checkout", "names no cluster"),
            ("arn:aws:ecs:us-east-1:123456789012:cluster/shop", "something else"),
            ("arn:aws:lambda:us-east-1:123456789012:function:checkout", "no ARN of ECS"),
        ] {
            let e = Name::parse(text, "us-east-1").expect_err(text).to_string();
            assert!(e.contains(words), "{e}");
        }
    }

    #[test]
    fn a_revision_is_a_numbered_task_definition() {
        let id = |text: &str| RevisionId::try_from(text).expect("printable");
        assert_eq!(task_definition(&id("checkout:42")).expect("good"), "checkout:42");
        let arn = id("arn:aws:ecs:us-east-1:123456789012:task-definition/checkout:42");
        assert_eq!(task_definition(&arn).expect("good"), "checkout:42");
        for bad in ["checkout", "checkout:latest", "checkout:007", ":3"] {
            assert!(task_definition(&id(bad)).is_err(), "{bad}");
        }
    }
}
