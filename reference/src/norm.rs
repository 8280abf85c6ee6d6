//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467, equation 4), with the epsilon of Llama.

use crate::float::Float;

/// Returns the RMSNorm of one row, `x / sqrt(mean(x²) + eps) · weight`; `x` and `weight` are `[n]`.
pub fn rms_norm<F: Float>(x: &[F], weight: &[F], eps: F) -> Vec<F> {
    assert_eq!(x.len(), weight.len());
    let mean_square = x.iter().map(|&x| x * x).sum::<F>() / F::from_f64(x.len() as f64);
    let root = (mean_square + eps).sqrt();
    x.iter().zip(weight).map(|(&x, &weight)| x / root * weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_a_vector_without_epsilon_has_mean_square_one() {
        // The test's row (3, 4, 0, 0) has the mean square 6.25, so the divisor is 2.5.
        assert_eq!(rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 10.0, 1.0, 1.0], 0.0), [3.0 / 2.5, 16.0, 0.0, 0.0]);
        assert_eq!(rms_norm(&[0.0f32; 3], &[1.0; 3], 1e-6), [0.0; 3]);
    }
}
