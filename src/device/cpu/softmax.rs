//! Running softmax over tiles of scores and values (online softmax, arXiv 1805.02867).

use super::simd::{LANES, Simd, VectorElement, exp, padded};
use crate::layout::MAX_BLOCK_SIZE;

/// Positions per tile. A mask group is one tile, whatever its size.
pub(super) const TILE: usize = 64;

const _: () = assert!(TILE >= MAX_BLOCK_SIZE && TILE.is_multiple_of(LANES));

/// The softmax-weighted sum of the values seen so far, relative to the largest score so far.
pub(super) struct Softmax {
    max: f32,
    /// Sum of the weights: Σ exp(score − max).
    sum: f32,
    /// The factor on `weighted` before the next values are added.
    rescale: f32,
    /// The weighted sum of the values, Σ exp(score − max) · value, padded with zeros from head_dim to whole
    /// vectors.
    weighted: Vec<[f32; LANES]>,
}

impl Softmax {
    pub(super) fn new(dim: usize) -> Self {
        let weighted = vec![[0.0; LANES]; dim.div_ceil(LANES)];
        Self { max: f32::NEG_INFINITY, sum: 0.0, rescale: 1.0, weighted }
    }

    /// Turns the first `visible` scores of a tile into weights, and the other scores into 0. The caller must
    /// call [`accumulate`] next.
    #[inline(always)]
    pub(super) fn weigh<S: Simd>(&mut self, simd: S, scores: &mut [f32; TILE], visible: usize) {
        scores[visible..].fill(f32::NEG_INFINITY);
        let mut max = simd.splat(f32::NEG_INFINITY);
        for scores in scores.as_chunks().0 {
            // For a NaN and a maximum, `max` returns the maximum; the weight of a NaN is NaN in any case.
            max = simd.max(simd.load(scores), max);
        }
        let mut lanes = [0.0; LANES];
        simd.store(max, &mut lanes);
        let mut max = self.max;
        for lane in lanes {
            max = if lane > max { lane } else { max };
        }
        self.rescale = 1.0;
        if max == f32::NEG_INFINITY {
            // No position has weight so far, because all scores were −∞. A NaN among the scores still counts.
            max = 0.0;
        } else if max > self.max {
            self.rescale = (self.max - max).exp();
        }
        let (mut sum, shift) = (simd.splat(0.0), simd.splat(max));
        for scores in scores.as_chunks_mut().0 {
            let weights = exp(simd, simd.sub(simd.load(scores), shift));
            sum = simd.add(sum, weights);
            simd.store(weights, scores);
        }
        self.sum = self.sum * self.rescale + simd.sum(sum);
        self.max = if max > self.max && self.sum != 0.0 { max } else { self.max };
    }

    /// Resets the softmax to its initial state.
    pub(super) fn clear(&mut self) {
        (self.max, self.sum, self.rescale) = (f32::NEG_INFINITY, 0.0, 1.0);
        self.weighted.fill([0.0; LANES]);
    }

    /// Adds the values that `other` has seen; they come after the values that `self` has seen.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.sum == 0.0 {
            return;
        }
        if self.sum == 0.0 {
            (self.max, self.sum) = (other.max, other.sum);
            self.weighted.copy_from_slice(&other.weighted);
            return;
        }
        let max = if other.max > self.max { other.max } else { self.max };
        let (mine, others) = ((self.max - max).exp(), (other.max - max).exp());
        self.max = max;
        self.sum = self.sum * mine + other.sum * others;
        let added = other.weighted.as_flattened();
        for (sum, added) in self.weighted.as_flattened_mut().iter_mut().zip(added) {
            *sum = *sum * mine + added * others;
        }
    }

    /// Writes the weighted mean of the values; zeros if no value had weight.
    pub(super) fn finish(&self, out: &mut [f32]) {
        let scale = if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum };
        for (out, sum) in out.iter_mut().zip(self.weighted.as_flattened()) {
            *out = sum * scale;
        }
    }
}

/// Adds values to softmaxes that see the same values: `weighted = weighted · rescale + Σ_i weights[i] ·
/// values[i]`, i ascending.
///
/// The order of a sum does not depend on the number of softmaxes that share the loads.
#[inline(always)]
pub(super) fn accumulate<S: Simd, T: VectorElement>(
    simd: S,
    softmaxes: &mut [Softmax],
    weights: &[[f32; TILE]],
    values: &[&[T]],
) {
    if values.is_empty() {
        return;
    }
    let in_fours = if S::REGISTERS >= 32 { softmaxes.len() / 4 * 4 } else { 0 };
    let (fours, ones) = softmaxes.split_at_mut(in_fours);
    let (weights_of_fours, weights_of_ones) = weights.split_at(in_fours);
    for (four, weights) in fours.as_chunks_mut::<4>().0.iter_mut().zip(weights_of_fours.as_chunks().0) {
        add_values::<S, T, 4, 4>(simd, four, weights, values);
    }
    for (one, weights) in ones.as_chunks_mut::<1>().0.iter_mut().zip(weights_of_ones.as_chunks().0) {
        add_values::<S, T, 1, 4>(simd, one, weights, values);
    }
}

/// Adds values to `R` softmaxes, `C` vectors of sixteen lanes of each value at a time.
#[inline(always)]
fn add_values<S: Simd, T: VectorElement, const R: usize, const C: usize>(
    simd: S,
    softmaxes: &mut [Softmax; R],
    weights: &[[f32; TILE]; R],
    values: &[&[T]],
) {
    let whole = values[0].len() / LANES;
    let mut first = 0;
    while first + C <= whole {
        add_columns::<S, T, R, C>(simd, softmaxes, weights, values, first);
        first += C;
    }
    while first < whole {
        add_columns::<S, T, R, 1>(simd, softmaxes, weights, values, first);
        first += 1;
    }
    if values[0].len() > whole * LANES {
        for (softmax, weights) in softmaxes.iter_mut().zip(weights) {
            let mut sum = simd.mul(simd.load(&softmax.weighted[whole]), simd.splat(softmax.rescale));
            for (value, &weight) in values.iter().zip(weights) {
                let value = T::load(simd, &padded(&value[whole * LANES..]));
                sum = simd.mul_add(simd.splat(weight), value, sum);
            }
            simd.store(sum, &mut softmax.weighted[whole]);
        }
    }
}

/// Adds vectors `first`..`first + C` of each value to `R` softmaxes.
#[inline(always)]
fn add_columns<S: Simd, T: VectorElement, const R: usize, const C: usize>(
    simd: S,
    softmaxes: &mut [Softmax; R],
    weights: &[[f32; TILE]; R],
    values: &[&[T]],
    first: usize,
) {
    let mut sums = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        let rescale = simd.splat(softmaxes[r].rescale);
        for (sum, weighted) in sums[r].iter_mut().zip(&softmaxes[r].weighted[first..]) {
            *sum = simd.mul(simd.load(weighted), rescale);
        }
    }
    for (i, value) in values[..values.len().min(TILE)].iter().enumerate() {
        let value = &value.as_chunks().0[first..first + C];
        let mut lanes = [simd.splat(0.0); C];
        for c in 0..C {
            lanes[c] = T::load(simd, &value[c]);
        }
        for r in 0..R {
            let weight = simd.splat(weights[r][i]);
            for c in 0..C {
                sums[r][c] = simd.mul_add(weight, lanes[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        for (sum, weighted) in sums[r].iter().zip(&mut softmaxes[r].weighted[first..]) {
            simd.store(*sum, weighted);
        }
    }
}
