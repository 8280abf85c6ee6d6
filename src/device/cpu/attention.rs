//! Joint draft-and-verify attention over the paged cache.
//!
//! A row's cached positions are taken in tiles of [`TILE`] *absolute* positions, ascending, with a
//! running maximum and sum (online softmax, arXiv 1805.02867; 2205.14135, section 3.1), then the slots
//! of its own group in one tile more. The order of every sum is therefore a function of positions
//! alone: neither pages, nor other rows, groups or sequences, nor the mode have a part in it. What lies
//! beyond a row's limit is never multiplied by anything that the row keeps.

use super::buffer::Buffer;
use super::check;
use super::kv_cache::{KvCache, Layer, Paging, Planes};
use super::pool::Pool;
use super::product::products;
use super::simd::{Element, Kernel, Simd, Vectors};
use super::softmax::{Softmax, TILE, accumulate};
use crate::device::{AttentionShape, DeviceError};
use crate::layout::{Pass, Row};

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
    let paging = cache.paging();
    let (candidates, masks) = check::pass(OPERATION, pass, paging)?;
    let total = candidates + masks;
    check::at_least(OPERATION, "qkv", qkv, total, shape.qkv_cols())?;
    check::at_least(OPERATION, "out", out, total, shape.out_cols())?;
    if total == 0 || shape.q_heads == 0 {
        return Ok(());
    }

    let rows = pass.rows();
    let work = rows.iter().fold(0usize, |work, row| work.saturating_add(row.limit + 1));
    let work = work.saturating_mul(2 * shape.out_cols());
    let precision = out.precision();
    let items = blocks(shape, pass, &rows, qkv, out);
    pool.for_each(items, work, |mut block| {
        let block = &mut block;
        match cache.layer(layer) {
            Layer::F32(planes) => vectors.run(Attend { shape, qkv, planes, paging, block }),
            Layer::Bf16(planes) => vectors.run(Attend { shape, qkv, planes, paging, block }),
        }
        block.queries.iter_mut().for_each(|query| precision.round_all(query.out));
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

impl Query<'_> {
    /// How many of `len` positions from `start` on the row sees in the cache.
    fn visible(&self, start: usize, len: usize) -> usize {
        len.min((self.row.limit + 1).saturating_sub(start))
    }
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
    planes: Planes<&'a [T]>,
    paging: Paging,
    block: &'a mut Block<'b>,
}

impl<T: Element> Kernel for Attend<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, qkv, planes, paging, block } = self;
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
                let head = paging.head(block.pages, start + i, block.kv_head);
                keys[i] = &planes.keys[head..head + dim];
                values[i] = &planes.values[head..head + dim];
            }
            products(simd, q.as_slice(), &keys[..len], &mut |m, n, score| scores[m][n] = score * scale);
            for (query, (softmax, scores)) in block.queries.iter().zip(softmaxes.iter_mut().zip(&mut scores))
            {
                softmax.weigh(simd, scores, query.visible(start, len));
            }
            // Neighbours that see as much share the loads of the values.
            let mut first = 0;
            for same in block.queries.chunk_by(|a, b| a.visible(start, len) == b.visible(start, len)) {
                let range = first..first + same.len();
                first = range.end;
                let visible = same[0].visible(start, len);
                accumulate(simd, &mut softmaxes[range.clone()], &scores[range], &values[..visible]);
            }
        }

        let mut keys: [&[f32]; TILE] = [&[]; TILE];
        let mut values: [&[f32]; TILE] = [&[]; TILE];
        let key_col = (shape.q_heads + block.kv_head) * dim;
        let value_col = key_col + shape.kv_heads * dim;
        let mut first = 0;
        for same in block.queries.chunk_by(|a, b| a.row.group == b.row.group) {
            let range = first..first + same.len();
            first = range.end;
            let Some((start, end)) = same[0].row.group else { continue };
            // At most the largest block size, which is a tile: `check::pass`.
            let len = end - start;
            for (i, slot) in qkv.rows_in(start..end).enumerate() {
                keys[i] = &slot[key_col..key_col + dim];
                values[i] = &slot[value_col..value_col + dim];
            }
            let (scores, softmaxes) = (&mut scores[range.clone()], &mut softmaxes[range.clone()]);
            products(simd, &q[range], &keys[..len], &mut |m, n, score| scores[m][n] = score * scale);
            for (softmax, scores) in softmaxes.iter_mut().zip(scores.iter_mut()) {
                softmax.weigh(simd, scores, len);
            }
            accumulate(simd, softmaxes, scores, &values[..len]);
        }

        for (query, softmax) in block.queries.iter_mut().zip(&softmaxes) {
            softmax.finish(query.out);
        }
    }
}
