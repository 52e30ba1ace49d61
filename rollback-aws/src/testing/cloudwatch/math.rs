//! Metric math, as far as alarms need it: arithmetic, comparisons, `AND`, `OR`, `IF` and `FILL` over metrics of one period.
//!
//! A metric without a value in a period counts as 0, and a division by zero gives no point (AWS's user guide, "Using metric
//! math").

use std::collections::BTreeMap;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Number(f64),
    Metric(String),
    Fill(String, f64),
    Negative(Box<Self>),
    Binary(Operator, Box<Self>, Box<Self>),
    If(Box<Self>, Box<Self>, Option<Box<Self>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    AtMost,
    AtLeast,
    Less,
    More,
    Plus,
    Minus,
    Times,
    Over,
}

/// Weakest first; the longer spelling before the shorter.
const LEVELS: [&[(&str, Operator)]; 5] = [
    &[("||", Operator::Or), ("OR", Operator::Or)],
    &[("&&", Operator::And), ("AND", Operator::And)],
    &[
        ("==", Operator::Equal),
        ("!=", Operator::Unequal),
        ("<=", Operator::AtMost),
        (">=", Operator::AtLeast),
        ("<", Operator::Less),
        (">", Operator::More),
    ],
    &[("+", Operator::Plus), ("-", Operator::Minus)],
    &[("*", Operator::Times), ("/", Operator::Over)],
];

impl Expression {
    /// `None` where it is none, or uses a function that is not simulated.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parser = Parser { rest: text.trim_start() };
        let whole = parser.level(0)?;
        parser.rest.is_empty().then_some(whole)
    }

    /// The ids that it refers to.
    pub(super) fn metrics(&self) -> Vec<&str> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Metric(id) | Self::Fill(id, _) => vec![id],
            Self::Negative(one) => one.metrics(),
            Self::Binary(_, a, b) => [a.metrics(), b.metrics()].concat(),
            Self::If(a, b, c) => {
                [a.metrics(), b.metrics(), c.as_ref().map(|c| c.metrics()).unwrap_or_default()].concat()
            }
        }
    }

    /// Its value in one period, of the values that its metrics have there. `None` is no point.
    pub(super) fn value(&self, values: &BTreeMap<&str, f64>) -> Option<f64> {
        // A FILL makes points where there is no data at all, which is its trap in alarms.
        let any = self.metrics().iter().any(|id| values.contains_key(id)) || self.fills() || self.metrics().is_empty();
        if any { self.of(values).filter(|value| value.is_finite()) } else { None }
    }

    fn fills(&self) -> bool {
        match self {
            Self::Fill(..) => true,
            Self::Number(_) | Self::Metric(_) => false,
            Self::Negative(one) => one.fills(),
            Self::Binary(_, a, b) => a.fills() || b.fills(),
            Self::If(a, b, c) => a.fills() || b.fills() || c.as_ref().is_some_and(|c| c.fills()),
        }
    }

    fn of(&self, values: &BTreeMap<&str, f64>) -> Option<f64> {
        let truth = |yes: bool| Some(f64::from(u8::from(yes)));
        match self {
            Self::Number(number) => Some(*number),
            Self::Metric(id) => Some(values.get(id.as_str()).copied().unwrap_or(0.0)),
            Self::Fill(id, other) => Some(values.get(id.as_str()).copied().unwrap_or(*other)),
            Self::Negative(one) => Some(-one.of(values)?),
            Self::If(condition, then, otherwise) => {
                if condition.of(values)? != 0.0 {
                    then.of(values)
                } else {
                    otherwise.as_ref()?.of(values)
                }
            }
            Self::Binary(operator, a, b) => {
                let (a, b) = (a.of(values)?, b.of(values)?);
                match operator {
                    Operator::Or => truth(a != 0.0 || b != 0.0),
                    Operator::And => truth(a != 0.0 && b != 0.0),
                    Operator::Equal => truth(a == b),
                    Operator::Unequal => truth(a != b),
                    Operator::AtMost => truth(a <= b),
                    Operator::AtLeast => truth(a >= b),
                    Operator::Less => truth(a < b),
                    Operator::More => truth(a > b),
                    Operator::Plus => Some(a + b),
                    Operator::Minus => Some(a - b),
                    Operator::Times => Some(a * b),
                    Operator::Over => (b != 0.0).then(|| a / b),
                }
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, word: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(word) else { return false };
        let is_word = word.ends_with(char::is_alphabetic);
        if is_word && rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return false;
        }
        self.rest = rest.trim_start();
        true
    }

    fn level(&mut self, at: usize) -> Option<Expression> {
        let Some(operators) = LEVELS.get(at) else { return self.single() };
        let mut left = self.level(at + 1)?;
        'more: loop {
            for (word, operator) in *operators {
                if self.eat(word) {
                    let right = self.level(at + 1)?;
                    left = Expression::Binary(*operator, Box::new(left), Box::new(right));
                    continue 'more;
                }
            }
            return Some(left);
        }
    }

    fn single(&mut self) -> Option<Expression> {
        if self.eat("-") {
            return Some(Expression::Negative(Box::new(self.single()?)));
        }
        if self.eat("(") {
            let inner = self.level(0)?;
            return self.eat(")").then_some(inner);
        }
        if self.eat("IF") {
            let condition = if self.eat("(") { Box::new(self.level(0)?) } else { return None };
            let then = if self.eat(",") { Box::new(self.level(0)?) } else { return None };
            let otherwise = if self.eat(",") { Some(Box::new(self.level(0)?)) } else { None };
            return self.eat(")").then_some(Expression::If(condition, then, otherwise));
        }
        if self.eat("FILL") {
            let id = if self.eat("(") { self.word()? } else { return None };
            let number = if self.eat(",") { self.word()?.parse().ok()? } else { return None };
            return self.eat(")").then_some(Expression::Fill(id, number));
        }
        let word = self.word()?;
        if let Ok(number) = word.parse() {
            return Some(Expression::Number(number));
        }
        // Ids begin with a small letter (PutMetricAlarm, MetricDataQuery.Id); everything else is a function.
        word.starts_with(|c: char| c.is_ascii_lowercase()).then_some(Expression::Metric(word))
    }

    fn word(&mut self) -> Option<String> {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(self.rest.len());
        let word = self.rest.get(..end).filter(|word| !word.is_empty())?.to_owned();
        self.rest = self.rest[end..].trim_start();
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, values: &[(&'static str, f64)]) -> Option<f64> {
        Expression::parse(text).expect("it parses").value(&values.iter().copied().collect())
    }

    #[test]
    fn a_rate_under_its_floor_is_zero_and_without_data_is_no_point() {
        let rate = "IF(req >= 20, 100 * e5 / req, 0)";
        assert_eq!(value(rate, &[("req", 100.0), ("e5", 3.0)]), Some(3.0));
        assert_eq!(value(rate, &[("req", 19.0), ("e5", 19.0)]), Some(0.0));
        assert_eq!(value(rate, &[("req", 100.0)]), Some(0.0), "no errors were reported");
        assert_eq!(value(rate, &[]), None);
        assert_eq!(value("IF(req + elb >= 20, 100 * (elb + tgt) / (req + elb), 0)", &[("elb", 20.0)]), Some(100.0));
    }

    #[test]
    fn a_division_by_zero_is_no_point_and_filling_makes_one_of_nothing() {
        assert_eq!(value("a / b", &[("a", 1.0)]), None);
        assert_eq!(value("FILL(a, 7)", &[]), Some(7.0));
        assert_eq!(value("-a + 2 * 3", &[("a", 1.0)]), Some(5.0));
    }

    #[test]
    fn what_is_not_simulated_does_not_parse() {
        for odd in ["", "a +", "IF(a)", "ANOMALY_DETECTION_BAND(a, 2)", "a b", "(a"] {
            assert_eq!(Expression::parse(odd), None, "{odd}");
        }
    }
}
