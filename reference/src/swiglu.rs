//! SwiGLU, the gated MLP of Llama and Qwen (Shazeer, arXiv 2002.05202, equation 6).

use crate::float::Float;
use crate::linear::Linear;

/// Returns the activation silu(x) = x · σ(x) = x / (1 + e^−x).
pub fn silu<F: Float>(x: F) -> F {
    x / (F::ONE + (-x).exp())
}

/// Returns the output of the gated MLP, `down(silu(gate(x)) · up(x))`, from `[hidden]` to `[hidden]`.
pub fn swiglu<F: Float>(gate: &Linear<F>, up: &Linear<F>, down: &Linear<F>, x: &[F]) -> Vec<F> {
    let inner: Vec<F> =
        gate.apply(x).into_iter().zip(up.apply(x)).map(|(gate, up)| silu(gate) * up).collect();
    down.apply(&inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_at_zero_and_far_away() {
        assert_eq!(silu(0.0f64), 0.0);
        assert_eq!(silu(-1000.0f64), 0.0);
        assert_eq!(silu(1000.0f64), 1000.0);
        // The logistic function at 1 is σ(1) = 0.7310585786300049.
        assert!((silu(1.0f64) - 0.731_058_578_630_004_9).abs() < 1e-16);
    }

    #[test]
    fn the_gate_multiplies() {
        let layer = |w: f64| Linear::new(vec![w], 1);
        let y = swiglu(&layer(1.0), &layer(2.0), &layer(3.0), &[1.0]);
        assert!((y[0] - 6.0 * silu(1.0)).abs() < 1e-15);
    }
}
