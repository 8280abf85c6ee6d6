//! Devices, operands and row contents for the tests of the CPU device.

use flexdraft::device::cpu::{Cpu, CpuBuffer, CpuOptions, InstructionSet};
use flexdraft::device::{Device, Precision};
use flexdraft::tensor::{DType, Tensor};
use half::{bf16, f16};

use super::noise::SplitMix;

/// Returns a CPU device for each instruction set that the machine has.
pub fn devices(threads: usize, precision: Precision) -> Vec<Cpu> {
    let options = CpuOptions { threads, precision };
    let sets = InstructionSet::available();
    assert!(sets.contains(&InstructionSet::Portable));
    sets.into_iter().map(|set| Cpu::with_instruction_set(options, set).unwrap()).collect()
}

/// Returns `len` numbers, uniform in [-1, 1), in another sequence for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut random = SplitMix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d);
    (0..len).map(|_| random.signed()).collect()
}

/// Returns a tensor of pseudo-random numbers.
pub fn weights(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let values = noise(seed, shape.iter().product());
    match dtype {
        DType::F32 => Tensor::from_f32(shape, values),
        DType::F16 => Tensor::from_f16(shape, values.into_iter().map(f16::from_f32).collect()),
        DType::Bf16 => Tensor::from_bf16(shape, values.into_iter().map(bf16::from_f32).collect()),
    }
    .unwrap()
}

/// Returns a buffer with the given rows, rounded as the device rounds activations.
pub fn activations(device: &Cpu, cols: usize, rows: &[Vec<f32>]) -> CpuBuffer {
    let mut buffer = device.new_buffer(cols);
    write(device, &mut buffer, rows);
    buffer
}

/// Returns a logits buffer with the given rows.
pub fn logits(device: &Cpu, cols: usize, rows: &[Vec<f32>]) -> CpuBuffer {
    let mut buffer = device.new_logits(cols);
    write(device, &mut buffer, rows);
    buffer
}

fn write(device: &Cpu, buffer: &mut CpuBuffer, rows: &[Vec<f32>]) {
    device.resize(buffer, rows.len()).unwrap();
    for (r, row) in rows.iter().enumerate() {
        device.edit_row(buffer, r, &mut |to| to.copy_from_slice(row)).unwrap();
    }
}

/// Returns rows of pseudo-random numbers; row r does not depend on the number of rows.
pub fn noise_rows(seed: u64, rows: usize, cols: usize) -> Vec<Vec<f32>> {
    (0..rows).map(|r| noise(seed.wrapping_mul(1000) + r as u64, cols)).collect()
}

/// Returns the bits of every row of a buffer.
pub fn bits(buffer: &CpuBuffer) -> Vec<Vec<u32>> {
    (0..buffer.rows()).map(|r| row_bits(buffer, r)).collect()
}

/// Returns the bits of one row of a buffer.
pub fn row_bits(buffer: &CpuBuffer, row: usize) -> Vec<u32> {
    buffer.row(row).unwrap().iter().map(|x| x.to_bits()).collect()
}
