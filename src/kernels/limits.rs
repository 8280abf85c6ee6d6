//! The limits of the kernels: the largest and smallest sizes that they support, all in this file. Methods of
//! [`Kernels`](super::Kernels) refuse a launch beyond a limit, and [`supports`] checks in advance whether the kernels
//! can run a model.

use super::params::acceptance::FLEXDRAFT_MAX_DRAFTS;
use super::params::chain::FLEXDRAFT_CHAIN_LIMIT;
use super::params::sampling::FLEXDRAFT_VOCAB_LIMIT;
use super::params::shapes::{
    FLEXDRAFT_MERGE_LEVELS, FLEXDRAFT_MERGE_WARPS, FLEXDRAFT_SPAN_SPLITS, FLEXDRAFT_TILE_KEYS,
};
use crate::layout::{AttentionShape, MAX_BLOCK_SIZE};

/// A quantity that is beyond the limits of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found}; the kernels support {supported}")]
pub struct ExceededLimit {
    /// The name of the quantity.
    pub what: &'static str,
    /// The value of the quantity.
    pub found: usize,
    /// The supported values, in words.
    pub supported: &'static str,
}

/// The shapes of a model and its drafter that decide whether the kernels can run them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// The numbers and the size of the attention heads.
    pub attention: AttentionShape,
    /// The number of token ids in the vocabulary.
    pub vocab: usize,
    /// The number of elements in a row of the residual stream.
    pub hidden: usize,
    /// The number of elements in a row of the MLP's activation.
    pub intermediate: usize,
    /// The rank of the drafter's calibrator, if there is one.
    pub rank: Option<usize>,
    /// The rank of the drafter's chain, if there is one whose scores depend on the slots' hidden rows.
    pub hidden_chain_rank: Option<usize>,
}

/// Checks that the kernels support the shapes of a model.
///
/// # Errors
///
/// The first limit that the model exceeds.
///
/// # Example
///
/// ```
/// use flexdraft::kernels::{ModelShape, supports};
/// use flexdraft::layout::AttentionShape;
///
/// let attention = AttentionShape { q_heads: 32, kv_heads: 8, head_dim: 128 };
/// let qwen3 = ModelShape {
///     attention,
///     vocab: 151_936,
///     hidden: 4096,
///     intermediate: 12_288,
///     rank: Some(512),
///     hidden_chain_rank: None,
/// };
/// assert_eq!(supports(&qwen3), Ok(()));
///
/// let attention = AttentionShape { head_dim: 96, ..attention };
/// let exceeded = supports(&ModelShape { attention, ..qwen3 }).unwrap_err();
/// assert_eq!(exceeded.to_string(), "head_dim is 96; the kernels support 64, 128");
/// ```
pub fn supports(model: &ModelShape) -> Result<(), ExceededLimit> {
    heads(model.attention)?;
    vocabulary(model.vocab)?;
    let named = |what| move |limit| ExceededLimit { what, ..limit };
    columns(model.hidden).map_err(named("hidden size"))?;
    columns(model.intermediate).map_err(named("intermediate size"))?;
    activation_columns(model.intermediate).map_err(named("intermediate size"))?;
    model.rank.map_or(Ok(()), rank)?;
    // The hidden layer of the scores is a buffer of activations.
    model.hidden_chain_rank.map_or(Ok(()), columns).map_err(named("rank of the chain"))
}

/// Returns an error that names the quantity and the supported values, unless `is_supported`.
fn check(
    is_supported: bool,
    what: &'static str,
    found: usize,
    supported: &'static str,
) -> Result<(), ExceededLimit> {
    if is_supported { Ok(()) } else { Err(ExceededLimit { what, found, supported }) }
}

/// Checks the numbers and the size of attention heads.
pub(super) fn heads(shape: AttentionShape) -> Result<(), ExceededLimit> {
    let AttentionShape { q_heads, kv_heads, head_dim } = shape;
    check([64, 128].contains(&head_dim), "head_dim", head_dim, "64, 128")?;
    let divides = kv_heads > 0 && q_heads.is_multiple_of(kv_heads);
    let fits = divides && (1..=16).contains(&(q_heads / kv_heads));
    check(fits, "number of query heads", q_heads, "1 to 16 for each KV head")
}

/// Checks the number of query heads: a CTA of the merging kernel has four heads, and the second dimension of a grid
/// ends at 65535.
pub(super) fn query_heads(found: usize) -> Result<(), ExceededLimit> {
    let fits = found <= 65_535 * FLEXDRAFT_MERGE_WARPS as usize;
    check(fits, "number of query heads", found, "up to 262140")
}

/// Checks the number of keys per split of attention.
pub(super) fn split(found: usize) -> Result<(), ExceededLimit> {
    let fits = found > 0 && found.is_multiple_of(FLEXDRAFT_TILE_KEYS as usize);
    check(fits, "split", found, "multiples of 64")
}

/// Checks the number of splits of a sequence: the merging kernel has levels for a tree of this many.
pub(super) fn splits(found: usize) -> Result<(), ExceededLimit> {
    let most = ((1 << FLEXDRAFT_MERGE_LEVELS) - 1) * FLEXDRAFT_SPAN_SPLITS as usize;
    check(found <= most, "number of splits", found, "up to 16380")
}

/// Checks the number of positions in a sliding window: every slot of a mask group sees the position before the group.
pub(super) fn window(found: usize) -> Result<(), ExceededLimit> {
    check(found > MAX_BLOCK_SIZE, "sliding window", found, "65 and more")
}

/// Checks a stride of a paged KV cache, in elements.
pub(super) fn cache_stride(found: usize) -> Result<(), ExceededLimit> {
    let fits = found.is_multiple_of(8) && i64::try_from(found).is_ok();
    check(fits, "a stride of the cache", found, "multiples of 8 elements")
}

/// Checks the distance between rows of heads, in elements, each with `row` elements.
pub(super) fn row_stride(found: usize, row: usize) -> Result<(), ExceededLimit> {
    let fits = found >= row && found.is_multiple_of(8) && i64::try_from(found).is_ok();
    check(fits, "a stride of rows", found, "multiples of 8 elements, at least a row")
}

/// Checks the number of token ids in the vocabulary.
pub(super) fn vocabulary(found: usize) -> Result<(), ExceededLimit> {
    check((1..=FLEXDRAFT_VOCAB_LIMIT as usize).contains(&found), "vocabulary", found, "1 to 2^20")
}

/// Checks the number of elements in a row of bf16 or f16, which kernels read in chunks of 16 bytes.
pub(super) fn columns(found: usize) -> Result<(), ExceededLimit> {
    check(found > 0 && found.is_multiple_of(8), "number of columns", found, "multiples of 8")
}

/// Checks the number of elements in a vector of bf16 or f16, which may be empty.
pub(super) fn elements(found: usize) -> Result<(), ExceededLimit> {
    check(found.is_multiple_of(8), "number of elements", found, "multiples of 8")
}

/// Checks the number of frequencies of the rotary embedding.
pub(super) fn frequencies(found: usize) -> Result<(), ExceededLimit> {
    check(found > 0, "number of frequencies", found, "head_dim / 2")
}

/// Checks the number of elements in a row of the MLP's activation: a CTA has 1024 columns, and the second dimension of
/// a grid ends at 65535.
pub(super) fn activation_columns(found: usize) -> Result<(), ExceededLimit> {
    check(found <= 65_535 * 1024, "number of columns", found, "up to 67107840")
}

/// Checks the rank of a calibrator.
pub(super) fn rank(found: usize) -> Result<(), ExceededLimit> {
    let fits = found > 0 && found.is_multiple_of(8) && found <= i32::MAX as usize;
    check(fits, "rank", found, "a multiple of 8 above 0")
}

/// Checks the stride of logits, the number of elements from one row to the next.
pub(super) fn stride(found: usize, vocabulary: usize) -> Result<(), ExceededLimit> {
    let fits = found >= vocabulary && found.is_multiple_of(8) && found <= i32::MAX as usize;
    check(fits, "stride", found, "multiples of 8, at least the vocabulary")
}

/// Checks a number of rows or sequences, which kernels count in `i32`.
pub(super) fn count(what: &'static str, found: usize) -> Result<(), ExceededLimit> {
    check(found <= i32::MAX as usize, what, found, "below 2^31")
}

/// Checks the number of draft tokens of a sequence.
pub(super) fn drafts(found: usize) -> Result<(), ExceededLimit> {
    check(found <= FLEXDRAFT_MAX_DRAFTS as usize, "number of drafts", found, "0 to 63")
}

/// Checks the number K of ids that a chain scores per slot.
pub(super) fn chosen(found: usize) -> Result<(), ExceededLimit> {
    let fits = (1..=FLEXDRAFT_CHAIN_LIMIT as usize).contains(&found);
    check(fits, "number of chosen ids", found, "1 to 32")
}

/// Checks that a vocabulary has at least the number of ids that are chosen from it.
pub(super) fn chosen_of(found: usize, vocabulary: usize) -> Result<(), ExceededLimit> {
    check(found <= vocabulary, "number of chosen ids", found, "up to the vocabulary")
}

/// Checks the number of elements of a factor of a chain's scores.
pub(super) fn factor(found: usize) -> Result<(), ExceededLimit> {
    check(found > 0 && found <= i32::MAX as usize, "rank", found, "1 and above, below 2^31")
}

/// Checks the number of elements from one factor of a chain's scores to the next.
pub(super) fn factor_stride(found: usize, rank: usize) -> Result<(), ExceededLimit> {
    let fits = found >= rank && found.is_multiple_of(8) && i64::try_from(found).is_ok();
    check(fits, "stride of factors", found, "multiples of 8, at least the rank")
}

/// Checks the number of slots of a mask group.
pub(super) fn slots(found: usize) -> Result<(), ExceededLimit> {
    check((1..=MAX_BLOCK_SIZE).contains(&found), "number of slots", found, "1 to 64")
}

/// Checks the number of sequences of a verification: the second dimension of a grid ends at 65535.
pub(super) fn batch(found: usize) -> Result<(), ExceededLimit> {
    check(found <= 65_535, "batch", found, "up to 65535")
}

/// Checks the number of tokens per page of the KV cache.
pub(super) fn page_size(found: usize) -> Result<(), ExceededLimit> {
    let fits = (1..16).contains(&found) || (found.is_multiple_of(16) && (16..=1 << 16).contains(&found));
    check(fits, "page size", found, "1 to 15, and multiples of 16 up to 65536")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_of_a_model() {
        let attention = AttentionShape { q_heads: 8, kv_heads: 2, head_dim: 64 };
        let model = ModelShape {
            attention,
            vocab: 1 << 20,
            hidden: 8,
            intermediate: 16,
            rank: None,
            hidden_chain_rank: Some(24),
        };
        assert_eq!(supports(&model), Ok(()));
        let exceeded = |model: ModelShape| {
            let ExceededLimit { what, found, .. } = supports(&model).unwrap_err();
            (what, found)
        };
        let heads = |attention| exceeded(ModelShape { attention, ..model });
        assert_eq!(heads(AttentionShape { head_dim: 80, ..attention }), ("head_dim", 80));
        for (q_heads, kv_heads) in [(0, 2), (8, 0), (9, 2), (34, 2)] {
            let shape = AttentionShape { q_heads, kv_heads, head_dim: 64 };
            assert_eq!(heads(shape), ("number of query heads", q_heads));
        }
        assert_eq!(exceeded(ModelShape { vocab: 0, ..model }), ("vocabulary", 0));
        assert_eq!(exceeded(ModelShape { vocab: (1 << 20) + 1, ..model }), ("vocabulary", (1 << 20) + 1));
        assert_eq!(exceeded(ModelShape { hidden: 12, ..model }), ("hidden size", 12));
        assert_eq!(exceeded(ModelShape { intermediate: 20, ..model }), ("intermediate size", 20));
        let wide = 65_535 * 1024 + 8;
        assert_eq!(exceeded(ModelShape { intermediate: wide, ..model }), ("intermediate size", wide));
        assert_eq!(exceeded(ModelShape { rank: Some(20), ..model }), ("rank", 20));
        let chained = ModelShape { hidden_chain_rank: Some(20), ..model };
        assert_eq!(exceeded(chained), ("rank of the chain", 20));
    }
}
