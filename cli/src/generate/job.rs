//! The requests that a command runs, one per seed, and the memory that they need.

use flexdraft::decode::{Engine, EngineOptions, Request};
use flexdraft::device::Device;
use flexdraft::model::ModelConfig;
use flexdraft::processors::LogitProcessors;

use super::args::GenerateArgs;
use crate::error::{CliError, Result};
use crate::models::{CACHE_BYTES, cache_bytes_a_token};
use crate::request;
use crate::run::{self, Observer};
use crate::text::TextOptions;

/// The seeds of the samples, one per sample.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    first: u64,
    last: u64,
    count: usize,
}

impl Seeds {
    pub fn from_args(args: &GenerateArgs) -> Result<Self> {
        let (first, count) = (args.sampling.seed, args.samples.get());
        let last = u64::try_from(count - 1).ok().and_then(|further| first.checked_add(further));
        let last = last.ok_or_else(|| {
            CliError::Usage(format!(
                "{count} samples need consecutive seeds from {first} on, but the largest seed is {}; use a \
                 smaller --seed",
                u64::MAX
            ))
        })?;
        Ok(Self { first, last, count })
    }

    pub fn count(self) -> usize {
        self.count
    }

    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }
}

/// A prompt with its settings, which stands for a set of requests, one per seed.
pub struct Job<'a> {
    pub args: &'a GenerateArgs,
    pub prompt_ids: Vec<u32>,
    pub stop_ids: Vec<u32>,
    pub processors: LogitProcessors,
    pub text: TextOptions,
    /// Whether drafts are looked up in the text.
    pub looks_up: bool,
    pub seeds: Seeds,
    /// Maximum number of samples per step.
    pub batch: usize,
}

impl Job<'_> {
    /// Lets the engine validate the requests, without running them.
    pub fn check<D: Device>(&self, engine: &mut Engine<D>) -> Result<()> {
        let id = engine.add(self.request(self.seeds.first))?;
        engine.cancel(id);
        Ok(())
    }

    /// Runs the requests. With `explain`, stderr gets the policy's explanation of each step.
    pub fn run<D: Device>(
        &self,
        engine: &mut Engine<D>,
        explain: bool,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let text = || self.text.after(&self.prompt_ids);
        run::run(engine, self.batch, self.seeds.iter(), |seed| self.request(seed), text, explain, observer)
    }

    fn request(&self, seed: u64) -> Request {
        let Self { args, prompt_ids, stop_ids, processors, looks_up, .. } = self;
        let (processors, prompt) = (processors.clone(), prompt_ids.clone());
        let request =
            request::request(&args.decoding, &args.sampling, processors, prompt, stop_ids, seed, *looks_up);
        Request { logprobs: args.logprobs, ..request }
    }
}

/// Returns the number of positions in a KV cache for `batch` sequences of full length, each with room for one more
/// block, but at most [`CACHE_BYTES`] of cache. A single sequence always fits; sequences that do not fit wait.
pub fn cache_tokens(
    config: &ModelConfig,
    prompt_len: usize,
    max_new_tokens: usize,
    block_size: usize,
    batch: usize,
) -> usize {
    let page_size = EngineOptions::default().page_size;
    let longest =
        prompt_len.saturating_add(max_new_tokens).min(config.context_len).saturating_add(block_size);
    let sequence = longest.div_ceil(page_size).saturating_mul(page_size);
    sequence.saturating_mul(batch).min(CACHE_BYTES / cache_bytes_a_token(config)).max(sequence)
}

#[cfg(test)]
mod tests {
    use flexdraft::device::{AttentionShape, Rope};
    use flexdraft::model::Architecture;

    use super::*;

    /// A configuration with 1 KiB of cache per token.
    fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            hidden_size: 32,
            intermediate_size: 64,
            layers: 4,
            attention: AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 32 },
            vocab_size: 16,
            context_len: 1 << 20,
            rms_norm_eps: 1e-6,
            rope: Rope { inv_freq: vec![1.0; 16], scale: 1.0 },
            layers_without_rope: Vec::new(),
            attention_bias: false,
            mlp_bias: false,
            tied_embeddings: true,
            eos_ids: Vec::new(),
        }
    }

    #[test]
    fn the_cache_has_room_for_all_within_reason() {
        let tokens = |prompt, max_new, batch| cache_tokens(&config(), prompt, max_new, 8, batch);
        assert_eq!(tokens(5, 3, 1), 16);
        assert_eq!(tokens(5, 4, 1), 32);
        assert_eq!(tokens(5, 4, 3), 96);
        // The context limits a single sequence; the cache's memory limits all sequences together.
        assert_eq!(tokens(5, usize::MAX, 1), (1 << 20) + 16);
        assert_eq!(tokens(5, usize::MAX, 64), CACHE_BYTES >> 10);
    }
}
