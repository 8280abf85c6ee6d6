//! The row-invariant matrix product: `out[m][n] = Σ_k x[m][k] · w[n][k]`.
//!
//! A general matrix product picks its order of summation by the number of rows; this one never does.
//! Every dot product is taken alike: lane l of 16 adds up k = l, l + 16, l + 32, … in this order, with
//! zeros after the end of the row, and then the lanes are added by the tree of [`Simd::sum`]. A tile of
//! the product is so many independent dot products side by side, so neither the number of rows nor the
//! place of a row in a tile changes a bit of its result.

use super::simd::{Element, LANES, Simd, padded};

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

/// Calls `sink(m, n, Σ_k x[m][k] · w[n][k])` for every m and n. All rows have the same length.
///
/// All rows of x pass over a few rows of w before the next ones are read: w streams from memory
/// once, x from the cache often.
#[inline(always)]
pub(super) fn products<S: Simd, T: Element>(
    simd: S,
    x: impl Rows<f32>,
    w: impl Rows<T>,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    // Accumulators, and a row or column of operands beside them, fill the register file.
    if S::REGISTERS >= 32 {
        columns::<S, T, 4, 6>(simd, &x, &w, sink);
    } else if S::REGISTERS >= 8 {
        columns::<S, T, 2, 3>(simd, &x, &w, sink);
    } else {
        columns::<S, T, 1, 2>(simd, &x, &w, sink);
    }
}

/// The product in tiles of up to `R` rows of x and `C` rows of w.
#[inline(always)]
fn columns<S: Simd, T: Element, const R: usize, const C: usize>(
    simd: S,
    x: &impl Rows<f32>,
    w: &impl Rows<T>,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let mut n = 0;
    while n + C <= w.len() {
        rows::<S, T, R, C>(simd, x, w, n, sink);
        n += C;
    }
    while n < w.len() {
        rows::<S, T, R, 1>(simd, x, w, n, sink);
        n += 1;
    }
}

/// All rows of x with the `C` rows of w from row `n` on.
#[inline(always)]
fn rows<S: Simd, T: Element, const R: usize, const C: usize>(
    simd: S,
    x: &impl Rows<f32>,
    w: &impl Rows<T>,
    n: usize,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let w_rows: [&[T]; C] = std::array::from_fn(|c| w.row(n + c));
    // The first tile fetches the next rows of w, which the hardware would not find in time.
    let ahead = match n + C < w.len() {
        true => (w.row(n + C).as_ptr() as isize).wrapping_sub(w_rows[0].as_ptr() as isize),
        false => 0,
    };
    let w = Block { rows: w_rows, first: n, ahead };
    let mut m = 0;
    if R <= x.len() {
        tile::<S, T, R, C, true>(simd, x, m, &w, sink);
        m += R;
    }
    while m + R <= x.len() {
        tile::<S, T, R, C, false>(simd, x, m, &w, sink);
        m += R;
    }
    match x.len() - m {
        3 if R > 3 => tile::<S, T, 3, C, true>(simd, x, m, &w, sink),
        2 if R > 2 => tile::<S, T, 2, C, true>(simd, x, m, &w, sink),
        1 if R > 1 => tile::<S, T, 1, C, true>(simd, x, m, &w, sink),
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
fn tile<S: Simd, T: Element, const R: usize, const C: usize, const FETCH: bool>(
    simd: S,
    x: &impl Rows<f32>,
    m: usize,
    w: &Block<'_, T, C>,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let x_rows: [&[f32]; R] = std::array::from_fn(|r| x.row(m + r));
    let sums = dots::<S, T, R, C, FETCH>(simd, &x_rows, w);
    for (m, sums) in (m..).zip(sums) {
        for (n, sum) in (w.first..).zip(sums) {
            sink(m, n, sum);
        }
    }
}

/// `R` × `C` dot products.
#[inline(always)]
fn dots<S: Simd, T: Element, const R: usize, const C: usize, const FETCH: bool>(
    simd: S,
    x: &[&[f32]; R],
    w: &Block<'_, T, C>,
) -> [[f32; C]; R] {
    let (ahead, w) = (w.ahead, &w.rows);
    let depth = x[0].len();
    let chunks = depth / LANES;
    let mut x_chunks: [&[[f32; LANES]]; R] = [&[]; R];
    for r in 0..R {
        x_chunks[r] = &x[r].as_chunks().0[..chunks];
    }
    let mut w_chunks: [&[[T; LANES]]; C] = [&[]; C];
    for c in 0..C {
        w_chunks[c] = &w[c].as_chunks().0[..chunks];
    }

    let mut lanes = [[simd.splat(0.0); C]; R];
    for k in 0..chunks {
        let mut x = [simd.splat(0.0); R];
        for r in 0..R {
            x[r] = simd.load(&x_chunks[r][k]);
        }
        for c in 0..C {
            if FETCH {
                simd.prefetch(w_chunks[c][k].as_ptr().wrapping_byte_offset(ahead));
            }
            let weight = T::load(simd, &w_chunks[c][k]);
            for r in 0..R {
                lanes[r][c] = simd.mul_add(x[r], weight, lanes[r][c]);
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
            if chunks * LANES < depth {
                let x = simd.load(&padded(&x[r][chunks * LANES..depth]));
                lanes = simd.mul_add(x, T::load(simd, &padded(&w[c][chunks * LANES..depth])), lanes);
            }
            sums[r][c] = simd.sum(lanes);
        }
    }
    sums
}

/// One dot product, in the order of all of them.
#[inline(always)]
pub(super) fn dot<S: Simd, T: Element>(simd: S, x: &[f32], w: &[T]) -> f32 {
    dots::<S, T, 1, 1, false>(simd, &[x], &Block { rows: [w], first: 0, ahead: 0 })[0][0]
}
