//! A request's state between steps.

use super::record::Finish;
use super::request::{Request, RequestId};
use crate::acceptance::Rule;

/// The next block: drafted, not yet verified.
pub(super) struct Draft<B> {
    /// d_1..d_{S−1}.
    pub(super) tokens: Vec<u32>,
    /// The drafter's confidence in each of them.
    pub(super) confidence: Vec<f32>,
    /// What they were drawn from, where the acceptance rule will ask; `None` also where they were
    /// proposed from elsewhere.
    pub(super) logits: Option<DrawnFrom<B>>,
    /// v by the request's confidence threshold.
    pub(super) verify_len: usize,
}

/// What a draft was drawn from.
pub(super) enum DrawnFrom<B> {
    /// The logits that the last step drafted from, until the next step has drafted.
    LastStep {
        /// The row of the first drafted token.
        first_row: usize,
        /// The place of the first drafted token among all draws of the step.
        first_draw: usize,
    },
    /// The first rows of a buffer of its own.
    Own(B),
}

/// A request that is being served, or waits to be.
pub(super) struct Sequence<B> {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// S; 1 without a drafter.
    pub(super) block_size: usize,
    /// The prompt and everything committed; the newest token's KV is not in the cache.
    pub(super) tokens: Vec<u32>,
    /// Positions 0..cached are in the cache.
    pub(super) cached: usize,
    /// Cache pages, in order of position.
    pub(super) pages: Vec<u32>,
    pub(super) draft: Option<Draft<B>>,
    /// The length at which the request ends, prompt included.
    pub(super) max_len: usize,
}

/// What a sequence needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Read `rows` tokens of the prompt; `last` if they are the last.
    Prefill {
        rows: usize,
        last: bool,
    },
    /// Read `rows` tokens again whose KV was given up to make room for others.
    Recompute {
        rows: usize,
    },
    Decode,
}

impl<B> Sequence<B> {
    /// What comes next, reading at most `row_budget` tokens.
    pub(super) fn work(&self, row_budget: usize) -> Work {
        let pending = self.tokens.len() - self.cached;
        if self.tokens.len() == self.request.prompt.len() {
            let rows = pending.min(row_budget);
            Work::Prefill { rows, last: rows == pending }
        } else if pending > 1 {
            Work::Recompute { rows: (pending - 1).min(row_budget) }
        } else {
            Work::Decode
        }
    }

    /// Whether verification compares two distributions.
    pub(super) fn compares_distributions(&self) -> bool {
        !self.request.sampling.is_greedy() && self.request.rule != Rule::Match
    }

    /// Cuts `committed` at the first stop id (kept) or at the length limit.
    pub(super) fn cut(&self, committed: &mut Vec<u32>) -> Option<Finish> {
        let room = self.max_len.saturating_sub(self.tokens.len());
        let stop = committed.iter().position(|token| self.request.stop_ids.contains(token));
        match stop {
            Some(last) if last < room => {
                committed.truncate(last + 1);
                Some(Finish::Stop)
            }
            _ if committed.len() >= room => {
                committed.truncate(room);
                Some(Finish::Length)
            }
            _ => None,
        }
    }
}
