//! Quantised blocks for tests: random ones, and their elements in f64 by formulas of their own.

use std::sync::Arc;

use flexdraft::tensor::{BlockFormat, Tensor};
use half::f16;

use super::noise::SplitMix;

/// Returns a matrix of random blocks: all bits are random except the scales, with which most elements are of the size
/// `size`.
pub fn random_blocks(format: BlockFormat, shape: [usize; 2], size: f32, seed: u64) -> Tensor {
    let mut random = SplitMix(seed ^ 0xb10c_5eed);
    let mut bytes = Vec::new();
    for _ in 0..shape[0] * shape[1] / format.block_len() {
        let start = bytes.len();
        bytes.extend((0..format.block_bytes()).map(|_| random.bits() as u8));
        let block = &mut bytes[start..];
        let mut set = |at: usize, scale: f32| {
            let scale = f16::from_f32(size * scale * (1.0 + 0.5 * random.signed()));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        };
        match format {
            BlockFormat::Q4_0 => set(0, 0.15),
            BlockFormat::Q4_1 => {
                set(0, 0.15);
                set(2, -1.1);
            }
            BlockFormat::Q8_0 => set(0, 0.011),
            BlockFormat::Q4K | BlockFormat::Q5K => {
                let levels = if format == BlockFormat::Q4K { 7.5 } else { 15.5 };
                set(0, 0.02 / levels);
                set(2, 0.02);
            }
            BlockFormat::Q6K => set(208, 0.0005),
        }
    }
    let len = bytes.len();
    Tensor::from_blocks(format, &shape, Arc::new(bytes), 0..len).unwrap()
}

/// Returns element `index` of a block, computed exactly.
pub fn element(format: BlockFormat, block: &[u8], index: usize) -> f64 {
    let number = |at: usize| f64::from(f16::from_le_bytes([block[at], block[at + 1]]).to_f32());
    // A 4-bit number of `bytes`: byte i holds numbers i and i + half of 2 · half numbers.
    let nibble = |bytes: &[u8], half: usize, i: usize| bytes[i % half] >> (4 * (i / half)) & 15;
    // Scale and minimum of sub-block j in twelve bytes, as llama.cpp's `get_scale_min_k4` unpacks them.
    let scale_min = |p: &[u8], j: usize| match j {
        0..4 => (p[j] & 63, p[j + 4] & 63),
        _ => (p[j + 4] & 15 | p[j - 4] >> 6 << 4, p[j + 4] >> 4 | p[j] >> 6 << 4),
    };
    match format {
        BlockFormat::Q4_0 => number(0) * (f64::from(nibble(&block[2..], 16, index)) - 8.0),
        BlockFormat::Q4_1 => number(0) * f64::from(nibble(&block[4..], 16, index)) + number(2),
        BlockFormat::Q8_0 => number(0) * f64::from(block[2 + index].cast_signed()),
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let (scale, min) = scale_min(&block[4..16], index / 32);
            let quants = if format == BlockFormat::Q4K { &block[16..] } else { &block[48..] };
            let low = nibble(&quants[index / 64 * 32..], 32, index % 64);
            let high = match format {
                BlockFormat::Q5K => block[16 + index % 32] >> (index / 32) & 1,
                _ => 0,
            };
            number(0) * f64::from(scale) * f64::from(low | high << 4) - number(2) * f64::from(min)
        }
        BlockFormat::Q6K => {
            let (half, within) = (index / 128, index % 128);
            let low = nibble(&block[64 * half..], 64, within);
            let high = block[128 + 32 * half + within % 32] >> (within / 32 * 2) & 3;
            let scale = f64::from(block[192 + index / 16].cast_signed());
            number(208) * scale * (f64::from(low | high << 4) - 32.0)
        }
    }
}

/// Returns all elements of a matrix of blocks in f64.
pub fn elements(matrix: &Tensor) -> Vec<f64> {
    let flexdraft::tensor::Elements::Blocks(blocks) = matrix.elements() else { unreachable!() };
    let format = blocks.format();
    let blocks = blocks.bytes().chunks_exact(format.block_bytes());
    blocks.flat_map(|block| (0..format.block_len()).map(|i| element(format, block, i))).collect()
}
