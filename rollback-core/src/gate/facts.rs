//! The facts of a piece of evidence: a few, by name.

use std::{borrow::Borrow, fmt, ops::Index};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

/// Named values, in the order of their names. Small: ten thousand rollouts with three gates each keep them in memory.
#[derive(Clone, Default, PartialEq)]
pub struct Facts(Vec<(Box<str>, Value)>);

impl Facts {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one, or replaces the one of this name.
    pub fn insert(&mut self, name: impl Into<Box<str>>, value: impl Into<Value>) {
        let (name, value) = (name.into(), value.into());
        match self.find(&name) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (name, value));
            }
        }
    }

    /// The fact of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.find(name).ok().map(|at| &self.0[at].1)
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| Borrow::<str>::borrow(other).cmp(name))
    }
}

/// # Panics
/// When there is none of this name, as a map's index does; [`Facts::get`] does not.
impl Index<&str> for Facts {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or_else(|| panic!("no fact is named {name}: {self:?}"))
    }
}

impl<N: Into<Box<str>>> Extend<(N, Value)> for Facts {
    fn extend<I: IntoIterator<Item = (N, Value)>>(&mut self, facts: I) {
        for (name, value) in facts {
            self.insert(name, value);
        }
    }
}

impl<N: Into<Box<str>>> FromIterator<(N, Value)> for Facts {
    fn from_iter<I: IntoIterator<Item = (N, Value)>>(facts: I) -> Self {
        let mut all = Self::new();
        all.extend(facts);
        all
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> de::Visitor<'de> for Map {
            type Value = Facts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of facts")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Facts, A::Error> {
                let mut facts = Facts::new();
                while let Some((name, value)) = map.next_entry::<Box<str>, Value>()? {
                    facts.insert(name, value);
                }
                Ok(facts)
            }
        }

        from.deserialize_map(Map)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn facts_are_a_map_by_name(entries in prop::collection::vec(("[a-d]{1,2}", any::<u8>()), 0..20)) {
            let facts: Facts = entries.iter().map(|(name, value)| (name.as_str(), Value::from(*value))).collect();
            let map: BTreeMap<_, _> = entries.iter().map(|(name, value)| (name.as_str(), Value::from(*value))).collect();
            prop_assert!(facts.iter().eq(map.iter().map(|(name, value)| (*name, value))));
            prop_assert!(entries.iter().all(|(name, _)| facts.get(name) == map.get(name.as_str())));
            prop_assert_eq!(facts.get("e"), None);
            let json = serde_json::to_string(&facts).unwrap();
            prop_assert_eq!(&json, &serde_json::to_string(&map).unwrap());
            prop_assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), facts);
        }
    }
}
