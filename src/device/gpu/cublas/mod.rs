//! Matrix products on a GPU, by cuBLASLt.
//!
//! A row of a product must have the same bits whatever other rows the product has. cuBLASLt does not promise this: it
//! picks an algorithm by the row count, and algorithms sum in different orders. So a shape's algorithms are chosen here,
//! one per [bucket](buckets) of row counts, out of what cuBLASLt [proposes](heuristics): of all sets whose results are
//! equal in all bits, the one that takes the least time. A [trial](trial) on the GPU, when a model is loaded, measures
//! the times and runs each algorithm on [numbers](trial_data) that show its order of summation, at
//! [many row counts and places](row_invariance). [`selection`] decides, and a [`schedule`] says which algorithm does
//! which rows. [`ProductAlgorithms::Any`] does without all this.

mod buckets;
mod descriptors;
mod heuristics;
mod plan;
mod row_invariance;
mod schedule;
mod selection;
#[cfg(test)]
mod simulated;
mod timing;
mod trial;
mod trial_data;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use half::bf16;

use descriptors::Problem;
use plan::{Plan, PlanKey};
use selection::Surveyed;
use trial::GpuTrial;

use super::products::{ProductMemory, ProductOut, Products, Weights};
use crate::backend::{Backend, BackendError, Cuda, Element, View, ViewMut};
use crate::device::DeviceError;

/// Scratch memory of a product in bytes: what cuBLAS recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Which algorithms of cuBLASLt may multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProductAlgorithms {
    /// Algorithms that give a row the same bits in every product, which lossless decoding needs.
    #[default]
    RowInvariant,
    /// The one that cuBLASLt estimates to be the fastest at each row count. A row's result depends on the rows beside
    /// it, so drafting can change the tokens: decoding is **not lossless**. For comparisons of speed.
    Any,
}

/// An algorithm of cuBLASLt in a bucket of row counts, as a trial found it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductCandidate {
    /// Which algorithm, of those that were tried.
    pub algorithm: usize,
    /// The row counts of the bucket that were timed: its smallest one, and its largest one or 1024.
    pub rows: [usize; 2],
    /// Seconds of a product of each; `None` if the trial's time for timing was over.
    pub seconds: Option<[f32; 2]>,
    /// Candidates of a class, of whatever buckets, gave every row equal bits. `None` if a row's bits differed between
    /// two products of the bucket.
    pub class: Option<usize>,
}

/// Products by cuBLASLt.
#[derive(Debug)]
pub struct CublasLt {
    context: Arc<CudaContext>,
    handle: Handle,
    workspace: Mutex<CudaSlice<u8>>,
    algorithms: ProductAlgorithms,
    plans: Mutex<HashMap<PlanKey, Arc<Plan>>>,
    /// When the last trial ended: a GPU's clocks fall some time after its work.
    last_trial: Mutex<Option<Instant>>,
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

/// What algorithms are chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    in_cols: usize,
    out_cols: usize,
    /// Elements from a row of the results to the next.
    stride: usize,
    logits: bool,
    bias: bool,
}

impl Shape {
    /// Bytes from a row of the results to the next.
    fn row_bytes(&self) -> usize {
        self.stride * if self.logits { size_of::<f32>() } else { size_of::<bf16>() }
    }
}

/// Device addresses of a product's operands.
#[derive(Clone, Copy)]
struct Pointers {
    weight: u64,
    x: u64,
    out: u64,
    bias: u64,
}

impl Pointers {
    /// The same operands from row `row` of x and of the results on.
    fn rows_from(self, shape: Shape, row: usize) -> Self {
        let x = self.x + (row * shape.in_cols * size_of::<bf16>()) as u64;
        Pointers { x, out: self.out + (row * shape.row_bytes()) as u64, ..self }
    }
}

#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

// SAFETY: a cuBLASLt handle may be used by any thread, and by several at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `CublasLt::new` and destroyed once. Drop cannot report an error, so it is ignored.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

fn failed(error: CublasError) -> DeviceError {
    BackendError::Driver(format!("cuBLASLt: {error}")).into()
}

fn driver(error: DriverError) -> DeviceError {
    BackendError::Driver(error.to_string()).into()
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
        let (algorithms, plans, last_trial) =
            (ProductAlgorithms::RowInvariant, Mutex::default(), Mutex::default());
        Ok(CublasLt { context, handle, workspace, algorithms, plans, last_trial })
    }

    /// The same library with these algorithms; [row-invariant](ProductAlgorithms::RowInvariant) ones otherwise.
    #[must_use]
    pub fn with_algorithms(self, algorithms: ProductAlgorithms) -> Self {
        CublasLt { algorithms, plans: Mutex::default(), ..self }
    }

    /// Refuses what is of another context than the products: cuBLASLt takes bare addresses.
    fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), DeviceError> {
        if context.cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        Err(BackendError::Context { kernel: "matrix product" }.into())
    }

    /// What cuBLASLt proposes for products of `layer` of up to `rows` rows, as the trial measures and compares it; no
    /// algorithm is chosen. Results are logits or activations, with `stride` elements from a row to the next.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of cuBLASLt or the driver, for lack of memory too.
    pub fn survey(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        layer: &CublasLayer,
        stride: usize,
        rows: usize,
        logits: bool,
    ) -> Result<Vec<ProductCandidate>, DeviceError> {
        let (shape, pointers) = self.described((backend, stream), layer, stride, logits)?;
        let buckets = buckets::bucket_of(rows) + 1;
        let algorithms = self.candidates(shape, pointers.bias, buckets, &[])?;
        let mut trial = GpuTrial::new(self, (backend, stream), shape, pointers, buckets, &algorithms)?;
        let (surveyed, _) = selection::survey(&mut trial, buckets, &[])?;
        let candidate = |surveyed: Surveyed| {
            let Surveyed { algorithm, bucket, seconds, class } = surveyed;
            ProductCandidate { algorithm, rows: buckets::timed_rows(bucket), seconds, class }
        };
        Ok(surveyed.into_iter().map(candidate).collect())
    }

    /// The shape of a layer's products, and where its weights and bias are.
    fn described(
        &self,
        (backend, stream): (&Cuda, &Arc<CudaStream>),
        layer: &CublasLayer,
        stride: usize,
        logits: bool,
    ) -> Result<(Shape, Pointers), DeviceError> {
        self.check_context(stream.context())?;
        self.check_context(layer.weight.context())?;
        let (weight, bias) = (backend.view(stream, &layer.weight), layer.bias.as_ref());
        let bias = bias.map(|(half, single)| match logits {
            true => backend.view(stream, single).address(),
            false => backend.view(stream, half).address(),
        });
        let CublasLayer { in_cols, out_cols, .. } = *layer;
        let shape = Shape { in_cols, out_cols, stride, logits, bias: bias.is_some() };
        Ok((shape, Pointers { weight: weight.address(), x: 0, out: 0, bias: bias.unwrap_or(0) }))
    }

    /// Copies `bytes` bytes of device memory that the caller checked, on the stream.
    fn copy(&self, stream: &Arc<CudaStream>, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(driver)?;
        // SAFETY: one side is the padding, which has more rows and which a view holds; the other is the rows of a
        // product's operand, which `multiply` checked and holds views of. They do not overlap.
        unsafe { cudarc::driver::result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
            .map_err(driver)
    }

    /// Puts one product of `rows` rows on the stream.
    fn launch(
        &self,
        stream: &Arc<CudaStream>,
        problem: &mut Problem,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        rows: usize,
        pointers: Pointers,
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(driver)?;
        problem.set(rows, pointers.bias)?;
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = ViewMut::cuda(&mut *workspace, stream);
        // SAFETY: the descriptors were just set to this product, whose memory the caller checked; the workspace is
        // locked and its view orders it behind its last use.
        unsafe { self.enqueue(stream, problem, algorithm, pointers, workspace.address()) }
    }

    /// Calls cuBLASLt, with the context bound to this thread.
    ///
    /// # Safety
    ///
    /// `problem` describes memory at `pointers` that stays valid until the product has run; `workspace` is the address
    /// of [`WORKSPACE_BYTES`] bytes that nothing else uses meanwhile.
    unsafe fn enqueue(
        &self,
        stream: &Arc<CudaStream>,
        problem: &Problem,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        pointers: Pointers,
        workspace: u64,
    ) -> Result<(), DeviceError> {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the descriptors are alive, and no other thread uses them (cuBLASLt reads them before it returns); the
        // scalars are of the type that the description names, and read before the call returns. The workspace is an
        // allocation, so it begins at a multiple of 256 bytes, as it has to. The rest is the caller's promise.
        unsafe {
            result::matmul(
                self.handle.0,
                problem.description.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                pointers.weight as *const c_void,
                problem.weight.0,
                pointers.x as *const c_void,
                problem.x.0,
                pointers.out as *const c_void,
                problem.out.0,
                pointers.out as *mut c_void,
                problem.out.0,
                algorithm,
                workspace as *mut c_void,
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
        if self.algorithms == ProductAlgorithms::Any {
            return Ok(());
        }
        let (shape, pointers) = self.described((backend, stream), layer, stride, logits)?;
        self.plan((backend, stream), shape, pointers, rows.max(1), 1).map(drop)
    }

    /// Measured by the trial of a shape: on a straight line between the two row counts at which a bucket was timed,
    /// beyond 1024 rows in proportion to the rows. Unknown before the trial, and with [`ProductAlgorithms::Any`].
    fn seconds(&self, layer: &CublasLayer, rows: usize, logits: bool) -> Option<f32> {
        let CublasLayer { in_cols, out_cols, .. } = *layer;
        let bias = layer.bias.is_some();
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, plan) = plans.iter().find(|((shape, _), _)| {
            *shape == Shape { in_cols, out_cols, stride: shape.stride, logits, bias }
        })?;
        plan.schedule.seconds(rows)
    }

    fn is_row_invariant(&self) -> bool {
        self.algorithms == ProductAlgorithms::RowInvariant
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
        let pointers = |out, bias| Pointers { weight: weight.address(), x: input.address(), out, bias };
        match out.memory {
            ProductMemory::Bf16(memory) => {
                let out = part_mut(backend.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(bias, _)| backend.view(stream, bias));
                let pointers = pointers(out.address(), bias.as_ref().map_or(0, View::address));
                self.multiply_at((backend, stream), shape(false), rows.len(), pointers)
            }
            ProductMemory::F32(memory) => {
                let out = part_mut(backend.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(_, bias)| backend.view(stream, bias));
                let pointers = pointers(out.address(), bias.as_ref().map_or(0, View::address));
                self.multiply_at((backend, stream), shape(true), rows.len(), pointers)
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
