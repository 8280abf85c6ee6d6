//! The row-invariant matrix product: `out[m][n] = Σ_k x[m][k] · w[n][k]`.
//!
//! A general matrix product picks its order of summation by the number of rows; this one never does.
//! Every dot product is taken alike: lane l of 16 adds up k = l, l + 16, l + 32, … in this order (of bf16
//! elements on both sides, where the hardware multiplies them in pairs: k = 2l + 1, 2l, 2l + 33, 2l + 32,
//! …), with zeros after the end of the row, and then the lanes are added by the tree of [`Simd::sum`]. A
//! tile of the product is so many independent dot products side by side, so neither the number of rows nor
//! the place of a row in a tile changes a bit of its result.

use half::bf16;

use super::simd::{Element, LANES, PAIRS, Simd, padded};

/// Elements that multiply elements of `T`, `K` at a time.
pub(super) trait Factor<T: Element, const K: usize>: Element {
    /// `K` elements of this type in registers.
    type Left<S: Simd>: Copy;
    /// `K` elements of `T` in registers.
    type Right<S: Simd>: Copy;

    fn left<S: Simd>(simd: S, from: &[Self; K]) -> Self::Left<S>;
    fn right<S: Simd>(simd: S, from: &[T; K]) -> Self::Right<S>;
    fn multiply_add<S: Simd>(simd: S, x: Self::Left<S>, w: Self::Right<S>, to: S::Lanes) -> S::Lanes;
}

impl<T: Element> Factor<T, LANES> for f32 {
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

/// Rows of equal length, wherever they lie.
pub(super) trait Rows<T> {
    fn len(&self) -> usize;
    fn row(&self, index: usize) -> &[T];
}

impl<T> Rows<T> for &[&[T]] {
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
    /// From the first element that counts.
    pub(super) elements: &'a [T],
    /// From one row to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// `rows` rows from row `first` on.
    pub(super) fn rows_from(&self, first: usize, rows: usize) -> Self {
        Self { elements: self.elements.get(first * self.stride..).unwrap_or(&[]), rows, ..*self }
    }
}

impl<T> Rows<T> for Matrix<'_, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &[T] {
        &self.elements[index * self.stride..][..self.cols]
    }
}

/// Rows of x up to which a product is bound by how fast w streams from memory, and not by arithmetic.
const STREAMED_ROWS: usize = 2;

/// Calls `sink(m, n, Σ_k x[m][k] · w[n][k])` for every m and n. All rows have the same length.
///
/// All rows of x pass over a few rows of w before the next ones are read: w streams from memory
/// once, x from the cache often.
#[inline(always)]
pub(super) fn products<S: Simd, X: Factor<T, K>, T: Element, const K: usize>(
    simd: S,
    x: impl Rows<X>,
    w: impl Rows<T>,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    // One row of w after the other is what the hardware fetches ahead by itself, further than it can be asked to.
    if x.len() <= STREAMED_ROWS {
        return columns::<S, X, T, K, STREAMED_ROWS, 1>(simd, &x, &w, sink);
    }
    // Accumulators, and a row or column of operands beside them, fill the register file.
    if S::REGISTERS >= 32 {
        columns::<S, X, T, K, 4, 6>(simd, &x, &w, sink);
    } else if S::REGISTERS >= 8 {
        columns::<S, X, T, K, 2, 3>(simd, &x, &w, sink);
    } else {
        columns::<S, X, T, K, 1, 2>(simd, &x, &w, sink);
    }
}

/// The product in tiles of up to `R` rows of x and `C` rows of w.
#[inline(always)]
fn columns<S: Simd, X: Factor<T, K>, T: Element, const K: usize, const R: usize, const C: usize>(
    simd: S,
    x: &impl Rows<X>,
    w: &impl Rows<T>,
    sink: &mut impl FnMut(usize, usize, f32),
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

/// All rows of x with the `C` rows of w from row `n` on.
#[inline(always)]
fn rows<S: Simd, X: Factor<T, K>, T: Element, const K: usize, const R: usize, const C: usize>(
    simd: S,
    x: &impl Rows<X>,
    w: &impl Rows<T>,
    n: usize,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let w_rows: [&[T]; C] = std::array::from_fn(|c| w.row(n + c));
    // The first tile fetches the next rows of w: several at a time are more than the hardware follows.
    let ahead = match n + C < w.len() {
        true => (w.row(n + C).as_ptr() as isize).wrapping_sub(w_rows[0].as_ptr() as isize),
        false => 0,
    };
    let w = Block { rows: w_rows, first: n, ahead };
    let mut m = 0;
    if R <= x.len() {
        tile::<S, X, T, K, R, C, true>(simd, x, m, &w, sink);
        m += R;
    }
    while m + R <= x.len() {
        tile::<S, X, T, K, R, C, false>(simd, x, m, &w, sink);
        m += R;
    }
    match x.len() - m {
        3 if R > 3 => tile::<S, X, T, K, 3, C, true>(simd, x, m, &w, sink),
        2 if R > 2 => tile::<S, X, T, K, 2, C, true>(simd, x, m, &w, sink),
        1 if R > 1 => tile::<S, X, T, K, 1, C, true>(simd, x, m, &w, sink),
        _ => {}
    }
}

/// `C` rows of w.
struct Block<'a, T, const C: usize> {
    rows: [&'a [T]; C],
    /// The index of the first.
    first: usize,
    /// Where the block after this one is, relative to this one, in bytes.
    ahead: isize,
}

/// The `R` rows of x from row `m` on with a block of w.
#[inline(always)]
fn tile<
    S: Simd,
    X: Factor<T, K>,
    T: Element,
    const K: usize,
    const R: usize,
    const C: usize,
    const FETCH: bool,
>(
    simd: S,
    x: &impl Rows<X>,
    m: usize,
    w: &Block<'_, T, C>,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let x_rows: [&[X]; R] = std::array::from_fn(|r| x.row(m + r));
    let sums = dots::<S, X, T, K, R, C, FETCH>(simd, &x_rows, w);
    for (m, sums) in (m..).zip(sums) {
        for (n, sum) in (w.first..).zip(sums) {
            sink(m, n, sum);
        }
    }
}

/// `R` × `C` dot products.
#[inline(always)]
fn dots<
    S: Simd,
    X: Factor<T, K>,
    T: Element,
    const K: usize,
    const R: usize,
    const C: usize,
    const FETCH: bool,
>(
    simd: S,
    x: &[&[X]; R],
    w: &Block<'_, T, C>,
) -> [[f32; C]; R] {
    let (ahead, w) = (w.ahead, &w.rows);
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
                simd.prefetch(w_chunks[c][k].as_ptr().wrapping_byte_offset(ahead));
            }
            let weight = X::right(simd, &w_chunks[c][k]);
            for r in 0..R {
                lanes[r][c] = X::multiply_add(simd, x[r], weight, lanes[r][c]);
            }
        }
    }
    // From here on in memory: loops over it that are too long to unroll must not keep the accumulators
    // above out of registers.
    let mut stored = [[[0.0; LANES]; C]; R];
    for r in 0..R {
        for c in 0..C {
            simd.store(lanes[r][c], &mut stored[r][c]);
        }
    }

    let mut sums = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            let mut lanes = simd.load(&stored[r][c]);
            if chunks * K < depth {
                let x = X::left(simd, &padded(&x[r][chunks * K..depth]));
                lanes = X::multiply_add(simd, x, X::right(simd, &padded(&w[c][chunks * K..depth])), lanes);
            }
            sums[r][c] = simd.sum(lanes);
        }
    }
    sums
}

/// One dot product, in the order of all of them.
#[inline(always)]
pub(super) fn dot<S: Simd, T: Element>(simd: S, x: &[f32], w: &[T]) -> f32 {
    dots::<S, f32, T, LANES, 1, 1, false>(simd, &[x], &Block { rows: [w], first: 0, ahead: 0 })[0][0]
}
