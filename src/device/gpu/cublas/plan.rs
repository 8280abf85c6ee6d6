//! Plans that determine the algorithms for the products of a shape. A plan is made once per shape and used by every
//! product.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUstreamCaptureStatus;
use half::bf16;

use super::descriptors::Problem;
use super::library::Library;
use super::product::{Pointers, Shape, driver};
use super::schedule::Schedule;
use super::trial::GpuTrial;
use super::{buckets, selection};
use crate::device::DeviceError;
use crate::kernels::KernelError;
use crate::runtime::{Cuda, CudaMemory, Runtime, RuntimeError, StreamCall, ViewMut};

/// Number of rows that products of a shape are prepared for by default: a part of a prompt.
const DEFAULT_ROWS: usize = 512;

/// The cuBLASLt algorithms that products may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProductAlgorithms {
    /// Algorithms that give a row the same bits in every product, which lossless decoding needs.
    #[default]
    RowInvariant,
    /// The algorithm that cuBLASLt estimates to be the fastest at each row count. A row's result depends on the other
    /// rows of the product, so drafting can change the tokens: decoding is **not lossless**. For comparisons of speed.
    Any,
}

/// Key of a plan: a shape, and the row count if any algorithm is allowed.
type PlanKey = (Shape, Option<usize>);

/// A plan for the products of a shape.
#[derive(Debug)]
pub(super) struct Plan {
    schedule: Schedule,
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    /// Number of buckets of row counts for which algorithms were searched.
    buckets: AtomicUsize,
    /// The product's descriptors. A product changes the number of rows and the bias in them.
    problem: Mutex<Problem>,
    padding: Option<Mutex<Padding>>,
}

/// Memory for a product whose last rows are padding.
#[derive(Debug)]
struct Padding {
    x: CudaMemory<bf16>,
    out: CudaMemory<u8>,
}

/// The plans of all shapes of products.
#[derive(Debug)]
pub(super) struct Plans {
    algorithms: ProductAlgorithms,
    made: Mutex<HashMap<PlanKey, Arc<Plan>>>,
}

impl Plans {
    /// Makes an empty collection of plans. Its plans will use these algorithms.
    pub(super) fn new(algorithms: ProductAlgorithms) -> Self {
        Plans { algorithms, made: Mutex::default() }
    }

    /// Returns the algorithms that plans use.
    pub(super) fn algorithms(&self) -> ProductAlgorithms {
        self.algorithms
    }

    /// Returns the seconds of a product of `rows` rows, by the plan of a shape that `matches` accepts; `None` if they
    /// are unknown.
    pub(super) fn seconds(&self, rows: usize, matches: impl Fn(&Shape) -> bool) -> Option<f32> {
        let plans = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, plan) = plans.iter().find(|((shape, _), _)| matches(shape))?;
        plan.schedule.seconds(rows)
    }

    /// Returns the plan for products of `rows` rows of a shape. If there is none, this makes one for at least
    /// `least` rows.
    pub(super) fn plan(
        &self,
        library: &Library,
        (runtime, stream): (&Cuda, &Arc<CudaStream>),
        shape: Shape,
        pointers: Pointers,
        rows: usize,
        least: usize,
    ) -> Result<Arc<Plan>, DeviceError> {
        let mut plans = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if self.algorithms == ProductAlgorithms::Any {
            let key = (shape, Some(rows));
            if let Some(plan) = plans.get(&key) {
                return Ok(plan.clone());
            }
            let plan = Arc::new(estimated(library, shape, pointers.bias, rows)?);
            plans.insert(key, plan.clone());
            return Ok(plan);
        }
        let known = plans.get(&(shape, None)).cloned();
        let wanted = buckets::bucket_of(if known.is_some() { rows } else { rows.max(least) }) + 1;
        if let Some(known) = known {
            if wanted <= known.buckets.load(Ordering::Relaxed) {
                return Ok(known);
            }
            // A trial cannot wait for results while the stream is captured, so the existing plan computes larger
            // products in parts.
            if stream.capture_status().map_err(driver)?
                != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
            {
                return Ok(known);
            }
            // If larger products cannot be tried (memory may have run out), they are still computed in parts.
            let extended = chosen(library, (runtime, stream), shape, pointers, wanted, Some(&known));
            let Ok(Some(extended)) = extended else {
                known.buckets.store(wanted, Ordering::Relaxed);
                return Ok(known);
            };
            let plan = Arc::new(extended);
            plans.insert((shape, None), plan.clone());
            return Ok(plan);
        }
        let plan = chosen(library, (runtime, stream), shape, pointers, wanted, None)?;
        let plan = Arc::new(plan.ok_or_else(|| no_algorithm(format!("no algorithm for {shape:?}")))?);
        plans.insert((shape, None), plan.clone());
        Ok(plan)
    }

    /// Enqueues a product of any number of rows on the stream, and makes a plan for it if there is none.
    pub(super) fn multiply(
        &self,
        library: &Arc<Library>,
        (runtime, stream): (&Cuda, &Arc<CudaStream>),
        shape: Shape,
        rows: usize,
        pointers: Pointers,
    ) -> Result<(), DeviceError> {
        if rows == 0 {
            return Ok(());
        }
        let plan = self.plan(library, (runtime, stream), shape, pointers, rows, DEFAULT_ROWS)?;
        // The plan belongs to the shape.
        let place = Arc::as_ptr(&plan) as u64;
        let numbers = [place, rows as u64, pointers.weight, pointers.x, pointers.out, pointers.bias, 0, 0];
        let call = ProductCall { library: library.clone(), plan, shape, rows, pointers };
        Ok(runtime.call(stream, numbers, call)?)
    }
}

/// A call that computes one product on a stream.
#[derive(Clone)]
struct ProductCall {
    library: Arc<Library>,
    plan: Arc<Plan>,
    shape: Shape,
    rows: usize,
    pointers: Pointers,
}

impl StreamCall for ProductCall {
    fn run(&self, stream: &Arc<CudaStream>) -> Result<(), RuntimeError> {
        let Self { library, plan, shape, rows, pointers } = self;
        plan.run(library, stream, *shape, *rows, *pointers).map_err(|error| match error {
            DeviceError::Kernel(KernelError::Runtime(error)) => error,
            other => RuntimeError::Library { library: "cuBLASLt", message: other.to_string() },
        })
    }
}

/// Returns the error of a product that cuBLASLt has no algorithm for.
fn no_algorithm(message: String) -> DeviceError {
    RuntimeError::Library { library: "cuBLASLt", message }.into()
}

/// Returns a plan with the algorithm that cuBLASLt estimates to be the fastest for products of `rows` rows.
fn estimated(library: &Library, shape: Shape, bias: u64, rows: usize) -> Result<Plan, DeviceError> {
    let algorithms = library.proposals(shape, bias, rows, 1, true)?;
    if algorithms.is_empty() {
        return Err(no_algorithm(format!("no algorithm for {rows} rows of {shape:?}")));
    }
    let problem = Mutex::new(Problem::new(shape, rows, bias)?);
    let buckets = AtomicUsize::new(buckets::COUNT);
    Ok(Plan { schedule: Schedule::Whole, algorithms, buckets, problem, padding: None })
}

/// Returns the plan with the algorithms that a trial selects for the first `buckets` buckets. The algorithms of the
/// plan `known` stay; if `known` has no algorithm for some of its own buckets, there is no plan.
fn chosen(
    library: &Library,
    (runtime, stream): (&Cuda, &Arc<CudaStream>),
    shape: Shape,
    pointers: Pointers,
    buckets: usize,
    known: Option<&Plan>,
) -> Result<Option<Plan>, DeviceError> {
    let kept = match known.map(|known| (known, &known.schedule)) {
        None => &[],
        Some((known, Schedule::Buckets(timed))) if timed.len() == known.buckets.load(Ordering::Relaxed) => {
            timed.as_slice()
        }
        Some(_) => return Ok(None),
    };
    let earlier = known.map_or(&[][..], |known| &known.algorithms);
    let algorithms = library.candidates(shape, pointers.bias, buckets, earlier)?;
    let schedule = {
        let mut trial = GpuTrial::new(library, (runtime, stream), shape, pointers, buckets, &algorithms)?;
        selection::choose(&mut trial, buckets, kept)?
    };
    let Some(schedule) = schedule else { return Ok(None) };
    let padding = match schedule {
        Schedule::Padded { rows, .. } => Some(Mutex::new(Padding {
            x: runtime.allocate(stream, rows * shape.in_cols)?,
            out: runtime.allocate(stream, rows * shape.row_bytes())?,
        })),
        Schedule::Buckets(_) | Schedule::Whole => None,
    };
    let problem = Mutex::new(Problem::new(shape, 1, pointers.bias)?);
    Ok(Some(Plan { schedule, algorithms, buckets: AtomicUsize::new(buckets), problem, padding }))
}

impl Plan {
    /// Enqueues the parts of a product on the stream.
    fn run(
        &self,
        library: &Library,
        stream: &Arc<CudaStream>,
        shape: Shape,
        rows: usize,
        pointers: Pointers,
    ) -> Result<(), DeviceError> {
        for part in self.schedule.parts(rows) {
            let missing = || no_algorithm(format!("no algorithm {} for {shape:?}", part.algorithm));
            let algorithm = self.algorithms.get(part.algorithm).ok_or_else(missing)?;
            let pointers = pointers.rows_from(shape, part.rows.start);
            let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
            match &self.padding {
                Some(padding) if part.rows.len() < part.padded => {
                    let mut padding = padding.lock().unwrap_or_else(PoisonError::into_inner);
                    let Padding { x, out } = &mut *padding;
                    let (x, out) =
                        (ViewMut::cuda(x.slice_mut(), stream), ViewMut::cuda(out.slice_mut(), stream));
                    let padded = Pointers { x: x.address(), out: out.address(), ..pointers };
                    let (x_bytes, out_bytes) = (shape.in_cols * size_of::<bf16>(), shape.row_bytes());
                    library.copy(stream, pointers.x, padded.x, part.rows.len() * x_bytes)?;
                    library.launch(stream, &mut problem, algorithm, part.padded, padded)?;
                    library.copy(stream, padded.out, pointers.out, part.rows.len() * out_bytes)?;
                }
                _ => library.launch(stream, &mut problem, algorithm, part.rows.len(), pointers)?,
            }
        }
        Ok(())
    }
}
