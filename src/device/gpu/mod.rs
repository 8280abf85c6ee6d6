//! A GPU: every operation of a decode step on the kernels of this crate, matrix products by a library.
//!
//! The code is generic over where the kernels run, so that the tests run the whole decode loop on the SIMT
//! host, with the same launches in the same order.

mod cache;
mod ceilings;
mod checks;
mod cublas;
mod cuda;
mod gather;
mod head_products;
mod memory;
mod pass;
mod products;
mod results;
mod sampling;
mod scratch;
#[cfg(feature = "simt")]
mod simt;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cache::KvCache;
pub use ceilings::Ceilings;
use checks::{elements, expect, expect_paging, expect_rows, index32};
pub use cublas::{CublasLayer, CublasLt, ProductAlgorithms, ProductCandidate, cublas_is_present};
use half::bf16;
pub use head_products::HeadProducts;
pub use memory::Buffer;
pub use pass::LaidOut;
pub use products::{ProductMemory, ProductOut, Products, Weights};
pub use results::Results;
use scratch::{Scratch, error_word};
#[cfg(feature = "simt")]
pub use simt::CpuProducts;

use super::{
    AttentionRows, AttentionShape, Calibration, Device, DeviceError, DraftLogits, DraftRows, Found,
    LinearPart, QkTransform, RowKind, SlotRows, Verdict, VerifyRows,
};
use crate::backend::{Backend, BackendError, Element, View, ViewMut};
use crate::kernels::attention::{DEFAULT_SPLIT, JointAttention};
use crate::kernels::glue::{Add, Embed, Gather, NormRopeAppend, Residual, RmsNorm, SiluAdd, SiluMul};
use crate::kernels::{Kernels, Paging};
use crate::layout::Pass;
use crate::tensor::Tensor;

/// A device that computes with this crate's kernels.
#[derive(Debug)]
pub struct Gpu<P: Products> {
    kernels: Kernels<P::Backend>,
    stream: Stream<P>,
    products: P,
    split: usize,
    head_products: HeadProducts,
    scratch: Mutex<Scratch<P::Backend>>,
}

type Stream<P> = <<P as Products>::Backend as Backend>::Stream;
type Memory<P, T> = <<P as Products>::Backend as Backend>::Memory<T>;

/// A linear layer.
#[derive(Debug)]
pub struct Linear<P: Products> {
    layer: P::Layer,
    /// `[out_cols]`, for the calibrator, whose product is not the library's.
    bias: Option<Memory<P, f32>>,
    in_cols: usize,
    out_cols: usize,
}

/// A vector: as f32 for norms, as a row of activations for the mask embedding.
#[derive(Debug)]
pub struct Vector<B: Backend> {
    values: B::Memory<f32>,
    row: B::Memory<bf16>,
    len: usize,
}

impl<P: Products> Gpu<P> {
    /// A device on `kernels`, which puts all its work on `stream`.
    pub fn new(kernels: Kernels<P::Backend>, stream: Stream<P>, products: P) -> Self {
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
    pub fn kernels(&self) -> &Kernels<P::Backend> {
        &self.kernels
    }

    /// Where matrix products come from.
    pub fn products(&self) -> &P {
        &self.products
    }

    fn backend(&self) -> &P::Backend {
        self.kernels.backend()
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch<P::Backend>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Part of some memory, to be read.
    fn input<'a, T: Element>(
        &'a self,
        memory: &'a Memory<P, T>,
        range: Range<usize>,
    ) -> Result<View<'a, T>, DeviceError> {
        let view = self.backend().view(&self.stream, memory);
        let (wanted, found) = (range.end, view.len());
        view.range(range).ok_or(BackendError::CopyLength { wanted, found }.into())
    }

    /// Part of some memory, to be written.
    fn output<'a, T: Element>(
        &'a self,
        memory: &'a mut Memory<P, T>,
        range: Range<usize>,
    ) -> Result<ViewMut<'a, T>, DeviceError> {
        let view = self.backend().view_mut(&self.stream, memory);
        let (wanted, found) = (range.end, view.len());
        view.range(range).ok_or(BackendError::CopyLength { wanted, found }.into())
    }
}

impl<P: Products> Device for Gpu<P> {
    type Buffer = Buffer<P::Backend>;
    type Linear = Linear<P>;
    type Vector = Vector<P::Backend>;
    type Cache = KvCache<P::Backend>;
    type Results = Results<P::Backend>;
    type Pass<'a> = LaidOut<'a, P::Backend>;

    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<Linear<P>, DeviceError> {
        let weights = Weights::new(parts)?;
        let layer = self.products.new_layer(self.backend(), &self.stream, &weights)?;
        let bias = match &weights.bias {
            Some(host) => {
                let mut bias = self.backend().allocate(&self.stream, host.len())?;
                self.backend().upload(&self.stream, host, &mut bias, 0)?;
                Some(bias)
            }
            None => None,
        };
        Ok(Linear { layer, bias, in_cols: weights.in_cols, out_cols: weights.out_cols })
    }

    fn new_vector(&self, tensor: &Tensor) -> Result<Vector<P::Backend>, DeviceError> {
        let host = tensor.to_f32();
        expect("new_vector", "tensor", vec![host.len()], tensor.shape().to_vec())?;
        let (backend, stream) = (self.backend(), &self.stream);
        let mut values = backend.allocate(stream, host.len())?;
        backend.upload(stream, &host, &mut values, 0)?;
        let mut row = backend.allocate(stream, host.len())?;
        let rounded: Vec<bf16> = host.iter().map(|&x| bf16::from_f32(x)).collect();
        backend.upload(stream, &rounded, &mut row, 0)?;
        Ok(Vector { values, row, len: host.len() })
    }

    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<KvCache<P::Backend>, DeviceError> {
        KvCache::new((self.backend(), &self.stream), layers, Paging { pages, page_size }, shape)
    }

    fn new_buffer(&self, cols: usize) -> Buffer<P::Backend> {
        Buffer::new(cols, false)
    }

    fn new_logits(&self, cols: usize) -> Buffer<P::Backend> {
        Buffer::new(cols, true)
    }

    fn new_results(&self) -> Results<P::Backend> {
        Results::default()
    }

    fn resize(&self, buffer: &mut Buffer<P::Backend>, rows: usize) -> Result<(), DeviceError> {
        buffer.resize(self.backend(), &self.stream, rows)
    }

    fn begin<'a>(
        &'a self,
        pass: &'a Pass<'a>,
        cache: &KvCache<P::Backend>,
    ) -> Result<LaidOut<'a, P::Backend>, DeviceError> {
        LaidOut::new(&self.scratch, (self.backend(), &self.stream), pass, cache.paging())
    }

    fn prepare(&self, layer: &Linear<P>, rows: usize, logits: bool) -> Result<(), DeviceError> {
        if rows == 0 || layer.out_cols == 0 {
            return Ok(());
        }
        let stride = Buffer::<P::Backend>::new(layer.out_cols, logits).stride();
        self.products.prepare(self.backend(), &self.stream, &layer.layer, stride, rows, logits)
    }

    fn is_row_invariant(&self) -> bool {
        self.products.is_row_invariant()
    }

    fn embed(
        &self,
        table: &Linear<P>,
        ids: &[u32],
        first_row: usize,
        out: &mut Buffer<P::Backend>,
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
        let (backend, stream) = (self.backend(), &self.stream);
        let host: Vec<i32> =
            ids.iter().map(|&id| index32(OPERATION, "token id", id as usize)).collect::<Result<_, _>>()?;
        let mut scratch = self.scratch();
        let Scratch { ids, error, .. } = &mut *scratch;
        let ids = ids.reserve(backend, stream, host.len())?;
        backend.upload(stream, &host, ids, 0)?;
        let range = elements(out, &rows);
        let args = Embed {
            ids: self.input(ids, 0..host.len())?,
            table: backend.view(stream, self.products.weight(&table.layer)),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            error: Some(error_word(backend, stream, error)?),
            cols: table.in_cols,
        };
        Ok(self.kernels.embed(stream, &args)?)
    }

    fn fill_rows(
        &self,
        value: &Vector<P::Backend>,
        rows: Range<usize>,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "fill_rows";
        if rows.is_empty() {
            return Ok(());
        }
        expect_rows(OPERATION, "out", out, value.len, rows.end)?;
        let (backend, stream) = (self.backend(), &self.stream);
        let mut scratch = self.scratch();
        let Scratch { filled, error, .. } = &mut *scratch;
        let ids = filled.holding(backend, stream, vec![0; rows.len()])?;
        let range = elements(out, &rows);
        let args = Gather {
            indices: self.input(ids, 0..rows.len())?,
            x: backend.view(stream, &value.row),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            error: Some(error_word(backend, stream, error)?),
            cols: value.len,
        };
        Ok(self.kernels.gather(stream, &args)?)
    }

    fn rms_norm(
        &self,
        x: &Buffer<P::Backend>,
        rows: Range<usize>,
        weight: &Vector<P::Backend>,
        eps: f32,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "rms_norm";
        expect_rows(OPERATION, "x", x, weight.len, rows.end)?;
        expect_rows(OPERATION, "out", out, weight.len, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let (backend, stream) = (self.backend(), &self.stream);
        let range = elements(x, &rows);
        let args = RmsNorm {
            x: Residual::Is(self.input(x.activations(OPERATION, "x")?, range.clone())?),
            weight: backend.view(stream, &weight.values),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            eps,
        };
        Ok(self.kernels.rms_norm(stream, &args)?)
    }

    fn linear_to(
        &self,
        layer: &Linear<P>,
        x: &Buffer<P::Backend>,
        rows: Range<usize>,
        first_row: usize,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "linear";
        expect_rows(OPERATION, "x", x, layer.in_cols, rows.end)?;
        expect_rows(OPERATION, "out", out, layer.out_cols, first_row.saturating_add(rows.len()))?;
        if rows.is_empty() || layer.out_cols == 0 {
            return Ok(());
        }
        let x = x.activations(OPERATION, "x")?;
        let Some(out) = ProductOut::of(out, first_row) else { return Ok(()) };
        self.products.multiply(self.backend(), &self.stream, &layer.layer, x, rows, out)
    }

    fn add(
        &self,
        delta: &Buffer<P::Backend>,
        rows: Range<usize>,
        hidden: &mut Buffer<P::Backend>,
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
        delta: &Buffer<P::Backend>,
        rows: Range<usize>,
        hidden: &mut Buffer<P::Backend>,
        weight: &Vector<P::Backend>,
        eps: f32,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "add_rms_norm";
        expect_rows(OPERATION, "delta", delta, weight.len, rows.end)?;
        expect_rows(OPERATION, "hidden", hidden, weight.len, rows.end)?;
        expect_rows(OPERATION, "out", out, weight.len, rows.end)?;
        if rows.is_empty() {
            return Ok(());
        }
        let (backend, stream) = (self.backend(), &self.stream);
        let range = elements(delta, &rows);
        let args = RmsNorm {
            x: Residual::Add {
                x: self.output(hidden.activations_mut(OPERATION, "hidden")?, range.clone())?,
                delta: self.input(delta.activations(OPERATION, "delta")?, range.clone())?,
            },
            weight: backend.view(stream, &weight.values),
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            eps,
        };
        Ok(self.kernels.rms_norm(stream, &args)?)
    }

    fn silu_mul(
        &self,
        x: &Buffer<P::Backend>,
        rows: Range<usize>,
        out: &mut Buffer<P::Backend>,
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
        bonus: &Buffer<P::Backend>,
        owner: &[usize],
        x: &mut Buffer<P::Backend>,
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
        let (backend, stream) = (self.backend(), &self.stream);
        let host: Vec<i32> =
            owner.iter().map(|&row| index32(OPERATION, "owner", row)).collect::<Result<_, _>>()?;
        let mut scratch = self.scratch();
        let Scratch { owners, error, .. } = &mut *scratch;
        let ids = owners.holding(backend, stream, host)?;
        let cols = x.cols;
        let args = SiluAdd {
            bonus: self.input(bonus.activations(OPERATION, "bonus")?, 0..bonus.rows * cols)?,
            x: self.output(x.activations_mut(OPERATION, "x")?, 0..owner.len() * cols)?,
            owner: self.input(ids, 0..owner.len())?,
            error: Some(error_word(backend, stream, error)?),
            cols,
        };
        Ok(self.kernels.silu_add(stream, &args)?)
    }

    fn gather(
        &self,
        x: &Buffer<P::Backend>,
        rows: &[usize],
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        expect("gather", "out", vec![out.rows, x.cols], vec![out.rows, out.cols])?;
        self.resize(out, rows.len())?;
        self.gather_rows(x, rows, out)
    }

    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, Vector<P::Backend>>,
        pass: &mut LaidOut<'_, P::Backend>,
        kind: RowKind,
        qkv: &mut Buffer<P::Backend>,
        layer: usize,
        cache: &mut KvCache<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "norm_rope_append";
        let shape = transform.shape;
        let rows = pass.memory.tables.rows();
        expect_rows(OPERATION, "qkv", qkv, shape.qkv_cols(), rows)?;
        expect(OPERATION, "inv_freq", vec![shape.head_dim / 2], vec![transform.rope.inv_freq.len()])?;
        expect_paging(OPERATION, &pass.memory.tables, cache)?;
        let (backend, stream) = (self.backend(), &self.stream);
        let cache = cache.view_mut(OPERATION, (backend, stream), layer, shape)?;
        let mut scratch = self.scratch();
        let Scratch { frequencies, error, .. } = &mut *scratch;
        let inv_freq = frequencies.of(backend, stream, transform.rope)?;
        let (tables, turns) = pass.memory.turned(&self.kernels, stream, transform.rope, inv_freq)?;
        let range = 0..rows * qkv.cols;
        let args = NormRopeAppend {
            pass: tables,
            kind,
            qkv: self.output(qkv.activations_mut(OPERATION, "qkv")?, range)?,
            turns: self.input(turns, 0..rows * shape.head_dim)?,
            norms: transform
                .norms
                .map(|(q, k)| (backend.view(stream, &q.values), backend.view(stream, &k.values))),
            eps: transform.eps,
            cache,
            shape,
            error: Some(error_word(backend, stream, error)?),
        };
        Ok(self.kernels.norm_rope_append(stream, &args)?)
    }

    fn joint_attention(
        &self,
        shape: AttentionShape,
        AttentionRows { pass, masks }: AttentionRows<'_, LaidOut<'_, P::Backend>>,
        qkv: &Buffer<P::Backend>,
        layer: usize,
        cache: &KvCache<P::Backend>,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "joint_attention";
        let tables = &pass.memory.tables;
        let rows = if masks { tables.rows() } else { tables.candidates() };
        let (backend, stream) = (self.backend(), &self.stream);
        expect_paging(OPERATION, tables, cache)?;
        let cache = cache.view(OPERATION, (backend, stream), layer, shape)?;
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
        let workspace = workspace.reserve(backend, stream, needed)?;
        let range = 0..rows * out.cols;
        let args = JointAttention {
            pass: tables,
            masks,
            qkv: self.input(qkv.activations(OPERATION, "qkv")?, 0..rows * qkv.cols)?,
            cache,
            out: self.output(out.activations_mut(OPERATION, "out")?, range)?,
            lse: None,
            workspace: backend.view_mut(stream, workspace),
            shape,
            split: self.split,
            error: Some(error_word(backend, stream, error)?),
        };
        Ok(self.kernels.joint_attention(stream, &args)?)
    }

    fn edit_row(
        &self,
        logits: &mut Buffer<P::Backend>,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "edit_row";
        expect_rows(OPERATION, "logits", logits, logits.cols, row.saturating_add(1))?;
        let (backend, stream) = (self.backend(), &self.stream);
        let mut host = vec![0.0; logits.cols];
        let first = row * logits.stride();
        logits.forget_draws_from(row);
        let memory = logits.logits_mut(OPERATION)?;
        backend.download(stream, memory, first, &mut host)?;
        edit(&mut host);
        // As it counts anyway, but a kernel that meets a NaN reports it.
        host.iter_mut().filter(|logit| logit.is_nan()).for_each(|logit| *logit = f32::NEG_INFINITY);
        Ok(backend.upload(stream, &host, memory, first)?)
    }

    fn verify(
        &self,
        logits: &Buffer<P::Backend>,
        sequences: &[VerifyRows<'_, Buffer<P::Backend>>],
        results: &mut Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        self.verify_drafts(logits, sequences, results)
    }

    fn known<'a>(&self, results: &'a Results<P::Backend>) -> Option<&'a [Verdict]> {
        results.known()
    }

    fn follow(
        &self,
        pass: &mut LaidOut<'_, P::Backend>,
        verdicts: &[usize],
        results: &Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        self.follow_verdicts(pass, verdicts, results)
    }

    fn joined_head_rows(&self, head: &Linear<P>) -> usize {
        self.most_joined_rows(head)
    }

    fn joins_head_products(&self, head: &Linear<P>, candidates: usize, slots: usize, drafted: usize) -> bool {
        self.joins(head, candidates, slots, drafted)
    }

    fn select(
        &self,
        drafts: &[DraftRows<'_>],
        rows: SlotRows,
        results: &mut Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        self.select_drafts(drafts, rows, results)
    }

    fn gather_selected(
        &self,
        x: &Buffer<P::Backend>,
        results: &Results<P::Backend>,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        self.gather_slots(x, results, out)
    }

    fn embed_bonus(
        &self,
        table: &Linear<P>,
        results: &Results<P::Backend>,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        self.embed_bonus_tokens(table, results, out)
    }

    fn drafted_rows(&self, results: &Results<P::Backend>) -> usize {
        results.report.rows()
    }

    fn draft(
        &self,
        calibration: Option<Calibration<'_, Buffer<P::Backend>, Linear<P>>>,
        logits: &mut Buffer<P::Backend>,
        drafts: &[DraftRows<'_>],
        results: &mut Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        self.draft_tokens(calibration, logits, drafts, results)
    }

    fn copy_draft(
        &self,
        draft: DraftLogits<'_, Buffer<P::Backend>>,
        rows: usize,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        expect("copy_draft", "out", vec![out.rows, draft.logits.cols], vec![out.rows, out.cols])?;
        self.resize(out, rows)?;
        self.copy_draft_rows(draft, rows, out)
    }

    fn read(&self, results: &mut Results<P::Backend>) -> Result<Found, DeviceError> {
        self.read_results(results)
    }
}
