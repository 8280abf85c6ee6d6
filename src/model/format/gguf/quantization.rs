//! The storage types of tensors in GGUF files, and the blocks that become bf16 when they are loaded.
//!
//! ggml defines all block formats in `ggml-common.h`. A [`Tensor`](crate::tensor::Tensor) can hold the formats of
//! [`BlockFormat`]; this module has the others. A row is a sequence of blocks of
//! [`block_len`](Quantization::block_len) elements, and every block has its own scale. Elements are computed in f32 with
//! ggml's order of operations, then rounded to bf16 (nearest, ties to even).

use half::bf16;

use crate::tensor::{BlockFormat, DType, MAX_BLOCK_LEN, half, nibbles};

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
    /// A format whose blocks a tensor can hold.
    Kept(BlockFormat),
    /// Q5_0: scale d (f16), 32 high bits, 16 bytes of the low 4 bits of q; an element is d · (q − 16).
    Q5_0,
    /// Q5_1: scale d (f16), minimum m (f16), 32 high bits, 16 bytes of the low 4 bits of q; an element is d · q
    /// + m.
    Q5_1,
    /// Q2_K: 16 bytes with a 4-bit scale and a 4-bit minimum of sub-blocks of 16, 64 bytes of 2-bit q, f16 d,
    /// f16 dmin; an element is (d · scale) · q − dmin · min.
    Q2K,
    /// Q3_K: 32 bytes of the high bit of q, 64 of the low 2 bits, 12 of 6-bit scales of sub-blocks of 16, f16
    /// d; an element is (d · (scale − 32)) · (q − 4).
    Q3K,
    /// IQ4_NL: scale d (f16), 16 bytes of 4-bit q; an element is d · table\[q\], a table of unevenly spaced
    /// numbers.
    Iq4Nl,
    /// IQ4_XS: f16 d, 16 bits of high bits and 4 bytes of low bits of 6-bit scales of sub-blocks of 32, 128
    /// bytes of 4-bit q; an element is (d · (scale − 32)) · table\[q\].
    Iq4Xs,
}

/// The numbers that the 4-bit q of [`Quantization::Iq4Nl`] and [`Quantization::Iq4Xs`] stand for.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl std::fmt::Display for TensorType {
    /// Writes ggml's name of the block format, which file names use.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Quantized(Quantization::Kept(format)) => format.fmt(f),
            Self::Quantized(Quantization::Q5_0) => f.write_str("Q5_0"),
            Self::Quantized(Quantization::Q5_1) => f.write_str("Q5_1"),
            Self::Quantized(Quantization::Q2K) => f.write_str("Q2_K"),
            Self::Quantized(Quantization::Q3K) => f.write_str("Q3_K"),
            Self::Quantized(Quantization::Iq4Nl) => f.write_str("IQ4_NL"),
            Self::Quantized(Quantization::Iq4Xs) => f.write_str("IQ4_XS"),
        }
    }
}

impl TensorType {
    /// Returns the storage type for a type number in a file, or the type's name if it is not supported.
    pub(super) fn from_number(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::Plain(DType::F32),
            1 => Self::Plain(DType::F16),
            2 => Self::Quantized(Quantization::Kept(BlockFormat::Q4_0)),
            3 => Self::Quantized(Quantization::Kept(BlockFormat::Q4_1)),
            6 => Self::Quantized(Quantization::Q5_0),
            7 => Self::Quantized(Quantization::Q5_1),
            8 => Self::Quantized(Quantization::Kept(BlockFormat::Q8_0)),
            10 => Self::Quantized(Quantization::Q2K),
            11 => Self::Quantized(Quantization::Q3K),
            12 => Self::Quantized(Quantization::Kept(BlockFormat::Q4K)),
            13 => Self::Quantized(Quantization::Kept(BlockFormat::Q5K)),
            14 => Self::Quantized(Quantization::Kept(BlockFormat::Q6K)),
            20 => Self::Quantized(Quantization::Iq4Nl),
            23 => Self::Quantized(Quantization::Iq4Xs),
            30 => Self::Plain(DType::Bf16),
            other => return Err(unsupported_name(other)),
        })
    }

    /// Returns true for blocks that become bf16 whatever the loader is asked to do.
    pub(in crate::model) fn is_converted(self) -> bool {
        !matches!(self, Self::Plain(_) | Self::Quantized(Quantization::Kept(_)))
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
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
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
            Self::Kept(format) => format.block_len(),
            Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Iq4Xs => MAX_BLOCK_LEN,
        }
    }

    /// Returns the size of a block in bytes.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::Kept(format) => format.block_bytes(),
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q2K => 16 + 64 + 2 + 2,
            Self::Q3K => 32 + 64 + 12 + 2,
            Self::Iq4Nl => 2 + 16,
            Self::Iq4Xs => 2 + 2 + 4 + 128,
        }
    }

    /// Dequantises whole blocks into elements; blocks or elements beyond the shorter side are left alone.
    pub(super) fn dequantize(self, blocks: &[u8], out: &mut [bf16]) {
        let mut elements = [0f32; MAX_BLOCK_LEN];
        for (block, out) in
            blocks.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len()))
        {
            match self {
                Self::Kept(format) => format.elements(block, &mut elements),
                Self::Q5_0 => q5_0(block, &mut elements),
                Self::Q5_1 => q5_1(block, &mut elements),
                Self::Q2K => q2_k(block, &mut elements),
                Self::Q3K => q3_k(block, &mut elements),
                Self::Iq4Nl => iq4_nl(block, &mut elements),
                Self::Iq4Xs => iq4_xs(block, &mut elements),
            }
            out.iter_mut().zip(&elements).for_each(|(out, &x)| *out = bf16::from_f32(x));
        }
    }
}

/// Makes elements of 5-bit numbers: their low 4 bits are stored as for [`nibbles`], and bit 4 of element i is
/// bit i of `high_bits`.
fn five_bits(bytes: &[u8; 16], high_bits: [u8; 4], elements: &mut [f32], value: impl Fn(u8) -> f32) {
    let high_bits = u32::from_le_bytes(high_bits);
    let low = bytes.iter().map(|byte| byte & 0xf).chain(bytes.iter().map(|byte| byte >> 4));
    for ((index, low), element) in low.enumerate().zip(elements) {
        let high = if high_bits >> index & 1 == 1 { 0x10 } else { 0 };
        *element = value(low | high);
    }
}

fn q5_0(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, rest)) = block.split_first_chunk() else { return };
    let Some((high_bits, rest)) = rest.split_first_chunk() else { return };
    let Ok(quants) = rest.try_into() else { return };
    let d = half(d);
    five_bits(quants, *high_bits, elements, |q| d * (f32::from(q) - 16.0));
}

fn q5_1(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, rest)) = block.split_first_chunk() else { return };
    let Some((m, rest)) = rest.split_first_chunk() else { return };
    let Some((high_bits, rest)) = rest.split_first_chunk() else { return };
    let Ok(quants) = rest.try_into() else { return };
    let (d, m) = (half(d), half(m));
    five_bits(quants, *high_bits, elements, |q| d * f32::from(q) + m);
}

/// Returns the 2-bit number that a block stores for an element: each half of the block has 32 bytes, with four
/// elements per byte, 32 apart.
fn two_bits(quants: &[u8; 64], index: usize) -> u8 {
    let (half, within) = (index / 128, index % 128);
    quants[32 * half + within % 32] >> (2 * (within / 32)) & 0x3
}

fn q2_k(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((scales, rest)) = block.split_first_chunk::<16>() else { return };
    let Some((quants, rest)) = rest.split_first_chunk() else { return };
    let Some((d, rest)) = rest.split_first_chunk() else { return };
    let Ok(dmin) = rest.try_into() else { return };
    let (d, dmin) = (half(d), half(dmin));
    let scales = scales.map(|byte| (d * f32::from(byte & 0xf), dmin * f32::from(byte >> 4)));
    let scales = scales.iter().flat_map(|scale| std::iter::repeat_n(scale, 16));
    for ((index, element), (scale, min)) in elements.iter_mut().enumerate().zip(scales) {
        *element = scale * f32::from(two_bits(quants, index)) - min;
    }
}

fn q3_k(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((high_bits, rest)) = block.split_first_chunk::<32>() else { return };
    let Some((quants, rest)) = rest.split_first_chunk() else { return };
    let Some((packed, rest)) = rest.split_first_chunk::<12>() else { return };
    let Ok(d) = rest.try_into() else { return };
    let d: f32 = half(d);
    for (index, element) in elements.iter_mut().enumerate() {
        // Twelve bytes hold sixteen 6-bit scales: their low 4 bits are the halves of bytes 0..8, and the high 2
        // bits of scale 4 · i + j are in byte 8 + j.
        let sub_block = index / 16;
        let low = packed[sub_block % 8] >> (4 * (sub_block / 8)) & 0xf;
        let high = packed[8 + sub_block % 4] >> (2 * (sub_block / 4)) & 0x3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let high_bit = high_bits[index % 32] >> (index / 32) & 1;
        *element = scale * (f32::from(two_bits(quants, index) | high_bit << 2) - 4.0);
    }
}

fn iq4_nl(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, quants)) = block.split_first_chunk() else { return };
    let d = half(d);
    nibbles(quants, elements, |q| d * f32::from(TABLE[usize::from(q)]));
}

fn iq4_xs(block: &[u8], elements: &mut [f32; MAX_BLOCK_LEN]) {
    let Some((d, rest)) = block.split_first_chunk() else { return };
    let Some((high_bits, rest)) = rest.split_first_chunk() else { return };
    let Some((low_bits, quants)) = rest.split_first_chunk::<4>() else { return };
    let (d, high_bits) = (half(d), u16::from_le_bytes(*high_bits));
    let sub_blocks = quants.chunks_exact(16).zip(elements.chunks_exact_mut(32));
    for (index, (quants, elements)) in sub_blocks.enumerate() {
        let low = low_bits[index / 2] >> (4 * (index % 2)) & 0xf;
        let high = (high_bits >> (2 * index) & 0x3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        nibbles(quants, elements, |q| scale * f32::from(TABLE[usize::from(q)]));
    }
}
