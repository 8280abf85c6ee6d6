//! The operations on sixteen f32 lanes that every instruction set implements, and the code that is generic
//! over them.

use half::{bf16, f16};

/// Lanes per vector.
pub(in crate::device::cpu) const LANES: usize = 16;

/// Number of bf16 elements in a vector that is multiplied in pairs, one pair per lane.
pub(in crate::device::cpu) const PAIRS: usize = 2 * LANES;

/// Number of bytes in a vector of bytes, four per lane.
pub(in crate::device::cpu) const BYTES: usize = 4 * LANES;

/// Code that is compiled once for each instruction set.
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

    /// Number of `Lanes` that fit the register file.
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

    /// Returns a if a > b, otherwise b. If one of them is NaN, the result is `b`.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// Returns a if a < b, otherwise b. If one of them is NaN, the result is `b`.
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// Returns x · 2ⁿ, rounded once, for integral n from −252 to 254.
    fn scale(self, x: Self::Lanes, n: Self::Lanes) -> Self::Lanes;

    /// Returns a · b + c, rounded once with FMA hardware and twice without.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// 32 bf16 elements, which are multiplied in pairs.
    type Pairs: Copy;

    fn load_pairs(self, from: &[bf16; PAIRS]) -> Self::Pairs;

    /// Returns in lane l: c + a[2l + 1] · b[2l + 1] + a[2l] · b[2l], rounded after each sum (and after each
    /// product, without fused multiply-add). With AVX-512_BF16, subnormal numbers count as zero.
    fn dot_pairs(self, a: Self::Pairs, b: Self::Pairs, c: Self::Lanes) -> Self::Lanes;

    /// Sixteen 32-bit integers.
    type Ints: Copy;

    /// Widens sixteen unsigned bytes.
    fn load_u8(self, from: &[u8; LANES]) -> Self::Ints;

    /// Widens sixteen signed bytes.
    fn load_i8(self, from: &[u8; LANES]) -> Self::Ints;

    /// Shifts every integer by `count` bits towards the low bits, and fills with zeros.
    fn shift_right(self, x: Self::Ints, count: u32) -> Self::Ints;

    /// Shifts every integer by `count` bits towards the high bits.
    fn shift_left(self, x: Self::Ints, count: u32) -> Self::Ints;

    /// Clears the bits of every integer that `mask` does not have.
    fn and(self, x: Self::Ints, mask: i32) -> Self::Ints;
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// Converts integers to f32; exact below 2²⁴.
    fn to_lanes(self, x: Self::Ints) -> Self::Lanes;

    /// Fills all lanes with a number that is stored as f16, little-endian.
    fn splat_f16(self, bytes: [u8; 2]) -> Self::Lanes;

    /// The function q ↦ scale · q + offset of 4-bit numbers q, in a form that is fast to apply.
    type Affine: Copy;

    /// Makes the function q ↦ scale · q + offset. All lanes of `scale` are equal, and all lanes of `offset`.
    fn affine(self, scale: Self::Lanes, offset: Self::Lanes) -> Self::Affine;

    /// Applies a function to the low 4 bits of every integer, like [`mul_add`](Self::mul_add); other bits are ignored.
    fn apply(self, function: Self::Affine, q: Self::Ints) -> Self::Lanes;

    /// Returns lanes 0 to 7 of `low`, then lanes 8 to 15 of `high`.
    fn halves(self, low: Self::Lanes, high: Self::Lanes) -> Self::Lanes;

    /// 64 bytes, four per lane.
    type Bytes: Copy;

    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes;

    /// Returns 32 bytes, then 32 others.
    fn join(self, low: &[u8; BYTES / 2], high: &[u8; BYTES / 2]) -> Self::Bytes;

    /// Returns the low 4 bits of each of 16 bytes, then their high 4 bits, and then the same of 16 other bytes.
    fn nibbles(self, first: &[u8; LANES], second: &[u8; LANES]) -> Self::Bytes;

    /// Returns in lane l the exact sum of a[4l + i] · b[4l + i] over i = 0 to 3, for unsigned bytes `a` up to 127, and
    /// signed bytes `b` from −127 to 127.
    fn dot_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Ints;

    /// Signed bytes, in a form that is fast to multiply with signed bytes.
    type Signed: Copy;

    /// Prepares signed bytes, from −128 to 127.
    fn signed(self, x: Self::Bytes) -> Self::Signed;

    /// Returns the sums of [`dot_bytes`](Self::dot_bytes) for signed bytes a. The bytes b are given twice: as they are, and
    /// as the unsigned bytes b + 128. An instruction set loads only the ones that its instruction multiplies.
    fn dot_signed(self, a: Self::Signed, b: &[u8; BYTES], b_plus_128: &[u8; BYTES]) -> Self::Ints;

    /// Prefetches a cache line that will be read later, into the second-level cache: the first-level cache
    /// can track only few lines in flight, and memory latency is long. Any address is allowed.
    fn prefetch<T>(self, at: *const T);

    /// Returns the sum of the lanes by halving: lane l plus lane l + 8, then plus lane l + 4, l + 2 and l +
    /// 1.
    fn sum(self, lanes: Self::Lanes) -> f32;

    /// Returns the [`sum`](Self::sum) of each of eight vectors, in the same order and so with the same bits;
    /// eight together cost less.
    #[inline(always)]
    fn sum8(self, lanes: [Self::Lanes; 8]) -> [f32; 8] {
        lanes.map(|lanes| self.sum(lanes))
    }
}

/// A stored element that loads as f32.
pub(in crate::device::cpu) trait VectorElement:
    bytemuck::NoUninit + Default + Send + Sync + 'static
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

/// Returns the elements of `tail`, fewer than `K`, padded with zeros to `K`.
#[inline(always)]
pub(in crate::device::cpu) fn padded<T: VectorElement, const K: usize>(tail: &[T]) -> [T; K] {
    let mut lanes = [T::default(); K];
    for (lane, &element) in lanes.iter_mut().zip(tail) {
        *lane = element;
    }
    lanes
}
