//! Values as Python has them: their text, and the kinds that the template engine lacks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Limit on the nesting depth of a value that is printed.
const MAX_DEPTH: usize = 64;

/// The longest text that a filter makes, in bytes.
pub(super) const MAX_TEXT: usize = 64 << 20;

/// Returns the error for an invalid operation in a template.
pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// A tuple of Python, which prints with parentheses.
#[derive(Debug)]
pub(super) struct Tuple(pub(super) Vec<Value>);

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

pub(super) fn tuple(items: Vec<Value>) -> Value {
    Value::from_object(Tuple(items))
}

/// The result of a filter that is a generator in Jinja2. A generator counts as true even if it has no items,
/// has no length, and gives its items once.
#[derive(Debug)]
pub(super) struct Generator {
    items: Vec<Value>,
    spent: AtomicBool,
}

impl Generator {
    pub(super) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self { items, spent: AtomicBool::new(false) })
    }

    fn take(&self) -> Vec<Value> {
        if self.spent.swap(true, Ordering::Relaxed) { Vec::new() } else { self.items.clone() }
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.take())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

pub(super) fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// An undefined value that was given to a macro as an argument, so that the parameter does not take its
/// default.
#[derive(Debug)]
pub(super) struct GivenUndefined;

impl Object for GivenUndefined {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// A method of a dict that the template names but does not call.
#[derive(Debug)]
pub(super) struct Method;

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// Returns the name of a value's type in Python.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq if value.downcast_object_ref::<Tuple>().is_some() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Map => "dict",
        ValueKind::Iterable if is_generator(value) => "generator",
        ValueKind::Iterable => "list",
        _ => "object",
    }
}

/// Returns the items of a value that Python could iterate over.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().chars().map(Value::from).collect()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => Ok(value.try_iter()?.collect()),
        ValueKind::Plain if value.try_iter().is_ok() => Ok(value.try_iter()?.collect()),
        _ => Err(invalid(format!("'{}' object is not iterable", type_name(value)))),
    }
}

/// Returns a value's text: Python's `str`.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut out = String::new();
            write_repr(value, &mut out, 0)?;
            Ok(out)
        }
    }
}

/// Returns the text of a value; an error for a string that is marked as HTML, whose mark the result would lose.
pub(super) fn plain(value: &Value) -> Result<String, Error> {
    if value.is_safe() && value.as_str().is_some() {
        return Err(invalid("an operation on a string that `safe` or `escape` marks is not supported"));
    }
    text(value)
}

/// Returns the text itself, or an error if it is longer than [`MAX_TEXT`].
pub(super) fn bounded(text: String) -> Result<String, Error> {
    if text.len() > MAX_TEXT {
        Err(invalid(format!("a text has {} bytes, expected at most {MAX_TEXT}", text.len())))
    } else {
        Ok(text)
    }
}

/// Returns Python's `repr` of a value.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(value, &mut out, 0)?;
    Ok(out)
}

fn write_repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth == MAX_DEPTH {
        return Err(invalid(format!("a value that nests {MAX_DEPTH} deep or deeper cannot be printed")));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable if !is_generator(value) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if is_tuple { '(' } else { '[' });
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(item, out, depth + 1)?;
            }
            out.push_str(match (is_tuple, items.len()) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&key, out, depth + 1)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        // For these values, Python would print an address in memory.
        _ => return Err(invalid(format!("a value of type {} cannot be printed", type_name(value)))),
    }
    Ok(())
}

/// Returns a float as Python writes it: the shortest digits, with an exponent from 1e16 on and below 1e-4.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() { "nan".into() } else { (if x > 0.0 { "inf" } else { "-inf" }).into() };
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let scientific = format!("{x:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// Writes a string with quotes and escapes, as Python's `repr` does.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code @ ..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// Returns whether Python prints a character as it is. `escape_debug` escapes by the same categories; a character
/// that extends another is not escaped after another one.
fn is_printable(c: char) -> bool {
    c == ' ' || (!c.is_control() && !format!("a{c}").escape_debug().to_string().contains("\\u{"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use minijinja::Value;

    use super::{float, repr};

    /// The expected texts come from Python.
    #[test]
    fn numbers_and_strings_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e22, "1.5e+22"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in cases {
            assert_eq!(float(number), expected);
        }
        let cases = [
            ("a'b", "\"a'b\""),
            ("a'\"b", "'a\\'\"b'"),
            ("\\ \n\r\t", "'\\\\ \\n\\r\\t'"),
            ("\u{0}\u{7f}\u{a0}\u{ad}", "'\\x00\\x7f\\xa0\\xad'"),
            ("é😀e\u{301}日", "'é😀e\u{301}日'"),
            ("\u{200b}\u{2028}\u{e000}\u{e0001}", "'\\u200b\\u2028\\ue000\\U000e0001'"),
        ];
        for (text, expected) in cases {
            assert_eq!(repr(&Value::from(text)).unwrap(), expected);
        }
    }
}
