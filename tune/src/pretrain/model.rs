//! A trainable model of the Qwen3 architecture.

use candle_core::{DType, Device, Result, Tensor, Var};
use flexdraft::model::ModelConfig;

use super::random::SplitMix;
use crate::attention::{Groups, Heads, Prefix};
use crate::layers::{linear, mlp, norm};
use crate::loss::{Factor, Labels, Prediction, cross_entropy};
use crate::ops::Rotation;
use crate::optimizer::Parameter;

/// Standard deviation of the initial matrices, as transformers initialises Qwen3.
const INITIAL_STD: f64 = 0.02;

/// A decoder layer's weights.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// `[hidden]`
    pub(super) input_norm: Var,
    /// The q, k and v projections side by side, `[(q_heads + 2 · kv_heads) · head_dim, hidden]`.
    pub(super) qkv: Var,
    /// `[head_dim]`
    pub(super) q_norm: Var,
    /// `[head_dim]`
    pub(super) k_norm: Var,
    /// The output projection of attention, `[hidden, q_heads · head_dim]`.
    pub(super) o: Var,
    /// `[hidden]`
    pub(super) post_attention_norm: Var,
    /// The gate and up projections side by side, `[2 · intermediate, hidden]`.
    pub(super) gate_up: Var,
    /// The down projection, `[hidden, intermediate]`.
    pub(super) down: Var,
}

/// A Qwen3 model whose embedding is also its LM head.
#[derive(Clone, Debug)]
pub struct PretrainModel {
    heads: Heads,
    /// Token embeddings and LM head, `[vocab, hidden]`.
    pub(super) embedding: Var,
    pub(super) layers: Vec<Layer>,
    /// `[hidden]`
    pub(super) norm: Var,
}

/// The row layout of a training batch: windows of one length, one after the other.
#[derive(Clone, Debug)]
pub struct BatchLayout {
    rotation: Rotation,
    groups: [(Groups, Option<Prefix>); 1],
}

impl PretrainModel {
    /// Creates a model with random weights: normal with standard deviation 0.02, divided by √(2 · layers) for matrices
    /// whose results are added to the residual stream (GPT-2); norms are 1.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn random(config: &ModelConfig, dtype: DType, device: &Device, seed: u64) -> Result<Self> {
        let mut tensors = 0;
        let mut matrix = |out: usize, columns: usize, std: f64| {
            tensors += 1;
            let mut random = SplitMix::new(seed, tensors);
            let values: Vec<f64> = (0..out * columns).map(|_| std * random.normal()).collect();
            let values = Tensor::from_vec(values, (out, columns), &Device::Cpu)?;
            Var::from_tensor(&values.to_dtype(dtype)?.to_device(device)?)
        };
        let norm = |n: usize| Var::ones(n, dtype, device);
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let shape = config.attention;
        let q_columns = shape.q_heads * shape.head_dim;
        let added_std = INITIAL_STD / ((2 * config.layers) as f64).sqrt();
        let embedding = matrix(config.vocab_size, hidden, INITIAL_STD)?;
        let layers = (0..config.layers).map(|_| {
            Ok(Layer {
                input_norm: norm(hidden)?,
                qkv: matrix(q_columns + 2 * shape.kv_heads * shape.head_dim, hidden, INITIAL_STD)?,
                q_norm: norm(shape.head_dim)?,
                k_norm: norm(shape.head_dim)?,
                o: matrix(hidden, q_columns, added_std)?,
                post_attention_norm: norm(hidden)?,
                gate_up: matrix(2 * intermediate, hidden, INITIAL_STD)?,
                down: matrix(hidden, intermediate, added_std)?,
            })
        });
        Ok(Self {
            heads: Heads { shape, eps: f64::from(config.rms_norm_eps) },
            embedding,
            layers: layers.collect::<Result<_>>()?,
            norm: norm(hidden)?,
        })
    }

    /// Returns all trained parameters. Norms have no weight decay.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter =
            |name: String, var: &Var| Parameter { name, var: var.clone(), decays: var.rank() > 1, rate: 1.0 };
        let mut parameters = vec![parameter("embedding".into(), &self.embedding)];
        for (i, layer) in self.layers.iter().enumerate() {
            let vars = [
                ("input_norm", &layer.input_norm),
                ("qkv", &layer.qkv),
                ("q_norm", &layer.q_norm),
                ("k_norm", &layer.k_norm),
                ("o", &layer.o),
                ("post_attention_norm", &layer.post_attention_norm),
                ("gate_up", &layer.gate_up),
                ("down", &layer.down),
            ];
            parameters
                .extend(vars.into_iter().map(|(name, var)| parameter(format!("layers.{i}.{name}"), var)));
        }
        parameters.push(parameter("norm".into(), &self.norm));
        parameters
    }

    /// Returns the row layout of `count` windows of `window` tokens.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn layout(&self, config: &ModelConfig, window: usize, count: usize) -> Result<BatchLayout> {
        let positions: Vec<usize> = (0..count).flat_map(|_| 0..window).collect();
        let rotation =
            Rotation::new(&config.rope, &positions, self.embedding.dtype(), self.embedding.device())?;
        // All windows are groups of one sequence and share its products: groups without a prefix are computed
        // like separate sequences.
        let groups = Groups { len: window, prefix: vec![0; count], causal: true };
        Ok(BatchLayout { rotation, groups: [(groups, None)] })
    }

    /// Returns the hidden rows `[rows, hidden]` of the tokens `ids`, after the final norm.
    ///
    /// # Errors
    /// Candle's errors: ids outside the vocabulary, a number of ids that does not match the layout, out of memory.
    pub fn forward(&self, ids: &[u32], layout: &BatchLayout) -> Result<Tensor> {
        let ids = Tensor::new(ids, self.embedding.device())?;
        let mut x = self.embedding.as_tensor().index_select(&ids, 0)?;
        let eps = self.heads.eps;
        for layer in &self.layers {
            let dtype = x.dtype();
            let qkv = linear(&norm(&x, &layer.input_norm, eps)?, &layer.qkv, dtype)?;
            let norms = Some((layer.q_norm.as_tensor(), layer.k_norm.as_tensor()));
            let attended = self.heads.attend(&qkv, norms, &layout.rotation, &layout.groups)?;
            x = (x + linear(&attended, &layer.o, dtype)?)?;
            let normed = norm(&x, &layer.post_attention_norm, eps)?;
            x = (x + mlp(&normed, &layer.gate_up, &layer.down)?)?;
        }
        norm(&x, &self.norm, eps)
    }

    /// Returns the mean cross-entropy of predicting `next` after `ids`, and each row's prediction.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn loss(&self, ids: &[u32], next: &[u32], layout: &BatchLayout) -> Result<(Tensor, Vec<Prediction>)> {
        let x = self.forward(ids, layout)?;
        let labels = Labels { ids: next.to_vec(), weights: vec![1.0 / next.len() as f32; next.len()] };
        cross_entropy(None, Some(Factor::new(&x, self.embedding.as_tensor())), &labels)
    }

    /// Returns the mean cross-entropy of predicting `next` after `ids`, without gradients.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn mean_loss(&self, ids: &[u32], next: &[u32], layout: &BatchLayout) -> Result<f64> {
        let x = self.forward(ids, layout)?.detach();
        let labels = Labels { ids: next.to_vec(), weights: vec![1.0; next.len()] };
        let head = self.embedding.as_detached_tensor();
        let (_, predictions) = cross_entropy(Some(Factor::new(&x, &head)), None, &labels)?;
        let sum: f64 = predictions.iter().map(|prediction| prediction.loss).sum();
        Ok(sum / next.len().max(1) as f64)
    }
}
