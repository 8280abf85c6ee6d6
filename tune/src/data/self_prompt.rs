//! Prompts that the target writes itself: Magpie (arXiv 2406.08464).
//!
//! A model tuned on conversations writes a user's message when it is given its chat template up to where that message
//! begins. This samples the model's own distribution of requests, without outside data.

use flexdraft::decode::{Finish, Request};
use flexdraft::model::Tokenizer;
use flexdraft::sampling::SamplingParams;

use super::rendering::Rendering;
use crate::error::{Result, TuneError};

/// Placeholder for the user's message while the template is rendered. No template trims or escapes it.
const SENTINEL: &str = "Q7sentinelQ7";

/// A chat template around a user's message that is not yet written, as token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfPrompt {
    prefix: Vec<u32>,
    /// Token ids of the template from the end of the user's turn to where the assistant's message begins.
    suffix: Vec<u32>,
    /// The tokenizer's special token ids, ascending; a message must contain none of them.
    special: Vec<u32>,
    min_tokens: usize,
    max_tokens: usize,
    sampling: SamplingParams,
}

impl SelfPrompt {
    /// Splits a chat template at the user's message. Messages have `min_tokens..=max_tokens` tokens.
    ///
    /// # Errors
    /// [`TuneError::Runner`] for a template that cannot be rendered; [`TuneError::Setting`] for a template that does
    /// not work without a message, that has nothing before the message, or that does not end the user's turn with a
    /// special token (the end of a message could not be detected); also for limits that no message meets.
    pub fn new(
        rendering: Rendering<'_>,
        tokenizer: &Tokenizer,
        sampling: SamplingParams,
        min_tokens: usize,
        max_tokens: usize,
    ) -> Result<Self> {
        if max_tokens < min_tokens.max(1) {
            let expected = format!("at least {}, the shortest message", min_tokens.max(1));
            return Err(TuneError::setting("max_message", max_tokens, expected));
        }
        let rendered = rendering.user_message(SENTINEL)?;
        let mut parts = rendered.split(SENTINEL);
        let (Some(prefix), Some(suffix), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(template_error("it does not contain the user's message exactly once"));
        };
        // The rendered template already contains the special tokens, so the tokenizer adds none.
        let (prefix, suffix) = (tokenizer.encode(prefix, false)?, tokenizer.encode(suffix, false)?);
        let special = tokenizer.special_ids();
        if prefix.is_empty() {
            return Err(template_error("it has no text before the user's message"));
        }
        if !suffix.first().is_some_and(|end| special.contains(end)) {
            return Err(template_error("no special token ends the user's turn"));
        }
        Ok(Self { prefix, suffix, special, min_tokens, max_tokens, sampling })
    }

    /// Returns the request that lets the target write a message, with random numbers from `seed`.
    pub fn request(&self, seed: u64) -> Request {
        Request {
            stop_ids: self.special.clone(),
            sampling: self.sampling,
            seed,
            // The token that ends the turn counts as a token of the message.
            ..Request::new(self.prefix.clone(), self.max_tokens + 1)
        }
    }

    /// Extracts the message from the tokens that the target wrote; returns `None` if the message is too short,
    /// unfinished, or not ended by the end of the turn.
    pub fn message(&self, mut written: Vec<u32>, finish: &Finish) -> Option<Vec<u32>> {
        let end = written.pop()?;
        let finished = *finish == Finish::Stop && self.suffix.first() == Some(&end);
        (finished && written.len() >= self.min_tokens).then_some(written)
    }

    /// Returns the prompt made from a message: the chat template around the message.
    pub fn prompt(&self, message: &[u32]) -> Vec<u32> {
        [&self.prefix, message, &self.suffix].concat()
    }

    /// Returns the number of tokens of the longest possible prompt.
    pub fn longest(&self) -> usize {
        self.prefix.len() + self.max_tokens + self.suffix.len()
    }
}

fn template_error(reason: &str) -> TuneError {
    TuneError::setting(
        "the source of prompts",
        format!("the target itself, but its chat template does not allow that: {reason}"),
        "--continue FILE or --prompts FILE",
    )
}

#[cfg(test)]
pub(super) fn example() -> SelfPrompt {
    SelfPrompt {
        prefix: vec![1, 10],
        suffix: vec![2, 11],
        special: vec![0, 1, 2],
        min_tokens: 2,
        max_tokens: 6,
        sampling: SamplingParams { top_p: 0.95, ..SamplingParams::at_temperature(1.0) },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use flexdraft::model::ChatTemplate;

    use super::*;

    fn fixture(template: &str) -> (ChatTemplate, Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/tokenizer-smollm.gguf");
        (ChatTemplate::read(folder.path()).unwrap(), Tokenizer::read(&file, 1 << 20).unwrap())
    }

    fn split(template: &str) -> Result<SelfPrompt> {
        let (template, tokenizer) = fixture(template);
        let rendering = Rendering { template: &template, thinking: None };
        SelfPrompt::new(rendering, &tokenizer, SamplingParams::at_temperature(1.0), 1, 8)
    }

    #[test]
    fn a_template_is_split_at_the_message() {
        let template = "<|im_start|>user\n{{ messages[0].content | trim }}<|im_end|>\n<|im_start|>assistant";
        let (_, tokenizer) = fixture(template);
        let prompt = split(template).unwrap();
        let message = tokenizer.encode("Who?", false).unwrap();
        let whole = tokenizer.decode(&prompt.prompt(&message), false).unwrap();
        assert_eq!(whole, "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant");
        assert_eq!(tokenizer.token(prompt.suffix[0]).unwrap(), "<|im_end|>");
    }

    #[test]
    fn templates_that_cannot_be_split_say_why() {
        for (template, reason) in [
            ("<|im_start|>hello<|im_end|>", "exactly once"),
            ("{{ messages[0].content }}{{ messages[0].content }}", "exactly once"),
            ("{{ messages[0].content }}<|im_end|>", "no text before"),
            ("[INST] {{ messages[0].content }} [/INST]", "no special token"),
        ] {
            let error = split(template).unwrap_err();
            assert!(matches!(error, TuneError::Setting { .. }));
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(split("{{ raise_exception('no') }}").is_err());
    }

    #[test]
    fn only_finished_messages_count() {
        let prompt = example();
        let message = |written: &[u32], finish| prompt.message(written.to_vec(), &finish);
        assert_eq!(message(&[5, 6, 2], Finish::Stop), Some(vec![5, 6]));
        assert_eq!(message(&[5, 2], Finish::Stop), None);
        assert_eq!(message(&[5, 6, 0], Finish::Stop), None);
        assert_eq!(message(&[5, 6, 7, 5, 6, 7, 5], Finish::Length), None);
        assert_eq!(message(&[], Finish::Stop), None);
        assert_eq!(prompt.prompt(&[5, 6]), [1, 10, 5, 6, 2, 11]);
    }
}
