//! The verify length: how much of a draft is verified, decided by the draft's confidences.

/// The way in which confidences decide the verify length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ConfidenceStrategy {
    /// Verifies draft tokens as long as the product of the confidences up to the token is at least the threshold.
    #[default]
    CumulativeProduct,
    /// Verifies draft tokens as long as the confidence of each token is at least the threshold.
    MinConfidence,
}

/// The confidence threshold of a request. With a threshold of 0, all tokens of every draft are verified.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence {
    /// The threshold t, in [0, 1].
    pub threshold: f32,
    /// The way in which confidences are compared with the threshold.
    pub strategy: ConfidenceStrategy,
}

impl Default for Confidence {
    /// Returns the setting of the released drafters: cumulative product, 0.01.
    fn default() -> Self {
        Self { threshold: 0.01, strategy: ConfidenceStrategy::CumulativeProduct }
    }
}

impl Confidence {
    /// Returns the verify length for a draft whose tokens have these confidences `[S − 1]`.
    ///
    /// The result is at least 1, or 0 for an empty draft. Whether it reaches j depends only on the
    /// confidences of slots 1..=j, and these do not depend on the tokens drawn in slots j and later. This
    /// keeps sampled decoding lossless.
    pub fn verify_len(&self, confidences: &[f32]) -> usize {
        if self.threshold <= 0.0 {
            return confidences.len();
        }
        let mut product = 1.0;
        let confident = confidences
            .iter()
            .take_while(|&&confidence| match self.strategy {
                ConfidenceStrategy::CumulativeProduct => {
                    product *= confidence;
                    product >= self.threshold
                }
                ConfidenceStrategy::MinConfidence => confidence >= self.threshold,
            })
            .count();
        confident.max(1).min(confidences.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_lengths() {
        let verify_len = |threshold, strategy, confidences: &[f32]| {
            Confidence { threshold, strategy }.verify_len(confidences)
        };
        use ConfidenceStrategy::{CumulativeProduct, MinConfidence};
        assert_eq!(verify_len(0.0, CumulativeProduct, &[0.1, 0.1]), 2);
        assert_eq!(verify_len(0.25, CumulativeProduct, &[0.5, 0.5, 0.9]), 2);
        assert_eq!(verify_len(0.25, MinConfidence, &[0.5, 0.5, 0.9]), 3);
        assert_eq!(verify_len(0.6, MinConfidence, &[0.9, 0.5, 0.9]), 1);
        assert_eq!(verify_len(1.0, CumulativeProduct, &[0.9, 0.9]), 1);
        assert_eq!(verify_len(1.0, CumulativeProduct, &[1.0, 1.0, 0.5]), 2);
        assert_eq!(verify_len(0.5, CumulativeProduct, &[]), 0);
    }
}
