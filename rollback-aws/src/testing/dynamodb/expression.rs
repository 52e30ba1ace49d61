//! Condition, update, key and projection expressions: read, and really evaluated.
//!
//! Known are the comparisons, `BETWEEN`, `IN`, `AND`, `OR`, `NOT`, the functions `attribute_exists`,
//! `attribute_not_exists`, `attribute_type`, `begins_with`, `contains` and `size`; of updates `SET` with `+`, `-`,
//! `if_not_exists` and `list_append`, `REMOVE`, and `ADD` of numbers. Whatever else is refused, which is not what DynamoDB
//! would do, and says so.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value as Json;

use super::{
    not_simulated, validation,
    value::{Item, Value},
};
use crate::testing::Refusal;

/// The names and values that a request gives its expressions, and which of them were used.
#[derive(Debug, Default)]
pub(super) struct Given {
    names: BTreeMap<String, String>,
    values: BTreeMap<String, Value>,
    used: BTreeSet<String>,
}

impl Given {
    pub(super) fn read(asked: &Json) -> Result<Self, Refusal> {
        let mut given = Self::default();
        if let Some(names) = asked["ExpressionAttributeNames"].as_object() {
            for (key, name) in names {
                let name = name.as_str().filter(|_| key.starts_with('#'));
                let name = name.ok_or_else(|| {
                    let why = "ExpressionAttributeNames contains invalid key: Syntax error; key:";
                    validation(format!("{why} \"{key}\""))
                })?;
                given.names.insert(key.clone(), name.into());
            }
        }
        if let Some(values) = asked["ExpressionAttributeValues"].as_object() {
            for (key, value) in values {
                if !key.starts_with(':') {
                    let why = "ExpressionAttributeValues contains invalid key: Syntax error; key:";
                    return Err(validation(format!("{why} \"{key}\"")));
                }
                given.values.insert(key.clone(), Value::read(value)?);
            }
        }
        Ok(given)
    }

    /// What was given for nothing is refused.
    pub(super) fn all_used(&self) -> Result<(), Refusal> {
        for (what, keys) in [("Names", self.names.keys().collect::<Vec<_>>()), ("Values", self.values.keys().collect())]
        {
            let unused: Vec<&str> =
                keys.into_iter().filter(|key| !self.used.contains(*key)).map(String::as_str).collect();
            if !unused.is_empty() {
                return Err(validation(format!(
                    "Value provided in ExpressionAttribute{what} unused in expressions: keys: {{{}}}",
                    unused.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// One step into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    At(usize),
}

/// Where in an item: `requests.#n[0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path(Vec<Step>);

impl Path {
    fn of<'a>(&self, item: &'a Item) -> Option<&'a Value> {
        let Some((Step::Name(first), rest)) = self.0.split_first() else { return None };
        rest.iter().try_fold(item.get(first)?, |value, step| match (step, value) {
            (Step::Name(name), Value::M(map)) => map.get(name),
            (Step::At(at), Value::L(list)) => list.get(*at),
            _ => None,
        })
    }

    /// The attribute that it begins in.
    pub(super) fn top(&self) -> &str {
        match self.0.first() {
            Some(Step::Name(name)) => name,
            _ => "",
        }
    }

    fn put(&self, item: &mut Item, value: Value) -> Result<(), Refusal> {
        let missing = || validation("The document path provided in the update expression is invalid for update");
        let Some((last, within)) = self.0.split_last() else { return Err(missing()) };
        let Some((Step::Name(first), rest)) = within.split_first() else {
            item.insert(self.top().into(), value);
            return Ok(());
        };
        let mut at = item.get_mut(first).ok_or_else(missing)?;
        for step in rest {
            at = match (step, at) {
                (Step::Name(name), Value::M(map)) => map.get_mut(name).ok_or_else(missing)?,
                (Step::At(n), Value::L(list)) => list.get_mut(*n).ok_or_else(missing)?,
                _ => return Err(missing()),
            };
        }
        match (last, at) {
            (Step::Name(name), Value::M(map)) => drop(map.insert(name.clone(), value)),
            (Step::At(n), Value::L(list)) if *n < list.len() => list[*n] = value,
            (Step::At(_), Value::L(list)) => list.push(value),
            _ => return Err(missing()),
        }
        Ok(())
    }

    fn remove(&self, item: &mut Item) -> Result<(), Refusal> {
        let Some((last, within)) = self.0.split_last() else { return Ok(()) };
        let Some((Step::Name(first), rest)) = within.split_first() else {
            item.remove(self.top());
            return Ok(());
        };
        let missing = || validation("The document path provided in the update expression is invalid for update");
        let mut at = item.get_mut(first).ok_or_else(missing)?;
        for step in rest {
            at = match (step, at) {
                (Step::Name(name), Value::M(map)) => map.get_mut(name).ok_or_else(missing)?,
                (Step::At(n), Value::L(list)) => list.get_mut(*n).ok_or_else(missing)?,
                _ => return Err(missing()),
            };
        }
        match (last, at) {
            (Step::Name(name), Value::M(map)) => drop(map.remove(name)),
            (Step::At(n), Value::L(list)) if *n < list.len() => drop(list.remove(*n)),
            (Step::At(_), Value::L(_)) => {}
            _ => return Err(missing()),
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self
            .0
            .iter()
            .map(|step| match step {
                Step::Name(name) => name.clone(),
                Step::At(at) => format!("[{at}]"),
            })
            .collect();
        write!(f, "[{}]", steps.join(", "))
    }
}

#[derive(Debug)]
enum Operand {
    Path(Path),
    Value(Value),
    Size(Path),
    Plus(Box<Self>, Box<Self>),
    Minus(Box<Self>, Box<Self>),
    IfNotExists(Path, Box<Self>),
    Append(Box<Self>, Box<Self>),
}

impl Operand {
    fn of(&self, item: &Item) -> Option<Value> {
        match self {
            Self::Path(path) => path.of(item).cloned(),
            Self::Value(value) => Some(value.clone()),
            Self::Size(path) => match path.of(item)? {
                Value::S(text) => Some(text.len()),
                Value::B(bytes) => Some(bytes.len()),
                Value::M(map) => Some(map.len()),
                Value::L(list) => Some(list.len()),
                _ => None,
            }
            .map(|len| Value::N(len as i128)),
            _ => None,
        }
    }

    /// In an update, where what is missing is an error.
    fn worth(&self, item: &Item) -> Result<Value, Refusal> {
        let sum = |a: &Self, b: &Self, sign: i128| match (a.worth(item)?, b.worth(item)?) {
            (Value::N(a), Value::N(b)) => a
                .checked_add(sign * b)
                .map(Value::N)
                .ok_or_else(|| validation("Number overflow. Attempting to store a number with magnitude larger")),
            _ => Err(wrong_operand()),
        };
        match self {
            Self::Plus(a, b) => sum(a, b, 1),
            Self::Minus(a, b) => sum(a, b, -1),
            Self::IfNotExists(path, other) => path.of(item).cloned().map_or_else(|| other.worth(item), Ok),
            Self::Append(a, b) => match (a.worth(item)?, b.worth(item)?) {
                (Value::L(mut a), Value::L(b)) => {
                    a.extend(b);
                    Ok(Value::L(a))
                }
                _ => Err(wrong_operand()),
            },
            _ => self.of(item).ok_or_else(|| {
                validation("The provided expression refers to an attribute that does not exist in the item")
            }),
        }
    }
}

fn wrong_operand() -> Refusal {
    validation("An operand in the update expression has an incorrect data type")
}

/// What must hold.
#[derive(Debug)]
pub(super) enum Condition {
    Compare(&'static str, Box<(Side, Side)>),
    Between(Box<(Side, Side, Side)>),
    In(Box<Side>, Vec<Side>),
    Exists(Path),
    NotExists(Path),
    IsOfType(Path, Box<Side>),
    BeginsWith(Path, Box<Side>),
    Contains(Path, Box<Side>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
}

/// One side of a comparison.
#[derive(Debug)]
pub(super) struct Side(Operand);

impl Condition {
    /// Reads the expression of this name in a request, if it has one.
    pub(super) fn read(name: &str, asked: &Json, given: &mut Given) -> Result<Option<Self>, Refusal> {
        let Some(text) = asked[name].as_str() else { return Ok(None) };
        let mut parser = Parser::new(name, text, given)?;
        let condition = parser.either()?;
        parser.end()?;
        Ok(Some(condition))
    }

    pub(super) fn holds(&self, item: &Item) -> bool {
        match self {
            Self::Compare(op, sides) => {
                let (a, b) = (sides.0.0.of(item), sides.1.0.of(item));
                match (*op, a, b) {
                    ("=", Some(a), Some(b)) => a == b,
                    ("<>", a, b) => a != b,
                    (_, Some(a), Some(b)) => match (*op, compare(&a, &b)) {
                        (_, None) => false,
                        ("<", Some(order)) => order.is_lt(),
                        ("<=", Some(order)) => order.is_le(),
                        (">", Some(order)) => order.is_gt(),
                        (_, Some(order)) => order.is_ge(),
                    },
                    _ => false,
                }
            }
            Self::Between(sides) => match (sides.0.0.of(item), sides.1.0.of(item), sides.2.0.of(item)) {
                (Some(value), Some(from), Some(to)) => {
                    compare(&value, &from).is_some_and(Ordering::is_ge)
                        && compare(&value, &to).is_some_and(Ordering::is_le)
                }
                _ => false,
            },
            Self::In(side, list) => {
                side.0.of(item).is_some_and(|value| list.iter().any(|other| other.0.of(item).as_ref() == Some(&value)))
            }
            Self::Exists(path) => path.of(item).is_some(),
            Self::NotExists(path) => path.of(item).is_none(),
            Self::IsOfType(path, kind) => match (path.of(item), kind.0.of(item)) {
                (Some(value), Some(Value::S(kind))) => value.kind() == kind,
                _ => false,
            },
            Self::BeginsWith(path, with) => match (path.of(item), with.0.of(item)) {
                (Some(Value::S(text)), Some(Value::S(with))) => text.starts_with(&with),
                (Some(Value::B(bytes)), Some(Value::B(with))) => bytes.starts_with(&with),
                _ => false,
            },
            Self::Contains(path, what) => match (path.of(item), what.0.of(item)) {
                (Some(Value::S(text)), Some(Value::S(what))) => text.contains(&what),
                (Some(Value::L(list)), Some(what)) => list.contains(&what),
                _ => false,
            },
            Self::And(a, b) => a.holds(item) && b.holds(item),
            Self::Or(a, b) => a.holds(item) || b.holds(item),
            Self::Not(a) => !a.holds(item),
        }
    }

    /// As the condition on a table's key: the value of the partition key, and what its sort keys must be.
    pub(super) fn on_key(self, hash: &str) -> Result<(Value, Option<Self>), Refusal> {
        let whole = |condition: Self| match condition {
            Self::Compare("=", sides) => match *sides {
                (Side(Operand::Path(path)), Side(Operand::Value(value))) if path.0.len() == 1 && path.top() == hash => {
                    Ok(value)
                }
                sides => Err(Self::Compare("=", Box::new(sides))),
            },
            other => Err(other),
        };
        let missed = || validation(format!("Query condition missed key schema element: {hash}"));
        match self {
            Self::And(a, b) => match whole(*a) {
                Ok(value) => Ok((value, Some(*b))),
                Err(a) => Ok((whole(*b).map_err(|_| missed())?, Some(a))),
            },
            other => Ok((whole(other).map_err(|_| missed())?, None)),
        }
    }
}

/// Only text, numbers and bytes have an order, and only among themselves.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::S(_), Value::S(_)) | (Value::N(_), Value::N(_)) | (Value::B(_), Value::B(_)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// What is to be done to an item.
#[derive(Debug, Default)]
pub(super) struct Update {
    set: Vec<(Path, Operand)>,
    remove: Vec<Path>,
    add: Vec<(Path, Operand)>,
}

impl Update {
    pub(super) fn read(asked: &Json, given: &mut Given) -> Result<Self, Refusal> {
        const NAME: &str = "UpdateExpression";
        let Some(text) = asked[NAME].as_str() else { return Ok(Self::default()) };
        let mut parser = Parser::new(NAME, text, given)?;
        let mut update = Self::default();
        let mut seen = BTreeSet::new();
        while let Some(Token::Word(word)) = parser.peek().cloned() {
            let section = word.to_ascii_uppercase();
            parser.at += 1;
            if !seen.insert(section.clone()) {
                return Err(
                    parser.wrong(&format!("The \"{section}\" section can only be used once in an update expression;"))
                );
            }
            loop {
                let path = match section.as_str() {
                    "SET" | "REMOVE" | "ADD" => parser.path()?,
                    "DELETE" => return Err(not_simulated("DELETE of an update, which is for sets,")),
                    _ => return Err(parser.syntax()),
                };
                match section.as_str() {
                    "SET" => {
                        parser.expect("=")?;
                        let value = parser.sum()?;
                        update.set.push((path, value));
                    }
                    "ADD" => {
                        let value = parser.operand()?;
                        update.add.push((path, value));
                    }
                    _ => update.remove.push(path),
                }
                if !parser.takes(",") {
                    break;
                }
            }
        }
        parser.end()?;
        let paths: Vec<&Path> = update.paths().collect();
        for (n, one) in paths.iter().enumerate() {
            if let Some(two) = paths[n + 1..].iter().find(|two| one.overlaps(two)) {
                return Err(validation(format!(
                    "Invalid UpdateExpression: Two document paths overlap with each other; must remove or rewrite one of \
                     these paths; path one: {one}, path two: {two}"
                )));
            }
        }
        Ok(update)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.set.iter().chain(&self.add).map(|(path, _)| path).chain(&self.remove)
    }

    /// The item as it is afterwards. Everything is worth what it was before.
    pub(super) fn apply(&self, before: &Item) -> Result<Item, Refusal> {
        let mut after = before.clone();
        for (path, value) in &self.set {
            path.put(&mut after, value.worth(before)?)?;
        }
        for (path, value) in &self.add {
            let sum = match (path.of(before), value.worth(before)?) {
                (None, value @ Value::N(_)) => value,
                (Some(Value::N(a)), Value::N(b)) => Value::N(a + b),
                _ => return Err(wrong_operand()),
            };
            path.put(&mut after, sum)?;
        }
        for path in &self.remove {
            path.remove(&mut after)?;
        }
        Ok(after)
    }
}

/// What of an item is to be shown. Only whole attributes.
pub(super) fn projection(asked: &Json, given: &mut Given) -> Result<Option<Vec<String>>, Refusal> {
    const NAME: &str = "ProjectionExpression";
    let Some(text) = asked[NAME].as_str() else { return Ok(None) };
    let mut parser = Parser::new(NAME, text, given)?;
    let mut names = Vec::new();
    loop {
        let path = parser.path()?;
        if path.0.len() > 1 {
            return Err(not_simulated("a projection of a part of an attribute"));
        }
        names.push(path.top().to_owned());
        if !parser.takes(",") {
            break;
        }
    }
    parser.end()?;
    Ok(Some(names))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Number(usize),
    Sign(&'static str),
}

struct Parser<'a> {
    /// As in `ConditionExpression`.
    name: &'a str,
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    at: usize,
    given: &'a mut Given,
}

impl<'a> Parser<'a> {
    fn new(name: &'a str, text: &'a str, given: &'a mut Given) -> Result<Self, Refusal> {
        if text.trim().is_empty() {
            return Err(validation(format!("Invalid {name}: The expression can not be empty;")));
        }
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            if c.is_whitespace() {
                at += c.len_utf8();
                continue;
            }
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if c.is_ascii_alphabetic() || c == '_' || c == '#' || c == ':' {
                let rest = &text[at + 1..];
                let len = 1 + rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                tokens.push((at, Token::Word(text[at..at + len].into())));
                at += len;
            } else if c.is_ascii_digit() {
                let rest = &text[at..];
                let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                tokens.push((at, Token::Number(rest[..len].parse().unwrap_or(usize::MAX))));
                at += len;
            } else {
                let signs = ["<>", "<=", ">=", "=", "<", ">", "(", ")", ",", ".", "[", "]", "+", "-"];
                let Some(sign) = signs.into_iter().find(|sign| text[at..].starts_with(sign)) else {
                    return Err(validation(format!("Invalid {name}: Syntax error; token: \"{c}\", near: \"{c}\"")));
                };
                tokens.push((at, Token::Sign(sign)));
                at += sign.len();
            }
        }
        Ok(Self { name, text, tokens, at: 0, given })
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn wrong(&self, why: &str) -> Refusal {
        validation(format!("Invalid {}: {why}", self.name))
    }

    fn syntax(&self) -> Refusal {
        let near = self.tokens.get(self.at).map_or("<EOF>", |(at, _)| &self.text[*at..]);
        let token = near.split_whitespace().next().unwrap_or(near);
        let near: String = near.chars().take(20).collect();
        self.wrong(&format!("Syntax error; token: \"{token}\", near: \"{near}\""))
    }

    fn takes(&mut self, sign: &str) -> bool {
        let takes = matches!(self.peek(), Some(Token::Sign(next)) if *next == sign);
        self.at += usize::from(takes);
        takes
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let takes = matches!(self.peek(), Some(Token::Word(next)) if next.eq_ignore_ascii_case(word));
        self.at += usize::from(takes);
        takes
    }

    fn expect(&mut self, sign: &str) -> Result<(), Refusal> {
        if self.takes(sign) { Ok(()) } else { Err(self.syntax()) }
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.at == self.tokens.len() { Ok(()) } else { Err(self.syntax()) }
    }

    fn either(&mut self) -> Result<Condition, Refusal> {
        let mut left = self.both()?;
        while self.takes_word("OR") {
            left = Condition::Or(Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Condition, Refusal> {
        let mut left = self.negated()?;
        while self.takes_word("AND") {
            left = Condition::And(Box::new(left), Box::new(self.negated()?));
        }
        Ok(left)
    }

    fn negated(&mut self) -> Result<Condition, Refusal> {
        if self.takes_word("NOT") {
            return Ok(Condition::Not(Box::new(self.negated()?)));
        }
        self.single()
    }

    fn single(&mut self) -> Result<Condition, Refusal> {
        if self.takes("(") {
            let within = self.either()?;
            self.expect(")")?;
            return Ok(within);
        }
        if let Some(function) = self.function() {
            let path = self.path()?;
            let condition = match function.as_str() {
                "attribute_exists" => Condition::Exists(path),
                "attribute_not_exists" => Condition::NotExists(path),
                _ => {
                    self.expect(",")?;
                    let side = Box::new(Side(self.operand()?));
                    match function.as_str() {
                        "attribute_type" => Condition::IsOfType(path, side),
                        "begins_with" => Condition::BeginsWith(path, side),
                        "contains" => Condition::Contains(path, side),
                        _ => return Err(self.wrong(&format!("Invalid function name; function: {function}"))),
                    }
                }
            };
            self.expect(")")?;
            return Ok(condition);
        }
        let left = Side(self.operand()?);
        if self.takes_word("BETWEEN") {
            let from = Side(self.operand()?);
            if !self.takes_word("AND") {
                return Err(self.syntax());
            }
            let to = Side(self.operand()?);
            return Ok(Condition::Between(Box::new((left, from, to))));
        }
        if self.takes_word("IN") {
            self.expect("(")?;
            let mut list = vec![Side(self.operand()?)];
            while self.takes(",") {
                list.push(Side(self.operand()?));
            }
            self.expect(")")?;
            return Ok(Condition::In(Box::new(left), list));
        }
        let ops = ["=", "<>", "<=", ">=", "<", ">"];
        let Some(op) = ops.into_iter().find(|op| self.takes(op)) else { return Err(self.syntax()) };
        let right = Side(self.operand()?);
        Ok(Condition::Compare(op, Box::new((left, right))))
    }

    /// A function that is a condition by itself, with its parenthesis taken.
    fn function(&mut self) -> Option<String> {
        let Some(Token::Word(word)) = self.peek().cloned() else { return None };
        let called = matches!(self.tokens.get(self.at + 1), Some((_, Token::Sign("("))));
        if !called || word == "size" || word.starts_with(['#', ':']) {
            return None;
        }
        self.at += 2;
        Some(word)
    }

    fn sum(&mut self) -> Result<Operand, Refusal> {
        let left = self.term()?;
        if self.takes("+") {
            return Ok(Operand::Plus(Box::new(left), Box::new(self.term()?)));
        }
        if self.takes("-") {
            return Ok(Operand::Minus(Box::new(left), Box::new(self.term()?)));
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<Operand, Refusal> {
        let Some(function) = self.function() else { return self.operand() };
        let value = match function.as_str() {
            "if_not_exists" => {
                let path = self.path()?;
                self.expect(",")?;
                Operand::IfNotExists(path, Box::new(self.term()?))
            }
            "list_append" => {
                let left = self.term()?;
                self.expect(",")?;
                Operand::Append(Box::new(left), Box::new(self.term()?))
            }
            _ => return Err(self.wrong(&format!("Invalid function name; function: {function}"))),
        };
        self.expect(")")?;
        Ok(value)
    }

    fn operand(&mut self) -> Result<Operand, Refusal> {
        if let Some(Token::Word(word)) = self.peek().cloned() {
            if word.starts_with(':') {
                self.at += 1;
                let value = self.given.values.get(&word).cloned().ok_or_else(|| {
                    self.wrong(&format!(
                        "An expression attribute value used in expression is not defined; attribute value: {word}"
                    ))
                })?;
                self.given.used.insert(word);
                return Ok(Operand::Value(value));
            }
            let called = matches!(self.tokens.get(self.at + 1), Some((_, Token::Sign("("))));
            if word == "size" && called {
                self.at += 2;
                let path = self.path()?;
                self.expect(")")?;
                return Ok(Operand::Size(path));
            }
        }
        Ok(Operand::Path(self.path()?))
    }

    fn path(&mut self) -> Result<Path, Refusal> {
        let mut steps = vec![self.name()?];
        loop {
            if self.takes(".") {
                steps.push(self.name()?);
            } else if self.takes("[") {
                let Some(Token::Number(at)) = self.peek().cloned() else { return Err(self.syntax()) };
                self.at += 1;
                self.expect("]")?;
                steps.push(Step::At(at));
            } else {
                return Ok(Path(steps));
            }
        }
    }

    fn name(&mut self) -> Result<Step, Refusal> {
        let Some(Token::Word(word)) = self.peek().cloned().filter(|_| true) else { return Err(self.syntax()) };
        if word.starts_with(':') {
            return Err(self.syntax());
        }
        if word.starts_with('#') {
            self.at += 1;
            let name = self.given.names.get(&word).cloned().ok_or_else(|| {
                self.wrong(&format!(
                    "An expression attribute name used in the document path is not defined; attribute name: {word}"
                ))
            })?;
            self.given.used.insert(word);
            return Ok(Step::Name(name));
        }
        if is_reserved(&word) {
            return Err(self.wrong(&format!("Attribute name is a reserved keyword; reserved keyword: {word}")));
        }
        self.at += 1;
        Ok(Step::Name(word))
    }
}

/// Whether DynamoDB keeps a word to itself, by the list in its developer guide ("Reserved words in DynamoDB").
fn is_reserved(word: &str) -> bool {
    include_str!("reserved.txt").split_whitespace().any(|reserved| reserved.eq_ignore_ascii_case(word))
}
