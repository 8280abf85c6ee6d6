//! The CPU device: runs on several threads, multiplies weights as they are stored, and sums in f32.
//!
//! Results do not depend on the number of threads, or on other rows that are computed in the same call. They
//! depend on the instruction set: AVX2 and AVX-512 give the same bits, portable code gives other bits.

mod attention;
mod block_product;
mod blocks;
mod buffer;
mod chain;
mod check;
mod elementwise;
mod kv_cache;
mod linear;
mod lines;
mod page_layout;
mod pass;
mod pool;
mod product;
mod results;
mod rope;
mod rounded;
mod rounded_product;
mod rows;
mod sampling;
mod simd;
mod softmax;
mod verify;

use std::ops::Range;

use self::linear::Output;
use self::pool::Pool;
use self::simd::Vectors;
use super::{
    AttentionRows, AttentionShape, Corrections, Device, DeviceError, DraftSelection, DraftTables,
    DraftingPass, LinearPart, Precision, QkTransform, RowKind, SequenceVerdict, StepResults, StepTables,
    Verification,
};
use crate::tensor::Tensor;

pub use self::buffer::{CpuBuffer, CpuVector};
pub use self::kv_cache::CpuKvCache;
pub use self::linear::CpuLinear;
pub use self::pass::CheckedPass;
pub use self::results::{CpuResults, CpuSelection, CpuVerification};
pub use self::simd::InstructionSet;

/// Options of a [`Cpu`] device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Number of threads; 0 means one per core.
    pub threads: usize,
    /// Number format of activations and of the KV cache.
    pub precision: Precision,
}

/// The CPU device.
pub struct Cpu {
    pool: Pool,
    vectors: Vectors,
    precision: Precision,
    joins_heads: bool,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu")
            .field("threads", &self.threads())
            .field("precision", &self.precision)
            .field("instruction_set", &self.instruction_set())
            .finish()
    }
}

impl Cpu {
    /// Makes a device that uses the fastest instruction set of the machine.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if the threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Self, DeviceError> {
        Self::with_vectors(options, Vectors::fastest())
    }

    /// Makes a device that uses one instruction set, for comparison with another.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if the machine does not have the instruction set, or if the threads
    /// cannot be started.
    pub fn with_instruction_set(
        options: CpuOptions,
        instruction_set: InstructionSet,
    ) -> Result<Self, DeviceError> {
        let vectors = Vectors::new(instruction_set).ok_or_else(|| DeviceError::Unavailable {
            requested: format!("cpu with {instruction_set:?}"),
            reason: "this machine does not have the instruction set".to_owned(),
        })?;
        Self::with_vectors(options, vectors)
    }

    fn with_vectors(options: CpuOptions, vectors: Vectors) -> Result<Self, DeviceError> {
        let (pool, precision) = (Pool::new(options.threads)?, options.precision);
        Ok(Self { pool, vectors, precision, joins_heads: false })
    }

    /// Returns the same device with one product of the LM head for the candidates and for the slots of every
    /// mask group. This is more work, because the CPU device knows its verdicts before it drafts; results are
    /// the same to the last bit.
    #[must_use]
    pub fn with_joined_heads(self) -> Self {
        Self { joins_heads: true, ..self }
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Returns the number format of activations and of the KV cache.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the instruction set in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.vectors.instruction_set()
    }

    /// Adds the calibrator's output to the logits: `out[r] += W x[r] + b`.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if operands do not fit each other.
    pub fn linear_add(
        &self,
        layer: &CpuLinear,
        x: &CpuBuffer,
        rows: Range<usize>,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let first_row = rows.start;
        layer.apply(self.compute(), x, rows, Output::Add, (out, first_row))
    }

    /// Returns a verification with the verdicts `verdicts`, which the caller found.
    pub fn verified<'a>(
        &'a self,
        verdicts: Vec<SequenceVerdict>,
        results: &'a mut CpuResults,
    ) -> CpuVerification<'a> {
        CpuVerification::new(self.compute(), self.precision, verdicts, results)
    }

    fn compute(&self) -> (&Pool, Vectors) {
        (&self.pool, self.vectors)
    }
}

impl Device for Cpu {
    type Buffer = CpuBuffer;
    type Linear = CpuLinear;
    type Vector = CpuVector;
    type Cache = CpuKvCache;
    type Results = CpuResults;
    type Pass<'a> = CheckedPass<'a>;
    type Tables<'a> = StepTables<'a, CpuBuffer>;
    type Verification<'a> = CpuVerification<'a>;

    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<CpuLinear, DeviceError> {
        CpuLinear::new(parts)
    }

    fn new_vector(&self, tensor: &Tensor) -> Result<CpuVector, DeviceError> {
        let values = tensor.to_f32();
        check::shape("new_vector", "tensor", &[values.len()], tensor.shape())?;
        Ok(CpuVector(values))
    }

    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<CpuKvCache, DeviceError> {
        CpuKvCache::new(layers, pages, page_size, shape, self.precision)
    }

    fn new_buffer(&self, cols: usize) -> CpuBuffer {
        CpuBuffer::new(cols, self.precision)
    }

    fn new_logits(&self, cols: usize) -> CpuBuffer {
        CpuBuffer::new(cols, Precision::F32)
    }

    fn new_results(&self) -> CpuResults {
        CpuResults::default()
    }

    fn resize(&self, buffer: &mut CpuBuffer, rows: usize) -> Result<(), DeviceError> {
        buffer.resize(rows)
    }

    fn begin<'a>(
        &'a self,
        tables: StepTables<'a, CpuBuffer>,
        cache: &CpuKvCache,
    ) -> Result<(CheckedPass<'a>, StepTables<'a, CpuBuffer>), DeviceError> {
        Ok((CheckedPass::new(tables.pass, cache)?, tables))
    }

    fn embed(
        &self,
        table: &CpuLinear,
        ids: &[u32],
        first_row: usize,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        table.embed(ids, first_row, out)
    }

    fn fill_rows(
        &self,
        value: &CpuVector,
        rows: Range<usize>,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        elementwise::fill_rows(value, rows, out)
    }

    fn rms_norm(
        &self,
        x: &CpuBuffer,
        rows: Range<usize>,
        weight: &CpuVector,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        elementwise::rms_norm(self.compute(), x, rows, weight, eps, out)
    }

    fn linear_to(
        &self,
        layer: &CpuLinear,
        x: &CpuBuffer,
        rows: Range<usize>,
        first_row: usize,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        layer.apply(self.compute(), x, rows, Output::Store, (out, first_row))
    }

    fn add(&self, delta: &CpuBuffer, rows: Range<usize>, hidden: &mut CpuBuffer) -> Result<(), DeviceError> {
        elementwise::add(&self.pool, delta, rows, hidden)
    }

    fn silu_mul(&self, x: &CpuBuffer, rows: Range<usize>, out: &mut CpuBuffer) -> Result<(), DeviceError> {
        elementwise::silu_mul(self.compute(), x, rows, out)
    }

    fn silu_add(&self, bonus: &CpuBuffer, owner: &[usize], x: &mut CpuBuffer) -> Result<(), DeviceError> {
        elementwise::silu_add(self.compute(), bonus, owner, x)
    }

    fn gather(&self, x: &CpuBuffer, rows: &[usize], out: &mut CpuBuffer) -> Result<(), DeviceError> {
        elementwise::gather(x, rows, out)
    }

    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, CpuVector>,
        pass: &mut CheckedPass<'_>,
        kind: RowKind,
        qkv: &mut CpuBuffer,
        layer: usize,
        cache: &mut CpuKvCache,
    ) -> Result<(), DeviceError> {
        rope::norm_rope_append(self.compute(), transform, pass, kind, qkv, layer, cache)
    }

    fn joint_attention(
        &self,
        shape: AttentionShape,
        rows: AttentionRows<'_, CheckedPass<'_>>,
        qkv: &CpuBuffer,
        layer: usize,
        cache: &CpuKvCache,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        attention::joint_attention(self.compute(), shape, rows, qkv, layer, cache, out)
    }

    fn edit_row(
        &self,
        logits: &mut CpuBuffer,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError> {
        elementwise::edit_row(logits, row, edit)
    }

    fn upload_draft(&self, scores: &[Vec<f32>], out: &mut CpuBuffer) -> Result<(), DeviceError> {
        out.resize(scores.len())?;
        for (row, scores) in scores.iter().enumerate() {
            check::shape("upload_draft", "a row of scores", &[out.cols()], &[scores.len()])?;
            elementwise::edit_row(out, row, &mut |to| to.copy_from_slice(scores))?;
        }
        Ok(())
    }

    fn joined_head_rows(&self, _: &CpuLinear) -> usize {
        if self.joins_heads { usize::MAX } else { 0 }
    }

    fn joins_head_products(&self, _: &CpuLinear, _: usize, _: usize, _: usize) -> bool {
        self.joins_heads
    }

    fn verify<'a>(
        &'a self,
        tables: StepTables<'a, CpuBuffer>,
        logits: &mut CpuBuffer,
        results: &'a mut CpuResults,
    ) -> Result<CpuVerification<'a>, DeviceError> {
        let verdicts = verify::verify(self.compute(), logits, tables.sequences)?;
        Ok(self.verified(verdicts, results))
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.run(work)
    }
}

impl Verification<Cpu> for CpuVerification<'_> {
    type Selection<'s>
        = CpuSelection<'s>
    where
        Self: 's;

    fn verdicts_if_ready(&self) -> Option<&[SequenceVerdict]> {
        Some(self.verdicts())
    }

    fn begin_drafting<'p>(
        &'p self,
        drafting: DraftingPass<'p>,
        cache: &CpuKvCache,
    ) -> Result<CheckedPass<'p>, DeviceError> {
        check::drafting_pass(drafting)?;
        CheckedPass::new(drafting.pass, cache)
    }

    fn embed_bonus(
        &mut self,
        table: &CpuLinear,
        verdicts: &[usize],
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        self.embed_bonus_tokens(table, verdicts, out)
    }

    fn select_drafts<'s>(&'s mut self, drafts: DraftTables<'s>) -> Result<CpuSelection<'s>, DeviceError> {
        self.select(drafts)
    }

    fn drafted_rows(&self) -> usize {
        self.drafted()
    }

    fn read(&mut self) -> Result<StepResults, DeviceError> {
        Ok(self.take())
    }
}

impl DraftSelection<Cpu> for CpuSelection<'_> {
    fn gather(&self, x: &CpuBuffer, out: &mut CpuBuffer) -> Result<(), DeviceError> {
        self.gather_rows(x, out)
    }

    fn embed_bonus(&self, table: &CpuLinear, out: &mut CpuBuffer) -> Result<(), DeviceError> {
        self.embed_tokens(table, out)
    }

    fn draft(
        self,
        corrections: Corrections<'_, CpuBuffer, CpuLinear>,
        logits: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        self.sample(corrections, logits)
    }
}
