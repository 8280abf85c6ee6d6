//! Draws tokens, and measures the confidence of a draft.
//!
//! A draw is Gumbel-max: argmax over ids of log-weight + G(id), with an independent standard Gumbel number G(id) per
//! id. It follows the distribution that the weights describe (Gumbel 1954; Maddison et al., arXiv 1411.0030, section
//! 2). Ties go to the lowest id, here and in every argmax.

use crate::float::Float;
use crate::random::Numbers;
use crate::warp::sanitize;

/// Returns the id of the largest score; ties go to the lowest id. Returns 0 if no score is above −∞.
pub fn argmax<F: Float>(scores: &[F]) -> u32 {
    let mut best = 0;
    let mut largest = F::NEG_INFINITY;
    for (id, &score) in scores.iter().enumerate() {
        if score > largest {
            (best, largest) = (id, score);
        }
    }
    best as u32
}

/// Draws an id by log-weights `[V]` (for example logits over temperature), with the Gumbel numbers of `numbers`. Ids
/// of log-weight −∞ are never drawn, unless there are no others.
pub fn draw<F: Float>(log_weights: &[F], numbers: &Numbers) -> u32 {
    let perturbed: Vec<F> = log_weights
        .iter()
        .enumerate()
        .map(|(id, &log_weight)| log_weight + numbers.gumbel(id as u32))
        .collect();
    argmax(&perturbed)
}

/// Draws an id by weights `[V]`, which need not sum to 1: the residual draw of acceptance.
pub fn draw_by_weights<F: Float>(weights: &[F], numbers: &Numbers) -> u32 {
    let log_weights: Vec<F> = weights.iter().map(|weight| weight.ln()).collect();
    draw(&log_weights, numbers)
}

/// Returns the confidence of a draft: the largest probability of softmax(`logits`) at temperature 1; 0 if no logit is
/// above −∞, because no token can then be drawn.
pub fn confidence<F: Float>(logits: &[F]) -> F {
    if !logits.iter().any(|&logit| logit > F::NEG_INFINITY) {
        return F::ZERO;
    }
    let logits = sanitize(logits);
    let largest = logits.iter().copied().fold(F::NEG_INFINITY, F::max);
    F::ONE / logits.iter().map(|&logit| (logit - largest).exp()).sum()
}

/// The reason why no token may be drawn from a row of logits. Logits of −∞ alone are legal: they forbid their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFault {
    /// A logit is NaN.
    Nan,
    /// A logit is +∞, and none is NaN.
    Infinite,
    /// All logits are −∞: every id is forbidden.
    Forbidden,
}

/// Returns the fault of a row of logits `[V]`, or `None` if a token may be drawn from the row.
pub fn logits_fault<F: Float>(logits: &[F]) -> Option<LogitsFault> {
    if logits.iter().any(|logit| logit.to_f64().is_nan()) {
        Some(LogitsFault::Nan)
    } else if logits.contains(&F::INFINITY) {
        Some(LogitsFault::Infinite)
    } else if logits.iter().all(|&logit| logit == F::NEG_INFINITY) {
        Some(LogitsFault::Forbidden)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;

    #[test]
    fn rows_without_a_distribution_are_faulty() {
        const INF: f64 = f64::INFINITY;
        assert_eq!(logits_fault(&[0.0, -INF]), None);
        assert_eq!(logits_fault(&[INF, f64::NAN]), Some(LogitsFault::Nan));
        assert_eq!(logits_fault(&[0.0, INF]), Some(LogitsFault::Infinite));
        assert_eq!(logits_fault(&[-INF, -INF]), Some(LogitsFault::Forbidden));
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax(&[f64::NEG_INFINITY; 3]), 0);
        assert_eq!(argmax(&[f64::NEG_INFINITY, -1e300]), 1);
    }

    #[test]
    fn confidence_is_the_largest_softmax_probability() {
        let logits = [0.1f64, 0.2, 0.6, 0.1].map(|p| p.ln() + 100.0);
        assert!((confidence(&logits) - 0.6).abs() < 1e-12);
        assert_eq!(confidence(&[f64::INFINITY, 3.0, f64::INFINITY]), 0.5);
        assert_eq!(confidence(&[f64::NAN, 3.0, f64::NEG_INFINITY]), 1.0);
        assert_eq!(confidence(&[f64::NAN, f64::NEG_INFINITY]), 0.0);
    }

    /// In 40,000 draws, weights 1 : 2 : 5 : 0 give the expected frequencies (within five standard deviations).
    #[test]
    fn draws_follow_the_weights() {
        const DRAWS: usize = 40_000;
        let weights = [1.0, 2.0, 5.0, 0.0];
        let mut counts = [0.0; 4];
        for position in 0..DRAWS {
            let numbers = Numbers::of_step(3, Purpose::FinalDraw, 2, position);
            counts[draw_by_weights(&weights, &numbers) as usize] += 1.0;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            let p = weight / 8.0;
            let deviation = (DRAWS as f64 * p * (1.0 - p)).sqrt();
            assert!((count - DRAWS as f64 * p).abs() <= 5.0 * deviation, "{count} draws of weight {weight}");
        }
    }
}
