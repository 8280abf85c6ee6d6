//! The chat template of a target, with the variables that the command line sets.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flexdraft::model::{ChatMessage, ChatTemplate, TemplateVariables, Tokenizer};

use crate::args::TemplateArgs;
use crate::error::{CliError, Result};

/// Maximum size of a file that an argument names, in bytes: more text than any context holds.
const FILE_LIMIT: u64 = 64 << 20;

/// The variable that switches the thinking of a model, in the templates of Qwen3, SmolLM3 and others.
const THINKING: &str = "enable_thinking";

/// A chat template, and the variables that do not change during a conversation.
pub struct Template {
    template: ChatTemplate,
    args: TemplateArgs,
    /// The JSON text of the tools.
    tools: Option<String>,
}

impl Template {
    /// Reads the chat template of a target.
    pub fn read(target: &Path, args: &TemplateArgs) -> Result<Self> {
        let tools = args.tools.as_deref().map(|path| read_text(path, "tools")).transpose()?;
        Ok(Self { template: ChatTemplate::read(target)?, args: args.clone(), tools })
    }

    /// Returns the first message of a conversation, if there is a system message.
    pub fn system(&self) -> Option<ChatMessage> {
        self.args.system.as_ref().map(|text| ChatMessage::new("system", text))
    }

    /// Returns the tokens of a conversation, up to where the assistant's answer begins.
    pub fn prompt(&self, messages: &[ChatMessage], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut variables = TemplateVariables::new(messages, true);
        if let Some(thinking) = self.args.thinking() {
            variables.set(THINKING, thinking);
        }
        for variable in &self.args.template_var {
            variables.set_json(&variable.name, &variable.json)?;
        }
        if let Some(tools) = &self.tools {
            variables.set_tools(tools)?;
        }
        // The rendered text already contains the special tokens.
        Ok(tokenizer.encode(&self.template.render(&variables)?, false)?)
    }

    /// Returns the hash of the template, as a drafter's card has it.
    pub fn hash(&self) -> String {
        self.template.hash()
    }

    /// Returns the value of `enable_thinking`, if an argument sets it.
    pub fn thinking(&self) -> Option<bool> {
        self.args.thinking()
    }

    /// Returns a warning for each argument that sets a variable that the template does not read.
    pub fn warnings(&self) -> Vec<String> {
        let thinking = self
            .args
            .thinking()
            .map(|thinking| (if thinking { "--enable-thinking" } else { "--no-thinking" }, THINKING));
        let tools = self.tools.as_ref().map(|_| ("--tools", "tools"));
        let variables = self.args.template_var.iter().map(|variable| ("--template-var", &*variable.name));
        let all = thinking.into_iter().chain(tools).chain(variables);
        let unread = all.filter(|(_, variable)| !self.template.reads(variable));
        unread
            .map(|(argument, variable)| {
                format!("{argument} has no effect: the model's chat template does not read `{variable}`")
            })
            .collect()
    }
}

/// Reads a text file that an argument names; `what` is the file's purpose, for errors.
pub fn read_text(path: &Path, what: &'static str) -> Result<String> {
    let failed = |source| CliError::ArgumentFile { what, path: path.into(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let len = file.take(FILE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if len as u64 > FILE_LIMIT {
        let reason = format!("it has more than {FILE_LIMIT} bytes, the limit");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
    }
    Ok(text)
}
