//! Operands of the forward pass: number formats, weights, rotations, and the rows that attention computes.

use std::ops::Range;

use crate::layout::AttentionShape;
use crate::tensor::Tensor;

/// Number format in which a device stores activations and the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Single precision for all values.
    #[default]
    F32,
    /// Every value that a GPU would store in bf16 is rounded to bf16 (to nearest, ties to even). Sums are
    /// still computed in f32, and logits stay f32.
    Bf16,
    /// Single precision for all values, but a product with quantised weights rounds its activations to 8 bits: to 127
    /// steps of the largest magnitude among each 256 values of a row, to nearest, ties to even. Values up to 1e-30 then
    /// count as 0. Products of the integers are exact, and their sums over scales are in f32.
    Q8,
}

/// Rotary position embedding (RoFormer, arXiv 2104.09864), rotate-half form.
///
/// Dimension pair (i, i + head_dim / 2) at position p is rotated by the angle p · `inv_freq[i]`; cosine and
/// sine are multiplied by `scale` (1 except for yarn).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Inverse frequencies `[head_dim / 2]`, in radians per position.
    pub inv_freq: Vec<f32>,
    /// Factor that multiplies cosine and sine.
    pub scale: f32,
}

/// One part of a fused linear layer: some output rows, computed from some columns of a stored matrix.
#[derive(Clone, Debug)]
pub struct LinearPart<'a> {
    /// The stored matrix `[out, in]`.
    pub weight: &'a Tensor,
    /// The input columns that the part uses; `None` for all of them.
    pub columns: Option<Range<usize>>,
    /// The bias `[out]`, added to the output.
    pub bias: Option<&'a Tensor>,
}

impl<'a> LinearPart<'a> {
    /// A part that uses the whole matrix, with an optional bias.
    pub fn new(weight: &'a Tensor, bias: Option<&'a Tensor>) -> Self {
        Self { weight, columns: None, bias }
    }
}

/// Norms and rotation of the q and k heads of a fused projection, applied before attention.
#[derive(Debug)]
pub struct QkTransform<'a, V> {
    /// Numbers of heads, and their dimensions.
    pub shape: AttentionShape,
    /// RMSNorm weights `[head_dim]` for each q head and each k head (Qwen3), if the model has them.
    pub norms: Option<(&'a V, &'a V)>,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The rotation, applied after the norms.
    pub rope: &'a Rope,
}

/// The rows of a laid-out pass that an attention layer computes.
#[derive(Debug)]
pub struct AttentionRows<'a, P> {
    /// The pass, as [`begin`](crate::device::Device::begin) returned it.
    pub pass: &'a P,
    /// Whether mask rows take part. Layers before the tail have only candidate rows.
    pub masks: bool,
}

/// The last layer of the calibrator: `logits[r] += W2 u[r] + b2`.
#[derive(Debug)]
pub struct CalibratorOutput<'a, B, L> {
    /// u: the calibrator's hidden rows, one per row of logits.
    pub hidden: &'a B,
    /// The layer with weight W2 and bias b2.
    pub output: &'a L,
}

/// The weights and rows that chain the slots of a draft (Chained Calibration): s_j(x) = ℓ_j(x) + score(t_{j−1}, x) for
/// the K most likely ids x of slot j, where t_{j−1} is the token of the previous slot, or the bonus token for slot 1.
#[derive(Debug)]
pub struct Chain<'a, B, L> {
    /// The weights and rows from which the score of two neighbouring tokens is computed.
    pub scores: ChainScores<'a, B, L>,
    /// K: the number of ids of a slot that are scored. A vocabulary of fewer ids is scored whole.
    pub top_k: usize,
    /// The token embedding `[vocab, hidden]`.
    pub embed: &'a L,
}

/// The score of token x after token t, in f32 and not rounded again.
#[derive(Debug)]
pub enum ChainScores<'a, B, L> {
    /// The score `(A · embed(t)) · (B · embed(x))`, which depends on the two tokens alone.
    Pair {
        /// The matrix A `[r, hidden]`, applied to the embedding of t.
        before: &'a L,
        /// The matrix B `[r, hidden]`, applied to the embedding of x.
        after: &'a L,
    },
    /// The score `lm_head[x] · (W2 · silu(W1 · [embed(t); h_j]))`, which also depends on the hidden row h_j of x's
    /// slot.
    Hidden {
        /// The final-normed hidden row h_j of each selected slot, draft after draft.
        rows: &'a B,
        /// The half of W1 that multiplies embed(t), `[r, hidden]`.
        before_half: &'a L,
        /// The half of W1 that multiplies h_j, `[r, hidden]`.
        hidden_half: &'a L,
        /// The matrix W2 `[hidden, r]`.
        output: &'a L,
        /// The output projection `[vocab, hidden]`.
        lm_head: &'a L,
    },
}

/// The corrections that are added to the logits of a draft's slots before their tokens are drawn; each correction is
/// optional.
#[derive(Debug)]
pub struct Corrections<'a, B, L> {
    /// The last layer of the calibrator (Bonus-guided Calibration).
    pub calibration: Option<CalibratorOutput<'a, B, L>>,
    /// The chain, which corrects the calibrated logits of each slot by the token before it.
    pub chain: Option<Chain<'a, B, L>>,
}

impl<B, L> Corrections<'_, B, L> {
    /// No correction: slots are drawn from the logits of the LM head.
    pub const NONE: Self = Self { calibration: None, chain: None };
}
