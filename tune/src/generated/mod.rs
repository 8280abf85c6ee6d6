//! Measures a drafter by generating: the engine decodes unseen prompts with the drafter, and without it to check that
//! the output does not change.

mod decoding;
mod evaluate;
mod report;
mod walked;

pub use decoding::Decoding;
pub use evaluate::{Evaluation, Progress, evaluate};
pub use report::{Continuation, Report, Slot};
pub use walked::{Walked, walk_greedy};
