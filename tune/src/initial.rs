//! Initial values of trained weights.

use candle_core::{DType, Result, Tensor};
use flexdraft::random::philox;

/// Returns the root mean square of a tensor's elements, or 1 for zeros.
///
/// # Errors
/// Candle's errors: out of memory.
pub fn root_mean_square(x: &Tensor) -> Result<f64> {
    /// Number of elements that are squared at a time.
    const PART: usize = 1 << 20;
    let (x, mut sum) = (x.flatten_all()?, 0.0);
    for first in (0..x.elem_count()).step_by(PART) {
        let part = x.narrow(0, first, PART.min(x.elem_count() - first))?;
        sum += part.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(if sum > 0.0 { (sum / x.elem_count() as f64).sqrt() } else { 1.0 })
}

/// Returns normally distributed numbers with mean 0, the same on every machine for a given seed and stream.
pub fn normals(n: usize, std: f64, seed: u64, stream: u32) -> Vec<f64> {
    let word = |i: usize| philox([i as u32, stream, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    (0..n)
        .map(|i| {
            let [a, b, ..] = word(i);
            // The Box-Muller transform turns two uniform numbers into a normal one.
            std * (-2.0 * uniform(a).ln()).sqrt() * (2.0 * std::f64::consts::PI * uniform(b)).cos()
        })
        .collect()
}
