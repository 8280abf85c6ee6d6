//! What a drafter is worth, by generating: the engine decodes unseen prompts with it, and without it to see that
//! nothing changed.

mod decoding;
mod evaluate;
mod report;
mod walked;

pub use decoding::Decoding;
pub use evaluate::{Evaluation, Progress, evaluate};
pub use report::{Bin, Continuation, Report, Slot};
pub use walked::{Walked, walk_greedy};
