//! Unpacks blocks of quantised weights to f32, sixteen elements at a time.
//!
//! Every instruction set computes the elements of [`BlockFormat`](crate::tensor::BlockFormat) to the last bit: in all
//! formats every operation before the last is exact, so fused and separate multiply-adds agree.

use super::simd::{LANES, Simd};

/// A block format, with `BYTES` bytes per block. A block is unpacked in groups of `V` vectors.
pub(super) trait Unpack<const BYTES: usize, const V: usize> {
    /// Number of groups per block; a block has `GROUPS` · `V` · 16 elements.
    const GROUPS: usize;

    /// The scales that all groups of a block share.
    type Scales<S: Simd>;

    fn scales<S: Simd>(simd: S, block: &[u8; BYTES]) -> Self::Scales<S>;

    /// Unpacks the elements of group `group`, which is below `GROUPS`, in order.
    fn group<S: Simd>(simd: S, block: &[u8; BYTES], scales: &Self::Scales<S>, group: usize) -> [S::Lanes; V];
}

pub(super) struct Q8Zero;

impl Unpack<34, 2> for Q8Zero {
    const GROUPS: usize = 1;
    type Scales<S: Simd> = S::Lanes;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 34]) -> S::Lanes {
        simd.splat_f16(*array(block, 0))
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 34], d: &S::Lanes, _: usize) -> [S::Lanes; 2] {
        let low = simd.to_lanes(simd.load_i8(array(block, 2)));
        let high = simd.to_lanes(simd.load_i8(array(block, 18)));
        [simd.mul(low, *d), simd.mul(high, *d)]
    }
}

pub(super) struct Q4Zero;

impl Unpack<18, 2> for Q4Zero {
    const GROUPS: usize = 1;
    type Scales<S: Simd> = S::Affine;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 18]) -> S::Affine {
        let d = simd.splat_f16(*array(block, 0));
        simd.affine(d, simd.mul(d, simd.splat(-8.0)))
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 18], scales: &S::Affine, _: usize) -> [S::Lanes; 2] {
        nibbles(simd, array(block, 2), *scales, *scales)
    }
}

pub(super) struct Q4One;

impl Unpack<20, 2> for Q4One {
    const GROUPS: usize = 1;
    type Scales<S: Simd> = S::Affine;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 20]) -> S::Affine {
        simd.affine(simd.splat_f16(*array(block, 0)), simd.splat_f16(*array(block, 2)))
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 20], scales: &S::Affine, _: usize) -> [S::Lanes; 2] {
        nibbles(simd, array(block, 4), *scales, *scales)
    }
}

pub(super) struct Q4K;

impl Unpack<144, 4> for Q4K {
    const GROUPS: usize = 4;
    type Scales<S: Simd> = SubBlocks;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 144]) -> SubBlocks {
        SubBlocks::new(simd, array(block, 0))
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 144], scales: &SubBlocks, group: usize) -> [S::Lanes; 4] {
        // Every 32 bytes hold two sub-blocks: the low halves of the bytes, and the high halves.
        let low = scales.affine(simd, 2 * group);
        let high = scales.affine(simd, 2 * group + 1);
        let quants: &[u8; 32] = array(block, 16 + 32 * group);
        let [a, c] = nibbles(simd, array(quants, 0), low, high);
        let [b, d] = nibbles(simd, array(quants, 16), low, high);
        [a, b, c, d]
    }
}

pub(super) struct Q5K;

impl Unpack<176, 4> for Q5K {
    const GROUPS: usize = 4;
    type Scales<S: Simd> = SubBlocks;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 176]) -> SubBlocks {
        SubBlocks::new(simd, array(block, 0))
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 176], scales: &SubBlocks, group: usize) -> [S::Lanes; 4] {
        let quants: &[u8; 32] = array(block, 48 + 32 * group);
        let mut elements = [simd.splat(0.0); 4];
        for half in 0..2 {
            let low_bits = simd.load_u8(array(quants, 16 * half));
            // Bit i of a byte of high bits belongs to sub-block i.
            let high_bits = simd.shift_right(simd.load_u8(array(block, 16 + 16 * half)), 2 * group as u32);
            let first = simd.or(simd.and(low_bits, 0xf), simd.and(simd.shift_left(high_bits, 4), 0x10));
            let second =
                simd.or(simd.shift_right(low_bits, 4), simd.and(simd.shift_left(high_bits, 3), 0x10));
            for (part, q) in [first, second].into_iter().enumerate() {
                let index = 2 * group + part;
                let (scale, offset) =
                    (simd.splat(scales.scales[index]), simd.splat(scales.offsets[8 + index]));
                elements[2 * part + half] = simd.mul_add(simd.to_lanes(q), scale, offset);
            }
        }
        elements
    }
}

pub(super) struct Q6K;

impl Unpack<210, 8> for Q6K {
    const GROUPS: usize = 2;
    /// d · scale of every sub-block of 16 elements.
    type Scales<S: Simd> = [f32; 16];

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 210]) -> [f32; 16] {
        let d = simd.splat_f16(*array(block, 208));
        let mut scales = [0.0; 16];
        simd.store(simd.mul(simd.to_lanes(simd.load_i8(array(block, 192))), d), &mut scales);
        scales
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 210], scales: &[f32; 16], group: usize) -> [S::Lanes; 8] {
        // Each half of a block has 64 bytes of low bits (elements 0..64 in the low halves of the bytes, 64..128 in the
        // high halves) and 32 bytes of high bits (four elements per byte, 32 apart).
        let low_bits: &[u8; 64] = array(block, 64 * group);
        let high_bits: &[u8; 32] = array(block, 128 + 32 * group);
        let mut elements = [simd.splat(0.0); 8];
        for half in 0..2 {
            let first = simd.load_u8(array(low_bits, 16 * half));
            let second = simd.load_u8(array(low_bits, 32 + 16 * half));
            let high = simd.load_u8(array(high_bits, 16 * half));
            let quants = [
                simd.or(simd.and(first, 0xf), simd.and(simd.shift_left(high, 4), 0x30)),
                simd.or(simd.and(second, 0xf), simd.and(simd.shift_left(high, 2), 0x30)),
                simd.or(simd.shift_right(first, 4), simd.and(high, 0x30)),
                simd.or(simd.shift_right(second, 4), simd.and(simd.shift_right(high, 2), 0x30)),
            ];
            for (quarter, q) in quants.into_iter().enumerate() {
                let index = 2 * quarter + half;
                let q = simd.sub(simd.to_lanes(q), simd.splat(32.0));
                elements[index] = simd.mul(q, simd.splat(scales[8 * group + index]));
            }
        }
        elements
    }
}

/// The scales of the eight sub-blocks of a Q4_K or Q5_K block.
pub(super) struct SubBlocks {
    /// d · scale of each sub-block; the other eight numbers are not used.
    pub(super) scales: [f32; 16],
    /// −dmin · min of each sub-block, after eight numbers that are not used.
    pub(super) offsets: [f32; 16],
}

impl SubBlocks {
    /// Reads the head of a block: d, dmin and twelve bytes with the scale and the minimum of each sub-block, 6 bits
    /// each. For the first four sub-blocks, they are the low 6 bits of bytes 0..4 and 4..8. For the other four, the
    /// low 4 bits are in bytes 8..12, and the high 2 bits are the high bits of bytes 0..8.
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, head: &[u8; 16]) -> Self {
        let word = |at: usize| u32::from_le_bytes(*array(head, at));
        let (a, b, c) = (word(4), word(8), word(12));
        let words = [
            a & 0x3f3f_3f3f,
            c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030,
            b & 0x3f3f_3f3f,
            c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030,
        ];
        let mut bytes = [0; 16];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        let numbers = simd.to_lanes(simd.load_u8(&bytes));
        let (mut scales, mut offsets) = ([0.0; 16], [0.0; 16]);
        simd.store(simd.mul(numbers, simd.splat_f16(*array(head, 0))), &mut scales);
        let dmin = simd.mul(simd.splat_f16(*array(head, 2)), simd.splat(-1.0));
        simd.store(simd.mul(numbers, dmin), &mut offsets);
        Self { scales, offsets }
    }

    /// Returns the function from the 4-bit numbers of sub-block `index` to its elements. (A closure in `array::map` would not be
    /// compiled for the instruction set of its caller.)
    #[inline(always)]
    fn affine<S: Simd>(&self, simd: S, index: usize) -> S::Affine {
        simd.affine(simd.splat(self.scales[index]), simd.splat(self.offsets[8 + index]))
    }
}

/// Unpacks the 4-bit numbers of sixteen bytes: `low` of their low halves, and `high` of their high halves.
#[inline(always)]
fn nibbles<S: Simd>(simd: S, bytes: &[u8; LANES], low: S::Affine, high: S::Affine) -> [S::Lanes; 2] {
    let q = simd.load_u8(bytes);
    [simd.apply(low, q), simd.apply(high, simd.shift_right(q, 4))]
}

/// Returns the `N` bytes from `start` on, which are within the block.
#[inline(always)]
pub(super) fn array<const M: usize, const N: usize>(block: &[u8; M], start: usize) -> &[u8; N] {
    // The caller's start is within the block, so the compiler removes the alternative.
    block.get(start..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; N])
}
