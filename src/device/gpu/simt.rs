//! Matrix products for the SIMT emulator, by the CPU device on the same memory.

use std::ops::Range;

use half::bf16;

use super::products::{ProductMemory, ProductOut, Products, Weights};
use crate::device::cpu::{self, Cpu, CpuOptions};
use crate::device::{Device, DeviceError, LinearPart, Precision};
use crate::runtime::simt::{Simt, SimtStream};
use crate::tensor::Tensor;

/// Products of the CPU device, rounded like the products of a GPU.
#[derive(Debug)]
pub struct CpuProducts {
    cpu: Cpu,
}

/// The weights of a layer, as device memory and as a layer of the CPU device.
#[derive(Debug)]
pub struct CpuLayer {
    weight: Vec<bf16>,
    linear: cpu::CpuLinear,
}

impl CpuProducts {
    /// Makes products that use `threads` threads.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, DeviceError> {
        Ok(CpuProducts { cpu: Cpu::new(CpuOptions { threads, precision: Precision::Bf16 })? })
    }
}

impl Products for CpuProducts {
    type Runtime = Simt;
    type Layer = CpuLayer;

    fn new_layer(&self, _: &Simt, _: &SimtStream, weights: &Weights) -> Result<CpuLayer, DeviceError> {
        let shape = [weights.out_cols, weights.in_cols];
        let wrong = || DeviceError::Shape {
            operation: "new_linear",
            operand: "weight",
            expected: shape.to_vec(),
            found: vec![weights.weight.len()],
        };
        let weight = Tensor::from_bf16(&shape, weights.weight.clone()).ok_or_else(wrong)?;
        let bias = match &weights.bias {
            Some(bias) => Some(Tensor::from_f32(&[weights.out_cols], bias.clone()).ok_or_else(wrong)?),
            None => None,
        };
        let linear = self.cpu.new_linear(&[LinearPart::new(&weight, bias.as_ref())])?;
        Ok(CpuLayer { weight: weights.weight.clone(), linear })
    }

    fn weight<'a>(&self, layer: &'a CpuLayer) -> &'a Vec<bf16> {
        &layer.weight
    }

    fn multiply(
        &self,
        _: &Simt,
        _: &SimtStream,
        layer: &CpuLayer,
        x: &Vec<bf16>,
        rows: Range<usize>,
        out: ProductOut<'_, Simt>,
    ) -> Result<(), DeviceError> {
        let (in_cols, out_cols) = (layer.linear.in_cols(), layer.linear.out_cols());
        let mut input = self.cpu.new_buffer(in_cols);
        self.cpu.resize(&mut input, rows.len())?;
        for (i, row) in rows.clone().enumerate() {
            let x = x.get(row * in_cols..(row + 1) * in_cols).unwrap_or(&[]);
            self.cpu.edit_row(&mut input, i, &mut |to| {
                to.iter_mut().zip(x).for_each(|(to, x)| *to = x.to_f32());
            })?;
        }
        let ProductOut { mut memory, stride, first_row } = out;
        let mut output = match &memory {
            ProductMemory::Bf16(_) => self.cpu.new_buffer(out_cols),
            ProductMemory::F32(_) => self.cpu.new_logits(out_cols),
        };
        self.cpu.resize(&mut output, rows.len())?;
        self.cpu.linear(&layer.linear, &input, 0..rows.len(), &mut output)?;
        for (i, row) in (first_row..).take(rows.len()).enumerate() {
            let place = row * stride..row * stride + out_cols;
            let from = output.row(i).unwrap_or(&[]);
            match &mut memory {
                ProductMemory::Bf16(memory) => {
                    let to = memory.get_mut(place).unwrap_or(&mut []);
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = bf16::from_f32(x));
                }
                ProductMemory::F32(memory) => {
                    let to = memory.get_mut(place).unwrap_or(&mut []);
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = x);
                }
            }
        }
        Ok(())
    }
}
