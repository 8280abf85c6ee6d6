//! The methods of Python's strings, lists and dicts, for use in chat templates.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, State, Value};

use super::digits::{is_decimal, is_digit};
use super::values::{MAX_TEXT, bounded, invalid, items, plain, text, tuple, type_name};

/// The greatest width to which a method pads a text, in characters.
const MAX_WIDTH: i64 = 4096;

/// The positional and the named arguments of a method's call.
struct Arguments<'a> {
    method: &'a str,
    positional: &'a [Value],
    named: Option<Kwargs>,
}

impl Arguments<'_> {
    /// Returns an argument by its position or its name; Python's `None` counts as a missing argument.
    fn get(&self, index: usize, name: &str) -> Option<Value> {
        let named = || self.named.as_ref().filter(|named| named.has(name))?.get::<Value>(name).ok();
        self.positional.get(index).cloned().or_else(named).filter(|value| !value.is_none())
    }

    fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.get(index, name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => {
                    Err(invalid(format!("{}: expected a string, found {}", self.method, type_name(&value))))
                }
            },
        }
    }

    fn required_text(&self, index: usize, name: &str) -> Result<String, Error> {
        self.text(index, name)?.ok_or_else(|| invalid(format!("{}: an argument is missing", self.method)))
    }

    fn integer(&self, index: usize, name: &str, default: i64) -> Result<i64, Error> {
        match self.get(index, name) {
            None => Ok(default),
            Some(value) => i64::try_from(value)
                .map_err(|_| invalid(format!("{}: expected an integer as argument", self.method))),
        }
    }
}

/// Calls a method of a value: a method of Python's strings, lists or dicts, or of the template engine's own
/// objects.
pub(super) fn call(
    state: &State<'_, '_>,
    value: Value,
    method: String,
    rest: Rest<Value>,
) -> Result<Value, Error> {
    let named = rest.last().filter(|last| last.is_kwargs());
    let arguments = Arguments {
        method: &method,
        positional: if named.is_some() { rest.split_last().map_or(&[], |(_, rest)| rest) } else { &rest },
        named: named.and_then(|named| Kwargs::try_from(named.clone()).ok()),
    };
    match value.kind() {
        ValueKind::String => string_method(&plain(&value)?, &arguments),
        ValueKind::Map => dict_method(&value, &arguments),
        ValueKind::Seq | ValueKind::Iterable => list_method(&value, &arguments),
        ValueKind::Plain => value.call_method(state, &method, &rest),
        ValueKind::Undefined => Err(Error::from(minijinja::ErrorKind::UndefinedError)),
        _ => Err(no_method(&value, &method)),
    }
}

fn no_method(value: &Value, method: &str) -> Error {
    invalid(format!("the method `{method}` of a value of type {} is not supported", type_name(value)))
}

/// Returns the entries of a dict as tuples of key and value.
pub(super) fn pairs(dict: &Value) -> Result<Vec<Value>, Error> {
    let pair = |key: Value| Ok(tuple(vec![key.clone(), dict.get_item(&key)?]));
    dict.try_iter()?.map(pair).collect()
}

fn dict_method(dict: &Value, arguments: &Arguments<'_>) -> Result<Value, Error> {
    match arguments.method {
        "get" => {
            let key =
                arguments.positional.first().ok_or_else(|| invalid("get expected at least 1 argument"))?;
            let found = dict.get_item(key)?;
            let default = || arguments.positional.get(1).cloned().unwrap_or(Value::from(()));
            Ok(if found.is_undefined() { default() } else { found })
        }
        "items" => pairs(dict).map(Value::from),
        "keys" => items(dict).map(Value::from),
        "values" => {
            dict.try_iter()?.map(|key| dict.get_item(&key)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        "copy" => Ok(dict.clone()),
        method => Err(no_method(dict, method)),
    }
}

fn list_method(list: &Value, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let wanted = || arguments.positional.first().ok_or_else(|| invalid("expected an argument"));
    match arguments.method {
        "count" => {
            let wanted = wanted()?;
            Ok(Value::from(items(list)?.iter().filter(|item| *item == wanted).count()))
        }
        "index" => {
            let wanted = wanted()?;
            let found = items(list)?.iter().position(|item| item == wanted);
            found.map(Value::from).ok_or_else(|| invalid("the value is not in the list"))
        }
        "copy" => Ok(list.clone()),
        method => Err(no_method(list, method)),
    }
}

fn string_method(value: &str, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let chars = || arguments.text(0, "chars");
    Ok(match arguments.method {
        "upper" => value.to_uppercase().into(),
        "lower" | "casefold" => value.to_lowercase().into(),
        "capitalize" => capitalized(value).into(),
        "title" => title(value).into(),
        "swapcase" => swapped(value).into(),
        "strip" => stripped(value, chars()?.as_deref(), true, true).into(),
        "lstrip" => stripped(value, chars()?.as_deref(), true, false).into(),
        "rstrip" => stripped(value, chars()?.as_deref(), false, true).into(),
        "split" => split(value, arguments, false)?,
        "rsplit" => split(value, arguments, true)?,
        "splitlines" => {
            let keep = arguments.get(0, "keepends").is_some_and(|keep| keep.is_true());
            lines(value, keep).into_iter().collect()
        }
        "partition" | "rpartition" => {
            let separator = arguments.required_text(0, "sep")?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let from_end = arguments.method == "rpartition";
            let parts = if from_end { value.rsplit_once(&*separator) } else { value.split_once(&*separator) };
            let parts = match parts {
                Some((before, after)) => [before, &separator, after],
                None if from_end => ["", "", value],
                None => [value, "", ""],
            };
            tuple(parts.map(Value::from).to_vec())
        }
        "removeprefix" => {
            let prefix = arguments.required_text(0, "prefix")?;
            value.strip_prefix(&*prefix).unwrap_or(value).into()
        }
        "removesuffix" => {
            let suffix = arguments.required_text(0, "suffix")?;
            value.strip_suffix(&*suffix).unwrap_or(value).into()
        }
        "replace" => {
            let (old, new) = (arguments.required_text(0, "old")?, arguments.required_text(1, "new")?);
            replaced(value, &old, &new, arguments.integer(2, "count", -1)?)?.into()
        }
        "startswith" => affix(value, arguments, |part, affix| part.starts_with(affix))?,
        "endswith" => affix(value, arguments, |part, affix| part.ends_with(affix))?,
        "find" | "rfind" | "index" | "rindex" => find(value, arguments)?,
        "count" => {
            let wanted = arguments.required_text(0, "sub")?;
            let part = window(value, arguments)?.map_or("", |(part, _)| part);
            Value::from(if wanted.is_empty() {
                part.chars().count() + 1
            } else {
                part.matches(&*wanted).count()
            })
        }
        "join" => {
            let list = arguments.positional.first().ok_or_else(|| invalid("join expected 1 argument"))?;
            let mut parts = Vec::new();
            for (index, item) in items(list)?.iter().enumerate() {
                let part = item.as_str().map(str::to_owned);
                parts.push(part.ok_or_else(|| {
                    invalid(format!(
                        "sequence item {index}: expected str instance, {} found",
                        type_name(item)
                    ))
                })?);
            }
            bounded(parts.join(value))?.into()
        }
        "ljust" | "rjust" | "center" => padded(value, arguments)?.into(),
        "zfill" => {
            let width = width(arguments)?;
            let (sign, digits) = match value.strip_prefix(['-', '+']) {
                Some(digits) => (&value[..1], digits),
                None => ("", value),
            };
            let missing = width.saturating_sub(value.chars().count());
            format!("{sign}{}{digits}", "0".repeat(missing)).into()
        }
        "format" => formatted(value, arguments)?.into(),
        "isspace" => all(value, is_space),
        "isalpha" => all(value, char::is_alphabetic),
        "isalnum" => all(value, char::is_alphanumeric),
        "isdigit" => all(value, is_digit),
        "isdecimal" => all(value, is_decimal),
        "isnumeric" => all(value, char::is_numeric),
        "isascii" => value.is_ascii().into(),
        "islower" => is_case(value, false).into(),
        "isupper" => is_case(value, true).into(),
        method => return Err(no_method(&Value::from(value), method)),
    })
}

fn all(value: &str, test: impl Fn(char) -> bool) -> Value {
    Value::from(!value.is_empty() && value.chars().all(test))
}

/// Returns whether a text has letters of the given case and none of the other case.
pub(super) fn is_case(value: &str, upper: bool) -> bool {
    let (has_upper, has_lower) =
        (value.chars().any(char::is_uppercase), value.chars().any(char::is_lowercase));
    has_upper == upper && has_lower != upper
}

/// Returns whether Python counts a character as whitespace.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

pub(super) fn capitalized(value: &str) -> String {
    let mut chars = value.chars();
    chars
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(chars.as_str().to_lowercase().chars())
        .collect()
}

/// Returns a text in which every run of letters begins with a capital letter, like Python's `str.title`.
fn title(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut inside = false;
    for c in value.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn swapped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_uppercase() { out.extend(c.to_lowercase()) } else { out.extend(c.to_uppercase()) }
    }
    out
}

/// Returns a text without the characters `chars` at its ends, or without whitespace if `chars` is `None`.
pub(super) fn stripped<'a>(value: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let is_stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let value = if start { value.trim_start_matches(is_stripped) } else { value };
    if end { value.trim_end_matches(is_stripped) } else { value }
}

fn split(value: &str, arguments: &Arguments<'_>, from_end: bool) -> Result<Value, Error> {
    let limit = arguments.integer(1, "maxsplit", -1)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match arguments.text(0, "sep")? {
        Some(separator) if separator.is_empty() => return Err(invalid("empty separator")),
        Some(separator) if from_end => value.rsplitn(limit.saturating_add(1), &*separator).collect(),
        Some(separator) => value.splitn(limit.saturating_add(1), &*separator).collect(),
        None => split_whitespace(value, limit, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().collect())
}

/// Splits a text at runs of whitespace, from the start or from the end, at most `limit` times.
fn split_whitespace(value: &str, limit: usize, from_end: bool) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), value);
    loop {
        rest = stripped(rest, None, !from_end, from_end);
        if rest.is_empty() {
            return parts;
        }
        if parts.len() == limit {
            // The part after the last split keeps its inner whitespace, and the whitespace at its far end.
            parts.push(rest);
            return parts;
        }
        let at = if from_end {
            rest.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(at, c)| (at, at + c.len_utf8()))
        } else {
            rest.char_indices().find(|(_, c)| is_space(*c)).map(|(at, c)| (at, at + c.len_utf8()))
        };
        match at {
            None => {
                parts.push(rest);
                return parts;
            }
            Some((_, after)) if from_end => {
                parts.push(&rest[after..]);
                rest = &rest[..after];
            }
            Some((before, _)) => {
                parts.push(&rest[..before]);
                rest = &rest[before..];
            }
        }
    }
}

/// Splits a text at line breaks, like Python's `str.splitlines`.
pub(super) fn lines(value: &str, keep_ends: bool) -> Vec<&str> {
    let (mut lines, mut start) = (Vec::new(), 0);
    let mut chars = value.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let breaks = matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if breaks {
            let pair = c == '\r' && chars.next_if(|(_, next)| *next == '\n').is_some();
            let end = at + c.len_utf8() + usize::from(pair);
            lines.push(&value[start..if keep_ends { end } else { at }]);
            start = end;
        }
    }
    if start < value.len() {
        lines.push(&value[start..]);
    }
    lines
}

/// Replaces occurrences of `old` by `new`: at most `count` of them, or all if `count` is negative.
pub(super) fn replaced(value: &str, old: &str, new: &str, count: i64) -> Result<String, Error> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let occurrences =
        if old.is_empty() { value.chars().count() + 1 } else { value.matches(old).count() }.min(limit);
    let bytes = occurrences.saturating_mul(new.len()).saturating_add(value.len());
    if bytes > MAX_TEXT {
        return Err(invalid(format!(
            "replace: the text may have {bytes} bytes, expected at most {MAX_TEXT}"
        )));
    }
    Ok(value.replacen(old, new, limit))
}

/// Returns the part of a text that the arguments `start` and `end`, in characters, select, and the number of characters
/// before it; `None` if the part begins beyond the end.
fn window<'a>(value: &'a str, arguments: &Arguments<'_>) -> Result<Option<(&'a str, usize)>, Error> {
    if arguments.positional.len() <= 1 {
        return Ok(Some((value, 0)));
    }
    let len = value.chars().count() as i64;
    let place = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let start = place(arguments.integer(1, "start", 0)?);
    let end = place(arguments.integer(2, "end", len)?).min(len);
    if start > len || start > end {
        return Ok(None);
    }
    let byte = |at: i64| value.char_indices().nth(at as usize).map_or(value.len(), |(at, _)| at);
    Ok(Some((&value[byte(start)..byte(end)], start as usize)))
}

fn affix(value: &str, arguments: &Arguments<'_>, test: impl Fn(&str, &str) -> bool) -> Result<Value, Error> {
    let affix = arguments.positional.first().cloned().unwrap_or_default();
    let Some((part, _)) = window(value, arguments)? else { return Ok(Value::from(false)) };
    let affixes = match type_name(&affix) {
        "str" => vec![affix],
        "tuple" => items(&affix)?,
        other => {
            return Err(invalid(format!(
                "{} first arg must be str or a tuple of str, not {other}",
                arguments.method
            )));
        }
    };
    Ok(Value::from(affixes.iter().filter_map(Value::as_str).any(|affix| test(part, affix))))
}

fn find(value: &str, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let wanted = arguments.required_text(0, "sub")?;
    let from_end = arguments.method.starts_with('r');
    let found = window(value, arguments)?.and_then(|(part, before)| {
        let at = if from_end { part.rfind(&*wanted) } else { part.find(&*wanted) }?;
        Some(before + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if arguments.method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid("substring not found")),
    }
}

fn width(arguments: &Arguments<'_>) -> Result<usize, Error> {
    let width = arguments.integer(0, "width", 0)?;
    if width > MAX_WIDTH {
        let method = arguments.method;
        return Err(invalid(format!("{method}: the width is {width}, expected at most {MAX_WIDTH}")));
    }
    Ok(usize::try_from(width).unwrap_or(0))
}

fn padded(value: &str, arguments: &Arguments<'_>) -> Result<String, Error> {
    let width = width(arguments)?;
    let fill = arguments.text(1, "fillchar")?.unwrap_or(" ".into());
    let missing = width.saturating_sub(value.chars().count());
    // Python's rule for the side on which `center` puts one character more.
    let before = match arguments.method {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{value}{}", fill.repeat(before), fill.repeat(missing - before)))
}

/// Implements `str.format` for fields without attributes and formats.
fn formatted(value: &str, arguments: &Arguments<'_>) -> Result<String, Error> {
    let (mut out, mut next) = (String::new(), 0);
    let mut rest = value;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let doubled = rest[at..].starts_with("{{") || rest[at..].starts_with("}}");
        if doubled {
            out.push_str(&rest[at..=at]);
            rest = &rest[at + 2..];
            continue;
        }
        let field = rest[at..].strip_prefix('{').and_then(|field| field.split_once('}'));
        let (field, after) = field.ok_or_else(|| invalid("format: a single brace in the text"))?;
        let argument = match field.parse::<usize>() {
            Ok(index) => arguments.positional.get(index).cloned(),
            Err(_) if field.is_empty() => {
                next += 1;
                arguments.positional.get(next - 1).cloned()
            }
            Err(_) if field.chars().all(|c| c.is_alphanumeric() || c == '_') => arguments
                .named
                .as_ref()
                .filter(|named| named.has(field))
                .and_then(|named| named.get(field).ok()),
            Err(_) => return Err(invalid(format!("format: the field `{field}` is not supported"))),
        };
        out.push_str(&text(&argument.ok_or_else(|| invalid("format: an argument is missing"))?)?);
        rest = after;
    }
    out.push_str(rest);
    bounded(out)
}
