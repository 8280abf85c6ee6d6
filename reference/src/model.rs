//! Whole models, without any cache: every call computes every position again from the token ids.
//!
//! A [`Target`] is a Llama or Qwen3 decoder. Both have the same layers; Qwen3 adds an RMSNorm over each q and k head.
//! A [`Drafter`] is what Attention Tuning adds to a target: attention projectors for mask rows in each of the last N
//! layers (the *tail*), one embedding with which mask rows enter the tail, and perhaps a calibrator. Mask rows use the
//! target's norms and MLPs.
//!
//! There are two kinds. With b the bonus token at position p + 1, after clean tokens at positions 0..=p, and h_j the
//! final-normed hidden row of slot j of the mask group:
//!
//! | | FlexDraft (arXiv 2605.20022) | Orthrus (arXiv 2605.12825) |
//! |---|---|---|
//! | layers with mask rows | the last N | all: N = L |
//! | slot 0 enters the tail as | `mask_embedding` | embed(b) |
//! | slots 1..S enter the tail as | `mask_embedding` | `mask_embedding`, the embedding of a token of its own |
//! | position of slot j | p + 1 + j | p + 1 + j |
//! | slot j sees | positions 0..=p, slots 0..S | positions 0..=p, slots 0..S |
//! | logits of draft token d_j, j = 1..S | lm_head(h_j), calibrated with b | lm_head(h_{j−1}) |
//! | slot without a use for its output | slot 0 | slot S − 1 |
//! | made | in the verification pass, or after it | after the verification, which gives b |
//!
//! Both give d_j for position p + 1 + j: a FlexDraft slot predicts the token at its own position, and an Orthrus slot
//! predicts the next one, as a language model does.

use crate::attention::{Heads, KeysValues, attend, mask_block_attention};
use crate::calibration::{Calibrator, calibrated_logits};
use crate::chain::{Chain, TokenRows};
use crate::float::Float;
use crate::linear::{Linear, add};
use crate::norm::rms_norm;
use crate::rope::Rope;
use crate::swiglu::swiglu;

/// The attention projectors of one layer, from the target or from the drafter.
#[derive(Clone, Debug, PartialEq)]
pub struct Projectors<F> {
    /// Query projection, `[q_heads · head_dim, hidden]`.
    pub q: Linear<F>,
    /// Key projection, `[kv_heads · head_dim, hidden]`.
    pub k: Linear<F>,
    /// Value projection, `[kv_heads · head_dim, hidden]`.
    pub v: Linear<F>,
    /// Output projection, `[hidden, q_heads · head_dim]`.
    pub o: Linear<F>,
    /// RMSNorm weights of each query head and each key head, `[head_dim]` each (Qwen3).
    pub qk_norms: Option<(Vec<F>, Vec<F>)>,
}

/// One decoder layer of the target.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer<F> {
    /// RMSNorm weight before attention, `[hidden]`.
    pub input_norm: Vec<F>,
    /// The target's own attention projectors.
    pub attention: Projectors<F>,
    /// RMSNorm weight before the MLP, `[hidden]`.
    pub post_attention_norm: Vec<F>,
    /// Gate projection of the MLP, `[intermediate, hidden]`.
    pub gate: Linear<F>,
    /// Up projection of the MLP, `[intermediate, hidden]`.
    pub up: Linear<F>,
    /// Down projection of the MLP, `[hidden, intermediate]`.
    pub down: Linear<F>,
}

/// The weights of the target model.
#[derive(Clone, Debug, PartialEq)]
pub struct Target<F> {
    /// Head counts and head size of every layer.
    pub heads: Heads,
    /// The rotary embedding of every layer.
    pub rope: Rope,
    /// Epsilon of every RMSNorm of the model.
    pub rms_norm_eps: F,
    /// Token embeddings, row-major `[vocab, hidden]`.
    pub embed: Vec<F>,
    /// The decoder layers, in order.
    pub layers: Vec<Layer<F>>,
    /// Weight of the final RMSNorm, `[hidden]`.
    pub norm: Vec<F>,
    /// Output projection to logits, `[vocab, hidden]`.
    pub lm_head: Linear<F>,
}

/// The kind of a drafter: what slot 0 of its mask groups is, and which token each slot predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrafterKind {
    /// FlexDraft: every slot is a mask row, and predicts the token at its own position.
    FlexDraft,
    /// Orthrus: slot 0 is the bonus token, and every slot predicts the token at the next position.
    Orthrus,
}

/// The weights of a drafter.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafter<F> {
    /// The kind of the drafter.
    pub kind: DrafterKind,
    /// Projectors of mask rows in each of the target's last N layers; in all L layers for Orthrus.
    pub attention: Vec<Projectors<F>>,
    /// The hidden state with which mask rows enter the tail, `[hidden]`.
    pub mask_embedding: Vec<F>,
    /// The calibrator; `None` if the drafter was trained without one. Orthrus has none.
    pub calibrator: Option<Calibrator<F>>,
    /// The chain of the draft's tokens; `None` if they are drawn independently, as in FlexDraft and Orthrus.
    pub chain: Option<Chain<F>>,
}

/// Keys and values of consecutive positions, after norms and rotation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerKeysValues<F> {
    /// Keys, `[positions, kv_heads, head_dim]`.
    pub keys: Vec<F>,
    /// Values, `[positions, kv_heads, head_dim]`.
    pub values: Vec<F>,
}

impl<F> LayerKeysValues<F> {
    /// Returns a view of the keys and values of all positions.
    pub fn view(&self) -> KeysValues<'_, F> {
        KeysValues { keys: &self.keys, values: &self.values }
    }
}

/// The result of running the target over a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward<F> {
    /// The hidden row of each position after the final norm, `[positions][hidden]`.
    pub hidden: Vec<Vec<F>>,
    /// Keys and values of each layer.
    pub keys_values: Vec<LayerKeysValues<F>>,
}

impl<F: Float> Target<F> {
    /// Returns the embedding of `token`, `[hidden]`.
    pub fn embedding(&self, token: u32) -> &[F] {
        let hidden = self.norm.len();
        &self.embed[token as usize * hidden..][..hidden]
    }

    /// Returns the matrices with a row for each token.
    pub fn token_rows(&self) -> TokenRows<'_, F> {
        TokenRows { embed: &self.embed, lm_head: &self.lm_head }
    }

    /// Returns the query, key and value of one row at `position`, from the layer's normed input: projected, normed,
    /// rotated.
    fn queries_keys_values(
        &self,
        projectors: &Projectors<F>,
        position: usize,
        x: &[F],
    ) -> (Vec<F>, Vec<F>, Vec<F>) {
        let (mut q, mut k, v) = (projectors.q.apply(x), projectors.k.apply(x), projectors.v.apply(x));
        let norms = projectors.qk_norms.as_ref();
        for (heads, norm) in [(&mut q, norms.map(|n| &n.0)), (&mut k, norms.map(|n| &n.1))] {
            for head in heads.chunks_mut(self.heads.head_dim) {
                if let Some(weight) = norm {
                    head.copy_from_slice(&rms_norm(head, weight, self.rms_norm_eps));
                }
                self.rope.rotate(position, head);
            }
        }
        (q, k, v)
    }

    /// Returns the rest of a layer after attention: `x + o(attended)`, then `x + mlp(norm(x))`.
    fn after_attention(&self, layer: &Layer<F>, o: &Linear<F>, x: &[F], attended: &[F]) -> Vec<F> {
        let x = add(x, &o.apply(attended));
        let normed = rms_norm(&x, &layer.post_attention_norm, self.rms_norm_eps);
        add(&x, &swiglu(&layer.gate, &layer.up, &layer.down, &normed))
    }

    /// Returns the queries, keys and values of consecutive rows from `first_position` on: queries are `[rows, q_heads,
    /// head_dim]`; keys and values have `kv_heads`.
    fn project(
        &self,
        layer: &Layer<F>,
        projectors: &Projectors<F>,
        first_position: usize,
        rows: &[Vec<F>],
    ) -> (Vec<F>, LayerKeysValues<F>) {
        let mut queries = vec![];
        let mut keys_values = LayerKeysValues { keys: vec![], values: vec![] };
        for (i, x) in rows.iter().enumerate() {
            let normed = rms_norm(x, &layer.input_norm, self.rms_norm_eps);
            let (q, k, v) = self.queries_keys_values(projectors, first_position + i, &normed);
            queries.extend(q);
            keys_values.keys.extend(k);
            keys_values.values.extend(v);
        }
        (queries, keys_values)
    }
}

/// Runs the whole target over `tokens` at positions 0, 1, …
pub fn forward<F: Float>(target: &Target<F>, tokens: &[u32]) -> Forward<F> {
    let heads = target.heads;
    let q_width = heads.q_heads * heads.head_dim;
    let kv_width = heads.kv_heads * heads.head_dim;
    let mut rows: Vec<Vec<F>> = tokens.iter().map(|&token| target.embedding(token).to_vec()).collect();
    let mut all_keys_values = vec![];
    for layer in &target.layers {
        let (queries, keys_values) = target.project(layer, &layer.attention, 0, &rows);
        for (position, (x, q)) in rows.iter_mut().zip(queries.chunks(q_width)).enumerate() {
            let visible = (position + 1) * kv_width;
            let seen =
                KeysValues { keys: &keys_values.keys[..visible], values: &keys_values.values[..visible] };
            let attended = attend(heads, q, &[seen]);
            *x = target.after_attention(layer, &layer.attention.o, x, &attended.output);
        }
        all_keys_values.push(keys_values);
    }
    let hidden = rows.iter().map(|x| rms_norm(x, &target.norm, target.rms_norm_eps)).collect();
    Forward { hidden, keys_values: all_keys_values }
}

/// Returns the target's logits `[V]` at every position of `tokens`.
pub fn target_logits<F: Float>(target: &Target<F>, tokens: &[u32]) -> Vec<Vec<F>> {
    forward(target, tokens).hidden.iter().map(|h| target.lm_head.apply(h)).collect()
}

/// Returns the final-normed hidden rows `[S][hidden]` of the mask group that follows `tokens`, given the bonus token.
///
/// With p the position of the last token, slot j is at position p + 1 + j for j = 0..S, and sees positions 0..=p and
/// its own group. All `tokens` are clean, and their keys and values are the target's own.
pub fn draft_hidden<F: Float>(
    target: &Target<F>,
    drafter: &Drafter<F>,
    tokens: &[u32],
    bonus: u32,
    block_size: usize,
) -> Vec<Vec<F>> {
    let visible = tokens.len();
    let head_part = target.layers.len() - drafter.attention.len();
    let clean = forward(target, tokens).keys_values;

    let mut rows = vec![drafter.mask_embedding.clone(); block_size];
    if drafter.kind == DrafterKind::Orthrus {
        rows[0] = target.embedding(bonus).to_vec();
    }
    for (i, projectors) in drafter.attention.iter().enumerate() {
        let layer = &target.layers[head_part + i];
        let (queries, group) = target.project(layer, projectors, visible, &rows);
        let prefix = clean[head_part + i].view();
        let attended = mask_block_attention(target.heads, &queries, prefix, visible, group.view());
        for (x, attended) in rows.iter_mut().zip(&attended) {
            *x = target.after_attention(layer, &projectors.o, x, &attended.output);
        }
    }
    rows.iter().map(|x| rms_norm(x, &target.norm, target.rms_norm_eps)).collect()
}

/// The results that a drafter computes for one draft token before any draft token is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftRow<F> {
    /// The final-normed hidden row of the slot that predicts the token, `[hidden]`.
    pub hidden: Vec<F>,
    /// The calibrated logits of the token, `[V]`.
    pub logits: Vec<F>,
}

/// Returns the rows of the draft tokens d_1..d_{S−1} that follow `tokens` and the bonus token, which is at the position
/// of slot 0.
///
/// Row j − 1 predicts the token at position `tokens.len() + j`. These are the rows of slots 1..S of a FlexDraft
/// drafter, and of slots 0..S − 1 of an Orthrus drafter.
pub fn draft_rows<F: Float>(
    target: &Target<F>,
    drafter: &Drafter<F>,
    tokens: &[u32],
    bonus: u32,
    block_size: usize,
) -> Vec<DraftRow<F>> {
    let mut hidden = draft_hidden(target, drafter, tokens, bonus, block_size);
    let first = match drafter.kind {
        DrafterKind::FlexDraft => 1,
        DrafterKind::Orthrus => 0,
    };
    let calibrator = drafter.calibrator.as_ref();
    hidden
        .drain(first..first + block_size - 1)
        .map(|hidden| DraftRow {
            logits: calibrated_logits(&target.lm_head, calibrator, target.embedding(bonus), &hidden),
            hidden,
        })
        .collect()
}
