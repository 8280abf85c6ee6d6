//! Block formats of quantised tensors, as ggml defines them in `ggml-common.h`.
//!
//! A row is a sequence of blocks of [`block_len`](Quantization::block_len) elements, and every block has its
//! own scale. Elements are computed in f32 with ggml's order of operations, then rounded to bf16 (nearest,
//! ties to even).

use half::{bf16, f16};

use crate::tensor::DType;

/// The most elements in a block.
const MAX_BLOCK_LEN: usize = 256;

/// The storage type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum TensorType {
    /// Plain numbers, one per element.
    Plain(DType),
    /// Blocks of quantised elements.
    Quantized(Quantization),
}

/// Quantised block formats, listed in storage order. Sizes are in bytes; f16 values are scales unless stated
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Quantization {
    /// Q4_0: scale d (f16), 16 bytes of 4-bit q; an element is d · (q − 8).
    Q4_0,
    /// Q4_1: scale d (f16), minimum m (f16), 16 bytes of 4-bit q; an element is d · q + m.
    Q4_1,
    /// Q8_0: scale d (f16), 32 signed bytes q; an element is d · q.
    Q8_0,
    /// Q4_K: scales d and dmin (f16), 12 bytes of 6-bit scales and minima of eight sub-blocks of 32, 128 bytes of 4-bit
    /// q; an element is (d · scale) · q − dmin · min.
    Q4K,
    /// Q6_K: 128 bytes of the low 4 bits of q, 64 of the high 2 bits, 16 signed scales of sub-blocks of 16, scale d
    /// (f16); an element is (d · scale) · (q − 32).
    Q6K,
}

impl std::fmt::Display for TensorType {
    /// Writes ggml's name of the block format, which file names use.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Quantized(Quantization::Q4_0) => f.write_str("Q4_0"),
            Self::Quantized(Quantization::Q4_1) => f.write_str("Q4_1"),
            Self::Quantized(Quantization::Q8_0) => f.write_str("Q8_0"),
            Self::Quantized(Quantization::Q4K) => f.write_str("Q4_K"),
            Self::Quantized(Quantization::Q6K) => f.write_str("Q6_K"),
        }
    }
}

impl TensorType {
    /// Returns the storage type for a type number in a file, or the type's name if it is not supported.
    pub(super) fn from_number(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::Plain(DType::F32),
            1 => Self::Plain(DType::F16),
            2 => Self::Quantized(Quantization::Q4_0),
            3 => Self::Quantized(Quantization::Q4_1),
            8 => Self::Quantized(Quantization::Q8_0),
            12 => Self::Quantized(Quantization::Q4K),
            14 => Self::Quantized(Quantization::Q6K),
            30 => Self::Plain(DType::Bf16),
            other => return Err(unsupported_name(other)),
        })
    }

    /// Returns the size in bytes of a row of `columns` elements; `None` if the row is not a whole number of blocks.
    pub(super) fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Self::Plain(dtype) => columns.checked_mul(dtype.size()),
            Self::Quantized(format) if !columns.is_multiple_of(format.block_len()) => None,
            Self::Quantized(format) => (columns / format.block_len()).checked_mul(format.block_bytes()),
        }
    }
}

/// Returns the name of a `ggml_type` that is not supported.
fn unsupported_name(number: u32) -> String {
    let name = match number {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {number}"),
    };
    name.to_owned()
}

impl Quantization {
    /// Returns the number of elements per block.
    pub(super) fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => MAX_BLOCK_LEN,
        }
    }

    /// Returns the size of a block in bytes.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Dequantises whole blocks into elements; blocks or elements beyond the shorter side are left alone.
    pub(super) fn dequantize(self, blocks: &[u8], out: &mut [bf16]) {
        let mut elements = [0f32; MAX_BLOCK_LEN];
        for (block, out) in
            blocks.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len()))
        {
            match self {
                Self::Q4_0 => q4_0(block, &mut elements),
                Self::Q4_1 => q4_1(block, &mut elements),
                Self::Q8_0 => q8_0(block, &mut elements),
                Self::Q4K => q4_k(block, &mut elements),
                Self::Q6K => q6_k(block, &mut elements),
            }
            out.iter_mut().zip(&elements).for_each(|(out, &x)| *out = bf16::from_f32(x));
        }
    }
}

fn half(bytes: &[u8; 2]) -> f32 {
    f16::from_le_bytes(*bytes).to_f32()
}

/// Converts the low halves of the bytes to the first half of the elements, and the high halves to the second
/// half.
fn nibbles(bytes: &[u8], elements: &mut [f32], value: impl Fn(u8) -> f32) {
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
    // Every 32 bytes hold two sub-blocks: the low halves are the first one, and the high halves the second one.
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

/// Returns the scale and minimum of each of eight sub-blocks, 6 bits each. For the first four sub-blocks, they are the
/// low 6 bits of bytes 0..4 and 4..8. For the other four, the low 4 bits are in bytes 8..12, and the high 2 bits are
/// the high bits of bytes 0..8.
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
        // Each half of the block has 64 bytes of low bits (elements 0..64 in the low halves of the bytes,
        // 64..128 in the high halves) and 32 bytes of high bits (four elements per byte, 32 apart).
        let (half, within) = (index / 128, index % 128);
        let low = low_bits[64 * half + within % 64] >> (4 * (within / 64)) & 0xf;
        let high = high_bits[32 * half + within % 32] >> (2 * (within / 32)) & 0x3;
        *element = scale * (f32::from(low | high << 4) - 32.0);
    }
}
