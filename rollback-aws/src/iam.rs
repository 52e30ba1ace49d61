//! What a module needs to be allowed, as one list: preflight proves it, and the minimal policy is printed from it.

use std::fmt;

use rollback_core::{Error, ErrorKind, Result, backend::Readiness};
use serde_json::json;

/// One action of AWS that a module calls, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// As a policy names it: `lambda:UpdateAlias`.
    pub action: &'static str,
    /// What it is for, as in "move the alias".
    pub why: &'static str,
}

impl Permission {
    /// This action, for this.
    pub const fn new(action: &'static str, why: &'static str) -> Self {
        Self { action, why }
    }

    /// Takes down in `ready` what the answer to a call shows of this permission: proved by an answer, refused, naming the
    /// action, by a denial.
    ///
    /// Returns the answer; none after a denial.
    ///
    /// # Errors
    /// Any error that is no denial of this action: credentials that have expired deny everything and prove nothing.
    pub fn prove<T>(&self, ready: &mut Readiness, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => {
                ready.proved.push(format!("may {} ({})", self.why, self.action).into());
                Ok(Some(answer))
            }
            Err(e) if self.is_denied_by(&e) => {
                let why = format!("may not {}: {}; allow {} to this caller", self.why, e.chain(), self.action);
                ready.refused.push(why.into());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn is_denied_by(&self, e: &Error) -> bool {
        e.kind() == ErrorKind::Denied && e.chain().contains(self.action)
    }
}

/// A policy that allows some permissions on some resources and nothing else. `Display` prints it as IAM takes it.
///
/// ```
/// use rollback_aws::iam::{Permission, Policy};
///
/// const LOOK: Permission = Permission::new("cloudwatch:DescribeAlarms", "see alarms");
/// let policy = Policy::new().allow(&[LOOK], ["*"]);
/// assert!(policy.to_string().contains(r#""Action": ["#), "{policy}");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    statements: Vec<(Vec<&'static str>, Vec<String>)>,
}

impl Policy {
    /// A policy that allows nothing.
    pub const fn new() -> Self {
        Self { statements: Vec::new() }
    }

    /// With these permissions on these resources: ARNs, or `*`.
    #[must_use]
    pub fn allow(mut self, permissions: &[Permission], on: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let actions = permissions.iter().map(|permission| permission.action);
        let on: Vec<String> = on.into_iter().map(Into::into).collect();
        match self.statements.iter_mut().find(|(_, resources)| *resources == on) {
            Some((known, _)) => known.extend(actions),
            None => self.statements.push((actions.collect(), on)),
        }
        for (actions, _) in &mut self.statements {
            actions.sort_unstable();
            actions.dedup();
        }
        self
    }

    /// This and that, for one role that does both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        for (actions, on) in other.statements {
            let permissions: Vec<Permission> = actions.into_iter().map(|action| Permission::new(action, "")).collect();
            self = self.allow(&permissions, on);
        }
        self
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statements =
            self.statements.iter().map(|(actions, on)| json!({ "Effect": "Allow", "Action": actions, "Resource": on }));
        let policy = json!({ "Version": "2012-10-17", "Statement": statements.collect::<Vec<_>>() });
        write!(f, "{policy:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Permission = Permission::new("lambda:GetAlias", "look");
    const MOVE: Permission = Permission::new("lambda:UpdateAlias", "move");

    #[test]
    fn one_resource_is_one_statement_and_nothing_is_said_twice() {
        let policy = Policy::new().allow(&[MOVE], ["arn:a"]).and(Policy::new().allow(&[LOOK, MOVE], ["arn:a"]));
        let read: serde_json::Value = serde_json::from_str(&policy.to_string()).expect("JSON");
        let statement = json!([{
            "Effect": "Allow", "Action": ["lambda:GetAlias", "lambda:UpdateAlias"], "Resource": ["arn:a"],
        }]);
        assert_eq!(read["Statement"], statement);
    }

    #[test]
    fn a_denial_of_the_action_refuses_and_of_everything_is_an_error() {
        let mut ready = Readiness::default();
        let denied = Error::new(ErrorKind::Denied, "x: the caller lacks the permission lambda:UpdateAlias");
        assert_eq!(MOVE.prove(&mut ready, Err::<(), _>(denied)).expect("it is a finding"), None);
        assert!(ready.refused[0].as_str().contains("allow lambda:UpdateAlias"), "{ready:?}");
        let expired = Error::new(ErrorKind::Denied, "x: the credentials have expired");
        assert!(MOVE.prove(&mut ready, Err::<(), _>(expired)).is_err());
    }
}
