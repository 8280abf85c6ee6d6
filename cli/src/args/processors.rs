//! The arguments of logit processors.

use std::collections::BTreeMap;

use clap::Args;
use flexdraft::model::Tokenizer;
use flexdraft::processors::LogitProcessors;

use super::logit_bias::LogitBias;
use super::token_ids::TokenIds;
use crate::error::{CliError, Result};

/// The arguments of the logit processors, which act on the target's logits before temperature.
#[derive(Clone, Debug, Args)]
pub struct ProcessorArgs {
    /// Divide positive logits of tokens in prompt and output by this number, and multiply negative ones; 1 is off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub repetition_penalty: f32,
    /// Subtract this number from a token's logit for each of its occurrences in the output; 0 is off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub frequency_penalty: f32,
    /// Subtract this number from the logits of tokens that occur in the output; 0 is off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub presence_penalty: f32,
    /// Add a number to the logit of a token id; may be repeated for other ids
    #[arg(long, value_name = "ID=X", help_heading = "Sampling")]
    pub logit_bias: Vec<LogitBias>,
    /// Forbid end-of-sequence tokens before this number of new tokens
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub min_tokens: usize,
    /// Forbid a sequence of token ids; may be repeated
    #[arg(long, value_name = "1,2,3", help_heading = "Sampling")]
    pub bad_words_ids: Vec<TokenIds>,
    /// Forbid a text, as the tokens of the text and as the tokens of the text after a space; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Sampling")]
    pub bad_words: Vec<String>,
    /// Allow only these token ids
    #[arg(long, value_name = "1,2,3", help_heading = "Sampling")]
    pub allowed_token_ids: Option<TokenIds>,
}

impl ProcessorArgs {
    /// Returns the logit processors for a vocabulary of `vocab_size` ids, not yet validated. `tokenizer` gives the ids of
    /// texts.
    pub fn processors(&self, vocab_size: usize, tokenizer: Option<&Tokenizer>) -> Result<LogitProcessors> {
        let mut logit_bias = BTreeMap::new();
        for &LogitBias { id, bias } in &self.logit_bias {
            if logit_bias.insert(id, bias).is_some() {
                return Err(CliError::Usage(format!("--logit-bias has two numbers for id {id}")));
            }
        }
        let allowed = match &self.allowed_token_ids {
            None => None,
            Some(TokenIds(ids)) => {
                let mut words = vec![0; vocab_size.div_ceil(32)];
                for &id in ids {
                    let word = words.get_mut(id as usize / 32).filter(|_| (id as usize) < vocab_size);
                    let beyond =
                        || format!("--allowed-token-ids has id {id}, the vocabulary has {vocab_size} ids");
                    *word.ok_or_else(|| CliError::Usage(beyond()))? |= 1 << (id % 32);
                }
                Some(words.into())
            }
        };
        Ok(LogitProcessors {
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias,
            min_tokens: self.min_tokens,
            bad_words: self.bad_words(tokenizer)?,
            allowed,
        })
    }

    /// Returns the sequences of ids that are forbidden. A text is forbidden with and without a space before it, because
    /// most tokenizers spell a word within a sentence with its space.
    fn bad_words(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<Vec<u32>>> {
        let mut words: Vec<Vec<u32>> = self.bad_words_ids.iter().map(|TokenIds(ids)| ids.clone()).collect();
        for text in &self.bad_words {
            let message =
                "--bad-words needs a tokenizer, which the target does not have; use --bad-words-ids";
            let tokenizer = tokenizer.ok_or_else(|| CliError::Usage(message.into()))?;
            if text.trim().is_empty() {
                return Err(CliError::Usage("--bad-words has a text without a word".into()));
            }
            for text in [text.clone(), format!(" {}", text.trim_start())] {
                let ids = tokenizer.encode(&text, false)?;
                if !words.contains(&ids) {
                    words.push(ids);
                }
            }
        }
        Ok(words)
    }
}
