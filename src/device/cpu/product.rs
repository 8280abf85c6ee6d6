//! The row-invariant matrix product: `out[m][n] = Σ_k x[m][k] · w[n][k]`.
//!
//! Every dot product is taken alike. Lane l of 16 adds up k = l, l + 16, l + 32, … in this order,
//! with zeros after the end of the row, and then the lanes are added by the tree of [`Simd::sum`].
//! A tile of the product is so many independent dot products side by side, so neither the number
//! of rows nor the place of a row in a tile changes a bit of its result.

use super::simd::{Element, LANES, Simd, padded};

/// Rows of x for which weights should stay in the innermost caches; a multiple of the rows of a
/// tile.
pub(super) const TILE_ROWS: usize = 4;

/// Calls `sink(m, n, Σ_k x[m][k] · w[n][k])` for every m and n. All rows have the same length.
///
/// All rows of x pass over a few rows of w before the next ones are read: w streams from memory
/// once, x from the cache often.
#[inline(always)]
pub(super) fn products<S: Simd, T: Element>(
    simd: S,
    x: &[&[f32]],
    w: &[&[T]],
    sink: &mut impl FnMut(usize, usize, f32),
) {
    // Accumulators, and a row or column of operands beside them, fill the register file.
    if S::REGISTERS >= 32 {
        columns::<S, T, TILE_ROWS, 6>(simd, x, w, sink);
    } else if S::REGISTERS >= 8 {
        columns::<S, T, 2, 3>(simd, x, w, sink);
    } else {
        columns::<S, T, 1, 2>(simd, x, w, sink);
    }
}

/// The product in tiles of up to `R` rows of x and `C` rows of w.
#[inline(always)]
fn columns<S: Simd, T: Element, const R: usize, const C: usize>(
    simd: S,
    x: &[&[f32]],
    w: &[&[T]],
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let (blocks, rest) = w.as_chunks::<C>();
    for (block, w) in blocks.iter().enumerate() {
        rows::<S, T, R, C>(simd, x, w, block * C, sink);
    }
    for (n, w) in rest.iter().enumerate() {
        rows::<S, T, R, 1>(simd, x, &[w], blocks.len() * C + n, sink);
    }
}

/// All rows of x with `C` rows of w, the first of which is row `n` of the whole.
#[inline(always)]
fn rows<S: Simd, T: Element, const R: usize, const C: usize>(
    simd: S,
    x: &[&[f32]],
    w: &[&[T]; C],
    n: usize,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    let (blocks, rest) = x.as_chunks::<R>();
    for (block, x) in blocks.iter().enumerate() {
        emit(tile(simd, x, w), block * R, n, sink);
    }
    let m = blocks.len() * R;
    match rest {
        [a, b, c] => emit(tile(simd, &[a, b, c], w), m, n, sink),
        [a, b] => emit(tile(simd, &[a, b], w), m, n, sink),
        [a] => emit(tile(simd, &[a], w), m, n, sink),
        _ => {}
    }
}

#[inline(always)]
fn emit<const R: usize, const C: usize>(
    sums: [[f32; C]; R],
    m: usize,
    n: usize,
    sink: &mut impl FnMut(usize, usize, f32),
) {
    for (r, sums) in sums.into_iter().enumerate() {
        for (c, sum) in sums.into_iter().enumerate() {
            sink(m + r, n + c, sum);
        }
    }
}

/// `R` × `C` dot products.
#[inline(always)]
fn tile<S: Simd, T: Element, const R: usize, const C: usize>(
    simd: S,
    x: &[&[f32]; R],
    w: &[&[T]; C],
) -> [[f32; C]; R] {
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
        for c in 0..C {
            let weight = T::load(simd, &w_chunks[c][k]);
            for r in 0..R {
                lanes[r][c] = simd.mul_add(simd.load(&x_chunks[r][k]), weight, lanes[r][c]);
            }
        }
    }
    if chunks * LANES < depth {
        for c in 0..C {
            let weight = T::load(simd, &padded(&w[c][chunks * LANES..depth]));
            for r in 0..R {
                let x = simd.load(&padded(&x[r][chunks * LANES..depth]));
                lanes[r][c] = simd.mul_add(x, weight, lanes[r][c]);
            }
        }
    }

    let mut sums = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            sums[r][c] = simd.sum(lanes[r][c]);
        }
    }
    sums
}

/// One dot product, in the order of all of them.
#[inline(always)]
pub(super) fn dot<S: Simd, T: Element>(simd: S, x: &[f32], w: &[T]) -> f32 {
    tile(simd, &[x], &[w])[0][0]
}
