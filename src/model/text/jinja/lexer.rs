//! Splits the source of a template into text and tags, and tags into tokens, like Jinja2's lexer.

use minijinja::{Error, ErrorKind};

/// The error for a construct of Jinja2 that the translation to `minijinja` does not support.
#[derive(Debug)]
pub(super) struct Untranslatable(String);

impl Untranslatable {
    pub(super) fn new(construct: impl Into<String>) -> Self {
        Self(construct.into())
    }
}

impl From<Untranslatable> for Error {
    fn from(Untranslatable(construct): Untranslatable) -> Self {
        Error::new(ErrorKind::SyntaxError, format!("{construct} is not supported in a template"))
    }
}

/// A token of an expression or a statement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    /// A string literal, with its escapes decoded.
    Text(String),
    /// An integer or a float, as the template engine writes it.
    Number(String),
    Operator(&'static str),
}

/// A piece of a template: text, or one tag.
#[derive(Debug, PartialEq)]
pub(super) enum Segment<'a> {
    /// Text, comments and raw blocks, which stay as they are.
    Verbatim(&'a str),
    /// A statement or an expression between its delimiters, which may have a sign that controls whitespace; and the
    /// number of line breaks in it.
    Tag { open: &'a str, tokens: Vec<Token>, close: &'a str, line_breaks: usize },
}

/// The operators of Jinja2; an operator comes before every operator that it starts with.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",",
];

/// Replaces every line ending by `\n`.
pub(super) fn with_unix_line_endings(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Splits the source of a template into text and tags.
pub(super) fn segments(source: &str) -> Result<Vec<Segment<'_>>, Untranslatable> {
    let mut segments = Vec::new();
    let (mut verbatim, mut position) = (0, 0);
    while let Some(found) = next_open(source, position) {
        if source[found..].starts_with("{#") {
            let end =
                source[found..].find("#}").ok_or_else(|| Untranslatable::new("a comment without `#}`"))?;
            position = found + end + 2;
            continue;
        }
        let sign = source[found + 2..].starts_with(['-', '+']);
        let open = &source[found..found + 2 + usize::from(sign)];
        let close = if open.starts_with("{%") { "%}" } else { "}}" };
        let start = found + open.len();
        let (tokens, body_end, end) = tokens(source, start, close)?;
        if tokens == [Token::Name("raw".into())] && close == "%}" {
            position = raw_end(source, end)?;
            continue;
        }
        segments.push(Segment::Verbatim(&source[verbatim..found]));
        let line_breaks = source[found..end].matches('\n').count();
        segments.push(Segment::Tag { open, tokens, close: &source[body_end..end], line_breaks });
        (verbatim, position) = (end, end);
    }
    segments.push(Segment::Verbatim(&source[verbatim..]));
    Ok(segments)
}

/// Returns the position of the next `{{`, `{%` or `{#`.
fn next_open(source: &str, from: usize) -> Option<usize> {
    let bytes = source.as_bytes();
    (from..bytes.len().saturating_sub(1))
        .find(|&at| bytes[at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#'))
}

/// Returns the end of the tag `endraw` that closes a raw block.
fn raw_end(source: &str, from: usize) -> Result<usize, Untranslatable> {
    let mut position = from;
    while let Some(found) = source[position..].find("{%") {
        position += found + 2;
        let rest = source[position..].trim_start_matches(['-', '+']).trim_start();
        if let Some(rest) = rest.strip_prefix("endraw") {
            let rest = rest.trim_start().trim_start_matches(['-', '+']);
            if rest.starts_with("%}") {
                return Ok(source.len() - rest.len() + 2);
            }
        }
    }
    Err(Untranslatable::new("`raw` without `endraw`"))
}

/// Reads tokens up to the closing delimiter. Returns the tokens, and where the delimiter begins and ends.
fn tokens(source: &str, from: usize, close: &str) -> Result<(Vec<Token>, usize, usize), Untranslatable> {
    let (mut tokens, mut position, mut depth) = (Vec::new(), from, 0usize);
    loop {
        let rest = &source[position..];
        let trimmed = rest.trim_start();
        position += rest.len() - trimmed.len();
        let rest = trimmed;
        if depth == 0 {
            let delimiter = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if delimiter.starts_with(close) {
                return Ok((tokens, position, position + rest.len() - delimiter.len() + close.len()));
            }
        }
        let Some(first) = rest.chars().next() else {
            return Err(Untranslatable::new(format!("a tag without `{close}`")));
        };
        let (token, len) = match first {
            '\'' | '"' => text(rest, first)?,
            '0'..='9' => number(rest, tokens.last() == Some(&Token::Operator("."))),
            c if c == '_' || c.is_alphabetic() => {
                let len = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                (Token::Name(rest[..len].to_owned()), len)
            }
            c => {
                let operator = OPERATORS.into_iter().find(|operator| rest.starts_with(operator));
                let operator = operator.ok_or_else(|| Untranslatable::new(format!("the character `{c}`")))?;
                match operator {
                    "(" | "[" | "{" => depth += 1,
                    ")" | "]" | "}" => depth = depth.saturating_sub(1),
                    _ => {}
                }
                (Token::Operator(operator), operator.len())
            }
        };
        tokens.push(token);
        position += len;
    }
}

/// Reads a string literal, with the escapes of Python.
fn text(source: &str, quote: char) -> Result<(Token, usize), Untranslatable> {
    let mut text = String::new();
    let mut chars = source.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Ok((Token::Text(text), at + 1));
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        let Some((_, escaped)) = chars.next() else { break };
        let digits = match escaped {
            '\n' => continue,
            '\\' | '\'' | '"' => {
                text.push(escaped);
                continue;
            }
            'n' | 't' | 'r' | 'b' | 'f' | 'v' | 'a' => {
                text.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'v' => '\u{b}',
                    _ => '\u{7}',
                });
                continue;
            }
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='7' => {
                let mut code = escaped.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|(_, c)| c.to_digit(8)) else { break };
                    code = 8 * code + digit;
                    chars.next();
                }
                text.extend(char::from_u32(code));
                continue;
            }
            'N' => return Err(Untranslatable::new("the escape `\\N{…}` in a string")),
            other => {
                text.push('\\');
                text.push(other);
                continue;
            }
        };
        let mut code = Some(0u32);
        for _ in 0..digits {
            let digit = chars.next().and_then(|(_, c)| c.to_digit(16));
            code = code.zip(digit).and_then(|(code, digit)| code.checked_mul(16)?.checked_add(digit));
        }
        // A surrogate is not a character, and no Rust string can contain one.
        let c = code.and_then(char::from_u32);
        text.push(c.ok_or_else(|| Untranslatable::new(format!("the escape `\\{escaped}` in a string")))?);
    }
    Err(Untranslatable::new("a string without its closing quote"))
}

/// Returns an integer in base 2, 8 or 16 as the template engine writes it.
fn prefixed_integer(source: &str) -> Token {
    let digits = source[2..].replace('_', "");
    let base = match source.as_bytes()[1].to_ascii_lowercase() {
        b'x' => 16,
        b'o' => 8,
        _ => 2,
    };
    // Text that is not a number is passed on, and the template engine's parser reports it.
    Token::Number(u64::from_str_radix(&digits, base).map_or_else(|_| source.to_owned(), |n| n.to_string()))
}

/// Reads an integer or a float; after a dot, as in `a.0`, only the digits of an index.
fn number(source: &str, after_dot: bool) -> (Token, usize) {
    let bytes = source.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(|&byte| byte.is_ascii_digit() || byte == b'_') {
            at += 1;
        }
        at
    };
    let prefixed = bytes.get(1).is_some_and(|byte| matches!(byte.to_ascii_lowercase(), b'x' | b'o' | b'b'));
    if source.starts_with('0') && prefixed && !after_dot {
        let len = source.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(source.len());
        return (prefixed_integer(&source[..len]), len);
    }
    let mut end = digits(0);
    if !after_dot {
        let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        let fraction = bytes.get(end) == Some(&b'.') && is_digit(end + 1);
        if fraction {
            end = digits(end + 1);
        }
        if bytes.get(end).is_some_and(|&byte| matches!(byte, b'e' | b'E')) {
            let sign = usize::from(bytes.get(end + 1).is_some_and(|&byte| matches!(byte, b'+' | b'-')));
            if is_digit(end + 1 + sign) {
                end = digits(end + 1 + sign);
            }
        }
    }
    (Token::Number(source[..end].replace('_', "")), end)
}
