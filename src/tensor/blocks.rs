//! Blocks of quantised elements, as ggml defines them in `ggml-common.h`.
//!
//! A row is a sequence of blocks of [`block_len`](BlockFormat::block_len) elements, and every block has its own scale.
//! An element is the f32 number that ggml computes, with ggml's order of operations. In all formats here every
//! operation before the last is exact, so a fused multiply-add gives the same bits.

use std::ops::Range;

use half::f16;

/// The maximum number of elements in a block.
pub const MAX_BLOCK_LEN: usize = 256;

/// Formats of quantised blocks that a [`Tensor`](super::Tensor) can hold. The parts of a block are listed in storage
/// order; d, m and dmin are stored as f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// Q4_0: d, 16 bytes of 4-bit q; 32 elements d · (q − 8).
    Q4_0,
    /// Q4_1: d, m, 16 bytes of 4-bit q; 32 elements d · q + m.
    Q4_1,
    /// Q8_0: d, 32 signed bytes q; 32 elements d · q.
    Q8_0,
    /// Q4_K: d, dmin, 12 bytes of 6-bit scales and minima of eight sub-blocks of 32, 128 bytes of 4-bit q; 256 elements
    /// (d · scale) · q − dmin · min.
    Q4K,
    /// Q5_K: like [`Q4K`](Self::Q4K), with 32 bytes of the high bit of q before the 128 bytes of its low 4 bits.
    Q5K,
    /// Q6_K: 128 bytes of the low 4 bits of q, 64 of the high 2 bits, 16 signed scales of sub-blocks of 16, d; 256
    /// elements (d · scale) · (q − 32).
    Q6K,
}

impl std::fmt::Display for BlockFormat {
    /// Writes ggml's name of the format, which file names use.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Returns the number of elements per block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => MAX_BLOCK_LEN,
        }
    }

    /// Returns the size of a block in bytes.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Returns the size in bytes of `elements` elements, or `None` if they are not whole blocks.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        let whole = elements.is_multiple_of(self.block_len());
        (elements / self.block_len()).checked_mul(self.block_bytes()).filter(|_| whole)
    }

    /// Dequantises whole blocks into elements; blocks or elements beyond the shorter side are left alone.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        let mut elements = [0f32; MAX_BLOCK_LEN];
        for (block, out) in
            blocks.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len()))
        {
            self.elements(block, &mut elements);
            out.copy_from_slice(&elements[..out.len()]);
        }
    }

    /// Dequantises a block; elements after the block's own are left alone.
    pub(crate) fn elements(self, block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
        match self {
            Self::Q4_0 => q4_0(block, elements),
            Self::Q4_1 => q4_1(block, elements),
            Self::Q8_0 => q8_0(block, elements),
            Self::Q4K => q4_k(block, elements),
            Self::Q5K => q5_k(block, elements),
            Self::Q6K => q6_k(block, elements),
        }
    }
}

/// The elements of a tensor as blocks.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    format: BlockFormat,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// Views bytes as blocks. Bytes after the last whole block are left out.
    pub fn new(format: BlockFormat, bytes: &'a [u8]) -> Self {
        let whole = bytes.len() / format.block_bytes() * format.block_bytes();
        Self { format, bytes: bytes.get(..whole).unwrap_or(bytes) }
    }

    /// Returns the format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Returns the bytes of the blocks.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.format.block_bytes() * self.format.block_len()
    }

    /// Returns true if there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Dequantises the elements `range` into `out`. Elements outside either are left alone.
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) {
        let (len, size) = (self.format.block_len(), self.format.block_bytes());
        let mut elements = [0f32; MAX_BLOCK_LEN];
        let (mut next, end) = (range.start, range.end.min(self.len()));
        let mut out = out;
        while next < end {
            let (index, skipped) = (next / len, next % len);
            let Some(block) = self.bytes.get(index * size..(index + 1) * size) else { return };
            self.format.elements(block, &mut elements);
            let count = (len - skipped).min(end - next).min(out.len());
            let (here, rest) = out.split_at_mut(count);
            here.copy_from_slice(&elements[skipped..skipped + count]);
            if rest.is_empty() {
                return;
            }
            (next, out) = (next + count, rest);
        }
    }
}

/// Returns a number that is stored as f16.
pub(crate) fn half(bytes: &[u8; 2]) -> f32 {
    f16::from_le_bytes(*bytes).to_f32()
}

/// Splits every byte into two 4-bit numbers and stores their `value`: the low halves become the first half of
/// the elements, and the high halves the second half.
pub(crate) fn nibbles(bytes: &[u8], elements: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = elements.split_at_mut(bytes.len());
    for ((&byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (value(byte & 0xf), value(byte >> 4));
    }
}

fn q4_0(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, quants)) = block.split_first_chunk() else { return };
    let d = half(d);
    nibbles(quants, elements, |q| d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, rest)) = block.split_first_chunk() else { return };
    let Some((m, quants)) = rest.split_first_chunk() else { return };
    let (d, m) = (half(d), half(m));
    nibbles(quants, elements, |q| d * f32::from(q) + m);
}

fn q8_0(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, quants)) = block.split_first_chunk() else { return };
    let d = half(d);
    elements.iter_mut().zip(quants).for_each(|(x, &q)| *x = f32::from(q.cast_signed()) * d);
}

fn q4_k(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, rest)) = block.split_first_chunk() else { return };
    let Some((dmin, rest)) = rest.split_first_chunk() else { return };
    let Some((packed, quants)) = rest.split_first_chunk() else { return };
    let (d, dmin) = (half(d), half(dmin));
    let scales = unpack_scales(packed).map(|(scale, min)| (d * f32::from(scale), dmin * f32::from(min)));
    // Every 32 bytes hold two sub-blocks of 32 elements: the low halves of the bytes are the first sub-block,
    // and the high halves the second.
    let pairs = scales.chunks_exact(2).zip(quants.chunks_exact(32)).zip(elements.chunks_exact_mut(64));
    for ((scales, quants), elements) in pairs {
        let (low, high) = elements.split_at_mut(32);
        let &[(low_scale, low_min), (high_scale, high_min)] = scales else { return };
        for ((&q, low), high) in quants.iter().zip(low).zip(high) {
            *low = low_scale * f32::from(q & 0xf) - low_min;
            *high = high_scale * f32::from(q >> 4) - high_min;
        }
    }
}

fn q5_k(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, rest)) = block.split_first_chunk() else { return };
    let Some((dmin, rest)) = rest.split_first_chunk() else { return };
    let Some((packed, rest)) = rest.split_first_chunk() else { return };
    let Some((high_bits, quants)) = rest.split_first_chunk::<32>() else { return };
    let (d, dmin) = (half(d), half(dmin));
    let scales = unpack_scales(packed).map(|(scale, min)| (d * f32::from(scale), dmin * f32::from(min)));
    let pairs = quants.chunks_exact(32).flat_map(|quants| [(quants, 0), (quants, 4)]);
    let sub_blocks = pairs.zip(scales).zip(elements.chunks_exact_mut(32));
    for (sub_block, (((quants, shift), (scale, min)), elements)) in sub_blocks.enumerate() {
        for ((&q, &high), element) in quants.iter().zip(high_bits).zip(elements) {
            let q = q >> shift & 0xf | (high >> sub_block & 1) << 4;
            *element = scale * f32::from(q) - min;
        }
    }
}

/// Unpacks the scale and the minimum of each of eight sub-blocks, 6 bits each. For the first four sub-blocks,
/// they are the low 6 bits of bytes 0..4 and 4..8. For the other four, the low 4 bits are in bytes 8..12, and
/// the high 2 bits are the high bits of bytes 0..8.
fn unpack_scales(packed: &[u8; 12]) -> [(u8, u8); 8] {
    let [s0, s1, s2, s3, m0, m1, m2, m3, x0, x1, x2, x3] = *packed;
    let first = |s: u8, m: u8| (s & 0x3f, m & 0x3f);
    let second = |s: u8, m: u8, x: u8| (x & 0xf | s >> 2 & 0x30, x >> 4 | m >> 2 & 0x30);
    [
        first(s0, m0),
        first(s1, m1),
        first(s2, m2),
        first(s3, m3),
        second(s0, m0, x0),
        second(s1, m1, x1),
        second(s2, m2, x2),
        second(s3, m3, x3),
    ]
}

fn q6_k(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((low_bits, rest)) = block.split_first_chunk::<128>() else { return };
    let Some((high_bits, rest)) = rest.split_first_chunk::<64>() else { return };
    let Some((scales, d)) = rest.split_first_chunk::<16>() else { return };
    let Ok(d) = d.try_into() else { return };
    let d: f32 = half(d);
    let scales = scales.map(|scale| d * f32::from(scale.cast_signed()));
    for (index, (element, scale)) in
        elements.iter_mut().zip(scales.iter().flat_map(|scale| std::iter::repeat_n(scale, 16))).enumerate()
    {
        // Each half of a Q6_K block has 64 bytes of low bits (elements 0..64 in the low halves of the bytes,
        // 64..128 in the high halves) and 32 bytes of high bits (four elements per byte, 32 apart).
        let (half, within) = (index / 128, index % 128);
        let low = low_bits[64 * half + within % 64] >> (4 * (within / 64)) & 0xf;
        let high = high_bits[32 * half + within % 32] >> (2 * (within / 32)) & 0x3;
        *element = scale * (f32::from(low | high << 4) - 32.0);
    }
}
