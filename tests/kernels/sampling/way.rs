//! The sampling of one row of a test.

use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;

/// Sampling parameters and random numbers of one row of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    pub params: SamplingParams,
    /// Seed, purpose, slot and position of the draw; `None` if nothing is drawn.
    pub numbers: Option<(u64, Purpose, usize, usize)>,
    pub draft: i32,
}

impl Way {
    pub fn greedy() -> Self {
        Way { params: SamplingParams::GREEDY, numbers: None, draft: -1 }
    }

    pub fn drawn(params: SamplingParams, seed: u64) -> Self {
        Way { params, numbers: Some((seed, Purpose::TargetDraw, 0, 17)), draft: -1 }
    }

    pub fn stream(&self) -> Option<Stream> {
        self.numbers.map(|(seed, purpose, slot, position)| Stream::new(seed, purpose, slot, position))
    }
}
