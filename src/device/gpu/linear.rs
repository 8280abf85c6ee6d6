//! Linear layers, whose products come from a library, and embeddings.

use std::ops::Range;

use super::buffer::GpuBuffer;
use super::check::{index, index32};
use super::context::Context;
use super::products::{ProductOut, Products, Weights};
use super::scratch::{Scratch, error_word};
use crate::device::{DeviceError, LinearPart};
use crate::kernels::embedding::Embed;
use crate::runtime::{Runtime, View};

/// A linear layer on a GPU.
#[derive(Debug)]
pub struct GpuLinear<P: Products> {
    pub(super) layer: P::Layer,
    /// The bias `[out_cols]`, for the calibrator, whose product is computed by a kernel.
    pub(super) bias: Option<<P::Runtime as Runtime>::Memory<f32>>,
    pub(super) in_cols: usize,
    pub(super) out_cols: usize,
}

/// The kernels and the library of products, which a linear layer needs.
#[derive(Debug)]
pub(super) struct Linears<'a, P: Products> {
    pub(super) context: &'a Context<P::Runtime>,
    pub(super) products: &'a P,
}

impl<P: Products> Clone for Linears<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Products> Copy for Linears<'_, P> {}

impl<'a, P: Products> Linears<'a, P> {
    /// Uploads a layer.
    pub(super) fn new_layer(self, parts: &[LinearPart<'_>]) -> Result<GpuLinear<P>, DeviceError> {
        let weights = Weights::new(parts)?;
        let (runtime, stream) = self.context.queue();
        let layer = self.products.new_layer(runtime, stream, &weights)?;
        let bias = match &weights.bias {
            Some(host) => {
                let mut bias = runtime.allocate(stream, host.len())?;
                runtime.upload(stream, host, &mut bias, 0)?;
                Some(bias)
            }
            None => None,
        };
        Ok(GpuLinear { layer, bias, in_cols: weights.in_cols, out_cols: weights.out_cols })
    }

    /// Prepares products of `layer` with up to `rows` rows.
    pub(super) fn prepare(self, layer: &GpuLinear<P>, rows: usize, logits: bool) -> Result<(), DeviceError> {
        if rows == 0 || layer.out_cols == 0 {
            return Ok(());
        }
        let stride = GpuBuffer::<P::Runtime>::new(layer.out_cols, logits).stride();
        let (runtime, stream) = self.context.queue();
        self.products.prepare(runtime, stream, &layer.layer, stride, rows, logits)
    }

    /// Multiplies rows `rows` of `x` by the layer's weights, and writes them to `out` from `first_row` on.
    pub(super) fn multiply(
        self,
        layer: &GpuLinear<P>,
        x: &GpuBuffer<P::Runtime>,
        rows: Range<usize>,
        first_row: usize,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "linear";
        x.expect_rows(OPERATION, "x", layer.in_cols, rows.end)?;
        out.expect_rows(OPERATION, "out", layer.out_cols, first_row.saturating_add(rows.len()))?;
        if rows.is_empty() || layer.out_cols == 0 {
            return Ok(());
        }
        let x = x.activations(OPERATION, "x")?;
        let Some(out) = ProductOut::of(out, first_row) else { return Ok(()) };
        let (runtime, stream) = self.context.queue();
        self.products.multiply(runtime, stream, &layer.layer, x, rows, out)
    }

    /// Writes row `ids[i]` of `table` to row `first_row + i` of `out`.
    pub(super) fn embed(
        self,
        table: &GpuLinear<P>,
        ids: &[u32],
        first_row: usize,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed";
        if ids.is_empty() {
            return Ok(());
        }
        let context = self.context;
        let rows = first_row..first_row.saturating_add(ids.len());
        out.expect_rows(OPERATION, "out", table.in_cols, rows.end)?;
        let token = |&id: &u32| {
            index(OPERATION, "token id", id as usize, table.out_cols)?;
            index32(OPERATION, "token id", id as usize)
        };
        let host: Vec<i32> = ids.iter().map(token).collect::<Result<_, _>>()?;
        let mut scratch = context.scratch();
        let block = scratch.block();
        let Scratch { ids, error, .. } = &mut *scratch;
        let ids = match block.indices(context.queue(), &host) {
            Some(ids) => ids?,
            None => context.input(ids.holding(context.queue(), host)?, 0..rows.len())?,
        };
        let elements = out.elements(&rows);
        let args = Embed {
            ids,
            table: self.weight(table),
            out: context.output(out.activations_mut(OPERATION, "out")?, elements)?,
            error: Some(error_word(context.queue(), error)?),
            cols: table.in_cols,
        };
        Ok(context.kernels.embed(&context.stream, &args)?)
    }

    /// Writes rows `ids` of `table`, which are in device memory, to the rows of `out` from `first_row` on.
    pub(super) fn embed_ids(
        self,
        table: &GpuLinear<P>,
        ids: View<'_, i32>,
        first_row: usize,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed";
        let context = self.context;
        let rows = first_row..first_row.saturating_add(ids.len());
        out.expect_rows(OPERATION, "out", table.in_cols, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let elements = out.elements(&rows);
        let mut scratch = context.scratch();
        let args = Embed {
            ids,
            table: self.weight(table),
            out: context.output(out.activations_mut(OPERATION, "out")?, elements)?,
            error: Some(error_word(context.queue(), &mut scratch.error)?),
            cols: table.in_cols,
        };
        Ok(context.kernels.embed(&context.stream, &args)?)
    }

    /// Views the weights `[out_cols, in_cols]` of a layer.
    pub(super) fn weight(self, layer: &'a GpuLinear<P>) -> View<'a, half::bf16> {
        self.context.view(self.products.weight(&layer.layer))
    }
}
