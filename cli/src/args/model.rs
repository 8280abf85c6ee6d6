//! Arguments that name a model, its drafter and the device that runs both.

use std::path::PathBuf;

use clap::Args;
use flexdraft::device::gpu::CudaOptions;

use super::{DeviceChoice, DrafterSource, Dtype, ProductsChoice, WeightsChoice};

#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// The model: a Hugging Face directory with config.json and safetensors, a GGUF file, or an id such as Qwen/Qwen3-8B.
    ///
    /// An id, OWNER/NAME or OWNER/NAME@REVISION, is downloaded from the Hugging Face Hub into the cache that Python's
    /// huggingface_hub uses. A path that exists wins over an id.
    ///
    /// The command maps the files into memory; they must not change while it runs. [default: the bundled pair
    /// demo/tiny, which is searched for in the directory of the process, in the directory of the executable, and in
    /// their parents]
    #[arg(long, value_name = "DIR|FILE.gguf|ID", help_heading = "Model")]
    pub target: Option<PathBuf>,
    /// The drafter: a directory, an id, `random:N` for a random drafter of N layers that fits the target, or `lookup`.
    ///
    /// `lookup` needs no drafter: it proposes the tokens that followed an earlier occurrence of the text's last tokens.
    /// For a directory of this name, write `./lookup`. A random drafter has blocks of 16 tokens, or of --block-size
    /// tokens. Without a drafter only `--mode ar` runs. [default: the bundled drafter for the bundled target, the
    /// target's own for an Orthrus model, otherwise none]
    #[arg(long, value_name = "DIR|ID|random:N|lookup", help_heading = "Model")]
    pub draft: Option<DrafterSource>,
    /// Device that runs the model; `auto` takes the first GPU that passes a self-test, or else the CPU
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto", help_heading = "Model")]
    pub device: DeviceChoice,
    /// Algorithms for matrix products on a GPU; `any` is for comparing speed, and is not lossless
    #[arg(long, value_enum, default_value_t, value_name = "ALGORITHMS", help_heading = "Model")]
    pub products: ProductsChoice,
    /// Launch every kernel on a GPU individually, instead of running repeated steps as CUDA graphs. The option changes
    /// no result
    #[arg(long, help_heading = "Model")]
    pub no_graphs: bool,
    /// Let no kernel on a GPU begin before the previous kernel has ended. The option changes no result
    #[arg(long, help_heading = "Model")]
    pub no_dependent_launches: bool,
    /// Rounding of activations on the CPU. Each choice gives a slightly different target; decoding is lossless for each
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: Dtype,
    /// Quantised weights of a GGUF file: keep them, or convert them to bf16 [default: keep on the CPU, bf16 on a GPU]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Model")]
    pub weights: Option<WeightsChoice>,
    /// Number of CPU threads; 0 takes one per core. The number changes no result
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,
}

impl ModelArgs {
    /// Returns the options of a device on CUDA.
    pub fn cuda_options(&self) -> CudaOptions {
        CudaOptions {
            algorithms: self.products.into(),
            graphs: !self.no_graphs,
            dependent_launches: !self.no_dependent_launches,
        }
    }
}
