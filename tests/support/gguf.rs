//! A writer of GGUF files for tests, valid or not.

use std::path::Path;

use flexdraft::model::{Gguf, LoadError};

/// A value in the metadata of a GGUF file.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A value of any type, given by its type number and its bytes.
    Raw(u32, Vec<u8>),
}

impl Value {
    pub fn texts(texts: &[&str]) -> Self {
        Self::Texts(texts.iter().map(|&text| text.into()).collect())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, element: u32, len: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(element.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        let scalar = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U32(x) => scalar(out, 4, &x.to_le_bytes()),
            Self::I32(x) => scalar(out, 5, &x.to_le_bytes()),
            Self::F32(x) => scalar(out, 6, &x.to_le_bytes()),
            Self::Bool(x) => scalar(out, 7, &[u8::from(*x)]),
            Self::Text(text) => {
                out.extend(8u32.to_le_bytes());
                write_text(out, text);
            }
            Self::Texts(texts) => {
                array(out, 8, texts.len());
                texts.iter().for_each(|text| write_text(out, text));
            }
            Self::I32s(numbers) => {
                array(out, 5, numbers.len());
                numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            Self::F32s(numbers) => {
                array(out, 6, numbers.len());
                numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            Self::Raw(kind, bytes) => scalar(out, *kind, bytes),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.bytes());
}

/// A tensor as the header describes it; its data in the file are zeros.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub name: String,
    /// Dimensions of the tensor, outermost first.
    pub shape: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

/// The contents of a GGUF file to write.
#[derive(Clone)]
pub struct File {
    pub version: u32,
    pub pairs: Vec<(String, Value)>,
    pub tensors: Vec<TensorInfo>,
    /// The bytes of the tensors' data.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { version, pairs, tensors, data } = self;
        write!(f, "version {version}, {pairs:?}, {tensors:?}, {} bytes", data.len())
    }
}

impl File {
    /// Returns a `llama` model with two heads, zero weights, and a byte-level tokenizer of four tokens.
    pub fn llama() -> Self {
        let mut file = Self { version: 3, pairs: Vec::new(), tensors: Vec::new(), data: Vec::new() };
        for (key, value) in [
            ("general.architecture", "llama".into()),
            ("llama.block_count", Value::U32(1)),
            ("llama.context_length", Value::U32(64)),
            ("llama.embedding_length", Value::U32(8)),
            ("llama.feed_forward_length", Value::U32(12)),
            ("llama.attention.head_count", Value::U32(2)),
            ("llama.attention.head_count_kv", Value::U32(1)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.pre", "gpt-2".into()),
            ("tokenizer.ggml.tokens", Value::texts(&["a", "b", "ab", "<end>"])),
            ("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1, 3])),
            ("tokenizer.ggml.merges", Value::texts(&["a b"])),
            ("tokenizer.ggml.eos_token_id", Value::U32(3)),
        ] {
            file.pairs.push((key.into(), value));
        }
        for (name, shape) in [
            ("token_embd", vec![4, 8]),
            ("output_norm", vec![8]),
            ("blk.0.attn_norm", vec![8]),
            ("blk.0.attn_q", vec![8, 8]),
            ("blk.0.attn_k", vec![4, 8]),
            ("blk.0.attn_v", vec![4, 8]),
            ("blk.0.attn_output", vec![8, 8]),
            ("blk.0.ffn_norm", vec![8]),
            ("blk.0.ffn_gate", vec![12, 8]),
            ("blk.0.ffn_up", vec![12, 8]),
            ("blk.0.ffn_down", vec![8, 12]),
        ] {
            file.add(&format!("{name}.weight"), &shape);
        }
        file
    }

    /// Adds an F32 tensor to the file.
    pub fn add(&mut self, name: &str, shape: &[u64]) {
        let offset = self.data.len() as u64;
        self.tensors.push(TensorInfo { name: name.into(), shape: shape.to_vec(), kind: 0, offset });
        let len = 4 * shape.iter().product::<u64>() as usize;
        self.data.resize(self.data.len() + len.next_multiple_of(32), 0);
    }

    /// Adds a tensor of the given type with its bytes to the file.
    pub fn add_bytes(&mut self, name: &str, shape: &[u64], kind: u32, bytes: &[u8]) {
        let offset = self.data.len() as u64;
        self.tensors.push(TensorInfo { name: name.into(), shape: shape.to_vec(), kind, offset });
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    pub fn tensor(&mut self, name: &str) -> &mut TensorInfo {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// Sets a metadata key, or adds it.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.pairs.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key.into(), value)),
        }
    }

    pub fn remove(&mut self, key: &str) {
        self.pairs.retain(|(other, _)| other != key);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            write_text(&mut out, key);
            value.write(&mut out);
        }
        for TensorInfo { name, shape, kind, offset } in &self.tensors {
            write_text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    pub fn open(&self) -> Result<Gguf, LoadError> {
        Gguf::from_bytes(Path::new("model.gguf"), self.bytes())
    }
}
