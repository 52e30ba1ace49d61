//! JSON values as CBOR and back: the members are the same in both of CloudWatch's protocols.

use bytes::Bytes;
use ciborium::Value as Cbor;
use serde_json::{Map, Value};

pub(super) fn read(body: &[u8]) -> Option<Value> {
    if body.is_empty() {
        return Some(Value::Object(Map::new()));
    }
    ciborium::from_reader(body).ok().and_then(json)
}

pub(super) fn write(value: &Value) -> Bytes {
    let mut written = Vec::new();
    ciborium::into_writer(&cbor(value, ""), &mut written).expect("memory takes all that is written");
    written.into()
}

fn json(value: Cbor) -> Option<Value> {
    Some(match value {
        Cbor::Null => Value::Null,
        Cbor::Bool(yes) => Value::Bool(yes),
        Cbor::Integer(number) => i64::try_from(number).ok()?.into(),
        Cbor::Float(number) => serde_json::Number::from_f64(number).map(Value::Number)?,
        Cbor::Text(text) => text.into(),
        // Tag 1: seconds since 1970, as a timestamp in JSON is without a tag.
        Cbor::Tag(1, seconds) => json(*seconds)?,
        Cbor::Array(all) => Value::Array(all.into_iter().map(json).collect::<Option<_>>()?),
        Cbor::Map(all) => Value::Object(
            all.into_iter().map(|(name, value)| Some((name.into_text().ok()?, json(value)?))).collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

fn cbor(value: &Value, name: &str) -> Cbor {
    match value {
        Value::Null => Cbor::Null,
        Value::Bool(yes) => Cbor::Bool(*yes),
        Value::Number(number) if name.contains("Timestamp") => {
            Cbor::Tag(1, Box::new(Cbor::Float(number.as_f64().unwrap_or_default())))
        }
        // Doubles whether written with a point or not.
        Value::Number(number) if matches!(name, "Threshold" | "Values") => {
            Cbor::Float(number.as_f64().unwrap_or_default())
        }
        Value::Number(number) => number
            .as_i64()
            .map_or_else(|| Cbor::Float(number.as_f64().unwrap_or_default()), |n| Cbor::Integer(n.into())),
        Value::String(text) => Cbor::Text(text.clone()),
        Value::Array(all) => Cbor::Array(all.iter().map(|one| cbor(one, name)).collect()),
        Value::Object(all) => {
            Cbor::Map(all.iter().map(|(name, value)| (Cbor::Text(name.clone()), cbor(value, name))).collect())
        }
    }
}
