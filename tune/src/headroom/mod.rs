//! The possible gain of a chain: how often the right token is among the most likely ids of a slot, and the acceptance
//! lengths without a chain, with the drafter's chain, with a chain that is never wrong, and with counted trigrams.

mod back_off;
mod measure;

pub use back_off::BackOff;
pub use measure::{Headroom, Source, measure};
