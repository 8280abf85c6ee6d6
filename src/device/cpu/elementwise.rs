//! Operations of the CPU device that process one row at a time: norms, activations, sums and copies.

use std::ops::Range;

use super::buffer::{CpuBuffer, CpuVector};
use super::check;
use super::pool::Pool;
use super::product::dot;
use super::simd::{Kernel, LANES, Simd, Vectors, exp, padded};
use crate::device::DeviceError;

/// Cost of a silu in multiply-adds.
const SILU_WORK: usize = 8;

pub(super) fn fill_rows(
    value: &CpuVector,
    rows: Range<usize>,
    out: &mut CpuBuffer,
) -> Result<(), DeviceError> {
    check::shape("fill_rows", "value", &[out.cols()], &[value.0.len()])?;
    let rows = check::rows("fill_rows", rows, &[out])?;
    let precision = out.precision();
    for out in out.rows_in_mut(rows) {
        out.copy_from_slice(&value.0);
        precision.round_all(out);
    }
    Ok(())
}

pub(super) fn rms_norm(
    (pool, vectors): (&Pool, Vectors),
    x: &CpuBuffer,
    rows: Range<usize>,
    weight: &CpuVector,
    eps: f32,
    out: &mut CpuBuffer,
) -> Result<(), DeviceError> {
    check::shape("rms_norm", "weight", &[x.cols()], &[weight.0.len()])?;
    check::cols("rms_norm", "out", out, x.cols())?;
    let rows = check::rows("rms_norm", rows, &[x, out])?;
    let precision = out.precision();
    let items: Vec<_> = x.rows_in(rows.clone()).zip(out.rows_in_mut(rows)).collect();
    let work = items.len() * 2 * weight.0.len();
    pool.for_each(items, work, |(x, out)| {
        out.copy_from_slice(x);
        vectors.run(NormKernel { row: out, weight: &weight.0, eps });
        precision.round_all(out);
    });
    Ok(())
}

/// Applies RMSNorm to a row in place, without rounding the result.
pub(super) struct NormKernel<'a> {
    pub(super) row: &'a mut [f32],
    /// RMSNorm's weight, which is as long as the row.
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
}

impl Kernel for NormKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mean = dot(simd, self.row, &*self.row) / self.row.len() as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        for (x, weight) in self.row.iter_mut().zip(self.weight) {
            *x = *x * scale * weight;
        }
    }
}

pub(super) fn add(
    pool: &Pool,
    delta: &CpuBuffer,
    rows: Range<usize>,
    hidden: &mut CpuBuffer,
) -> Result<(), DeviceError> {
    check::cols("add", "delta", delta, hidden.cols())?;
    let rows = check::rows("add", rows, &[delta, hidden])?;
    let precision = hidden.precision();
    let items: Vec<_> = delta.rows_in(rows.clone()).zip(hidden.rows_in_mut(rows)).collect();
    let work = items.len() * delta.cols();
    pool.for_each(items, work, |(delta, hidden)| {
        for (hidden, delta) in hidden.iter_mut().zip(delta) {
            *hidden += delta;
        }
        precision.round_all(hidden);
    });
    Ok(())
}

pub(super) fn silu_mul(
    (pool, vectors): (&Pool, Vectors),
    x: &CpuBuffer,
    rows: Range<usize>,
    out: &mut CpuBuffer,
) -> Result<(), DeviceError> {
    check::cols("silu_mul", "x", x, out.cols().saturating_mul(2))?;
    let rows = check::rows("silu_mul", rows, &[x, out])?;
    let precision = out.precision();
    let items: Vec<_> = x.rows_in(rows.clone()).zip(out.rows_in_mut(rows)).collect();
    let work = items.len() * x.cols() * SILU_WORK;
    pool.for_each(items, work, |(x, out)| {
        let (gate, up) = x.split_at(out.len());
        out.copy_from_slice(gate);
        vectors.run(Silu(out));
        for (out, up) in out.iter_mut().zip(up) {
            *out *= up;
        }
        precision.round_all(out);
    });
    Ok(())
}

pub(super) fn silu_add(
    (pool, vectors): (&Pool, Vectors),
    bonus: &CpuBuffer,
    owner: &[usize],
    x: &mut CpuBuffer,
) -> Result<(), DeviceError> {
    check::cols("silu_add", "bonus", bonus, x.cols())?;
    let rows = check::rows("silu_add", 0..owner.len(), &[x])?;
    for &owner in owner {
        check::index("silu_add", "owner", owner, bonus.rows())?;
    }
    let precision = x.precision();
    let work = rows.len().saturating_mul(x.cols()).saturating_mul(SILU_WORK);
    let items: Vec<_> = x.rows_in_mut(rows).zip(owner).collect();
    pool.for_each(items, work, |(x, &owner)| {
        for (x, bonus) in x.iter_mut().zip(bonus.row(owner).unwrap_or(&[])) {
            *x += bonus;
        }
        vectors.run(Silu(x));
        precision.round_all(x);
    });
    Ok(())
}

/// Computes x / (1 + exp(−x)) in place.
struct Silu<'a>(&'a mut [f32]);

impl Kernel for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let (chunks, rest) = self.0.as_chunks_mut::<LANES>();
        let mut last = padded(rest);
        for chunk in chunks.iter_mut().chain([&mut last]) {
            let x = simd.load(chunk);
            let denominator = simd.add(one, exp(simd, simd.sub(zero, x)));
            simd.store(simd.div(x, denominator), chunk);
        }
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

pub(super) fn gather(x: &CpuBuffer, rows: &[usize], out: &mut CpuBuffer) -> Result<(), DeviceError> {
    check::cols("gather", "out", out, x.cols())?;
    for &row in rows {
        check::index("gather", "row", row, x.rows())?;
    }
    out.resize(rows.len())?;
    let precision = out.precision();
    for (out, &row) in out.rows_in_mut(0..rows.len()).zip(rows) {
        out.copy_from_slice(x.row(row).unwrap_or(&[]));
        precision.round_all(out);
    }
    Ok(())
}

pub(super) fn edit_row(
    logits: &mut CpuBuffer,
    row: usize,
    edit: &mut dyn FnMut(&mut [f32]),
) -> Result<(), DeviceError> {
    check::index("edit_row", "row", row, logits.rows())?;
    let precision = logits.precision();
    for row in logits.rows_in_mut(row..row + 1) {
        edit(row);
        precision.round_all(row);
    }
    Ok(())
}
