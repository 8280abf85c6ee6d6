//! Matrix products on a GPU, by cuBLASLt.
//!
//! A product of so many rows must have the bits that each row has alone. cuBLASLt picks an algorithm by the
//! number of rows, and some split the sum over columns by it; here one algorithm is chosen for every number
//! of rows, without a split sum, and tried before it is used, when a model is loaded: from one row to the most
//! that an engine asks for, a row's bits must be the same at every count and in every place.

mod choice;
mod problem;
mod tried;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use half::bf16;

use problem::Problem;

use super::products::{ProductMemory, ProductOut, Products, Weights};
use crate::backend::{Backend, BackendError, Cuda, Element, View, ViewMut};
use crate::device::DeviceError;

/// Scratch memory of a product in bytes: what cuBLAS recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Rows that a plan is made for where nothing was prepared: those of a part of a prompt.
const DEFAULT_ROWS: usize = 512;

/// Products by cuBLASLt.
#[derive(Debug)]
pub struct CublasLt {
    context: Arc<CudaContext>,
    handle: Handle,
    workspace: Mutex<CudaSlice<u8>>,
    plans: Mutex<HashMap<Shape, Arc<Plan>>>,
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

/// How products of a shape are done, whatever their number of rows.
#[derive(Debug)]
struct Plan {
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Descriptors, of which a product changes the number of rows and the bias.
    problem: Mutex<Problem>,
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
        Ok(CublasLt { context, handle, workspace, plans: Mutex::default() })
    }

    /// That something is of the context that the products run in: cuBLASLt takes bare addresses.
    fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), DeviceError> {
        if context.cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        Err(BackendError::Context { kernel: "matrix product" }.into())
    }

    /// The plan for a shape, made for up to `rows` rows if there is none.
    fn plan(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        shape: Shape,
        operands: Operands,
        rows: usize,
    ) -> Result<Arc<Plan>, DeviceError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(self.choose(backend, stream, shape, operands, rows)?);
        plans.insert(shape, plan.clone());
        Ok(plan)
    }

    /// Puts a product on the stream.
    fn run(
        &self,
        stream: &Arc<CudaStream>,
        plan: &Plan,
        rows: usize,
        operands: Operands,
    ) -> Result<(), DeviceError> {
        let driver = |error: DriverError| BackendError::Driver(error.to_string());
        self.context.bind_to_thread().map_err(driver)?;
        let mut problem = plan.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.set(rows, operands.bias)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = ViewMut::cuda(&mut *workspace, stream);
        // SAFETY: the descriptors are alive, not in use by another thread (what they say is read before the call
        // returns), and describe memory that the caller checked; scalars are of the type that the description
        // names. The workspace is an allocation, so it begins at a multiple of 256 bytes, as it has to.
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
                &plan.algorithm,
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

    fn prepare(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        layer: &CublasLayer,
        stride: usize,
        rows: usize,
        logits: bool,
    ) -> Result<(), DeviceError> {
        let (weight, bias) = (backend.view(stream, &layer.weight), layer.bias.as_ref());
        let bias = bias.map(|(half, single)| match logits {
            true => backend.view(stream, single).address(),
            false => backend.view(stream, half).address(),
        });
        let CublasLayer { in_cols, out_cols, .. } = *layer;
        let shape = Shape { in_cols, out_cols, stride, logits, bias: bias.is_some() };
        let operands = Operands { weight: weight.address(), x: 0, out: 0, bias: bias.unwrap_or(0) };
        self.plan(backend, stream, shape, operands, rows.max(1)).map(drop)
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
                let plan =
                    self.plan(backend, stream, shape(false), operands, rows.len().max(DEFAULT_ROWS))?;
                self.run(stream, &plan, rows.len(), operands)
            }
            ProductMemory::F32(memory) => {
                let out = part_mut(backend.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(_, bias)| backend.view(stream, bias));
                let operands = operands(out.address(), bias.as_ref().map_or(0, View::address));
                let plan = self.plan(backend, stream, shape(true), operands, rows.len().max(DEFAULT_ROWS))?;
                self.run(stream, &plan, rows.len(), operands)
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
