//! Attention for training: a row sees the rows of its own mask group and a frozen prefix of the sequence.
//!
//! One function serves three uses. For mask rows, each group holds the S slots of one anchor; the slots see one
//! another in both directions and the clean tokens up to the anchor. A clean sequence is one causal group without a
//! prefix. A pretraining batch is a set of causal groups.

use candle_core::{D, DType, Result, Tensor};
use flexdraft::device::AttentionShape;

use crate::graph;
use crate::ops::{
    Rotation, Visible, product, rms_norm, rms_norm_backward, softmax_backward, visible_softmax,
};

/// Keys and values of a sequence's own tokens (not of its mask rows) in one layer, after norm and rotation, as
/// in the KV cache.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// Keys, `[kv_heads, tokens, head_dim]`.
    pub k: Tensor,
    /// Values, `[kv_heads, tokens, head_dim]`.
    pub v: Tensor,
}

/// The mask groups of one sequence; the mask rows of a group are consecutive.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Number of mask rows per group.
    pub len: usize,
    /// For each group, the number of prefix tokens that its rows see.
    pub prefix: Vec<usize>,
    /// True if a row sees only itself and earlier rows of its group, false if it sees the whole group.
    pub causal: bool,
}

impl Groups {
    /// Returns the number of rows in all groups.
    pub fn rows(&self) -> usize {
        self.len * self.prefix.len()
    }

    /// Returns the columns that each row of attention scores sees; rows are in the order (group, query head of a KV
    /// head, slot).
    fn visible(&self, ratio: usize, prefix_len: usize) -> Visible {
        let own = |slot: usize| if self.causal { slot + 1 } else { self.len };
        let rows = self.prefix.iter().flat_map(|&seen| {
            (0..ratio).flat_map(move |_| (0..self.len).map(move |slot| [seen.min(prefix_len), own(slot)]))
        });
        Visible { split: prefix_len, rows: rows.collect() }
    }
}

/// The head counts, head size and norm epsilon of attention, which are the same for all rows.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Numbers of query heads and KV heads, and the size of a head.
    pub shape: AttentionShape,
    /// Epsilon of the norms of queries and keys.
    pub eps: f64,
}

impl Heads {
    fn scale(&self) -> f64 {
        (self.shape.head_dim as f64).powf(-0.5)
    }

    /// Returns attention's output `[rows, q_heads · head_dim]` for projected rows `qkv` `[rows, (q_heads + 2 ·
    /// kv_heads) · head_dim]`.
    ///
    /// `norms` are the weights `[head_dim]` of the q and k norms, if the model has them. `sequences` pairs the groups
    /// of each sequence, in row order, with the sequence's prefix, if it has one. Gradients flow to `qkv` and
    /// `norms`.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn attend(
        &self,
        qkv: &Tensor,
        norms: Option<(&Tensor, &Tensor)>,
        rotation: &Rotation,
        sequences: &[(Groups, Option<Prefix>)],
    ) -> Result<Tensor> {
        let detached = norms.map(|(q, k)| (q.detach(), k.detach()));
        let rotated = self.rotate(&qkv.detach(), detached.as_ref(), rotation)?;
        let mut outputs = Vec::with_capacity(sequences.len());
        let mut kept = Vec::with_capacity(sequences.len());
        let mut first = 0;
        for (groups, prefix) in sequences {
            let core = Core::new(self, &rotated.narrow(first, groups.rows())?, groups, prefix.clone())?;
            outputs.push(core.output(self)?);
            kept.push(core);
            first += groups.rows();
        }
        let output = if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(&outputs, 0)? };

        let heads = self.clone();
        let rotation = rotation.clone();
        let (operand, norm_weights) = (qkv.detach(), detached);
        let backward = move |gradient: &Tensor| {
            let mut parts = [Vec::new(), Vec::new(), Vec::new()];
            let mut first = 0;
            for core in &kept {
                let gradient = gradient.narrow(0, first, core.groups.rows())?;
                first += core.groups.rows();
                for (parts, part) in parts.iter_mut().zip(core.backward(&heads, &gradient)?) {
                    parts.push(part);
                }
            }
            let [q, k, v] = parts.map(|parts| Tensor::cat(&parts, 0));
            heads.rotate_back(&operand, norm_weights.as_ref(), &rotation, q?, k?, v?)
        };
        match norms {
            None => graph::unary("attention", qkv, output, move |gradient| Ok(backward(gradient)?.0)),
            Some((q_norm, k_norm)) => {
                graph::ternary("attention", [qkv, q_norm, k_norm], output, move |gradient| {
                    let (qkv, norms) = backward(gradient)?;
                    let (q, k) = norms.ok_or_else(|| candle_core::Error::msg("norms without gradients"))?;
                    Ok([qkv, q, k])
                })
            }
        }
    }

    /// Returns the keys and values of one sequence's projected rows `qkv`, rounded to `dtype`, as in the KV cache.
    ///
    /// # Errors
    /// As [`attend`](Self::attend).
    pub fn prefix(
        &self,
        qkv: &Tensor,
        norms: Option<(&Tensor, &Tensor)>,
        rotation: &Rotation,
        dtype: DType,
    ) -> Result<Prefix> {
        let norms = norms.map(|(q, k)| (q.detach(), k.detach()));
        let rotated = self.rotate(&qkv.detach(), norms.as_ref(), rotation)?;
        Ok(Prefix {
            k: rotated.k.transpose(0, 1)?.to_dtype(dtype)?.contiguous()?,
            v: rotated.v.transpose(0, 1)?.to_dtype(dtype)?.contiguous()?,
        })
    }

    fn split(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.shape;
        let rows = qkv.dim(0)?;
        let part = |first: usize, heads: usize| {
            qkv.narrow(1, first * head_dim, heads * head_dim)?.contiguous()?.reshape((rows, heads, head_dim))
        };
        Ok([part(0, q_heads)?, part(q_heads, kv_heads)?, part(q_heads + kv_heads, kv_heads)?])
    }

    fn rotate(&self, qkv: &Tensor, norms: Option<&(Tensor, Tensor)>, rotation: &Rotation) -> Result<Rotated> {
        let [q, k, v] = self.split(qkv)?;
        let (q, k) = match norms {
            None => (q, k),
            Some((q_norm, k_norm)) => (rms_norm(&q, q_norm, self.eps)?, rms_norm(&k, k_norm, self.eps)?),
        };
        Ok(Rotated { q: rotation.apply(&q)?, k: rotation.apply(&k)?, v })
    }

    /// Maps the gradients of the results of [`rotate`](Self::rotate) to the gradients of its operands.
    #[allow(clippy::type_complexity)]
    fn rotate_back(
        &self,
        qkv: &Tensor,
        norms: Option<&(Tensor, Tensor)>,
        rotation: &Rotation,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
        let (mut q, mut k) = (rotation.backward(&q)?, rotation.backward(&k)?);
        let mut norm_gradients = None;
        if let Some((q_norm, k_norm)) = norms {
            let [q_before, k_before, _] = self.split(qkv)?;
            let (dq, dq_norm) = rms_norm_backward(&q_before, q_norm, self.eps, &q, true)?;
            let (dk, dk_norm) = rms_norm_backward(&k_before, k_norm, self.eps, &k, true)?;
            (q, k) = (dq, dk);
            norm_gradients = dq_norm.zip(dk_norm);
        }
        let rows = qkv.dim(0)?;
        let flat = |x: Tensor| x.reshape((rows, ()));
        Ok((Tensor::cat(&[flat(q)?, flat(k)?, flat(v)?], 1)?, norm_gradients))
    }
}

/// Queries, keys and values after norms and rotation, `[rows, heads, head_dim]` each.
struct Rotated {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Rotated {
    fn narrow(&self, first: usize, rows: usize) -> Result<Self> {
        let part = |x: &Tensor| x.narrow(0, first, rows);
        Ok(Self { q: part(&self.q)?, k: part(&self.k)?, v: part(&self.v)? })
    }
}

/// The attention of one sequence, with the values that its backward pass needs. Rows of scores are in the order (group,
/// query head of the KV head, slot). In this order, products with the prefix and products with the group's own rows
/// need no rearrangement between them.
struct Core {
    groups: Groups,
    prefix: Option<Prefix>,
    /// Queries, `[kv_heads, groups · ratio · slots, head_dim]`; `ratio` is the number of query heads per KV head.
    q: Tensor,
    /// Keys of the groups' own rows, `[kv_heads · groups, slots, head_dim]`.
    k: Tensor,
    /// Values of the groups' own rows, `[kv_heads · groups, slots, head_dim]`.
    v: Tensor,
    /// Attention probabilities, `[kv_heads, groups · ratio · slots, prefix + slots]`.
    probabilities: Tensor,
}

impl Core {
    fn new(heads: &Heads, rows: &Rotated, groups: &Groups, prefix: Option<Prefix>) -> Result<Self> {
        let ratio = heads.shape.q_heads / heads.shape.kv_heads;
        let seen = groups.prefix.iter().copied().max().unwrap_or(0);
        let prefix = match prefix {
            // Attention leaves out the prefix tokens that no group sees.
            Some(prefix) if seen > 0 => {
                Some(Prefix { k: prefix.k.narrow(1, 0, seen)?, v: prefix.v.narrow(1, 0, seen)? })
            }
            _ => None,
        };
        let q = Self::by_head(heads, groups, &rows.q)?;
        let own = |x: &Tensor| {
            let x = Self::by_head(heads, groups, x)?;
            x.reshape((heads.shape.kv_heads * groups.prefix.len(), groups.len, heads.shape.head_dim))
        };
        let (k, v) = (own(&rows.k)?, own(&rows.v)?);
        let own_scores = Self::per_group(&q, &k)?.matmul(&k.t()?)?;
        let own_scores = own_scores.reshape((heads.shape.kv_heads, (), groups.len))?;
        let scores = match &prefix {
            Some(prefix) => {
                let seen = product(&q, &prefix.k.t()?, prefix.k.dtype())?;
                Tensor::cat(&[seen, own_scores], D::Minus1)?
            }
            None => own_scores,
        };
        let prefix_len = if prefix.is_some() { seen } else { 0 };
        let probabilities = visible_softmax(&scores, heads.scale(), &groups.visible(ratio, prefix_len))?;
        Ok(Self { groups: groups.clone(), prefix, q, k, v, probabilities })
    }

    /// Rearranges rows of heads `[rows, kv_heads · n, head_dim]` by KV head: `[kv_heads, groups · n · slots,
    /// head_dim]`.
    fn by_head(heads: &Heads, groups: &Groups, x: &Tensor) -> Result<Tensor> {
        let (kv_heads, head_dim) = (heads.shape.kv_heads, heads.shape.head_dim);
        let n = x.dim(1)? / kv_heads;
        x.reshape((groups.prefix.len(), groups.len, kv_heads, n, head_dim))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?
            .reshape((kv_heads, groups.rows() * n, head_dim))
    }

    /// Rearranges heads `[kv_heads, groups · n · slots, head_dim]` into rows, as the inverse of
    /// [`by_head`](Self::by_head).
    fn by_row(heads: &Heads, groups: &Groups, x: &Tensor, n: usize) -> Result<Tensor> {
        let (kv_heads, head_dim) = (heads.shape.kv_heads, heads.shape.head_dim);
        x.reshape((kv_heads, groups.prefix.len(), n, groups.len, head_dim))?
            .permute((1, 3, 0, 2, 4))?
            .contiguous()?
            .reshape((groups.rows(), kv_heads * n, head_dim))
    }

    /// Rearranges rows by head to rows by group: `[kv_heads · groups, ratio · slots, columns]`.
    fn per_group(x: &Tensor, k: &Tensor) -> Result<Tensor> {
        x.reshape((k.dim(0)?, (), x.dim(D::Minus1)?))
    }

    fn prefix_len(&self) -> Result<usize> {
        self.prefix.as_ref().map_or(Ok(0), |prefix| prefix.k.dim(1))
    }

    /// Returns the part of a score matrix whose keys are the slots of a row's own mask group, `[kv_heads · groups,
    /// ratio · slots, slots]`.
    fn own(&self, x: &Tensor) -> Result<Tensor> {
        Self::per_group(&x.narrow(D::Minus1, self.prefix_len()?, self.groups.len)?.contiguous()?, &self.k)
    }

    fn output(&self, heads: &Heads) -> Result<Tensor> {
        let own = self.own(&self.probabilities)?.matmul(&self.v)?.reshape(self.q.shape())?;
        let output = match &self.prefix {
            Some(prefix) => {
                let seen = self.probabilities.narrow(D::Minus1, 0, self.prefix_len()?)?.contiguous()?;
                (product(&seen, &prefix.v, prefix.v.dtype())? + own)?
            }
            None => own,
        };
        let ratio = heads.shape.q_heads / heads.shape.kv_heads;
        Self::by_row(heads, &self.groups, &output, ratio)?.reshape((self.groups.rows(), ()))
    }

    /// Returns the gradients of queries, keys and values, `[rows, heads, head_dim]` each.
    fn backward(&self, heads: &Heads, gradient: &Tensor) -> Result<[Tensor; 3]> {
        let AttentionShape { q_heads, kv_heads, head_dim } = heads.shape;
        let ratio = q_heads / kv_heads;
        let gradient = gradient.contiguous()?.reshape((self.groups.rows(), q_heads, head_dim))?;
        let gradient = Self::by_head(heads, &self.groups, &gradient)?;
        let own_gradient = Self::per_group(&gradient, &self.k)?;

        let dv = self.own(&self.probabilities)?.transpose(1, 2)?.matmul(&own_gradient)?;
        let own = own_gradient.matmul(&self.v.t()?)?.reshape((kv_heads, (), self.groups.len))?;
        let dp = match &self.prefix {
            Some(prefix) => {
                let seen = product(&gradient, &prefix.v.t()?, prefix.v.dtype())?;
                Tensor::cat(&[seen, own], D::Minus1)?
            }
            None => own,
        };
        let ds = softmax_backward(&self.probabilities, heads.scale(), &dp)?;
        let own_ds = self.own(&ds)?;
        let mut dq = own_ds.matmul(&self.k)?.reshape(self.q.shape())?;
        if let Some(prefix) = &self.prefix {
            let seen = ds.narrow(D::Minus1, 0, self.prefix_len()?)?.contiguous()?;
            dq = (dq + product(&seen, &prefix.k, prefix.k.dtype())?)?;
        }
        let dk = own_ds.transpose(1, 2)?.matmul(&Self::per_group(&self.q, &self.k)?)?;
        Ok([
            Self::by_row(heads, &self.groups, &dq, ratio)?,
            Self::by_row(heads, &self.groups, &dk, 1)?,
            Self::by_row(heads, &self.groups, &dv, 1)?,
        ])
    }
}
