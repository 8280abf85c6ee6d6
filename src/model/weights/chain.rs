//! The weights of Chained Calibration, an optional part of a drafter.

use super::LinearWeights;
use super::source::TensorSource;
use crate::model::LoadError;
use crate::model::config::ModelConfig;
use crate::model::format::json::Fields;
use crate::model::format::safetensors::Checkpoint;

/// The largest number K of ids per slot that a chain may score.
pub const MAX_CHAIN_TOP_K: usize = 32;

/// The number K of ids per slot that a chain scores if the drafter's config has no `chain_top_k`.
const DEFAULT_TOP_K: usize = 16;

/// The kind of score with which a chain corrects the logits of a slot's most likely ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// A score of two tokens: `(A · embed(t)) · (B · embed(x))`.
    Pair,
    /// A score of two tokens and the slot's hidden row: `lm_head[x] · (W2 · silu(W1 · [embed(t); h]))`.
    Hidden,
}

impl ChainKind {
    /// All kinds of chain, in the order in which error messages list them.
    pub const ALL: [Self; 2] = [Self::Pair, Self::Hidden];

    /// Returns the kind's name in a drafter's config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Hidden => "hidden",
        }
    }

    /// Returns the names of the kind's two layers in a checkpoint.
    fn layers(self) -> [&'static str; 2] {
        match self {
            Self::Pair => ["chain.a", "chain.b"],
            Self::Hidden => ["chain.0", "chain.2"],
        }
    }
}

/// The settings of a drafter's chain, which corrects the logits of a slot by the token before the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainConfig {
    /// The kind of score that the chain computes.
    pub kind: ChainKind,
    /// K: the number of ids of a slot that are scored, 1..=[`MAX_CHAIN_TOP_K`].
    pub top_k: usize,
}

/// The weights of a chain: two linear layers without biases, of rank r.
#[derive(Clone, Debug)]
pub struct ChainWeights {
    /// The kind of the scores and the number of ids that are scored.
    pub config: ChainConfig,
    /// The first layer: for the kind `pair`, A `[r, hidden]`, which multiplies the embedding of the token
    /// before the slot; for `hidden`, W1 `[r, 2 · hidden]`, whose first `hidden` columns multiply this
    /// embedding.
    pub first: LinearWeights,
    /// The second layer: for the kind `pair`, B `[r, hidden]`, which multiplies the embedding of the scored
    /// token; for `hidden`, W2 `[hidden, r]`.
    pub second: LinearWeights,
}

impl ChainConfig {
    /// Reads the keys `chain_kind` and `chain_top_k` of the drafter's object in a config; `None` if there is no chain.
    pub(super) fn read(own: &Fields<'_>) -> Result<Option<Self>, LoadError> {
        const KIND: &str = "chain_kind";
        const TOP_K: &str = "chain_top_k";
        let Some(name) = own.text(KIND)? else {
            return match own.contains(TOP_K) {
                true => Err(own.missing(KIND)),
                false => Ok(None),
            };
        };
        let kind = ChainKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind =
            kind.ok_or_else(|| own.unsupported(KIND, ChainKind::ALL.map(ChainKind::name).join(", ")))?;
        let top_k = own.count(TOP_K, MAX_CHAIN_TOP_K)?.unwrap_or(DEFAULT_TOP_K);
        Ok(Some(Self { kind, top_k }))
    }
}

/// Checks that a checkpoint has tensors of the chain's own kind only. Whether they are complete is found when they are
/// [taken](build).
pub(super) fn check_kind(chain: Option<ChainConfig>, checkpoint: &Checkpoint) -> Result<(), LoadError> {
    let own: &[&str] = match &chain {
        Some(chain) => &chain.kind.layers(),
        None => &[],
    };
    for layer in ChainKind::ALL.into_iter().flat_map(ChainKind::layers) {
        let tensor = format!("{layer}.weight");
        if !own.contains(&layer) && checkpoint.contains(&tensor) {
            return Err(LoadError::UnexpectedChain {
                path: checkpoint.path_of(&tensor).into(),
                tensor,
                kind: chain.map(|chain| chain.kind.name()),
            });
        }
    }
    Ok(())
}

/// Returns the rank r of the stored chain: the rows of A or of W1.
pub(in crate::model) fn rank(chain: ChainConfig, checkpoint: &Checkpoint) -> usize {
    let shape = checkpoint.shape(&format!("{}.weight", chain.kind.layers()[0]));
    shape.and_then(|shape| shape.first().copied()).unwrap_or(1).max(1)
}

/// Takes the two layers of a chain of rank `rank` from `tensors`.
pub(super) fn build(
    tensors: &mut impl TensorSource,
    config: ChainConfig,
    target: &ModelConfig,
    rank: usize,
) -> Option<ChainWeights> {
    let hidden = target.hidden_size;
    let [first_shape, second_shape] = match config.kind {
        ChainKind::Pair => [[rank, hidden], [rank, hidden]],
        ChainKind::Hidden => [[rank, 2 * hidden], [hidden, rank]],
    };
    let [first, second] = config.kind.layers();
    let first = tensors.linear(first, first_shape, false);
    let second = tensors.linear(second, second_shape, false);
    Some(ChainWeights { config, first: first?, second: second? })
}
