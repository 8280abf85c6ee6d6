//! Chat templates: render messages to a prompt, like transformers' `apply_chat_template`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Serialize, Serializer};

use super::jinja::{NAME, environment};
use super::local_time::seconds_on_the_local_clock;
use super::special_tokens::SpecialTokens;
use super::strftime::strftime;
use crate::model::LoadError;
use crate::model::format::files::{if_exists, read_bytes};
use crate::model::format::json::{Fields, JsonFile};

const IN_DIRECTORY: &str = "neither chat_template.jinja nor `chat_template` in tokenizer_config.json";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Role of the message's author: `system`, `user`, `assistant`, `tool`, or another role that the template knows.
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// Calls of tools that the assistant asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    #[serde(flatten, serialize_with = "as_map")]
    fields: Vec<(String, Value)>,
}

impl ChatMessage {
    /// Makes a message from a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), tool_calls: Vec::new(), fields: Vec::new() }
    }

    /// Adds a field that the template may read, such as `name`, `tool_call_id` or `reasoning_content`.
    pub fn with_field(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.fields.push((name.into(), Value::from_serialize(value)));
        self
    }
}

/// Serialises the fields of a message as a map, in their order.
fn as_map<S: Serializer>(fields: &[(String, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

/// A call of a tool in an assistant's message.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    id: Option<String>,
    name: String,
    arguments: Value,
}

impl ToolCall {
    /// Makes a call of the tool `name` from its arguments, a JSON object. The arguments keep their order.
    ///
    /// # Errors
    /// [`LoadError::ChatVariables`] if `arguments` is not a JSON object.
    pub fn new(name: impl Into<String>, arguments: &str) -> Result<Self, LoadError> {
        let name = name.into();
        let arguments = read_json(arguments, ValueKind::Map).map_err(|reason| LoadError::ChatVariables {
            reason: format!("arguments of tool `{name}`: {reason}"),
        })?;
        Ok(Self { id: None, name, arguments })
    }

    /// Sets the id of the call, to which the tool's answer refers.
    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..self }
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            arguments: &'a Value,
        }
        #[derive(Serialize)]
        struct Call<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<&'a str>,
            r#type: &'static str,
            function: Function<'a>,
        }
        let function = Function { name: &self.name, arguments: &self.arguments };
        Call { id: self.id.as_deref(), r#type: "function", function }.serialize(serializer)
    }
}

/// Reads a JSON text, whose value must be of the given kind. Keys of objects keep their order.
fn read_json(json: &str, kind: ValueKind) -> Result<Value, String> {
    let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if value.kind() == kind {
        return Ok(value);
    }
    let name = |kind| match kind {
        ValueKind::Map => "an object".to_owned(),
        ValueKind::Seq => "a list".to_owned(),
        kind => format!("a {kind}"),
    };
    Err(format!("expected {}, found {}", name(kind), name(value.kind())))
}

/// The variables of a chat template: `messages` and `add_generation_prompt`, and whatever else the template reads, such
/// as `tools` or `enable_thinking`.
#[derive(Clone, Debug)]
pub struct TemplateVariables(Vec<(String, Value)>);

impl TemplateVariables {
    /// Returns the variables of a conversation. With `add_generation_prompt`, the rendered text ends where the
    /// assistant's next message begins.
    pub fn new(messages: &[ChatMessage], add_generation_prompt: bool) -> Self {
        let mut variables = Self(Vec::new());
        variables.set("messages", messages);
        variables.set("add_generation_prompt", add_generation_prompt);
        variables
    }

    /// Reads variables from a JSON object. Keys of inner objects keep their order.
    ///
    /// # Errors
    /// [`LoadError::ChatVariables`] if `json` is not a JSON object.
    pub fn from_json(json: &str) -> Result<Self, LoadError> {
        let object = read_json(json, ValueKind::Map).map_err(|reason| LoadError::ChatVariables { reason })?;
        let mut variables = Self(Vec::new());
        for key in object.try_iter().into_iter().flatten() {
            let value = object.get_item(&key).unwrap_or_default();
            variables.0.push((key.to_string(), value));
        }
        Ok(variables)
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: impl Serialize) {
        self.put(name, Value::from_serialize(value));
    }

    /// Sets a variable to a JSON value, whose objects keep the order of their keys.
    ///
    /// # Errors
    /// [`LoadError::ChatVariables`] if `json` is not JSON.
    pub fn set_json(&mut self, name: &str, json: &str) -> Result<(), LoadError> {
        let value = serde_json::from_str(json)
            .map_err(|error| LoadError::ChatVariables { reason: format!("`{name}`: {error}") })?;
        self.put(name, value);
        Ok(())
    }

    /// Sets `tools`, the tools that the assistant may call, from a JSON list.
    ///
    /// # Errors
    /// [`LoadError::ChatVariables`] if `json` is not a JSON list.
    pub fn set_tools(&mut self, json: &str) -> Result<(), LoadError> {
        let tools = read_json(json, ValueKind::Seq)
            .map_err(|reason| LoadError::ChatVariables { reason: format!("`tools`: {reason}") })?;
        self.put("tools", tools);
        Ok(())
    }

    fn put(&mut self, name: &str, value: Value) {
        self.0.retain(|(other, _)| other != name);
        self.0.push((name.to_owned(), value));
    }
}

/// A model's chat template (Jinja), and the special tokens that it may name.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: Vec<(String, Value)>,
    hash: u64,
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
        let special_tokens = SpecialTokens::read(dir)?.named().map(|(name, text)| (name, text.into()));
        Self::new(path, &source, special_tokens.collect())
    }

    /// Makes a chat template from its source, which was read from the file `path`.
    pub(in crate::model) fn new(
        path: PathBuf,
        source: &str,
        special_tokens: Vec<(String, Value)>,
    ) -> Result<Self, LoadError> {
        let environment = guarded(&path, || environment(source))?;
        // FNV-1a.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = source.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        Ok(Self { path, environment, special_tokens, hash })
    }

    /// Returns a hash of the template's source, which tells templates apart but does not resist deliberate collisions.
    pub fn hash(&self) -> String {
        format!("fnv1a64:{:016x}", self.hash)
    }

    /// Returns whether the template reads a variable.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// Renders a conversation as a prompt. A template that prints the date prints the local time.
    ///
    /// The result contains the text of the special tokens, including BOS: encode it without adding special tokens.
    ///
    /// # Errors
    /// [`LoadError::ChatTemplate`] if the template rejects the messages or fails on them.
    pub fn render(&self, variables: &TemplateVariables) -> Result<String, LoadError> {
        self.render_at(variables, seconds_on_the_local_clock())
    }

    /// Like [`render`](Self::render), for templates that print the date: the time is `unix_seconds` after
    /// 1970-01-01 UTC, in UTC.
    ///
    /// # Errors
    /// The errors of [`render`](Self::render).
    pub fn render_at(&self, variables: &TemplateVariables, unix_seconds: u64) -> Result<String, LoadError> {
        let strftime_now = Value::from_function(move |format: String| {
            strftime(&format, unix_seconds).map_err(|conversion| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: {conversion} is not supported"),
                )
            })
        });
        let none = |name: &str| (name.to_owned(), Value::from(()));
        let defaults = [none("tools"), none("documents"), ("strftime_now".to_owned(), strftime_now)];
        // The caller's variables override special tokens and defaults of the same name.
        let given = self.special_tokens.iter().chain(&variables.0).cloned();
        let context: Value = defaults.into_iter().chain(given).collect();
        guarded(&self.path, || self.environment.get_template(NAME)?.render(context))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.path.display())
    }
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

/// Returns the chat template under the key `chat_template` of a `tokenizer_config.json`.
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
            environment: guarded("t".as_ref(), || environment(source)).map_err(|e| e.to_string())?,
            special_tokens: vec![("bos_token".into(), Value::from("<s>"))],
            hash: 0,
        };
        let messages = [ChatMessage::new("user", "<b> 'x' & \"y\"\n")];
        template.render_at(&TemplateVariables::new(&messages, true), 0).map_err(|e| e.to_string())
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
    fn messages_have_the_fields_that_templates_read() {
        let environment = environment(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}\
             {% endif %}{% if m.tool_call_id is defined %} ({{ m.tool_call_id }}){% endif %};{% endfor %}\
             {{ tools | tojson }}{{ mood }}{{ level + 1 }}",
        );
        let template = ChatTemplate {
            path: "t".into(),
            environment: environment.unwrap(),
            special_tokens: Vec::new(),
            hash: 0,
        };
        let mut call = ChatMessage::new("assistant", "");
        call.tool_calls.push(ToolCall::new("f", r#"{"z": 1, "a": [2]}"#).unwrap().with_id("7"));
        let answer = ChatMessage::new("tool", "ok").with_field("tool_call_id", "7");
        let mut variables = TemplateVariables::new(&[call, answer], true);
        variables.set_tools(r#"[{"type": "function", "b": 0, "a": null}]"#).unwrap();
        variables.set("mood", "calm");
        variables.set_json("level", "2").unwrap();
        assert_eq!(
            template.render_at(&variables, 0).unwrap(),
            r#"assistant: [{"id": "7", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": [2]}}}]"#
                .to_owned()
                + r#";tool: ok (7);[{"type": "function", "b": 0, "a": null}]calm3"#
        );
        assert!(template.reads("mood") && template.reads("tools") && !template.reads("enable_thinking"));

        let error = |error: LoadError| error.to_string();
        assert_eq!(
            error(variables.set_tools("{}").unwrap_err()),
            "variables of a chat template: `tools`: expected a list, found an object"
        );
        assert!(error(variables.set_json("k", "x").unwrap_err()).contains("`k`: expected value"));
        assert_eq!(
            error(ToolCall::new("f", "3").unwrap_err()),
            "variables of a chat template: arguments of tool `f`: expected an object, found a number"
        );
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
        assert_eq!(
            error("{% if %}"),
            "chat template t: syntax error: the end of the tag, expected an expression, is not supported in a template"
        );
    }
}
