//! Renders a user's message in a chat template, independently of the current date.

use flexdraft::model::{ChatMessage, ChatTemplate, LoadError, TemplateVariables};

/// The date that chat templates see: 2025-01-01, in seconds since 1970. A fixed date keeps prompts the same on every
/// day.
const RENDERED_AT: u64 = 1_735_689_600;

/// A chat template, and the variables that prompts are rendered with.
#[derive(Clone, Copy, Debug)]
pub struct Rendering<'a> {
    /// The target's chat template.
    pub template: &'a ChatTemplate,
    /// Value of the template's variable `enable_thinking`; `None` leaves the variable undefined.
    pub thinking: Option<bool>,
}

impl Rendering<'_> {
    /// Renders a conversation that starts with the user's message `text`, up to where the assistant's answer begins.
    pub(super) fn user_message(&self, text: &str) -> Result<String, LoadError> {
        let messages = [ChatMessage::new("user", text)];
        let mut variables = TemplateVariables::new(&messages, true);
        if let Some(thinking) = self.thinking {
            variables.set("enable_thinking", thinking);
        }
        self.template.render_at(&variables, RENDERED_AT)
    }
}
