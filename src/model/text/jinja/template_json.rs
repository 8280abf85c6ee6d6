//! The `tojson` filter of chat templates, which works like Python's `json.dumps`: it writes a space after
//! commas and colons, on which templates rely, and does not escape anything for HTML.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The largest indentation that the filter writes; deeper nesting multiplies it.
const MAX_INDENT: usize = 32;

/// Implements the filter `value | tojson(indent=…, ensure_ascii=…, separators=…, sort_keys=…)`.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;

    let fail = |message: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"));
    let mut bytes = Vec::new();
    let written = match (indent, separators.as_deref()) {
        (Some(indent), None) if indent <= MAX_INDENT => {
            write(value, sort_keys, &mut bytes, PrettyFormatter::with_indent(" ".repeat(indent).as_bytes()))
        }
        (Some(_), None) => return Err(fail("the indentation is too wide")),
        (Some(_), Some(_)) => return Err(fail("indent and separators together are not supported")),
        (None, None) => write(value, sort_keys, &mut bytes, Separators { item: ", ", key: ": " }),
        (None, Some([item, key])) => write(value, sort_keys, &mut bytes, Separators { item, key }),
        (None, Some(_)) => return Err(fail("separators must be two strings")),
    };
    written.map_err(|error| fail(&error.to_string()))?;
    let json = String::from_utf8(bytes).map_err(|error| fail(&error.to_string()))?;
    Ok(Value::from(if ensure_ascii == Some(true) { ascii(&json) } else { json }))
}

fn write(
    value: &Value,
    sort_keys: Option<bool>,
    out: &mut Vec<u8>,
    formatter: impl Formatter,
) -> serde_json::Result<()> {
    let mut serializer = Serializer::with_formatter(out, formatter);
    if sort_keys != Some(true) {
        return value.serialize(&mut serializer);
    }
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    value.serialize(&mut serializer)
}

/// A JSON formatter with compact output and given separators.
struct Separators<'a> {
    item: &'a str,
    key: &'a str,
}

impl Separators<'_> {
    fn separate<W: io::Write + ?Sized>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }
}

impl Formatter for Separators<'_> {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// Writes characters that are not ASCII, which occur only in strings, as UTF-16 escapes.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn render(filter: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", |value, options| super::to_json(&value, &options));
        let source = format!("{{{{ {{'b': [1, 2.5, true, none], 'a': 'é\\n<😀>', 'c': []}} | {filter} }}}}");
        environment.render_str(&source, context! {}).unwrap_or_else(|error| error.to_string())
    }

    /// Python's `json.dumps` gave the expected strings.
    #[test]
    fn as_json_dumps() {
        assert_eq!(render("tojson"), r#"{"b": [1, 2.5, true, null], "a": "é\n<😀>", "c": []}"#);
        assert_eq!(
            render("tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':'))"),
            r#"{"a":"\u00e9\n<\ud83d\ude00>","b":[1,2.5,true,null],"c":[]}"#
        );
        assert_eq!(
            render("tojson(indent=2)"),
            "{\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"a\": \"é\\n<😀>\",\n  \"c\": []\n}"
        );
        assert_eq!(
            render("tojson(indent=1000000000)"),
            "invalid operation: tojson: the indentation is too wide (in <string>:1)"
        );
    }
}
