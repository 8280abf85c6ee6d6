//! Requests to the engine.

use std::time::Instant;

use super::confidence::Confidence;
use super::error::DecodeError;
use super::hook::{LogitsHook, MaskProvider};
use super::proposal::Proposer;
use crate::acceptance::Rule;
use crate::processors::LogitProcessors;
use crate::sampling::SamplingParams;

/// A prompt, and the settings for its continuation.
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// The maximum number of tokens to generate; 0 is allowed. The target's context is a limit too.
    pub max_new_tokens: usize,
    /// Token ids that end the output. The stop id is the output's last token.
    pub stop_ids: Vec<u32>,
    /// Penalties, bias and forbidden ids, which act on the target's logits: after the hook, before warping.
    pub processors: LogitProcessors,
    /// Whether the bias, the mask of allowed ids and the bad words of one id in `processors` act on the drafter's
    /// logits too, before confidence and warping, so that the drafter proposes no forbidden id and more biased ids.
    /// Greedy and `match` outputs do not depend on it, and the distribution of other outputs does not. On a GPU, a
    /// request with a bias, a mask or such a word costs one additional upload and two additional launches per drafting.
    pub processors_on_drafts: bool,
    /// The warping of the target's (and the drafter's) distribution.
    pub sampling: SamplingParams,
    /// The rule that accepts drafts.
    pub rule: Rule,
    /// The seed from which all random numbers of this request are computed.
    pub seed: u64,
    /// Whether the request drafts. If not, each of its steps verifies nothing and yields one token, whatever the
    /// policy chooses.
    pub drafting: bool,
    /// S: the block size of this request, at most the drafter's; `None` for the drafter's.
    pub block_size: Option<usize>,
    /// The settings that decide how much of a draft is verified.
    pub confidence: Confidence,
    /// A hook on the target's logits before warping.
    pub logits_hook: Option<Box<dyn LogitsHook>>,
    /// A source of masks of allowed ids, for each row of the target's logits.
    pub mask_provider: Option<Box<dyn MaskProvider>>,
    /// A source of draft tokens in place of the drafter's.
    pub proposer: Option<Box<dyn Proposer>>,
    /// The number of most likely tokens whose log-probabilities steps report with every committed token, which may be
    /// 0; `None` reports no log-probabilities. The host reads the raw logits of each row that the request verifies: on
    /// a GPU, this costs one additional wait per step, whatever the number of rows and requests.
    pub logprobs: Option<usize>,
    /// Requests of higher priority are admitted first and give up their cache pages last. Among equals, the order of
    /// arrival decides. A running request does not leave the batch for a waiting request. Outputs do not depend on it.
    pub priority: i32,
    /// The time at which the request ends even if it is not complete. The first step that begins later reports
    /// [`Finish::Deadline`](super::Finish::Deadline).
    pub deadline: Option<Instant>,
    /// Whether steps report a [`StepRecord`](super::StepRecord). The last step of a recorded request drafts
    /// once more, so that its record is complete; outputs do not depend on it.
    pub record: bool,
}

impl Request {
    /// Makes a greedy request for up to `max_new_tokens` tokens, with all other settings at their defaults.
    pub fn new(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            max_new_tokens,
            stop_ids: Vec::new(),
            processors: LogitProcessors::default(),
            processors_on_drafts: false,
            sampling: SamplingParams::GREEDY,
            rule: Rule::default(),
            seed: 0,
            drafting: true,
            block_size: None,
            confidence: Confidence::default(),
            logits_hook: None,
            mask_provider: None,
            proposer: None,
            logprobs: None,
            priority: 0,
            deadline: None,
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
        self.processors.validate(vocab_size)?;
        Ok(self.sampling.validate()?)
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("prompt_tokens", &self.prompt.len())
            .field("max_new_tokens", &self.max_new_tokens)
            .field("stop_ids", &self.stop_ids)
            .field("processors", &self.processors)
            .field("processors_on_drafts", &self.processors_on_drafts)
            .field("sampling", &self.sampling)
            .field("rule", &self.rule)
            .field("seed", &self.seed)
            .field("drafting", &self.drafting)
            .field("block_size", &self.block_size)
            .field("confidence", &self.confidence)
            .field("logits_hook", &self.logits_hook.is_some())
            .field("mask_provider", &self.mask_provider.is_some())
            .field("proposer", &self.proposer.is_some())
            .field("logprobs", &self.logprobs)
            .field("priority", &self.priority)
            .field("deadline", &self.deadline)
            .field("record", &self.record)
            .finish()
    }
}
