//! Chat templates: render messages to a prompt, like transformers' `apply_chat_template`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use serde::Serialize;

use super::strftime::strftime;
use super::template_json::to_json;
use crate::model::LoadError;
use crate::model::format::files::{if_exists, read_bytes};
use crate::model::format::json::{Fields, JsonFile};

/// Limit on the instructions of the template engine; a template that exceeds it is considered endless. Real
/// templates need some hundred instructions per message.
const FUEL: u64 = 10_000_000;

const NAME: &str = "chat_template";

const IN_DIRECTORY: &str = "neither chat_template.jinja nor `chat_template` in tokenizer_config.json";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Role of the message's author: `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

impl ChatMessage {
    /// Makes a message from a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template (Jinja), and the special tokens that it may name.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, Value)>,
}

impl ChatTemplate {
    /// Reads the chat template of a directory: `chat_template.jinja`, or else `chat_template` in
    /// `tokenizer_config.json` (one template, or a list of named templates with one named `default`).
    pub(in crate::model) fn read_directory(dir: &Path) -> Result<Self, LoadError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = if_exists(JsonFile::read(&config_path))?;
        let fields = config.as_ref().map(JsonFile::fields);
        let jinja_path = dir.join("chat_template.jinja");
        let (path, source) = match if_exists(read_bytes(&jinja_path))? {
            Some(bytes) => {
                let source = String::from_utf8(bytes).map_err(|error| LoadError::ChatTemplate {
                    path: jinja_path.clone(),
                    reason: error.to_string(),
                })?;
                (jinja_path, Some(source))
            }
            None => (config_path, fields.as_ref().map(template_source).transpose()?.flatten()),
        };
        let source =
            source.ok_or_else(|| LoadError::NoChatTemplate { path: dir.into(), looked_for: IN_DIRECTORY })?;
        let special_tokens = fields.as_ref().map(special_tokens).transpose()?.unwrap_or_default();
        Self::new(path, &source, special_tokens)
    }

    /// Makes a chat template from its source, which is in the file `path`.
    pub(in crate::model) fn new(
        path: PathBuf,
        source: &str,
        special_tokens: Vec<(&'static str, Value)>,
    ) -> Result<Self, LoadError> {
        let environment = guarded(&path, || environment(source))?;
        Ok(Self { path, environment, special_tokens })
    }

    /// Renders a conversation as a prompt. With `add_generation_prompt`, the result ends where the assistant's next
    /// message begins. The result contains the text of the special tokens, including BOS: encode it without adding
    /// special tokens.
    ///
    /// # Errors
    /// [`LoadError::ChatTemplate`] if the template rejects the messages or fails on them.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, LoadError> {
        // A clock that shows a time before 1970 counts as 1970.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.render_at(messages, add_generation_prompt, now)
    }

    /// Renders a conversation like [`render`](Self::render), for templates that print the date: the time is
    /// `unix_seconds` after 1970-01-01 UTC.
    ///
    /// # Errors
    /// The errors of [`render`](Self::render).
    pub fn render_at(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        unix_seconds: u64,
    ) -> Result<String, LoadError> {
        let strftime_now = Value::from_function(move |format: String| {
            strftime(&format, unix_seconds).map_err(|conversion| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: {conversion} is not supported"),
                )
            })
        });
        let variables = [
            ("messages", Value::from_serialize(messages)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("strftime_now", strftime_now),
        ];
        let context: Value = variables.into_iter().chain(self.special_tokens.iter().cloned()).collect();
        guarded(&self.path, || self.environment.get_template(NAME)?.render(context))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.path.display())
    }
}

/// Makes an environment of the template engine like the one in which transformers compiles chat templates.
fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_formatter(python_constants);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", |value: Value, options: Kwargs| to_json(&value, &options));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// Calls into the `minijinja` crate, whose arithmetic on slices can overflow, and turns a panic into an
/// error.
fn guarded<T>(path: &Path, call: impl FnOnce() -> Result<T, Error>) -> Result<T, LoadError> {
    let reason = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => full_message(&error),
        Err(_) => "the template engine failed on it".to_owned(),
    };
    Err(LoadError::ChatTemplate { path: path.into(), reason })
}

/// Writes values as Python's Jinja does, where the two engines differ.
fn python_constants(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match bool::try_from(value.clone()) {
        Ok(truth) if value.kind() == ValueKind::Bool => {
            out.write_str(if truth { "True" } else { "False" })?
        }
        _ if value.is_none() => out.write_str("None")?,
        _ => escape_formatter(out, state, value)?,
    }
    Ok(())
}

/// Returns the template under `chat_template` in a `tokenizer_config.json`.
fn template_source(config: &Fields<'_>) -> Result<Option<String>, LoadError> {
    let key = "chat_template";
    let wrong = || config.invalid(key, "a template, or a list of templates with one named `default`");
    match config.get(key) {
        None => Ok(None),
        Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
        Some(serde_json::Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"].as_str() == Some("default"));
            let source = default.and_then(|entry| entry["template"].as_str()).ok_or_else(wrong)?;
            Ok(Some(source.to_owned()))
        }
        Some(_) => Err(wrong()),
    }
}

/// Returns the special tokens that a chat template can name. Each one is a string, or an object with its `content`.
fn special_tokens(config: &Fields<'_>) -> Result<Vec<(&'static str, Value)>, LoadError> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let mut tokens = Vec::new();
    for name in NAMES {
        if let Some(token) = config.get(name) {
            let text = token.as_str().or_else(|| token["content"].as_str());
            let text =
                text.ok_or_else(|| config.invalid(name, "a token's text, or an object with its `content`"))?;
            tokens.push((name, Value::from(text)));
        }
    }
    Ok(tokens)
}

/// Replaces `{% generation %}` tags, which mark the assistant's text for training and render as their
/// contents. The template engine does not know this tag; a condition that is always true renders the same.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        let keyword = ["generation", "endgeneration"].into_iter().find(|keyword| {
            let after = body.strip_prefix(keyword).map(str::trim_start);
            after.is_some_and(|after| after.trim_start_matches(['-', '+']).starts_with("%}"))
        });
        rest = tag;
        if let Some(keyword) = keyword {
            let (marks, body) = tag.split_at(tag.len() - body.len());
            out.push_str(marks);
            out.push_str(if keyword == "generation" { "if true" } else { "endif" });
            rest = body.strip_prefix(keyword).unwrap_or(body);
        }
    }
    out.push_str(rest);
    out
}

/// Formats an error of the template engine with its causes, on one line.
fn full_message(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let template = ChatTemplate {
            path: "t".into(),
            environment: environment(source).map_err(|e| e.to_string())?,
            special_tokens: vec![("bos_token", Value::from("<s>"))],
        };
        let messages = [ChatMessage::new("user", "<b> 'x' & \"y\"\n")];
        template.render_at(&messages, true, 0).map_err(|e| e.to_string())
    }

    #[test]
    fn generation_tags_enclose_what_they_mark() {
        assert_eq!(
            render("a {%- generation -%} b {% endgeneration %} c{% set generation = 1 %}").unwrap(),
            "ab  c"
        );
        assert_eq!(render("{%generation%}{{ bos_token }}{%endgeneration%}{{ eos_token }}").unwrap(), "<s>");
    }

    #[test]
    fn nothing_is_escaped() {
        assert_eq!(render("{{ messages[0].content }}").unwrap(), "<b> 'x' & \"y\"\n");
        assert_eq!(
            render("{{ messages[0] | tojson }}").unwrap(),
            r#"{"role": "user", "content": "<b> 'x' & \"y\"\n"}"#
        );
    }

    #[test]
    fn templates_that_fail_or_never_end() {
        let error = |source| render(source).unwrap_err();
        assert_eq!(
            error("{{ raise_exception('roles must alternate') }}"),
            "chat template t: invalid operation: roles must alternate (in chat_template:1)"
        );
        assert_eq!(
            error("{{ strftime_now('%Q') }}"),
            "chat template t: invalid operation: strftime_now: %Q is not supported (in chat_template:1)"
        );
        let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert_eq!(error(nested), "chat template t: engine ran out of fuel (in chat_template:1)");
        assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
        assert!(error("{% if %}").starts_with("syntax error"));
    }
}
