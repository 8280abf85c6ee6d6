//! The matrix product of quantised weights and activations that are rounded to 8 bits.
//!
//! Every 32 or 16 weights w = s · q + o share a scale s and an offset o, and every 256 activations x = d · p share a scale
//! d. So a group of 256 products sums to d · Σ (s · Σ q · p + o · Σ p), where the inner sums are exact integers. Lane l adds
//! four products of bytes at a time, chunk after chunk and group after group, and then the tree of [`Simd::sum`] adds the
//! lanes: a result depends on its own row of activations and its own row of weights only.

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use super::blocks::{Q4K, Q4One, Q4Zero, Q5K, Q6K, Q8Zero, SubBlocks, array};
use super::rounded::{CHUNKS, GROUP, Group, RoundedRows};
use super::simd::{LANES, Simd};

/// A group of 256 weights of one row, or the first chunks of it.
pub(super) struct WeightGroup<S: Simd> {
    /// The integers q: unsigned below 128, or signed with [`Integers::SIGNED`].
    quants: [S::Bytes; CHUNKS],
    /// The scale s of the weights that each lane multiplies.
    scales: [S::Lanes; CHUNKS],
    /// The offset o of every 16 weights in a row.
    offsets: S::Lanes,
}

/// A block format as integers, scales and offsets.
pub(super) trait Integers<const N: usize> {
    /// Number of weights per block of `N` bytes: 256, or 32.
    const BLOCK: usize;
    /// Whether the integers are signed bytes.
    const SIGNED: bool = false;
    /// Whether weights have an offset.
    const OFFSETS: bool = true;

    /// Unpacks the weights of one block of 256, or of up to eight blocks of 32; weights beyond the last block are 0.
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; N]]) -> WeightGroup<S>;
}

impl Integers<34> for Q8Zero {
    const BLOCK: usize = 32;
    const SIGNED: bool = true;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; 34]]) -> WeightGroup<S> {
        let mut weights = WeightGroup::zero(simd);
        for c in 0..CHUNKS {
            let [first, second] = pair(blocks, c);
            weights.quants[c] = simd.join(array(first, 2), array(second, 2));
            weights.scales[c] =
                simd.halves(simd.splat_f16(*array(first, 0)), simd.splat_f16(*array(second, 0)));
        }
        weights
    }
}

impl Integers<18> for Q4Zero {
    const BLOCK: usize = 32;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; 18]]) -> WeightGroup<S> {
        let mut weights = WeightGroup::zero(simd);
        for c in 0..CHUNKS {
            let [first, second] = pair(blocks, c);
            weights.quants[c] = simd.nibbles(array(first, 2), array(second, 2));
            weights.scales[c] =
                simd.halves(simd.splat_f16(*array(first, 0)), simd.splat_f16(*array(second, 0)));
        }
        weights.offsets = simd.mul(of_blocks(simd, blocks, 0), simd.splat(-8.0));
        weights
    }
}

impl Integers<20> for Q4One {
    const BLOCK: usize = 32;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; 20]]) -> WeightGroup<S> {
        let mut weights = WeightGroup::zero(simd);
        for c in 0..CHUNKS {
            let [first, second] = pair(blocks, c);
            weights.quants[c] = simd.nibbles(array(first, 4), array(second, 4));
            weights.scales[c] =
                simd.halves(simd.splat_f16(*array(first, 0)), simd.splat_f16(*array(second, 0)));
        }
        weights.offsets = of_blocks(simd, blocks, 2);
        weights
    }
}

impl Integers<144> for Q4K {
    const BLOCK: usize = 256;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; 144]]) -> WeightGroup<S> {
        let mut weights = WeightGroup::zero(simd);
        let [block] = blocks else { return weights };
        weights.set_sub_blocks(simd, &SubBlocks::new(simd, array(block, 0)));
        for c in 0..CHUNKS {
            let bytes: &[u8; 32] = array(block, 16 + 32 * c);
            let (mut first, mut second) = ([0; 32], [0; 32]);
            for (i, &byte) in bytes.iter().enumerate() {
                (first[i], second[i]) = (byte & 0xf, byte >> 4);
            }
            weights.quants[c] = simd.join(&first, &second);
        }
        weights
    }
}

impl Integers<176> for Q5K {
    const BLOCK: usize = 256;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; 176]]) -> WeightGroup<S> {
        let mut weights = WeightGroup::zero(simd);
        let [block] = blocks else { return weights };
        weights.set_sub_blocks(simd, &SubBlocks::new(simd, array(block, 0)));
        weights.quants = [
            five_bits::<S, 0>(simd, block),
            five_bits::<S, 1>(simd, block),
            five_bits::<S, 2>(simd, block),
            five_bits::<S, 3>(simd, block),
        ];
        weights
    }
}

impl Integers<210> for Q6K {
    const BLOCK: usize = 256;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, blocks: &[[u8; 210]]) -> WeightGroup<S> {
        let mut weights = WeightGroup::zero(simd);
        let [block] = blocks else { return weights };
        let d = simd.splat_f16(*array(block, 208));
        let scales = simd.mul(simd.to_lanes(simd.load_i8(array(block, 192))), d);
        weights.offsets = simd.mul(scales, simd.splat(-32.0));
        let mut stored = [0.0; LANES];
        simd.store(scales, &mut stored);
        for c in 0..CHUNKS {
            // A chunk has four sub-blocks of 16 weights, so four lanes share a scale.
            let mut of_lanes = [0.0; LANES];
            for (lane, scale) in of_lanes.iter_mut().enumerate() {
                *scale = stored[4 * c + lane / 4];
            }
            weights.scales[c] = simd.load(&of_lanes);
        }
        for half in 0..2 {
            let low_bits: &[u8; 64] = array(block, 64 * half);
            let high_bits: &[u8; 32] = array(block, 128 + 32 * half);
            // The low halves of the bytes of low bits come first. A byte of high bits has two bits of each of four
            // weights, 32 apart.
            let mut quants = [[0; 32]; 4];
            for (i, &high) in high_bits.iter().enumerate() {
                let (first, second) = (low_bits[i], low_bits[32 + i]);
                quants[0][i] = first & 0xf | high << 4 & 0x30;
                quants[1][i] = second & 0xf | high << 2 & 0x30;
                quants[2][i] = first >> 4 | high & 0x30;
                quants[3][i] = second >> 4 | high >> 2 & 0x30;
            }
            weights.quants[2 * half] = simd.join(&quants[0], &quants[1]);
            weights.quants[2 * half + 1] = simd.join(&quants[2], &quants[3]);
        }
        weights
    }
}

impl<S: Simd> WeightGroup<S> {
    #[inline(always)]
    fn zero(simd: S) -> Self {
        let zero = simd.splat(0.0);
        Self { quants: [simd.join(&[0; 32], &[0; 32]); CHUNKS], scales: [zero; CHUNKS], offsets: zero }
    }

    /// Sets the scales and offsets of eight sub-blocks of 32 weights.
    #[inline(always)]
    fn set_sub_blocks(&mut self, simd: S, sub_blocks: &SubBlocks) {
        let mut offsets = [0.0; LANES];
        for c in 0..CHUNKS {
            let (first, second) = (sub_blocks.scales[2 * c], sub_blocks.scales[2 * c + 1]);
            self.scales[c] = simd.halves(simd.splat(first), simd.splat(second));
            for (i, offset) in offsets[4 * c..4 * c + 4].iter_mut().enumerate() {
                *offset = sub_blocks.offsets[8 + 2 * c + i / 2];
            }
        }
        self.offsets = simd.load(&offsets);
    }
}

/// Returns blocks 2c and 2c + 1; blocks after the last one are zeros.
#[inline(always)]
fn pair<const N: usize>(blocks: &[[u8; N]], c: usize) -> [&[u8; N]; 2] {
    let block = |index: usize| blocks.get(index).unwrap_or(&[0; N]);
    [block(2 * c), block(2 * c + 1)]
}

/// Unpacks the 5-bit integers of sub-blocks 2`C` and 2`C` + 1.
#[inline(always)]
fn five_bits<S: Simd, const C: usize>(simd: S, block: &[u8; 176]) -> S::Bytes {
    let (low_bits, high_bits): (&[u8; 32], &[u8; 32]) = (array(block, 48 + 32 * C), array(block, 16));
    let (mut first, mut second) = ([0; 32], [0; 32]);
    for (i, (&low, &high)) in low_bits.iter().zip(high_bits).enumerate() {
        // Bit j of a byte of high bits belongs to sub-block j, and moves to bit 4.
        first[i] = low & 0xf | (high >> (2 * C) & 1) << 4;
        second[i] = low >> 4 | (high >> (2 * C + 1) & 1) << 4;
    }
    simd.join(&first, &second)
}

/// Returns the f16 number at byte `at` of each of up to eight blocks of 32 weights, twice.
#[inline(always)]
fn of_blocks<S: Simd, const N: usize>(simd: S, blocks: &[[u8; N]], at: usize) -> S::Lanes {
    let mut numbers = [f16::ZERO; LANES];
    for (numbers, block) in numbers.as_chunks_mut::<2>().0.iter_mut().zip(blocks) {
        *numbers = [f16::from_le_bytes(*array(block, at)); 2];
    }
    simd.load_f16(&numbers)
}

/// Rows of a quantised matrix, whose blocks have `N` bytes.
pub(super) struct IntegerRows<'a, F, const N: usize> {
    blocks: &'a [[u8; N]],
    /// Number of blocks per row.
    per_row: usize,
    rows: usize,
    format: PhantomData<F>,
}

impl<'a, F: Integers<N>, const N: usize> IntegerRows<'a, F, N> {
    /// Views the bytes of `rows` rows of `columns` weights, which are whole blocks.
    pub(super) fn new((bytes, columns, rows): (&'a [u8], usize, usize)) -> Self {
        Self { blocks: bytes.as_chunks().0, per_row: columns / F::BLOCK, rows, format: PhantomData }
    }

    /// Returns `rows` rows, starting at row `first`.
    pub(super) fn rows_from(&self, first: usize, rows: usize) -> Self {
        let blocks = self.blocks.get(first * self.per_row..).unwrap_or(&[]);
        Self { blocks, per_row: self.per_row, rows, format: PhantomData }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &'a [[u8; N]] {
        self.blocks.get(row * self.per_row..).and_then(|rows| rows.get(..self.per_row)).unwrap_or(&[])
    }
}

/// The most rows of x in a tile.
const TILE_ROWS: usize = 8;

/// Number of rows of w that a tile of rows of x passes before the next tile, if there are several tiles.
const COLUMNS: usize = 12;

/// Number of groups of a tile's rows that pass these rows of w at a time: the groups stay in the first-level cache.
const DEPTH: usize = 6;

/// Calls `sink(m, n, sums)`, where `sums[i]` is the product of row `first + m` of x and row `n + i` of w, for `rows` rows of x
/// and all rows of w.
#[inline(always)]
pub(super) fn rounded_products<S: Simd, F: Integers<N>, const N: usize>(
    simd: S,
    x: (&RoundedRows, usize, usize),
    w: &IntegerRows<'_, F, N>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    // The totals of all rows of x, and a group of weights, fit the register file.
    match x.2 {
        0 => {}
        1 => few::<S, F, N, 1>(simd, x, w, sink),
        2 if S::REGISTERS >= 8 => few::<S, F, N, 2>(simd, x, w, sink),
        3 if S::REGISTERS >= 32 => few::<S, F, N, 3>(simd, x, w, sink),
        4 if S::REGISTERS >= 8 => few::<S, F, N, 4>(simd, x, w, sink),
        5 if S::REGISTERS >= 32 => few::<S, F, N, 5>(simd, x, w, sink),
        6 if S::REGISTERS >= 32 => few::<S, F, N, 6>(simd, x, w, sink),
        7 if S::REGISTERS >= 32 => few::<S, F, N, 7>(simd, x, w, sink),
        TILE_ROWS if S::REGISTERS >= 32 => few::<S, F, N, TILE_ROWS>(simd, x, w, sink),
        _ => many::<S, F, N>(simd, x, w, sink),
    }
}

/// Multiplies `R` rows of x with all rows of w, which are read in order.
#[inline(always)]
fn few<S: Simd, F: Integers<N>, const N: usize, const R: usize>(
    simd: S,
    (x, first, _): (&RoundedRows, usize, usize),
    w: &IntegerRows<'_, F, N>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let x_rows = rows_of_tile::<R>(x, first, R);
    for n in 0..w.rows {
        let mut totals = [simd.splat(0.0); R];
        for (g, blocks) in w.row(n).chunks(GROUP / F::BLOCK).enumerate() {
            totals = add_group::<S, F, N, R>(simd, &x_rows, g, blocks, totals);
        }
        for (r, total) in totals.into_iter().enumerate() {
            sink(r, n, &[simd.sum(total)]);
        }
    }
}

/// Multiplies any number of rows of x, tile after tile, with a few rows of w before the next rows of w.
#[inline(always)]
fn many<S: Simd, F: Integers<N>, const N: usize>(
    simd: S,
    (x, first, rows): (&RoundedRows, usize, usize),
    w: &IntegerRows<'_, F, N>,
    sink: &mut impl FnMut(usize, usize, &[f32]),
) {
    let mut totals = [[simd.splat(0.0); TILE_ROWS]; COLUMNS];
    for n in (0..w.rows).step_by(COLUMNS) {
        let columns = n..w.rows.min(n + COLUMNS);
        let mut m = 0;
        while m < rows {
            let (left, columns) = ((x, first, m..rows), (w, columns.clone()));
            m += match rows - m {
                1 => tile::<S, F, N, 1>(simd, left, columns, &mut totals, sink),
                2 if S::REGISTERS >= 8 => tile::<S, F, N, 2>(simd, left, columns, &mut totals, sink),
                3..=4 if S::REGISTERS >= 32 => tile::<S, F, N, 4>(simd, left, columns, &mut totals, sink),
                5..=6 if S::REGISTERS >= 32 => tile::<S, F, N, 6>(simd, left, columns, &mut totals, sink),
                _ if S::REGISTERS >= 32 => tile::<S, F, N, TILE_ROWS>(simd, left, columns, &mut totals, sink),
                _ if S::REGISTERS >= 8 => tile::<S, F, N, 4>(simd, left, columns, &mut totals, sink),
                _ => tile::<S, F, N, 1>(simd, left, columns, &mut totals, sink),
            };
        }
    }
}

/// Multiplies up to `R` rows of x with up to [`COLUMNS`] rows of w, and returns the number of rows of x. `totals` is scratch
/// memory.
#[inline(always)]
fn tile<S: Simd, F: Integers<N>, const N: usize, const R: usize>(
    simd: S,
    (x, first, rows): (&RoundedRows, usize, Range<usize>),
    (w, columns): (&IntegerRows<'_, F, N>, Range<usize>),
    totals: &mut [[S::Lanes; TILE_ROWS]; COLUMNS],
    sink: &mut impl FnMut(usize, usize, &[f32]),
) -> usize {
    let count = rows.len().min(R);
    let x_rows = rows_of_tile::<R>(x, first + rows.start, count);
    let groups = w.per_row.div_ceil(GROUP / F::BLOCK);
    for start in (0..groups).step_by(DEPTH) {
        for (n, totals) in columns.clone().zip(totals.iter_mut()) {
            let mut sums = [simd.splat(0.0); R];
            if start > 0 {
                sums.copy_from_slice(&totals[..R]);
            }
            let blocks = w.row(n).get(start * (GROUP / F::BLOCK)..).unwrap_or(&[]);
            for (g, blocks) in (start..).zip(blocks.chunks(GROUP / F::BLOCK).take(DEPTH)) {
                sums = add_group::<S, F, N, R>(simd, &x_rows, g, blocks, sums);
            }
            totals[..R].copy_from_slice(&sums);
        }
    }
    let mut sums = [[0.0; COLUMNS]; R];
    for (c, totals) in totals.iter().enumerate().take(columns.len()) {
        if R == TILE_ROWS {
            for (sums, sum) in sums.iter_mut().zip(simd.sum8(*totals)) {
                sums[c] = sum;
            }
        } else {
            for (sums, &total) in sums.iter_mut().zip(totals) {
                sums[c] = simd.sum(total);
            }
        }
    }
    for (m, sums) in (rows.start..).zip(&sums).take(count) {
        sink(m, columns.start, &sums[..columns.len()]);
    }
    count
}

/// Returns `R` rows of x from row `first` on. Rows past the first `count` repeat the last of them, and their results are
/// dropped.
#[inline(always)]
fn rows_of_tile<const R: usize>(x: &RoundedRows, first: usize, count: usize) -> [&[Group]; R] {
    let mut rows: [&[Group]; R] = [&[]; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = x.row(first + r.min(count - 1));
    }
    rows
}

/// Adds the products of group `g`, whose weights are `blocks`, to the totals of each row of x.
#[inline(always)]
fn add_group<S: Simd, F: Integers<N>, const N: usize, const R: usize>(
    simd: S,
    x: &[&[Group]; R],
    g: usize,
    blocks: &[[u8; N]],
    totals: [S::Lanes; R],
) -> [S::Lanes; R] {
    let weights = F::unpack(simd, blocks);
    // A group is shorter only at the end of a row, and only for blocks of 32 weights.
    match blocks.len() * F::BLOCK {
        GROUP => add_chunks::<S, F, N, R, CHUNKS>(simd, x, g, &weights, totals),
        _ if F::BLOCK == GROUP => totals,
        1..=64 => add_chunks::<S, F, N, R, 1>(simd, x, g, &weights, totals),
        65..=128 => add_chunks::<S, F, N, R, 2>(simd, x, g, &weights, totals),
        _ => add_chunks::<S, F, N, R, CHUNKS>(simd, x, g, &weights, totals),
    }
}

/// Adds the products of the first `C` chunks of group `g` to the totals of each row of x.
#[inline(always)]
fn add_chunks<S: Simd, F: Integers<N>, const N: usize, const R: usize, const C: usize>(
    simd: S,
    x: &[&[Group]; R],
    g: usize,
    weights: &WeightGroup<S>,
    mut totals: [S::Lanes; R],
) -> [S::Lanes; R] {
    let mut signed = [simd.signed(weights.quants[0]); C];
    for (signed, &quants) in signed.iter_mut().zip(&weights.quants) {
        *signed = simd.signed(quants);
    }
    for r in 0..R {
        let Some(group) = x[r].get(g) else { continue };
        let mut sum = simd.splat(0.0);
        for (c, &signed) in signed.iter().enumerate() {
            let p = &group.quants[c];
            let products = if F::SIGNED {
                simd.dot_signed(signed, p, &group.plus_128[c])
            } else {
                simd.dot_bytes(weights.quants[c], simd.load_bytes(p))
            };
            sum = simd.mul_add(simd.to_lanes(products), weights.scales[c], sum);
        }
        if F::OFFSETS {
            sum = simd.mul_add(simd.load(&group.sums), weights.offsets, sum);
        }
        totals[r] = simd.mul_add(sum, simd.splat(group.scale), totals[r]);
    }
    totals
}
