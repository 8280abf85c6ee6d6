//! The GPU device: every operation of a decode step on this crate's kernels, with matrix products from a library.
//!
//! The code is generic over the runtime that launches the kernels. The tests therefore run the whole decode loop
//! on the SIMT emulator, with the same launches in the same order as on a GPU.
//!
//! | module | contents |
//! |---|---|
//! | `context`, `scratch` | the kernels, the stream, and memory that operations share |
//! | `memory`, `tables` | device memory that grows, and small tables that the host fills |
//! | `step_tables`, `table_block` | the tables of a step, which one copy uploads |
//! | `buffer`, `kv_cache`, `pass`, `pass_memory` | activations and weights, the KV cache, a pass on the device |
//! | `check` | checks of operands |
//! | `elementwise`, `linear`, `rope`, `attention` | the operations of the forward pass |
//! | `verify`, `sampling`, `selected`, `report`, `results` | acceptance, drafting, and what the host reads |
//! | `chain`, `chosen` | drafts with a chain, and the ids that their tokens were drawn from |
//! | `products`, `head_products`, `cublas`, `simt` | matrix products, by cuBLASLt or on the emulator |
//! | `cuda`, `peaks` | the device on CUDA, and a GPU's measured peaks |

mod attention;
mod buffer;
mod chain;
mod check;
mod chosen;
mod context;
mod cublas;
mod cuda;
mod elementwise;
mod frequencies;
mod head_products;
mod kv_cache;
mod linear;
mod memory;
mod pass;
mod pass_memory;
mod peaks;
mod products;
mod report;
mod results;
mod rope;
mod sampling;
mod scratch;
mod selected;
#[cfg(feature = "simt")]
mod simt;
mod step_tables;
mod table_block;
mod tables;
mod verify;

use std::ops::Range;

pub use buffer::{GpuBuffer, GpuVector};
pub use cublas::{CublasLayer, CublasLt, ProductAlgorithms, ProductCandidate, cublas_is_present};
pub use cuda::CudaOptions;
pub use head_products::HeadProducts;
pub use kv_cache::GpuKvCache;
pub use linear::GpuLinear;
pub use pass::UploadedPass;
pub use peaks::Peaks;
pub use products::{ProductMemory, ProductOut, Products, Weights};
pub use results::{GpuResults, GpuSelection, GpuVerification};
#[cfg(feature = "simt")]
pub use simt::CpuProducts;
pub use step_tables::UploadedTables;

use self::context::Context;
use self::linear::Linears;
use super::{
    AttentionRows, AttentionShape, Corrections, Device, DeviceError, DraftLogits, DraftSelection,
    DraftTables, DraftingPass, LinearPart, QkTransform, RowKind, SequenceVerdict, StepResults, StepTables,
    Verification,
};
use crate::kernels::attention::DEFAULT_SPLIT;
use crate::kernels::{Kernels, ModelShape, Paging, supports};
use crate::runtime::Runtime;
use crate::tensor::Tensor;

/// A device that computes with this crate's kernels.
#[derive(Debug)]
pub struct Gpu<P: Products> {
    context: Context<P::Runtime>,
    products: P,
    /// Number of keys per attention split.
    split: usize,
    head_products: HeadProducts,
    /// Whether steps are padded; `None` to pad them if the runtime repeats equal launches as graphs.
    padding: Option<bool>,
}

type StreamOf<P> = <<P as Products>::Runtime as Runtime>::Stream;
type BufferOf<P> = GpuBuffer<<P as Products>::Runtime>;
type VectorOf<P> = GpuVector<<P as Products>::Runtime>;
type CacheOf<P> = GpuKvCache<<P as Products>::Runtime>;
type TablesOf<'a, P> = UploadedTables<'a, <P as Products>::Runtime>;
type PassOf<'a, P> = UploadedPass<'a, <P as Products>::Runtime>;

impl<P: Products> Gpu<P> {
    /// Makes a device that runs `kernels` on `stream`, with matrix products from `products`.
    pub fn new(kernels: Kernels<P::Runtime>, stream: StreamOf<P>, products: P) -> Self {
        let context = Context::new(kernels, stream);
        let (split, head_products) = (DEFAULT_SPLIT, HeadProducts::ByTime);
        Gpu { context, products, split, head_products, padding: None }
    }

    /// Returns the same device with attention splits of `split` keys, a multiple of 64.
    #[must_use]
    pub fn with_split(self, split: usize) -> Self {
        Gpu { split, ..self }
    }

    /// Returns the same device with another division of the LM head's products.
    #[must_use]
    pub fn with_head_products(self, head_products: HeadProducts) -> Self {
        Gpu { head_products, ..self }
    }

    /// Returns the same device with steps that are [padded](Device::pads_steps) or not, whether or not launches run as
    /// graphs. The setting is for tests and measurements: padding changes no result.
    #[must_use]
    pub fn with_padding(self, padding: bool) -> Self {
        Gpu { padding: Some(padding), ..self }
    }

    /// Returns the kernels, with the runtime that launches them.
    pub fn kernels(&self) -> &Kernels<P::Runtime> {
        &self.context.kernels
    }

    /// Returns the library of matrix products.
    pub fn products(&self) -> &P {
        &self.products
    }

    fn linears(&self) -> Linears<'_, P> {
        Linears { context: &self.context, products: &self.products }
    }
}

impl<P: Products> Device for Gpu<P> {
    type Buffer = BufferOf<P>;
    type Linear = GpuLinear<P>;
    type Vector = VectorOf<P>;
    type Cache = CacheOf<P>;
    type Results = GpuResults<P::Runtime>;
    type Pass<'a> = PassOf<'a, P>;
    type Tables<'a> = TablesOf<'a, P>;
    type Verification<'a> = GpuVerification<'a, P>;

    fn check_model(&self, shape: &ModelShape) -> Result<(), DeviceError> {
        supports(shape).map_err(DeviceError::UnsupportedModel)
    }

    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<GpuLinear<P>, DeviceError> {
        self.linears().new_layer(parts)
    }

    fn new_vector(&self, tensor: &Tensor) -> Result<VectorOf<P>, DeviceError> {
        GpuVector::new(self.context.queue(), tensor)
    }

    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<CacheOf<P>, DeviceError> {
        GpuKvCache::new(self.context.queue(), layers, Paging { pages, page_size }, shape)
    }

    fn new_buffer(&self, cols: usize) -> BufferOf<P> {
        GpuBuffer::new(cols, false)
    }

    fn new_logits(&self, cols: usize) -> BufferOf<P> {
        GpuBuffer::new(cols, true)
    }

    fn new_results(&self) -> GpuResults<P::Runtime> {
        GpuResults::default()
    }

    fn resize(&self, buffer: &mut BufferOf<P>, rows: usize) -> Result<(), DeviceError> {
        buffer.resize(self.context.queue(), rows)
    }

    fn prepare(&self, layer: &GpuLinear<P>, rows: usize, logits: bool) -> Result<(), DeviceError> {
        self.linears().prepare(layer, rows, logits)
    }

    fn is_row_invariant(&self) -> bool {
        self.products.is_row_invariant()
    }

    fn pads_steps(&self) -> bool {
        self.padding.unwrap_or_else(|| self.context.runtime().repeats_launches(&self.context.stream))
    }

    fn begin<'a>(
        &'a self,
        tables: StepTables<'a, BufferOf<P>>,
        cache: &CacheOf<P>,
    ) -> Result<(PassOf<'a, P>, TablesOf<'a, P>), DeviceError> {
        UploadedTables::new(&self.context, tables, cache.paging())
    }

    fn embed(
        &self,
        table: &GpuLinear<P>,
        ids: &[u32],
        first_row: usize,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        self.linears().embed(table, ids, first_row, out)
    }

    fn fill_rows(
        &self,
        value: &VectorOf<P>,
        rows: Range<usize>,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        elementwise::fill_rows(&self.context, value, rows, out)
    }

    fn rms_norm(
        &self,
        x: &BufferOf<P>,
        rows: Range<usize>,
        weight: &VectorOf<P>,
        eps: f32,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        elementwise::rms_norm(&self.context, x, rows, (weight, eps), out)
    }

    fn linear_to(
        &self,
        layer: &GpuLinear<P>,
        x: &BufferOf<P>,
        rows: Range<usize>,
        first_row: usize,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        self.linears().multiply(layer, x, rows, first_row, out)
    }

    fn add(
        &self,
        delta: &BufferOf<P>,
        rows: Range<usize>,
        hidden: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        elementwise::add(&self.context, delta, rows, hidden)
    }

    fn add_rms_norm(
        &self,
        delta: &BufferOf<P>,
        rows: Range<usize>,
        hidden: &mut BufferOf<P>,
        weight: &VectorOf<P>,
        eps: f32,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        elementwise::add_rms_norm(&self.context, delta, rows, hidden, (weight, eps), out)
    }

    fn silu_mul(
        &self,
        x: &BufferOf<P>,
        rows: Range<usize>,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        elementwise::silu_mul(&self.context, x, rows, out)
    }

    fn silu_add(&self, bonus: &BufferOf<P>, owner: &[usize], x: &mut BufferOf<P>) -> Result<(), DeviceError> {
        elementwise::silu_add(&self.context, bonus, owner, x)
    }

    fn gather(&self, x: &BufferOf<P>, rows: &[usize], out: &mut BufferOf<P>) -> Result<(), DeviceError> {
        elementwise::gather(&self.context, x, rows, out)
    }

    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, VectorOf<P>>,
        pass: &mut PassOf<'_, P>,
        kind: RowKind,
        qkv: &mut BufferOf<P>,
        layer: usize,
        cache: &mut CacheOf<P>,
    ) -> Result<(), DeviceError> {
        rope::norm_rope_append(&self.context, transform, pass, kind, qkv, layer, cache)
    }

    fn joint_attention(
        &self,
        shape: AttentionShape,
        rows: AttentionRows<'_, PassOf<'_, P>>,
        qkv: &BufferOf<P>,
        layer: usize,
        cache: &CacheOf<P>,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        attention::joint_attention((&self.context, self.split), shape, rows, qkv, layer, cache, out)
    }

    fn read_rows(&self, logits: &mut BufferOf<P>, rows: &[usize]) -> Result<Vec<Vec<f32>>, DeviceError> {
        elementwise::read_rows(&self.context, logits, rows)
    }

    fn edit_row(
        &self,
        logits: &mut BufferOf<P>,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError> {
        elementwise::edit_row(&self.context, logits, row, edit)
    }

    fn joined_head_rows(&self, head: &GpuLinear<P>) -> usize {
        self.head_products.most_joined_rows(head)
    }

    fn joins_head_products(
        &self,
        head: &GpuLinear<P>,
        candidates: usize,
        slots: usize,
        drafted: usize,
    ) -> bool {
        self.head_products.joins(&self.products, head, candidates, slots, drafted)
    }

    fn copy_draft(
        &self,
        draft: DraftLogits<'_, BufferOf<P>>,
        rows: usize,
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        elementwise::copy_draft(&self.context, draft, rows, out)
    }

    fn upload_draft(&self, scores: &[Vec<f32>], out: &mut BufferOf<P>) -> Result<(), DeviceError> {
        sampling::upload_draft(&self.context, scores, out)
    }

    fn verify<'a>(
        &'a self,
        tables: TablesOf<'a, P>,
        logits: &mut BufferOf<P>,
        results: &'a mut GpuResults<P::Runtime>,
    ) -> Result<GpuVerification<'a, P>, DeviceError> {
        GpuVerification::new(self.linears(), tables, logits, results)
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
        drafting: DraftingPass<'p>,
        cache: &CacheOf<P>,
    ) -> Result<PassOf<'p, P>, DeviceError> {
        self.begin_pass(drafting, cache)
    }

    fn embed_bonus(
        &mut self,
        table: &GpuLinear<P>,
        verdicts: &[usize],
        out: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        self.embed_bonus_tokens(table, verdicts, out)
    }

    fn select_drafts<'s>(&'s mut self, drafts: DraftTables<'s>) -> Result<GpuSelection<'s, P>, DeviceError> {
        self.select(drafts)
    }

    fn drafted_rows(&self) -> usize {
        self.drafted()
    }

    fn read(&mut self) -> Result<StepResults, DeviceError> {
        self.take()
    }
}

impl<P: Products> DraftSelection<Gpu<P>> for GpuSelection<'_, P> {
    fn gather(&self, x: &BufferOf<P>, out: &mut BufferOf<P>) -> Result<(), DeviceError> {
        self.gather_rows(x, out)
    }

    fn embed_bonus(&self, table: &GpuLinear<P>, out: &mut BufferOf<P>) -> Result<(), DeviceError> {
        self.embed_tokens(table, out)
    }

    fn draft(
        self,
        corrections: Corrections<'_, BufferOf<P>, GpuLinear<P>>,
        logits: &mut BufferOf<P>,
    ) -> Result<(), DeviceError> {
        self.sample(corrections, logits)
    }
}
