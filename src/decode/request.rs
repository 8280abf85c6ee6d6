//! What a caller asks of the engine.

use super::confidence::Confidence;
use super::error::DecodeError;
use crate::acceptance::Rule;
use crate::sampling::SamplingParams;

/// Names a request within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// Changes the target's logits before warping: penalties, biases, grammars.
///
/// Called once for each row of target logits that a step looks at, which includes rows after draft
/// tokens that are then rejected. The result must depend on the arguments alone; then the output is
/// distributed exactly as autoregressive decoding with the same hook.
pub trait LogitsHook: Send {
    /// `position` is that of the token that `logits` `[vocab]` predict; `prefix` holds the tokens at
    /// positions 0..`position`: the prompt, what was committed, and the row's own draft tokens.
    fn edit(&mut self, position: usize, prefix: &[u32], logits: &mut [f32]);
}

impl<F: FnMut(usize, &[u32], &mut [f32]) + Send> LogitsHook for F {
    fn edit(&mut self, position: usize, prefix: &[u32], logits: &mut [f32]) {
        self(position, prefix, logits);
    }
}

/// Proposes draft tokens in place of the drafter's, from any source: a lookup, another model.
///
/// Proposals are verified like drafts from a distribution that is certain of them, so the output stays
/// lossless under every rule. The verify length is still the drafter's confidences' choice.
pub trait Proposer: Send {
    /// `prefix` holds all tokens so far, the bonus token last; `draft` the drafter's tokens for the
    /// positions after it. Returns whether `draft` was replaced. Ids out of vocabulary are taken back.
    fn propose(&mut self, prefix: &[u32], draft: &mut [u32]) -> bool;
}

impl<F: FnMut(&[u32], &mut [u32]) -> bool + Send> Proposer for F {
    fn propose(&mut self, prefix: &[u32], draft: &mut [u32]) -> bool {
        self(prefix, draft)
    }
}

/// A prompt and how to continue it.
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// At most this many tokens are generated; 0 is legal. The target's context bounds them too.
    pub max_new_tokens: usize,
    /// Any of these ids ends the output and is its last.
    pub stop_ids: Vec<u32>,
    /// Warping of the target's (and the drafter's) distribution.
    pub sampling: SamplingParams,
    /// How drafts are accepted.
    pub rule: Rule,
    /// Key of all random numbers of this request.
    pub seed: u64,
    /// S for this request, up to the drafter's own; `None` for the drafter's own.
    pub block_size: Option<usize>,
    /// How much of a draft is verified.
    pub confidence: Confidence,
    /// Acts on the target's logits before warping.
    pub logits_hook: Option<Box<dyn LogitsHook>>,
    /// Replaces the drafter's tokens.
    pub proposer: Option<Box<dyn Proposer>>,
    /// Whether steps report a [`StepRecord`](super::StepRecord). The step that ends a recorded request
    /// drafts once more, so that its record is whole; no output depends on it.
    pub record: bool,
}

impl Request {
    /// A greedy request for up to `max_new_tokens` tokens, everything else at its default.
    pub fn new(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            max_new_tokens,
            stop_ids: Vec::new(),
            sampling: SamplingParams::GREEDY,
            rule: Rule::default(),
            seed: 0,
            block_size: None,
            confidence: Confidence::default(),
            logits_hook: None,
            proposer: None,
            record: false,
        }
    }

    /// Checks the request against a target's vocabulary and context, and the drafter's block size.
    pub(super) fn validate(
        &self,
        vocab_size: usize,
        context_len: usize,
        block_size: Option<usize>,
    ) -> Result<(), DecodeError> {
        if self.prompt.is_empty() {
            return Err(DecodeError::EmptyPrompt);
        }
        if let Some((position, &token)) =
            self.prompt.iter().enumerate().find(|&(_, &token)| token as usize >= vocab_size)
        {
            return Err(DecodeError::TokenOutOfVocabulary { token, position, vocab_size });
        }
        if self.prompt.len() > context_len {
            return Err(DecodeError::PromptTooLong { tokens: self.prompt.len(), context_len });
        }
        if let (Some(requested), Some(trained)) = (self.block_size, block_size)
            && !(1..=trained).contains(&requested)
        {
            return Err(DecodeError::BlockSize { requested, trained });
        }
        let threshold = self.confidence.threshold;
        if !(0.0..=1.0).contains(&threshold) {
            return Err(DecodeError::Threshold(threshold));
        }
        Ok(self.sampling.validate()?)
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("prompt_tokens", &self.prompt.len())
            .field("max_new_tokens", &self.max_new_tokens)
            .field("stop_ids", &self.stop_ids)
            .field("sampling", &self.sampling)
            .field("rule", &self.rule)
            .field("seed", &self.seed)
            .field("block_size", &self.block_size)
            .field("confidence", &self.confidence)
            .field("logits_hook", &self.logits_hook.is_some())
            .field("proposer", &self.proposer.is_some())
            .field("record", &self.record)
            .finish()
    }
}
