//! What an item is made of: DynamoDB's typed values, as far as they are simulated.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{not_simulated, validation};
use crate::testing::Refusal;

/// An item, or a map within one.
pub(super) type Item = BTreeMap<String, Value>;

/// A value. Sets are not simulated, and of numbers only the whole ones that 38 digits hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    S(String),
    N(i128),
    B(Vec<u8>),
    Bool(bool),
    Null,
    M(Item),
    L(Vec<Self>),
}

impl Value {
    /// Reads `{"S": "text"}`.
    pub(super) fn read(json: &Json) -> Result<Self, Refusal> {
        let typed = json.as_object().filter(|typed| typed.len() == 1).and_then(|typed| typed.iter().next());
        let Some((kind, value)) = typed else {
            return Err(validation(
                "Supplied AttributeValue is empty, must contain exactly one of the supported datatypes",
            ));
        };
        let odd = || Refusal::new(400, "SerializationException", format!("{value} cannot be read as {kind}"));
        Ok(match kind.as_str() {
            "S" => Self::S(value.as_str().ok_or_else(odd)?.into()),
            "N" => Self::N(number(value.as_str().ok_or_else(odd)?)?),
            "B" => Self::B(STANDARD.decode(value.as_str().ok_or_else(odd)?).map_err(|_| odd())?),
            "BOOL" => Self::Bool(value.as_bool().ok_or_else(odd)?),
            "NULL" => Self::Null,
            "M" => Self::M(item(value)?),
            "L" => Self::L(value.as_array().ok_or_else(odd)?.iter().map(Self::read).collect::<Result<_, _>>()?),
            "SS" | "NS" | "BS" => return Err(not_simulated("a set")),
            _ => return Err(odd()),
        })
    }

    pub(super) fn write(&self) -> Json {
        match self {
            Self::S(text) => json!({ "S": text }),
            Self::N(number) => json!({ "N": number.to_string() }),
            Self::B(bytes) => json!({ "B": STANDARD.encode(bytes) }),
            Self::Bool(value) => json!({ "BOOL": value }),
            Self::Null => json!({ "NULL": true }),
            Self::M(map) => json!({ "M": write(map) }),
            Self::L(list) => json!({ "L": list.iter().map(Self::write).collect::<Vec<_>>() }),
        }
    }

    /// The type as conditions and key schemas name it.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::S(_) => "S",
            Self::N(_) => "N",
            Self::B(_) => "B",
            Self::Bool(_) => "BOOL",
            Self::Null => "NULL",
            Self::M(_) => "M",
            Self::L(_) => "L",
        }
    }

    /// How large it counts, by "DynamoDB item sizes and formats" in AWS's developer guide.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::S(text) => text.len(),
            // One byte for two digits and one more.
            Self::N(number) => number.unsigned_abs().to_string().trim_end_matches('0').len().div_ceil(2) + 1,
            Self::B(bytes) => bytes.len(),
            Self::Bool(_) | Self::Null => 1,
            Self::M(map) => 3 + map.iter().map(|(name, value)| 1 + name.len() + value.size()).sum::<usize>(),
            Self::L(list) => 3 + list.iter().map(|value| 1 + value.size()).sum::<usize>(),
        }
    }
}

/// Reads an item: a JSON object of typed values.
pub(super) fn item(json: &Json) -> Result<Item, Refusal> {
    let map = json.as_object().ok_or_else(|| Refusal::new(400, "SerializationException", "it is no map"))?;
    map.iter().map(|(name, value)| Ok((name.clone(), Value::read(value)?))).collect()
}

pub(super) fn write(item: &Item) -> Json {
    Json::Object(item.iter().map(|(name, value)| (name.clone(), value.write())).collect::<Map<_, _>>())
}

/// How large an item counts against the limit of 400 KB.
pub(super) fn size(item: &Item) -> usize {
    item.iter().map(|(name, value)| name.len() + value.size()).sum()
}

fn number(text: &str) -> Result<i128, Refusal> {
    if let Ok(number) = text.parse::<i128>() {
        if number.unsigned_abs() < 10_u128.pow(38) {
            return Ok(number);
        }
        return Err(validation("Attempting to store more than 38 significant digits in a Number"));
    }
    match text.parse::<f64>() {
        Ok(_) => Err(not_simulated("a number that is not whole")),
        Err(_) => Err(validation(format!("The parameter cannot be converted to a numeric value: {text}"))),
    }
}
