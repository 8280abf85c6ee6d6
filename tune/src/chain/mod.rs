//! Chained Calibration in training: the heads that correct each slot's likeliest ids by the token of the slot before.
//!
//! The equations are in the reference crate, `reference/src/chain.rs`.

mod export;
mod heads;
mod slots;

pub use export::export_chain;
pub use heads::{ChainHeads, ChainShape};
pub use slots::{ChainSlots, Likeliest, TRAINED_IDS, likeliest};
