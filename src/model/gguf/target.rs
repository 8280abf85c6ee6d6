//! The weights of a target in a GGUF file.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::Gguf;
use super::config::ROPE_FACTORS;
use super::header::{Header, Stored};
use super::quantization::{Quantization, TensorType};
use crate::model::checkpoint::Bytes;
use crate::model::collector::Collected;
use crate::model::config::{Architecture, ModelConfig};
use crate::model::source::TensorSource;
use crate::model::{LoadError, TargetWeights, json, target};
use crate::tensor::Tensor;

/// Parts of a layer: their names in transformers and in ggml.
const LAYER_PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Takes the weights out of a file.
pub(super) fn collect(file: &Gguf) -> Result<TargetWeights, LoadError> {
    take(file, file.config()?, Problems::First).weights.map_err(|problems| {
        let none =
            || LoadError::Gguf { path: file.path().into(), reason: "its tensors do not make a model".into() };
        problems.into_iter().next().unwrap_or_else(none)
    })
}

/// Which problems are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Problems {
    /// The first one ends it: nothing is dequantised in vain.
    First,
    All,
}

/// Takes the weights of a configuration out of a file; `used` has ggml's names.
pub(super) fn take(file: &Gguf, config: ModelConfig, wanted: Problems) -> Collected<TargetWeights> {
    let architecture = config.architecture;
    let used = file.names().filter(|name| *name == ROPE_FACTORS).map(str::to_owned).collect();
    let mut source = Source { file, config: config.clone(), used, wanted, problems: Vec::new() };
    let weights = target::build(&mut source, "model.", config);
    let Source { used, mut problems, .. } = source;
    problems.extend(file.names().filter(|name| !used.contains(*name)).map(|tensor| {
        LoadError::UnexpectedTensor {
            path: file.path().into(),
            tensor: json::shorten(tensor),
            architecture: architecture.gguf_name(),
        }
    }));
    let weights = match weights {
        Some(weights) if problems.is_empty() => Ok(weights),
        _ => Err(problems),
    };
    Collected { weights, used }
}

/// Hands out the tensors of a file under the names that transformers gives them.
struct Source<'a> {
    file: &'a Gguf,
    config: ModelConfig,
    /// ggml's names of the tensors that were asked for.
    used: BTreeSet<String>,
    wanted: Problems,
    problems: Vec<LoadError>,
}

impl TensorSource for Source<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if self.wanted == Problems::First && !self.problems.is_empty() {
            return None;
        }
        let ggml_name = ggml_name(name);
        let heads = self.permuted_heads(name);
        let tensor = self.file.tensor_of_shape(&ggml_name, shape, heads);
        if self.file.header.contains(&ggml_name) {
            self.used.insert(ggml_name);
        }
        tensor.map_err(|problem| self.problems.push(problem)).ok()
    }
}

impl Source<'_> {
    /// The number of heads whose rows are permuted in a tensor, if they are: `llama` rotates
    /// neighbouring dimensions, so that conversion puts dimension i + head_dim / 2 next to i.
    fn permuted_heads(&self, name: &str) -> Option<usize> {
        let attention = self.config.attention;
        match self.config.architecture {
            Architecture::Llama if name.contains(".q_proj.") => Some(attention.q_heads),
            Architecture::Llama if name.contains(".k_proj.") => Some(attention.kv_heads),
            _ => None,
        }
    }
}

/// ggml's name of a tensor of transformers' `LlamaForCausalLM` or `Qwen3ForCausalLM`.
fn ggml_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let in_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let renamed = in_layer.and_then(|(layer, part)| {
        let (part, kind) = part.rsplit_once('.')?;
        let (_, ggml_part) = LAYER_PARTS.iter().find(|(transformers_part, _)| *transformers_part == part)?;
        Some(format!("blk.{layer}.{ggml_part}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

impl Gguf {
    /// A tensor as it is stored, a quantised one as bf16.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], [`LoadError::UnsupportedQuantization`], [`LoadError::OutOfMemory`].
    pub fn tensor(&self, name: &str) -> Result<Tensor, LoadError> {
        let shape = &self.header.tensor(name)?.shape;
        self.tensor_of_shape(name, shape, None)
    }

    /// A tensor that must have a shape; the permutation of its rows is undone if it has any.
    fn tensor_of_shape(
        &self,
        name: &str,
        shape: &[usize],
        permuted_heads: Option<usize>,
    ) -> Result<Tensor, LoadError> {
        let found = &self.header.tensor(name)?.shape;
        if found != shape {
            return Err(LoadError::Shape {
                path: self.path().into(),
                tensor: name.into(),
                expected: shape.to_vec(),
                found: found.clone(),
            });
        }
        let stored = self.header.stored(name)?;
        let rows = Rows::new(shape, permuted_heads);
        decode(stored, &self.bytes, shape, &rows)
            .ok_or_else(|| LoadError::OutOfMemory { tensor: name.into(), shape: shape.to_vec() })
    }
}

/// Reads the elements of one tensor, without the rest of the data.
pub(super) fn read_alone(header: &Header, name: &str) -> Result<Vec<f32>, LoadError> {
    let io = |source| LoadError::Io { path: header.path().into(), source };
    let shape = &header.tensor(name)?.shape;
    let Stored { kind, bytes } = header.stored(name)?;
    let (mut file, _) = json::open(header.path())?;
    file.seek(SeekFrom::Start(bytes.start as u64)).map_err(io)?;
    let mut read = Vec::new();
    file.take(bytes.len() as u64).read_to_end(&mut read).map_err(io)?;
    if read.len() != bytes.len() {
        return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let stored = Stored { kind: *kind, bytes: 0..read.len() };
    let bytes: Bytes = Arc::new(read);
    decode(&stored, &bytes, shape, &Rows::new(shape, None))
        .map(|tensor| tensor.to_f32())
        .ok_or_else(|| LoadError::OutOfMemory { tensor: name.into(), shape: shape.clone() })
}

/// Which row of a stored tensor is which row of the model's.
struct Rows {
    count: usize,
    columns: usize,
    /// head_dim, where the rows of each head are permuted.
    permuted_head_dim: Option<usize>,
}

impl Rows {
    fn new(shape: &[usize], permuted_heads: Option<usize>) -> Self {
        // A bias [out] has `out` rows of one element: it is permuted like the weight [out, in].
        let (count, columns) = match *shape {
            [count, columns] => (count, columns),
            [count] if permuted_heads.is_some() => (count, 1),
            _ => (1, shape.iter().product()),
        };
        let permuted_head_dim = permuted_heads.map(|heads| count / heads.max(1)).filter(|&dim| dim > 0);
        Self { count, columns, permuted_head_dim }
    }

    /// The stored row that is row `row` of the model.
    fn stored(&self, row: usize) -> usize {
        match self.permuted_head_dim {
            None => row,
            Some(head_dim) => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (part, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + part
            }
        }
    }
}

/// The tensor that bytes of a file are; `None` if there is no memory for it.
fn decode(stored: &Stored, bytes: &Bytes, shape: &[usize], rows: &Rows) -> Option<Tensor> {
    match stored.kind {
        TensorType::Plain(dtype) if rows.permuted_head_dim.is_none() => {
            Tensor::from_bytes(dtype, shape, bytes.clone(), stored.bytes.clone())
        }
        TensorType::Plain(dtype) => {
            let source = (**bytes).as_ref().get(stored.bytes.clone())?;
            let row_bytes = rows.columns * dtype.size();
            let mut permuted = Vec::new();
            permuted.try_reserve_exact(source.len()).ok()?;
            for row in 0..rows.count {
                let start = rows.stored(row) * row_bytes;
                permuted.extend_from_slice(source.get(start..start + row_bytes)?);
            }
            let len = permuted.len();
            Tensor::from_bytes(dtype, shape, Arc::new(permuted), 0..len)
        }
        TensorType::Quantized(format) => {
            let source = (**bytes).as_ref().get(stored.bytes.clone())?;
            Tensor::from_bf16(shape, dequantize(format, source, rows)?)
        }
    }
}

fn dequantize(format: Quantization, source: &[u8], rows: &Rows) -> Option<Vec<bf16>> {
    let row_bytes = TensorType::Quantized(format).row_bytes(rows.columns)?;
    let elements = rows.count.checked_mul(rows.columns)?;
    let mut out = Vec::new();
    out.try_reserve_exact(elements).ok()?;
    out.resize(elements, bf16::ZERO);
    out.par_chunks_mut(rows.columns.max(1)).enumerate().for_each(|(row, out)| {
        let start = rows.stored(row) * row_bytes;
        format.dequantize(source.get(start..start + row_bytes).unwrap_or(&[]), out);
    });
    Some(out)
}
