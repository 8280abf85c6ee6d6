//! Jinja2, as chat templates use it: the crate `minijinja`, changed where Python's Jinja2 does something else.
//! A construct that cannot be taught is an error that names it.

mod digits;
mod functions;
mod lexer;
mod methods;
mod percent;
mod template_json;
mod translate;
mod values;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

/// Limit on the instructions of the template engine; a template that exceeds it is considered endless. Real
/// templates need some hundred instructions per message.
const FUEL: u64 = 10_000_000;

/// The name of the template in its environment.
pub(super) const NAME: &str = "chat_template";

/// Makes an environment like the one in which transformers compiles chat templates.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_formatter(|out, _, value| Ok(out.write_str(&values::text(value)?)?));
    functions::add_to(&mut environment);
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, values::text(&message)?))
    });
    environment.add_template_owned(NAME, translate::translate(source)?)?;
    Ok(environment)
}
