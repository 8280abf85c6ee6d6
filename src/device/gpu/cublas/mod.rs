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

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;

use library::Library;
use plan::Plans;
use product::{Pointers, Shape, elements, short};
use selection::Surveyed;
use trial::GpuTrial;

use super::products::{ProductMemory, ProductOut, Products, Weights};
use crate::backend::{Backend, Cuda, Element, View, ViewMut};
use crate::device::DeviceError;

pub use library::cublas_is_present;
pub use plan::ProductAlgorithms;

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
    library: Library,
    plans: Plans,
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

impl CublasLt {
    /// Products in `context`, with scratch memory of their own.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if cuBLASLt cannot be found or initialised.
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        Ok(CublasLt {
            library: Library::new(context, stream)?,
            plans: Plans::new(ProductAlgorithms::default()),
        })
    }

    /// The same library with these algorithms; [row-invariant](ProductAlgorithms::RowInvariant) ones otherwise.
    #[must_use]
    pub fn with_algorithms(self, algorithms: ProductAlgorithms) -> Self {
        CublasLt { plans: Plans::new(algorithms), ..self }
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
        let algorithms = self.library.candidates(shape, pointers.bias, buckets, &[])?;
        let mut trial =
            GpuTrial::new(&self.library, (backend, stream), shape, pointers, buckets, &algorithms)?;
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
        self.library.check_context(stream.context())?;
        self.library.check_context(layer.weight.context())?;
        let (weight, bias) = (backend.view(stream, &layer.weight), layer.bias.as_ref());
        let bias = bias.map(|(half, single)| match logits {
            true => backend.view(stream, single).address(),
            false => backend.view(stream, half).address(),
        });
        let CublasLayer { in_cols, out_cols, .. } = *layer;
        let shape = Shape { in_cols, out_cols, stride, logits, bias: bias.is_some() };
        Ok((shape, Pointers { weight: weight.address(), x: 0, out: 0, bias: bias.unwrap_or(0) }))
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
        if self.plans.algorithms() == ProductAlgorithms::Any {
            return Ok(());
        }
        let (shape, pointers) = self.described((backend, stream), layer, stride, logits)?;
        self.plans.plan(&self.library, (backend, stream), shape, pointers, rows.max(1), 1).map(drop)
    }

    /// Measured by the trial of a shape: on a straight line between the two row counts at which a bucket was timed,
    /// beyond 1024 rows in proportion to the rows. Unknown before the trial, and with [`ProductAlgorithms::Any`].
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
            self.library.check_context(context)?;
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
                self.plans.multiply(&self.library, (backend, stream), shape(false), rows.len(), pointers)
            }
            ProductMemory::F32(memory) => {
                let out = part_mut(backend.view_mut(stream, memory), range)?;
                let bias = layer.bias.as_ref().map(|(_, bias)| backend.view(stream, bias));
                let pointers = pointers(out.address(), bias.as_ref().map_or(0, View::address));
                self.plans.multiply(&self.library, (backend, stream), shape(true), rows.len(), pointers)
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
