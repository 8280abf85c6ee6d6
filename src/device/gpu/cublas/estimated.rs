//! Products of one size, by the algorithm that cuBLASLt estimates to be the fastest.

use std::sync::Arc;

use cudarc::cublaslt::sys;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;

use super::descriptors::Problem;
use super::library::Library;
use super::product::{Pointers, Shape, short};
use crate::device::DeviceError;
use crate::runtime::{RuntimeError, View, ViewMut};

/// A product `[rows, out_cols]` of activations `[rows, in_cols]` and weights `[out_cols, in_cols]`.
pub(in super::super) struct EstimatedProduct {
    library: Library,
    problem: Problem,
    algorithm: sys::cublasLtMatmulAlgo_t,
    shape: Shape,
    rows: usize,
}

impl EstimatedProduct {
    /// Opens cuBLASLt, and asks it for an algorithm.
    pub(in super::super) fn new(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        [rows, in_cols, out_cols]: [usize; 3],
    ) -> Result<Self, DeviceError> {
        let library = Library::new(context, stream)?;
        let shape = Shape { in_cols, out_cols, stride: out_cols, logits: false, bias: false };
        let missing = || RuntimeError::Library {
            library: "cuBLASLt",
            message: format!("no algorithm for {rows} rows of {shape:?}"),
        };
        let algorithm = *library.proposals(shape, 0, rows, 1, true)?.first().ok_or_else(missing)?;
        let problem = Problem::new(shape, rows, 0)?;
        Ok(EstimatedProduct { library, problem, algorithm, shape, rows })
    }

    /// Enqueues the product on the stream.
    pub(in super::super) fn run(
        &mut self,
        stream: &Arc<CudaStream>,
        weight: &CudaSlice<bf16>,
        x: &CudaSlice<bf16>,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), DeviceError> {
        let Shape { in_cols, out_cols, .. } = self.shape;
        let elements = [out_cols * in_cols, self.rows * in_cols, self.rows * out_cols];
        for (wanted, found) in elements.into_iter().zip([weight.len(), x.len(), out.len()]) {
            if found < wanted {
                return Err(short(wanted, found));
            }
        }
        let (weight, x, out) =
            (View::cuda(weight, stream), View::cuda(x, stream), ViewMut::cuda(out, stream));
        let pointers = Pointers { weight: weight.address(), x: x.address(), out: out.address(), bias: 0 };
        self.library.launch(stream, &mut self.problem, &self.algorithm, self.rows, pointers)
    }
}
