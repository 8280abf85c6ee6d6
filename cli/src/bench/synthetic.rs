//! Models with random weights, in the shapes of known models.

use clap::ValueEnum;
use flexdraft::device::AttentionShape;
use flexdraft::model::config::{Architecture, ModelConfig};
use flexdraft::model::rope::{self, RopeScaling};
use flexdraft::model::weights::{DrafterWeights, TargetWeights};
use flexdraft::tensor::DType;

use crate::error::{CliError, Result};
use crate::models::Weights;

/// The shape of a synthetic model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Synthetic {
    /// A tiny model to try the command: four layers, 64 columns
    Tiny,
    /// SmolLM2-135M: 30 layers, 576 columns, tied embedding and head
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// Qwen3-0.6B: 28 layers, 1024 columns, tied embedding and head
    #[value(name = "qwen3-0.6b")]
    Qwen3Small,
    /// Qwen3-8B: 36 layers, 4096 columns
    #[value(name = "qwen3-8b")]
    Qwen3Large,
    /// Orthrus on Qwen3-1.7B: 28 layers, 2048 columns, tied embedding and head, an Orthrus drafter
    #[value(name = "orthrus-1.7b")]
    Orthrus,
}

impl Synthetic {
    /// Returns the shape's name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Returns the block size of the drafter unless another one is requested: the block size of the released drafters.
    pub fn block_size(self) -> usize {
        if self == Self::Orthrus { 32 } else { 16 }
    }

    /// Returns the configuration of a model of this shape, and the number of its drafter's layers.
    fn config(self) -> Option<(ModelConfig, usize)> {
        let (layers, hidden, intermediate, q_heads, kv_heads, head_dim, vocab, tied, tail) = match self {
            Self::Tiny => (4, 64, 128, 2, 1, 64, 384, true, 2),
            Self::SmolLm2 => (30, 576, 1536, 9, 3, 64, 49_152, true, 8),
            Self::Qwen3Small => (28, 1024, 3072, 16, 8, 128, 151_936, true, 8),
            Self::Qwen3Large => (36, 4096, 12_288, 32, 8, 128, 151_936, false, 10),
            Self::Orthrus => (28, 2048, 6144, 16, 8, 128, 151_936, true, 28),
        };
        let (architecture, context_len, rms_norm_eps, theta) = match self {
            Self::SmolLm2 => (Architecture::Llama, 8192, 1e-5, 1e5),
            Self::Tiny | Self::Qwen3Small | Self::Qwen3Large | Self::Orthrus => {
                (Architecture::Qwen3, 40_960, 1e-6, 1e6)
            }
        };
        let config = ModelConfig {
            architecture,
            hidden_size: hidden,
            intermediate_size: intermediate,
            layers,
            attention: AttentionShape { q_heads, kv_heads, head_dim },
            vocab_size: vocab,
            context_len,
            rms_norm_eps,
            rope: rope::rope(head_dim, theta, &RopeScaling::Default)?,
            layers_without_rope: Vec::new(),
            attention_bias: false,
            mlp_bias: false,
            tied_embeddings: tied,
            eos_ids: Vec::new(),
        };
        Some((config, tail))
    }

    /// Returns random bf16 weights of a target and its drafter, if the machine has enough memory.
    pub fn weights(self, block_size: usize) -> Result<Weights> {
        let (config, tail) =
            self.config().ok_or_else(|| CliError::Usage("the shape has no rotary frequencies".into()))?;
        let rank = if self == Self::Orthrus { 0 } else { 512.min(config.hidden_size) };
        let attention = config.attention;
        let projections = config.hidden_size * (attention.qkv_cols() + attention.out_cols());
        let layer = projections + 3 * config.hidden_size * config.intermediate_size;
        let tables = if config.tied_embeddings { 1 } else { 2 } * config.vocab_size * config.hidden_size;
        let drafter = tail * projections + rank * (2 * config.hidden_size + config.vocab_size);
        let needed = 2 * (config.layers * layer + tables + drafter);
        if let Some(available) = available_memory().filter(|&available| available < needed) {
            let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
            return Err(CliError::Usage(format!(
                "the weights of this shape need {:.1} GiB of memory, and {:.1} GiB are available; choose a smaller \
                 --synthetic shape",
                gib(needed),
                gib(available)
            )));
        }
        let target = TargetWeights::random(&config, DType::Bf16, 1)?;
        let drafter = match self {
            Self::Orthrus => DrafterWeights::random_orthrus(&target, block_size, DType::Bf16, 2)?,
            _ => DrafterWeights::random(&config, tail, block_size, rank, DType::Bf16, 2)?,
        };
        Ok(Weights { target, drafter: Some(drafter) })
    }
}

/// Returns the memory that is available without swapping, in bytes, if the system reports it.
/// `FLEXDRAFT_AVAILABLE_MEMORY` (bytes) overrides the system's value: some virtual machines receive their memory only
/// as they use it, and report too little.
fn available_memory() -> Option<usize> {
    if let Some(bytes) = std::env::var("FLEXDRAFT_AVAILABLE_MEMORY").ok().and_then(|text| text.parse().ok()) {
        return Some(bytes);
    }
    let report = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = report.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_llama_has_no_norms_of_its_heads() {
        let weights = Synthetic::SmolLm2.weights(16).unwrap();
        let (target, drafter) = (&weights.target, weights.drafter.as_ref().unwrap());
        assert!(target.layers.iter().all(|layer| layer.attention.qk_norms.is_none()));
        assert_eq!((target.layers.len(), drafter.attention.len(), drafter.config.block_size), (30, 8, 16));
        // The number of parameters must match the model's name.
        let elements = weights.bytes_a_token() / 2;
        assert_eq!(elements, 134_515_008);
    }
}
