//! What the engine refuses, and why.

use crate::device::DeviceError;
use crate::sampling::SamplingError;

/// A request or an engine that cannot be.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A request without a token to start from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt token that the target does not have.
    #[error("prompt token {token} at position {position} is out of vocabulary ({vocab_size} ids)")]
    TokenOutOfVocabulary {
        /// The token id.
        token: u32,
        /// Its position in the prompt.
        position: usize,
        /// V.
        vocab_size: usize,
    },
    /// A prompt longer than the target's context.
    #[error("the prompt has {tokens} tokens, the context is {context_len}")]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// Positions that the target has.
        context_len: usize,
    },
    /// A block size of 0, or above the one that the drafter was trained with.
    #[error("block size {requested} is not in 1..={trained}, the drafter's own")]
    BlockSize {
        /// What the request asked for.
        requested: usize,
        /// S as trained.
        trained: usize,
    },
    /// A confidence threshold outside [0, 1].
    #[error("confidence threshold must be at least 0 and at most 1, found {0}")]
    Threshold(f32),
    /// Sampling parameters out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A mode that drafts, without a drafter.
    #[error("mode `{mode}` needs a drafter; without one only `ar` runs")]
    NoDrafter {
        /// The mode.
        mode: &'static str,
    },
    /// An engine option out of range.
    #[error("{option} must be at least 1")]
    ZeroOption {
        /// The option.
        option: &'static str,
    },
    /// A request that does not fit the KV cache even with no other beside it.
    #[error(
        "the KV cache is too small: the request needs {needed} pages of {page_size} tokens, there are {pages}"
    )]
    CacheExhausted {
        /// Pages that the next step needs.
        needed: usize,
        /// Pages that the cache has.
        pages: usize,
        /// Tokens in a page.
        page_size: usize,
    },
    /// A failure of the device during a step. No request lost its state; the step may be repeated.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
