//! The row-invariant matrix product: `out[m][n] = Σ_k x[m][k] · w[n][k]`.
//!
//! A general matrix product chooses its order of summation by the number of rows; this one never does. Every
//! dot product uses the same order: lane l of 16 adds up k = l, l + 16, l + 32, … in this order, with zeros
//! after the end of the row, and then the tree of [`Simd::sum`] adds the lanes. (If both sides are bf16 and
//! the hardware multiplies them in pairs, lane l takes k = 2l + 1, 2l, 2l + 33, 2l + 32, ….) A tile of the
//! product is a group of independent dot products side by side, so neither the number of rows nor the place
//! of a row in a tile changes a bit of its result.

use std::marker::PhantomData;

use half::bf16;

use super::lines::Lines;
use super::simd::{LANES, PAIRS, Simd, VectorElement, padded};

/// An element type of x, whose elements are multiplied with elements of `T`, `K` at a time.
pub(super) trait Factor<T: VectorElement, const K: usize>: VectorElement {
    /// `K` elements of this type in registers.
    type Left<S: Simd>: Copy;
    /// `K` elements of `T` in registers.
    type Right<S: Simd>: Copy;

    fn left<S: Simd>(simd: S, from: &[Self; K]) -> Self::Left<S>;
    fn right<S: Simd>(simd: S, from: &[T; K]) -> Self::Right<S>;
    fn multiply_add<S: Simd>(simd: S, x: Self::Left<S>, w: Self::Right<S>, to: S::Lanes) -> S::Lanes;

    /// Computes the products of [`columns`] for many rows of x.
    #[inline(always)]
    fn many<S: Simd, const R: usize, const C: usize>(
        simd: S,
        x: &impl WeightRows<Self>,
        w: &impl WeightRows<T>,
        sink: &mut impl FnMut(usize, usize, &[f32]),
    ) {
        columns::<S, Self, T, K, R, C>(simd, x, w, sink);
    }
}

impl<T: VectorElement> Factor<T, LANES> for f32 {
    type Left<S: Simd> = S::Lanes;
    type Right<S: Simd> = S::Lanes;

    #[inline(always)]
    fn left<S: Simd>(simd: S, from: &[f32; LANES]) -> S::Lanes {
        simd.load(from)
    }

    #[inline(always)]
    fn right<S: Simd>(simd: S, from: &[T; LANES]) -> S::Lanes {
        T::load(simd, from)
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, x: S::Lanes, w: S::Lanes, to: S::Lanes) -> S::Lanes {
        simd.mul_add(x, w, to)
    }

    #[inline(always)]
    fn many<S: Simd, const R: usize, const C: usize>(
        simd: S,
        x: &impl WeightRows<Self>,
        w: &impl WeightRows<T>,
        sink: &mut impl FnMut(usize, usize, &[f32]),
    ) {
        if size_of::<T>() < size_of::<f32>() {
            widened::<S, R, C>(simd, x, &Numbers(w, PhantomData::<T>), sink);
        } else {
            columns::<S, Self, T, LANES, R, C>(simd, x, w, sink);
        }
    }
}

impl Factor<bf16, PAIRS> for bf16 {
    type Left<S: Simd> = S::Pairs;
    type Right<S: Simd> = S::Pairs;

    #[inline(always)]
    fn left<S: Simd>(simd: S, from: &[bf16; PAIRS]) -> S::Pairs {
        simd.load_pairs(from)
    }

    #[inline(always)]
    fn right<S: Simd>(simd: S, from: &[bf16; PAIRS]) -> S::Pairs {
        simd.load_pairs(from)
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, x: S::Pairs, w: S::Pairs, to: S::Lanes) -> S::Lanes {
        simd.dot_pairs(x, w, to)
    }
}

/// Rows of equal length, at any addresses.
pub(super) trait WeightRows<T> {
    fn len(&self) -> usize;
    fn row(&self, index: usize) -> &[T];
}

impl<T> WeightRows<T> for &[&[T]] {
    #[inline(always)]
    fn len(&self) -> usize {
        (**self).len()
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &[T] {
        self[index]
    }
}

/// Some columns of consecutive rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a, T> {
    /// The matrix's elements, starting at the first element used.
    pub(super) elements: &'a [T],
    /// Distance from one row to the next, in elements.
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Returns `rows` rows, starting at row `first`.
    pub(super) fn rows_from(&self, first: usize, rows: usize) -> Self {
        Self { elements: self.elements.get(first * self.stride..).unwrap_or(&[]), rows, ..*self }
    }
}

impl<T> WeightRows<T> for Matrix<'_, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &[T] {
        &self.elements[index * self.stride..][..self.cols]
    }
}

/// Number of rows of x from which weights are converted to f32 once for all tiles, not once per tile. Reading
/// the weights is then a small part of the work, although the conversion comes before the arithmetic instead
/// of overlapping it.
const MANY_ROWS: usize = 64;

/// Calls `sink(m, n, sums)` with `sums[i] = Σ_k x[m][k] · w[n + i][k]`, covering every pair of rows exactly
/// once. All rows have the same length.
///
/// All rows of x pass over a few rows of w before the next rows of w are read: w streams from memory once,
/// and x comes from the cache repeatedly.
#[inline(always)]
pub(super) fn products<S: Simd, X: Factor<T, K>, T: VectorElement, const K: usize>(
    simd: S,
    x: impl WeightRows<X>,
    w: impl WeightRows<T>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    // The accumulators and one row or column of operands fill the register file.
    if S::REGISTERS >= 32 {
        if x.len() >= MANY_ROWS {
            X::many::<S, 4, 6>(simd, &x, &w, sink);
        } else {
            columns::<S, X, T, K, 4, 6>(simd, &x, &w, sink);
        }
    } else if S::REGISTERS >= 8 {
        columns::<S, X, T, K, 2, 3>(simd, &x, &w, sink);
    } else {
        columns::<S, X, T, K, 1, 2>(simd, &x, &w, sink);
    }
}

/// Computes the product in tiles of up to `R` rows of x and `C` rows of w.
#[inline(always)]
fn columns<S: Simd, X: Factor<T, K>, T: VectorElement, const K: usize, const R: usize, const C: usize>(
    simd: S,
    x: &impl WeightRows<X>,
    w: &impl WeightRows<T>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let mut n = 0;
    while n + C <= w.len() {
        rows::<S, X, T, K, R, C>(simd, x, w, n, sink);
        n += C;
    }
    while n < w.len() {
        rows::<S, X, T, K, R, 1>(simd, x, w, n, sink);
        n += 1;
    }
}

/// Rows of weights that are converted to f32 before they are multiplied.
pub(super) trait WideRows {
    fn len(&self) -> usize;

    /// Returns the stored bytes of a row.
    fn bytes(&self, row: usize) -> &[u8];

    /// Converts a row to f32, and fills the rest of its last vector with zeros.
    fn widen<S: Simd>(&self, simd: S, row: usize, to: &mut [[f32; LANES]]);
}

/// Rows of plain numbers.
struct Numbers<'a, W, T>(&'a W, PhantomData<T>);

impl<T: VectorElement, W: WeightRows<T>> WideRows for Numbers<'_, W, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    fn bytes(&self, row: usize) -> &[u8] {
        bytemuck::cast_slice(self.0.row(row))
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, simd: S, row: usize, to: &mut [[f32; LANES]]) {
        let (chunks, rest) = self.0.row(row).as_chunks::<LANES>();
        for (from, to) in chunks.iter().zip(to.iter_mut()) {
            simd.store(T::load(simd, from), to);
        }
        if let (false, Some(last)) = (rest.is_empty(), to.last_mut()) {
            simd.store(T::load(simd, &padded(rest)), last);
        }
    }
}

/// Computes the product like [`columns`], converting each block of w to f32 once for all tiles of rows of x.
#[inline(always)]
pub(super) fn widened<S: Simd, const R: usize, const C: usize>(
    simd: S,
    x: &impl WeightRows<f32>,
    w: &impl WideRows,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let depth = x.row(0).len();
    let stride = depth.next_multiple_of(LANES);
    let mut wide = Lines::zeros(C * stride);
    let mut n = 0;
    while n + C <= w.len() {
        wide_block::<S, R, C>(simd, x, w, n, &mut wide, sink);
        n += C;
    }
    while n < w.len() {
        wide_block::<S, R, 1>(simd, x, w, n, &mut wide, sink);
        n += 1;
    }
}

/// Multiplies all rows of x with the `C` rows of w that start at row `n`, converted to f32 in `wide`.
#[inline(always)]
fn wide_block<S: Simd, const R: usize, const C: usize>(
    simd: S,
    x: &impl WeightRows<f32>,
    w: &impl WideRows,
    n: usize,
    wide: &mut [f32],
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let depth = x.row(0).len();
    let stride = depth.next_multiple_of(LANES);
    for (c, wide) in wide.chunks_exact_mut(stride.max(1)).enumerate().take(C) {
        w.widen(simd, n + c, wide.as_chunks_mut().0);
    }
    let last = w.len().saturating_sub(1);
    let block = WeightBlock {
        rows: std::array::from_fn(|c| &wide[c * stride..][..depth]),
        first: n,
        next: std::array::from_fn(|c| w.bytes((n + C + c).min(last)).as_ptr()),
        next_bytes: (w.bytes(n).len() * LANES).checked_div(depth).unwrap_or(0),
    };
    tiles::<S, f32, f32, LANES, R, C>(simd, x, &block, sink);
}

/// Multiplies all rows of x with the `C` rows of w that start at row `n`.
#[inline(always)]
fn rows<S: Simd, X: Factor<T, K>, T: VectorElement, const K: usize, const R: usize, const C: usize>(
    simd: S,
    x: &impl WeightRows<X>,
    w: &impl WeightRows<T>,
    n: usize,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let block = WeightBlock {
        rows: std::array::from_fn(|c| w.row(n + c)),
        first: n,
        next: next::<T, C>(w, n + C),
        next_bytes: K * size_of::<T>(),
    };
    tiles::<S, X, T, K, R, C>(simd, x, &block, sink);
}

/// Returns the start addresses of `C` rows of `w` from row `n`; rows past the end repeat the last one.
#[inline(always)]
fn next<T, const C: usize>(w: &impl WeightRows<T>, n: usize) -> [*const u8; C] {
    let last = w.len().saturating_sub(1);
    std::array::from_fn(|c| w.row((n + c).min(last)).as_ptr().cast())
}

/// Multiplies all rows of x with a block of w.
#[inline(always)]
fn tiles<S: Simd, X: Factor<T, K>, T: VectorElement, const K: usize, const R: usize, const C: usize>(
    simd: S,
    x: &impl WeightRows<X>,
    w: &WeightBlock<'_, T, C>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    // The first tile prefetches the next rows of w: the hardware prefetcher cannot follow several rows at a
    // time.
    let mut m = 0;
    if R <= x.len() {
        tile::<S, X, T, K, R, C, true>(simd, x, m, w, sink);
        m += R;
    }
    while m + R <= x.len() {
        tile::<S, X, T, K, R, C, false>(simd, x, m, w, sink);
        m += R;
    }
    match x.len() - m {
        3 if R > 3 => tile::<S, X, T, K, 3, C, true>(simd, x, m, w, sink),
        2 if R > 2 => tile::<S, X, T, K, 2, C, true>(simd, x, m, w, sink),
        1 if R > 1 => tile::<S, X, T, K, 1, C, true>(simd, x, m, w, sink),
        _ => {}
    }
}

/// A block of `C` rows of w.
struct WeightBlock<'a, T, const C: usize> {
    rows: [&'a [T]; C],
    /// Index of the block's first row in w.
    first: usize,
    /// Start addresses of the next block's rows, which are prefetched, and the size in bytes of `K` of their
    /// elements.
    next: [*const u8; C],
    next_bytes: usize,
}

/// Multiplies the `R` rows of x that start at row `m` with a block of w.
#[inline(always)]
fn tile<
    S: Simd,
    X: Factor<T, K>,
    T: VectorElement,
    const K: usize,
    const R: usize,
    const C: usize,
    const FETCH: bool,
>(
    simd: S,
    x: &impl WeightRows<X>,
    m: usize,
    w: &WeightBlock<'_, T, C>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let x_rows: [&[X]; R] = std::array::from_fn(|r| x.row(m + r));
    let sums = dots::<S, X, T, K, R, C, FETCH>(simd, &x_rows, w);
    for (m, sums) in (m..).zip(&sums) {
        sink(m, w.first, sums);
    }
}

/// Computes `R` × `C` dot products.
#[inline(always)]
fn dots<
    S: Simd,
    X: Factor<T, K>,
    T: VectorElement,
    const K: usize,
    const R: usize,
    const C: usize,
    const FETCH: bool,
>(
    simd: S,
    x: &[&[X]; R],
    w: &WeightBlock<'_, T, C>,
) -> [[f32; C]; R] {
    let (next, next_bytes, w) = (w.next, w.next_bytes, &w.rows);
    let depth = x[0].len();
    let chunks = depth / K;
    let mut x_chunks: [&[[X; K]]; R] = [&[]; R];
    for r in 0..R {
        x_chunks[r] = &x[r].as_chunks().0[..chunks];
    }
    let mut w_chunks: [&[[T; K]]; C] = [&[]; C];
    for c in 0..C {
        w_chunks[c] = &w[c].as_chunks().0[..chunks];
    }

    let mut lanes = [[simd.splat(0.0); C]; R];
    for k in 0..chunks {
        let x: [X::Left<S>; R] = std::array::from_fn(|r| X::left(simd, &x_chunks[r][k]));
        for c in 0..C {
            if FETCH && C > 1 {
                simd.prefetch(next[c].wrapping_add(k * next_bytes));
            }
            let weight = X::right(simd, &w_chunks[c][k]);
            for r in 0..R {
                lanes[r][c] = X::multiply_add(simd, x[r], weight, lanes[r][c]);
            }
        }
    }
    // From here on the sums are in memory: loops that are too long to unroll must not keep the accumulators
    // above out of registers.
    let mut stored = [[[0.0; LANES]; C]; R];
    for r in 0..R {
        for c in 0..C {
            simd.store(lanes[r][c], &mut stored[r][c]);
        }
    }

    if chunks * K < depth {
        for r in 0..R {
            let x = X::left(simd, &padded(&x[r][chunks * K..depth]));
            for c in 0..C {
                let w = X::right(simd, &padded(&w[c][chunks * K..depth]));
                let lanes = X::multiply_add(simd, x, w, simd.load(&stored[r][c]));
                simd.store(lanes, &mut stored[r][c]);
            }
        }
    }
    let mut sums = [[0.0; C]; R];
    let (eights, rest) = stored.as_flattened().as_chunks::<8>();
    let (sums_of_eights, sums_of_rest) = sums.as_flattened_mut().as_chunks_mut::<8>();
    for (sums, stored) in sums_of_eights.iter_mut().zip(eights) {
        *sums = simd.sum8(std::array::from_fn(|i| simd.load(&stored[i])));
    }
    for (sum, stored) in sums_of_rest.iter_mut().zip(rest) {
        *sum = simd.sum(simd.load(stored));
    }
    sums
}

/// Computes one dot product, in the order of summation that all products use.
#[inline(always)]
pub(super) fn dot<S: Simd, T: VectorElement>(simd: S, x: &[f32], w: &[T]) -> f32 {
    let block = WeightBlock { rows: [w], first: 0, next: [w.as_ptr().cast()], next_bytes: 0 };
    dots::<S, f32, T, LANES, 1, 1, false>(simd, &[x], &block)[0][0]
}
