//! Softmax over the columns that each row sees, with its gradient.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{columns, is_cpu_f32, lane_sum, rows_a_task, with_elements};

/// The columns that each row of attention scores sees: two ranges, each with a fixed start. The pattern repeats: row
/// `r` of the scores sees the columns given by `rows[r % rows.len()]`.
#[derive(Clone, Debug)]
pub struct Visible {
    /// First column of the second of the two ranges.
    pub split: usize,
    /// For each row, the number of columns of `0..split` that it sees and the number from `split` on; together at least
    /// one.
    pub rows: Vec<[usize; 2]>,
}

impl Visible {
    /// Returns the additive mask `[rows, columns]`: 0 for visible columns, −∞ for the others.
    fn mask(&self, columns: usize, like: &Tensor) -> Result<Tensor> {
        let split = self.split;
        let row = |&[first, second]: &[usize; 2]| {
            (0..columns).map(move |c| {
                let seen = if c < split { c < first } else { c - split < second };
                if seen { 0f32 } else { f32::NEG_INFINITY }
            })
        };
        let values: Vec<f32> = self.rows.iter().flat_map(row).collect();
        Tensor::from_vec(values, (self.rows.len(), columns), &candle_core::Device::Cpu)?
            .to_dtype(like.dtype())?
            .to_device(like.device())
    }
}

/// Computes softmax(scores · scale) over the columns that each row sees, and 0 for all other columns. `scores` is
/// `[heads, rows, columns]`.
pub fn visible_softmax(scores: &Tensor, scale: f64, visible: &Visible) -> Result<Tensor> {
    let n = columns(scores)?;
    if !is_cpu_f32(scores) {
        let (heads, rows, _) = scores.dims3()?;
        let mask = visible.mask(n, scores)?;
        let scaled =
            scores.affine(scale, 0.0)?.reshape((heads * rows / visible.rows.len(), visible.rows.len(), n))?;
        let masked = scaled.broadcast_add(&mask)?;
        let exponentials = masked.broadcast_sub(&masked.max_keepdim(D::Minus1)?)?.exp()?;
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        return exponentials.broadcast_div(&sums)?.reshape((heads, rows, n));
    }
    let mut out = vec![0f32; scores.elem_count()];
    with_elements(scores, |scores| {
        let task = rows_a_task(n);
        out.par_chunks_mut(task * n).zip(scores.par_chunks(task * n)).enumerate().for_each(
            |(chunk, (out, scores))| {
                for (i, (out, scores)) in out.chunks_exact_mut(n).zip(scores.chunks_exact(n)).enumerate() {
                    let [first, second] = visible.rows[(chunk * task + i) % visible.rows.len()];
                    let ranges = [0..first, visible.split..visible.split + second];
                    softmax_row(out, scores, scale as f32, ranges);
                }
            },
        );
        Ok(())
    })?;
    Tensor::from_vec(out, scores.shape(), scores.device())
}

fn softmax_row(out: &mut [f32], scores: &[f32], scale: f32, ranges: [std::ops::Range<usize>; 2]) {
    let largest =
        ranges.iter().flat_map(|range| &scores[range.clone()]).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sum = 0.0;
    for range in &ranges {
        for (out, &score) in out[range.clone()].iter_mut().zip(&scores[range.clone()]) {
            *out = exp((score - largest) * scale);
            sum += *out;
        }
    }
    let inverse = 1.0 / sum;
    for range in ranges {
        out[range].iter_mut().for_each(|out| *out *= inverse);
    }
}

/// Returns the gradient of the scores from the softmax's value p and its gradient g: p · (g − Σ p · g) · scale.
pub fn softmax_backward(probabilities: &Tensor, scale: f64, gradient: &Tensor) -> Result<Tensor> {
    if !is_cpu_f32(probabilities) {
        let along = (probabilities * gradient)?.sum_keepdim(D::Minus1)?;
        return (probabilities * gradient.broadcast_sub(&along)?)?.affine(scale, 0.0);
    }
    let n = columns(probabilities)?;
    let mut out = vec![0f32; gradient.elem_count()];
    with_elements(probabilities, |p| {
        with_elements(gradient, |g| {
            let task = rows_a_task(n) * n;
            out.par_chunks_mut(task).zip(p.par_chunks(task).zip(g.par_chunks(task))).for_each(
                |(out, (p, g))| {
                    let rows = p.chunks_exact(n).zip(g.chunks_exact(n));
                    for (out, (p, g)) in out.chunks_exact_mut(n).zip(rows) {
                        let along = lane_sum(n, |i| p[i] * g[i]);
                        for ((out, &p), &g) in out.iter_mut().zip(p).zip(g) {
                            *out = p * (g - along) * scale as f32;
                        }
                    }
                },
            );
            Ok(())
        })
    })?;
    Tensor::from_vec(out, gradient.shape(), gradient.device())
}

/// Computes eˣ for x ≤ about 88, within 2 ulp, in a form that compilers vectorise: 2ⁿ · p(r) with x = n · ln 2 + r.
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 is split into two parts, so that n · ln 2 is subtracted exactly.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let n = (x * LOG2_E + ROUND) - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // The coefficients of the Cephes polynomial for eʳ.
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}
