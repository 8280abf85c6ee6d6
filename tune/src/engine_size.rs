//! Batch and cache sizes of the engine that the tuner runs.

use flexdraft::decode::EngineOptions;
use flexdraft::model::ModelConfig;

/// Memory for the KV cache, in bytes; one sequence may need more. Sequences that do not fit wait.
const CACHE_BYTES: usize = 4 << 30;

/// Returns batch and cache sizes for `batch` sequences of up to `longest` tokens plus a block of `block_size`
/// (1 without a drafter), within 4 GiB of cache if its elements are f32.
pub fn engine_options(
    config: &ModelConfig,
    longest: usize,
    block_size: usize,
    batch: usize,
) -> EngineOptions {
    let defaults = EngineOptions::default();
    let longest = longest.min(config.context_len).saturating_add(block_size);
    let sequence = longest.div_ceil(defaults.page_size).saturating_mul(defaults.page_size);
    let attention = config.attention;
    let bytes_a_token = [2, config.layers, attention.kv_heads, attention.head_dim, size_of::<f32>()]
        .into_iter()
        .fold(1, usize::saturating_mul)
        .max(1);
    let cache_tokens = sequence.saturating_mul(batch).min(CACHE_BYTES / bytes_a_token).max(sequence);
    EngineOptions { max_batch: batch, cache_tokens, ..defaults }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_cache_has_room_for_all_within_reason() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/target");
        let config = ModelConfig::read(&tiny).unwrap();
        let tokens = |longest, batch| engine_options(&config, longest, 8, batch).cache_tokens;
        assert_eq!(tokens(8, 1), 16);
        assert_eq!(tokens(9, 1), 32);
        assert_eq!(tokens(9, 3), 96);
        // The context limits a single sequence; the memory limits all sequences together.
        assert_eq!(tokens(usize::MAX, 1), 1024 + 16);
        assert_eq!(tokens(9, 1 << 40), CACHE_BYTES / (2 * 4 * 64 * 4));
    }
}
