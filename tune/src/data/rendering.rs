//! Renders a user's message in a chat template, independently of the current date.

use flexdraft::model::{ChatMessage, ChatTemplate, LoadError, TemplateVariables};

/// The date that chat templates see: 2025-01-01, in seconds since 1970. A fixed date keeps prompts the same on every
/// day.
const RENDERED_AT: u64 = 1_735_689_600;

/// Renders a conversation that starts with the user's message `text`, up to where the assistant's answer begins.
pub(super) fn user_message(template: &ChatTemplate, text: &str) -> Result<String, LoadError> {
    let messages = [ChatMessage::new("user", text)];
    template.render_at(&TemplateVariables::new(&messages, true), RENDERED_AT)
}
