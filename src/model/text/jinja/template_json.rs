//! The `tojson` filter of chat templates, which is Python's `json.dumps` and does not escape anything for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::values::{MAX_TEXT, float, invalid, is_generator, type_name};
use crate::model::load_error::shorten;

/// The largest indentation that the filter writes; deeper nesting multiplies it.
const MAX_INDENT: usize = 32;

/// Limit on the depth of lists and objects within a value.
const MAX_DEPTH: usize = 64;

/// The layout of the JSON text.
struct Format {
    /// The indentation per level; `None` for one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// Implements `value | tojson(indent=…, ensure_ascii=…, separators=…, sort_keys=…)`.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) if text.len() <= MAX_INDENT => Some(text.to_owned()),
            (None, Some(width)) if width <= MAX_INDENT => Some(" ".repeat(width)),
            _ => {
                let expected = format!("expected a string or a number of at most {MAX_INDENT} characters");
                return Err(invalid(format!(
                    "tojson: the indentation is {}, {expected}",
                    shorten(&indent.to_string())
                )));
            }
        },
    };
    let [item_separator, key_separator] = match separators {
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(separators) => {
            separators.try_into().map_err(|_| invalid("tojson: separators must be two strings"))?
        }
    };
    let flag = |name| options.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
    let format = Format {
        indent,
        item_separator,
        key_separator,
        sort_keys: flag("sort_keys")?,
        ensure_ascii: flag("ensure_ascii")?,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    format.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

impl Format {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth == MAX_DEPTH || out.len() > MAX_TEXT {
            return Err(invalid(format!(
                "tojson: the value is too deep or too long, expected fewer than {MAX_DEPTH} levels and at most \
                 {MAX_TEXT} bytes"
            )));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.write_all("{", "}", depth, out, entries, |format, (key, value), out| {
                    format.write_text(&key, out);
                    out.push_str(&format.key_separator);
                    format.write(&value, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable if !is_generator(value) => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all("[", "]", depth, out, items, |format, item, out| {
                    format.write(&item, depth + 1, out)
                })?;
            }
            _ => {
                let found = type_name(value);
                return Err(invalid(format!("tojson: object of type {found} is not JSON serializable")));
            }
        }
        Ok(())
    }

    /// Writes the entries of a list or an object between brackets.
    fn write_all<T>(
        &self,
        open: &str,
        close: &str,
        depth: usize,
        out: &mut String,
        entries: Vec<T>,
        write: impl Fn(&Self, T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let break_line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push_str(open);
        let filled = !entries.is_empty();
        for (index, entry) in entries.into_iter().enumerate() {
            out.push_str(if index > 0 { &self.item_separator } else { "" });
            break_line(depth + 1, out);
            write(self, entry, out)?;
        }
        if filled {
            break_line(depth, out);
        }
        out.push_str(close);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        // Every string can be written as JSON, so this cannot fail.
        let json = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&json);
            return;
        }
        for c in json.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
        }
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    Ok(match f64::try_from(value.clone())? {
        x if x.is_nan() => "NaN".to_owned(),
        x if x.is_infinite() => (if x > 0.0 { "Infinity" } else { "-Infinity" }).to_owned(),
        x => float(x),
    })
}

/// Returns the JSON text of an object's key, before quotes and escapes.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => number(key),
        _ => Err(invalid(format!("tojson: keys must be str, not {}", type_name(key)))),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn render(filter: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", |value, options| super::to_json(&value, &options));
        let source = format!(
            "{{{{ {{'b': [1, 2.5, 1e16, true, none], 'a': 'é\\n<😀>', 'c': [], 'd': {{}} }} | {filter} }}}}"
        );
        environment.render_str(&source, context! {}).unwrap_or_else(|error| error.to_string())
    }

    /// Python's `json.dumps` gave the expected strings.
    #[test]
    fn as_json_dumps() {
        assert_eq!(
            render("tojson"),
            r#"{"b": [1, 2.5, 1e+16, true, null], "a": "é\n<😀>", "c": [], "d": {}}"#
        );
        assert_eq!(
            render("tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':'))"),
            r#"{"a":"\u00e9\n<\ud83d\ude00>","b":[1,2.5,1e+16,true,null],"c":[],"d":{}}"#
        );
        let lines = "{\n  \"b\": [\n    1,\n    2.5,\n    1e+16,\n    true,\n    null\n  ],\n";
        assert_eq!(
            render("tojson(indent=2)"),
            format!("{lines}  \"a\": \"é\\n<😀>\",\n  \"c\": [],\n  \"d\": {{}}\n}}")
        );
        assert_eq!(
            render("tojson(indent=1000000000)"),
            "invalid operation: tojson: the indentation is 1000000000, expected a string or a number of at most 32 \
             characters (in <string>:1)"
        );
        assert!(render("tojson(unknown=1)").contains("unknown keyword argument"));
    }
}
