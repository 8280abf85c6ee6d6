//! Translates the expressions of a template, from conditionals down to calls, filters and tests.

use std::fmt::Write;

use super::{DICT_METHODS, Expression, Kind, MacroShape, Parser, Translated, quoted};
use crate::model::text::jinja::lexer::{Token, Untranslatable};

impl Parser<'_> {
    /// Parses expressions that are separated by commas; several make a tuple.
    pub(super) fn tuple(&mut self, conditional: bool) -> Translated {
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

    pub(super) fn conditional(&mut self) -> Translated {
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

    /// Parses operands that are joined by left-associative operators.
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
            // `a < b < c` means `a < b and b < c`, as in Python.
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
                // Neighbouring string literals are one string, as in Python.
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
                // A recursive call of a loop converts the items as the loop itself does.
                let arguments = match (name.as_str(), arguments.as_slice()) {
                    ("loop", [items]) => format!("__iter({items})"),
                    _ => arguments.join(", "),
                };
                Ok(Expression::other(format!("{name}({arguments})")))
            }
            Kind::Attribute(receiver, method) => {
                let arguments = self.arguments(None)?;
                // The methods of these objects are the template engine's own.
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
    pub(super) fn arguments(&mut self, shape: Option<&MacroShape>) -> Translated<Vec<String>> {
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
            // A macro's parameter takes its default only if the argument is missing, not if the argument is
            // undefined.
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
