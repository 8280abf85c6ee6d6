//! Row-invariant matrix products on a GPU, computed by cuBLASLt.
//!
//! A row of a product must have the same bits whatever other rows the product has. cuBLASLt does not guarantee this: it
//! selects an algorithm by the row count, and algorithms sum in different orders. This module therefore selects the
//! algorithms of each shape itself, one per [bucket](buckets) of row counts, among the algorithms that cuBLASLt
//! [proposes](heuristics): the set with the least time, among all sets whose results are equal in all bits. When a
//! model is loaded, a [trial](trial) on the GPU measures the times, and runs each algorithm on [numbers](trial_data)
//! that reveal its order of summation, at [many row counts and places](row_invariance). [`selection`] selects the set,
//! and a [`schedule`] assigns rows to algorithms. [`ProductAlgorithms::Any`] skips all of this.

mod buckets;
mod descriptors;
mod estimated;
mod heuristics;
mod library;
mod plan;
mod product;
mod row_invariance;
mod schedule;
mod selection;
#[cfg(test)]
mod simulated;
mod timing;
mod trial;
mod trial_data;

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use half::bf16;

use library::Library;
use plan::Plans;
use product::{Pointers, Shape, elements, short};
use selection::Surveyed;
use trial::GpuTrial;

use super::products::{ProductMemory, ProductOut, Products, Weights};
use crate::device::DeviceError;
use crate::runtime::{Cuda, CudaMemory, Element, Runtime, View, ViewMut};

pub(super) use estimated::EstimatedProduct;
pub use library::cublas_is_present;
pub use plan::ProductAlgorithms;

/// A cuBLASLt algorithm in a bucket of row counts, with the results of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductCandidate {
    /// Index of the algorithm among the algorithms of the trial.
    pub algorithm: usize,
    /// The row counts of the bucket that were timed: its smallest row count, and its largest one or 1024.
    pub rows: [usize; 2],
    /// Seconds of one product at each of these row counts; `None` if the trial had no time left for timing.
    pub seconds: Option<[f32; 2]>,
    /// Class of equal results: candidates of a class, from any buckets, gave every row equal bits. `None` if
    /// a row's bits differed between two products of the bucket.
    pub class: Option<usize>,
}

/// The matrix products of a GPU device, computed by cuBLASLt.
#[derive(Debug)]
pub struct CublasLt {
    library: Arc<Library>,
    plans: Plans,
}

/// The weights of a linear layer on the GPU.
#[derive(Debug)]
pub struct CublasLayer {
    /// The weight matrix `[out_cols, in_cols]`.
    weight: CudaMemory<bf16>,
    /// The bias in bf16 (for activations) and in f32 (for logits), if there is one.
    bias: Option<(CudaMemory<bf16>, CudaMemory<f32>)>,
    in_cols: usize,
    out_cols: usize,
}

impl CublasLt {
    /// Prepares products in `context`, with their own scratch memory.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if cuBLASLt cannot be found or initialised.
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        Ok(CublasLt {
            library: Arc::new(Library::new(context, stream)?),
            plans: Plans::new(ProductAlgorithms::default()),
        })
    }

    /// Selects the algorithms to use; the default is [row-invariant](ProductAlgorithms::RowInvariant).
    #[must_use]
    pub fn with_algorithms(self, algorithms: ProductAlgorithms) -> Self {
        CublasLt { plans: Plans::new(algorithms), ..self }
    }

    /// Returns the algorithms that cuBLASLt proposes for products of `layer` with up to `rows` rows, as
    /// measured and compared by the trial. No algorithm is selected. Results are logits or activations, with
    /// `stride` elements from one row to the next.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of cuBLASLt or the driver, also if memory runs out.
    pub fn survey(
        &self,
        runtime: &Cuda,
        stream: &Arc<CudaStream>,
        layer: &CublasLayer,
        stride: usize,
        rows: usize,
        logits: bool,
    ) -> Result<Vec<ProductCandidate>, DeviceError> {
        let (shape, pointers) = self.described((runtime, stream), layer, stride, logits)?;
        let buckets = buckets::bucket_of(rows) + 1;
        let algorithms = self.library.candidates(shape, pointers.bias, buckets, &[])?;
        let mut trial =
            GpuTrial::new(&self.library, (runtime, stream), shape, pointers, buckets, &algorithms)?;
        let (surveyed, _) = selection::survey(&mut trial, buckets, &[])?;
        let candidate = |surveyed: Surveyed| {
            let Surveyed { algorithm, bucket, seconds, class } = surveyed;
            ProductCandidate { algorithm, rows: buckets::timed_rows(bucket), seconds, class }
        };
        Ok(surveyed.into_iter().map(candidate).collect())
    }

    /// Returns the shape of a layer's products, and the addresses of its weights and bias.
    fn described(
        &self,
        (runtime, stream): (&Cuda, &Arc<CudaStream>),
        layer: &CublasLayer,
        stride: usize,
        logits: bool,
    ) -> Result<(Shape, Pointers), DeviceError> {
        self.library.check_context(stream.context())?;
        self.library.check_context(layer.weight.context())?;
        let (weight, bias) = (runtime.view(stream, &layer.weight), layer.bias.as_ref());
        let bias = bias.map(|(half, single)| match logits {
            true => runtime.view(stream, single).address(),
            false => runtime.view(stream, half).address(),
        });
        let CublasLayer { in_cols, out_cols, .. } = *layer;
        let shape = Shape { in_cols, out_cols, stride, logits, bias: bias.is_some() };
        Ok((shape, Pointers { weight: weight.address(), x: 0, out: 0, bias: bias.unwrap_or(0) }))
    }
}

impl Products for CublasLt {
    type Runtime = Cuda;
    type Layer = CublasLayer;

    fn new_layer(
        &self,
        runtime: &Cuda,
        stream: &Arc<CudaStream>,
        weights: &Weights,
    ) -> Result<CublasLayer, DeviceError> {
        let upload = |host: &[bf16]| -> Result<_, DeviceError> {
            let mut memory = runtime.allocate(stream, host.len())?;
            runtime.upload(stream, host, &mut memory, 0)?;
            Ok(memory)
        };
        let bias = match &weights.bias {
            Some(host) => {
                let rounded: Vec<bf16> = host.iter().map(|&x| bf16::from_f32(x)).collect();
                let mut exact = runtime.allocate(stream, host.len())?;
                runtime.upload(stream, host, &mut exact, 0)?;
                Some((upload(&rounded)?, exact))
            }
            None => None,
        };
        let (in_cols, out_cols) = (weights.in_cols, weights.out_cols);
        Ok(CublasLayer { weight: upload(&weights.weight)?, bias, in_cols, out_cols })
    }

    fn weight<'a>(&self, layer: &'a CublasLayer) -> &'a CudaMemory<bf16> {
        &layer.weight
    }

    fn prepare(
        &self,
        runtime: &Cuda,
        stream: &Arc<CudaStream>,
        layer: &CublasLayer,
        stride: usize,
        rows: usize,
        logits: bool,
    ) -> Result<(), DeviceError> {
        if self.plans.algorithms() == ProductAlgorithms::Any {
            return Ok(());
        }
        let (shape, pointers) = self.described((runtime, stream), layer, stride, logits)?;
        self.plans.plan(&self.library, (runtime, stream), shape, pointers, rows.max(1), 1).map(drop)
    }

    /// Returns the predicted seconds of a product, from the measurements of its shape's trial: interpolated
    /// linearly between the two row counts at which a bucket was timed, and beyond 1024 rows proportional to
    /// the rows. Unknown before the trial, and with [`ProductAlgorithms::Any`].
    fn seconds(&self, layer: &CublasLayer, rows: usize, logits: bool) -> Option<f32> {
        let CublasLayer { in_cols, out_cols, .. } = *layer;
        let bias = layer.bias.is_some();
        self.plans
            .seconds(rows, |shape| *shape == Shape { in_cols, out_cols, stride: shape.stride, logits, bias })
    }

    fn is_row_invariant(&self) -> bool {
        self.plans.algorithms() == ProductAlgorithms::RowInvariant
    }

    fn multiply(
        &self,
        runtime: &Cuda,
        stream: &Arc<CudaStream>,
        layer: &CublasLayer,
        x: &CudaMemory<bf16>,
        rows: Range<usize>,
        out: ProductOut<'_, Cuda>,
    ) -> Result<(), DeviceError> {
        let out_context = match &out.memory {
            ProductMemory::Bf16(memory) => memory.context(),
            ProductMemory::F32(memory) => memory.context(),
        };
        for context in [stream.context(), x.context(), layer.weight.context(), out_context] {
            self.library.check_context(context)?;
        }
        let ProductOut { stride, first_row, .. } = out;
        let in_cols = layer.in_cols;
        let weight = runtime.view(stream, &layer.weight);
        let input = part(runtime.view(stream, x), elements(&rows, in_cols)?)?;
        let range = elements(&(first_row..first_row.saturating_add(rows.len())), stride)?;
        let shape =
            |logits| Shape { in_cols, out_cols: layer.out_cols, stride, logits, bias: layer.bias.is_some() };
        let pointers = |out, bias| Pointers { weight: weight.address(), x: input.address(), out, bias };
        match out.memory {
            ProductMemory::Bf16(memory) => {
                let out = part_mut(runtime.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(bias, _)| runtime.view(stream, bias));
                let pointers = pointers(out.address(), bias.as_ref().map_or(0, View::address));
                self.plans.multiply(&self.library, (runtime, stream), shape(false), rows.len(), pointers)
            }
            ProductMemory::F32(memory) => {
                let out = part_mut(runtime.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(_, bias)| runtime.view(stream, bias));
                let pointers = pointers(out.address(), bias.as_ref().map_or(0, View::address));
                self.plans.multiply(&self.library, (runtime, stream), shape(true), rows.len(), pointers)
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
