//! The decode loop: requests, the engine, and the steps that decode them.
//!
//! ```text
//! request → engine asks the policy for (v, K) → step lays the rows out → the device runs them
//!         → target logits → hook → acceptance → the next block is drafted → committed tokens
//! ```

mod confidence;
mod engine;
mod error;
mod explanation;
mod flex;
mod hook;
mod logprobs;
mod lookup;
mod options;
mod pages;
mod policy;
mod prefix_index;
mod probe;
mod proposal;
mod proposal_confidence;
mod record;
mod request;
mod request_id;
mod scheduler;
mod sequence;
mod stats;
mod step;
mod unverified;

pub use confidence::{Confidence, ConfidenceStrategy};
pub use engine::Engine;
pub use error::DecodeError;
pub use explanation::{Alternative, ExplainedChoice, Explanation, Reason};
pub use flex::{CostModel, Flex, StepShape};
pub use hook::{HookError, LogitsHook, MaskProvider};
pub use logprobs::TokenLogprobs;
pub use lookup::PromptLookup;
pub use options::EngineOptions;
pub use policy::{
    BatchView, Choice, ComparedToken, Mode, Policy, SequenceStep, SequenceView, StepTimes, StepView,
};
pub use probe::{Probe, ProbeOptions, ProbedStep};
pub use proposal::{MAX_PROPOSAL, Proposal, ProposalError, Proposer};
pub use record::{BlockRecord, Committed, Finish, Record, StepMode, StepRecord};
pub use request::Request;
pub use request_id::RequestId;
pub use stats::{DraftCounts, EngineStats, PrefixCounts};
