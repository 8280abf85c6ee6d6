//! Log-probabilities of committed tokens.

use crate::sampling::{SamplingParams, warp};

/// The log-probability of a committed token, and the most likely tokens at its position.
///
/// The numbers come from the target's raw logits at temperature 1: before the logits hook, the logit processors and
/// warping.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The natural logarithm of the token's probability.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, in descending order; ties go to the lowest id.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Returns the log-probabilities of `token` and of the `count` most likely tokens for a row of raw logits.
    pub(super) fn of(logits: &[f32], token: u32, count: usize) -> Self {
        // `warp` returns scores relative to the largest logit.
        let scores = warp(logits, &SamplingParams::at_temperature(1.0));
        let log_sum = scores.iter().map(|&score| f64::from(score).exp()).sum::<f64>().ln();
        let at = |id: u32| {
            let score = scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (f64::from(score) - log_sum) as f32
        };
        let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
        let descending = |a: &u32, b: &u32| at(*b).total_cmp(&at(*a)).then(a.cmp(b));
        if count < ids.len() {
            ids.select_nth_unstable_by(count, descending);
            ids.truncate(count);
        }
        ids.sort_unstable_by(descending);
        Self { logprob: at(token), top: ids.into_iter().map(|id| (id, at(id))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithms_of_a_softmax_in_descending_order() {
        let logits = [0.125f32, 0.5, 0.125, 0.25].map(|p| p.ln() + 7.0);
        let close = |found: f32, expected: f32| assert!((found - expected.ln()).abs() < 1e-6, "{found}");
        let found = TokenLogprobs::of(&logits, 3, 3);
        close(found.logprob, 0.25);
        assert_eq!(found.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 3, 0]);
        found.top.iter().zip([0.5, 0.25, 0.125]).for_each(|(top, expected)| close(top.1, expected));
        assert_eq!(TokenLogprobs::of(&logits, 2, 9).top.len(), 4);
        assert!(TokenLogprobs::of(&logits, 2, 0).top.is_empty());
        let odd = TokenLogprobs::of(&[f32::NAN, 1.0, f32::NEG_INFINITY], 0, 1);
        assert_eq!((odd.logprob, odd.top), (f32::NEG_INFINITY, vec![(1, 0.0)]));
    }
}
