//! Statistics of an engine.

use super::policy::StepTimes;
use crate::layout::MAX_BLOCK_SIZE;

/// Statistics of an engine: the requests and cache pages that it has now, and counts since it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineStats {
    /// Number of requests in the batch.
    pub running: usize,
    /// Number of requests that wait for a place in the batch or for cache pages, suspended requests included.
    pub waiting: usize,
    /// How often a request was suspended because its cache pages were needed for another request.
    pub preempted: u64,
    /// Number of pages of the KV cache.
    pub pages: usize,
    /// Number of pages of the KV cache that requests own now.
    pub pages_in_use: usize,
    /// Number of pages of the KV cache that no request owns now, and whose contents later requests may reuse.
    pub pages_cached: usize,
    /// Counts of the tokens that requests read or found in the prefix cache.
    pub prefixes: PrefixCounts,
    /// Counts of the verify lengths and accepted lengths of all verifications so far.
    pub drafts: DraftCounts,
    /// The expected and measured durations of steps; `None` if the policy does not predict durations.
    pub step_times: Option<StepTimes>,
}

/// Counts of the prefix cache. The tokens are tokens of prompts, and tokens that suspended requests need again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCounts {
    /// Number of tokens that the target read: forwarded rows.
    pub tokens_read: u64,
    /// Number of tokens whose keys and values were in the cache, so that they were not read: the prefix hits.
    pub tokens_reused: u64,
    /// How often a page whose contents were known was taken for other tokens.
    pub pages_evicted: u64,
}

/// Numbers of verifications by verify length and by accepted length. Reading a prompt does not count; a step without
/// drafts counts as a verification of length 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftCounts {
    verified: [u64; MAX_BLOCK_SIZE],
    accepted: [u64; MAX_BLOCK_SIZE],
}

impl Default for DraftCounts {
    fn default() -> Self {
        Self { verified: [0; MAX_BLOCK_SIZE], accepted: [0; MAX_BLOCK_SIZE] }
    }
}

impl DraftCounts {
    /// Counts a verification of `verified` draft tokens that accepted `accepted` of them.
    pub(super) fn add(&mut self, verified: usize, accepted: usize) {
        for (counts, length) in [(&mut self.verified, verified), (&mut self.accepted, accepted)] {
            if let Some(count) = counts.get_mut(length) {
                *count += 1;
            }
        }
    }

    /// Returns the number of verifications.
    pub fn verifications(&self) -> u64 {
        self.accepted.iter().sum()
    }

    /// Returns the acceptance length τ: the mean of accepted length + 1 over all verifications. `None` before the first
    /// verification.
    pub fn acceptance_length(&self) -> Option<f64> {
        let verifications = self.verifications();
        let tokens: u64 = (1..).zip(&self.accepted).map(|(tokens, count)| tokens * count).sum();
        (verifications > 0).then(|| tokens as f64 / verifications as f64)
    }

    /// Returns, for every place j in a draft, the fraction of the verified draft tokens at this place that were
    /// accepted: j = 1, 2, … up to the longest draft that was verified.
    pub fn acceptance(&self) -> Vec<f64> {
        let longest = self.verified.iter().rposition(|&count| count > 0).unwrap_or(0);
        let of_length = |counts: &[u64], j: usize| counts.iter().skip(j).sum::<u64>() as f64;
        (1..=longest).map(|j| of_length(&self.accepted, j) / of_length(&self.verified, j)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_fractions() {
        let mut counts = DraftCounts::default();
        assert_eq!((counts.acceptance_length(), counts.acceptance()), (None, vec![]));
        for (verified, accepted) in [(0, 0), (2, 2), (2, 0), (3, 1)] {
            counts.add(verified, accepted);
        }
        assert_eq!(counts.verifications(), 4);
        assert_eq!(counts.acceptance_length(), Some(7.0 / 4.0));
        assert_eq!(counts.acceptance(), [2.0 / 3.0, 1.0 / 3.0, 0.0]);
    }
}
