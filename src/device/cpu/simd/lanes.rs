//! Sixteen f32 lanes: the operations that every instruction set has, and code that is generic over them.

use half::{bf16, f16};

/// Lanes of a vector.
pub(in crate::device::cpu) const LANES: usize = 16;

/// Elements of bf16 that are multiplied in pairs, a pair a lane.
pub(in crate::device::cpu) const PAIRS: usize = 2 * LANES;

/// Code to be compiled once for each instruction set.
///
/// `run` and every generic function it calls are `#[inline(always)]`, so that they end up inside
/// the function that enables the instruction set; for the same reason they do their vector
/// arithmetic in loops rather than in closures.
pub(in crate::device::cpu) trait Kernel {
    type Output;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Operations on sixteen f32 lanes.
pub(in crate::device::cpu) trait Simd: Copy {
    /// The sixteen lanes.
    type Lanes: Copy;

    /// How many `Lanes` fit the register file.
    const REGISTERS: usize;

    fn splat(self, value: f32) -> Self::Lanes;
    fn load(self, from: &[f32; LANES]) -> Self::Lanes;
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes;
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]);
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn div(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a where a > b, otherwise b: of a NaN and a number it is whichever is `b`.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a where a < b, otherwise b: of a NaN and a number it is whichever is `b`.
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// x · 2ⁿ, rounded once, for integral n from −252 to 254.
    fn scale(self, x: Self::Lanes, n: Self::Lanes) -> Self::Lanes;

    /// a · b + c, rounded once where the hardware can and twice where it cannot.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// 32 elements of bf16.
    type Pairs: Copy;

    fn load_pairs(self, from: &[bf16; PAIRS]) -> Self::Pairs;

    /// Lane l of c + a[2l + 1] · b[2l + 1] + a[2l] · b[2l], rounded after each sum (and each product, where
    /// there is no fused multiply-add). With AVX-512_BF16 subnormal numbers count as zero.
    fn dot_pairs(self, a: Self::Pairs, b: Self::Pairs, c: Self::Lanes) -> Self::Lanes;

    /// Asks for a cache line that will be read later, to come as near as the second-level cache: the nearest has few
    /// places for lines that are on their way, and memory takes long. The address may be any.
    fn prefetch<T>(self, at: *const T);

    /// The sum of the lanes by halving: l + (l + 8), then + 4, + 2, + 1.
    fn sum(self, lanes: Self::Lanes) -> f32;

    /// [`sum`](Self::sum) of eight, in the same order and so to the same bits; together they take less.
    #[inline(always)]
    fn sum8(self, lanes: [Self::Lanes; 8]) -> [f32; 8] {
        lanes.map(|lanes| self.sum(lanes))
    }
}

/// A stored element that loads as f32.
pub(in crate::device::cpu) trait VectorElement:
    Copy + Default + Send + Sync + 'static
{
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes;
}

impl VectorElement for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes {
        simd.load(from)
    }
}

impl VectorElement for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes {
        simd.load_f16(from)
    }
}

impl VectorElement for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes {
        simd.load_bf16(from)
    }
}

/// Fewer than `K` elements, followed by zeros.
#[inline(always)]
pub(in crate::device::cpu) fn padded<T: VectorElement, const K: usize>(tail: &[T]) -> [T; K] {
    let mut lanes = [T::default(); K];
    for (lane, &element) in lanes.iter_mut().zip(tail) {
        *lane = element;
    }
    lanes
}
