//! The operations, filters and tests of chat templates, made to work as in Python's Jinja2.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, filters};

use super::methods;
use super::percent;
use super::template_json::to_json;
use super::values::{
    Generator, GivenUndefined, MAX_TEXT, Method, bounded, invalid, is_generator, items, plain, text, tuple,
    type_name,
};
use crate::model::load_error::shorten;

/// The largest indentation that the filter `indent` makes, in characters.
const MAX_INDENT: usize = 4096;

/// The maximum number of decimals to which the filter `round` rounds a number.
const MAX_DIGITS: usize = 17;

/// Adds to the template engine the functions that [translated templates](super::translate) call, filters and
/// tests.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    operations(environment);
    filters_of_values(environment);
    filters_of_texts(environment);
    generators(environment);
    tests(environment);
}

fn operations(environment: &mut Environment<'_>) {
    environment.add_function("__concat", |operands: Rest<Value>| -> Result<String, Error> {
        let mut out = String::new();
        for operand in operands.iter() {
            out.push_str(&text(operand)?);
        }
        bounded(out)
    });
    environment.add_function("__add", add);
    environment.add_function("__tuple", |items: Rest<Value>| tuple(items.0));
    environment.add_function("__iter", |value: Value| -> Result<Value, Error> {
        let list = items(&value)?;
        // A list or dict is returned itself, so that it need not be copied.
        let same = matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
        Ok(if same { value } else { Value::from(list) })
    });
    environment.add_function("__in", |value: Value, container: Value| -> Result<bool, Error> {
        match container.kind() {
            ValueKind::String => match (value.as_str(), container.as_str()) {
                (Some(part), Some(whole)) => Ok(whole.contains(part)),
                _ => {
                    let found = type_name(&value);
                    Err(invalid(format!("'in <string>' requires string as left operand, not {found}")))
                }
            },
            ValueKind::Map => Ok(items(&container)?.contains(&value)),
            _ => match items(&container) {
                Ok(items) => Ok(items.contains(&value)),
                Err(_) => {
                    let found = type_name(&container);
                    Err(invalid(format!("argument of type '{found}' is not iterable")))
                }
            },
        }
    });
    environment.add_function("__mod", modulo);
    environment.add_function("__floordiv", floor_division);
    environment.add_function("__slice", slice);
    environment.add_function("__argument", |value: Value| {
        if value.is_undefined() { Value::from_object(GivenUndefined) } else { value }
    });
    environment.add_function("__given", |value: Value| {
        if value.downcast_object_ref::<GivenUndefined>().is_some() { Value::UNDEFINED } else { value }
    });
    environment.add_function("__attribute", |value: Value, name: String| -> Result<Value, Error> {
        match value.kind() {
            ValueKind::Map => Ok(Value::from_object(Method)),
            _ => value.get_attr(&name),
        }
    });
    environment.add_function("__call", methods::call);
}

/// Adds numbers, lists or strings. A string that is marked as HTML stays so: other strings are escaped.
fn add(state: &State<'_, '_>, left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(a), Some(b), true) = (left.as_str(), right.as_str(), left.is_safe() || right.is_safe()) {
        let escaped =
            |value: &Value, text: &str| if value.is_safe() { text.to_owned() } else { escape(text) };
        let sum = bounded(escaped(&left, a) + &escaped(&right, b))?;
        return Ok(Value::from_safe_string(sum));
    }
    let sum = state.env().compile_expression("left + right")?;
    sum.eval(minijinja::context! { left, right })
}

/// Escapes a text for HTML, as Python's MarkupSafe does.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

fn modulo(left: Value, right: Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return percent::format(format, &right).map(Value::from);
    }
    match integers(&left, &right) {
        Some((_, 0)) => Err(invalid("integer modulo by zero")),
        Some((left, right)) => {
            let rest = left.checked_rem(right).unwrap_or(0);
            Ok(Value::from(if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest }))
        }
        None => {
            let (left, right) = floats(&left, &right, "%")?;
            if right == 0.0 {
                return Err(invalid("float modulo by zero"));
            }
            let rest = left % right;
            Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (right < 0.0) { rest + right } else { rest }))
        }
    }
}

fn floor_division(left: Value, right: Value) -> Result<Value, Error> {
    match integers(&left, &right) {
        Some((_, 0)) => Err(invalid("integer division by zero")),
        Some((left, right)) => {
            let quotient = left.checked_div(right).ok_or_else(|| invalid("the quotient is too large"))?;
            let exact = left.checked_rem(right).is_none_or(|rest| rest == 0);
            Ok(Value::from(if !exact && (left < 0) != (right < 0) { quotient - 1 } else { quotient }))
        }
        None => {
            let (left, right) = floats(&left, &right, "//")?;
            if right == 0.0 {
                Err(invalid("float division by zero"))
            } else {
                Ok(Value::from((left / right).floor()))
            }
        }
    }
}

/// Returns the integers of two values, or `None` if one is not an integer; a boolean counts as 0 or 1.
fn integers(left: &Value, right: &Value) -> Option<(i128, i128)> {
    let integer = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    Some((integer(left)?, integer(right)?))
}

fn floats(left: &Value, right: &Value, operator: &str) -> Result<(f64, f64), Error> {
    let float = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    float(left).zip(float(right)).ok_or_else(|| {
        let (left, right) = (type_name(left), type_name(right));
        invalid(format!("unsupported operand types for {operator}: '{left}' and '{right}'"))
    })
}

fn slice(value: Value, start: Value, stop: Value, step: Option<Value>) -> Result<Value, Error> {
    let bound = |bound: &Value| match bound.kind() {
        ValueKind::None => Ok(None),
        _ if bound.is_integer() => i64::try_from(bound.clone()).map(Some),
        _ => Err(invalid("slice indices must be integers or None")),
    };
    let list: Vec<Value> = match value.kind() {
        // A slice of an undefined value is an error, as in Jinja2.
        ValueKind::Undefined => return Err(Error::from(minijinja::ErrorKind::UndefinedError)),
        ValueKind::Map => return Err(invalid("a dict cannot be sliced")),
        ValueKind::Iterable if is_generator(&value) => return Err(invalid("a generator cannot be sliced")),
        _ => items(&value)?,
    };
    let len = list.len() as i64;
    let step = step.as_ref().map(bound).transpose()?.flatten().unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(bound) if bound < 0 => bound.saturating_add(len).clamp(lowest, highest),
        Some(bound) => bound.clamp(lowest, highest),
    };
    let (first, last) = if step > 0 { (0, len) } else { (len - 1, -1) };
    let (mut at, stop) = (place(bound(&start)?, first), place(bound(&stop)?, last));
    let mut taken = Vec::new();
    while if step > 0 { at < stop } else { at > stop } {
        taken.extend(usize::try_from(at).ok().and_then(|at| list.get(at)).cloned());
        at = at.saturating_add(step);
    }
    if value.kind() == ValueKind::String {
        return Ok(Value::from(taken.iter().filter_map(Value::as_str).collect::<String>()));
    }
    Ok(if type_name(&value) == "tuple" { tuple(taken) } else { Value::from(taken) })
}

fn filters_of_values(environment: &mut Environment<'_>) {
    for name in ["length", "count"] {
        environment.add_filter(name, |value: Value| -> Result<usize, Error> {
            match value.kind() {
                ValueKind::String => Ok(value.as_str().unwrap_or_default().chars().count()),
                ValueKind::Undefined | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
                    if !is_generator(&value) =>
                {
                    Ok(items(&value)?.len())
                }
                _ => Err(invalid(format!("object of type '{}' has no len()", type_name(&value)))),
            }
        });
    }
    environment.add_filter("first", |value: Value| -> Result<Value, Error> {
        Ok(items(&value)?.into_iter().next().unwrap_or(Value::UNDEFINED))
    });
    environment.add_filter("last", |value: Value| -> Result<Value, Error> {
        if is_generator(&value) {
            return Err(invalid("'generator' object is not reversible"));
        }
        Ok(items(&value)?.pop().unwrap_or(Value::UNDEFINED))
    });
    environment.add_filter("list", |value: Value| items(&value));
    environment.add_filter("string", |value: Value| text(&value));
    environment.add_filter("int", |value: Value, options: Rest<Value>| -> Result<Value, Error> {
        let options = Options::new(&options);
        let base = options.get(1, "base").and_then(|base| base.as_usize()).unwrap_or(10);
        int(&value, options.get(0, "default").unwrap_or(Value::from(0)), base)
    });
    environment.add_filter("round", |value: Value, options: Rest<Value>| -> Result<Value, Error> {
        let options = Options::new(&options);
        let digits = options.get(0, "precision").map_or(Some(0), |digits| digits.as_usize());
        let digits = digits.filter(|digits| *digits <= MAX_DIGITS);
        let digits = digits.ok_or_else(|| invalid("round: this precision is not supported"))?;
        round(&value, digits, options.get(1, "method").as_ref().and_then(Value::as_str).unwrap_or("common"))
    });
    environment.add_filter("dictsort", |value: Value, options: Rest<Value>| {
        let options = Options::new(&options);
        let flag = |index, name| options.get(index, name).is_some_and(|flag| flag.is_true());
        let by_value = options.get(1, "by").is_some_and(|by| by.as_str() == Some("value"));
        sorted_pairs(&value, flag(0, "case_sensitive"), by_value, flag(2, "reverse"))
    });
    environment.add_filter("float", |value: Value, options: Rest<Value>| -> Result<Value, Error> {
        let default = Options::new(&options).get(0, "default");
        let number = match value.kind() {
            ValueKind::Undefined => return Err(Error::from(minijinja::ErrorKind::UndefinedError)),
            ValueKind::String => parse_float(value.as_str().unwrap_or_default()),
            _ => floats(&value, &value, "float").ok().map(|(number, _)| number),
        };
        Ok(number.map_or_else(|| default.unwrap_or(Value::from(0.0)), Value::from))
    });
    for name in ["default", "d"] {
        environment.add_filter(name, |value: Value, options: Rest<Value>| {
            let options = Options::new(&options);
            let or_false = options.get(1, "boolean").is_some_and(|flag| flag.is_true());
            let missing = value.is_undefined() || (or_false && !value.is_true());
            if missing { options.get(0, "default_value").unwrap_or(Value::from("")) } else { value }
        });
    }
    environment.add_filter("tojson", |value: Value, options: Kwargs| to_json(&value, &options));
    environment.add_filter("join", |value: Value, options: Rest<Value>| -> Result<String, Error> {
        let options = Options::new(&options);
        let separator = options.get(0, "d").as_ref().map(text).transpose()?.unwrap_or_default();
        let attribute = options.get(1, "attribute");
        let mut out = String::new();
        for (index, item) in items(&value)?.iter().enumerate() {
            out.push_str(if index > 0 { &separator } else { "" });
            let item = match attribute.as_ref().and_then(Value::as_str) {
                Some(attribute) => &item.get_attr(attribute)?,
                None => item,
            };
            out.push_str(&text(item)?);
        }
        bounded(out)
    });
}

/// The options of a filter's call, which a template gives by position or by name.
struct Options<'a> {
    positional: &'a [Value],
    named: Option<Kwargs>,
}

impl<'a> Options<'a> {
    fn new(options: &'a Rest<Value>) -> Self {
        match options.split_last() {
            Some((last, positional)) if last.is_kwargs() => {
                Self { positional, named: Kwargs::try_from(last.clone()).ok() }
            }
            _ => Self { positional: &options.0, named: None },
        }
    }

    fn get(&self, index: usize, name: &str) -> Option<Value> {
        let named = || self.named.as_ref().filter(|named| named.has(name))?.get::<Value>(name).ok();
        self.positional.get(index).cloned().or_else(named)
    }
}

/// Rounds a number like Jinja2's filter `round`: with the method `common` to the nearest number with `digits`
/// decimals, a tie to the even digit.
fn round(value: &Value, digits: usize, method: &str) -> Result<Value, Error> {
    let (number, _) = floats(value, value, "round")?;
    let power = 10f64.powi(i32::try_from(digits).unwrap_or(0));
    match method {
        "common" if value.is_integer() => Ok(value.clone()),
        "common" => {
            Ok(format!("{number:.digits$}").parse::<f64>().map_or_else(|_| value.clone(), Value::from))
        }
        "ceil" => Ok(Value::from((number * power).ceil() / power)),
        "floor" => Ok(Value::from((number * power).floor() / power)),
        _ => Err(invalid("method must be common, ceil or floor")),
    }
}

/// Returns the entries of a dict sorted by key or by value, for the filter `dictsort`.
fn sorted_pairs(
    dict: &Value,
    case_sensitive: bool,
    by_value: bool,
    reverse: bool,
) -> Result<Vec<Value>, Error> {
    if dict.kind() != ValueKind::Map {
        return Err(invalid(format!("dictsort: '{}' object has no items", type_name(dict))));
    }
    let mut keyed = Vec::new();
    for pair in methods::pairs(dict)? {
        let key = pair.get_item(&Value::from(usize::from(by_value)))?;
        let key = match key.as_str() {
            Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
            _ => key,
        };
        keyed.push((key, pair));
    }
    keyed.sort_by(|(a, _), (b, _)| if reverse { b.cmp(a) } else { a.cmp(b) });
    Ok(keyed.into_iter().map(|(_, pair)| pair).collect())
}

/// Returns a value as an integer, like Jinja2's filter `int`, or the default if the value is not a number.
fn int(value: &Value, default: Value, base: usize) -> Result<Value, Error> {
    let of_float = |x: f64| {
        let whole = x.trunc();
        (x.is_finite() && whole.abs() < 1e38).then_some(whole as i128)
    };
    let number = match value.kind() {
        ValueKind::Undefined => return Err(Error::from(minijinja::ErrorKind::UndefinedError)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim();
            let digits = text.replace('_', "");
            let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
            let whole = base.and_then(|base| i128::from_str_radix(&digits, base).ok());
            whole.or_else(|| parse_float(text).and_then(of_float))
        }
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(of_float),
        _ => None,
    };
    Ok(match number {
        None => default,
        Some(number) => i64::try_from(number).map_or_else(|_| Value::from(number), Value::from),
    })
}

fn parse_float(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

fn filters_of_texts(environment: &mut Environment<'_>) {
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: Value| -> Result<Value, Error> {
            if value.is_safe() { Ok(value) } else { Ok(Value::from_safe_string(escape(&text(&value)?))) }
        });
    }
    environment.add_filter("safe", |value: Value| text(&value).map(Value::from_safe_string));
    environment.add_filter("upper", |value: Value| plain(&value).map(|text| text.to_uppercase()));
    environment.add_filter("lower", |value: Value| plain(&value).map(|text| text.to_lowercase()));
    environment
        .add_filter("capitalize", |value: Value| plain(&value).map(|text| methods::capitalized(&text)));
    environment.add_filter("title", |value: Value| plain(&value).map(|text| title(&text)));
    environment.add_filter("trim", |value: Value, chars: Option<Value>| -> Result<String, Error> {
        let (value, chars) = (plain(&value)?, chars.filter(|chars| !chars.is_none()));
        let chars = chars.as_ref().map(text).transpose()?;
        Ok(methods::stripped(&value, chars.as_deref(), true, true).to_owned())
    });
    environment.add_filter(
        "replace",
        |value: Value, old: Value, new: Value, count: Option<i64>| -> Result<String, Error> {
            methods::replaced(&plain(&value)?, &text(&old)?, &text(&new)?, count.unwrap_or(-1))
        },
    );
    environment.add_filter("format", |value: Value, arguments: Rest<Value>| -> Result<String, Error> {
        let named = arguments.last().filter(|last| last.is_kwargs()).cloned();
        percent::format(&plain(&value)?, &named.unwrap_or_else(|| tuple(arguments.0)))
    });
    environment.add_filter("indent", |value: Value, options: Rest<Value>| -> Result<String, Error> {
        let options = Options::new(&options);
        let width = options.get(0, "width").unwrap_or(Value::from(4));
        let indentation = match (width.as_str(), width.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= MAX_INDENT => " ".repeat(width),
            _ => {
                return Err(invalid(format!(
                    "indent: the width is {}, expected a string or at most {MAX_INDENT}",
                    shorten(&width.to_string())
                )));
            }
        };
        let flag = |index, name| options.get(index, name).is_some_and(|flag| flag.is_true());
        indent(&plain(&value)?, &indentation, flag(1, "first"), flag(2, "blank"))
    });
}

fn indent(value: &str, indentation: &str, first: bool, blank: bool) -> Result<String, Error> {
    // With one more line break, a value that ends with a line break has an empty last line, as in Jinja2.
    let text = format!("{value}\n");
    let mut out = String::new();
    for (index, line) in methods::lines(&text, false).iter().enumerate() {
        out.push_str(if index > 0 { "\n" } else { "" });
        let indented = if index == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if indented { indentation } else { "" });
        out.push_str(line);
        if out.len() > MAX_TEXT {
            break;
        }
    }
    bounded(out)
}

/// Returns a text with a capital letter at the start of every word, like Jinja2's filter `title`. A word begins
/// after a space, a dash or an opening bracket.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        begins = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    out
}

/// Adds the filters whose results are generators in Jinja2, such as `map` and `select`.
fn generators(environment: &mut Environment<'_>) {
    // For a value that counts as false, these filters give no items, as in Jinja2.
    let items = |value: &Value| if value.is_true() { items(value) } else { Ok(Vec::new()) };
    environment.add_filter("map", move |state: &State<'_, '_>, value: Value, rest: Rest<Value>| {
        filters::map(state, Value::from(items(&value)?), rest).map(Generator::value)
    });
    type Test<'a> = Option<Cow<'a, str>>;
    environment.add_filter(
        "select",
        move |state: &State<'_, '_>, value: Value, test: Test<'_>, rest: Rest<Value>| {
            filters::select(state, Value::from(items(&value)?), test, rest).map(Generator::value)
        },
    );
    environment.add_filter(
        "reject",
        move |state: &State<'_, '_>, value: Value, test: Test<'_>, rest: Rest<Value>| {
            filters::reject(state, Value::from(items(&value)?), test, rest).map(Generator::value)
        },
    );
    environment.add_filter(
        "selectattr",
        move |state: &State<'_, '_>, value: Value, name: Cow<'_, str>, test: Test<'_>, rest: Rest<Value>| {
            filters::selectattr(state, Value::from(items(&value)?), name, test, rest).map(Generator::value)
        },
    );
    environment.add_filter(
        "rejectattr",
        move |state: &State<'_, '_>, value: Value, name: Cow<'_, str>, test: Test<'_>, rest: Rest<Value>| {
            filters::rejectattr(state, Value::from(items(&value)?), name, test, rest).map(Generator::value)
        },
    );
    environment.add_filter("items", |value: Value| -> Result<Value, Error> {
        match value.kind() {
            ValueKind::Undefined => Ok(Generator::value(Vec::new())),
            ValueKind::Map => methods::pairs(&value).map(Generator::value),
            _ => Err(invalid("Can only get item pairs from a mapping.")),
        }
    });
}

fn tests(environment: &mut Environment<'_>) {
    environment.add_test("iterable", |value: Value| items(&value).is_ok());
    environment.add_test("sequence", |value: Value| {
        let kind = matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        );
        kind && !is_generator(&value)
    });
    environment.add_test("mapping", |value: Value| value.kind() == ValueKind::Map);
    environment
        .add_test("number", |value: Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("integer", |value: Value| value.kind() == ValueKind::Number && value.is_integer());
    environment.add_test("float", |value: Value| value.kind() == ValueKind::Number && !value.is_integer());
    environment.add_test("callable", |value: Value| {
        value.kind() == ValueKind::Plain && value.downcast_object_ref::<GivenUndefined>().is_none()
    });
    environment
        .add_test("lower", |value: Value| text(&value).is_ok_and(|text| methods::is_case(&text, false)));
    environment
        .add_test("upper", |value: Value| text(&value).is_ok_and(|text| methods::is_case(&text, true)));
}
