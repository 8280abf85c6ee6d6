//! A user's message in a chat template, rendered the same way on every day.

use flexdraft::model::{ChatMessage, ChatTemplate, LoadError};

/// Templates that state the date are rendered as of 2025-01-01 (in seconds since 1970), so that no prompt depends on
/// the day.
const RENDERED_AT: u64 = 1_735_689_600;

/// A conversation that begins with the user's message `text`, up to where the assistant's answer begins.
pub(super) fn user_message(template: &ChatTemplate, text: &str) -> Result<String, LoadError> {
    template.render_at(&[ChatMessage::new("user", text)], true, RENDERED_AT)
}
