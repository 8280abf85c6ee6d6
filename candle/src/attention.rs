//! Rotary embedding, append to the KV cache, and joint attention, on the rows of a pass.

use candle_core::{DType, Result, Tensor};
use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention as Launch};
use flexdraft::kernels::rope::{NormRopeAppend as Append, RopeTable};
use flexdraft::kernels::{
    HeadRows, HeadRowsMut, KvStrides, MaskProjections as MaskHeads, PagedKv, PagedKvMut,
    Projections as Heads, ProjectionsMut as HeadsMut, ScoreChanges as LaunchedChanges,
};
use flexdraft::layout::{AttentionShape, RowKind};

use crate::error::refused;
use crate::operands::Elements::{self, F32};
use crate::operands::{ANY, Half, Held, Operands, Slot, dim, of_half};
use crate::pass::PassTables;
use crate::processor::{Kernels, launch, on_processor};

/// One layer of a paged KV cache: two tensors `[pages, page_size, kv_heads, head_dim]` of bf16 or f16. All rows of a
/// call have the cache's type.
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

/// The heads that [`Kernels::joint_attention`] reads, bf16 or f16 as the cache.
#[derive(Clone, Copy, Debug)]
pub enum Projections<'a> {
    /// One tensor with the q, k and v heads of every row, `[rows, (q_heads + 2 · kv_heads) · head_dim]`. Rows after the rows
    /// of the pass are padding.
    Fused(&'a Tensor),
    /// Separate tensors, whose rows may be parts of longer rows.
    Separate {
        /// The q heads of the candidate rows, `[candidates, q_heads · head_dim]`.
        q: &'a Tensor,
        /// The heads of the mask rows, if mask rows take part.
        masks: Option<MaskProjections<'a>>,
    },
}

/// The heads of the mask rows of a pass, bf16 or f16 as the cache. Rows may be parts of longer rows.
#[derive(Clone, Copy, Debug)]
pub struct MaskProjections<'a> {
    /// q heads, `[mask rows, q_heads · head_dim]`.
    pub q: &'a Tensor,
    /// k heads, `[mask rows, kv_heads · head_dim]`.
    pub k: &'a Tensor,
    /// v heads, `[mask rows, kv_heads · head_dim]`.
    pub v: &'a Tensor,
}

/// The heads that [`Kernels::norm_rope_append`] changes in place and appends to the cache, bf16 or f16 as the
/// cache.
#[derive(Clone, Copy, Debug)]
pub enum RotatedProjections<'a> {
    /// One tensor with the q, k and v heads of every row of the pass, `[rows, (q_heads + 2 · kv_heads) · head_dim]`.
    Fused(&'a Tensor),
    /// Separate tensors with only the candidate rows or only the mask rows. Rows may be parts of longer rows, and the
    /// three tensors may be parts of the same rows.
    Separate {
        /// q heads, `[rows, q_heads · head_dim]`.
        q: &'a Tensor,
        /// k heads, `[rows, kv_heads · head_dim]`; the k of mask rows changes in place.
        k: &'a Tensor,
        /// v heads, `[rows, kv_heads · head_dim]`.
        v: &'a Tensor,
    },
}

/// The changes that a model makes to the scores of attention and to their softmax. The default makes no change.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreChanges<'a> {
    /// The number of positions that a row sees up to its own (sliding window), at least 65.
    pub window: Option<usize>,
    /// The cap c of a soft cap, 1 to 1000: a score s becomes c · tanh(s / c).
    pub soft_cap: Option<f32>,
    /// A score for each query head, `[q_heads]` of f32, that joins the softmax of every row (attention sink).
    pub sinks: Option<&'a Tensor>,
}

/// The operands of [`Kernels::norm_rope_append`].
#[derive(Clone, Copy, Debug)]
pub struct NormRopeAppend<'a> {
    /// The tables of the pass.
    pub pass: &'a PassTables,
    /// The kind of rows that the kernel processes: candidate rows or mask rows.
    pub kind: RowKind,
    /// The q, k and v heads. q, and the k of mask rows, change in place.
    pub qkv: RotatedProjections<'a>,
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
    /// Whether the mask rows of the pass take part. Layers below the tail have no mask rows.
    pub masks: bool,
    /// q heads of every row, and k and v heads of mask rows, after [`norm_rope_append`](Kernels::norm_rope_append).
    pub qkv: Projections<'a>,
    /// The KV cache of the layer.
    pub cache: KvCache<'a>,
    /// The number of query heads.
    pub q_heads: usize,
    /// Keys per split of a long sequence, a multiple of 64; `None` for
    /// [`DEFAULT_SPLIT`]. Results with another split differ in rounding.
    pub split: Option<usize>,
    /// The model's changes to scores and softmax.
    pub scores: ScoreChanges<'a>,
}

/// The results of [`Kernels::joint_attention`].
#[derive(Clone, Debug)]
pub struct Attended {
    /// The attention output of each row, `[rows, q_heads · head_dim]`, of the cache's type; zeros for padding.
    pub out: Tensor,
    /// The natural logarithm of Σ exp(score), `[rows, q_heads]` of f32; −∞ for padding.
    pub lse: Tensor,
}

/// Rows of heads among the operands of a launch, with their distance in elements.
type RowSlot = (Slot, usize);

fn rows<'a, T: Half>((slot, stride): RowSlot, memory: &'a Held<'_>) -> HeadRows<'a, T> {
    HeadRows { view: memory.view(slot), stride }
}

fn rows_mut<'a, T: Half>((slot, stride): RowSlot, memory: &'a Held<'_>) -> HeadRowsMut<'a, T> {
    HeadRowsMut { view: memory.view_mut(slot), stride }
}

/// The heads of a launch of attention.
#[derive(Clone, Copy)]
enum ProjectionSlots {
    Fused(Slot),
    Separate { q: RowSlot, masks: Option<[RowSlot; 3]> },
}

impl Projections<'_> {
    fn add<T: Half>(self, operands: &mut Operands<'_>, shape: AttentionShape) -> Result<ProjectionSlots> {
        let (columns, kv_columns) = columns(shape);
        match self {
            Projections::Fused(qkv) => {
                operands.read("qkv", qkv, T::ELEMENTS, &[ANY, shape.qkv_cols()]).map(ProjectionSlots::Fused)
            }
            Projections::Separate { q, masks } => {
                let q = operands.rows("q", q, T::ELEMENTS, [ANY, columns], false)?;
                let masks = masks.map(|masks| -> Result<[RowSlot; 3]> {
                    let rows = dim(masks.q, 0);
                    Ok([
                        operands.rows("mask q", masks.q, T::ELEMENTS, [ANY, columns], false)?,
                        operands.rows("mask k", masks.k, T::ELEMENTS, [rows, kv_columns], false)?,
                        operands.rows("mask v", masks.v, T::ELEMENTS, [rows, kv_columns], false)?,
                    ])
                });
                Ok(ProjectionSlots::Separate { q, masks: masks.transpose()? })
            }
        }
    }

    /// Returns the number of rows of the operands.
    fn rows(self) -> usize {
        match self {
            Projections::Fused(qkv) => dim(qkv, 0),
            Projections::Separate { q, masks } => {
                dim(q, 0).saturating_add(masks.map_or(0, |masks| dim(masks.q, 0)))
            }
        }
    }
}

impl ProjectionSlots {
    fn view<'a, T: Half>(self, memory: &'a Held<'_>) -> Heads<'a, T> {
        match self {
            ProjectionSlots::Fused(qkv) => Heads::Fused(memory.view(qkv)),
            ProjectionSlots::Separate { q, masks } => Heads::Separate {
                q: rows(q, memory),
                masks: masks.map(|masks| {
                    let [q, k, v] = masks.map(|slot| rows(slot, memory));
                    MaskHeads { q, k, v }
                }),
            },
        }
    }
}

/// The heads of a launch of the rotation.
#[derive(Clone, Copy)]
enum RotatedSlots {
    Fused(Slot),
    Separate([RowSlot; 3]),
}

impl RotatedProjections<'_> {
    fn add<T: Half>(self, operands: &mut Operands<'_>, shape: AttentionShape) -> Result<RotatedSlots> {
        let (columns, kv_columns) = columns(shape);
        match self {
            RotatedProjections::Fused(qkv) => {
                operands.write("qkv", qkv, T::ELEMENTS, &[ANY, shape.qkv_cols()]).map(RotatedSlots::Fused)
            }
            RotatedProjections::Separate { q, k, v } => {
                let rows = dim(q, 0);
                Ok(RotatedSlots::Separate([
                    operands.rows("q", q, T::ELEMENTS, [ANY, columns], true)?,
                    operands.rows("k", k, T::ELEMENTS, [rows, kv_columns], true)?,
                    operands.rows("v", v, T::ELEMENTS, [rows, kv_columns], false)?,
                ]))
            }
        }
    }
}

impl RotatedSlots {
    fn view<'a, T: Half>(self, memory: &'a Held<'_>) -> HeadsMut<'a, T> {
        match self {
            RotatedSlots::Fused(qkv) => HeadsMut::Fused(memory.view_mut(qkv)),
            RotatedSlots::Separate([q, k, v]) => {
                HeadsMut::Separate { q: rows_mut(q, memory), k: rows_mut(k, memory), v: rows(v, memory) }
            }
        }
    }
}

/// Returns the numbers of elements in a row of q heads, and in a row of k or v heads.
fn columns(shape: AttentionShape) -> (usize, usize) {
    (shape.out_cols(), shape.kv_heads.saturating_mul(shape.head_dim))
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
    fn add<T: Half>(self, operands: &mut Operands<'_>, written: bool) -> Result<CacheSlots> {
        let k = operands.cache("k cache", self.k, Elements::Half, self.k.dims(), written)?;
        let v = operands.cache("v cache", self.v, T::ELEMENTS, self.k.dims(), written)?;
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
    fn view<'a, T: Half>(self, memory: &'a Held<'_>) -> PagedKv<'a, T> {
        let CacheSlots { k, v, k_strides, v_strides } = self;
        PagedKv { k: memory.view(k), v: memory.view(v), k_strides, v_strides }
    }

    fn view_mut<'a, T: Half>(self, memory: &'a Held<'_>) -> PagedKvMut<'a, T> {
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
        of_half!(args.cache.k, self.norm_rope_append_of(args))
    }

    fn norm_rope_append_of<T: Half>(&self, args: &NormRopeAppend<'_>) -> Result<()> {
        let mut operands = self.operands("norm_rope_append");
        args.pass.check(&operands)?;
        let shape = args.cache.shape(args.q_heads);
        // The cache decides the type of the other operands, so its own type is checked first.
        let cache = args.cache.add::<T>(&mut operands, true)?;
        let qkv = args.qkv.add::<T>(&mut operands, shape)?;
        let table_rows = match args.qkv {
            RotatedProjections::Fused(qkv) => dim(qkv, 0),
            RotatedProjections::Separate { .. } => ANY,
        };
        let cos_sin = operands.read("cos_sin", args.cos_sin, F32, &[table_rows, shape.head_dim / 2, 2])?;
        let norms = args.norms.map(|(q, k)| -> Result<(Slot, Slot)> {
            let q = operands.read("q norm", q, F32, &[shape.head_dim])?;
            Ok((q, operands.read("k norm", k, F32, &[shape.head_dim])?))
        });
        let norms = norms.transpose()?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.norm_rope_append(
                stream,
                &Append {
                    pass: args.pass.on(loaded)?,
                    kind: args.kind,
                    qkv: qkv.view(memory),
                    cos_sin: memory.view(cos_sin),
                    norms: norms.map(|(q, k)| (memory.view(q), memory.view(k))),
                    eps: args.eps,
                    cache: cache.view_mut::<T>(memory),
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
        of_half!(args.cache.k, self.joint_attention_of(args))
    }

    fn joint_attention_of<T: Half>(&self, args: &JointAttention<'_>) -> Result<Attended> {
        let mut operands = self.operands("joint_attention");
        args.pass.check(&operands)?;
        let (rows, q_heads) = (args.qkv.rows(), args.q_heads);
        let (shape, split) = (args.cache.shape(q_heads), args.split.unwrap_or(DEFAULT_SPLIT));
        // The cache decides the type of the other operands, so its own type is checked first.
        let cache = args.cache.add::<T>(&mut operands, false)?;
        let qkv = args.qkv.add::<T>(&mut operands, shape)?;
        let sinks = operands.optional("sinks", args.scores.sinks, F32, &[q_heads])?;
        let (out, attended) = operands.output("out", T::DTYPE, &[rows, shape.out_cols()])?;
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
                    qkv: qkv.view(memory),
                    cache: cache.view::<T>(memory),
                    out: memory.view_mut(out),
                    lse: Some(memory.view_mut(lse)),
                    workspace: memory.view_mut(workspace),
                    shape,
                    split,
                    scores: LaunchedChanges {
                        window: args.scores.window,
                        soft_cap: args.scores.soft_cap,
                        sinks: memory.optional(sinks),
                    },
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
