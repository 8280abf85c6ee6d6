//! Decoding in an evaluation, and the record of each prompt.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Mode, Record, StepRecord};
use flexdraft::sampling::SamplingParams;

/// Settings for decoding the prompts of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Maximum number of tokens per prompt; the target's context is a further limit.
    pub max_new_tokens: usize,
    /// Token ids that end a response.
    pub stop_ids: Vec<u32>,
    /// Temperature and truncation with which tokens are sampled.
    pub sampling: SamplingParams,
    /// The acceptance rule above temperature 0.
    pub rule: Rule,
    /// True if drafts are verified as if the drafter had been certain of them, for comparison. With
    /// [`Rule::Rejection`], a draft x is then accepted with the target's own probability of x: the same as if the
    /// target drew a token independently and the two had to be equal.
    pub as_certain: bool,
    /// The rule by which confidences decide the verify length.
    pub confidence: Confidence,
    /// Parallel or sequential mode; the drafts are the same.
    pub mode: Mode,
    /// Seed of the first prompt; each further prompt uses the next seed.
    pub seed: u64,
    /// Maximum number of prompts that a step decodes together.
    pub batch: usize,
}

impl Decoding {
    /// Returns whether the tokens must equal the tokens of plain decoding, so that prompts are decoded without drafts
    /// too.
    pub fn is_compared(&self) -> bool {
        self.sampling.is_greedy() || self.rule == Rule::Match
    }
}

/// The response to a prompt, and the steps that produced it.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) response: Vec<u32>,
    /// Each verification of the response, with the confidences of the block that it verified in part or whole.
    pub(super) steps: Vec<(Vec<f32>, StepRecord)>,
    /// Confidences of the block that the next step verifies.
    pub(super) pending: Vec<f32>,
}

impl Run {
    pub(super) fn take(&mut self, record: Record) {
        let next = match &record {
            Record::Prefill(block) => &block.confidence,
            Record::Step(step) => &step.next.confidence,
        };
        let confidences = std::mem::replace(&mut self.pending, next.clone());
        if let Record::Step(step) = record {
            self.steps.push((confidences, step));
        }
    }
}
