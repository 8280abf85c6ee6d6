//! The text of a growing list of tokens.

use super::tokenizer::Tokenizer;
use crate::model::LoadError;

/// Decodings of a UTF-8 character that is still incomplete end in this.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Tokens after which an incomplete character is taken for bytes that will never be UTF-8. A
/// character has at most four bytes, a token at least one.
const PATIENCE: usize = 8;

/// Tokens kept as context: an incomplete character begins within the last three.
const CONTEXT: usize = 4;

/// Text of tokens that arrive a few at a time.
///
/// A token may end inside a UTF-8 character, and what a token reads as may depend on those before
/// it. So a stream decodes a short window of recent tokens, and hands out what can no longer change.
/// The pieces of a byte-level tokenizer join to exactly what [`Tokenizer::decode`] makes of all ids.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// Tokens that later ones may be read together with.
    window: Vec<u32>,
    /// How many of them come before the text that is pending.
    settled: usize,
    /// Bytes of the window's text that were handed out.
    emitted: usize,
}

impl<'a> TextStream<'a> {
    /// A stream at the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, window: Vec::new(), settled: 0, emitted: 0 }
    }

    /// Adds tokens; returns the text that they complete, which may be empty.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] for ids that the tokenizer cannot handle.
    pub fn push(&mut self, ids: &[u32]) -> Result<String, LoadError> {
        let mut text = String::new();
        for &id in ids {
            text.push_str(&self.push_one(id)?);
        }
        Ok(text)
    }

    /// Ends the text: returns what is pending, an incomplete character as U+FFFD.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<String, LoadError> {
        let text = self.decode_window()?;
        Ok(self.take(&text, text.len()))
    }

    fn push_one(&mut self, id: u32) -> Result<String, LoadError> {
        // What decodes to nothing must not fill the window.
        let silent = self.skip_special_tokens && self.tokenizer.is_special(id);
        if silent || self.tokenizer.token(id).is_none() {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.decode_window()?;
        let complete = text.trim_end_matches(REPLACEMENT).len();
        if complete == text.len() {
            let piece = self.take(&text, complete);
            // The tokens of this piece are the context of the next; those before them are done with.
            self.window.drain(..self.settled);
            self.settled = self.window.len();
            self.emitted = self.decode_window()?.len();
            return Ok(piece);
        }
        if self.window.len() - self.settled < PATIENCE {
            return Ok(self.take(&text, complete));
        }
        let piece = self.take(&text, text.len() - REPLACEMENT.len_utf8());
        self.window.drain(..self.window.len() - CONTEXT);
        self.settled = 0;
        let text = self.decode_window()?;
        self.emitted = text.len() - if text.ends_with(REPLACEMENT) { REPLACEMENT.len_utf8() } else { 0 };
        Ok(piece)
    }

    fn decode_window(&self) -> Result<String, LoadError> {
        self.tokenizer.decode(&self.window, self.skip_special_tokens)
    }

    /// Bytes `emitted..end` of the window's text. There is nothing new where the text became shorter,
    /// which decoders that fall back to bytes do while a character is incomplete.
    fn take(&mut self, text: &str, end: usize) -> String {
        match text.get(self.emitted..end) {
            Some(piece) => {
                self.emitted = end;
                piece.to_owned()
            }
            None => String::new(),
        }
    }
}
