//! Norms, rotations, activations, residuals and copies: operations on rows by themselves.

use std::ops::Range;

use super::attention::check_pass;
use super::buffer::{Buffer, Vector};
use super::check;
use super::kv_cache::KvCache;
use crate::device::{DeviceError, QkTransform, RowKind};
use crate::layout::Pass;

/// 1 / sqrt(mean(x²) + eps).
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let squares: f32 = x.iter().map(|x| x * x).sum();
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

pub(super) fn fill_rows(value: &Vector, rows: Range<usize>, out: &mut Buffer) -> Result<(), DeviceError> {
    const OPERATION: &str = "fill_rows";
    check::cols(OPERATION, "out", out, value.0.len())?;
    let rows = check::rows(OPERATION, rows, &[out])?;
    let precision = out.precision();
    for row in out.rows_in_mut(rows) {
        row.copy_from_slice(&value.0);
        precision.round_all(row);
    }
    Ok(())
}

pub(super) fn rms_norm(
    x: &Buffer,
    rows: Range<usize>,
    weight: &Vector,
    eps: f32,
    out: &mut Buffer,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "rms_norm";
    check::shape(OPERATION, "weight", &[x.cols()], &[weight.0.len()])?;
    check::cols(OPERATION, "out", out, x.cols())?;
    let rows = check::rows(OPERATION, rows, &[x, out])?;
    let precision = out.precision();
    for (from, to) in x.rows_in(rows.clone()).zip(out.rows_in_mut(rows)) {
        let scale = inverse_rms(from, eps);
        for ((to, from), weight) in to.iter_mut().zip(from).zip(&weight.0) {
            *to = precision.round(from * scale * weight);
        }
    }
    Ok(())
}

pub(super) fn add(delta: &Buffer, rows: Range<usize>, hidden: &mut Buffer) -> Result<(), DeviceError> {
    const OPERATION: &str = "add";
    check::cols(OPERATION, "delta", delta, hidden.cols())?;
    let rows = check::rows(OPERATION, rows, &[delta, hidden])?;
    let precision = hidden.precision();
    for (from, to) in delta.rows_in(rows.clone()).zip(hidden.rows_in_mut(rows)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = precision.round(*to + from));
    }
    Ok(())
}

pub(super) fn silu_mul(x: &Buffer, rows: Range<usize>, out: &mut Buffer) -> Result<(), DeviceError> {
    const OPERATION: &str = "silu_mul";
    check::cols(OPERATION, "x", x, 2 * out.cols())?;
    let rows = check::rows(OPERATION, rows, &[x, out])?;
    let (precision, cols) = (out.precision(), out.cols());
    for (from, to) in x.rows_in(rows.clone()).zip(out.rows_in_mut(rows)) {
        let (gate, up) = from.split_at(cols);
        for ((to, &gate), up) in to.iter_mut().zip(gate).zip(up) {
            *to = precision.round(silu(gate) * up);
        }
    }
    Ok(())
}

pub(super) fn silu_add(bonus: &Buffer, owner: &[usize], x: &mut Buffer) -> Result<(), DeviceError> {
    const OPERATION: &str = "silu_add";
    check::cols(OPERATION, "bonus", bonus, x.cols())?;
    let rows = check::rows(OPERATION, 0..owner.len(), &[x])?;
    let precision = x.precision();
    for (&owner, to) in owner.iter().zip(x.rows_in_mut(rows)) {
        check::index(OPERATION, "owner", owner, bonus.rows())?;
        let from = bonus.row(owner).unwrap_or(&[]);
        to.iter_mut().zip(from).for_each(|(to, from)| *to = precision.round(silu(*to + from)));
    }
    Ok(())
}

pub(super) fn gather(x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<(), DeviceError> {
    const OPERATION: &str = "gather";
    check::cols(OPERATION, "out", out, x.cols())?;
    for &row in rows {
        check::index(OPERATION, "row", row, x.rows())?;
    }
    out.resize(rows.len())?;
    let precision = out.precision();
    for (&row, to) in rows.iter().zip(out.rows_in_mut(0..rows.len())) {
        to.copy_from_slice(x.row(row).unwrap_or(&[]));
        precision.round_all(to);
    }
    Ok(())
}

pub(super) fn norm_rope_append(
    transform: &QkTransform<'_, Vector>,
    pass: &Pass<'_>,
    kind: RowKind,
    qkv: &mut Buffer,
    layer: usize,
    cache: &mut KvCache,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "norm_rope_append";
    let shape = transform.shape;
    let head_dim = shape.head_dim;
    check_pass(OPERATION, pass, layer, cache)?;
    let cached = cache.shape();
    check::shape(OPERATION, "k heads", &[cached.kv_heads, cached.head_dim], &[shape.kv_heads, head_dim])?;
    check::at_least(OPERATION, "qkv", qkv, pass.total_rows(), shape.qkv_cols())?;
    check::shape(OPERATION, "inv_freq", &[head_dim / 2], &[transform.rope.inv_freq.len()])?;
    if let Some((q, k)) = transform.norms {
        check::shape(OPERATION, "q_norm", &[head_dim], &[q.0.len()])?;
        check::shape(OPERATION, "k_norm", &[head_dim], &[k.0.len()])?;
    }
    let rows = pass.rows();
    let range = match kind {
        RowKind::Candidates => 0..pass.candidate_rows(),
        RowKind::Masks => pass.candidate_rows()..rows.len(),
    };
    let precision = qkv.precision();
    for (row, columns) in rows[range.clone()].iter().zip(qkv.rows_in_mut(range)) {
        let turns: Vec<(f32, f32)> = transform
            .rope
            .inv_freq
            .iter()
            .map(|frequency| (row.position as f32 * frequency).sin_cos())
            .map(|(sin, cos)| (sin * transform.rope.scale, cos * transform.rope.scale))
            .collect();
        let (qk, v) = columns.split_at_mut((shape.q_heads + shape.kv_heads) * head_dim);
        for (index, head) in qk.chunks_exact_mut(head_dim).enumerate() {
            if let Some((q_norm, k_norm)) = transform.norms {
                let weight = if index < shape.q_heads { q_norm } else { k_norm };
                let scale = inverse_rms(head, transform.eps);
                head.iter_mut().zip(&weight.0).for_each(|(x, weight)| *x = *x * scale * weight);
            }
            let (low, high) = head.split_at_mut(head_dim / 2);
            for ((low, high), (sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                let (a, b) = (*low, *high);
                *low = precision.round(a * cos - b * sin);
                *high = precision.round(b * cos + a * sin);
            }
        }
        if kind == RowKind::Candidates {
            let pages = pass.sequences[row.sequence].pages;
            cache.append(layer, pages, row.position, &qk[shape.q_heads * head_dim..], v);
        }
    }
    Ok(())
}
