//! Bonus-guided Calibration (FlexDraft, arXiv 2605.20022): an MLP that corrects draft logits as soon as the bonus token
//! is known. Drafts are prepared before the bonus token is known; a small MLP corrects their logits once it is known.

use crate::float::Float;
use crate::linear::{Linear, add};
use crate::swiglu::silu;

/// The weights of the calibrator, the MLP that corrects draft logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrator<F> {
    /// First layer: W1 `[r, 2 · hidden]` and b1 `[r]`.
    pub hidden: Linear<F>,
    /// Second layer: W2 `[V, r]` and b2 `[V]`.
    pub output: Linear<F>,
}

/// Returns the calibrated logits `[V]` of one slot, `lm_head(h) + W2 silu(W1 [embed(b'); h] + b1) + b2`, from its
/// final-normed hidden row `h` `[hidden]` and the bonus token's embedding `[hidden]`.
///
/// Without a calibrator, `lm_head(h)` alone.
pub fn calibrated_logits<F: Float>(
    lm_head: &Linear<F>,
    calibrator: Option<&Calibrator<F>>,
    bonus_embedding: &[F],
    h: &[F],
) -> Vec<F> {
    let logits = lm_head.apply(h);
    let Some(calibrator) = calibrator else { return logits };
    let inner: Vec<F> =
        calibrator.hidden.apply(&[bonus_embedding, h].concat()).into_iter().map(silu).collect();
    add(&logits, &calibrator.output.apply(&inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_with_one_dimension() {
        let lm_head = Linear::new(vec![2.0, -1.0], 1);
        let calibrator = Calibrator {
            hidden: Linear { bias: Some(vec![0.5]), ..Linear::new(vec![3.0, 4.0], 2) },
            output: Linear { bias: Some(vec![10.0, 20.0]), ..Linear::new(vec![5.0, 6.0], 1) },
        };
        let inner = silu(3.0 * 0.7 + 4.0 * 0.2 + 0.5f64);
        let logits = calibrated_logits(&lm_head, Some(&calibrator), &[0.7], &[0.2]);
        assert!((logits[0] - (0.4 + 5.0 * inner + 10.0)).abs() < 1e-14);
        assert!((logits[1] - (-0.2 + 6.0 * inner + 20.0)).abs() < 1e-14);
        assert_eq!(calibrated_logits(&lm_head, None, &[0.7], &[0.2]), [0.4, -0.2]);
    }
}
