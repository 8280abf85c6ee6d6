//! Reads prompts from a file, for a target.

use std::path::Path;

use flexdraft::model::{ChatTemplate, ModelConfig, Tokenizer};
use flexdraft_tune::Result;
use flexdraft_tune::data::{PromptFormat, read_prompts};

/// Reads a file of prompts as token ids, rendered with the target's chat template unless they are `raw`.
pub fn given(path: &Path, raw: bool, target: &Path, config: &ModelConfig) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::read(target, config.vocab_size)?;
    let template = if raw { None } else { Some(ChatTemplate::read(target)?) };
    let format = template.as_ref().map_or(PromptFormat::Raw, PromptFormat::Chat);
    read_prompts(path, &format, &tokenizer, config.context_len)
}
