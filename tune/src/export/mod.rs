//! Writes a trained drafter as files that the engine loads, in the layout of the released checkpoints of its kind.

mod flex_draft;
mod orthrus;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use flexdraft::model::ModelConfig;

pub use self::flex_draft::export;
pub use self::orthrus::OrthrusExport;
use crate::checkpoint::write_whole;
use crate::error::{Result, TuneError};

/// The trained parameters of a drafter by name, as tensors of its checkpoint are made from them.
struct Parameters<'a> {
    /// The file that the tensors go to, which errors name.
    path: &'a Path,
    tensors: &'a HashMap<String, Tensor>,
}

impl Parameters<'_> {
    fn find(&self, name: &str) -> Result<Tensor> {
        let missing =
            || TuneError::File { path: self.path.into(), reason: format!("tensor `{name}` is missing") };
        self.tensors.get(name).ok_or_else(missing)?.to_device(&Device::Cpu).map_err(TuneError::from)
    }

    /// Adds the projectors and norms of `layers` layers to `out`. A tensor's name starts with `prefix`, and the name of its
    /// module ends with `suffix`.
    fn projectors(
        &self,
        target: &ModelConfig,
        layers: usize,
        [prefix, suffix]: [&str; 2],
        out: &mut Stored,
    ) -> Result<()> {
        let attention = target.attention;
        let (q, kv) = (attention.q_heads * attention.head_dim, attention.kv_heads * attention.head_dim);
        for layer in 0..layers {
            let name = |part: &str| format!("layers.{layer}.self_attn.{part}");
            let stored = |part: &str, kind: &str| format!("{prefix}{}{suffix}.{kind}", name(part));
            let kinds: &[&str] = if target.attention_bias { &["weight", "bias"] } else { &["weight"] };
            for kind in kinds {
                let qkv = self.find(&name(&format!("qkv_proj.{kind}")))?;
                for (part, first, rows) in [("q_proj", 0, q), ("k_proj", q, kv), ("v_proj", q + kv, kv)] {
                    out.put(stored(part, kind), &qkv.narrow(0, first, rows)?)?;
                }
                // Some models have biases on q, k and v but not on o, so the bias of o may be missing.
                if self.tensors.contains_key(&name(&format!("o_proj.{kind}"))) {
                    out.put(stored("o_proj", kind), &self.find(&name(&format!("o_proj.{kind}")))?)?;
                }
            }
            if target.architecture.has_qk_norms() {
                for part in ["q_norm", "k_norm"] {
                    out.put(stored(part, "weight"), &self.find(&name(&format!("{part}.weight")))?)?;
                }
            }
        }
        Ok(())
    }
}

/// The tensors of a checkpoint by name, rounded to bf16.
#[derive(Default)]
struct Stored(HashMap<String, Tensor>);

impl Stored {
    fn put(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        self.0.insert(name, tensor.to_dtype(DType::BF16)?.force_contiguous()?);
        Ok(())
    }

    /// Writes the tensors to a safetensors file.
    fn write(&self, path: &Path) -> Result<()> {
        // transformers refuses a file without this entry.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(&self.0, Some(metadata)).map_err(invalid(path))?;
        write_whole(path, &bytes)
    }
}

/// Writes a JSON object to a file.
fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(invalid(path))?;
    write_whole(path, (text + "\n").as_bytes())
}

/// Returns a function that names `path` in an error about its contents.
fn invalid<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> TuneError {
    move |error| TuneError::File { path: path.into(), reason: error.to_string() }
}
