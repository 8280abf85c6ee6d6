//! The decode loop: requests, the engine, and the steps that decode them.
//!
//! ```text
//! request → engine asks the policy for (v, K) → step lays the rows out → the device runs them
//!         → target logits → hook → acceptance → the next block is drafted → committed tokens
//! ```

mod auto;
mod confidence;
mod engine;
mod error;
mod logprobs;
mod options;
mod pages;
mod policy;
mod prefix_index;
mod record;
mod request;
mod request_id;
mod scheduler;
mod sequence;
mod stats;
mod step;

pub use auto::Auto;
pub use confidence::{Confidence, ConfidenceStrategy};
pub use engine::Engine;
pub use error::DecodeError;
pub use logprobs::TokenLogprobs;
pub use options::EngineOptions;
pub use policy::{BatchView, Choice, Mode, Policy, SequenceStep, SequenceView, StepView};
pub use record::{BlockRecord, Committed, Finish, Record, StepMode, StepRecord};
pub use request::{HookError, LogitsHook, Proposer, Request};
pub use request_id::RequestId;
pub use stats::{DraftCounts, EngineStats, PrefixCounts};
