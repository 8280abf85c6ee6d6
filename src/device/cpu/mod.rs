//! The CPU device.
//!
//! Activations are f32 (rounded to bf16 where [`Precision::Bf16`] asks for it); weights stay in their
//! stored type, memory-mapped if the loader mapped them, and are widened as they are used.

mod attention;
mod buffer;
mod check;
mod elementwise;
mod kv_cache;
mod pool;
mod product;
mod sampling;
mod simd;

use std::ops::Range;

pub use buffer::{Buffer, Vector};
pub use kv_cache::KvCache;
pub use product::Linear;
pub use simd::InstructionSet;

use pool::Pool;
use simd::Vectors;

use super::{
    AttentionShape, Device, DeviceError, DraftRows, DraftToken, LinearPart, Precision, QkTransform, RowKind,
    Verdict, VerifyRows,
};
use crate::layout::Pass;
use crate::tensor::Tensor;

/// How a [`Cpu`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuOptions {
    /// Threads; 0 is one a core. No result depends on their number.
    pub threads: usize,
    /// How activations and the cache are stored.
    pub precision: Precision,
    /// The instruction set; `None` is the fastest that the machine has.
    pub instruction_set: Option<InstructionSet>,
}

/// The CPU as a device.
pub struct Cpu {
    pool: Pool,
    vectors: Vectors,
    precision: Precision,
}

impl Cpu {
    /// A device with the given options.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] for an instruction set that the machine lacks, or threads that cannot
    /// be had.
    pub fn new(options: CpuOptions) -> Result<Self, DeviceError> {
        let vectors = match options.instruction_set {
            None => Vectors::fastest(),
            Some(set) => Vectors::new(set).ok_or_else(|| DeviceError::Unavailable {
                requested: format!("cpu with {set:?}"),
                reason: "the machine does not have this instruction set".to_owned(),
            })?,
        };
        Ok(Self { pool: Pool::new(options.threads)?, vectors, precision: options.precision })
    }

    /// The instruction set in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.vectors.instruction_set()
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl Device for Cpu {
    type Buffer = Buffer;
    type Linear = Linear;
    type Vector = Vector;
    type Cache = KvCache;

    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<Linear, DeviceError> {
        Linear::new(parts)
    }

    fn new_vector(&self, tensor: &Tensor) -> Result<Vector, DeviceError> {
        check::shape("new_vector", "tensor", &[tensor.elements().len()], tensor.shape())?;
        Ok(Vector(tensor.to_f32()))
    }

    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<KvCache, DeviceError> {
        KvCache::new(layers, pages, page_size, shape, self.precision)
    }

    fn new_buffer(&self, cols: usize) -> Buffer {
        Buffer::new(cols, self.precision)
    }

    fn new_logits(&self, cols: usize) -> Buffer {
        Buffer::new(cols, Precision::F32)
    }

    fn resize(&self, buffer: &mut Buffer, rows: usize) -> Result<(), DeviceError> {
        buffer.resize(rows)
    }

    fn embed(
        &self,
        table: &Linear,
        ids: &[u32],
        first_row: usize,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed";
        check::cols(OPERATION, "out", out, table.input())?;
        let rows = check::rows(OPERATION, first_row..first_row.saturating_add(ids.len()), &[out])?;
        let precision = out.precision();
        for (&id, row) in ids.iter().zip(out.rows_in_mut(rows)) {
            check::index(OPERATION, "token id", id as usize, table.rows())?;
            table.read_row(id as usize, row);
            precision.round_all(row);
        }
        Ok(())
    }

    fn fill_rows(&self, value: &Vector, rows: Range<usize>, out: &mut Buffer) -> Result<(), DeviceError> {
        elementwise::fill_rows(value, rows, out)
    }

    fn rms_norm(
        &self,
        x: &Buffer,
        rows: Range<usize>,
        weight: &Vector,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        elementwise::rms_norm(x, rows, weight, eps, out)
    }

    fn linear(
        &self,
        layer: &Linear,
        x: &Buffer,
        rows: Range<usize>,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        let rows = check_linear("linear", layer, x, rows, out)?;
        layer.apply(&self.pool, self.vectors, x, rows, false, out);
        Ok(())
    }

    fn linear_add(
        &self,
        layer: &Linear,
        x: &Buffer,
        rows: Range<usize>,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        let rows = check_linear("linear_add", layer, x, rows, out)?;
        layer.apply(&self.pool, self.vectors, x, rows, true, out);
        Ok(())
    }

    fn add(&self, delta: &Buffer, rows: Range<usize>, hidden: &mut Buffer) -> Result<(), DeviceError> {
        elementwise::add(delta, rows, hidden)
    }

    fn silu_mul(&self, x: &Buffer, rows: Range<usize>, out: &mut Buffer) -> Result<(), DeviceError> {
        elementwise::silu_mul(x, rows, out)
    }

    fn silu_add(&self, bonus: &Buffer, owner: &[usize], x: &mut Buffer) -> Result<(), DeviceError> {
        elementwise::silu_add(bonus, owner, x)
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<(), DeviceError> {
        elementwise::gather(x, rows, out)
    }

    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, Vector>,
        pass: &Pass<'_>,
        kind: RowKind,
        qkv: &mut Buffer,
        layer: usize,
        cache: &mut KvCache,
    ) -> Result<(), DeviceError> {
        elementwise::norm_rope_append(transform, pass, kind, qkv, layer, cache)
    }

    fn joint_attention(
        &self,
        shape: AttentionShape,
        pass: &Pass<'_>,
        qkv: &Buffer,
        layer: usize,
        cache: &KvCache,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        attention::joint_attention(self, shape, pass, qkv, layer, cache, out)
    }

    fn edit_row(
        &self,
        logits: &mut Buffer,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError> {
        let rows = check::rows("edit_row", row..row.saturating_add(1), &[logits])?;
        logits.rows_in_mut(rows).for_each(edit);
        Ok(())
    }

    fn draft(&self, logits: &Buffer, drafts: &[DraftRows<'_>]) -> Result<Vec<Vec<DraftToken>>, DeviceError> {
        drafts.iter().map(|draft| sampling::draft(logits, draft)).collect()
    }

    fn verify(
        &self,
        logits: &Buffer,
        sequences: &[VerifyRows<'_, Buffer>],
    ) -> Result<Vec<Verdict>, DeviceError> {
        sequences.iter().map(|sequence| sampling::verify(logits, sequence)).collect()
    }

    /// Mask rows are never free on a CPU: arithmetic costs as much as memory.
    fn parallel_batch_limit(&self) -> usize {
        0
    }
}

fn check_linear(
    operation: &'static str,
    layer: &Linear,
    x: &Buffer,
    rows: Range<usize>,
    out: &Buffer,
) -> Result<Range<usize>, DeviceError> {
    check::cols(operation, "x", x, layer.input())?;
    check::cols(operation, "out", out, layer.output())?;
    check::rows(operation, rows, &[x, out])
}
