//! RMSNorm over the last dimension, with its gradient.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{columns, is_cpu_f32, lane_sum, rows_a_task, with_elements};

/// Computes x / √(mean(x²) + eps) · weight; `weight` is `[columns]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !is_cpu_f32(x) {
        let inverse = ((x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?).recip()?;
        return x.broadcast_mul(&inverse)?.broadcast_mul(weight);
    }
    let n = columns(x)?;
    let mut out = vec![0f32; x.elem_count()];
    with_elements(x, |x| {
        with_elements(weight, |weight| {
            let task = rows_a_task(n) * n;
            out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
                for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                    let inverse = inverse_rms(x, eps);
                    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                        *out = x * inverse * w;
                    }
                }
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(out, x.shape(), x.device())
}

/// Returns the gradients of the operands of [`rms_norm`], `x` and, if requested, `weight`, from the gradient of its
/// value.
///
/// With r = 1/√(mean(x²) + eps) and g' = g · weight: dx = r · (g' − x · r² · mean(g' · x)), and
/// dweight is the sum over the rows of g · x · r.
pub fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    gradient: &Tensor,
    of_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let n = columns(x)?;
    if !is_cpu_f32(x) {
        let inverse = ((x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?).recip()?;
        let normed = x.broadcast_mul(&inverse)?;
        let scaled = gradient.broadcast_mul(weight)?;
        let along = (&scaled * &normed)?.mean_keepdim(D::Minus1)?;
        let dx = (scaled - normed.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?;
        let dweight = match of_weight {
            true => Some((gradient * normed)?.reshape(((), n))?.sum(0)?),
            false => None,
        };
        return Ok((dx, dweight));
    }
    let mut dx = vec![0f32; x.elem_count()];
    let dweight = with_elements(x, |x| {
        with_elements(weight, |weight| {
            with_elements(gradient, |gradient| {
                let task = rows_a_task(n) * n;
                let operands = x.par_chunks(task).zip(gradient.par_chunks(task));
                let parts = dx.par_chunks_mut(task).zip(operands).map(|(dx, (x, gradient))| {
                    let mut dweight = vec![0f32; if of_weight { n } else { 0 }];
                    let rows = x.chunks_exact(n).zip(gradient.chunks_exact(n));
                    for (dx, (x, gradient)) in dx.chunks_exact_mut(n).zip(rows) {
                        backward_row(dx, x, weight, gradient, eps, &mut dweight);
                    }
                    dweight
                });
                // The threads' partial sums are added in a fixed order, so that a run is reproducible.
                let parts: Vec<Vec<f32>> = parts.collect();
                Ok(parts.into_iter().reduce(|mut sum, part| {
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                    sum
                }))
            })
        })
    })?;
    let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
    let dweight = match (of_weight, dweight) {
        (true, Some(dweight)) => Some(Tensor::from_vec(dweight, n, x.device())?),
        (true, None) => Some(weight.zeros_like()?),
        (false, _) => None,
    };
    Ok((dx, dweight))
}

fn backward_row(dx: &mut [f32], x: &[f32], weight: &[f32], gradient: &[f32], eps: f64, dweight: &mut [f32]) {
    let inverse = inverse_rms(x, eps);
    let n = x.len().min(weight.len()).min(gradient.len());
    let (x, weight, gradient) = (&x[..n], &weight[..n], &gradient[..n]);
    let along = lane_sum(n, |i| x[i] * weight[i] * gradient[i]) * inverse * inverse / x.len() as f32;
    for (((dx, &x), &w), &g) in dx.iter_mut().zip(x).zip(weight).zip(gradient) {
        *dx = inverse * (g * w - x * along);
    }
    for ((dweight, &x), &g) in dweight.iter_mut().zip(x).zip(gradient) {
        *dweight += g * x * inverse;
    }
}

fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    1.0 / (lane_sum(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps as f32).sqrt()
}
