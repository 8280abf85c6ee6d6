//! Joint draft-and-verify attention over the paged KV cache, on the CPU.
//!
//! A row's cached positions are processed in splits of [`SPLIT`] *absolute* positions, and within a split in
//! tiles of [`TILE`], ascending, with a running maximum and sum (online softmax, arXiv 1805.02867;
//! 2205.14135, section 3.1). Splits are merged in ascending order, whichever threads computed them, and then
//! the slots of the row's own group are added as one more tile. The order of every sum therefore depends on
//! positions alone: not on pages, on other rows, groups or sequences, on the mode, or on the number of
//! threads. Values beyond a row's limit are never multiplied by anything that the row keeps.

use std::ops::Range;

use super::buffer::CpuBuffer;
use super::check;
use super::kv_cache::{CacheLayer, CpuKvCache, Planes};
use super::page_layout::PageLayout;
use super::pass::CheckedPass;
use super::pool::Pool;
use super::product::products;
use super::simd::{Kernel, Simd, VectorElement, Vectors};
use super::softmax::{Softmax, TILE, accumulate};
use crate::device::{AttentionRows, AttentionShape, DeviceError, Precision};
use crate::layout::{Pass, Row};

/// Number of rows of a sequence that are processed together as a block, so that a tile of keys and values is
/// read from the cache's memory once for all of them.
const ROWS: usize = 8;

/// Number of cached positions per split; threads share the splits of a block if there are too few blocks to
/// share evenly.
const SPLIT: usize = 2 * TILE;

/// Number of blocks of rows per thread from which on threads share whole blocks: the shares are then even
/// enough.
const BLOCKS_PER_THREAD: usize = 4;

/// Number of queries in a block above which arithmetic hides the memory's latency without prefetching.
const PREFETCH_QUERIES: usize = 8;

/// Bytes per cache line.
const CACHE_LINE: usize = 64;

const OPERATION: &str = "joint_attention";

pub(super) fn joint_attention(
    (pool, vectors): (&Pool, Vectors),
    shape: AttentionShape,
    AttentionRows { pass, masks }: AttentionRows<'_, CheckedPass<'_>>,
    qkv: &CpuBuffer,
    layer: usize,
    cache: &CpuKvCache,
    out: &mut CpuBuffer,
) -> Result<(), DeviceError> {
    cache.check(OPERATION, layer, shape)?;
    let paging = cache.paging();
    pass.check_cache(OPERATION, cache)?;
    let total = if masks { pass.rows.len() } else { pass.candidates };
    check::at_least(OPERATION, "qkv", qkv, total, shape.qkv_cols())?;
    check::at_least(OPERATION, "out", out, total, shape.out_cols())?;
    if total == 0 || shape.q_heads == 0 {
        return Ok(());
    }

    let rows = &pass.rows[..total];
    let work = rows.iter().fold(0usize, |work, row| work.saturating_add(row.limit + 1));
    let work = work.saturating_mul(2 * shape.out_cols());
    let precision = out.precision();
    let blocks = blocks(shape, pass.pass, rows, qkv, out);
    let compute = (pool, vectors);
    match cache.layer(layer) {
        CacheLayer::F32(planes) => {
            attend(compute, Source { shape, qkv, planes, paging }, blocks, precision, work)
        }
        CacheLayer::Bf16(planes) => {
            attend(compute, Source { shape, qkv, planes, paging }, blocks, precision, work)
        }
    }
    Ok(())
}

fn attend<T: VectorElement>(
    (pool, vectors): (&Pool, Vectors),
    source: Source<'_, T>,
    blocks: Vec<QueryBlock<'_>>,
    precision: Precision,
    work: usize,
) {
    let mut parts: Vec<Vec<Vec<Softmax>>> = blocks.iter().map(|_| Vec::new()).collect();
    if blocks.len() < BLOCKS_PER_THREAD * pool.threads() && pool.threads() > 1 {
        for (parts, block) in parts.iter_mut().zip(&blocks) {
            parts.resize_with(block.splits(), || block.softmaxes(source.shape));
        }
        let splits = blocks.iter().zip(&mut parts).flat_map(|(block, parts)| {
            parts.iter_mut().enumerate().map(move |(split, softmaxes)| (block, split, softmaxes))
        });
        pool.for_each(splits.collect(), work, |(block, split, softmaxes)| {
            vectors.run(Split { source, block, split, softmaxes });
        });
    }
    let items: Vec<_> = blocks.into_iter().zip(parts).collect();
    // If the splits are computed already, only merging is left, which takes little time.
    let left = if items.iter().all(|(_, parts)| parts.is_empty()) { work } else { 0 };
    pool.for_each(items, left, |(mut block, parts)| {
        attend_block(vectors, source, &mut block, &parts);
        for query in &mut block.queries {
            precision.round_all(query.out);
        }
    });
}

/// Computes the attention outputs of a block of rows. `parts` holds the result of every split; if it is
/// empty, the splits are computed here.
fn attend_block<T: VectorElement>(
    vectors: Vectors,
    source: Source<'_, T>,
    block: &mut QueryBlock<'_>,
    parts: &[Vec<Softmax>],
) {
    let mut softmaxes = block.softmaxes(source.shape);
    let mut own = if parts.is_empty() { block.softmaxes(source.shape) } else { Vec::new() };
    for split in 0..block.splits() {
        let part = match parts.get(split) {
            Some(part) => part,
            None => {
                vectors.run(Split { source, block, split, softmaxes: &mut own });
                &own
            }
        };
        for (softmax, part) in softmaxes.iter_mut().zip(part) {
            softmax.merge(part);
        }
    }
    if block.queries.iter().any(|query| query.row.group.is_some()) {
        let Source { shape, qkv, .. } = source;
        vectors.run(Groups { shape, qkv, block, softmaxes: &mut softmaxes });
    }
    for (query, softmax) in block.queries.iter_mut().zip(&softmaxes) {
        softmax.finish(query.out);
    }
}

/// The query of one q head of one row, and the place of its output.
struct Query<'a> {
    row: Row,
    /// The query `[head_dim]`.
    q: &'a [f32],
    /// The output `[head_dim]`.
    out: &'a mut [f32],
}

impl Query<'_> {
    /// Returns how many of the `len` cached positions from `start` on the row sees.
    fn visible(&self, start: usize, len: usize) -> usize {
        len.min((self.row.limit + 1).saturating_sub(start))
    }
}

/// Some rows of one sequence, with the q heads that share one KV head.
struct QueryBlock<'a> {
    pages: &'a [u32],
    kv_head: usize,
    queries: Vec<Query<'a>>,
}

impl QueryBlock<'_> {
    /// Returns the first cached position that no query of the block sees.
    fn end(&self) -> usize {
        self.queries.iter().map(|query| query.row.limit + 1).max().unwrap_or(0)
    }

    /// Returns an empty running softmax for each query of the block.
    fn softmaxes(&self, shape: AttentionShape) -> Vec<Softmax> {
        self.queries.iter().map(|_| Softmax::new(shape.head_dim)).collect()
    }

    fn splits(&self) -> usize {
        self.end().div_ceil(SPLIT)
    }
}

/// Divides the pass into blocks of up to [`ROWS`] rows of a sequence and one KV head.
fn blocks<'a>(
    shape: AttentionShape,
    pass: &Pass<'a>,
    rows: &[Row],
    qkv: &'a CpuBuffer,
    out: &'a mut CpuBuffer,
) -> Vec<QueryBlock<'a>> {
    // For each sequence and KV head, the block of query rows that is not full yet: the next row goes there.
    let mut open: Vec<Vec<QueryBlock<'a>>> = pass
        .sequences
        .iter()
        .map(|sequence| {
            let block = |kv_head| QueryBlock { pages: sequence.pages, kv_head, queries: Vec::new() };
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
                full.push(QueryBlock { queries, ..*block });
            }
            block.queries.extend(queries.by_ref().take(heads_per_kv));
        }
    }
    full.extend(open.into_iter().flatten().filter(|block| !block.queries.is_empty()));
    full
}

/// One layer of the cache, and the keys and values of the mask groups.
#[derive(Clone, Copy)]
struct Source<'a, T> {
    shape: AttentionShape,
    /// The fused projections, which contain the mask groups' own keys and values.
    qkv: &'a CpuBuffer,
    planes: Planes<&'a [T]>,
    paging: PageLayout,
}

/// Returns the factor on attention scores: 1 / sqrt(head_dim).
fn scale(shape: AttentionShape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

impl<T: VectorElement> Source<'_, T> {
    /// Computes the attention of a block's queries to the cached positions of one split alone.
    #[inline(always)]
    fn split<S: Simd>(&self, simd: S, block: &QueryBlock<'_>, split: usize, softmaxes: &mut [Softmax]) {
        softmaxes.iter_mut().for_each(Softmax::clear);
        let Self { shape, planes, paging, .. } = *self;
        let (dim, scale) = (shape.head_dim, scale(shape));
        let q: Vec<&[f32]> = block.queries.iter().map(|query| query.q).collect();
        let mut scores = vec![[0.0; TILE]; q.len()];
        let mut keys: [&[T]; TILE] = [&[]; TILE];
        let mut values: [&[T]; TILE] = [&[]; TILE];

        let end = block.end();
        for start in (split * SPLIT..end.min((split + 1) * SPLIT)).step_by(TILE) {
            let len = TILE.min(end - start);
            for i in 0..len {
                let head = paging.head(block.pages, start + i, block.kv_head);
                keys[i] = &planes.keys[head..head + dim];
                values[i] = &planes.values[head..head + dim];
            }
            if q.len() <= PREFETCH_QUERIES {
                self.prefetch(simd, block, start + TILE..end.min(start + 2 * TILE));
            }
            products(simd, q.as_slice(), &keys[..len], &mut |m, n, sums| {
                for (score, sum) in scores[m][n..].iter_mut().zip(sums) {
                    *score = sum * scale;
                }
            });
            for (query, (softmax, scores)) in block.queries.iter().zip(softmaxes.iter_mut().zip(&mut scores))
            {
                softmax.weigh(simd, scores, query.visible(start, len));
            }
            // Neighbouring queries that see the same number of the tile's positions share the loads of the
            // values.
            let mut first = 0;
            for same in block.queries.chunk_by(|a, b| a.visible(start, len) == b.visible(start, len)) {
                let range = first..first + same.len();
                first = range.end;
                let visible = same[0].visible(start, len);
                accumulate(simd, &mut softmaxes[range.clone()], &scores[range], &values[..visible]);
            }
        }
    }

    /// Prefetches the keys and values of some positions: a page is too short for the hardware prefetcher to
    /// recognise the pattern.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, block: &QueryBlock<'_>, positions: Range<usize>) {
        let Self { shape, planes, paging, .. } = *self;
        for position in positions {
            let head = paging.head(block.pages, position, block.kv_head);
            for at in (head..head + shape.head_dim).step_by(CACHE_LINE / size_of::<T>()) {
                simd.prefetch(planes.keys.as_ptr().wrapping_add(at));
                simd.prefetch(planes.values.as_ptr().wrapping_add(at));
            }
        }
    }
}

/// The operands of a block's attention to the cached positions of one split.
struct Split<'a, 'b, T> {
    source: Source<'a, T>,
    block: &'a QueryBlock<'b>,
    split: usize,
    /// The results, one running softmax per query; their previous contents do not matter.
    softmaxes: &'a mut [Softmax],
}

impl<T: VectorElement> Kernel for Split<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.source.split(simd, self.block, self.split, self.softmaxes);
    }
}

/// The operands of the attention of a block's mask rows to the slots of their own groups.
struct Groups<'a, 'b> {
    shape: AttentionShape,
    /// The fused projections, which contain the mask groups' own keys and values.
    qkv: &'a CpuBuffer,
    block: &'a QueryBlock<'b>,
    /// The running softmax of each query, to which the slots of the query's own mask group are added.
    softmaxes: &'a mut [Softmax],
}

impl Kernel for Groups<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, qkv, block, softmaxes } = self;
        let (dim, scale) = (shape.head_dim, scale(shape));
        let mut keys: [&[f32]; TILE] = [&[]; TILE];
        let mut values: [&[f32]; TILE] = [&[]; TILE];
        let key_col = (shape.q_heads + block.kv_head) * dim;
        let value_col = key_col + shape.kv_heads * dim;
        let mut first = 0;
        for same in block.queries.chunk_by(|a, b| a.row.group == b.row.group) {
            let range = first..first + same.len();
            first = range.end;
            let Some((start, end)) = same[0].row.group else { continue };
            // A mask group has at most the largest block size, which fits one tile: `PageLayout::check_pass`
            // checks this.
            let len = end - start;
            for (i, slot) in qkv.rows_in(start..end).enumerate() {
                keys[i] = &slot[key_col..key_col + dim];
                values[i] = &slot[value_col..value_col + dim];
            }
            let q: Vec<&[f32]> = same.iter().map(|query| query.q).collect();
            let mut scores = vec![[0.0; TILE]; q.len()];
            let softmaxes = &mut softmaxes[range];
            products(simd, q.as_slice(), &keys[..len], &mut |m, n, sums| {
                for (score, sum) in scores[m][n..].iter_mut().zip(sums) {
                    *score = sum * scale;
                }
            });
            for (softmax, scores) in softmaxes.iter_mut().zip(scores.iter_mut()) {
                softmax.weigh(simd, scores, len);
            }
            accumulate(simd, softmaxes, &scores, &values[..len]);
        }
    }
}
