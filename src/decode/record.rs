//! The results that a step reports for a request.

use super::error::DecodeError;
use super::logprobs::TokenLogprobs;
use super::request_id::RequestId;

/// The reason why a request ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Finish {
    /// `max_new_tokens` or the target's context was exhausted.
    Length,
    /// A stop id was generated. It is the last token of the output.
    Stop,
    /// The caller ended the request with [`Engine::finish`](super::Engine::finish).
    Ended,
    /// The request's deadline passed.
    Deadline,
    /// The request failed. Its committed tokens remain valid.
    Failed(DecodeError),
}

/// The outcome of one step for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The request's id.
    pub id: RequestId,
    /// New tokens of the output, in order. Empty while the engine reads a long prompt.
    pub tokens: Vec<u32>,
    /// The log-probabilities of each of `tokens`, if the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// The reason why the request ended, if it ended with this step. The engine no longer has the request then.
    pub finish: Option<Finish>,
    /// Details of the step, if the request asked for records and the step finished a prompt or verified a
    /// draft.
    pub record: Option<Record>,
}

/// The next block, as drafted in a step: the bonus token, and the draft tokens after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockRecord {
    /// The step's bonus token.
    pub bonus: u32,
    /// Draft tokens `[S − 1]`, or a proposal of any length, for the positions after the bonus token; empty if the step
    /// did not draft.
    pub draft: Vec<u32>,
    /// The largest probability of each draft token's softmax at temperature 1; 1 for a token that a proposer pushed as
    /// certain.
    pub confidence: Vec<f32>,
}

/// Details of a step, before the output was cut at a stop id or the length limit.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The step finished reading the prompt.
    Prefill(BlockRecord),
    /// The step verified a draft.
    Step(StepRecord),
}

/// The way in which a step drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepMode {
    /// Parallel drafting: the joint pass had a mask group for every possible accepted length, so K = {0..=v}.
    Parallel,
    /// Sequential drafting: the joint pass had no mask group, so K = ∅.
    Sequential,
    /// The joint pass had mask groups for some of the possible accepted lengths only.
    Mixed,
    /// The step verified nothing and drafted nothing.
    Autoregressive,
}

impl StepMode {
    /// Returns the mode's name in command lines and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Sequential => "sequential",
            Self::Mixed => "mixed",
            Self::Autoregressive => "ar",
        }
    }
}

/// Details of one verification.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// The way in which the next block was drafted.
    pub mode: StepMode,
    /// n: the position of the first candidate, `candidates[0]`.
    pub position: usize,
    /// v: the verify length, the number of draft tokens that the step verified.
    pub verify_len: usize,
    /// K: the accepted lengths for which the joint pass had a mask group, ascending.
    pub groups: Vec<usize>,
    /// The candidates c_0..c_v.
    pub candidates: Vec<u32>,
    /// a: the accepted length, the number of draft tokens that the target accepted.
    pub accepted: usize,
    /// The bonus token and the next block.
    pub next: BlockRecord,
}
