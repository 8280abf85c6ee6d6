//! From `--target`, `--draft` and `--device` to a model that runs.

use std::env;
use std::path::{Path, PathBuf};

use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{Device, Precision};
use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::model::forward::Model;
use flexdraft::model::weights::{AttentionWeights, DrafterWeights, LinearWeights, TargetWeights};
use flexdraft::tensor::Tensor;

use crate::args::{DrafterSource, ModeChoice};
use crate::error::{CliError, Result};

/// Where the bundled pair lies in the repository.
const BUNDLED: &str = "demo/tiny";

/// S of a random drafter, unless another one is asked for: that of the released drafters.
const RANDOM_BLOCK_SIZE: usize = 16;

/// Calibrator rank of a random drafter, for targets that are not smaller than that.
const RANDOM_RANK: usize = 512;

/// Random drafters are the same in every run.
const RANDOM_SEED: u64 = 0;

/// The pair that was asked for.
#[derive(Debug)]
pub struct Pair {
    /// The target's directory or GGUF file.
    pub target: PathBuf,
    pub draft: Option<DrafterSource>,
    /// Whether the target is the one that comes with the repository.
    pub bundled: bool,
}

impl Pair {
    /// The target and drafter, or the pair that comes with the repository.
    pub fn new(target: Option<PathBuf>, draft: Option<DrafterSource>) -> Result<Self> {
        if let Some(target) = target {
            return Ok(Self { target, draft, bundled: false });
        }
        let folder = bundled_folder()?;
        let draft = draft.unwrap_or_else(|| DrafterSource::Directory(folder.join("drafter")));
        Ok(Self { target: folder.join("target"), draft: Some(draft), bundled: true })
    }

    /// The mode, where none was asked for: the bundled pair is there to show drafting, whatever it costs.
    pub fn mode(&self, asked: Option<ModeChoice>) -> ModeChoice {
        asked.unwrap_or(if self.bundled { ModeChoice::Parallel } else { ModeChoice::Auto })
    }

    /// Maps the weights.
    pub fn load(&self, block_size: Option<usize>) -> Result<Weights> {
        // SAFETY: a change of these files by another process cannot be ruled out, only forbidden, which the help of
        // --target does; this process does not write to them.
        let target = unsafe { TargetWeights::map(&self.target) }?;
        let config = &target.config;
        let drafter = match &self.draft {
            None => None,
            Some(DrafterSource::Directory(dir)) => {
                // SAFETY: as for the target.
                Some(unsafe { DrafterWeights::map(dir, config) }?)
            }
            &Some(DrafterSource::Random { layers }) => {
                let block_size = match block_size {
                    // 0 is refused with the request.
                    None | Some(0) => RANDOM_BLOCK_SIZE,
                    Some(block_size) => block_size.min(MAX_BLOCK_SIZE),
                };
                let rank = RANDOM_RANK.min(config.hidden_size);
                let dtype = target.embed.dtype();
                Some(DrafterWeights::random(config, layers, block_size, rank, dtype, RANDOM_SEED)?)
            }
        };
        Ok(Weights { target, drafter })
    }
}

/// A pair's weights on the host.
#[derive(Debug)]
pub struct Weights {
    pub target: TargetWeights,
    pub drafter: Option<DrafterWeights>,
}

impl Weights {
    pub fn on_device<D: Device>(&self, device: D) -> Result<Model<D>> {
        Ok(Model::new(device, &self.target, self.drafter.as_ref())?)
    }

    /// Bytes of the target's weights as stored, the embedding left out unless it is the head: what
    /// every token of plain decoding reads.
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

/// The CPU, as it was asked for.
pub fn cpu(threads: usize, precision: Precision) -> Result<Cpu> {
    Ok(Cpu::new(CpuOptions { threads, precision })?)
}

/// The bundled pair's folder: in the package that `cargo run` runs, or around the current directory
/// or the executable.
fn bundled_folder() -> Result<PathBuf> {
    let starts = [
        env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
        env::current_dir().ok(),
        env::current_exe().ok(),
    ];
    starts.iter().flatten().find_map(|start| find_bundled(start)).ok_or_else(|| {
        CliError::Usage(format!(
            "the bundled model ({BUNDLED}) is not around the current directory or the executable: \
             run from a clone of the repository, or pass --target"
        ))
    })
}

fn find_bundled(start: &Path) -> Option<PathBuf> {
    let folders = start.ancestors().map(|ancestor| ancestor.join(BUNDLED));
    folders.into_iter().find(|folder| folder.join("target").join("config.json").is_file())
}
