//! Text of an output: turns its tokens into text, up to a stop string.

use std::sync::Arc;

use flexdraft::model::{StopStrings, TextStream, Tokenizer};

use crate::error::{CliError, Result};

/// The settings that turn the tokens of an output into text.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// `None` if the model has no tokenizer; its outputs then have no text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    stops: StopStrings,
}

impl TextOptions {
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, stops: &[String]) -> Result<Self> {
        if !stops.is_empty() && tokenizer.is_none() {
            return Err(CliError::Usage("--stop needs a tokenizer, which this model does not have".into()));
        }
        Ok(Self { tokenizer, stops: StopStrings::new(stops)? })
    }

    /// Starts the text that follows a prompt.
    pub fn after(&self, prompt_ids: &[u32]) -> Result<Text> {
        let stream = self.tokenizer.clone().map(|tokenizer| TextStream::after(tokenizer, true, prompt_ids));
        Ok(Text(stream.transpose()?.map(|stream| stream.with_stop_strings(&self.stops))))
    }
}

/// The text of an output, as its tokens arrive; empty without a tokenizer.
#[derive(Debug, Default)]
pub struct Text(Option<TextStream>);

impl Text {
    /// Adds tokens up to a stop string, and returns the text that each of these tokens completes.
    pub fn push(&mut self, ids: &[u32]) -> Result<Vec<String>> {
        let mut pieces = Vec::new();
        for id in ids {
            if self.is_stopped() {
                break;
            }
            let piece = self.0.as_mut().map(|stream| stream.push(std::slice::from_ref(id)));
            pieces.push(piece.transpose()?.unwrap_or_default());
        }
        Ok(pieces)
    }

    /// Returns whether a stop string ended the text.
    pub fn is_stopped(&self) -> bool {
        self.0.as_ref().is_some_and(TextStream::is_stopped)
    }

    /// Returns the text left at the end of an output: an incomplete character, or the beginning of a stop string.
    pub fn finish(self) -> Result<String> {
        Ok(self.0.map(TextStream::finish).transpose()?.unwrap_or_default())
    }
}
