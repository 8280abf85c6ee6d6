//! The prompt, as token ids and as text.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flexdraft::model::{ChatMessage, ChatTemplate, LoadError, TextStream, Tokenizer};

use super::args::GenerateArgs;
use crate::error::{CliError, Result};
use crate::models::Pair;

/// The default prompt for the bundled model, whose training text was Rust's SIMD intrinsics.
pub const BUNDLED_PROMPT: &str = "/// Adds packed 32-bit integers in `a` and `b`.\n";

/// Maximum size of a prompt file, in bytes: more text than any context holds.
const PROMPT_FILE_LIMIT: u64 = 64 << 20;

/// The prompt that is continued.
#[derive(Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// The prompt's text as given; `None` if the prompt was given as token ids.
    pub text: Option<String>,
}

impl Prompt {
    pub fn from_args(args: &GenerateArgs, pair: &Pair, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        if let Some(ids) = &args.prompt_ids {
            return Ok(Self { ids: ids.0.clone(), text: None });
        }
        let text = match (&args.prompt, &args.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path)?,
            (None, None) if pair.bundled => BUNDLED_PROMPT.to_owned(),
            (None, None) => {
                let message = "nothing to continue: pass --prompt, --prompt-file or --prompt-ids";
                return Err(CliError::Usage(message.into()));
            }
        };
        let Some(tokenizer) = tokenizer else {
            return Err(CliError::Usage(format!(
                "{} has no tokenizer.json, so the prompt must be given as --prompt-ids",
                pair.target.display()
            )));
        };
        let ids = if args.chat {
            let message = ChatMessage::new("user", text.as_str());
            // The chat template already contains the special tokens.
            let rendered = chat_template(&pair.target)?.render(&[message], true)?;
            tokenizer.encode(&rendered, false)?
        } else {
            tokenizer.encode(&text, true)?
        };
        Ok(Self { ids, text: Some(text) })
    }
}

fn chat_template(target: &Path) -> Result<ChatTemplate> {
    ChatTemplate::read(target).map_err(|error| match error {
        LoadError::NoChatTemplate { .. } => {
            CliError::Usage(format!("{error}; leave out --chat to use the text unchanged"))
        }
        error => error.into(),
    })
}

fn read_text(path: &Path) -> Result<String> {
    let failed = |source| CliError::PromptFile { path: path.into(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let len = file.take(PROMPT_FILE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if len as u64 > PROMPT_FILE_LIMIT {
        let reason = format!("it has more than {PROMPT_FILE_LIMIT} bytes, the limit");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
    }
    Ok(text)
}

/// The model's tokenizer; `None` without a `tokenizer.json`, in which case prompts are given as ids. For such a prompt,
/// a tokenizer that cannot be read is only the reason why there is no text to show.
pub fn tokenizer(
    args: &GenerateArgs,
    pair: &Pair,
    vocab_size: usize,
) -> Result<(Option<Tokenizer>, Option<LoadError>)> {
    match Tokenizer::read_if_present(&pair.target, vocab_size) {
        Ok(tokenizer) => Ok((tokenizer, None)),
        Err(error) if args.prompt_ids.is_some() => Ok((None, Some(error))),
        Err(error) => Err(error.into()),
    }
}

/// Turns the tokens of a sample into text as they arrive; gives no text without a tokenizer.
#[derive(Debug, Default)]
pub struct Text<'a>(Option<TextStream<'a>>);

impl<'a> Text<'a> {
    /// Starts the text that follows a prompt.
    pub fn after(tokenizer: Option<&'a Tokenizer>, prompt_ids: &[u32]) -> Result<Self> {
        let stream = tokenizer.map(|tokenizer| TextStream::after(tokenizer, true, prompt_ids));
        Ok(Self(stream.transpose()?))
    }

    /// Adds tokens, and returns the text that these tokens complete.
    pub fn push(&mut self, ids: &[u32]) -> Result<String> {
        Ok(self.0.as_mut().map(|stream| stream.push(ids)).transpose()?.unwrap_or_default())
    }

    /// Returns the text left at the end of a sample: an incomplete character.
    pub fn finish(self) -> Result<String> {
        Ok(self.0.map(TextStream::finish).transpose()?.unwrap_or_default())
    }
}
