//! Rules of composite alarms: `ALARM("x") AND NOT (OK(y) OR INSUFFICIENT_DATA(z))`.

use super::State;

/// A parsed rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rule {
    Fixed(bool),
    Is(State, String),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

impl Rule {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim_start();
        let rule = or(&mut rest)?;
        rest.is_empty().then_some(rule)
    }

    /// Whether it holds, where alarms are in these states; one that is gone is in none.
    pub(super) fn holds(&self, state: &dyn Fn(&str) -> Option<State>) -> bool {
        match self {
            Self::Fixed(value) => *value,
            Self::Is(wanted, name) => state(name) == Some(*wanted),
            Self::Not(rule) => !rule.holds(state),
            Self::And(a, b) => a.holds(state) && b.holds(state),
            Self::Or(a, b) => a.holds(state) || b.holds(state),
        }
    }

    /// The alarms that it refers to, by name or ARN.
    pub(super) fn children(&self) -> Vec<&str> {
        match self {
            Self::Fixed(_) => Vec::new(),
            Self::Is(_, name) => vec![name],
            Self::Not(rule) => rule.children(),
            Self::And(a, b) | Self::Or(a, b) => [a.children(), b.children()].concat(),
        }
    }
}

fn or(rest: &mut &str) -> Option<Rule> {
    let mut left = and(rest)?;
    while eat(rest, "OR") {
        left = Rule::Or(Box::new(left), Box::new(and(rest)?));
    }
    Some(left)
}

fn and(rest: &mut &str) -> Option<Rule> {
    let mut left = not(rest)?;
    while eat(rest, "AND") {
        left = Rule::And(Box::new(left), Box::new(not(rest)?));
    }
    Some(left)
}

fn not(rest: &mut &str) -> Option<Rule> {
    if eat(rest, "NOT") {
        return Some(Rule::Not(Box::new(not(rest)?)));
    }
    if eat(rest, "(") {
        let inner = or(rest)?;
        return eat(rest, ")").then_some(inner);
    }
    if eat(rest, "TRUE") {
        return Some(Rule::Fixed(true));
    }
    if eat(rest, "FALSE") {
        return Some(Rule::Fixed(false));
    }
    for state in [State::InsufficientData, State::Alarm, State::Ok] {
        if eat(rest, state.name()) {
            return if eat(rest, "(") { Some(Rule::Is(state, name(rest)?)) } else { None };
        }
    }
    None
}

/// A name, quoted or not, and the parenthesis after it.
fn name(rest: &mut &str) -> Option<String> {
    let (name, after) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => rest.split_at(rest.find(')')?),
    };
    *rest = after.trim_start();
    let name = name.trim();
    (eat(rest, ")") && !name.is_empty()).then(|| name.to_owned())
}

fn eat(rest: &mut &str, word: &str) -> bool {
    let Some(after) = rest.strip_prefix(word) else { return false };
    if word.ends_with(char::is_alphabetic) && after.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
        return false;
    }
    *rest = after.trim_start();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_binds_closer_than_and_and_and_than_or() {
        let state = |name: &str| match name {
            "bad" => Some(State::Alarm),
            "good" => Some(State::Ok),
            _ => Some(State::InsufficientData),
        };
        for (rule, holds) in [
            (r#"ALARM("bad") AND NOT OK(good)"#, false),
            ("OK(good) OR ALARM(good) AND ALARM(good)", true),
            ("(OK(good) OR ALARM(good)) AND ALARM(good)", false),
            ("NOT ALARM(good) AND INSUFFICIENT_DATA(new)", true),
            ("TRUE AND NOT FALSE", true),
        ] {
            assert_eq!(Rule::parse(rule).expect("it parses").holds(&state), holds, "{rule}");
        }
        for odd in ["", "ALARM", "ALARM()", "ALARM(a) OK(b)", "alarm(a)", "ALARM(a) AND"] {
            assert_eq!(Rule::parse(odd), None, "{odd}");
        }
    }
}
