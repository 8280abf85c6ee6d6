//! Sampling parameters, warping, and the draw.

/// Sampling parameters that no distribution corresponds to.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A temperature that is negative, infinite or NaN.
    #[error("temperature must be finite and at least 0, found {0}")]
    Temperature(f32),
    /// A nucleus mass outside (0, 1].
    #[error("top-p must be above 0 and at most 1, found {0}")]
    TopP(f32),
    /// A relative floor outside [0, 1).
    #[error("min-p must be at least 0 and below 1, found {0}")]
    MinP(f32),
}

/// How logits are turned into a distribution: temperature, then top-k, then top-p, then min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy decoding.
    pub temperature: f32,
    /// Keep the k largest (ties to the lowest id); 0 is off.
    pub top_k: usize,
    /// Keep the shortest prefix, in descending order, whose sum reaches this (ties to the lowest id);
    /// 1 is off.
    pub top_p: f32,
    /// Keep what is at least this fraction of the largest probability; 0 is off.
    pub min_p: f32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}
