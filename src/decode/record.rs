//! What a step reports.

use super::error::DecodeError;
use super::request::RequestId;

/// Why a request ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Finish {
    /// `max_new_tokens` or the target's context is exhausted.
    Length,
    /// A stop id was generated; it is the last token of the output.
    Stop,
    /// The request could not go on. What it had committed stands.
    Failed(DecodeError),
}

/// What one step did for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The request.
    pub id: RequestId,
    /// New tokens of the output, in order. Empty while a long prompt is being read.
    pub tokens: Vec<u32>,
    /// Set when the request ended with this step; the engine has forgotten it by then.
    pub finish: Option<Finish>,
    /// What happened, for requests that ask for records, where a prompt ended or drafts were verified.
    pub record: Option<Record>,
}

/// The next block, as drafted in a step: slots 1..S.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockRecord {
    /// The bonus token that the step yielded.
    pub bonus: u32,
    /// Draft tokens `[S − 1]` for the positions after the bonus token; empty if none were drafted.
    pub draft: Vec<u32>,
    /// The largest probability of each slot's softmax at temperature 1 `[S − 1]`.
    pub confidence: Vec<f32>,
}

/// A step as it happened, before the output was cut at a stop id or the length limit.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The prompt was read.
    Prefill(BlockRecord),
    /// A draft was verified.
    Step(StepRecord),
}

/// How a step drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepMode {
    /// K = {0..=v}.
    Parallel,
    /// K = ∅.
    Sequential,
    /// Any other K.
    Mixed,
    /// Nothing was verified and nothing drafted.
    Autoregressive,
}

impl StepMode {
    /// The word that command lines and records use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Sequential => "sequential",
            Self::Mixed => "mixed",
            Self::Autoregressive => "ar",
        }
    }
}

/// One verification.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// How the next block was drafted.
    pub mode: StepMode,
    /// n: the position of `candidates[0]`.
    pub position: usize,
    /// v.
    pub verify_len: usize,
    /// K, ascending.
    pub groups: Vec<usize>,
    /// c_0..c_v.
    pub candidates: Vec<u32>,
    /// a.
    pub accepted: usize,
    /// The bonus token and the next block.
    pub next: BlockRecord,
}
