//! Rotary embedding, append to the KV cache, and joint attention, on the rows of a pass.

use candle_core::{DType, Result, Tensor};
use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention as Launch};
use flexdraft::kernels::rope::{NormRopeAppend as Append, RopeTable};
use flexdraft::kernels::{KvStrides, PagedKv, PagedKvMut, ScoreChanges};
use flexdraft::layout::{AttentionShape, RowKind};

use crate::error::refused;
use crate::operands::Elements::{Bf16, F32};
use crate::operands::{ANY, Held, Operands, Slot, dim};
use crate::pass::PassTables;
use crate::processor::{Kernels, launch, on_processor};

/// One layer of a paged KV cache: two tensors `[pages, page_size, kv_heads, head_dim]` of bf16.
///
/// Strides are free, except that the elements of a head are adjacent. A cache that is stored as `[pages, kv_heads,
/// page_size, head_dim]` is given as its `transpose(1, 2)`.
#[derive(Clone, Copy, Debug)]
pub struct KvCache<'a> {
    /// The keys of the layer.
    pub k: &'a Tensor,
    /// The values of the layer.
    pub v: &'a Tensor,
}

/// The operands of [`Kernels::norm_rope_append`].
#[derive(Clone, Copy, Debug)]
pub struct NormRopeAppend<'a> {
    /// The tables of the pass.
    pub pass: &'a PassTables,
    /// The kind of rows that the kernel processes: candidate rows or mask rows.
    pub kind: RowKind,
    /// q, k and v heads of every row of the pass, `[rows, (q_heads + 2 · kv_heads) · head_dim]` of bf16. q, and the k of mask
    /// rows, change in place.
    pub qkv: &'a Tensor,
    /// Cosines and sines from [`Kernels::rope_table`], `[rows, head_dim / 2, 2]`.
    pub cos_sin: &'a Tensor,
    /// RMSNorm weights for a q head and for a k head, `[head_dim]` of f32 each; `None` to skip the norms.
    pub norms: Option<(&'a Tensor, &'a Tensor)>,
    /// Epsilon, which the norms add to the mean of squares.
    pub eps: f32,
    /// The KV cache of the layer, to which the k and v of candidate rows are written.
    pub cache: KvCache<'a>,
    /// The number of query heads.
    pub q_heads: usize,
}

/// The operands of [`Kernels::joint_attention`].
#[derive(Clone, Copy, Debug)]
pub struct JointAttention<'a> {
    /// The tables of the pass.
    pub pass: &'a PassTables,
    /// Whether the mask rows of the pass take part. Below the tail layers there are none.
    pub masks: bool,
    /// q, k and v heads of every row, `[rows, (q_heads + 2 · kv_heads) · head_dim]` of bf16, after
    /// [`norm_rope_append`](Kernels::norm_rope_append). Rows after the rows of the pass are padding.
    pub qkv: &'a Tensor,
    /// The KV cache of the layer.
    pub cache: KvCache<'a>,
    /// The number of query heads.
    pub q_heads: usize,
    /// Keys per split of a long sequence, a multiple of 64; `None` for
    /// [`DEFAULT_SPLIT`]. Results with another split differ in rounding.
    pub split: Option<usize>,
}

/// The results of [`Kernels::joint_attention`].
#[derive(Clone, Debug)]
pub struct Attended {
    /// The attention output of each row, `[rows, q_heads · head_dim]` of bf16; zeros for padding.
    pub out: Tensor,
    /// The natural logarithm of Σ exp(score), `[rows, q_heads]` of f32; −∞ for padding.
    pub lse: Tensor,
}

/// A cache among the operands of a launch.
#[derive(Clone, Copy)]
struct CacheSlots {
    k: Slot,
    v: Slot,
    k_strides: KvStrides,
    v_strides: KvStrides,
}

impl KvCache<'_> {
    fn add(self, operands: &mut Operands<'_>, written: bool) -> Result<CacheSlots> {
        let k = operands.cache("k cache", self.k, self.k.dims(), written)?;
        let v = operands.cache("v cache", self.v, self.k.dims(), written)?;
        let strides = |tensor: &Tensor| {
            let [page, token, head] = [0, 1, 2].map(|index| tensor.stride().get(index).copied().unwrap_or(0));
            KvStrides { page, token, head }
        };
        Ok(CacheSlots { k, v, k_strides: strides(self.k), v_strides: strides(self.v) })
    }

    fn shape(self, q_heads: usize) -> AttentionShape {
        AttentionShape { q_heads, kv_heads: dim(self.k, 2), head_dim: dim(self.k, 3) }
    }
}

impl CacheSlots {
    fn view<'a>(self, memory: &'a Held<'_>) -> PagedKv<'a> {
        let CacheSlots { k, v, k_strides, v_strides } = self;
        PagedKv { k: memory.view(k), v: memory.view(v), k_strides, v_strides }
    }

    fn view_mut<'a>(self, memory: &'a Held<'_>) -> PagedKvMut<'a> {
        let CacheSlots { k, v, k_strides, v_strides } = self;
        PagedKvMut { k: memory.view_mut(k), v: memory.view_mut(v), k_strides, v_strides }
    }
}

impl Kernels {
    /// Returns the cosine and sine of the rotation angles of every row of `pass`, `[rows, head_dim / 2, 2]` of f32, for all
    /// layers. `inv_freq` `[head_dim / 2]` has the frequencies in radians per position; `scale` multiplies the results. Rows
    /// beyond the rows of the pass get zeros.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn rope_table(
        &self,
        pass: &PassTables,
        inv_freq: &Tensor,
        rows: usize,
        scale: f32,
    ) -> Result<Tensor> {
        let mut operands = self.operands("rope_table");
        pass.check(&operands)?;
        let half_dim = dim(inv_freq, 0);
        let inv_freq = operands.read("inv_freq", inv_freq, F32, &[ANY])?;
        let (cos_sin, result) = operands.output("cos_sin", DType::F32, &[rows, half_dim, 2])?;
        launch!(self, operands, |loaded, stream, memory| {
            let (pass, inv_freq) = (pass.on(loaded)?, memory.view(inv_freq));
            loaded.rope_table(stream, &RopeTable { pass, inv_freq, scale, cos_sin: memory.view_mut(cos_sin) })
        })?;
        Ok(result)
    }

    /// Applies norms (if there are weights) and the rotation to the q and k heads of the pass's candidate rows or mask
    /// rows, and writes the candidates' k and v to the cache. A page id outside the cache gives the fault
    /// [`Page`](flexdraft::kernels::Fault::Page), and the row's k and v are not written.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn norm_rope_append(&self, args: &NormRopeAppend<'_>) -> Result<()> {
        let mut operands = self.operands("norm_rope_append");
        args.pass.check(&operands)?;
        let (rows, shape) = (dim(args.qkv, 0), args.cache.shape(args.q_heads));
        let qkv = operands.write("qkv", args.qkv, Bf16, &[ANY, shape.qkv_cols()])?;
        let cos_sin = operands.read("cos_sin", args.cos_sin, F32, &[rows, shape.head_dim / 2, 2])?;
        let norms = args.norms.map(|(q, k)| -> Result<(Slot, Slot)> {
            let q = operands.read("q norm", q, F32, &[shape.head_dim])?;
            Ok((q, operands.read("k norm", k, F32, &[shape.head_dim])?))
        });
        let norms = norms.transpose()?;
        let cache = args.cache.add(&mut operands, true)?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.norm_rope_append(
                stream,
                &Append {
                    pass: args.pass.on(loaded)?,
                    kind: args.kind,
                    qkv: memory.view_mut(qkv).into(),
                    cos_sin: memory.view(cos_sin),
                    norms: norms.map(|(q, k)| (memory.view(q), memory.view(k))),
                    eps: args.eps,
                    cache: cache.view_mut(memory),
                    shape,
                    error: Some(memory.view_mut(error)),
                },
            )
        })
    }

    /// Returns softmax(q Kᵀ / √head_dim) V over the keys that each row sees. Candidate i sees the cached positions 0 to
    /// n + i, n being the position of candidate 0. A row of group k sees the cached positions 0 to n + k, and the slots of
    /// its own group. A row's result has the same bits in any batch and mode.
    ///
    /// A page id outside the cache gives the fault [`Page`](flexdraft::kernels::Fault::Page), and its keys and values count
    /// as zeros.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn joint_attention(&self, args: &JointAttention<'_>) -> Result<Attended> {
        let mut operands = self.operands("joint_attention");
        args.pass.check(&operands)?;
        let (rows, q_heads) = (dim(args.qkv, 0), args.q_heads);
        let (shape, split) = (args.cache.shape(q_heads), args.split.unwrap_or(DEFAULT_SPLIT));
        let qkv = operands.read("qkv", args.qkv, Bf16, &[ANY, shape.qkv_cols()])?;
        let cache = args.cache.add(&mut operands, false)?;
        let (out, attended) = operands.output("out", DType::BF16, &[rows, shape.out_cols()])?;
        let (lse, log_sums) = operands.output("lse", DType::F32, &[rows, q_heads])?;
        // The kernel refuses a split below 64.
        let workspace = self.attention_workspace_len(args.pass, args.masks, rows, shape, split.max(64))?;
        let workspace = operands.workspace(workspace)?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.joint_attention(
                stream,
                &Launch {
                    pass: args.pass.on(loaded)?,
                    masks: args.masks,
                    qkv: memory.view(qkv).into(),
                    cache: cache.view(memory),
                    out: memory.view_mut(out),
                    lse: Some(memory.view_mut(lse)),
                    workspace: memory.view_mut(workspace),
                    shape,
                    split,
                    scores: ScoreChanges::default(),
                    error: Some(memory.view_mut(error)),
                },
            )
        })?;
        Ok(Attended { out: attended, lse: log_sums })
    }

    /// Returns the number of elements of attention's workspace; `None` if it overflows.
    fn attention_workspace_len(
        &self,
        pass: &PassTables,
        masks: bool,
        rows: usize,
        shape: AttentionShape,
        split: usize,
    ) -> Result<Option<usize>> {
        on_processor!(self, |loaded, _stream| {
            let tables = pass.on(loaded).map_err(refused)?;
            Ok(loaded.attention_workspace_len(tables, masks, rows, shape, split))
        })
    }
}
