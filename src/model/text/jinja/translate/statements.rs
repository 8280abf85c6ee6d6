//! Translates the statements of a template: loops, assignments, macros and blocks.

use std::fmt::Write;

use super::{Parser, Statement, Translated};
use crate::model::text::jinja::lexer::{Token, Untranslatable};

impl Parser<'_> {
    pub(super) fn statement(&mut self) -> Translated<Statement> {
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

    /// Parses a chain of filters, from behind the `|` of the first filter.
    fn filters(&mut self) -> Translated<String> {
        let mut code = self.filter()?;
        while self.skip("|") {
            let _ = write!(code, "|{}", self.filter()?);
        }
        Ok(code)
    }

    /// Parses the name of a filter and its arguments.
    pub(super) fn filter(&mut self) -> Translated<String> {
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

    /// Parses the parameters of a macro up to the closing parenthesis. A default becomes a statement of the
    /// body, where it can use the parameters before it.
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
}
