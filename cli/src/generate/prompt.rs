//! The prompt, as token ids and as text.

use flexdraft::model::{ChatMessage, LoadError, Tokenizer};

use super::args::GenerateArgs;
use crate::card::Card;
use crate::error::{CliError, Result};
use crate::models::Pair;
use crate::progress::Progress;
use crate::template::{Template, read_text};

/// The default prompt for the bundled model, whose training text was Rust's SIMD intrinsics.
pub const BUNDLED_PROMPT: &str = "/// Adds packed 32-bit integers in `a` and `b`.\n";

/// The prompt that `generate` continues.
#[derive(Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// The prompt's text as given; `None` if the prompt was given as token ids.
    pub text: Option<String>,
}

impl Prompt {
    pub fn from_args(
        args: &GenerateArgs,
        pair: &Pair,
        tokenizer: Option<&Tokenizer>,
        card: &Card,
        progress: &Progress,
    ) -> Result<Self> {
        if let Some(argument) = args.template.given().filter(|_| !args.chat) {
            return Err(CliError::Usage(format!("{argument} needs --chat: it is for a chat template")));
        }
        if let Some(ids) = &args.prompt_ids {
            return Ok(Self { ids: ids.0.clone(), text: None });
        }
        let text = match (&args.prompt, &args.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path, "prompt")?,
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
            let template = Template::read(&pair.target, &args.template).map_err(|error| match error {
                CliError::Library(flexdraft::Error::Load(error @ LoadError::NoChatTemplate { .. })) => {
                    CliError::Usage(format!("{error}; leave out --chat to use the text unchanged"))
                }
                error => error,
            })?;
            let warnings = template.warnings().into_iter().chain(card.differences(&template));
            warnings.for_each(|warning| progress.warn(&warning));
            let message = ChatMessage::new("user", text.as_str());
            let messages: Vec<_> = template.system().into_iter().chain([message]).collect();
            template.prompt(&messages, tokenizer)?
        } else {
            tokenizer.encode(&text, true)?
        };
        Ok(Self { ids, text: Some(text) })
    }
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
