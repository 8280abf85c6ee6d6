//! Descriptors of cuBLASLt products, freed on drop.

use std::ptr;

use cudarc::cublaslt::{result, sys};

use super::product::{Shape, WORKSPACE_BYTES, failed};
use crate::device::DeviceError;

/// A product in cuBLASLt's column-major view: outᵀ `[out_cols, rows]` = weight · xᵀ.
pub(super) struct Problem {
    pub(super) description: Description,
    pub(super) weight: Layout,
    pub(super) x: Layout,
    pub(super) out: Layout,
    has_bias: bool,
}

// SAFETY: descriptors are plain host memory, which any thread may use as long as it has exclusive access.
unsafe impl Send for Problem {}

impl std::fmt::Debug for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Problem").field("has_bias", &self.has_bias).finish_non_exhaustive()
    }
}

impl Problem {
    pub(super) fn new(shape: Shape, rows: usize, bias: u64) -> Result<Self, DeviceError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let description = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let description = Description(description.map_err(failed)?);
        // The value of CUBLAS_OP_T, which these bindings do not name.
        let transposed = 1i32;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (half, single) = (sys::cudaDataType_t::CUDA_R_16BF, sys::cudaDataType_t::CUDA_R_32F);
        Ok(Problem {
            description,
            weight: Layout::new(half, shape.in_cols, shape.out_cols, shape.in_cols)?,
            x: Layout::new(half, shape.in_cols, rows, shape.in_cols)?,
            out: Layout::new(if shape.logits { single } else { half }, shape.out_cols, rows, shape.stride)?,
            has_bias: shape.bias,
        })
    }

    /// Changes the number of rows and the bias of the product. The new bias has the same alignment.
    pub(super) fn set(&mut self, rows: usize, bias: u64) -> Result<(), DeviceError> {
        self.x.set_cols(rows)?;
        self.out.set_cols(rows)?;
        if self.has_bias {
            use sys::cublasLtMatmulDescAttributes_t as Attribute;
            self.description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(())
    }
}

pub(super) struct Description(pub(super) sys::cublasLtMatmulDesc_t);

impl Description {
    fn set<T>(&self, name: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), DeviceError> {
        // SAFETY: the description is alive; the value has the attribute's type and is copied.
        let set = unsafe {
            result::set_matmul_desc_attribute(self.0, name, ptr::from_ref(value).cast(), size_of::<T>())
        };
        set.map_err(failed)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by `Problem::new`, and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

pub(super) struct Layout(pub(super) sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Makes the layout of `rows` × `cols` elements in column-major order, with `stride` elements from one
    /// column to the next.
    fn new(kind: sys::cudaDataType, rows: usize, cols: usize, stride: usize) -> Result<Self, DeviceError> {
        let stride = i64::try_from(stride).unwrap_or(i64::MAX);
        let layout = result::create_matrix_layout(kind, rows as u64, cols as u64, stride);
        layout.map(Layout).map_err(failed)
    }

    fn set_cols(&mut self, cols: usize) -> Result<(), DeviceError> {
        let (name, cols) = (sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS, cols as u64);
        // SAFETY: the layout is alive; the value has the attribute's type, uint64_t, and is copied.
        let set = unsafe {
            result::set_matrix_layout_attribute(self.0, name, ptr::from_ref(&cols).cast(), size_of::<u64>())
        };
        set.map_err(failed)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `Layout::new`, and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The constraints on the algorithms that cuBLASLt proposes.
pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Allows all algorithms if `may_split` is true, otherwise only algorithms that do not split a sum.
    pub(super) fn new(may_split: bool) -> Result<Self, DeviceError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref().map_err(failed)?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE_BYTES as u64))?;
        if !may_split {
            // Excludes sums that are split and recombined. Without this attribute, all schemes are allowed.
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &0u32)?;
        }
        // Rows begin at multiples of 16 bytes; without this attribute, algorithms may assume multiples of 256
        // bytes.
        for name in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(name, &16u32)?;
        }
        Ok(preference)
    }

    fn set<T>(&self, name: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), DeviceError> {
        // SAFETY: the preference is alive; the value has the attribute's type and is copied.
        let set = unsafe {
            result::set_matmul_pref_attribute(self.0, name, ptr::from_ref(value).cast(), size_of::<T>())
        };
        set.map_err(failed)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `Preference::new`, and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
