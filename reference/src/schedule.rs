//! Chooses how many draft tokens of the next block to verify.
//!
//! The verify length follows from the confidences, as in the public code of FlexDraft (arXiv 2605.20022). The
//! confidence of slot j is the largest probability of its calibrated distribution at temperature 1
//! ([`crate::sample::confidence`]).

use crate::float::Float;

/// The way in which the confidences of a draft are compared with the threshold t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Verifies the j tokens for which the product of confidences Π_{i ≤ j} conf_i is at least t.
    CumulativeProduct,
    /// Verifies the leading tokens whose own confidence conf_j is at least t.
    MinConfidence,
}

/// Returns the next verify length v, from the S − 1 confidences of a block of S slots and the threshold t.
///
/// The result is at least 1 if there is any slot, and 0 only for S = 1. With t = 0 the whole block is verified: v = S
/// − 1.
pub fn next_verify_len<F: Float>(confidence: &[F], threshold: F, strategy: Strategy) -> usize {
    if threshold == F::ZERO {
        return confidence.len();
    }
    let mut verify_len = 0;
    let mut product = F::ONE;
    for &confidence in confidence {
        product = product * confidence;
        let measure = match strategy {
            Strategy::CumulativeProduct => product,
            Strategy::MinConfidence => confidence,
        };
        // The products of confidences only decrease, so exactly the leading draft tokens reach the threshold.
        if measure < threshold {
            break;
        }
        verify_len += 1;
    }
    verify_len.max(1).min(confidence.len())
}

#[cfg(test)]
mod tests {
    use super::Strategy::{CumulativeProduct, MinConfidence};
    use super::*;

    #[test]
    fn strategies() {
        let confidence = [0.5, 0.5, 0.5, 0.1, 0.9];
        assert_eq!(next_verify_len(&confidence, 0.25, CumulativeProduct), 2);
        assert_eq!(next_verify_len(&confidence, 0.001, CumulativeProduct), 5);
        assert_eq!(next_verify_len(&confidence, 0.5, MinConfidence), 3);
        assert_eq!(next_verify_len(&confidence, 0.05, MinConfidence), 5);
    }

    #[test]
    fn limits() {
        for strategy in [CumulativeProduct, MinConfidence] {
            assert_eq!(next_verify_len(&[0.1, 0.9], 0.5, strategy), 1);
            assert_eq!(next_verify_len(&[0.1, 0.9], 0.0, strategy), 2);
            assert_eq!(next_verify_len::<f64>(&[], 0.5, strategy), 0);
            assert_eq!(next_verify_len::<f64>(&[], 0.0, strategy), 0);
        }
    }
}
