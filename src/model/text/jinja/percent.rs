//! Python's `%` formatting of strings.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::values::{Tuple, float, invalid, repr, text, type_name};

/// The greatest width of a formatted field, in characters.
const MAX_WIDTH: usize = 4096;

/// The flags, width and precision of a conversion such as `%-5.2f`.
#[derive(Default)]
struct Conversion {
    left: bool,
    zeros: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// Returns the result of Python's `format % arguments`.
pub(super) fn format(format: &str, arguments: &Value) -> Result<String, Error> {
    let list: Vec<Value> = match arguments.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.0.clone(),
        None => vec![arguments.clone()],
    };
    let (mut out, mut used, mut by_name) = (String::new(), 0, false);
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut name = None;
        if chars.next_if_eq(&'(').is_some() {
            let text: String = chars.by_ref().take_while(|&c| c != ')').collect();
            name = Some(text);
        }
        let mut conversion = Conversion::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | ' ' | '#')) {
            match flag {
                '-' => conversion.left = true,
                '0' => conversion.zeros = true,
                '+' => conversion.plus = true,
                ' ' => conversion.space = true,
                _ => conversion.alternate = true,
            }
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut number = 0usize;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                number = number.saturating_mul(10).saturating_add(digit as usize);
                chars.next();
            }
            if number > MAX_WIDTH {
                Err(invalid(format!(
                    "a format has the width or precision {number}, expected at most {MAX_WIDTH}"
                )))
            } else {
                Ok(number)
            }
        };
        conversion.width = number(&mut chars)?;
        if chars.next_if_eq(&'.').is_some() {
            conversion.precision = Some(number(&mut chars)?);
        }
        let Some(kind) = chars.next() else { return Err(invalid("incomplete format")) };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match name {
            Some(name) => {
                by_name = true;
                arguments.get_item(&Value::from(name.as_str()))?
            }
            None => {
                used += 1;
                let value = list.get(used - 1).cloned();
                value.ok_or_else(|| invalid("not enough arguments for format string"))?
            }
        };
        out.push_str(&conversion.apply(kind, &value)?);
    }
    let may_be_left = by_name || matches!(arguments.kind(), ValueKind::Map);
    if used < list.len() && !may_be_left {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    Ok(out)
}

impl Conversion {
    fn apply(&self, kind: char, value: &Value) -> Result<String, Error> {
        let cut = |text: String| match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text,
        };
        Ok(match kind {
            's' => self.padded("", &cut(text(value)?), false),
            'r' => self.padded("", &cut(repr(value)?), false),
            'd' | 'i' | 'u' => {
                let integer = self.integer(value)?;
                self.number(integer < 0, "", &integer.unsigned_abs().to_string())
            }
            'x' | 'X' | 'o' => {
                let integer = self.integer(value)?;
                let size = integer.unsigned_abs();
                let (prefix, digits) = match kind {
                    'x' => ("0x", format!("{size:x}")),
                    'X' => ("0X", format!("{size:X}")),
                    _ => ("0o", format!("{size:o}")),
                };
                self.number(integer < 0, if self.alternate { prefix } else { "" }, &digits)
            }
            'f' | 'F' => {
                let number = number(value)?;
                let digits = if number.is_finite() {
                    format!("{:.*}", self.precision.unwrap_or(6), number.abs())
                } else {
                    float(number.abs())
                };
                self.number(number.is_sign_negative(), "", &digits)
            }
            'e' | 'E' => {
                let number = number(value)?;
                let scientific = format!("{:.*e}", self.precision.unwrap_or(6), number.abs());
                let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
                let text = format!("{digits}{kind}{sign}{exponent:0>2}");
                self.number(number.is_sign_negative(), "", &text)
            }
            'c' => self.padded("", &text(value)?, false),
            other => return Err(invalid(format!("the format `%{other}` is not supported"))),
        })
    }

    /// Returns a value as an integer; a float is truncated.
    fn integer(&self, value: &Value) -> Result<i128, Error> {
        match value.kind() {
            ValueKind::Bool => Ok(i128::from(value.is_true())),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()),
            ValueKind::Number => Ok(f64::try_from(value.clone())?.trunc() as i128),
            _ => Err(invalid(format!("%d format: a real number is required, not {}", type_name(value)))),
        }
    }

    fn number(&self, negative: bool, prefix: &str, digits: &str) -> String {
        let sign = match negative {
            true => "-",
            false if self.plus => "+",
            false if self.space => " ",
            false => "",
        };
        self.padded(&format!("{sign}{prefix}"), digits, self.zeros && !self.left)
    }

    /// Fills a formatted value up to the field's width: with zeros after the sign, or with spaces.
    fn padded(&self, sign: &str, text: &str, zeros: bool) -> String {
        let missing = self.width.saturating_sub(sign.chars().count() + text.chars().count());
        match (zeros, self.left) {
            (true, _) => format!("{sign}{}{text}", "0".repeat(missing)),
            (false, true) => format!("{sign}{text}{}", " ".repeat(missing)),
            (false, false) => format!("{}{sign}{text}", " ".repeat(missing)),
        }
    }
}

fn number(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()),
        _ => Err(invalid(format!("must be real number, not {}", type_name(value)))),
    }
}
