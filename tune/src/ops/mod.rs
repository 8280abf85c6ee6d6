//! The operations of a decoder layer between its matrix products, with their backward passes.
//!
//! These functions take and return detached tensors; [`graph`](crate::graph) makes graph nodes of them. Each is a
//! composition of candle's operations, which runs for every float type and on every device. For f32 on the CPU it is
//! instead one pass over memory on all threads, because candle's own operations, run one after the other on one
//! thread, would take longer than the matrix products.

#[cfg(any(test, feature = "cuda"))]
mod gemm;
mod norm;
mod product;
mod rope;
mod silu;
mod softmax;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};

pub use norm::{rms_norm, rms_norm_backward};
pub use product::{product, working_type};
pub use rope::Rotation;
pub use silu::{silu_mul, silu_mul_backward};
pub(crate) use softmax::exp;
pub use softmax::{Visible, softmax_backward, visible_softmax};

/// Smallest task that is given to a thread, in elements.
const ELEMENTS_A_TASK: usize = 1 << 14;

/// Returns the number of rows of `columns` elements in a thread's task.
fn rows_a_task(columns: usize) -> usize {
    ELEMENTS_A_TASK.div_ceil(columns.max(1))
}

/// Returns whether a tensor takes the fast path, which handles f32 on the CPU.
fn is_cpu_f32(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Calls `f` with the elements of an f32 tensor on the CPU, in row-major order.
fn with_elements<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + x.elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(elements)) => f(elements.get(range).unwrap_or(&[])),
        _ => Err(candle_core::Error::msg("expected f32 elements on the CPU")),
    }
}

/// Returns the length of a tensor's last dimension.
fn columns(x: &Tensor) -> Result<usize> {
    x.dim(candle_core::D::Minus1)
}

/// Returns Σ f(i) for i in 0..n, as sixteen interleaved sums, which compilers vectorise.
fn lane_sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let whole = n / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    sums.iter().sum::<f32>() + (whole..n).map(f).sum::<f32>()
}
