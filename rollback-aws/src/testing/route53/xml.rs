//! Just as much XML as requests and answers of Route 53 have.

use std::fmt::Write as _;

use serde_json::Value;

use crate::testing::wire;

/// An element: its name, the text in it, the elements in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) within: Vec<Self>,
}

impl Element {
    /// Reads a document. None when it is none.
    pub(super) fn read(document: &str) -> Option<Self> {
        let mut open: Vec<Self> = vec![Self::default()];
        let mut rest = document;
        while let Some(at) = rest.find('<') {
            let (text, tag) = rest.split_at(at);
            open.last_mut()?.text.push_str(&plain(text)?);
            let (tag, after) = tag[1..].split_once('>')?;
            rest = after;
            if tag.starts_with(['?', '!']) {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                let done = open.pop().filter(|done| done.name == name.trim())?;
                open.last_mut()?.within.push(done);
                continue;
            }
            let name = tag.trim_end_matches('/').split_whitespace().next()?;
            let new = Self { name: name.into(), ..Self::default() };
            if tag.ends_with('/') { open.last_mut()?.within.push(new) } else { open.push(new) }
        }
        let mut document = open.pop().filter(|_| open.is_empty())?;
        document.within.pop().filter(|_| document.within.is_empty())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        self.within.iter().find(|element| element.name == name)
    }

    pub(super) fn text_of(&self, name: &str) -> Option<&str> {
        self.get(name).map(|element| element.text.as_str())
    }
}

/// Text without its escapes.
fn plain(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, escaped)) = rest.split_once('&') {
        let (name, after) = escaped.split_once(';')?;
        plain.push_str(before);
        plain.push(match name {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => match name.strip_prefix("#x") {
                Some(hex) => char::from_u32(u32::from_str_radix(hex, 16).ok()?)?,
                None => char::from_u32(name.strip_prefix('#')?.parse().ok()?)?,
            },
        });
        rest = after;
    }
    plain.push_str(rest);
    Some(plain)
}

/// Writes a value as an element; a list as one after the other.
pub(super) fn write(name: &str, value: &Value, text: &mut String) {
    match value {
        Value::Null => {}
        Value::Array(all) => all.iter().for_each(|value| write(name, value, text)),
        Value::Object(members) => {
            let _ = write!(text, "<{name}>");
            for (name, member) in members {
                write(name, member, text);
            }
            let _ = write!(text, "</{name}>");
        }
        scalar => {
            let _ = write!(text, "<{name}>");
            wire::xml(text, scalar);
            let _ = write!(text, "</{name}>");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut text = "<?xml version=\"1.0\"?>\n".to_owned();
        write("A", &json!({ "B": ["<1> & \"2\"", "x"], "C": {}, "D": null, "E": 7 }), &mut text);
        let read = Element::read(&text).unwrap();
        let b: Vec<&str> = read.within.iter().filter(|e| e.name == "B").map(|e| e.text.as_str()).collect();
        assert_eq!((b, read.text_of("E"), read.get("D")), (vec!["<1> & \"2\"", "x"], Some("7"), None));
        assert_eq!(Element::read("<A xmlns=\"x\"><B/></A>").unwrap().within[0].name, "B");
        for bad in ["", "<A>", "<A></B>", "<A>&what;</A>", "<A></A><B></B>", "text"] {
            assert_eq!(Element::read(bad), None, "{bad}");
        }
    }
}
