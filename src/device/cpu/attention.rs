//! Joint draft-and-verify attention over the paged cache.
//!
//! For one sequence and one KV head, keys and values are read once, tile by tile, and every row of the
//! sequence that sees a tile folds it into its running maximum, sum and output (online softmax,
//! arXiv 1805.02867). Tiles lie at absolute positions (multiples of [`TILE`]); a mask row's own group is
//! one further tile, folded last. The arithmetic of a row depends on its limit and on what it sees, on
//! nothing else: not on the batch, the groups beside it, or the mode.

use super::buffer::Buffer;
use super::check;
use super::kv_cache::KvCache;
use super::pool::Pool;
use super::simd::{Kernel, LANES, Simd, Vectors, padded};
use crate::device::{AttentionShape, DeviceError};
use crate::layout::{Pass, Row};

/// Positions in a tile.
const TILE: usize = 64;

const OPERATION: &str = "joint_attention";

/// Checks that a pass fits a cache: page ids, and page tables that cover every limit.
pub(super) fn check_pass(
    operation: &'static str,
    pass: &Pass<'_>,
    layer: usize,
    cache: &KvCache,
) -> Result<(), DeviceError> {
    check::index(operation, "layer", layer, cache.layers())?;
    for sequence in &pass.sequences {
        for &page in sequence.pages {
            check::index(operation, "page", page as usize, cache.pages())?;
        }
        let candidates = sequence.start.saturating_add(sequence.candidates);
        let groups = sequence.groups.iter().map(|k| sequence.start.saturating_add(*k).saturating_add(1));
        let end = groups.chain((sequence.candidates > 0).then_some(candidates)).max().unwrap_or(0);
        let limit = sequence.pages.len() * cache.page_size();
        check::index(operation, "position", end, limit + 1)?;
    }
    Ok(())
}

pub(super) fn joint_attention(
    pool: &Pool,
    vectors: Vectors,
    shape: AttentionShape,
    pass: &Pass<'_>,
    qkv: &Buffer,
    layer: usize,
    cache: &KvCache,
    out: &mut Buffer,
) -> Result<(), DeviceError> {
    check_pass(OPERATION, pass, layer, cache)?;
    let heads = |s: AttentionShape| [s.q_heads, s.kv_heads, s.head_dim];
    check::shape(OPERATION, "heads", &heads(cache.shape()), &heads(shape))?;
    check::at_least(OPERATION, "qkv", qkv, pass.total_rows(), shape.qkv_cols())?;
    check::at_least(OPERATION, "out", out, pass.total_rows(), shape.out_cols())?;

    let rows = pass.rows();
    let q_per_kv = shape.q_heads / shape.kv_heads;
    let mut jobs = Vec::new();
    let mut work = 0;
    for (index, sequence) in pass.sequences.iter().enumerate() {
        let own: Vec<(usize, Row)> =
            rows.iter().copied().enumerate().filter(|(_, r)| r.sequence == index).collect();
        work +=
            own.iter().map(|(_, row)| (row.limit + 1 + sequence.slots) * shape.out_cols() * 2).sum::<usize>();
        for head in 0..shape.kv_heads {
            let width = q_per_kv * shape.head_dim;
            jobs.push(HeadJob {
                shape,
                pages: sequence.pages,
                rows: own.clone(),
                head,
                qkv,
                layer,
                cache,
                out: vec![0.0; own.len() * width],
            });
        }
    }
    let mut slots: Vec<&mut HeadJob<'_>> = jobs.iter_mut().collect();
    pool.for_each(std::mem::take(&mut slots), work, |job| vectors.run(job));

    let precision = out.precision();
    for job in jobs {
        let width = q_per_kv * shape.head_dim;
        for ((row, _), values) in job.rows.iter().zip(job.out.chunks_exact(width.max(1))) {
            for target in out.rows_in_mut(*row..row + 1) {
                let columns = job.head * width..(job.head + 1) * width;
                target[columns].iter_mut().zip(values).for_each(|(to, &value)| *to = precision.round(value));
            }
        }
    }
    Ok(())
}

/// All rows of one sequence against one KV head.
struct HeadJob<'a> {
    shape: AttentionShape,
    pages: &'a [u32],
    rows: Vec<(usize, Row)>,
    head: usize,
    qkv: &'a Buffer,
    layer: usize,
    cache: &'a KvCache,
    /// `[rows, q heads of this KV head, head_dim]`.
    out: Vec<f32>,
}

/// Running softmax of one row and query head.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl Kernel for &mut HeadJob<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.shape;
        let q_per_kv = q_heads / kv_heads;
        let mut running = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; self.rows.len() * q_per_kv];
        let (mut keys, mut values) = (vec![0.0; TILE * head_dim], vec![0.0; TILE * head_dim]);
        let last = self.rows.iter().map(|(_, row)| row.limit).max().unwrap_or(0);
        for first in (0..=last).step_by(TILE) {
            let count = TILE.min(last + 1 - first);
            for i in 0..count {
                let range = i * head_dim..(i + 1) * head_dim;
                self.cache.read_key(self.layer, self.pages, first + i, self.head, &mut keys[range.clone()]);
                self.cache.read_value(self.layer, self.pages, first + i, self.head, &mut values[range]);
            }
            for index in 0..self.rows.len() {
                let limit = self.rows[index].1.limit;
                if first <= limit {
                    let seen = count.min(limit + 1 - first);
                    self.fold(simd, index, seen, &keys, &values, &mut running);
                }
            }
        }
        for index in 0..self.rows.len() {
            let Some((start, end)) = self.rows[index].1.group else { continue };
            for (tile, row) in (start..end).enumerate().map(|(i, row)| (i % TILE, row)) {
                let columns = self.qkv.row(row).unwrap_or(&[]);
                let key = (q_heads + self.head) * head_dim;
                let value = key + kv_heads * head_dim;
                keys[tile * head_dim..(tile + 1) * head_dim].copy_from_slice(&columns[key..key + head_dim]);
                values[tile * head_dim..(tile + 1) * head_dim]
                    .copy_from_slice(&columns[value..value + head_dim]);
            }
            self.fold(simd, index, end - start, &keys, &values, &mut running);
        }
        for (running, out) in running.iter().zip(self.out.chunks_exact_mut(head_dim)) {
            if running.sum > 0.0 {
                out.iter_mut().for_each(|value| *value /= running.sum);
            }
        }
    }
}

impl HeadJob<'_> {
    /// Folds the first `seen` positions of a tile into row `index`.
    #[inline(always)]
    fn fold<S: Simd>(
        &mut self,
        simd: S,
        index: usize,
        seen: usize,
        keys: &[f32],
        values: &[f32],
        running: &mut [Running],
    ) {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.shape;
        let q_per_kv = q_heads / kv_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let row = self.qkv.row(self.rows[index].0).unwrap_or(&[]);
        let mut scores = [0.0f32; TILE];
        for h in 0..q_per_kv {
            let q = &row[(self.head * q_per_kv + h) * head_dim..][..head_dim];
            let mut max = f32::NEG_INFINITY;
            for (i, score) in scores[..seen].iter_mut().enumerate() {
                *score = dot(simd, q, &keys[i * head_dim..][..head_dim]) * scale;
                max = max.max(*score);
            }
            let state = &mut running[index * q_per_kv + h];
            let out = &mut self.out[(index * q_per_kv + h) * head_dim..][..head_dim];
            let new_max = state.max.max(max);
            if new_max == f32::NEG_INFINITY {
                continue;
            }
            let rescale = (state.max - new_max).exp();
            out.iter_mut().for_each(|value| *value *= rescale);
            state.sum *= rescale;
            state.max = new_max;
            for (i, &score) in scores[..seen].iter().enumerate() {
                let weight = (score - new_max).exp();
                state.sum += weight;
                let value = &values[i * head_dim..][..head_dim];
                out.iter_mut().zip(value).for_each(|(to, v)| *to += weight * v);
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = simd.splat(0.0);
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (padded(a_lanes.remainder()), padded(b_lanes.remainder()));
    for (a, b) in a_lanes.zip(b_lanes) {
        if let (Some(a), Some(b)) = (a.first_chunk(), b.first_chunk()) {
            sum = simd.mul_add(simd.load(a), simd.load(b), sum);
        }
    }
    if !a.len().is_multiple_of(LANES) {
        sum = simd.mul_add(simd.load(&a_rest), simd.load(&b_rest), sum);
    }
    simd.sum(sum)
}
