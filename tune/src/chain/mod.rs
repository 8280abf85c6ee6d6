//! Chained Calibration in training: the heads that correct the logits of each slot's most likely ids, given the token
//! of the previous slot.
//!
//! The equations are in the reference crate, `reference/src/chain.rs`.

mod export;
mod heads;
mod slots;

pub use export::export_chain;
pub use heads::{ChainHeads, ChainShape};
pub use slots::{ChainSlots, Likeliest, TRAINED_IDS, likeliest};
