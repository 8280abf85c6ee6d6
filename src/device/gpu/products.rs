//! The interface to a library of matrix products.

use std::ops::Range;

use half::bf16;

use super::buffer::{GpuBuffer, Values};
use crate::device::{DeviceError, LinearPart};
use crate::runtime::Runtime;
use crate::tensor::Elements;

/// A library of matrix products on memory of a runtime: bf16 factors, sums in f32,
/// [row-invariant](Self::is_row_invariant).
pub trait Products: Send + Sync + 'static {
    /// The runtime whose memory the library multiplies.
    type Runtime: Runtime;
    /// The weights of a layer, in the form that the library uses.
    type Layer: std::fmt::Debug + Send + Sync;

    /// Uploads the weights of a layer.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if memory runs out, or if the library does not support the shape.
    fn new_layer(
        &self,
        runtime: &Self::Runtime,
        stream: &<Self::Runtime as Runtime>::Stream,
        weights: &Weights,
    ) -> Result<Self::Layer, DeviceError>;

    /// Returns the weights of a layer `[out_cols, in_cols]`, for the lookup of embeddings.
    fn weight<'a>(&self, layer: &'a Self::Layer) -> &'a <Self::Runtime as Runtime>::Memory<bf16>;

    /// Prepares products of `layer` with up to `rows` rows, so that the first product does not take longer. Results
    /// are logits or activations, with `stride` elements from one row to the next.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of the library, for example if it cannot compute these products.
    fn prepare(
        &self,
        runtime: &Self::Runtime,
        stream: &<Self::Runtime as Runtime>::Stream,
        layer: &Self::Layer,
        stride: usize,
        rows: usize,
        logits: bool,
    ) -> Result<(), DeviceError> {
        let _ = (runtime, stream, layer, stride, rows, logits);
        Ok(())
    }

    /// Returns the seconds that a product of `rows` rows of `layer` takes, by the measurements of
    /// [`prepare`](Self::prepare); `None` if the seconds are unknown. Callers compare divisions of the same product
    /// by these times.
    fn seconds(&self, layer: &Self::Layer, rows: usize, logits: bool) -> Option<f32> {
        let _ = (layer, rows, logits);
        None
    }

    /// Returns whether a row has the same bits whatever other rows are in its product. Lossless decoding needs that.
    fn is_row_invariant(&self) -> bool {
        true
    }

    /// Multiplies rows `rows` of `x` by the layer's weights, adds its bias, rounds the sums to the type of `out`, and
    /// writes them to `out`. The caller has checked the shapes.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of the library.
    fn multiply(
        &self,
        runtime: &Self::Runtime,
        stream: &<Self::Runtime as Runtime>::Stream,
        layer: &Self::Layer,
        x: &<Self::Runtime as Runtime>::Memory<bf16>,
        rows: Range<usize>,
        out: ProductOut<'_, Self::Runtime>,
    ) -> Result<(), DeviceError>;
}

/// The destination of a product.
#[derive(Debug)]
pub struct ProductOut<'a, R: Runtime> {
    /// The memory that the product is written to.
    pub memory: ProductMemory<'a, R>,
    /// Number of elements from one row to the next.
    pub stride: usize,
    /// The row of the memory that the product's first row is written to.
    pub first_row: usize,
}

/// The memory that a product is written to.
#[derive(Debug)]
pub enum ProductMemory<'a, R: Runtime> {
    /// Activations.
    Bf16(&'a mut R::Memory<bf16>),
    /// Logits.
    F32(&'a mut R::Memory<f32>),
}

impl<'a, R: Runtime> ProductOut<'a, R> {
    pub(super) fn of(buffer: &'a mut GpuBuffer<R>, first_row: usize) -> Option<Self> {
        let stride = buffer.stride();
        buffer.forget_draws_from(first_row);
        let memory = match &mut buffer.values {
            Values::Activations(memory) => ProductMemory::Bf16(memory),
            Values::Logits { logits, .. } => ProductMemory::F32(logits),
            Values::NoActivations | Values::NoLogits => return None,
        };
        Some(ProductOut { memory, stride, first_row })
    }
}

/// The weights of a fused layer on the host, rounded to bf16.
#[derive(Debug)]
pub struct Weights {
    /// The weights `[out_cols, in_cols]`.
    pub weight: Vec<bf16>,
    /// The bias `[out_cols]`, if a part has one.
    pub bias: Option<Vec<f32>>,
    /// Number of columns of the input.
    pub in_cols: usize,
    /// Number of columns of the output.
    pub out_cols: usize,
}

impl Weights {
    /// Stacks the weights of a fused layer's parts.
    pub(super) fn new(parts: &[LinearPart<'_>]) -> Result<Self, DeviceError> {
        const OPERATION: &str = "new_linear";
        let wrong = |operand, expected: Vec<usize>, found: &[usize]| DeviceError::Shape {
            operation: OPERATION,
            operand,
            expected,
            found: found.to_vec(),
        };
        let mut weights = Weights { weight: Vec::new(), bias: None, in_cols: 0, out_cols: 0 };
        let mut bias = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let shape = part.weight.shape();
            let &[outputs, stored] = shape else { return Err(wrong("weight", vec![1, 1], shape)) };
            let columns = part.columns.clone().unwrap_or(0..stored);
            if columns.start > columns.end || columns.end > stored {
                return Err(wrong("columns", vec![stored], &[columns.start, columns.end]));
            }
            if index == 0 {
                weights.in_cols = columns.len();
            } else if columns.len() != weights.in_cols {
                return Err(wrong("weight", vec![outputs, weights.in_cols], &[outputs, columns.len()]));
            }
            weights.weight.reserve_exact(outputs.saturating_mul(columns.len()));
            match part.weight.elements() {
                Elements::Blocks(blocks) => {
                    return Err(DeviceError::Contract {
                        operation: OPERATION,
                        operand: "weight",
                        expected: "f32, f16 or bf16; a loader converts blocks to bf16",
                        found: format!("blocks of {}", blocks.format()),
                    });
                }
                // The elements already have the format of products, bf16.
                Elements::Bf16(elements) => {
                    for row in elements.chunks_exact(stored.max(1)) {
                        weights.weight.extend_from_slice(row.get(columns.clone()).unwrap_or(&[]));
                    }
                }
                elements => {
                    let mut row = vec![0.0; columns.len()];
                    for output in 0..outputs {
                        let first = output * stored;
                        elements.read_f32(first + columns.start..first + columns.end, &mut row);
                        weights.weight.extend(row.iter().map(|&x| bf16::from_f32(x)));
                    }
                }
            }
            match part.bias.map(|bias| (bias, bias.to_f32())) {
                Some((tensor, values)) if values.len() == outputs => {
                    let _ = tensor;
                    weights.bias = Some(Vec::new());
                    bias.extend(values);
                }
                Some((tensor, _)) => return Err(wrong("bias", vec![outputs], tensor.shape())),
                None => bias.resize(bias.len() + outputs, 0.0),
            }
            weights.out_cols += outputs;
        }
        if parts.is_empty() {
            return Err(wrong("parts", vec![1], &[0]));
        }
        weights.bias = weights.bias.map(|_| bias);
        Ok(weights)
    }
}
