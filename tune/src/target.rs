//! The frozen target as candle tensors; it runs over the tokens of transcripts to compute the keys and values
//! of its tail.

use candle_core::{DType, Device, Result, Tensor};
use flexdraft::model::{ModelConfig, TargetWeights};

use crate::attention::{Groups, Heads, Prefix};
use crate::layers::{FrozenLayer, tensor};
use crate::ops::{Rotation, rms_norm, working_type};

/// The target's weights as frozen tensors, which take no gradient.
#[derive(Clone, Debug)]
pub struct FrozenTarget {
    config: ModelConfig,
    embedding: Tensor,
    layers: Vec<FrozenLayer>,
    norm: Tensor,
    lm_head: Tensor,
}

/// The hidden states, keys and values of a transcript's tokens (the clean tokens), which mask rows attend to.
#[derive(Clone, Debug)]
pub struct CleanTokens {
    /// Keys and values of each tail layer.
    pub prefixes: Vec<Prefix>,
    /// The sum over the tokens of the hidden rows that enter the first tail layer, `[hidden]`.
    pub entry_sum: Tensor,
}

impl FrozenTarget {
    /// Converts the runner's weights to tensors on `device`: matrices of `dtype`; everything else, including computed
    /// values, of its [`working_type`].
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn new(weights: &TargetWeights, dtype: DType, device: &Device) -> Result<Self> {
        let config = weights.config.clone();
        if !config.layers_without_rope.is_empty() {
            candle_core::bail!("targets with layers without rotation cannot be tuned");
        }
        let eps = f64::from(config.rms_norm_eps);
        let embedding = tensor(&weights.embed, dtype, device)?;
        let lm_head = match config.tied_embeddings {
            true => embedding.clone(),
            false => tensor(&weights.lm_head, dtype, device)?,
        };
        let layer = |layer| FrozenLayer::new(layer, eps, dtype, device);
        Ok(Self {
            embedding,
            layers: weights.layers.iter().map(layer).collect::<Result<_>>()?,
            norm: tensor(&weights.norm, working_type(dtype), device)?,
            lm_head,
            config,
        })
    }

    /// Returns the target's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the target's last `n` layers.
    pub fn tail(&self, n: usize) -> &[FrozenLayer] {
        &self.layers[self.layers.len().saturating_sub(n)..]
    }

    /// Returns the final norm's weight `[hidden]`.
    pub fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// Returns the token embeddings, `[vocab, hidden]`.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// Returns the LM head, which turns normed rows into logits, `[vocab, hidden]`.
    pub fn lm_head(&self) -> &Tensor {
        &self.lm_head
    }

    /// Returns the embeddings of token ids, `[ids, hidden]`.
    ///
    /// # Errors
    /// Candle's errors: an id outside the vocabulary, out of memory.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?.to_device(self.device())?;
        self.embedding.index_select(&ids, 0)?.to_dtype(self.dtype())
    }

    /// Returns the LM head's rows of token ids, `[ids, hidden]`.
    ///
    /// # Errors
    /// Candle's errors: an id outside the vocabulary, out of memory.
    pub fn lm_head_rows(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?.to_device(self.device())?;
        self.lm_head.index_select(&ids, 0)?.to_dtype(self.dtype())
    }

    /// Returns the head counts, head size and norm epsilon of attention, which all layers share.
    pub fn heads(&self) -> Heads {
        Heads { shape: self.config.attention, eps: f64::from(self.config.rms_norm_eps) }
    }

    /// Returns the rotations of rows at `positions`.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn rotation(&self, positions: &[usize]) -> Result<Rotation> {
        Rotation::new(&self.config.rope, positions, self.dtype(), self.device())
    }

    /// Returns the float type that operands of matrix products are rounded to.
    pub fn compute(&self) -> DType {
        self.embedding.dtype()
    }

    /// Returns the float type of everything but the operands of matrix products.
    pub fn dtype(&self) -> DType {
        working_type(self.compute())
    }

    /// Returns the device that holds the tensors.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Runs the target over `tokens` and returns what mask rows in the last `tail` layers need.
    ///
    /// # Errors
    /// Candle's errors: an id outside the vocabulary, out of memory.
    pub fn read(&self, tokens: &[u32], tail: usize) -> Result<CleanTokens> {
        let heads = self.heads();
        let positions: Vec<usize> = (0..tokens.len()).collect();
        let rotation = self.rotation(&positions)?;
        let groups = [(Groups { len: tokens.len(), prefix: vec![0], causal: true }, None)];
        let first_tail = self.layers.len().saturating_sub(tail);
        let mut x = self.embed(tokens)?;
        let mut entry_sum = x.sum(0)?;
        let mut prefixes = Vec::with_capacity(tail);
        for (index, layer) in self.layers.iter().enumerate() {
            if index == first_tail {
                entry_sum = x.sum(0)?;
            }
            let normed = rms_norm(&x, &layer.input_norm, heads.eps)?;
            let qkv = layer.projectors.qkv.forward(&normed)?;
            let norms = layer.projectors.norms();
            if index >= first_tail {
                prefixes.push(heads.prefix(&qkv, norms, &rotation, self.compute())?);
            }
            // The last layer computes only keys and values: no later layer needs its output.
            if index + 1 < self.layers.len() {
                let attended = heads.attend(&qkv, norms, &rotation, &groups)?;
                x = (x + layer.projectors.o.forward(&attended)?)?;
                x = (&x + layer.mlp(&x)?)?;
            }
        }
        Ok(CleanTokens { prefixes, entry_sum })
    }
}
