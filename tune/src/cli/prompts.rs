//! Reads prompts from a file, for a target.

use std::path::Path;

use flexdraft::model::{ChatTemplate, LoadError, ModelConfig, Tokenizer};
use flexdraft_tune::data::{PromptFormat, Rendering, read_prompts};
use flexdraft_tune::{Result, TuneError};

/// Reads a file of prompts as token ids, rendered with the target's chat template unless `raw` is set. `thinking` is the
/// value of the template's variable `enable_thinking`, if the arguments set it.
pub fn given(
    path: &Path,
    raw: bool,
    thinking: Option<bool>,
    target: &Path,
    config: &ModelConfig,
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::read(target, config.vocab_size)?;
    let template = if raw { None } else { Some(ChatTemplate::read(target).map_err(add_raw)?) };
    let format = match &template {
        None => PromptFormat::Raw,
        Some(template) => PromptFormat::Chat(Rendering { template, thinking }),
    };
    read_prompts(path, &format, &tokenizer, config.context_len)
}

fn add_raw(error: LoadError) -> TuneError {
    match error {
        LoadError::NoChatTemplate { .. } => {
            let expected = "--raw, which uses the prompts unchanged";
            TuneError::setting(
                "the rendering of --prompts",
                format!("a chat template, but {error}"),
                expected,
            )
        }
        error => error.into(),
    }
}
