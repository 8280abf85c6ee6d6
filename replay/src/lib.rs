//! Replays of recorded drafts: drafting policies on simulated machines, beside the fixed modes and an oracle.
//!
//! A [`recording`] has the draft at every position of greedy transcripts, so a [simulated](simulate) step knows what any
//! verify length accepts and what the next draft would be. A [`machine`] gives the step's duration; noise, outliers and a
//! drift come on top. A [`load`] says how many sequences of each kind there are.

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
