//! Sizes and limits of an engine.

/// Sizes and limits of an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// The maximum number of sequences in a step; further requests wait.
    pub max_batch: usize,
    /// Tokens that the KV cache holds, over all sequences. A request needs room for its prompt and its output,
    /// except for the last token. Drafts are verified in the cache too, so a larger cache can verify longer
    /// drafts.
    pub cache_tokens: usize,
    /// Tokens per page of the cache.
    pub page_size: usize,
    /// The maximum number of prompt tokens that a step computes, over all sequences, so that long prompts do not delay
    /// other requests.
    pub prefill_rows: usize,
    /// Whether the engine keeps a prefix cache: requests that begin with the tokens of an earlier request reuse its
    /// pages of keys and values, and compute only the rest of their prompt. Only full pages are shared. Pages that no
    /// request uses are kept until their memory is needed; the least recently used page is evicted first. Outputs do
    /// not depend on it.
    pub prefix_cache: bool,
    /// Whether drafts may come from the requests' [proposers](super::Proposer) alone. If so, an engine whose model has
    /// no drafter accepts policies that draft; a request without a proposer then gets one token per step.
    pub proposers: bool,
    /// Allows a policy to change the verify length of requests whose tokens depend on it (`rejection` and
    /// `block` above temperature 0). The distribution of their tokens is still the target's, but the tokens
    /// may then depend on the load.
    pub free_verify_len: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_batch: 64,
            cache_tokens: 16_384,
            page_size: 16,
            prefill_rows: 512,
            prefix_cache: true,
            proposers: false,
            free_verify_len: false,
        }
    }
}
