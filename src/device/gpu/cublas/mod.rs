//! Matrix products on a GPU, by cuBLASLt.
//!
//! A product of so many rows must have the bits that each row has alone. cuBLASLt picks an algorithm by the
//! number of rows, and some split the sum over columns by it; here one algorithm is chosen for every number
//! of rows, without a split sum, and tried before it is used: at row counts around the edges of tiles, a
//! row's bits must be the same at every count.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;

use super::products::{ProductMemory, ProductOut, Products, Weights};
use crate::backend::{Backend, BackendError, Cuda, Element, View, ViewMut};
use crate::device::DeviceError;

/// Scratch memory of a product in bytes: what cuBLAS recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Algorithms that are tried for a shape.
const CANDIDATES: usize = 32;

/// Rows that algorithms are asked for at, those of a small batch's verification …
const USUAL_ROWS: usize = 16;

/// … and numbers of rows whose results are compared.
const TRIED_ROWS: [usize; 11] = [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128];

/// Products by cuBLASLt.
#[derive(Debug)]
pub struct CublasLt {
    context: Arc<CudaContext>,
    handle: Handle,
    workspace: Mutex<CudaSlice<u8>>,
    algorithms: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
}

/// Weights of a layer on the GPU.
#[derive(Debug)]
pub struct CublasLayer {
    /// `[out_cols, in_cols]`.
    weight: CudaSlice<bf16>,
    /// In the type of either kind of output.
    bias: Option<(CudaSlice<bf16>, CudaSlice<f32>)>,
    in_cols: usize,
    out_cols: usize,
}

/// What an algorithm is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    in_cols: usize,
    out_cols: usize,
    stride: usize,
    logits: bool,
    bias: bool,
}

/// A product's operands: device addresses.
#[derive(Clone, Copy)]
struct Operands {
    weight: u64,
    x: u64,
    out: u64,
    bias: u64,
}

#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

// SAFETY: a cuBLASLt handle may be used by any thread, and by several at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `CublasLt::new` and destroyed once. An error of it has nobody to go to.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

fn failed(error: CublasError) -> DeviceError {
    BackendError::Driver(format!("cuBLASLt: {error}")).into()
}

/// A part of memory that ends before the product's rows do.
fn short(wanted: usize, found: usize) -> DeviceError {
    BackendError::CopyLength { wanted, found }.into()
}

/// What [`cublas_is_present`] falls back to: where another crate of the build makes cudarc link its libraries, a
/// process that runs has them.
#[allow(dead_code)]
unsafe fn is_culib_present() -> bool {
    true
}

/// Elements of rows of `cols` each.
fn elements(rows: &Range<usize>, cols: usize) -> Result<Range<usize>, DeviceError> {
    let end = rows.end.checked_mul(cols).ok_or_else(|| short(usize::MAX, 0))?;
    Ok(rows.start.min(rows.end) * cols..end)
}

/// Whether cuBLASLt can be loaded; cudarc panics where it cannot.
pub fn cublas_is_present() -> bool {
    // Hides the function above where cudarc loads the library itself.
    #[allow(unused_imports)]
    use cudarc::cublaslt::sys::*;
    // SAFETY: loads a library whose initialisers have no preconditions.
    unsafe { is_culib_present() }
}

impl CublasLt {
    /// Products in `context`, with scratch memory of their own.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] where there is no cuBLASLt, or it cannot be initialised.
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        let unavailable = |reason: String| DeviceError::Unavailable {
            requested: format!("cuda:{}", context.ordinal()),
            reason,
        };
        if !cublas_is_present() {
            return Err(unavailable("cuBLASLt (libcublasLt.so) cannot be found".into()));
        }
        context.bind_to_thread().map_err(|error| unavailable(error.to_string()))?;
        let handle = Handle(result::create_handle().map_err(|error| unavailable(error.to_string()))?);
        let workspace =
            stream.alloc_zeros(WORKSPACE_BYTES).map_err(|error| unavailable(error.to_string()))?;
        let (context, workspace) = (context.clone(), Mutex::new(workspace));
        Ok(CublasLt { context, handle, workspace, algorithms: Mutex::default() })
    }

    /// That something is of the context that the products run in: cuBLASLt takes bare addresses.
    fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), DeviceError> {
        if context.cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        Err(BackendError::Context { kernel: "matrix product" }.into())
    }

    /// The algorithm for a shape, tried once.
    fn algorithm(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        shape: Shape,
        operands: Operands,
    ) -> Result<sys::cublasLtMatmulAlgo_t, DeviceError> {
        let mut known = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = known.get(&shape) {
            return Ok(*algorithm);
        }
        for candidate in self.candidates(shape, operands)? {
            if self.is_row_invariant(backend, stream, shape, operands, &candidate)? {
                known.insert(shape, candidate);
                return Ok(candidate);
            }
        }
        Err(BackendError::Driver(format!("cuBLASLt has no row-invariant algorithm for {shape:?}")).into())
    }

    /// What cuBLASLt proposes for the usual number of rows, without a split sum, the fastest first.
    fn candidates(
        &self,
        shape: Shape,
        operands: Operands,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, DeviceError> {
        let problem = Problem::new(shape, USUAL_ROWS, operands.bias)?;
        let preference = Preference::new()?;
        let nothing: sys::cublasLtMatmulHeuristicResult_t =
            // SAFETY: numbers and an enumeration of which 0 is a value.
            unsafe { std::mem::zeroed() };
        let mut found = vec![nothing; CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptors are alive, and there is room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                problem.description.0,
                problem.weight.0,
                problem.x.0,
                problem.out.0,
                problem.out.0,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        status.result().map_err(failed)?;
        found.truncate(usize::try_from(count).unwrap_or_default());
        let works = |found: &&sys::cublasLtMatmulHeuristicResult_t| {
            found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        Ok(found.iter().filter(works).map(|found| found.algo).collect())
    }

    /// Whether every row of noise has the same bits at all of [`TRIED_ROWS`].
    fn is_row_invariant(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        shape: Shape,
        operands: Operands,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<bool, DeviceError> {
        let most = TRIED_ROWS.iter().copied().max().unwrap_or(1);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
        };
        let host: Vec<bf16> = (0..most * shape.in_cols).map(|_| noise()).collect();
        let mut x = backend.allocate::<bf16>(stream, host.len())?;
        backend.upload(stream, &host, &mut x, 0)?;
        let bytes = shape.stride * if shape.logits { 4 } else { 2 };
        let mut results: Vec<Vec<u8>> = Vec::new();
        for rows in TRIED_ROWS {
            let mut out = backend.allocate::<u8>(stream, rows * bytes)?;
            {
                let (x, out) = (backend.view(stream, &x), backend.view_mut(stream, &mut out));
                let operands = Operands { x: x.address(), out: out.address(), ..operands };
                if self.run(stream, shape, rows, operands, algorithm).is_err() {
                    return Ok(false);
                }
            }
            let mut bits = vec![0; rows * bytes];
            backend.download(stream, &out, 0, &mut bits)?;
            results.push(bits);
        }
        let Some(longest) = results.iter().max_by_key(|bits| bits.len()) else { return Ok(false) };
        Ok(results.iter().all(|bits| longest.starts_with(bits)))
    }

    /// Puts a product on the stream.
    fn run(
        &self,
        stream: &Arc<CudaStream>,
        shape: Shape,
        rows: usize,
        operands: Operands,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|error| BackendError::Driver(error.to_string()))?;
        let problem = Problem::new(shape, rows, operands.bias)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = ViewMut::cuda(&mut *workspace, stream);
        // SAFETY: the descriptors are alive and describe memory that the caller checked; scalars are of the
        // type that the description names.
        unsafe {
            result::matmul(
                self.handle.0,
                problem.description.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                operands.weight as *const c_void,
                problem.weight.0,
                operands.x as *const c_void,
                problem.x.0,
                operands.out as *const c_void,
                problem.out.0,
                operands.out as *mut c_void,
                problem.out.0,
                algorithm,
                workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

impl Products for CublasLt {
    type Backend = Cuda;
    type Layer = CublasLayer;

    fn new_layer(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        weights: &Weights,
    ) -> Result<CublasLayer, DeviceError> {
        let upload = |host: &[bf16]| -> Result<_, DeviceError> {
            let mut memory = backend.allocate(stream, host.len())?;
            backend.upload(stream, host, &mut memory, 0)?;
            Ok(memory)
        };
        let bias = match &weights.bias {
            Some(host) => {
                let rounded: Vec<bf16> = host.iter().map(|&x| bf16::from_f32(x)).collect();
                let mut exact = backend.allocate(stream, host.len())?;
                backend.upload(stream, host, &mut exact, 0)?;
                Some((upload(&rounded)?, exact))
            }
            None => None,
        };
        let (in_cols, out_cols) = (weights.in_cols, weights.out_cols);
        Ok(CublasLayer { weight: upload(&weights.weight)?, bias, in_cols, out_cols })
    }

    fn weight<'a>(&self, layer: &'a CublasLayer) -> &'a CudaSlice<bf16> {
        &layer.weight
    }

    fn multiply(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        layer: &CublasLayer,
        x: &CudaSlice<bf16>,
        rows: Range<usize>,
        out: ProductOut<'_, Cuda>,
    ) -> Result<(), DeviceError> {
        let out_context = match &out.memory {
            ProductMemory::Bf16(memory) => memory.context(),
            ProductMemory::F32(memory) => memory.context(),
        };
        for context in [stream.context(), x.context(), layer.weight.context(), out_context] {
            self.check_context(context)?;
        }
        let ProductOut { stride, first_row, .. } = out;
        let in_cols = layer.in_cols;
        let weight = backend.view(stream, &layer.weight);
        let input = part(backend.view(stream, x), elements(&rows, in_cols)?)?;
        let range = elements(&(first_row..first_row.saturating_add(rows.len())), stride)?;
        let shape =
            |logits| Shape { in_cols, out_cols: layer.out_cols, stride, logits, bias: layer.bias.is_some() };
        let operands = |out, bias| Operands { weight: weight.address(), x: input.address(), out, bias };
        match out.memory {
            ProductMemory::Bf16(memory) => {
                let out = part_mut(backend.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(bias, _)| backend.view(stream, bias));
                let operands = operands(out.address(), bias.as_ref().map_or(0, View::address));
                let algorithm = self.algorithm(backend, stream, shape(false), operands)?;
                self.run(stream, shape(false), rows.len(), operands, &algorithm)
            }
            ProductMemory::F32(memory) => {
                let out = part_mut(backend.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(_, bias)| backend.view(stream, bias));
                let operands = operands(out.address(), bias.as_ref().map_or(0, View::address));
                let algorithm = self.algorithm(backend, stream, shape(true), operands)?;
                self.run(stream, shape(true), rows.len(), operands, &algorithm)
            }
        }
    }
}

fn part<T: Element>(view: View<'_, T>, range: Range<usize>) -> Result<View<'_, T>, DeviceError> {
    let (wanted, found) = (range.end, view.len());
    view.range(range).ok_or_else(|| short(wanted, found))
}

fn part_mut<T: Element>(view: ViewMut<'_, T>, range: Range<usize>) -> Result<ViewMut<'_, T>, DeviceError> {
    let (wanted, found) = (range.end, view.len());
    view.range(range).ok_or_else(|| short(wanted, found))
}

/// A product as cuBLASLt has it, column by column: outᵀ `[out_cols, rows]` = weight · xᵀ.
struct Problem {
    description: Description,
    weight: Layout,
    x: Layout,
    out: Layout,
}

impl Problem {
    fn new(shape: Shape, rows: usize, bias: u64) -> Result<Self, DeviceError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let description = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let description = Description(description.map_err(failed)?);
        // CUBLAS_OP_T, which these bindings do not name.
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
        })
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn set<T>(&self, name: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), DeviceError> {
        // SAFETY: the description is alive; the value is of the attribute's type and copied.
        let set = unsafe {
            result::set_matmul_desc_attribute(self.0, name, ptr::from_ref(value).cast(), size_of::<T>())
        };
        set.map_err(failed)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by `Problem::new` and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// `rows` × `cols` elements, column by column, `stride` from one column to the next.
    fn new(kind: sys::cudaDataType, rows: usize, cols: usize, stride: usize) -> Result<Self, DeviceError> {
        let stride = i64::try_from(stride).unwrap_or(i64::MAX);
        let layout = result::create_matrix_layout(kind, rows as u64, cols as u64, stride);
        layout.map(Layout).map_err(failed)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `Layout::new` and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, DeviceError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref().map_err(failed)?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE_BYTES as u64))?;
        // No sum that is split and put together again.
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &0u32)?;
        // Rows begin at multiples of 16 bytes.
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
        // SAFETY: the preference is alive; the value is of the attribute's type and copied.
        let set = unsafe {
            result::set_matmul_pref_attribute(self.0, name, ptr::from_ref(value).cast(), size_of::<T>())
        };
        set.map_err(failed)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `Preference::new` and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
