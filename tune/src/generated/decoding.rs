//! How an evaluation decodes, and what one prompt's decoding gave.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Mode, Record, StepRecord};
use flexdraft::sampling::SamplingParams;

/// How to decode.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Tokens a prompt at most; the target's context bounds them too.
    pub max_new_tokens: usize,
    /// Any of these ends a response.
    pub stop_ids: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// How drafts are accepted above temperature 0.
    pub rule: Rule,
    /// Whether drafts are verified as if the drafter had been certain of them, for comparison: with
    /// [`Rule::Rejection`] a draft x is then accepted with the target's own probability of x, as if the target drew
    /// a token by itself and the two had to be equal.
    pub as_certain: bool,
    /// How much of a draft is verified.
    pub confidence: Confidence,
    /// Parallel or sequential: the drafts are the same.
    pub mode: Mode,
    /// Seed of the first prompt; each further one has the next.
    pub seed: u64,
    /// Prompts in a step at most.
    pub batch: usize,
}

impl Decoding {
    /// Whether the tokens have to be those of plain decoding, so that prompts are decoded without drafts too.
    pub fn is_compared(&self) -> bool {
        self.sampling.is_greedy() || self.rule == Rule::Match
    }
}

/// A prompt's response, and how it came about.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) response: Vec<u32>,
    /// Each verification, with the confidences of the block it verified a part of.
    pub(super) steps: Vec<(Vec<f32>, StepRecord)>,
    /// Confidences of the block that the next step verifies.
    pending: Vec<f32>,
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
