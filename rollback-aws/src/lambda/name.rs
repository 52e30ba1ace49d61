//! What an alias is called.

use std::fmt;

use rollback_core::{Error, Result};

use crate::account::partition;

/// A function and its alias, in one region.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) function: String,
    pub(super) alias: String,
    region: String,
    /// The account, where an ARN named it.
    account: Option<String>,
}

impl Name {
    /// `checkout:live`, or the alias's ARN, for a client of this region.
    pub(super) fn parse(given: &str, region: &str) -> Result<Self> {
        let (account, rest) = match given.strip_prefix("arn:") {
            Some(arn) => {
                let (account, rest) = of_arn(given, arn, region)?;
                (Some(account), rest)
            }
            None => (None, given),
        };
        let (function, alias) = rest
            .split_once(':')
            .ok_or_else(|| Error::invalid(format!("{given:?} names no alias; as in checkout:live is accepted")))?;
        let good = |text: &str, most| {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !text.is_empty() && text.len() <= most && text.chars().all(fits)
        };
        if !good(function, 64) {
            return Err(Error::invalid(format!(
                "{function:?} is no function's name; up to 64 letters, digits, - and _ are accepted"
            )));
        }
        if alias == super::LATEST || alias.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Error::invalid(format!(
                "{given:?} names a version; an alias is accepted, as in checkout:live"
            )));
        }
        if !good(alias, 128) {
            return Err(Error::invalid(format!(
                "{alias:?} is no alias's name; up to 128 letters, digits, - and _ are accepted"
            )));
        }
        Ok(Self { function: function.into(), alias: alias.into(), region: region.into(), account })
    }

    /// What requests call the function: by name, unless it may be of another account.
    pub(super) fn called(&self) -> String {
        match &self.account {
            Some(_) => self.arn(),
            None => self.function.clone(),
        }
    }

    /// What a policy names: the function, and its versions and aliases.
    pub(super) fn resources(&self) -> [String; 2] {
        [self.arn(), format!("{}:*", self.arn())]
    }

    fn arn(&self) -> String {
        let account = self.account.as_deref().unwrap_or("*");
        format!("arn:{}:lambda:{}:{account}:function:{}", partition(&self.region), self.region, self.function)
    }
}

/// The account, and what comes after `function:`.
fn of_arn<'a>(given: &str, arn: &'a str, ours: &str) -> Result<(String, &'a str)> {
    let mut words = arn.splitn(6, ':');
    let mut next = || words.next().unwrap_or_default();
    let (part, service, region, account, kind, rest) = (next(), next(), next(), next(), next(), next());
    if service != "lambda" || kind != "function" || account.is_empty() {
        return Err(Error::invalid(format!(
            "{given:?} is no alias's ARN; as in arn:aws:lambda:eu-west-1:123456789012:function:checkout:live is accepted"
        )));
    }
    if (part, region) != (partition(ours), ours) {
        return Err(Error::invalid(format!(
            "{given:?} is in region {region} of partition {part}, and the client in {ours} of {}; open an account in the \
             alias's region",
            partition(ours)
        )));
    }
    Ok((account.into(), rest))
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.function, self.alias)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} in {}", self.region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_named_shortly_or_by_its_arn() {
        let short = Name::parse("checkout:live", "eu-west-1").expect("a good name");
        assert_eq!((short.called(), short.to_string()), ("checkout".into(), "checkout:live".into()));
        let arn = "arn:aws:lambda:eu-west-1:123456789012:function:checkout";
        let long = Name::parse(&format!("{arn}:live"), "eu-west-1").expect("a good ARN");
        assert_eq!((long.called(), long.alias.as_str()), (arn.into(), "live"));
        assert_eq!(long.resources(), [arn.to_owned(), format!("{arn}:*")]);
    }

    #[test]
    fn what_is_no_alias_of_this_region_is_refused_with_what_would_do() {
        for (given, words) in [
            ("checkout", "names no alias"),
            ("checkout:42", "names a version"),
            ("checkout:$LATEST", "names a version"),
            ("check out:live", "is no function's name"),
            ("checkout:li/ve", "is no alias's name"),
            (":live", "is no function's name"),
            ("checkout:", "names a version"),
            ("arn:aws:s3:::bucket", "is no alias's ARN"),
            ("arn:aws:lambda:us-east-1:123456789012:function:checkout:live", "open an account in the alias's region"),
            ("arn:aws-cn:lambda:eu-west-1:123456789012:function:checkout:live", "partition aws-cn"),
            ("arn:aws:lambda:eu-west-1:123456789012:function:checkout", "names no alias"),
        ] {
            let refused = Name::parse(given, "eu-west-1").expect_err(given).to_string();
            assert!(refused.contains(words), "{given}: {refused}");
        }
    }
}
