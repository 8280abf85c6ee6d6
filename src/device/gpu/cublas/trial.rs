//! Tries cuBLASLt's algorithms on a GPU, and measures their times.
//!
//! Predicted cost for 24 algorithms in five buckets (counted by a test of `selection`), not yet measured on a
//! GPU: some 2,200 products, most of them on a slice of about a thousand output ids and therefore limited by
//! their launches (22 ms at 10 µs); 72,000 rows of results that the host compares (150 MB, or 300 MB of
//! logits, at 4 GB/s: 40 to 80 ms). The model's weights are read some 90 times, and 1,900 rows of their
//! results are compared; timing takes at most a second. An lm_head of 1.2 GB (0.4 ms per product, 1.2 GB of
//! logits to compare) is predicted to take 1.6 s, any other shape of an 8B model less.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaSlice, CudaStream, result};
use half::bf16;

use super::buckets;
use super::descriptors::Problem;
use super::library::Library;
use super::product::{Pointers, Shape, driver};
use super::row_invariance::{ProductTrial, TrialOperands, rows_of_x};
use super::timing::{LAUNCHES, seconds_each};
use super::trial_data::{self, PERIOD};
use crate::device::DeviceError;
use crate::runtime::{Cuda, CudaMemory, Runtime, ViewMut};

/// Seed of the trial's numbers: all trials of a shape use the same numbers.
const SEED: u64 = 1;

/// Number of output ids of the slice on which algorithms are compared: at least four tiles of the largest
/// size, 256, and an incomplete tile of every size.
const SLICE_IDS: usize = 4 * 256 + 40;

/// The maximum size in bytes of the slice's weights; the next constant is for results of the full width.
const SLICE_BYTES: usize = 64 << 20;
const RESULT_BYTES: usize = 256 << 20;

/// Number of rows of the slice's results that are in memory at once.
const SLICE_ROWS: usize = 2 * buckets::MAX_ROWS;

/// The maximum number of bytes copied to the host at once.
const COPIED_BYTES: usize = 16 << 20;

/// Time that a GPU works before timing, so that its clocks have risen; the next constant is how long the
/// clocks stay up.
const WARM_UP: Duration = Duration::from_millis(100);
const STAYS_WARM: Duration = Duration::from_secs(1);

/// One of the two products of a trial: with the model's own weights, or with a slice of made-up weights.
struct Side {
    shape: Shape,
    problem: Problem,
    weight: u64,
    bias: u64,
    /// Number of rows of results for which memory was allocated.
    most_rows: usize,
}

/// The algorithms of cuBLASLt for one shape, and the memory to try them.
pub(super) struct GpuTrial<'a> {
    library: &'a Library,
    runtime: &'a Cuda,
    stream: &'a Arc<CudaStream>,
    algorithms: &'a [cublasLtMatmulAlgo_t],
    model: Side,
    slice: Side,
    /// The slice's weights and bias. The bias is zero, because any other bias would hide how small sums are
    /// rounded.
    _slice_memory: (CudaMemory<bf16>, Option<CudaMemory<f32>>),
    /// The rows of a period for each kind of x: on the host, on the device, and repeated in x.
    periods: [Vec<bf16>; 2],
    period: CudaMemory<bf16>,
    x: CudaMemory<bf16>,
    loaded: Option<usize>,
    out: CudaMemory<u8>,
    rotated: Rotated,
    host: Vec<u8>,
    started: Instant,
}

/// Copies of the model's weights. Each launch reads another copy, because in a decode step no weights are in
/// the L2 cache when their product begins.
struct Rotated {
    addresses: Vec<u64>,
    /// Memory of the copies, if the weights themselves are too small to displace the cache.
    _copies: Option<CudaSlice<u8>>,
    /// Memory that is written before each timing, to displace the cache.
    displacing: Option<CudaSlice<u8>>,
}

impl Rotated {
    fn new(stream: &Arc<CudaStream>, weight: u64, bytes: usize) -> Result<Self, DeviceError> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let l2 = stream.context().attribute(attribute).map_err(driver)?;
        let enough = 2 * usize::try_from(l2).unwrap_or_default();
        if bytes >= enough || bytes == 0 {
            return Ok(Rotated { addresses: vec![weight], _copies: None, displacing: None });
        }
        let count = enough.div_ceil(bytes).min(LAUNCHES);
        let step = bytes.next_multiple_of(256);
        let mut copies = stream.alloc_zeros::<u8>(count * step).map_err(driver)?;
        let first = ViewMut::cuda(&mut copies, stream).address();
        let addresses: Vec<u64> = (0..count).map(|index| first + (index * step) as u64).collect();
        for &address in &addresses {
            // SAFETY: the weights belong to a layer, have `bytes` bytes, and live until the trial ends. The
            // copy has the same number of bytes from each address on, and both are used only on this stream.
            unsafe { result::memcpy_dtod_async(address, weight, bytes, stream.cu_stream()) }
                .map_err(driver)?;
        }
        let displacing = stream.alloc_zeros::<u8>(enough).map_err(driver)?;
        Ok(Rotated { addresses, _copies: Some(copies), displacing: Some(displacing) })
    }
}

impl<'a> GpuTrial<'a> {
    /// Allocates memory for products of the first `buckets` buckets. `pointers` holds the addresses of the
    /// model's weights and bias.
    pub(super) fn new(
        library: &'a Library,
        (runtime, stream): (&'a Cuda, &'a Arc<CudaStream>),
        shape: Shape,
        pointers: Pointers,
        buckets: usize,
        algorithms: &'a [cublasLtMatmulAlgo_t],
    ) -> Result<Self, DeviceError> {
        let started = Instant::now();
        library.context.bind_to_thread().map_err(driver)?;
        let ids = slice_ids(shape);
        let slice = Shape { out_cols: ids, stride: ids.next_multiple_of(8), ..shape };
        let host = trial_data::weights(SEED, ids, shape.in_cols);
        let mut weights = runtime.allocate::<bf16>(stream, host.len())?;
        runtime.upload(stream, &host, &mut weights, 0)?;
        let mut bias = match shape.bias {
            true => Some(runtime.allocate::<f32>(stream, ids)?),
            false => None,
        };
        let weight = runtime.view_mut(stream, &mut weights).address();
        let zeros = bias.as_mut().map_or(0, |bias| runtime.view_mut(stream, bias).address());

        let [_, most_timed] = buckets::timed_rows(buckets.saturating_sub(1));
        let model_rows = most_timed.min(RESULT_BYTES / shape.row_bytes().max(1)).max(1);
        let slice_rows = SLICE_ROWS.min(rows_of_x(buckets).max(buckets::rows_of(3).count()));
        let bytes = (model_rows * shape.row_bytes()).max(slice_rows * slice.row_bytes());
        let out = runtime.allocate(stream, bytes)?;
        let x = runtime.allocate(stream, rows_of_x(buckets) * shape.in_cols)?;
        let period = runtime.allocate(stream, PERIOD * shape.in_cols)?;
        let periods = [trial_data::cancelling(SEED, shape.in_cols), trial_data::noise(SEED, shape.in_cols)];
        let weight_bytes = shape.in_cols * shape.out_cols * size_of::<bf16>();
        let side = |shape, weight, bias, most_rows| -> Result<Side, DeviceError> {
            Ok(Side { shape, problem: Problem::new(shape, 1, bias)?, weight, bias, most_rows })
        };
        let mut trial = GpuTrial {
            library,
            runtime,
            stream,
            algorithms,
            model: side(shape, pointers.weight, pointers.bias, model_rows)?,
            slice: side(slice, weight, zeros, slice_rows)?,
            _slice_memory: (weights, bias),
            periods,
            period,
            x,
            loaded: None,
            out,
            rotated: Rotated::new(stream, pointers.weight, weight_bytes)?,
            host: Vec::new(),
            started,
        };
        trial.warm_up()?;
        Ok(trial)
    }

    /// Lets the GPU work until its clocks have risen, unless an earlier trial has just done so.
    fn warm_up(&mut self) -> Result<(), DeviceError> {
        let last = *self.library.last_trial.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < STAYS_WARM) {
            return Ok(());
        }
        self.load(TrialOperands::Noise)?;
        let rows = self.model.most_rows;
        let begun = Instant::now();
        for index in 0..self.algorithms.len() {
            while begun.elapsed() < WARM_UP && self.enqueue(TrialOperands::Model, index, 0..rows, 0).is_ok() {
                self.stream.synchronize().map_err(driver)?;
            }
        }
        Ok(())
    }

    /// Copies the rows of x for `operands` to the device, if the device holds other rows.
    fn load(&mut self, operands: TrialOperands) -> Result<(), DeviceError> {
        let kind = usize::from(operands != TrialOperands::Cancelling);
        if self.loaded == Some(kind) {
            return Ok(());
        }
        self.loaded = None;
        let Some(host) = self.periods.get(kind) else { return Ok(()) };
        self.runtime.upload(self.stream, host, &mut self.period, 0)?;
        let len = self.x.len();
        for first in (0..len).step_by(host.len().max(1)) {
            let copied = 0..host.len().min(len - first);
            self.runtime.copy(self.stream, &self.period, copied, &mut self.x, first)?;
        }
        self.loaded = Some(kind);
        Ok(())
    }

    /// Enqueues a product of rows `rows` of x on the stream; its results go to the rows of `out` from row
    /// `to` on.
    fn enqueue(
        &mut self,
        operands: TrialOperands,
        algorithm: usize,
        rows: Range<usize>,
        to: usize,
    ) -> Result<(), DeviceError> {
        let side = if operands == TrialOperands::Model { &mut self.model } else { &mut self.slice };
        let Some(algorithm) = self.algorithms.get(algorithm) else { return Ok(()) };
        let x = self.runtime.view(self.stream, &self.x).address();
        let out = self.runtime.view_mut(self.stream, &mut self.out).address();
        let pointers = Pointers { weight: side.weight, x, out, bias: side.bias };
        let pointers = Pointers {
            out: pointers.rows_from(side.shape, to).out,
            ..pointers.rows_from(side.shape, rows.start)
        };
        self.library.launch(self.stream, &mut side.problem, algorithm, rows.len(), pointers)
    }

    /// Passes the results of products, which lie one after another, to `accept`.
    fn accepted(
        &mut self,
        shape: Shape,
        products: &[Range<usize>],
        accept: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<bool, DeviceError> {
        let row_bytes = shape.row_bytes();
        // The bytes between the rows do not belong to the product: they hold values of earlier products.
        let used = row_bytes / shape.stride.max(1) * shape.out_cols;
        let mut rows = products.iter().cloned().flatten();
        let mut left: usize = products.iter().map(ExactSizeIterator::len).sum();
        let at_once = (COPIED_BYTES / row_bytes.max(1)).max(1);
        let mut first = 0;
        while left > 0 {
            let count = left.min(at_once);
            self.host.resize(count * row_bytes, 0);
            self.runtime.download(self.stream, &self.out, first * row_bytes, &mut self.host)?;
            for (bits, row) in self.host.chunks_exact(row_bytes.max(1)).zip(&mut rows) {
                if !accept(row % PERIOD, bits.get(..used).unwrap_or(bits)) {
                    return Ok(false);
                }
            }
            (first, left) = (first + count, left - count);
        }
        Ok(true)
    }
}

impl Drop for GpuTrial<'_> {
    fn drop(&mut self) {
        *self.library.last_trial.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl ProductTrial for GpuTrial<'_> {
    type Error = DeviceError;

    fn algorithms(&self) -> usize {
        self.algorithms.len()
    }

    fn most_rows(&self, operands: TrialOperands) -> usize {
        if operands == TrialOperands::Model { self.model.most_rows } else { self.slice.most_rows }
    }

    fn multiply(
        &mut self,
        operands: TrialOperands,
        algorithm: usize,
        products: &[Range<usize>],
        accept: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<bool, DeviceError> {
        self.load(operands)?;
        let side = if operands == TrialOperands::Model { &self.model } else { &self.slice };
        let (most, shape) = (side.most_rows, side.shape);
        let (mut first, mut used) = (0, 0);
        for (index, rows) in products.iter().enumerate() {
            if rows.len() > most || rows.end * self.model.shape.in_cols > self.x.len() {
                return Ok(false);
            }
            if used + rows.len() > most {
                if !self.accepted(shape, products.get(first..index).unwrap_or(&[]), accept)? {
                    return Ok(false);
                }
                (first, used) = (index, 0);
            }
            // An algorithm that cuBLASLt refuses counts as unable to compute the product; an error of the GPU
            // itself shows in the next copy.
            if self.enqueue(operands, algorithm, rows.clone(), used).is_err() {
                return Ok(false);
            }
            used += rows.len();
        }
        self.accepted(shape, products.get(first..).unwrap_or(&[]), accept)
    }

    /// Times one product of `rows` rows. If memory cannot hold the results of that many rows, fewer rows are
    /// timed and the seconds scaled in proportion.
    fn seconds(&mut self, algorithm: usize, rows: usize) -> Result<Option<f32>, DeviceError> {
        let Some(chosen) = self.algorithms.get(algorithm) else { return Ok(None) };
        let shape = self.model.shape;
        if !self.library.supports(&Problem::new(shape, rows, self.model.bias)?, chosen) {
            return Ok(None);
        }
        let measured = rows.min(self.model.most_rows);
        self.load(TrialOperands::Noise)?;
        // The first launch is not captured: cuBLASLt loads the kernel, which a capture might refuse.
        if self.enqueue(TrialOperands::Model, algorithm, 0..measured, 0).is_err() {
            return Ok(None);
        }
        if let Some(displacing) = &mut self.rotated.displacing {
            self.stream.memset_zeros(displacing).map_err(driver)?;
        }
        let x = self.runtime.view(self.stream, &self.x).address();
        let out = self.runtime.view_mut(self.stream, &mut self.out).address();
        let (stream, bias, addresses) = (self.stream, self.model.bias, &self.rotated.addresses);
        let mut workspace = self.library.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = ViewMut::cuda(&mut *workspace, stream);
        let problem = &mut self.model.problem;
        problem.set(measured, bias)?;
        let mut launch = |index: usize| {
            let weight = addresses.get(index % addresses.len().max(1)).copied().unwrap_or_default();
            let pointers = Pointers { weight, x, out, bias };
            // SAFETY: as in `Library::launch`: the problem describes these operands, which the trial owns or
            // the layer keeps alive; the workspace is locked; all of them are used only on this stream.
            unsafe { self.library.enqueue(stream, problem, chosen, pointers, workspace.address()) }
        };
        let seconds = seconds_each(stream, &mut launch)?;
        Ok(Some(seconds * rows as f32 / measured as f32))
    }

    fn elapsed(&self) -> f32 {
        self.started.elapsed().as_secs_f32()
    }
}

/// Returns the number of output ids of a shape's slice: few enough that the slice's weights are small, with
/// the same remainder modulo the vector width of 8 as the shape's own number.
fn slice_ids(shape: Shape) -> usize {
    let fit = SLICE_BYTES / (shape.in_cols * size_of::<bf16>()).max(1);
    let ids = SLICE_IDS.min(fit) / 8 * 8 + shape.out_cols % 8;
    if ids < shape.out_cols { ids.max(1) } else { shape.out_cols }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_have_whole_tiles_and_an_incomplete_one() {
        let ids = |in_cols, out_cols| {
            slice_ids(Shape { in_cols, out_cols, stride: out_cols, logits: false, bias: false })
        };
        for tile in [16, 32, 64, 96, 128, 192, 256] {
            assert!(ids(4096, 24_576) >= 4 * tile && ids(4096, 24_576) % tile != 0, "{tile}");
        }
        assert_eq!((ids(4096, 151_936), ids(576, 49_153), ids(576, 576), ids(72, 24)), (1064, 1065, 576, 24));
        // The slice's weights have at most about 64 MB, however many columns they have.
        assert!(ids(200_000, 8192) * 200_000 * 2 <= SLICE_BYTES + 7 * 400_000);
    }
}
