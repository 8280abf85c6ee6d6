//! The matrix product with quantised weights: `out[m][n] = Σ_k x[m][k] · w[n][k]`, where w is unpacked to f32.
//!
//! Every dot product has the order of summation of [`product`](super::product), so a result has the bits of the product
//! with the dequantised weights, whatever the number of rows of x. With few rows of x, blocks are unpacked in registers;
//! with more rows, a few rows of w are unpacked once for all rows of x.

use std::marker::PhantomData;

use super::blocks::Unpack;
use super::product::{WeightRows, WideRows, widened};
use super::simd::{LANES, Simd};

/// Rows of a quantised matrix, whose blocks have `BYTES` bytes and are unpacked in groups of `V` vectors.
pub(super) struct BlockRows<'a, F, const BYTES: usize, const V: usize> {
    blocks: &'a [[u8; BYTES]],
    /// Number of blocks per row.
    per_row: usize,
    rows: usize,
    format: PhantomData<F>,
}

impl<F, const BYTES: usize, const V: usize> Clone for BlockRows<'_, F, BYTES, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F, const BYTES: usize, const V: usize> Copy for BlockRows<'_, F, BYTES, V> {}

impl<'a, F: Unpack<BYTES, V>, const BYTES: usize, const V: usize> BlockRows<'a, F, BYTES, V> {
    /// Views the bytes of `rows` rows of `columns` elements, which are whole blocks.
    pub(super) fn new((bytes, columns, rows): (&'a [u8], usize, usize)) -> Self {
        let per_row = columns / (F::GROUPS * V * LANES);
        Self { blocks: bytes.as_chunks().0, per_row, rows, format: PhantomData }
    }

    /// Returns `rows` rows, starting at row `first`.
    pub(super) fn rows_from(self, first: usize, rows: usize) -> Self {
        Self { blocks: self.blocks.get(first * self.per_row..).unwrap_or(&[]), rows, ..self }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &'a [[u8; BYTES]] {
        &self.blocks[row * self.per_row..][..self.per_row]
    }
}

impl<F: Unpack<BYTES, V>, const BYTES: usize, const V: usize> WideRows for BlockRows<'_, F, BYTES, V> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    fn bytes(&self, row: usize) -> &[u8] {
        self.row(row).as_flattened()
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, simd: S, row: usize, to: &mut [[f32; LANES]]) {
        let mut groups = to.as_chunks_mut::<V>().0.iter_mut();
        for block in self.row(row) {
            let scales = F::scales(simd, block);
            for group in 0..F::GROUPS {
                let Some(to) = groups.next() else { return };
                let elements = F::group(simd, block, &scales, group);
                for i in 0..V {
                    simd.store(elements[i], &mut to[i]);
                }
            }
        }
    }
}

/// Calls `sink(m, n, sums)` with `sums[i] = Σ_k x[m][k] · w[n + i][k]`, covering every pair of rows exactly once.
#[inline(always)]
pub(super) fn block_products<S: Simd, F: Unpack<BYTES, V>, const BYTES: usize, const V: usize>(
    simd: S,
    x: impl WeightRows<f32>,
    w: BlockRows<'_, F, BYTES, V>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    // The accumulators of two columns, the unpacked vectors and their scales fit the register file.
    match x.len() {
        0 => {}
        1 => pairs::<S, F, BYTES, V, 1>(simd, &x, w, sink),
        2 if S::REGISTERS >= 8 => pairs::<S, F, BYTES, V, 2>(simd, &x, w, sink),
        3 if S::REGISTERS >= 32 => pairs::<S, F, BYTES, V, 3>(simd, &x, w, sink),
        4 if S::REGISTERS >= 32 => pairs::<S, F, BYTES, V, 4>(simd, &x, w, sink),
        5..=6 if S::REGISTERS >= 32 => pairs::<S, F, BYTES, V, 6>(simd, &x, w, sink),
        7..=8 if S::REGISTERS >= 32 => pairs::<S, F, BYTES, V, 8>(simd, &x, w, sink),
        _ if S::REGISTERS >= 32 => widened::<S, 4, 6>(simd, &x, &w, sink),
        _ if S::REGISTERS >= 8 => widened::<S, 2, 3>(simd, &x, &w, sink),
        _ => widened::<S, 1, 2>(simd, &x, &w, sink),
    }
}

/// Multiplies up to `R` rows of x with two rows of w at a time, which are unpacked in registers.
#[inline(always)]
fn pairs<S: Simd, F: Unpack<BYTES, V>, const BYTES: usize, const V: usize, const R: usize>(
    simd: S,
    x: &impl WeightRows<f32>,
    w: BlockRows<'_, F, BYTES, V>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let (rows, last) = (x.len().min(R), w.rows.saturating_sub(1));
    // Rows past the end repeat the last row, and their results are dropped.
    let x: [&[[[f32; LANES]; V]]; R] =
        std::array::from_fn(|r| x.row(r.min(rows - 1)).as_chunks().0.as_chunks().0);
    for n in (0..w.rows).step_by(2) {
        let columns = (w.rows - n).min(2);
        let next = [n + 2, n + 3].map(|row| w.bytes(row.min(last)).as_ptr());
        let pair = [w.row(n), w.row((n + 1).min(last))];
        let sums = pair_dots::<S, F, BYTES, V, R>(simd, &x, pair, next);
        for (m, sums) in sums.iter().enumerate().take(rows) {
            sink(m, n, &sums[..columns]);
        }
    }
}

/// Computes the dot products of `R` rows of x with two rows of w, and prefetches the rows at `next`.
#[inline(always)]
fn pair_dots<S: Simd, F: Unpack<BYTES, V>, const BYTES: usize, const V: usize, const R: usize>(
    simd: S,
    x: &[&[[[f32; LANES]; V]]; R],
    w: [&[[u8; BYTES]]; 2],
    next: [*const u8; 2],
) -> [[f32; 2]; R] {
    let mut first = [simd.splat(0.0); R];
    let mut second = [simd.splat(0.0); R];
    for (b, (block, other)) in w[0].iter().zip(w[1]).enumerate() {
        for line in (0..BYTES).step_by(CACHE_LINE) {
            simd.prefetch(next[0].wrapping_add(b * BYTES + line));
            simd.prefetch(next[1].wrapping_add(b * BYTES + line));
        }
        let (scales, other_scales) = (F::scales(simd, block), F::scales(simd, other));
        for group in 0..F::GROUPS {
            let mut chunks = [&[[0.0; LANES]; V]; R];
            for r in 0..R {
                chunks[r] = &x[r][b * F::GROUPS + group];
            }
            first = multiply_add(simd, &chunks, F::group(simd, block, &scales, group), first);
            second = multiply_add(simd, &chunks, F::group(simd, other, &other_scales, group), second);
        }
    }
    let mut sums = [[0.0; 2]; R];
    for r in 0..R {
        sums[r] = [simd.sum(first[r]), simd.sum(second[r])];
    }
    sums
}

/// Size of a cache line in bytes.
const CACHE_LINE: usize = 64;

/// Adds to lane l of each row's accumulator the products of its elements l, l + 16, …, in this order.
#[inline(always)]
fn multiply_add<S: Simd, const V: usize, const R: usize>(
    simd: S,
    x: &[&[[f32; LANES]; V]; R],
    w: [S::Lanes; V],
    mut to: [S::Lanes; R],
) -> [S::Lanes; R] {
    for i in 0..V {
        for r in 0..R {
            to[r] = simd.mul_add(simd.load(&x[r][i]), w[i], to[r]);
        }
    }
    to
}
