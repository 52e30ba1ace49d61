//! Queries with placeholders, and what can be read off their text. Pure.

use std::{fmt, time::Duration};

use crate::error::{Error, Result};

/// A query with placeholders; see [`Prometheus`](super::Prometheus) for what they mean.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(Name, Form),
    Window,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Candidate,
    Baseline,
    Target,
}

/// How a name is written: as text, or as an expression that matches this text alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Regex,
}

/// What placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    pub(super) candidate: &'a str,
    pub(super) baseline: &'a str,
    pub(super) target: &'a str,
    pub(super) window: Duration,
}

impl Names<'_> {
    /// The same, asked about the baseline in the candidate's place.
    pub(super) const fn of_the_baseline(self) -> Self {
        Self { candidate: self.baseline, ..self }
    }
}

impl Template {
    /// # Errors
    /// `Invalid` when it is empty or has an unknown placeholder.
    pub(super) fn new(text: &str) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("{{") {
            let Some(end) = rest[at..].find("}}") else {
                return Err(Error::invalid(format!("the query {text:?} has a {{{{ without }}}}")));
            };
            let name = &rest[at + 2..at + end];
            if at > 0 {
                pieces.push(Piece::Text(rest[..at].to_owned()));
            }
            pieces.push(match name.trim() {
                "candidate" => Piece::Name(Name::Candidate, Form::Text),
                "baseline" => Piece::Name(Name::Baseline, Form::Text),
                "target" => Piece::Name(Name::Target, Form::Text),
                "candidate.regex" => Piece::Name(Name::Candidate, Form::Regex),
                "baseline.regex" => Piece::Name(Name::Baseline, Form::Regex),
                "target.regex" => Piece::Name(Name::Target, Form::Regex),
                "window" => Piece::Window,
                _ => {
                    return Err(Error::invalid(format!(
                        "the query {text:?} has the placeholder {{{{{name}}}}}; candidate, baseline, target, each also \
                         with .regex, and window are accepted"
                    )));
                }
            });
            rest = &rest[at + end + 2..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        if text.trim().is_empty() {
            return Err(Error::invalid("the query is empty"));
        }
        Ok(Self(pieces))
    }

    pub(super) fn render(&self, names: &Names<'_>) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Window => text.push_str(&format!("{}s", names.window.as_secs().max(1))),
                Piece::Name(name, form) => {
                    let name = match name {
                        Name::Candidate => names.candidate,
                        Name::Baseline => names.baseline,
                        Name::Target => names.target,
                    };
                    text.push_str(&match form {
                        Form::Text => escaped(name),
                        Form::Regex => escaped(&literal(name)),
                    });
                }
            }
        }
        text
    }

    /// Whether it asks about the candidate at all.
    pub(super) fn names_the_candidate(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Name(Name::Candidate, _)))
    }

    /// The query as it was written.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Window => text.push_str("{{window}}"),
                Piece::Name(name, form) => {
                    let name = match name {
                        Name::Candidate => "candidate",
                        Name::Baseline => "baseline",
                        Name::Target => "target",
                    };
                    let form = if *form == Form::Regex { ".regex" } else { "" };
                    text.push_str(&format!("{{{{{name}{form}}}}}"));
                }
            }
        }
        text
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text(), f)
    }
}

/// Text as the inside of a PromQL string in double or single quotes. Quotes are written by their number, because `\'` is
/// an error within `"`, and so are backticks, which know no escapes: within them such a name matches nothing.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str(r"\\"),
            '"' | '\'' | '`' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            // Not the beginning of a placeholder, wherever the text is parsed again.
            '{' | '}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// An expression of RE2 that matches this text alone.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// One thing in a query. Strings are skipped: nothing in them is a name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Number,
    Mark(char),
}

fn tokens(query: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut chars = query.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let mut upto = |keep: fn(char) -> bool| {
            let mut end = at + c.len_utf8();
            while let Some((next, c)) = chars.next_if(|(_, c)| keep(*c)) {
                end = next + c.len_utf8();
            }
            &query[at..end]
        };
        match c {
            '"' | '\'' | '`' => {
                while let Some((_, next)) = chars.next() {
                    if next == '\\' && c != '`' {
                        chars.next();
                    } else if next == c {
                        break;
                    }
                }
            }
            '#' => drop(upto(|c| c != '\n')),
            c if c.is_ascii_digit() => {
                upto(|c| c.is_ascii_alphanumeric() || c == '.');
                found.push(Token::Number);
            }
            c if c.is_ascii_alphabetic() || c == '_' || c == ':' => {
                found.push(Token::Word(upto(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')));
            }
            c if c.is_whitespace() => {}
            c => found.push(Token::Mark(c)),
        }
    }
    found
}

/// The metrics that a query names, in order, each once. What is named by `{__name__=…}` is not seen.
pub(super) fn metrics(query: &str) -> Vec<&str> {
    let tokens = tokens(query);
    let mut found: Vec<&str> = Vec::new();
    // Depth of braces and brackets, and whether we are within the labels after `by` and its kin.
    let (mut braces, mut labels) = (0u32, false);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Mark('{' | '[') => braces += 1,
            Token::Mark('}' | ']') => braces = braces.saturating_sub(1),
            Token::Mark(')') => labels = false,
            Token::Word(word) if braces == 0 && !labels => {
                let called = tokens.get(at + 1) == Some(&Token::Mark('('));
                let low = word.to_ascii_lowercase();
                if LABELS_FOLLOW.contains(&low.as_str()) {
                    labels = called;
                } else if !called && !KEYWORDS.contains(&low.as_str()) && !found.contains(word) {
                    // An aggregation may have its labels first: `sum by (le) (x)`.
                    let aggregates = matches!(tokens.get(at + 1), Some(Token::Word(next))
                        if ["by", "without"].contains(&next.to_ascii_lowercase().as_str()));
                    if !aggregates {
                        found.push(word);
                    }
                }
            }
            Token::Mark(_) | Token::Word(_) | Token::Number => {}
        }
    }
    found
}

/// Whether this is a selector and nothing more: a name, labels in braces, or both.
pub(super) fn is_selector(query: &str) -> bool {
    let tokens = tokens(query);
    let rest = match tokens.as_slice() {
        [Token::Word(_), rest @ ..] => rest,
        rest => rest,
    };
    match rest {
        [] => tokens.len() == 1,
        [Token::Mark('{'), inside @ .., Token::Mark('}')] => {
            inside.iter().all(|token| matches!(token, Token::Word(_) | Token::Mark('=' | '!' | '~' | ',')))
        }
        _ => false,
    }
}

/// The longest range that a query looks back over: the duration before `]`, or before `:` in a subquery.
pub(super) fn longest_range(query: &str) -> Option<Duration> {
    let mut rest = query;
    let mut longest = None;
    while let Some(open) = rest.find('[') {
        rest = &rest[open + 1..];
        let end = rest.find([']', ':']).unwrap_or(rest.len());
        longest = longest.max(duration(rest[..end].trim()));
    }
    longest
}

/// A duration as Prometheus writes it: `5m`, `1h30m`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(24 * 3600),
            "w" => Duration::from_secs(7 * 24 * 3600),
            "y" => Duration::from_secs(365 * 24 * 3600),
            _ => return None,
        };
        sum = sum.checked_add(one.checked_mul(number)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(sum)
}

/// Which series of a metric: its name, what their labels must be, and which of them are told apart.
///
/// Values may hold placeholders, as `{{target}}`.
///
/// ```
/// # use rollback_core::gate::prometheus::{Matcher, Selector};
/// let requests = Selector::new("http_requests_total")?
///     .with(Matcher::is("job", "{{target}}")?)
///     .revision("version")?
///     .by("route")?;
/// assert_eq!(requests.to_string(), r#"http_requests_total{job="{{target}}",version="{{candidate}}"}"#);
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    metric: String,
    matchers: Vec<Matcher>,
    by: Vec<String>,
}

impl Selector {
    /// All series of a metric.
    ///
    /// # Errors
    /// `Invalid` when this is not a metric's name.
    pub fn new(metric: impl Into<String>) -> Result<Self> {
        let metric = metric.into();
        check_name("a metric", &metric, true)?;
        Ok(Self { metric, matchers: Vec::new(), by: Vec::new() })
    }

    /// Of them those that match.
    #[must_use]
    pub fn with(mut self, matcher: Matcher) -> Self {
        self.matchers.push(matcher);
        self
    }

    /// Of them those of the candidate: whose label of this name is its id.
    ///
    /// # Errors
    /// `Invalid` when this is not a label's name.
    pub fn revision(self, label: &str) -> Result<Self> {
        Ok(self.with(Matcher::is(label, "{{candidate}}")?))
    }

    /// Told apart by this label, so that one broken route is not averaged away. May be called again.
    ///
    /// # Errors
    /// `Invalid` when this is not a label's name.
    pub fn by(mut self, label: &str) -> Result<Self> {
        check_name("a label", label, false)?;
        self.by.push(label.to_owned());
        Ok(self)
    }

    pub(super) fn metric(&self) -> &str {
        &self.metric
    }

    #[cfg(feature = "compare")]
    pub(super) fn labels(&self) -> &[String] {
        &self.by
    }

    /// The same series of `metric_suffix`.
    pub(super) fn suffixed(&self, suffix: &str) -> Self {
        Self { metric: format!("{}{suffix}", self.metric), ..self.clone() }
    }

    /// ` by (route, code)`, or nothing.
    pub(super) fn grouping(&self, and: &[&str]) -> String {
        let labels: Vec<&str> = and.iter().copied().chain(self.by.iter().map(String::as_str)).collect();
        if labels.is_empty() { String::new() } else { format!(" by ({})", labels.join(", ")) }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.metric)?;
        if self.matchers.is_empty() {
            return Ok(());
        }
        let matchers: Vec<String> = self.matchers.iter().map(Matcher::to_string).collect();
        write!(f, "{{{}}}", matchers.join(","))
    }
}

/// What one label must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    label: String,
    operator: &'static str,
    value: Template,
}

impl Matcher {
    /// The label has this value.
    ///
    /// # Errors
    /// `Invalid` when this is not a label's name, or the value has an unknown placeholder.
    pub fn is(label: &str, value: &str) -> Result<Self> {
        Self::new(label, "=", value)
    }

    /// The label has another value, or is not there.
    ///
    /// # Errors
    /// As [`Self::is`].
    pub fn is_not(label: &str, value: &str) -> Result<Self> {
        Self::new(label, "!=", value)
    }

    /// The whole of the label matches this expression of RE2, as `5..`.
    ///
    /// # Errors
    /// As [`Self::is`].
    pub fn matches(label: &str, expression: &str) -> Result<Self> {
        Self::new(label, "=~", expression)
    }

    /// It does not.
    ///
    /// # Errors
    /// As [`Self::is`].
    pub fn matches_not(label: &str, expression: &str) -> Result<Self> {
        Self::new(label, "!~", expression)
    }

    fn new(label: &str, operator: &'static str, value: &str) -> Result<Self> {
        check_name("a label", label, false)?;
        let value = if value.is_empty() { Template(Vec::new()) } else { Template::new(value)? };
        let pieces = value.0.into_iter().map(|piece| match piece {
            // A name within an expression stands for itself.
            Piece::Name(name, _) if operator.ends_with('~') => Piece::Name(name, Form::Regex),
            piece => piece,
        });
        Ok(Self { label: label.to_owned(), operator, value: Template(pieces.collect()) })
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = self.value.0.iter().map(|piece| match piece {
            Piece::Text(text) => Piece::Text(escaped(text)),
            piece => piece.clone(),
        });
        let value = Template(pieces.collect()).text();
        write!(f, "{}{}\"{value}\"", self.label, self.operator)
    }
}

fn check_name(what: &str, name: &str, colons: bool) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits) {
        return Err(Error::invalid(format!("{name:?} is not the name of {what}; letters, digits and _ are accepted")));
    }
    Ok(())
}

const LABELS_FOLLOW: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

const KEYWORDS: [&str; 11] = ["and", "or", "unless", "atan2", "bool", "offset", "start", "end", "inf", "nan", "@"];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(candidate: &str) -> Names<'_> {
        Names { candidate, baseline: "v1", target: "checkout", window: Duration::from_secs(90) }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let query =
            Template::new(r#"sum(rate(x{app="{{target}}",v!="{{ baseline }}",w="{{candidate}}"}[{{window}}]))"#);
        let rendered = query.unwrap().render(&names("v2"));
        assert_eq!(rendered, r#"sum(rate(x{app="checkout",v!="v1",w="v2"}[90s]))"#);
    }

    #[test]
    fn a_name_cannot_leave_its_string() {
        for quote in ['"', '\''] {
            let query = Template::new(&format!("x{{v={quote}{{{{candidate}}}}{quote}}}")).unwrap();
            let rendered = query.render(&names(r#"a"} or up{b='c' \ `d`{{target}}"#));
            let inside = &rendered[5..rendered.len() - 2];
            assert!(!inside.contains(['"', '\'', '`', '{']), "{rendered}");
            assert!(inside.contains(r" \\ "), "{rendered}");
        }
    }

    #[test]
    fn a_name_in_an_expression_matches_itself_alone() {
        let query = Template::new(r#"x{v=~"{{candidate.regex}}-.*"}"#).unwrap();
        assert_eq!(query.render(&names("1.2+3")), r#"x{v=~"1\\.2\\+3-.*"}"#);
        let matcher = Matcher::matches("v", "{{candidate}}-.*").unwrap();
        assert_eq!(matcher.to_string(), r#"v=~"{{candidate.regex}}-.*""#);
    }

    #[test]
    fn an_unknown_placeholder_is_refused() {
        assert!(Template::new("x{v=\"{{revision}}\"}").unwrap_err().to_string().contains("{{revision}}"));
        assert!(Template::new("x{v=\"{{candidate\"}").is_err());
        assert!(Template::new("  ").is_err());
    }

    #[test]
    fn metrics_are_told_from_functions_labels_and_words() {
        for (query, expected) in [
            ("up", vec!["up"]),
            (
                r#"sum(rate(a_total{code=~"5..",b="c(d"}[5m])) by (route) / sum by (route) (rate(a_total[5m]))"#,
                vec!["a_total"],
            ),
            ("histogram_quantile(0.99, sum(rate(x_bucket[1m])) by (le)) > bool 1e3", vec!["x_bucket"]),
            ("a:b:c * on (x) group_left (y) z offset 5m or vector(1) == NaN", vec!["a:b:c", "z"]),
            (
                r#"label_replace(up{a='it\'s "x" y'}, "dst", "$1", "src", "(.*)") unless down # and more"#,
                vec!["up", "down"],
            ),
            (r#"{__name__="x"}"#, vec![]),
            ("max_over_time(rate(q[1m])[10m:30s])", vec!["q"]),
            ("x @ end() - y", vec!["x", "y"]),
        ] {
            assert_eq!(metrics(query), expected, "{query}");
        }
    }

    #[test]
    fn a_selector_is_told_from_an_expression() {
        for selector in ["up", "a:b_c", r#"up{a="b", c!~'}'}"#, r#"{__name__="x"}"#, r#" up {v="{{candidate}}"} "#] {
            assert!(is_selector(selector), "{selector}");
        }
        for other in
            ["", "1", "sum(up)", "up or x", r#"up{a="b"} or x{a="b"}"#, "up[5m]", "up offset 5m", "up{", "{{target}}"]
        {
            assert!(!is_selector(other), "{other}");
        }
    }

    #[test]
    fn the_longest_range_is_found() {
        for (query, expected) in [
            ("up", None),
            ("rate(x[5m])", Some(300)),
            ("rate(x[90s]) / rate(y[1h30m])", Some(5400)),
            ("max_over_time(rate(q[1m])[10m:30s])", Some(600)),
            ("rate(x[{{window}}])", None),
        ] {
            assert_eq!(longest_range(query), expected.map(Duration::from_secs), "{query}");
        }
    }
}
