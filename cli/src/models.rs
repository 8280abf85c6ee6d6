//! Loads the models that `--target` and `--draft` name, and places them on a device.

use std::env;
use std::path::{Path, PathBuf};

use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{Device, Precision};
use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::model::forward::Model;
use flexdraft::model::weights::{
    AttentionWeights, DrafterWeights, LinearWeights, ModelWeights, TargetWeights,
};
use flexdraft::model::{LoadWarning, ModelConfig, QuantizedWeights};
use flexdraft::tensor::{DType, Tensor};

use crate::args::{DecodingArgs, DrafterSource, ModeChoice};
use crate::error::{CliError, Result};
use crate::hub;
use crate::progress::Progress;

/// Path of the bundled pair of target and drafter in the repository.
const BUNDLED: &str = "demo/tiny";

/// Block size of a random drafter, unless another one is requested: the block size of the released drafters.
const RANDOM_BLOCK_SIZE: usize = 16;

/// Calibrator rank of a random drafter; a target with a smaller hidden size uses that size instead.
const RANDOM_RANK: usize = 512;

/// Seed of random drafters, fixed so that they are the same in every run.
const RANDOM_SEED: u64 = 0;

/// Maximum size of the KV cache in bytes; only a single sample of `generate` may need a larger cache.
pub const CACHE_BYTES: usize = 4 << 30;

/// Returns the bytes of KV cache per token, at least 1.
pub fn cache_bytes_a_token(config: &ModelConfig) -> usize {
    let attention = config.attention;
    [2, config.layers, attention.kv_heads, attention.head_dim, size_of::<f32>()]
        .into_iter()
        .fold(1, usize::saturating_mul)
        .max(1)
}

/// Replaces the context length of a model by the requested length.
pub fn set_context(args: &DecodingArgs, config: &mut ModelConfig, progress: &Progress) -> Result<()> {
    let Some(context) = args.context else { return Ok(()) };
    let own = std::mem::replace(&mut config.context_len, context.get());
    config.validate()?;
    if context.get() > own {
        progress.warn(&format!("--context {context} is longer than the model's context of {own} positions"));
    }
    Ok(())
}

/// The requested pair of target and drafter.
#[derive(Debug)]
pub struct Pair {
    /// The target's directory or GGUF file.
    pub target: PathBuf,
    pub draft: Option<DrafterSource>,
    /// True if the target is the one bundled with the repository.
    pub bundled: bool,
}

impl Pair {
    /// Returns the requested target and drafter, or the bundled pair. Downloads what is named by an id.
    pub fn new(target: Option<PathBuf>, draft: Option<DrafterSource>) -> Result<Self> {
        let draft = match draft {
            Some(DrafterSource::Directory(path)) => Some(DrafterSource::Directory(hub::local(&path)?)),
            draft => draft,
        };
        if let Some(target) = target {
            return Ok(Self { target: hub::local(&target)?, draft, bundled: false });
        }
        let folder = bundled_folder()?;
        let draft = draft.unwrap_or_else(|| DrafterSource::Directory(folder.join("drafter")));
        Ok(Self { target: folder.join("target"), draft: Some(draft), bundled: true })
    }

    /// Returns the requested mode, or the default. The default for the bundled pair is a mode that drafts, at whatever
    /// speed, because it exists to show drafting.
    pub fn mode(&self, asked: Option<ModeChoice>) -> ModeChoice {
        asked.unwrap_or(if self.bundled && !self.looks_up() {
            ModeChoice::Parallel
        } else {
            ModeChoice::Auto
        })
    }

    /// Returns whether drafts are looked up in the text, without a drafter.
    pub fn looks_up(&self) -> bool {
        matches!(self.draft, Some(DrafterSource::Lookup))
    }

    /// Maps the weights of target and drafter into memory, with a target's quantised weights as `quantized` says.
    pub fn load(&self, block_size: Option<usize>, quantized: QuantizedWeights) -> Result<Weights> {
        // SAFETY: other processes cannot be prevented from changing these files, only forbidden to, which the help of
        // --target does; this process does not write to them.
        let ModelWeights { target, drafter: own } =
            unsafe { ModelWeights::map_with(&self.target, quantized) }?;
        let config = &target.config;
        let drafter = match &self.draft {
            None => own,
            Some(DrafterSource::Lookup) => None,
            Some(DrafterSource::Directory(dir)) => {
                // SAFETY: as for the target.
                Some(unsafe { DrafterWeights::map(dir, config) }?)
            }
            &Some(DrafterSource::Random { layers }) => {
                let block_size = match block_size {
                    // A requested block size of 0 is refused later, by the engine; until then the drafter gets a valid
                    // block size.
                    None | Some(0) => RANDOM_BLOCK_SIZE,
                    Some(block_size) => block_size.min(MAX_BLOCK_SIZE),
                };
                let rank = RANDOM_RANK.min(config.hidden_size);
                // Beside blocks, a drafter has the type of trained drafters.
                let quantized = target.embed.block_format().is_some();
                let dtype = if quantized { DType::Bf16 } else { target.embed.dtype() };
                Some(DrafterWeights::random(config, layers, block_size, rank, dtype, RANDOM_SEED)?)
            }
        };
        Ok(Weights { target, drafter })
    }
}

/// The weights of a target and its drafter, in host memory.
#[derive(Debug)]
pub struct Weights {
    pub target: TargetWeights,
    pub drafter: Option<DrafterWeights>,
}

impl Weights {
    /// Returns the warnings of the loaders about the target's files, to print for the user.
    pub fn warnings(&self) -> impl Iterator<Item = &LoadWarning> {
        self.target.warnings.iter()
    }

    pub fn on_device<D: Device>(&self, device: D) -> Result<Model<D>> {
        Ok(Model::new(device, &self.target, self.drafter.as_ref())?)
    }

    /// Returns the size of the target's weights as stored, in bytes: the weights that plain decoding reads for every
    /// token. Excludes the embedding, unless it is also the head.
    pub fn bytes_a_token(&self) -> usize {
        let target = &self.target;
        let layers = target.layers.iter().map(|layer| {
            let linears: usize = [&layer.gate, &layer.up, &layer.down].into_iter().map(linear_bytes).sum();
            linears
                + attention_bytes(&layer.attention)
                + layer.input_norm.byte_len()
                + layer.post_attention_norm.byte_len()
        });
        layers.sum::<usize>() + target.norm.byte_len() + target.lm_head.byte_len()
    }
}

fn linear_bytes(linear: &LinearWeights) -> usize {
    linear.weight.byte_len() + linear.bias.as_ref().map_or(0, Tensor::byte_len)
}

fn attention_bytes(attention: &AttentionWeights) -> usize {
    let norms = attention.qk_norms.as_ref().map_or(0, |(q, k)| q.byte_len() + k.byte_len());
    let linears = [&attention.q, &attention.k, &attention.v, &attention.o];
    linears.into_iter().map(linear_bytes).sum::<usize>() + norms
}

/// Returns the CPU device with the requested threads and precision.
pub fn cpu(threads: usize, precision: Precision) -> Result<Cpu> {
    Ok(Cpu::new(CpuOptions { threads, precision })?)
}

/// Returns the folder of the bundled pair: in the package that `cargo run` runs, around the current directory, or
/// around the executable.
fn bundled_folder() -> Result<PathBuf> {
    let starts = [
        env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
        env::current_dir().ok(),
        env::current_exe().ok(),
    ];
    starts.iter().flatten().find_map(|start| find_bundled(start)).ok_or_else(|| {
        CliError::Usage(format!(
            "cannot find the bundled model ({BUNDLED}) around the current directory or the executable: run from \
             a clone of the repository, or pass --target"
        ))
    })
}

fn find_bundled(start: &Path) -> Option<PathBuf> {
    let folders = start.ancestors().map(|ancestor| ancestor.join(BUNDLED));
    folders.into_iter().find(|folder| folder.join("target").join("config.json").is_file())
}
