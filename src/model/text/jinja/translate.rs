//! Rewrites a Jinja2 template for the `minijinja` crate. Statements stay; where the two engines differ in an
//! operation, the operation becomes a call of a function that does what Jinja2 does (`functions`).

use std::collections::BTreeMap;
use std::fmt::Write;

use super::lexer::{Segment, Token, Untranslatable, segments, with_unix_line_endings};

/// Limit on the depth of an expression.
const MAX_DEPTH: usize = 40;

/// Names of the methods of Python's `dict`. As an attribute, such a name is the method, even if it is a key too.
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];

/// The parameters of a macro.
#[derive(Clone, Debug, Default)]
struct MacroShape {
    /// Names, and whether they have a default.
    parameters: Vec<(String, bool)>,
    /// Whether the body uses `varargs` or `kwargs`, which hold arguments beyond the parameters.
    varargs: bool,
    kwargs: bool,
}

/// Translates the source of a template.
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
                // Errors of the engine name the line.
                let lines = "\n".repeat(*line_breaks);
                let mut parser = Parser { tokens, position: 0, depth: 0, macros: &macros, markup };
                if open.starts_with("{{") {
                    let expression = parser.tuple(true)?;
                    parser.end()?;
                    // A name alone would be printed by a shortcut of the engine, without the formatter.
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
    /// A name alone.
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
    /// Whether the template marks strings as HTML, to which `+` then adds other strings escaped.
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

    fn statement(&mut self) -> Translated<Statement> {
        let keyword = self.name()?;
        let mut then = Vec::new();
        let code = match keyword.as_str() {
            "generation" => "if true".to_owned(),
            "endgeneration" => "endif".to_owned(),
            "else" | "endif" | "endfor" | "endset" | "endcall" | "endfilter" | "endwith"
            | "endautoescape" | "break" | "continue" => keyword,
            "endmacro" | "endblock" => {
                if matches!(self.peek(), Some(Token::Name(_))) {
                    self.position += 1;
                }
                keyword
            }
            "if" | "elif" => format!("{keyword} {}", self.tuple(false)?.code),
            "for" => self.for_loop()?,
            "set" => self.set()?,
            "macro" => self.macro_head(&mut then)?,
            "call" => {
                let parameters =
                    if self.skip("(") { self.caller_parameters(&mut then)? } else { String::new() };
                format!("call{parameters} {}", self.conditional()?.code)
            }
            "filter" => format!("filter {}", self.filters()?),
            "with" => {
                let mut bindings = Vec::new();
                while self.peek().is_some() {
                    let target = self.target()?;
                    self.expect("=")?;
                    bindings.push(format!("{target} = {}", self.conditional()?.code));
                    if !self.skip(",") {
                        break;
                    }
                }
                format!("with {}", bindings.join(", "))
            }
            "block" => format!("block {}", self.name()?),
            "autoescape" => format!("autoescape {}", self.conditional()?.code),
            other => return Err(Untranslatable::new(format!("the tag `{other}`"))),
        };
        self.end()?;
        Ok(Statement { code, then })
    }

    fn for_loop(&mut self) -> Translated<String> {
        let target = self.target()?;
        if !self.skip_name("in") {
            return Err(self.unexpected("`in`"));
        }
        let mut code = format!("for {target} in __iter({})", self.tuple(false)?.code);
        if self.skip_name("if") {
            let _ = write!(code, " if {}", self.conditional()?.code);
        }
        if self.skip_name("recursive") {
            code.push_str(" recursive");
        }
        Ok(code)
    }

    /// Parses names on the left of an assignment: `a`, `a, b`, `(a, b)`, `a.b`.
    fn target(&mut self) -> Translated<String> {
        let mut names = vec![self.one_target()?];
        let mut several = false;
        while self.skip(",") {
            several = true;
            if !matches!(self.peek(), Some(Token::Name(name)) if name != "in") && !self.is_operator("(") {
                break;
            }
            names.push(self.one_target()?);
        }
        let comma = if several && names.len() == 1 { "," } else { "" };
        Ok(names.join(", ") + comma)
    }

    fn one_target(&mut self) -> Translated<String> {
        if self.skip("(") {
            let inner = self.deeper(Self::target)?;
            self.expect(")")?;
            return Ok(format!("({inner})"));
        }
        let name = self.name()?;
        if self.skip(".") { Ok(format!("{name}.{}", self.name()?)) } else { Ok(name) }
    }

    fn set(&mut self) -> Translated<String> {
        let target = self.target()?;
        if self.skip("=") {
            return Ok(format!("set {target} = {}", self.tuple(true)?.code));
        }
        if self.skip("|") {
            Ok(format!("set {target} | {}", self.filters()?))
        } else {
            Ok(format!("set {target}"))
        }
    }

    /// Parses filters, the first one without its `|`.
    fn filters(&mut self) -> Translated<String> {
        let mut code = self.filter()?;
        while self.skip("|") {
            let _ = write!(code, "|{}", self.filter()?);
        }
        Ok(code)
    }

    /// Parses the name of a filter and its arguments.
    fn filter(&mut self) -> Translated<String> {
        let mut name = self.name()?;
        while self.skip(".") {
            let _ = write!(name, ".{}", self.name()?);
        }
        if !self.skip("(") {
            return Ok(name);
        }
        let arguments = self.arguments(None)?;
        Ok(format!("{name}({})", arguments.join(", ")))
    }

    fn macro_head(&mut self, then: &mut Vec<String>) -> Translated<String> {
        let name = self.name()?;
        self.expect("(")?;
        let shape = self.macros.get(&name).cloned().unwrap_or_default();
        let mut parameters = self.parameter_list(then)?;
        for (used, extra, empty) in [(shape.varargs, "varargs", "__tuple()"), (shape.kwargs, "kwargs", "{}")]
        {
            if used {
                parameters.push(extra.to_owned());
                then.push(format!("set {extra} = ({extra} if {extra} is defined else {empty})"));
            }
        }
        Ok(format!("macro {name}({})", parameters.join(", ")))
    }

    fn caller_parameters(&mut self, then: &mut Vec<String>) -> Translated<String> {
        Ok(format!("({})", self.parameter_list(then)?.join(", ")))
    }

    /// Parses parameters up to the closing parenthesis. A default becomes a statement of the body, where it can use the
    /// parameters before it.
    fn parameter_list(&mut self, then: &mut Vec<String>) -> Translated<Vec<String>> {
        let mut parameters = Vec::new();
        while !self.skip(")") {
            let name = self.name()?;
            if self.skip("=") {
                let default = self.conditional()?.code;
                then.push(format!("set {name} = ({default} if {name} is undefined else __given({name}))"));
            }
            parameters.push(name);
            if !self.skip(",") && !self.is_operator(")") {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        Ok(parameters)
    }

    /// Parses expressions that are separated by commas; several make a tuple.
    fn tuple(&mut self, conditional: bool) -> Translated {
        let one = |parser: &mut Self| if conditional { parser.conditional() } else { parser.or() };
        let first = one(self)?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut items = vec![first.code];
        while self.skip(",") {
            if self.peek().is_none()
                || self.is_operator(")")
                || self.is_name("if")
                || self.is_name("recursive")
            {
                break;
            }
            items.push(one(self)?.code);
        }
        Ok(Expression::other(format!("__tuple({})", items.join(", "))))
    }

    fn conditional(&mut self) -> Translated {
        self.deeper(|parser| {
            let mut value = parser.or()?;
            while parser.skip_name("if") {
                let test = parser.or()?.code;
                let otherwise = match parser.skip_name("else") {
                    true => format!(" else {}", parser.conditional()?.code),
                    false => String::new(),
                };
                value = Expression::other(format!("({} if {test}{otherwise})", value.code));
            }
            Ok(value)
        })
    }

    fn or(&mut self) -> Translated {
        self.joined(Self::and, |parser| parser.skip_name("or").then_some("or"))
    }

    fn and(&mut self) -> Translated {
        self.joined(Self::not, |parser| parser.skip_name("and").then_some("and"))
    }

    /// Parses operands with operators between them that associate to the left.
    fn joined(
        &mut self,
        operand: impl Fn(&mut Self) -> Translated,
        operator: impl Fn(&mut Self) -> Option<&'static str>,
    ) -> Translated {
        let first = operand(self)?;
        let mut rest = String::new();
        while let Some(operator) = operator(self) {
            let _ = write!(rest, " {operator} {}", operand(self)?.code);
        }
        if rest.is_empty() { Ok(first) } else { Ok(Expression::other(format!("({}{rest})", first.code))) }
    }

    fn not(&mut self) -> Translated {
        if !self.skip_name("not") {
            return self.comparison();
        }
        let operand = self.deeper(Self::not)?;
        Ok(Expression::other(format!("(not {})", operand.code)))
    }

    fn comparison(&mut self) -> Translated {
        let first = self.sum()?;
        let (mut left, mut comparisons) = (first.code.clone(), Vec::new());
        loop {
            let operator =
                ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|operator| self.skip(operator));
            let (operator, negated) = match operator {
                Some(operator) => (operator, false),
                None if self.skip_name("in") => ("in", false),
                None if self.is_name("not")
                    && self.tokens.get(self.position + 1) == Some(&Token::Name("in".into())) =>
                {
                    self.position += 2;
                    ("in", true)
                }
                None => break,
            };
            let right = self.sum()?.code;
            comparisons.push(match (operator, negated) {
                ("in", false) => format!("__in({left}, {right})"),
                ("in", true) => format!("(not __in({left}, {right}))"),
                _ => format!("({left} {operator} {right})"),
            });
            left = right;
        }
        match comparisons.as_slice() {
            [] => Ok(first),
            // Python's `a < b < c`.
            _ => Ok(Expression::other(format!("({})", comparisons.join(" and ")))),
        }
    }

    fn sum(&mut self) -> Translated {
        if self.markup {
            return self.sum_of_markup();
        }
        self.joined(Self::concatenation, |parser| {
            ["+", "-"].into_iter().find(|operator| parser.skip(operator))
        })
    }

    fn sum_of_markup(&mut self) -> Translated {
        let mut left = self.concatenation()?;
        while let Some(operator) = ["+", "-"].into_iter().find(|operator| self.skip(operator)) {
            let right = self.concatenation()?.code;
            left = Expression::other(match operator {
                "+" => format!("__add({}, {right})", left.code),
                _ => format!("({} - {right})", left.code),
            });
        }
        Ok(left)
    }

    fn concatenation(&mut self) -> Translated {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut items = vec![first.code];
        while self.skip("~") {
            items.push(self.product()?.code);
        }
        Ok(Expression::other(format!("__concat({})", items.join(", "))))
    }

    fn product(&mut self) -> Translated {
        let mut left = self.power()?;
        while let Some(operator) = ["*", "/", "//", "%"].into_iter().find(|operator| self.skip(operator)) {
            let right = self.power()?.code;
            left = Expression::other(match operator {
                "%" => format!("__mod({}, {right})", left.code),
                "//" => format!("__floordiv({}, {right})", left.code),
                _ => format!("({} {operator} {right})", left.code),
            });
        }
        Ok(left)
    }

    fn power(&mut self) -> Translated {
        let mut left = self.unary(true)?;
        while self.skip("**") {
            left = Expression::other(format!("({} ** {})", left.code, self.unary(true)?.code));
        }
        Ok(left)
    }

    fn unary(&mut self, filtered: bool) -> Translated {
        let sign = ["-", "+"].into_iter().find(|sign| self.skip(sign));
        let mut operand = match sign {
            Some("-") => Expression::other(format!("(-{})", self.deeper(|parser| parser.unary(false))?.code)),
            Some(_) => self.deeper(|parser| parser.unary(false))?,
            None => self.primary()?,
        };
        operand = self.postfix(operand)?;
        if filtered { self.filtered(operand) } else { Ok(operand) }
    }

    fn primary(&mut self) -> Translated {
        let Some(token) = self.peek().cloned() else { return Err(self.unexpected("an expression")) };
        self.position += 1;
        Ok(match token {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expression::other("true".into()),
                "false" | "False" => Expression::other("false".into()),
                "none" | "None" => Expression::other("none".into()),
                "if" | "else" | "in" | "is" | "and" | "or" | "not" => {
                    self.position -= 1;
                    return Err(self.unexpected("an expression"));
                }
                _ => Expression { code: name.clone(), kind: Kind::Name(name) },
            },
            Token::Text(mut text) => {
                // Strings beside one another are one string.
                while let Some(Token::Text(more)) = self.peek() {
                    text.push_str(more);
                    self.position += 1;
                }
                Expression::other(quoted(&text))
            }
            Token::Number(number) => Expression::other(number),
            Token::Operator("(") => self.deeper(|parser| {
                if parser.skip(")") {
                    return Ok(Expression::other("__tuple()".into()));
                }
                let inner = parser.tuple(true)?;
                parser.expect(")")?;
                Ok(Expression::other(inner.code))
            })?,
            Token::Operator("[") => {
                let items = self.items("]")?;
                Expression::other(format!("[{}]", items.join(", ")))
            }
            Token::Operator("{") => self.dict()?,
            Token::Operator(_) => {
                self.position -= 1;
                return Err(self.unexpected("an expression"));
            }
        })
    }

    /// Parses expressions up to a closing bracket.
    fn items(&mut self, close: &str) -> Translated<Vec<String>> {
        let mut items = Vec::new();
        while !self.skip(close) {
            items.push(self.conditional()?.code);
            if !self.skip(",") && !self.is_operator(close) {
                return Err(self.unexpected(&format!("`,` or `{close}`")));
            }
        }
        Ok(items)
    }

    fn dict(&mut self) -> Translated {
        let mut entries = Vec::new();
        while !self.skip("}") {
            let key = self.conditional()?.code;
            self.expect(":")?;
            entries.push(format!("{key}: {}", self.conditional()?.code));
            if !self.skip(",") && !self.is_operator("}") {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
        // The spaces keep braces apart that would otherwise close a tag.
        Ok(Expression::other(if entries.is_empty() {
            "{}".into()
        } else {
            format!("{{ {} }}", entries.join(", "))
        }))
    }

    /// Parses attributes, subscripts and calls.
    fn postfix(&mut self, mut base: Expression) -> Translated {
        loop {
            base = if self.skip(".") {
                match self.peek().cloned() {
                    Some(Token::Number(index)) => {
                        self.position += 1;
                        Expression::other(format!("{}[{index}]", base.code))
                    }
                    _ => {
                        let name = self.name()?;
                        self.attribute(base, name)
                    }
                }
            } else if self.skip("[") {
                self.deeper(|parser| parser.subscript(base))?
            } else if self.skip("(") {
                self.deeper(|parser| parser.call(base))?
            } else {
                return Ok(base);
            };
        }
    }

    fn attribute(&self, base: Expression, name: String) -> Expression {
        let is_method = DICT_METHODS.contains(&name.as_str()) && !self.is_operator("(");
        let code = match is_method {
            true => format!("__attribute({}, {})", base.code, quoted(&name)),
            false => format!("{}.{name}", base.code),
        };
        Expression { code, kind: Kind::Attribute(base.code, name) }
    }

    fn subscript(&mut self, base: Expression) -> Translated {
        let mut bounds = vec![None];
        loop {
            if self.skip("]") {
                break;
            }
            if self.skip(":") {
                bounds.push(None);
                continue;
            }
            let bound = self.conditional()?.code;
            if let Some(last) = bounds.last_mut() {
                *last = Some(bound);
            }
            if !self.is_operator("]") && !self.is_operator(":") {
                return Err(self.unexpected("`]`"));
            }
        }
        match bounds.as_slice() {
            [Some(index)] => Ok(Expression::other(format!("{}[{index}]", base.code))),
            [_, _] | [_, _, _] => {
                let bounds: Vec<&str> =
                    bounds.iter().map(|bound| bound.as_deref().unwrap_or("none")).collect();
                Ok(Expression::other(format!("__slice({}, {})", base.code, bounds.join(", "))))
            }
            _ => Err(Untranslatable::new("a subscript of this form")),
        }
    }

    fn call(&mut self, base: Expression) -> Translated {
        match &base.kind {
            Kind::Name(name) => {
                let shape = self.macros.get(name).cloned();
                let arguments = self.arguments(shape.as_ref())?;
                // The loop of a recursive call iterates like any other.
                let arguments = match (name.as_str(), arguments.as_slice()) {
                    ("loop", [items]) => format!("__iter({items})"),
                    _ => arguments.join(", "),
                };
                Ok(Expression::other(format!("{name}({arguments})")))
            }
            Kind::Attribute(receiver, method) => {
                let arguments = self.arguments(None)?;
                // The engine's own objects.
                if matches!(receiver.as_str(), "loop" | "caller" | "self" | "super") {
                    return Ok(Expression::other(format!("{receiver}.{method}({})", arguments.join(", "))));
                }
                let mut all = vec![receiver.clone(), quoted(method)];
                all.extend(arguments);
                Ok(Expression::other(format!("__call({})", all.join(", "))))
            }
            Kind::Other => {
                Ok(Expression::other(format!("{}({})", base.code, self.arguments(None)?.join(", "))))
            }
        }
    }

    /// Parses arguments up to the closing parenthesis. Arguments of a macro are arranged for its parameters.
    fn arguments(&mut self, shape: Option<&MacroShape>) -> Translated<Vec<String>> {
        let default = |name: &str| {
            shape.is_some_and(|shape| shape.parameters.iter().any(|(own, default)| own == name && *default))
        };
        let (mut positional, mut named, mut varargs, mut kwargs) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        while !self.skip(")") {
            if self.is_operator("*") || self.is_operator("**") {
                return Err(Untranslatable::new("an argument list with `*` or `**`"));
            }
            let name = match (self.peek(), self.tokens.get(self.position + 1)) {
                (Some(Token::Name(name)), Some(Token::Operator("="))) => Some(name.clone()),
                _ => None,
            };
            self.position += if name.is_some() { 2 } else { 0 };
            let value = self.conditional()?.code;
            // An argument that is given and undefined does not take the default.
            let given = |name: &str, value: String| {
                if default(name) { format!("__argument({value})") } else { value }
            };
            match (name, shape) {
                (Some(name), Some(shape))
                    if shape.kwargs && !shape.parameters.iter().any(|(own, _)| *own == name) =>
                {
                    kwargs.push(format!("{}: {value}", quoted(&name)));
                }
                (Some(name), _) => named.push(format!("{name}={}", given(&name, value))),
                (None, None) => positional.push(value),
                (None, Some(shape)) => match shape.parameters.get(positional.len()) {
                    Some((name, _)) => positional.push(given(name, value)),
                    None if shape.varargs => varargs.push(value),
                    None => positional.push(value),
                },
            }
            if !self.skip(",") && !self.is_operator(")") {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        if !varargs.is_empty() {
            named.push(format!("varargs=__tuple({})", varargs.join(", ")));
        }
        if !kwargs.is_empty() {
            named.push(format!("kwargs={{ {} }}", kwargs.join(", ")));
        }
        positional.extend(named);
        Ok(positional)
    }

    /// Parses filters, tests and calls after an operand.
    fn filtered(&mut self, mut operand: Expression) -> Translated {
        loop {
            operand = if self.skip("|") {
                let filter = self.deeper(Self::filter)?;
                Expression::other(format!("{}|{filter}", operand.code))
            } else if self.skip_name("is") {
                self.deeper(|parser| parser.test(operand))?
            } else if self.skip("(") {
                self.deeper(|parser| parser.call(operand))?
            } else {
                return Ok(operand);
            };
        }
    }

    fn test(&mut self, operand: Expression) -> Translated {
        let negation = if self.skip_name("not") { "not " } else { "" };
        let name = self.name()?;
        let argument = match self.peek() {
            Some(Token::Operator("(")) => {
                self.position += 1;
                format!("({})", self.arguments(None)?.join(", "))
            }
            Some(Token::Name(next))
                if matches!(
                    next.as_str(),
                    "else" | "or" | "and" | "if" | "is" | "in" | "not" | "recursive"
                ) =>
            {
                String::new()
            }
            Some(Token::Name(_) | Token::Text(_) | Token::Number(_) | Token::Operator("[" | "{")) => {
                let argument = self.primary()?;
                format!("({})", self.postfix(argument)?.code)
            }
            _ => String::new(),
        };
        Ok(Expression::other(format!("({} is {negation}{name}{argument})", operand.code)))
    }
}

/// Returns a string literal of the template engine.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
