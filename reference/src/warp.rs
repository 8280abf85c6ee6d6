//! Warping: temperature, top-k, top-p and min-p, which turn logits into the distribution that is sampled from.
//!
//! The steps are applied in the same order as in transformers: temperature; top-k (arXiv 1805.04833); top-p on the
//! renormalised rest (arXiv 1904.09751); min-p relative to the largest probability (arXiv 2407.01082).
//!
//! - Descending order is by logit; ties go to the lowest id.
//! - Top-p keeps the shortest prefix in that order whose sum reaches P, so it keeps at least one id.
//! - Temperature 0 gives the one-hot distribution of the argmax, whatever the other parameters.
//! - A NaN logit counts as −∞. If there are logits of +∞, these share the mass equally. If there is
//!   nothing above −∞, id 0 has all of it.

use crate::float::Float;

/// Sampling parameters; the numbers do not depend on the float type of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warping {
    /// Temperature, the divisor of the logits; 0 is greedy.
    pub temperature: f64,
    /// Top-k: the number of ids to keep; 0 turns top-k off.
    pub top_k: usize,
    /// Top-p: the probability mass P to keep; 1 turns top-p off.
    pub top_p: f64,
    /// Min-p: the smallest probability to keep, as a fraction of the largest probability; 0 turns min-p off.
    pub min_p: f64,
}

impl Warping {
    /// Greedy sampling: temperature 0.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Sampling with `temperature` and no other restriction.
    pub fn temperature(temperature: f64) -> Self {
        Self { temperature, ..Self::GREEDY }
    }
}

/// A distribution over the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution<F> {
    /// Logarithms of the probabilities, `[V]`, up to a common constant; −∞ for ids that were dropped.
    pub log_weights: Vec<F>,
    /// Probabilities, `[V]`; 0 for ids that were dropped.
    pub probabilities: Vec<F>,
    /// The ids that were kept, in descending order of probability.
    pub kept: Vec<usize>,
}

/// Returns the distribution that `warping` makes of `logits` `[V]`.
pub fn warp<F: Float>(logits: &[F], warping: &Warping) -> Distribution<F> {
    let logits = sanitize(logits);
    // The ids are sorted in descending order of logit; the stable sort keeps ties in ascending order of id.
    let mut kept: Vec<usize> = (0..logits.len()).filter(|&id| logits[id] > F::NEG_INFINITY).collect();
    kept.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(std::cmp::Ordering::Equal));
    let largest = logits[kept[0]];

    if warping.temperature == 0.0 {
        kept.truncate(1);
        return distribution(logits.len(), kept, |_| F::ZERO);
    }
    let temperature = F::from_f64(warping.temperature);
    // Weights are relative to the largest weight, so nothing overflows at low temperatures.
    let log_weight = |id: usize| (logits[id] - largest) / temperature;

    if warping.top_k > 0 {
        kept.truncate(warping.top_k);
    }
    if warping.top_p < 1.0 {
        let total: F = kept.iter().map(|&id| log_weight(id).exp()).sum();
        let mut sum = F::ZERO;
        let before_enough = |&&id: &&usize| {
            let more_needed = sum < F::from_f64(warping.top_p);
            sum += log_weight(id).exp() / total;
            more_needed
        };
        let len = kept.iter().take_while(before_enough).count();
        kept.truncate(len.max(1));
    }
    // The largest weight is e⁰ = 1.
    kept.retain(|&id| log_weight(id).exp() >= F::from_f64(warping.min_p));
    distribution(logits.len(), kept, log_weight)
}

/// Applies the rules of the [module](self) for NaN and infinities to `logits`: in the result no logit is NaN or +∞,
/// and at least one is finite.
pub fn sanitize<F: Float>(logits: &[F]) -> Vec<F> {
    let has_infinity = logits.contains(&F::INFINITY);
    let has_finite = logits.iter().any(|&x| x > F::NEG_INFINITY);
    let value = |(id, &x): (usize, &F)| {
        let gets_mass = if has_infinity { x == F::INFINITY } else { x > F::NEG_INFINITY };
        match (gets_mass, has_infinity) {
            (true, false) => x,
            (true, true) => F::ZERO,
            (false, _) if !has_finite && id == 0 => F::ZERO,
            (false, _) => F::NEG_INFINITY,
        }
    };
    logits.iter().enumerate().map(value).collect()
}

fn distribution<F: Float>(
    vocab: usize,
    kept: Vec<usize>,
    log_weight: impl Fn(usize) -> F,
) -> Distribution<F> {
    let total: F = kept.iter().map(|&id| log_weight(id).exp()).sum();
    let mut log_weights = vec![F::NEG_INFINITY; vocab];
    let mut probabilities = vec![F::ZERO; vocab];
    for &id in &kept {
        log_weights[id] = log_weight(id);
        probabilities[id] = log_weight(id).exp() / total;
    }
    Distribution { log_weights, probabilities, kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(probabilities: &[f64], warping: Warping) -> Vec<usize> {
        let logits: Vec<f64> = probabilities.iter().map(|p| p.ln()).collect();
        warp(&logits, &warping).kept
    }

    #[test]
    fn each_warper_by_itself() {
        let one = Warping::temperature(1.0);
        let p = [0.125, 0.5, 0.125, 0.25];
        assert_eq!(kept(&p, one), [1, 3, 0, 2]);
        assert_eq!(kept(&p, Warping { top_k: 3, ..one }), [1, 3, 0]);
        assert_eq!(kept(&p, Warping { top_k: 9, ..one }), [1, 3, 0, 2]);
        assert_eq!(kept(&p, Warping { top_p: 0.4, ..one }), [1]);
        assert_eq!(kept(&p, Warping { top_p: 0.6, ..one }), [1, 3]);
        assert_eq!(kept(&p, Warping { top_p: 0.8, ..one }), [1, 3, 0]);
        assert_eq!(kept(&p, Warping { top_p: 1e-9, ..one }), [1]);
        assert_eq!(kept(&p, Warping { min_p: 0.4, ..one }), [1, 3]);
        assert_eq!(kept(&p, Warping { min_p: 0.1, ..one }), [1, 3, 0, 2]);
    }

    #[test]
    fn a_prefix_that_reaches_the_mass_exactly_is_enough() {
        // The test's logits are equal, so the weights are 1 and the sums are exact.
        let warping = Warping { top_p: 0.5, ..Warping::temperature(1.0) };
        assert_eq!(warp(&[3.0f64; 4], &warping).kept, [0, 1]);
        assert_eq!(warp(&[3.0f32; 4], &warping).probabilities, [0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn top_p_sees_the_rest_renormalised() {
        // Of the three ids that top-k keeps, the first has probability 0.5 / 0.875 = 0.571.
        let p = [0.5, 0.25, 0.125, 0.125];
        let warping = Warping { top_k: 3, top_p: 0.55, ..Warping::temperature(1.0) };
        assert_eq!(kept(&p, warping), [0]);
        assert_eq!(kept(&p, Warping { top_k: 0, ..warping }), [0, 1]);
    }

    #[test]
    fn temperature_comes_before_top_p_and_min_p() {
        // At temperature 2 the probabilities 0.64, 0.16, 0.16, 0.04 become 4 : 2 : 2 : 1.
        let p = [0.64, 0.16, 0.16, 0.04];
        assert_eq!(kept(&p, Warping { top_p: 0.6, ..Warping::temperature(2.0) }), [0, 1]);
        assert_eq!(kept(&p, Warping { top_p: 0.6, ..Warping::temperature(1.0) }), [0]);
        assert_eq!(kept(&p, Warping { min_p: 0.3, ..Warping::temperature(2.0) }), [0, 1, 2]);
    }

    #[test]
    fn special_logits() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let one = Warping::temperature(1.0);
        assert_eq!(warp(&[nan, 1.0, 1.0], &one).probabilities, [0.0, 0.5, 0.5]);
        assert_eq!(warp(&[1.0, inf, nan, inf, -inf], &one).probabilities, [0.0, 0.5, 0.0, 0.5, 0.0]);
        assert_eq!(warp(&[nan, -inf, -inf], &one).probabilities, [1.0, 0.0, 0.0]);
        assert_eq!(warp(&[nan, -inf, nan], &Warping::GREEDY).probabilities, [1.0, 0.0, 0.0]);
        assert_eq!(warp(&[1.0, inf, inf], &Warping::GREEDY).kept, [1]);
        assert_eq!(warp(&[2.0, 5.0, 5.0], &Warping::GREEDY).kept, [1]);
        // Very low temperatures do not overflow.
        assert_eq!(warp(&[1.0, 3e38, 3e38], &Warping::temperature(1e-30)).probabilities, [0.0, 0.5, 0.5]);
    }

    proptest! {
        #[test]
        fn a_distribution_comes_out(
            logits in prop::collection::vec(
                prop_oneof![8 => -20.0..20.0f64, 1 => Just(f64::NAN), 1 => Just(f64::NEG_INFINITY), 1 => Just(2.0)],
                1..20,
            ),
            temperature in prop_oneof![Just(0.0), 0.01..4.0f64],
            top_k in 0..8usize,
            top_p in 0.01..=1.0f64,
            min_p in 0.0..0.99f64,
        ) {
            let d = warp(&logits, &Warping { temperature, top_k, top_p, min_p });
            prop_assert!((d.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(!d.kept.is_empty());
            for (id, &p) in d.probabilities.iter().enumerate() {
                prop_assert_eq!(d.log_weights[id] > f64::NEG_INFINITY, d.kept.contains(&id));
                prop_assert!(p == 0.0 || d.kept.contains(&id));
            }
            // No kept id has a smaller logit than a dropped id.
            let scores = sanitize(&logits);
            let least = d.kept.iter().map(|&id| scores[id]).fold(f64::INFINITY, f64::min);
            for (id, &score) in scores.iter().enumerate() {
                prop_assert!(d.kept.contains(&id) || score <= least);
            }
        }
    }
}
