//! cuBLASLt's descriptors: objects by which a caller describes a matrix product.

use std::collections::HashMap;

use cudarc::cublaslt::sys::{
    cublasLtEpilogue_t as Epilogue, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cublasStatus_t as Status, cudaDataType_t as DataType,
};

use crate::foreign::In;
use crate::refusal::{Outcome, unsupported};

/// The description of a matrix product without its matrices: number types, transpositions and bias.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    pub compute: u32,
    pub scale: u32,
    pub transposes_a: bool,
    pub transposes_b: bool,
    pub has_bias: bool,
    pub bias: u64,
}

/// The layout of a matrix in column-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub kind: u32,
    pub rows: u64,
    pub cols: u64,
    /// The number of elements from one column to the next.
    pub stride: i64,
}

impl Layout {
    /// Returns the size of one element of the matrix in bytes.
    pub fn element_bytes(&self) -> u64 {
        if self.kind == DataType::CUDA_R_16BF as u32 { 2 } else { 4 }
    }

    /// Returns the number of bytes from the matrix's first element to the end of its last.
    pub fn bytes(&self) -> u64 {
        let before = self.cols.saturating_sub(1).saturating_mul(self.stride.unsigned_abs());
        before.saturating_add(self.rows).saturating_mul(self.element_bytes())
    }
}

/// The demands that a caller makes on proposed algorithms.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    pub workspace: u64,
    pub may_split: bool,
    pub alignment: u32,
}

/// All cuBLASLt objects that callers have created.
#[derive(Debug, Default)]
pub struct Cublas {
    pub handles: Vec<u64>,
    pub descriptions: HashMap<u64, Description>,
    pub layouts: HashMap<u64, Layout>,
    pub preferences: HashMap<u64, Preference>,
    /// The number of products so far, for the algorithm that does not give the same sums each time.
    pub products: u64,
}

impl Cublas {
    /// Returns the number of objects that callers have not destroyed.
    pub fn live(&self) -> usize {
        self.handles.len() + self.descriptions.len() + self.layouts.len() + self.preferences.len()
    }

    pub fn check_handle(&self, handle: u64) -> Outcome {
        if self.handles.contains(&handle) {
            return Ok(());
        }
        unsupported(
            Status::CUBLAS_STATUS_NOT_INITIALIZED,
            format!("{handle:#x} is no handle, or was destroyed"),
        )
    }
}

/// Returns the object that a handle stands for; an error if there is none.
pub fn find<'a, T>(objects: &'a mut HashMap<u64, T>, handle: u64, what: &str) -> Outcome<&'a mut T> {
    let unknown = format!("{handle:#x} is no {what}, or was destroyed");
    objects.get_mut(&handle).map_or_else(|| unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, unknown), Ok)
}

/// The value of a descriptor's attribute, whose size the caller states.
pub struct Value<'a> {
    pub from: &'a In<u8>,
    pub bytes: usize,
}

impl Value<'_> {
    fn read<const N: usize>(&self) -> Outcome<[u8; N]> {
        if self.bytes != N {
            let reason = format!("the attribute has {} bytes, expected {N}", self.bytes);
            return unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, reason);
        }
        let bytes = self.from.copied(N)?;
        <[u8; N]>::try_from(bytes).or_else(|_| unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, "no value"))
    }

    fn u32(&self) -> Outcome<u32> {
        self.read().map(u32::from_ne_bytes)
    }

    fn u64(&self) -> Outcome<u64> {
        self.read().map(u64::from_ne_bytes)
    }
}

fn unknown(attribute: u32) -> Outcome {
    let reason = format!("the stand-in does not know attribute {attribute}");
    unsupported(Status::CUBLAS_STATUS_NOT_SUPPORTED, reason)
}

impl Description {
    pub fn set(&mut self, attribute: u32, value: &Value<'_>) -> Outcome {
        // The values of cublasOperation_t: 0 for a matrix as it is, and 1 for the transposed matrix.
        let transposes = |value: u32| match value {
            0 => Ok(false),
            1 => Ok(true),
            other => unsupported(
                Status::CUBLAS_STATUS_INVALID_VALUE,
                format!("the operation is {other}, expected 0 or 1"),
            ),
        };
        if attribute == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA as u32 {
            self.transposes_a = transposes(value.u32()?)?;
        } else if attribute == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB as u32 {
            self.transposes_b = transposes(value.u32()?)?;
        } else if attribute == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSC as u32 {
            if transposes(value.u32()?)? {
                return unsupported(Status::CUBLAS_STATUS_NOT_SUPPORTED, "C cannot be transposed");
            }
        } else if attribute == DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE as u32 {
            let epilogue = value.u32()?;
            self.has_bias = epilogue == Epilogue::CUBLASLT_EPILOGUE_BIAS as u32;
            if !self.has_bias && epilogue != Epilogue::CUBLASLT_EPILOGUE_DEFAULT as u32 {
                return unsupported(
                    Status::CUBLAS_STATUS_NOT_SUPPORTED,
                    format!("the stand-in knows the epilogue of a bias and the default, not {epilogue}"),
                );
            }
        } else if attribute == DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER as u32 {
            self.bias = value.u64()?;
        } else {
            return unknown(attribute);
        }
        Ok(())
    }
}

impl Layout {
    pub fn set(&mut self, attribute: u32, value: &Value<'_>) -> Outcome {
        if attribute == LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_COLS as u32 {
            self.cols = value.u64()?;
        } else if attribute == LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_ROWS as u32 {
            self.rows = value.u64()?;
        } else {
            return unknown(attribute);
        }
        Ok(())
    }
}

impl Preference {
    pub fn set(&mut self, attribute: u32, value: &Value<'_>) -> Outcome {
        let alignments = [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as u32,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES as u32,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES as u32,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as u32,
        ];
        if attribute == PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32 {
            self.workspace = value.u64()?;
        } else if attribute == PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as u32 {
            self.may_split = value.u32()? != 0;
        } else if alignments.contains(&attribute) {
            self.alignment = self.alignment.min(value.u32()?);
        } else {
            return unknown(attribute);
        }
        Ok(())
    }
}
