//! Attention of candidate and mask rows, row by row: softmax(q Kᵀ / √head_dim) V over the positions that the row sees
//! (Vaswani et al., arXiv 1706.03762, equation 1), with grouped KV heads (arXiv 2305.13245): query head h uses KV
//! head ⌊h · kv_heads / q_heads⌋.
//!
//! A row's limit and group determine what the row sees: see [`crate::layout`]. [`ScoreChanges`] has the changes of some models.

use crate::float::Float;
use crate::layout::Row;
use crate::linear::dot;

/// The head counts and head size of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads of the layer.
    pub q_heads: usize,
    /// Number of KV heads; divides `q_heads`.
    pub kv_heads: usize,
    /// Size of a head, in elements.
    pub head_dim: usize,
}

/// Keys and values of consecutive positions, or of a mask group's slots.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues<'a, F> {
    /// Keys, `[len, kv_heads, head_dim]`.
    pub keys: &'a [F],
    /// Values, `[len, kv_heads, head_dim]`.
    pub values: &'a [F],
}

impl<F> KeysValues<'_, F> {
    /// Returns the keys and values of entries `range`.
    fn slice(&self, heads: Heads, range: std::ops::Range<usize>) -> Self {
        let width = heads.kv_heads * heads.head_dim;
        let range = range.start * width..range.end * width;
        Self { keys: &self.keys[range.clone()], values: &self.values[range] }
    }
}

/// The changes that a model makes to attention's scores and to their softmax. The default has none.
#[derive(Clone, Copy, Debug)]
pub struct ScoreChanges<'a, F> {
    /// The number of positions that a row sees up to its own (sliding window, arXiv 2310.06825): a row at position p sees
    /// positions above p − window only. Slots of the row's own mask group stay visible.
    pub window: Option<usize>,
    /// The cap c of a soft cap (Gemma 2, arXiv 2408.00118): a score s becomes c · tanh(s / c).
    pub soft_cap: Option<F>,
    /// A score for each query head, `[q_heads]`, that joins the softmax of a row without a key or a value, as the sinks
    /// of gpt-oss. A row that sees nothing stays as it is.
    pub sinks: Option<&'a [F]>,
}

impl<F> Default for ScoreChanges<'_, F> {
    fn default() -> Self {
        ScoreChanges { window: None, soft_cap: None, sinks: None }
    }
}

impl<F: Float> ScoreChanges<'_, F> {
    /// Returns the first position that a row at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Returns a score under the soft cap.
    fn capped(&self, score: F) -> F {
        let Some(cap) = self.soft_cap else { return score };
        // tanh(x) = 1 − 2 / (exp(2x) + 1).
        let two = F::ONE + F::ONE;
        cap * (F::ONE - two / ((two * score / cap).exp() + F::ONE))
    }
}

/// The result of attention for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended<F> {
    /// The output Σ p · v, `[q_heads, head_dim]`; 0 if the row sees nothing.
    pub output: Vec<F>,
    /// The natural logarithm of Σ exp(score) for each head, with the head's sink, `[q_heads]`; −∞ if the row sees nothing.
    pub log_sum_exp: Vec<F>,
    /// The scale of the output's rounding error, Σ p · |v|, `[q_heads, head_dim]`.
    pub magnitude: Vec<F>,
}

/// Returns the attention of one query row: `q` `[q_heads, head_dim]` attends to everything in `seen`.
pub fn attend<F: Float>(heads: Heads, q: &[F], seen: &[KeysValues<'_, F>]) -> Attended<F> {
    attend_with(heads, q, seen, &ScoreChanges::default())
}

/// Returns [`attend`] with capped scores and sinks. `seen` has what the row's window leaves.
pub fn attend_with<F: Float>(
    heads: Heads,
    q: &[F],
    seen: &[KeysValues<'_, F>],
    changes: &ScoreChanges<'_, F>,
) -> Attended<F> {
    let Heads { q_heads, kv_heads, head_dim } = heads;
    assert_eq!(q.len(), q_heads * head_dim);
    let scale = F::ONE / F::from_f64(head_dim as f64).sqrt();
    let mut attended = Attended { output: vec![], log_sum_exp: vec![], magnitude: vec![] };

    for (head, q) in q.chunks(head_dim).enumerate() {
        let kv_head = head * kv_heads / q_heads;
        let entries = || {
            seen.iter().flat_map(|part| {
                let keys = part.keys.chunks(head_dim).skip(kv_head).step_by(kv_heads);
                let values = part.values.chunks(head_dim).skip(kv_head).step_by(kv_heads);
                keys.zip(values)
            })
        };
        let scores: Vec<F> = entries().map(|(k, _)| changes.capped(dot(q, k) * scale)).collect();
        let sink = changes.sinks.filter(|_| !scores.is_empty()).map(|sinks| sinks[head]);
        let largest = scores.iter().copied().chain(sink).fold(F::NEG_INFINITY, F::max);
        let weights: Vec<F> = scores.iter().map(|&score| (score - largest).exp()).collect();
        let total: F = weights.iter().copied().chain(sink.map(|sink| (sink - largest).exp())).sum();

        let mut output = vec![F::ZERO; head_dim];
        let mut magnitude = vec![F::ZERO; head_dim];
        for (&weight, (_, v)) in weights.iter().zip(entries()) {
            for (i, &v) in v.iter().enumerate() {
                output[i] += weight / total * v;
                magnitude[i] += weight / total * v.abs();
            }
        }
        attended.output.extend(output);
        attended.magnitude.extend(magnitude);
        attended.log_sum_exp.push(if scores.is_empty() { F::NEG_INFINITY } else { largest + total.ln() });
    }
    attended
}

/// Returns the mask-token block attention of one group: the queries `q` `[S, q_heads, head_dim]` of its slots attend to
/// the first `visible` positions of `prefix` (limit + 1 of them) and to every slot of `group` `[S]`.
pub fn mask_block_attention<F: Float>(
    heads: Heads,
    q: &[F],
    prefix: KeysValues<'_, F>,
    visible: usize,
    group: KeysValues<'_, F>,
) -> Vec<Attended<F>> {
    let prefix = prefix.slice(heads, 0..visible);
    q.chunks(heads.q_heads * heads.head_dim).map(|q| attend(heads, q, &[prefix, group])).collect()
}

/// Returns the joint draft-and-verify attention of every row of `rows`, with queries `q` `[rows, q_heads, head_dim]`.
///
/// `clean` holds the keys and values of clean tokens by absolute position, **including this step's candidates**.
/// `own` holds the keys and values of the step's rows `[rows]`; only its mask rows are read.
pub fn joint_attention<F: Float>(
    heads: Heads,
    q: &[F],
    rows: &[Row],
    clean: KeysValues<'_, F>,
    own: KeysValues<'_, F>,
) -> Vec<Attended<F>> {
    joint_attention_with(heads, q, rows, clean, own, &ScoreChanges::default())
}

/// Returns [`joint_attention`] with a model's changes.
pub fn joint_attention_with<F: Float>(
    heads: Heads,
    q: &[F],
    rows: &[Row],
    clean: KeysValues<'_, F>,
    own: KeysValues<'_, F>,
    changes: &ScoreChanges<'_, F>,
) -> Vec<Attended<F>> {
    let queries = q.chunks(heads.q_heads * heads.head_dim);
    assert_eq!(queries.len(), rows.len());
    queries
        .zip(rows)
        .map(|(q, row)| {
            let end = row.limit + 1;
            let mut seen = vec![clean.slice(heads, changes.first_seen(row.position).min(end)..end)];
            if let Some(group) = &row.group {
                seen.push(own.slice(heads, group.clone()));
            }
            attend_with(heads, q, &seen, changes)
        })
        .collect()
}
