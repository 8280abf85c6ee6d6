//! Rewrites a Jinja2 template for the `minijinja` crate. Statements stay; where the two engines differ in an
//! operation, the operation becomes a call of a function that does what Jinja2 does (`functions`).

mod expressions;
mod statements;

use std::collections::BTreeMap;
use std::fmt::Write;

use super::lexer::{Segment, Token, Untranslatable, segments, with_unix_line_endings};

/// Limit on the nesting depth of an expression.
const MAX_DEPTH: usize = 40;

/// Names of the methods of Python's `dict`. An attribute with such a name is the method, even if the dict has a
/// key of this name.
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];

/// The parameters of a macro.
#[derive(Clone, Debug, Default)]
struct MacroShape {
    /// The parameters' names, each with whether it has a default.
    parameters: Vec<(String, bool)>,
    /// Whether the body uses `varargs` or `kwargs`, which hold arguments beyond the parameters.
    varargs: bool,
    kwargs: bool,
}

/// Translates the source of a Jinja2 template for the `minijinja` crate.
pub(super) fn translate(source: &str) -> Result<String, Untranslatable> {
    let source = with_unix_line_endings(source);
    let segments = segments(&source)?;
    let macros = macros(&segments);
    let markup = uses_markup(&segments);
    let mut out = String::with_capacity(source.len() + source.len() / 4);
    for segment in &segments {
        match segment {
            Segment::Verbatim(text) => out.push_str(text),
            Segment::Tag { open, tokens, close, line_breaks } => {
                // The translated tag keeps the line breaks of the original tag, so that the engine's errors
                // name the right line.
                let lines = "\n".repeat(*line_breaks);
                let mut parser = Parser { tokens, position: 0, depth: 0, macros: &macros, markup };
                if open.starts_with("{{") {
                    let expression = parser.tuple(true)?;
                    parser.end()?;
                    let _ = write!(out, "{open} {}{lines} {close}", expression.code);
                } else {
                    let statement = parser.statement()?;
                    let _ = write!(out, "{open} {}{lines} {close}", statement.code);
                    for line in statement.then {
                        let _ = write!(out, "{{% {line} {close}");
                    }
                }
            }
        }
    }
    Ok(out)
}

/// Returns whether a template applies a filter that marks its result as HTML.
fn uses_markup(segments: &[Segment<'_>]) -> bool {
    let marks = |pair: &[Token]| match pair {
        [Token::Operator("|"), Token::Name(filter)] => matches!(filter.as_str(), "safe" | "escape" | "e"),
        _ => false,
    };
    segments
        .iter()
        .any(|segment| matches!(segment, Segment::Tag { tokens, .. } if tokens.windows(2).any(marks)))
}

/// Returns the macros of a template by name.
fn macros(segments: &[Segment<'_>]) -> BTreeMap<String, MacroShape> {
    let mut macros = BTreeMap::new();
    let mut open: Vec<(String, MacroShape)> = Vec::new();
    for segment in segments {
        let Segment::Tag { tokens, .. } = segment else { continue };
        for token in tokens {
            if let (Token::Name(name), Some((_, shape))) = (token, open.last_mut()) {
                shape.varargs |= name == "varargs";
                shape.kwargs |= name == "kwargs";
            }
        }
        match tokens.as_slice() {
            [Token::Name(keyword), Token::Name(name), rest @ ..] if keyword == "macro" => {
                open.push((
                    name.clone(),
                    MacroShape { parameters: parameters(rest), ..MacroShape::default() },
                ));
            }
            [Token::Name(keyword), ..] if keyword == "endmacro" => macros.extend(open.pop()),
            _ => {}
        }
    }
    macros
}

/// Returns the parameters between the parentheses of a macro's head.
fn parameters(tokens: &[Token]) -> Vec<(String, bool)> {
    let (mut parameters, mut depth) = (Vec::new(), 0);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Operator("(" | "[" | "{") => depth += 1,
            Token::Operator(")" | "]" | "}") => depth -= 1,
            Token::Name(name) if depth == 1 => {
                let starts = matches!(
                    at.checked_sub(1).and_then(|before| tokens.get(before)),
                    Some(Token::Operator("(" | ","))
                );
                if starts {
                    parameters.push((name.clone(), tokens.get(at + 1) == Some(&Token::Operator("="))));
                }
            }
            _ => {}
        }
    }
    parameters
}

/// A translated expression.
struct Expression {
    code: String,
    kind: Kind,
}

#[derive(Clone, PartialEq)]
enum Kind {
    /// A single name.
    Name(String),
    /// An attribute of an expression: the expression, and the attribute's name.
    Attribute(String, String),
    Other,
}

impl Expression {
    fn other(code: String) -> Self {
        Self { code, kind: Kind::Other }
    }
}

/// A translated statement, and statements that follow it.
struct Statement {
    code: String,
    then: Vec<String>,
}

/// A parser of the tokens of one tag.
struct Parser<'a> {
    tokens: &'a [Token],
    position: usize,
    depth: usize,
    macros: &'a BTreeMap<String, MacroShape>,
    /// Whether the template marks strings as HTML: `+` then escapes a string before it adds it to a marked
    /// string.
    markup: bool,
}

type Translated<T = Expression> = Result<T, Untranslatable>;

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.position)
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(found)) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if found == name)
    }

    fn skip(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.position += usize::from(found);
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, operator: &str) -> Translated<()> {
        if self.skip(operator) { Ok(()) } else { Err(self.unexpected(&format!("`{operator}`"))) }
    }

    fn name(&mut self) -> Translated<String> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = name.clone();
                self.position += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn unexpected(&self, expected: &str) -> Untranslatable {
        let found = match self.peek() {
            None => "the end of the tag".to_owned(),
            Some(Token::Name(name)) => format!("`{name}`"),
            Some(Token::Text(_)) => "a string".to_owned(),
            Some(Token::Number(number)) => format!("`{number}`"),
            Some(Token::Operator(operator)) => format!("`{operator}`"),
        };
        Untranslatable::new(format!("{found}, expected {expected},"))
    }

    fn end(&self) -> Translated<()> {
        if self.peek().is_none() { Ok(()) } else { Err(self.unexpected("the end of the tag")) }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Translated<T>) -> Translated<T> {
        if self.depth == MAX_DEPTH {
            return Err(Untranslatable::new(format!("an expression that nests more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }
}

/// Returns a text as a string literal of the template engine.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
