//! The description of one product: its shape, the addresses of its operands, and its errors.

use std::ops::Range;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use half::bf16;

use crate::device::DeviceError;
use crate::runtime::RuntimeError;

/// Scratch memory of a product in bytes: cuBLAS's recommendation for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// The properties of a product for which algorithms are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) in_cols: usize,
    pub(super) out_cols: usize,
    /// Elements from one row of the results to the next.
    pub(super) stride: usize,
    pub(super) logits: bool,
    pub(super) bias: bool,
}

impl Shape {
    /// Returns the bytes from one row of the results to the next.
    pub(super) fn row_bytes(&self) -> usize {
        self.stride * if self.logits { size_of::<f32>() } else { size_of::<bf16>() }
    }
}

/// Device addresses of a product's operands.
#[derive(Clone, Copy)]
pub(super) struct Pointers {
    pub(super) weight: u64,
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) bias: u64,
}

impl Pointers {
    /// Returns the same operands, starting at row `row` of x and of the results.
    pub(super) fn rows_from(self, shape: Shape, row: usize) -> Self {
        let x = self.x + (row * shape.in_cols * size_of::<bf16>()) as u64;
        Pointers { x, out: self.out + (row * shape.row_bytes()) as u64, ..self }
    }
}

pub(super) fn failed(error: CublasError) -> DeviceError {
    RuntimeError::Library { library: "cuBLASLt", message: error.to_string() }.into()
}

pub(super) fn driver(error: DriverError) -> DeviceError {
    RuntimeError::from(error).into()
}

/// Returns the error for a range of memory that is shorter than the product's rows.
pub(super) fn short(wanted: usize, found: usize) -> DeviceError {
    RuntimeError::CopyLength { wanted, found }.into()
}

/// Returns the range of elements that `rows` occupy, with `cols` elements per row.
pub(super) fn elements(rows: &Range<usize>, cols: usize) -> Result<Range<usize>, DeviceError> {
    let overflow = DeviceError::Overflow { operation: "linear", operand: "rows" };
    let end = rows.end.checked_mul(cols).ok_or(overflow)?;
    Ok(rows.start.min(rows.end) * cols..end)
}
