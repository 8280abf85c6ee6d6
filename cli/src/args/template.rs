//! Arguments for chat templates.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct TemplateArgs {
    /// The system message, which comes before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Chat template")]
    pub system: Option<String>,
    /// Let the model think before it answers, if its chat template has the variable `enable_thinking`
    #[arg(long, overrides_with = "no_thinking", help_heading = "Chat template")]
    pub enable_thinking: bool,
    /// Let the model answer without thinking, if its chat template has the variable `enable_thinking`
    #[arg(long, overrides_with = "enable_thinking", help_heading = "Chat template")]
    pub no_thinking: bool,
    /// Set a variable of the chat template; a value that is valid JSON is read as JSON, any other value as text
    #[arg(long, value_name = "NAME=VALUE", allow_hyphen_values = true, help_heading = "Chat template")]
    pub template_var: Vec<TemplateVariable>,
    /// A JSON file with the list of tools that the model may call
    #[arg(long, value_name = "FILE", help_heading = "Chat template")]
    pub tools: Option<PathBuf>,
}

impl TemplateArgs {
    /// Returns the value of `enable_thinking`, if an argument sets it.
    pub fn thinking(&self) -> Option<bool> {
        match (self.enable_thinking, self.no_thinking) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }

    /// Returns the name of an argument that is given, if there is one.
    pub fn given(&self) -> Option<&'static str> {
        [
            ("--system", self.system.is_some()),
            ("--enable-thinking", self.enable_thinking),
            ("--no-thinking", self.no_thinking),
            ("--template-var", !self.template_var.is_empty()),
            ("--tools", self.tools.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }
}

/// A variable of a chat template, with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateVariable {
    pub name: String,
    /// The value as a JSON text.
    pub json: String,
}

impl FromStr for TemplateVariable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        if name.is_empty() {
            return Err("expected a name before `=`".into());
        }
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok();
        let json = if is_json { value.to_owned() } else { serde_json::Value::from(value).to_string() };
        Ok(Self { name: name.to_owned(), json })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_or_text() {
        let json = |text: &str| text.parse::<TemplateVariable>().map(|variable| variable.json);
        assert_eq!(json("k=false"), Ok("false".into()));
        assert_eq!(json("k={\"b\": 1, \"a\": 2}"), Ok("{\"b\": 1, \"a\": 2}".into()));
        assert_eq!(json("k=26 July 2024"), Ok("\"26 July 2024\"".into()));
        assert_eq!(json("k=a=b"), Ok("\"a=b\"".into()));
        assert_eq!(json("k="), Ok("\"\"".into()));
        assert!(json("k").is_err() && json("=v").is_err());
    }
}
