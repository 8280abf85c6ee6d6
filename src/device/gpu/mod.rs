//! A GPU: every operation of a decode step on the kernels of this crate, matrix products by a library.
//!
//! The code is generic over where the kernels run, so that the tests run the whole decode loop on the SIMT
//! emulator, with the same launches in the same order.

mod cache;
mod checks;
mod cublas;
mod cuda;
mod gather;
mod head_products;
mod memory;
mod pass;
mod pass_memory;
mod peaks;
mod products;
mod results;
mod sampling;
mod scratch;
#[cfg(feature = "simt")]
mod simt;
mod verification;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cache::GpuKvCache;
use checks::{elements, expect, expect_paging, expect_rows, index32};
pub use cublas::{CublasLayer, CublasLt, ProductAlgorithms, ProductCandidate, cublas_is_present};
use half::bf16;
pub use head_products::HeadProducts;
pub use memory::GpuBuffer;
pub use pass::UploadedPass;
pub use peaks::Peaks;
pub use products::{ProductMemory, ProductOut, Products, Weights};
pub use results::{GpuResults, GpuSelection, GpuVerification};
use scratch::{Scratch, error_word};
#[cfg(feature = "simt")]
pub use simt::CpuProducts;

use super::{
    AttentionRows, AttentionShape, CalibratorOutput, Device, DeviceError, DraftLogits, DraftRows,
    DraftSelection, LinearPart, QkTransform, RowKind, SequenceVerdict, SlotRows, StepResults, Verification,
    VerifyRows,
};
use crate::kernels::attention::{DEFAULT_SPLIT, JointAttention};
use crate::kernels::glue::{Add, Embed, Gather, NormRopeAppend, Residual, RmsNorm, SiluAdd, SiluMul};
use crate::kernels::{Kernels, Paging};
use crate::layout::Pass;
use crate::runtime::{Element, Runtime, RuntimeError, View, ViewMut};
use crate::tensor::Tensor;

/// A device that computes with this crate's kernels.
#[derive(Debug)]
pub struct Gpu<P: Products> {
    kernels: Kernels<P::Runtime>,
    stream: StreamOf<P>,
    products: P,
    split: usize,
    head_products: HeadProducts,
    scratch: Mutex<Scratch<P::Runtime>>,
}

type StreamOf<P> = <<P as Products>::Runtime as Runtime>::Stream;
type Memory<P, T> = <<P as Products>::Runtime as Runtime>::Memory<T>;

/// A linear layer.
#[derive(Debug)]
pub struct GpuLinear<P: Products> {
    layer: P::Layer,
    /// `[out_cols]`, for the calibrator, whose product is not the library's.
    bias: Option<Memory<P, f32>>,
    in_cols: usize,
    out_cols: usize,
}

/// A vector: as f32 for norms, as a row of activations for the mask embedding.
#[derive(Debug)]
pub struct GpuVector<B: Runtime> {
    values: B::Memory<f32>,
    row: B::Memory<bf16>,
    len: usize,
}

impl<P: Products> Gpu<P> {
    /// A device on `kernels`, which puts all its work on `stream`.
    pub fn new(kernels: Kernels<P::Runtime>, stream: StreamOf<P>, products: P) -> Self {
        Gpu {
            kernels,
            stream,
            products,
            split: DEFAULT_SPLIT,
            head_products: HeadProducts::ByTime,
            scratch: Mutex::default(),
        }
    }

    /// The same with attention splits of `split` keys, a multiple of 64.
    #[must_use]
    pub fn with_split(self, split: usize) -> Self {
        Gpu { split, ..self }
    }

    /// The same with head products as `head_products` says, whatever they take.
    #[must_use]
    pub fn with_head_products(self, head_products: HeadProducts) -> Self {
        Gpu { head_products, ..self }
    }

    /// The kernels, and what they run on.
    pub fn kernels(&self) -> &Kernels<P::Runtime> {
        &self.kernels
    }

    /// Where matrix products come from.
    pub fn products(&self) -> &P {
        &self.products
    }

    fn runtime(&self) -> &P::Runtime {
        self.kernels.runtime()
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch<P::Runtime>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Part of some memory, to be read.
    fn input<'a, T: Element>(
        &'a self,
        memory: &'a Memory<P, T>,
        range: Range<usize>,
    ) -> Result<View<'a, T>, DeviceError> {
        let view = self.runtime().view(&self.stream, memory);
        let (wanted, found) = (range.end, view.len());
        view.range(range).ok_or(RuntimeError::CopyLength { wanted, found }.into())
    }

    /// Part of some memory, to be written.
    fn output<'a, T: Element>(
        &'a self,
        memory: &'a mut Memory<P, T>,
        range: Range<usize>,
    ) -> Result<ViewMut<'a, T>, DeviceError> {
        let view = self.runtime().view_mut(&self.stream, memory);
        let (wanted, found) = (range.end, view.len());
        view.range(range).ok_or(RuntimeError::CopyLength { wanted, found }.into())
    }
}

impl<P: Products> Device for Gpu<P> {
    type Buffer = GpuBuffer<P::Runtime>;
    type Linear = GpuLinear<P>;
    type Vector = GpuVector<P::Runtime>;
    type Cache = GpuKvCache<P::Runtime>;
    type Results = GpuResults<P::Runtime>;
    type Pass<'a> = UploadedPass<'a, P::Runtime>;
    type Verification<'a> = GpuVerification<'a, P>;

    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<GpuLinear<P>, DeviceError> {
        let weights = Weights::new(parts)?;
        let layer = self.products.new_layer(self.runtime(), &self.stream, &weights)?;
        let bias = match &weights.bias {
            Some(host) => {
                let mut bias = self.runtime().allocate(&self.stream, host.len())?;
                self.runtime().upload(&self.stream, host, &mut bias, 0)?;
                Some(bias)
            }
            None => None,
        };
        Ok(GpuLinear { layer, bias, in_cols: weights.in_cols, out_cols: weights.out_cols })
    }

    fn new_vector(&self, tensor: &Tensor) -> Result<GpuVector<P::Runtime>, DeviceError> {
        let host = tensor.to_f32();
        expect("new_vector", "tensor", vec![host.len()], tensor.shape().to_vec())?;
        let (runtime, stream) = (self.runtime(), &self.stream);
        let mut values = runtime.allocate(stream, host.len())?;
        runtime.upload(stream, &host, &mut values, 0)?;
        let mut row = runtime.allocate(stream, host.len())?;
        let rounded: Vec<bf16> = host.iter().map(|&x| bf16::from_f32(x)).collect();
        runtime.upload(stream, &rounded, &mut row, 0)?;
        Ok(GpuVector { values, row, len: host.len() })
    }

    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<GpuKvCache<P::Runtime>, DeviceError> {
        GpuKvCache::new((self.runtime(), &self.stream), layers, Paging { pages, page_size }, shape)
    }

    fn new_buffer(&self, cols: usize) -> GpuBuffer<P::Runtime> {
        GpuBuffer::new(cols, false)
    }

    fn new_logits(&self, cols: usize) -> GpuBuffer<P::Runtime> {
        GpuBuffer::new(cols, true)
    }

    fn new_results(&self) -> GpuResults<P::Runtime> {
        GpuResults::default()
    }

    fn resize(&self, buffer: &mut GpuBuffer<P::Runtime>, rows: usize) -> Result<(), DeviceError> {
        buffer.resize(self.runtime(), &self.stream, rows)
    }

    fn begin<'a>(
        &'a self,
        pass: &'a Pass<'a>,
        cache: &GpuKvCache<P::Runtime>,
    ) -> Result<UploadedPass<'a, P::Runtime>, DeviceError> {
        UploadedPass::new(&self.scratch, (self.runtime(), &self.stream), pass, cache.paging())
    }

    fn prepare(&self, layer: &GpuLinear<P>, rows: usize, logits: bool) -> Result<(), DeviceError> {
        if rows == 0 || layer.out_cols == 0 {
            return Ok(());
        }
        let stride = GpuBuffer::<P::Runtime>::new(layer.out_cols, logits).stride();
        self.products.prepare(self.runtime(), &self.stream, &layer.layer, stride, rows, logits)
    }

    fn is_row_invariant(&self) -> bool {
        self.products.is_row_invariant()
    }

    fn embed(
        &self,
        table: &GpuLinear<P>,
        ids: &[u32],
        first_row: usize,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed";
        if ids.is_empty() {
            return Ok(());
        }
        let rows = first_row..first_row.saturating_add(ids.len());
        expect_rows(OPERATION, "out", out, table.in_cols, rows.end)?;
        for &id in ids {
            let (index, limit) = (id as usize, table.out_cols);
            if index >= limit {
                return Err(DeviceError::OutOfRange { operation: OPERATION, what: "token id", index, limit });
            }
        }
        let (runtime, stream) = (self.runtime(), &self.stream);
        let host: Vec<i32> =
            ids.iter().map(|&id| index32(OPERATION, "token id", id as usize)).collect::<Result<_, _>>()?;
        let mut scratch = self.scratch();
        let Scratch { ids, error, .. } = &mut *scratch;
        let ids = ids.reserve(runtime, stream, host.len())?;
        runtime.upload(stream, &host, ids, 0)?;
        let range = elements(out, &rows);
        let args = Embed {
            ids: self.input(ids, 0..host.len())?,
            table: runtime.view(stream, self.products.weight(&table.layer)),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            error: Some(error_word(runtime, stream, error)?),
            cols: table.in_cols,
        };
        Ok(self.kernels.embed(stream, &args)?)
    }

    fn fill_rows(
        &self,
        value: &GpuVector<P::Runtime>,
        rows: Range<usize>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "fill_rows";
        if rows.is_empty() {
            return Ok(());
        }
        expect_rows(OPERATION, "out", out, value.len, rows.end)?;
        let (runtime, stream) = (self.runtime(), &self.stream);
        let mut scratch = self.scratch();
        let Scratch { filled, error, .. } = &mut *scratch;
        let ids = filled.holding(runtime, stream, vec![0; rows.len()])?;
        let range = elements(out, &rows);
        let args = Gather {
            indices: self.input(ids, 0..rows.len())?,
            x: runtime.view(stream, &value.row),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            error: Some(error_word(runtime, stream, error)?),
            cols: value.len,
        };
        Ok(self.kernels.gather(stream, &args)?)
    }

    fn rms_norm(
        &self,
        x: &GpuBuffer<P::Runtime>,
        rows: Range<usize>,
        weight: &GpuVector<P::Runtime>,
        eps: f32,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "rms_norm";
        expect_rows(OPERATION, "x", x, weight.len, rows.end)?;
        expect_rows(OPERATION, "out", out, weight.len, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let (runtime, stream) = (self.runtime(), &self.stream);
        let range = elements(x, &rows);
        let args = RmsNorm {
            x: Residual::Is(self.input(x.activations(OPERATION, "x")?, range.clone())?),
            weight: runtime.view(stream, &weight.values),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            eps,
        };
        Ok(self.kernels.rms_norm(stream, &args)?)
    }

    fn linear_to(
        &self,
        layer: &GpuLinear<P>,
        x: &GpuBuffer<P::Runtime>,
        rows: Range<usize>,
        first_row: usize,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "linear";
        expect_rows(OPERATION, "x", x, layer.in_cols, rows.end)?;
        expect_rows(OPERATION, "out", out, layer.out_cols, first_row.saturating_add(rows.len()))?;
        if rows.is_empty() || layer.out_cols == 0 {
            return Ok(());
        }
        let x = x.activations(OPERATION, "x")?;
        let Some(out) = ProductOut::of(out, first_row) else { return Ok(()) };
        self.products.multiply(self.runtime(), &self.stream, &layer.layer, x, rows, out)
    }

    fn add(
        &self,
        delta: &GpuBuffer<P::Runtime>,
        rows: Range<usize>,
        hidden: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "add";
        expect_rows(OPERATION, "delta", delta, hidden.cols, rows.end)?;
        expect_rows(OPERATION, "hidden", hidden, hidden.cols, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let stream = &self.stream;
        let range = elements(delta, &rows);
        let args = Add {
            x: self.output(hidden.activations_mut(OPERATION, "hidden")?, range.clone())?,
            delta: self.input(delta.activations(OPERATION, "delta")?, range)?,
        };
        Ok(self.kernels.add(stream, &args)?)
    }

    fn add_rms_norm(
        &self,
        delta: &GpuBuffer<P::Runtime>,
        rows: Range<usize>,
        hidden: &mut GpuBuffer<P::Runtime>,
        weight: &GpuVector<P::Runtime>,
        eps: f32,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "add_rms_norm";
        expect_rows(OPERATION, "delta", delta, weight.len, rows.end)?;
        expect_rows(OPERATION, "hidden", hidden, weight.len, rows.end)?;
        expect_rows(OPERATION, "out", out, weight.len, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let (runtime, stream) = (self.runtime(), &self.stream);
        let range = elements(delta, &rows);
        let args = RmsNorm {
            x: Residual::Add {
                x: self.output(hidden.activations_mut(OPERATION, "hidden")?, range.clone())?,
                delta: self.input(delta.activations(OPERATION, "delta")?, range.clone())?,
            },
            weight: runtime.view(stream, &weight.values),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            eps,
        };
        Ok(self.kernels.rms_norm(stream, &args)?)
    }

    fn silu_mul(
        &self,
        x: &GpuBuffer<P::Runtime>,
        rows: Range<usize>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "silu_mul";
        expect_rows(OPERATION, "x", x, out.cols.saturating_mul(2), rows.end)?;
        expect_rows(OPERATION, "out", out, out.cols, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let stream = &self.stream;
        let (from, to, cols) = (elements(x, &rows), elements(out, &rows), out.cols);
        let args = SiluMul {
            x: self.input(x.activations(OPERATION, "x")?, from)?,
            out: self.output(out.activations_mut(OPERATION, "out")?, to)?,
            cols,
        };
        Ok(self.kernels.silu_mul(stream, &args)?)
    }

    fn silu_add(
        &self,
        bonus: &GpuBuffer<P::Runtime>,
        owner: &[usize],
        x: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "silu_add";
        expect_rows(OPERATION, "x", x, bonus.cols, owner.len())?;
        if owner.is_empty() || x.cols == 0 {
            return Ok(());
        }
        for &index in owner {
            if index >= bonus.rows {
                let limit = bonus.rows;
                return Err(DeviceError::OutOfRange { operation: OPERATION, what: "owner", index, limit });
            }
        }
        let (runtime, stream) = (self.runtime(), &self.stream);
        let host: Vec<i32> =
            owner.iter().map(|&row| index32(OPERATION, "owner", row)).collect::<Result<_, _>>()?;
        let mut scratch = self.scratch();
        let Scratch { owners, error, .. } = &mut *scratch;
        let ids = owners.holding(runtime, stream, host)?;
        let cols = x.cols;
        let args = SiluAdd {
            bonus: self.input(bonus.activations(OPERATION, "bonus")?, 0..bonus.rows * cols)?,
            x: self.output(x.activations_mut(OPERATION, "x")?, 0..owner.len() * cols)?,
            owner: self.input(ids, 0..owner.len())?,
            error: Some(error_word(runtime, stream, error)?),
            cols,
        };
        Ok(self.kernels.silu_add(stream, &args)?)
    }

    fn gather(
        &self,
        x: &GpuBuffer<P::Runtime>,
        rows: &[usize],
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        expect("gather", "out", vec![out.rows, x.cols], vec![out.rows, out.cols])?;
        self.resize(out, rows.len())?;
        self.gather_rows(x, rows, out)
    }

    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, GpuVector<P::Runtime>>,
        pass: &mut UploadedPass<'_, P::Runtime>,
        kind: RowKind,
        qkv: &mut GpuBuffer<P::Runtime>,
        layer: usize,
        cache: &mut GpuKvCache<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "norm_rope_append";
        let shape = transform.shape;
        let rows = pass.memory.tables.rows();
        expect_rows(OPERATION, "qkv", qkv, shape.qkv_cols(), rows)?;
        expect(OPERATION, "inv_freq", vec![shape.head_dim / 2], vec![transform.rope.inv_freq.len()])?;
        expect_paging(OPERATION, &pass.memory.tables, cache.paging())?;
        let (runtime, stream) = (self.runtime(), &self.stream);
        let cache = cache.view_mut(OPERATION, (runtime, stream), layer, shape)?;
        let mut scratch = self.scratch();
        let Scratch { frequencies, error, .. } = &mut *scratch;
        let inv_freq = frequencies.of(runtime, stream, transform.rope)?;
        let (tables, cos_sin) = pass.memory.turned(&self.kernels, stream, transform.rope, inv_freq)?;
        let range = 0..rows * qkv.cols;
        let args = NormRopeAppend {
            pass: tables,
            kind,
            qkv: self.output(qkv.activations_mut(OPERATION, "qkv")?, range)?,
            cos_sin: self.input(cos_sin, 0..rows * shape.head_dim)?,
            norms: transform
                .norms
                .map(|(q, k)| (runtime.view(stream, &q.values), runtime.view(stream, &k.values))),
            eps: transform.eps,
            cache,
            shape,
            error: Some(error_word(runtime, stream, error)?),
        };
        Ok(self.kernels.norm_rope_append(stream, &args)?)
    }

    fn joint_attention(
        &self,
        shape: AttentionShape,
        AttentionRows { pass, masks }: AttentionRows<'_, UploadedPass<'_, P::Runtime>>,
        qkv: &GpuBuffer<P::Runtime>,
        layer: usize,
        cache: &GpuKvCache<P::Runtime>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "joint_attention";
        let tables = &pass.memory.tables;
        let rows = if masks { tables.rows() } else { tables.candidates() };
        let (runtime, stream) = (self.runtime(), &self.stream);
        expect_paging(OPERATION, tables, cache.paging())?;
        let cache = cache.view(OPERATION, (runtime, stream), layer, shape)?;
        expect_rows(OPERATION, "qkv", qkv, shape.qkv_cols(), rows)?;
        expect_rows(OPERATION, "out", out, shape.out_cols(), rows)?;
        if rows == 0 {
            return Ok(());
        }
        let mut scratch = self.scratch();
        let Scratch { workspace, error, .. } = &mut *scratch;
        let needed = self
            .kernels
            .attention_workspace_len(tables, masks, rows, shape, self.split)
            .ok_or(DeviceError::OutOfMemory { what: "attention", bytes: usize::MAX })?;
        let workspace = workspace.reserve(runtime, stream, needed)?;
        let range = 0..rows * out.cols;
        let args = JointAttention {
            pass: tables,
            masks,
            qkv: self.input(qkv.activations(OPERATION, "qkv")?, 0..rows * qkv.cols)?,
            cache,
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            lse: None,
            workspace: runtime.view_mut(stream, workspace),
            shape,
            split: self.split,
            error: Some(error_word(runtime, stream, error)?),
        };
        Ok(self.kernels.joint_attention(stream, &args)?)
    }

    fn edit_row(
        &self,
        logits: &mut GpuBuffer<P::Runtime>,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "edit_row";
        expect_rows(OPERATION, "logits", logits, logits.cols, row.saturating_add(1))?;
        let (runtime, stream) = (self.runtime(), &self.stream);
        let mut host = vec![0.0; logits.cols];
        let first = row * logits.stride();
        logits.forget_draws_from(row);
        let memory = logits.logits_mut(OPERATION)?;
        runtime.download(stream, memory, first, &mut host)?;
        edit(&mut host);
        // As it counts anyway, but a kernel that meets a NaN reports it.
        host.iter_mut().filter(|logit| logit.is_nan()).for_each(|logit| *logit = f32::NEG_INFINITY);
        Ok(runtime.upload(stream, &host, memory, first)?)
    }

    fn joined_head_rows(&self, head: &GpuLinear<P>) -> usize {
        self.most_joined_rows(head)
    }

    fn joins_head_products(
        &self,
        head: &GpuLinear<P>,
        candidates: usize,
        slots: usize,
        drafted: usize,
    ) -> bool {
        self.joins(head, candidates, slots, drafted)
    }

    fn copy_draft(
        &self,
        draft: DraftLogits<'_, GpuBuffer<P::Runtime>>,
        rows: usize,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        expect("copy_draft", "out", vec![out.rows, draft.logits.cols], vec![out.rows, out.cols])?;
        self.resize(out, rows)?;
        self.copy_draft_rows(draft, rows, out)
    }

    fn verify<'a>(
        &'a self,
        logits: &GpuBuffer<P::Runtime>,
        sequences: &[VerifyRows<'_, GpuBuffer<P::Runtime>>],
        results: &'a mut GpuResults<P::Runtime>,
    ) -> Result<GpuVerification<'a, P>, DeviceError> {
        self.verify_drafts(logits, sequences, results)?;
        Ok(GpuVerification::new(self, results))
    }
}

impl<P: Products> Verification<Gpu<P>> for GpuVerification<'_, P> {
    type Selection<'s>
        = GpuSelection<'s, P>
    where
        Self: 's;

    fn verdicts_if_ready(&self) -> Option<&[SequenceVerdict]> {
        self.known()
    }

    fn begin_drafting<'p>(
        &'p self,
        pass: &'p Pass<'p>,
        verdicts: &[usize],
        cache: &GpuKvCache<P::Runtime>,
    ) -> Result<UploadedPass<'p, P::Runtime>, DeviceError> {
        self.begin_pass(pass, verdicts, cache)
    }

    fn select_drafts<'s>(
        &'s mut self,
        drafts: &'s [DraftRows<'s>],
        rows: SlotRows,
    ) -> Result<GpuSelection<'s, P>, DeviceError> {
        self.select(drafts, rows)
    }

    fn drafted_rows(&self) -> usize {
        self.drafted()
    }

    fn read(&mut self) -> Result<StepResults, DeviceError> {
        self.take()
    }
}

impl<P: Products> DraftSelection<Gpu<P>> for GpuSelection<'_, P> {
    fn gather(&self, x: &GpuBuffer<P::Runtime>, out: &mut GpuBuffer<P::Runtime>) -> Result<(), DeviceError> {
        self.gather_rows(x, out)
    }

    fn embed_bonus(&self, table: &GpuLinear<P>, out: &mut GpuBuffer<P::Runtime>) -> Result<(), DeviceError> {
        self.embed_tokens(table, out)
    }

    fn draft(
        self,
        calibration: Option<CalibratorOutput<'_, GpuBuffer<P::Runtime>, GpuLinear<P>>>,
        logits: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        self.sample(calibration, logits)
    }
}
