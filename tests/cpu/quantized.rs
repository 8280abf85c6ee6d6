//! Tests of products with quantised weights: the blocks stand for the numbers that ggml gives them, and a product has
//! the bits of the product with these numbers in f32, whatever the rows, the threads and the instruction set. A product
//! with activations of 8 bits is near the exact sum, and has the same bits in all these cases.

use flexdraft::device::cpu::{Cpu, CpuLinear, InstructionSet};
use flexdraft::device::{Device, DeviceError, LinearPart, Precision};
use flexdraft::tensor::{BlockFormat, Tensor};
use proptest::prelude::*;

use crate::support::blocks::{elements, random_blocks};
use crate::support::cpu::*;
use crate::support::properties::properties;

/// One row more than the largest draft that a step verifies, twice.
const MOST_ROWS: usize = 33;

fn linear(device: &Cpu, layer: &CpuLinear, x: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let x = activations(device, layer.in_cols(), x);
    let mut out = device.new_logits(layer.out_cols());
    device.resize(&mut out, x.rows()).unwrap();
    device.linear(layer, &x, 0..x.rows(), &mut out).unwrap();
    bits(&out)
}

fn layer(device: &Cpu, weight: &Tensor, bias: Option<&Tensor>) -> CpuLinear {
    device.new_linear(&[LinearPart::new(weight, bias)]).unwrap()
}

/// Returns the matrix with its elements as f32.
fn dequantized(matrix: &Tensor) -> Tensor {
    Tensor::from_f32(matrix.shape(), matrix.to_f32()).unwrap()
}

fn format() -> impl Strategy<Value = BlockFormat> {
    prop::sample::select(&BlockFormat::ALL[..])
}

#[test]
fn products_have_the_bits_of_dequantised_weights() {
    for format in BlockFormat::ALL {
        for (blocks, out_cols) in
            [(1, 1), (2, 5), (3, 62), (if format.block_len() == 32 { 9 } else { 1 }, 701)]
        {
            let in_cols = blocks * format.block_len();
            let weight = random_blocks(format, [out_cols, in_cols], 1.0, 7);
            let plain = dequantized(&weight);
            let bias = weights(flexdraft::tensor::DType::F32, &[out_cols], 3);
            let x = noise_rows(1, MOST_ROWS, in_cols);
            let mut fused = Vec::new();
            for device in devices(1, Precision::F32) {
                let expected = linear(&device, &layer(&device, &plain, Some(&bias)), &x);
                if device.instruction_set() != InstructionSet::Portable {
                    fused.push(expected);
                }
            }
            assert!(fused.windows(2).all(|pair| pair[0] == pair[1]));
            for threads in [1, 2, 3] {
                for device in devices(threads, Precision::F32) {
                    let expected = linear(&device, &layer(&device, &plain, Some(&bias)), &x);
                    let layer = layer(&device, &weight, Some(&bias));
                    for rows in 1..=MOST_ROWS {
                        let found = linear(&device, &layer, &x[..rows]);
                        assert!(found == expected[..rows], "{device:?} {format} {in_cols} {out_cols} {rows}");
                    }
                }
            }
        }
    }
}

/// Layers of several parts, quantised and not; rows of x that are rounded to bf16; and outputs that are added.
#[test]
fn fused_parts_precisions_and_sums() {
    let [a, b, c] = [BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::Q8_0]
        .map(|format| random_blocks(format, [31, 512], 0.5, 4));
    let d = weights(flexdraft::tensor::DType::Bf16, &[9, 512], 5);
    let x = noise_rows(2, 19, 512);
    for precision in [Precision::F32, Precision::Bf16] {
        for device in devices(2, precision) {
            let parts = [&a, &b, &c, &d].map(|weight| LinearPart::new(weight, None));
            let plain = [&a, &b, &c].map(dequantized);
            let [pa, pb, pc] = &plain;
            let expected = [pa, pb, pc, &d].map(|weight| LinearPart::new(weight, None));
            let sum = |parts: &[LinearPart<'_>]| {
                let layer = device.new_linear(parts).unwrap();
                let x = activations(&device, 512, &x);
                let mut out = logits(&device, layer.out_cols(), &noise_rows(3, 19, layer.out_cols()));
                device.linear_add(&layer, &x, 2..19, &mut out).unwrap();
                bits(&out)
            };
            assert!(sum(&parts) == sum(&expected), "{device:?}");
        }
    }
}

proptest! {
    #![proptest_config(properties(48))]

    /// The elements of blocks are exact but for the last rounding, and products agree with sums in f64.
    #[test]
    fn products_agree_with_f64(
        format in format(),
        blocks in 1usize..5,
        out_cols in 1usize..40,
        rows in 1usize..24,
        size in prop::sample::select(vec![1e-3f32, 1.0, 50.0]),
        seed in any::<u64>(),
    ) {
        let in_cols = blocks * format.block_len();
        let weight = random_blocks(format, [out_cols, in_cols], size, seed);
        let exact = elements(&weight);
        for (found, exact) in weight.to_f32().iter().zip(&exact) {
            prop_assert_eq!(found.to_bits(), (*exact as f32).to_bits(), "{}", format);
        }
        let x = noise_rows(seed, rows, in_cols);
        for device in devices(1, Precision::F32) {
            let found = linear(&device, &layer(&device, &weight, None), &x);
            for (x, found) in x.iter().zip(&found) {
                for (w, found) in exact.chunks_exact(in_cols).zip(found) {
                    let terms = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * w);
                    let size = terms.clone().map(f64::abs).sum::<f64>();
                    // Every partial sum is rounded once or twice, and w once.
                    let roundings = (in_cols.div_ceil(16) * 2 + 6) as f64;
                    let error = (f64::from(f32::from_bits(*found)) - terms.sum::<f64>()).abs();
                    prop_assert!(error <= size * roundings * f64::from(f32::EPSILON) / 2.0, "{}", format);
                }
            }
        }
    }

    #[test]
    fn embeddings_are_dequantised_rows(
        format in format(),
        ids in prop::collection::vec(0u32..7, 1..5),
        seed in any::<u64>(),
    ) {
        let cols = 2 * format.block_len();
        let table = random_blocks(format, [7, cols], 1.0, seed);
        let values = elements(&table);
        for precision in [Precision::F32, Precision::Bf16, Precision::Q8] {
            for device in devices(1, precision) {
                let mut out = activations(&device, cols, &noise_rows(1, ids.len() + 1, cols));
                device.embed(&layer(&device, &table, None), &ids, 1, &mut out).unwrap();
                for (row, &id) in ids.iter().enumerate() {
                    let expected = values[id as usize * cols..][..cols].iter();
                    let expected: Vec<u32> = match precision {
                        Precision::F32 | Precision::Q8 => expected.map(|&x| (x as f32).to_bits()).collect(),
                        Precision::Bf16 => {
                            expected.map(|&x| half::bf16::from_f32(x as f32).to_f32().to_bits()).collect()
                        }
                    };
                    prop_assert_eq!(row_bits(&out, row + 1), expected);
                }
            }
        }
    }
}

/// Returns a row with each value rounded to 127 steps of the largest magnitude of its group of 256.
fn rounded(row: &[f32]) -> Vec<f64> {
    let group = |values: &[f32]| {
        let largest = values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let (factor, scale) = (127.0 / largest, f64::from(largest / 127.0));
        values.iter().map(|&x| f64::from((x * factor).round_ties_even()) * scale).collect::<Vec<_>>()
    };
    row.chunks(256).flat_map(group).collect()
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn products_of_8_bits_agree_with_f64(
        format in format(),
        blocks in 1usize..20,
        out_cols in 1usize..20,
        rows in 1usize..20,
        size in prop::sample::select(vec![1e-3f32, 1.0, 50.0]),
        seed in any::<u64>(),
    ) {
        let in_cols = blocks * format.block_len();
        let weight = random_blocks(format, [out_cols, in_cols], size, seed);
        let exact = elements(&weight);
        let x = noise_rows(seed, rows, in_cols);
        for device in devices(1, Precision::Q8) {
            let found = linear(&device, &layer(&device, &weight, None), &x);
            for (x, found) in x.iter().map(|row| rounded(row)).zip(&found) {
                for (w, found) in exact.chunks_exact(in_cols).zip(found) {
                    let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    // The products of scales and of offsets are added separately. Neither exceeds three times the largest
                    // weight times an activation.
                    let largest = w.iter().fold(0.0f64, |a, b| a.max(b.abs()));
                    let size = 6.0 * largest * x.iter().map(|x| x.abs()).sum::<f64>();
                    let roundings = (in_cols.div_ceil(64) * 2 + 12) as f64;
                    let error = (f64::from(f32::from_bits(*found)) - sum).abs();
                    prop_assert!(error <= size * roundings * f64::from(f32::EPSILON) / 2.0, "{}", format);
                }
            }
        }
    }
}

#[test]
fn products_of_8_bits_depend_on_neither_rows_nor_threads_nor_vectors() {
    for format in BlockFormat::ALL {
        // Rows with and without a rest of a group of 256, and rows of more groups than pass the weights at a time.
        let shapes: &[_] = match format.block_len() {
            32 => &[(1, 5), (3, 62), (5, 1), (8, 31), (18, 7), (23, 301), (53, 14)],
            _ => &[(1, 5), (3, 62), (7, 14)],
        };
        for &(blocks, out_cols) in shapes {
            let weight = random_blocks(format, [out_cols, blocks * format.block_len()], 1.0, 9);
            let bias = weights(flexdraft::tensor::DType::F32, &[out_cols], 3);
            let x = noise_rows(4, MOST_ROWS, blocks * format.block_len());
            // The results without and with fused multiply-add, on every number of threads.
            let mut results = [Vec::new(), Vec::new()];
            for device in [1, 3].into_iter().flat_map(|threads| devices(threads, Precision::Q8)) {
                let layer = layer(&device, &weight, Some(&bias));
                let expected = linear(&device, &layer, &x);
                for rows in 1..MOST_ROWS {
                    assert!(
                        linear(&device, &layer, &x[..rows]) == expected[..rows],
                        "{device:?} {format} {rows}"
                    );
                }
                // A row among other rows, at another place.
                let moved = [&x[20..], &x[..20]].concat();
                assert!(linear(&device, &layer, &moved)[13..] == expected[..20], "{device:?} {format}");
                let fuses = device.instruction_set() != InstructionSet::Portable;
                results[usize::from(fuses)].push(expected);
            }
            for results in results {
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{format}");
            }
        }
    }
}

/// A value that is not finite makes its row's results NaN, so that the engine finds the fault, and no other row's.
#[test]
fn activations_that_are_not_finite_do_not_disappear_in_8_bits() {
    let weight = random_blocks(BlockFormat::Q4K, [6, 512], 1.0, 1);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise_rows(1, 3, 512);
        x[1][300] = odd;
        for device in devices(1, Precision::Q8) {
            let found = linear(&device, &layer(&device, &weight, None), &x);
            let nan =
                |row: &Vec<u32>| row.iter().map(|&bits| f32::from_bits(bits).is_nan()).collect::<Vec<_>>();
            assert_eq!(found.iter().map(nan).collect::<Vec<_>>(), [[false; 6], [true; 6], [false; 6]]);
        }
    }
}

#[test]
fn only_products_with_blocks_have_8_bits() {
    let weight = weights(flexdraft::tensor::DType::Bf16, &[9, 512], 5);
    let x = noise_rows(2, 19, 512);
    for (rounds, plain) in devices(1, Precision::Q8).iter().zip(&devices(1, Precision::F32)) {
        let of = |device| linear(device, &layer(device, &weight, None), &x);
        assert!(of(rounds) == of(plain));
        let blocks = random_blocks(BlockFormat::Q8_0, [9, 512], 0.5, 4);
        let of = |device| linear(device, &layer(device, &blocks, None), &x);
        assert!(of(rounds) != of(plain));
    }
}

#[test]
fn some_columns_of_blocks_are_refused() {
    let weight = random_blocks(BlockFormat::Q4_1, [3, 64], 1.0, 1);
    for device in devices(1, Precision::F32) {
        let part = LinearPart { columns: Some(32..64), ..LinearPart::new(&weight, None) };
        let error = device.new_linear(&[part]).unwrap_err();
        assert!(matches!(error, DeviceError::Contract { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "new_linear: columns of a quantised weight is columns 32 to 64 of 64 of Q4_1, expected all columns"
        );
        let all = LinearPart { columns: Some(0..64), ..LinearPart::new(&weight, None) };
        assert!(device.new_linear(&[all]).is_ok());
    }
}
