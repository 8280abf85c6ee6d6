//! Decodes tokens into text while they arrive, a few at a time.

use std::sync::Arc;

use super::stop_strings::{StopSearch, StopStrings};
use super::tokenizer::Tokenizer;
use crate::model::LoadError;

/// The replacement character, which ends a decoded text whose final UTF-8 character is still incomplete.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Number of tokens after which an incomplete character is considered invalid UTF-8. A character has at most
/// four bytes, and a token at least one.
const PATIENCE: usize = 8;

/// Number of tokens kept as context for decoding: an incomplete character begins within the last three tokens.
const CONTEXT: usize = 4;

/// Returns whether a token stands for one byte of a character that the vocabulary lacks, such as `<0xC3>`.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// A stream that turns tokens, as they arrive, into text, up to a stop string.
///
/// A token may end inside a UTF-8 character, and its text may depend on earlier tokens. The stream therefore
/// decodes a short window of recent tokens, and returns only text that can no longer change. With a
/// byte-level tokenizer, the concatenated pieces are exactly the result of [`Tokenizer::decode`] on all ids.
///
/// With [stop strings](Self::with_stop_strings), the text ends before the first stop string. The stream holds back text
/// that may be the beginning of a stop string, so that no returned text has to be taken back.
///
/// A stream owns what it needs and is [`Send`]: a server can store one per request.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    /// Recent tokens, whose text may depend on one another.
    window: Vec<u32>,
    /// Number of tokens in `window` whose text was returned completely; the pending text comes after them.
    settled: usize,
    /// Number of bytes of the window's text that were returned.
    emitted: usize,
    search: StopSearch,
    /// Number of tokens of the text, up to and including the token that completed a stop string.
    tokens: usize,
    stopped: bool,
}

impl TextStream {
    /// Creates a stream at the beginning of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        Self {
            tokenizer,
            skip_special_tokens,
            window: Vec::new(),
            settled: 0,
            emitted: 0,
            search: StopSearch::new(StopStrings::default()),
            tokens: 0,
            stopped: false,
        }
    }

    /// Starts a stream after the tokens of `context`, whose text is not returned. A decoder that treats the
    /// beginning of a text in another way, as SentencePiece's does with spaces, then sees that the text goes on.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] for ids that the tokenizer cannot handle.
    pub fn after(
        tokenizer: Arc<Tokenizer>,
        skip_special_tokens: bool,
        context: &[u32],
    ) -> Result<Self, LoadError> {
        let mut stream = Self::new(tokenizer, skip_special_tokens);
        // A run of byte tokens is decoded as a whole, so the context must not begin within a run.
        let is_byte =
            |stream: &Self, id: u32| stream.tokenizer.token(id).is_some_and(|token| is_byte_token(&token));
        for &id in context.iter().rev() {
            if stream.is_silent(id) {
                continue;
            }
            if stream.window.len() >= CONTEXT
                && !stream.window.last().is_some_and(|&first| is_byte(&stream, first))
            {
                break;
            }
            stream.window.push(id);
        }
        stream.window.reverse();
        stream.settled = stream.window.len();
        stream.emitted = stream.decode_window()?.trim_end_matches(REPLACEMENT).len();
        Ok(stream)
    }

    /// Makes the stream end the text before the first of the stop strings `stops`. A stop string is found
    /// wherever tokens begin and end. A special token that the stream skips ends the text if a stop string
    /// spells exactly that token.
    pub fn with_stop_strings(mut self, stops: &StopStrings) -> Self {
        self.search = StopSearch::new(stops.clone());
        self
    }

    /// Adds tokens, and returns the text that they complete, which may be empty. Tokens after a stop string have no effect.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] for ids that the tokenizer cannot handle.
    pub fn push(&mut self, ids: &[u32]) -> Result<String, LoadError> {
        let mut text = String::new();
        for &id in ids {
            if self.stopped {
                break;
            }
            let piece = self.push_one(id)?;
            text.push_str(&self.search.push(&piece));
            self.tokens += 1;
            self.stopped = self.search.found() || self.is_stop_token(id);
        }
        Ok(text)
    }

    /// Returns whether a stop string was found. The request then needs no further tokens: cancel it
    /// ([`Engine::cancel`](crate::decode::Engine::cancel)).
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Returns the number of tokens that the stream took. After a stop string, this is the length of the output in
    /// tokens: the last token is the token that completed the stop string, wherever the calls of [`push`](Self::push)
    /// divided the tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Ends the stream and returns the pending text, with an incomplete character as U+FFFD.
    ///
    /// # Errors
    /// The errors of [`push`](Self::push).
    pub fn finish(mut self) -> Result<String, LoadError> {
        if self.search.found() {
            return Ok(String::new());
        }
        let text = self.decode_window()?;
        let piece = self.take(&text, text.len());
        Ok(self.search.push(&piece) + &self.search.finish())
    }

    /// Returns whether a token is a special token that the stream skips, and one of the stop strings spells
    /// exactly this token.
    fn is_stop_token(&self, id: u32) -> bool {
        self.is_silent(id) && self.tokenizer.token(id).is_some_and(|token| self.search.contains(&token))
    }

    fn push_one(&mut self, id: u32) -> Result<String, LoadError> {
        // Tokens without text must not fill the window.
        if self.is_silent(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.decode_window()?;
        let complete = text.trim_end_matches(REPLACEMENT).len();
        if complete == text.len() {
            let piece = self.take(&text, complete);
            // The tokens of this piece of text are the context of the next piece; earlier tokens are no longer needed.
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

    /// Returns whether a token has no text: it is a special token that is skipped, or its id is unknown.
    fn is_silent(&self, id: u32) -> bool {
        (self.skip_special_tokens && self.tokenizer.is_special(id)) || self.tokenizer.token(id).is_none()
    }

    fn decode_window(&self) -> Result<String, LoadError> {
        self.tokenizer.decode(&self.window, self.skip_special_tokens)
    }

    /// Returns the part of `text`, the window's text, from the first byte that was not returned up to byte
    /// `end`. If the text became shorter, nothing is new; decoders that fall back to bytes shorten the text
    /// while a character is incomplete.
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
