//! Joint draft-and-verify attention over the paged cache.
//!
//! A row's cached positions are taken in tiles of [`TILE`] *absolute* positions, ascending, with a
//! running maximum and sum (online softmax, arXiv 1805.02867; 2205.14135, section 3.1), then the
//! slots of its own group in tiles of the same size. The order of every sum is therefore a function
//! of positions alone: neither pages, nor other rows, groups or sequences, nor the mode have a part
//! in it. What lies beyond a row's limit is never multiplied by anything that the row keeps.

use half::bf16;

use super::buffer::Buffer;
use super::check;
use super::kv_cache::{KvCache, Layer, Layers, Paging};
use super::pool::Pool;
use super::product::products;
use super::simd::{Element, Kernel, LANES, Simd, Vectors, padded};
use crate::device::{AttentionShape, DeviceError};
use crate::layout::{Pass, Row};

/// Positions of a tile.
const TILE: usize = 64;

/// Rows of a sequence that go through the cache together, so that a tile of keys and values is read
/// from the cache's memory once for all of them.
const ROWS: usize = 8;

const OPERATION: &str = "joint_attention";

pub(super) fn joint_attention(
    (pool, vectors): (&Pool, Vectors),
    shape: AttentionShape,
    pass: &Pass<'_>,
    qkv: &Buffer,
    layer: usize,
    cache: &KvCache,
    out: &mut Buffer,
) -> Result<(), DeviceError> {
    cache.check(OPERATION, layer, shape)?;
    let (candidates, masks) = check::pass(OPERATION, pass, cache.paging)?;
    let total = candidates + masks;
    if total == 0 || shape.q_heads == 0 {
        return Ok(());
    }
    check::at_least(OPERATION, "qkv", qkv, total, shape.qkv_cols())?;
    check::at_least(OPERATION, "out", out, total, shape.out_cols())?;

    let rows = pass.rows();
    let work = rows.iter().fold(0usize, |work, row| work.saturating_add(row.limit + 1));
    let work = work.saturating_mul(2 * shape.out_cols());
    let precision = out.precision();
    let items = blocks(shape, pass, &rows, qkv, out);
    pool.for_each(items, work, |mut block| {
        let paging = cache.paging;
        match &cache.layers {
            Layers::F32(layers) => {
                vectors.run(Attend { shape, qkv, cache: &layers[layer], paging, block: &mut block });
            }
            Layers::Bf16(layers) => {
                vectors.run(Attend::<bf16> { shape, qkv, cache: &layers[layer], paging, block: &mut block });
            }
        }
        block.queries.into_iter().for_each(|query| precision.round_all(query.out));
    });
    Ok(())
}

/// A q head of a row.
struct Query<'a> {
    row: Row,
    /// `[head_dim]`.
    q: &'a [f32],
    /// `[head_dim]`.
    out: &'a mut [f32],
}

/// Some rows of one sequence, with the q heads that share a KV head.
struct Block<'a> {
    pages: &'a [u32],
    kv_head: usize,
    queries: Vec<Query<'a>>,
}

/// Divides the pass into blocks of up to [`ROWS`] rows of a sequence and one KV head.
fn blocks<'a>(
    shape: AttentionShape,
    pass: &Pass<'a>,
    rows: &[Row],
    qkv: &'a Buffer,
    out: &'a mut Buffer,
) -> Vec<Block<'a>> {
    // What is open of each sequence, by KV head.
    let mut open: Vec<Vec<Block<'a>>> = pass
        .sequences
        .iter()
        .map(|sequence| {
            let block = |kv_head| Block { pages: sequence.pages, kv_head, queries: Vec::new() };
            (0..shape.kv_heads).map(block).collect()
        })
        .collect();
    let heads_per_kv = shape.q_heads / shape.kv_heads;
    let mut full = Vec::new();
    let qkv = qkv.rows_in(0..rows.len());
    for (row, (qkv, out)) in rows.iter().zip(qkv.zip(out.rows_in_mut(0..rows.len()))) {
        let q = qkv.chunks_exact(shape.head_dim);
        let mut queries =
            q.zip(out.chunks_exact_mut(shape.head_dim)).map(|(q, out)| Query { row: *row, q, out });
        for block in &mut open[row.sequence] {
            if block.queries.len() == ROWS * heads_per_kv {
                let queries = std::mem::take(&mut block.queries);
                full.push(Block { queries, ..*block });
            }
            block.queries.extend(queries.by_ref().take(heads_per_kv));
        }
    }
    full.extend(open.into_iter().flatten().filter(|block| !block.queries.is_empty()));
    full
}

/// One block over one layer of the cache.
struct Attend<'a, 'b, T> {
    shape: AttentionShape,
    /// Where the groups' own keys and values are.
    qkv: &'a Buffer,
    cache: &'a Layer<T>,
    paging: Paging,
    block: &'a mut Block<'b>,
}

impl<T: Element> Kernel for Attend<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, qkv, cache, paging, block } = self;
        let dim = shape.head_dim;
        let scale = 1.0 / (dim as f32).sqrt();
        let q: Vec<&[f32]> = block.queries.iter().map(|query| query.q).collect();
        let mut softmaxes: Vec<Softmax> = q.iter().map(|_| Softmax::new(dim)).collect();
        let mut scores = vec![[0.0; TILE]; q.len()];
        let mut keys: [&[T]; TILE] = [&[]; TILE];
        let mut values: [&[T]; TILE] = [&[]; TILE];

        let end = block.queries.iter().map(|query| query.row.limit + 1).max().unwrap_or(0);
        for start in (0..end).step_by(TILE) {
            let len = TILE.min(end - start);
            for i in 0..len {
                let head = paging.token(block.pages, start + i) + block.kv_head * dim;
                keys[i] = &cache.keys[head..head + dim];
                values[i] = &cache.values[head..head + dim];
            }
            products(simd, &q, &keys[..len], &mut |m, n, score| scores[m][n] = score * scale);
            for (query, (softmax, scores)) in block.queries.iter().zip(softmaxes.iter_mut().zip(&mut scores))
            {
                let visible = len.min((query.row.limit + 1).saturating_sub(start));
                if visible > 0 {
                    softmax.merge(simd, scores, &values[..visible]);
                }
            }
        }

        let mut keys: [&[f32]; TILE] = [&[]; TILE];
        let mut values: [&[f32]; TILE] = [&[]; TILE];
        let key_col = (shape.q_heads + block.kv_head) * dim;
        let value_col = key_col + shape.kv_heads * dim;
        for (query, softmax) in block.queries.iter().zip(&mut softmaxes) {
            let (first, end) = query.row.group.unwrap_or((0, 0));
            for start in (first..end).step_by(TILE) {
                let len = TILE.min(end - start);
                for (i, slot) in qkv.rows_in(start..start + len).enumerate() {
                    keys[i] = &slot[key_col..key_col + dim];
                    values[i] = &slot[value_col..value_col + dim];
                }
                let scores = &mut scores[0];
                products(simd, &[query.q], &keys[..len], &mut |_, n, score| scores[n] = score * scale);
                softmax.merge(simd, scores, &values[..len]);
            }
        }

        for (query, softmax) in block.queries.iter_mut().zip(&softmaxes) {
            for (out, sum) in query.out.iter_mut().zip(softmax.weighted.as_flattened()) {
                *out = sum / softmax.sum;
            }
        }
    }
}

/// The softmax-weighted sum of the values seen so far, relative to the largest score so far.
struct Softmax {
    max: f32,
    /// Σ exp(score − max).
    sum: f32,
    /// Σ exp(score − max) · value, head_dim filled up with zeros to whole vectors.
    weighted: Vec<[f32; LANES]>,
}

impl Softmax {
    fn new(dim: usize) -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, weighted: vec![[0.0; LANES]; dim.div_ceil(LANES)] }
    }

    /// Adds a tile of at least one position. Of `scores` the first `values.len()` count.
    #[inline(always)]
    fn merge<S: Simd, T: Element>(&mut self, simd: S, scores: &mut [f32; TILE], values: &[&[T]]) {
        let (weights, hidden) = scores.split_at_mut(values.len());
        hidden.fill(0.0);
        let max = weights.iter().fold(self.max, |max, &score| max.max(score));
        let rescale = (self.max - max).exp();
        for weight in weights.iter_mut() {
            *weight = (*weight - max).exp();
        }
        let mut lanes = simd.splat(0.0);
        for weights in scores.as_chunks().0 {
            lanes = simd.add(lanes, simd.load(weights));
        }
        self.sum = self.sum * rescale + simd.sum(lanes);
        self.max = max;

        let rescale = simd.splat(rescale);
        if S::REGISTERS >= 32 {
            accumulate::<S, T, 8>(simd, rescale, scores, values, &mut self.weighted);
        } else {
            accumulate::<S, T, 4>(simd, rescale, scores, values, &mut self.weighted);
        }
    }
}

/// `weighted = weighted · rescale + Σ_i weights[i] · values[i]`, i ascending, `B` vectors at a time.
#[inline(always)]
fn accumulate<S: Simd, T: Element, const B: usize>(
    simd: S,
    rescale: S::Lanes,
    weights: &[f32; TILE],
    values: &[&[T]],
    weighted: &mut [[f32; LANES]],
) {
    let whole = values.first().map_or(0, |value| value.len() / LANES);
    let (weighted, tail) = weighted.split_at_mut(whole);
    let (blocks, rest) = weighted.as_chunks_mut::<B>();
    let in_blocks = blocks.len() * B;
    for (block, sums) in blocks.iter_mut().enumerate() {
        let mut lanes = [simd.splat(0.0); B];
        for b in 0..B {
            lanes[b] = simd.mul(simd.load(&sums[b]), rescale);
        }
        for (value, &weight) in values.iter().zip(weights) {
            let weight = simd.splat(weight);
            let value = &value.as_chunks().0[block * B..][..B];
            for b in 0..B {
                lanes[b] = simd.mul_add(weight, T::load(simd, &value[b]), lanes[b]);
            }
        }
        for b in 0..B {
            simd.store(lanes[b], &mut sums[b]);
        }
    }
    for (b, sums) in rest.iter_mut().enumerate() {
        let mut lanes = simd.mul(simd.load(sums), rescale);
        for (value, &weight) in values.iter().zip(weights) {
            let value = T::load(simd, &value.as_chunks().0[in_blocks + b]);
            lanes = simd.mul_add(simd.splat(weight), value, lanes);
        }
        simd.store(lanes, sums);
    }
    for sums in tail {
        let mut lanes = simd.mul(simd.load(sums), rescale);
        for (value, &weight) in values.iter().zip(weights) {
            let value = T::load(simd, &padded(&value[whole * LANES..]));
            lanes = simd.mul_add(simd.splat(weight), value, lanes);
        }
        simd.store(lanes, sums);
    }
}
