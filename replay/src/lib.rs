//! Replays of recorded drafts: compares drafting policies with the fixed modes, an informed bound and an oracle, on
//! simulated machines.
//!
//! A [`recording`] has the draft at every position of greedy transcripts, so a [simulated](simulate) step knows what
//! any verify length accepts and what the next draft would be. A [`machine`] gives the step's duration, to which the
//! simulation adds noise, outliers and a drift. A [`load`] states the number of sequences of each kind.

pub mod hindsight;
pub mod informed;
pub mod load;
pub mod machine;
pub mod oracle;
pub mod pair;
pub mod paired;
pub mod probe;
pub mod record;
pub mod recording;
pub mod report;
pub mod seat;
pub mod simulate;
