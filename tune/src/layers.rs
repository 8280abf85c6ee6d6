//! The parts of a decoder layer, frozen and trained, and the conversion of the target's weights to tensors.

use candle_core::{DType, Device, Result, Tensor};
use flexdraft::model::weights::{AttentionWeights, LayerWeights, LinearWeights};
use flexdraft::tensor::Tensor as Weights;

use crate::graph;
use crate::ops::{product, rms_norm, rms_norm_backward, silu_mul, silu_mul_backward, working_type};

/// Converts weights of the runner to a candle tensor.
///
/// # Errors
/// Candle's errors: out of memory.
pub fn tensor(weights: &Weights, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::from_vec(weights.to_f32(), weights.shape(), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Computes RMSNorm with a frozen weight.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn frozen_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let operand = x.detach();
    let value = rms_norm(&operand, weight, eps)?;
    let weight = weight.clone();
    graph::unary("frozen norm", x, value, move |gradient| {
        Ok(rms_norm_backward(&operand, &weight, eps, gradient, false)?.0)
    })
}

/// Computes x · weightᵀ for `x` `[rows, in]` and `weight` `[out, in]`, multiplied by [`product`]. Gradients flow to
/// both.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn linear(x: &Tensor, weight: &Tensor, compute: DType) -> Result<Tensor> {
    let operand = x.detach();
    let w = weight.detach().to_dtype(compute)?;
    let value = product(&operand, &w.t()?, compute)?;
    graph::binary("linear", [x, weight], value, move |gradient| {
        Ok([product(gradient, &w, compute)?, product(&gradient.t()?, &operand, compute)?])
    })
}

/// Computes x · weightᵀ for frozen rows `x` `[rows, in]`, multiplied by [`product`]. Gradients flow to `weight`
/// `[out, in]` alone.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn frozen_rows(x: &Tensor, weight: &Tensor, compute: DType) -> Result<Tensor> {
    let operand = x.detach();
    let value = product(&operand, &weight.detach().t()?, compute)?;
    graph::unary("frozen rows", weight, value, move |gradient| product(&gradient.t()?, &operand, compute))
}

/// Computes RMSNorm with a trained weight.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (operand, w) = (x.detach(), weight.detach());
    let value = rms_norm(&operand, &w, eps)?;
    graph::binary("norm", [x, weight], value, move |gradient| {
        let (dx, dw) = rms_norm_backward(&operand, &w, eps, gradient, true)?;
        Ok([dx, dw.ok_or_else(|| candle_core::Error::msg("a norm's weight without its gradient"))?])
    })
}

/// Computes the SwiGLU MLP of normed rows; all its weights are trained. It is one node, so that the wide rows between
/// its products stay inside it.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (operand, w_in, w_out) = (x.detach(), gate_up.detach(), down.detach());
    let wide = operand.matmul(&w_in.t()?)?;
    let activated = silu_mul(&wide)?;
    let value = activated.matmul(&w_out.t()?)?;
    graph::ternary("MLP", [x, gate_up, down], value, move |gradient| {
        let d_out = gradient.t()?.matmul(&activated)?;
        let d_wide = silu_mul_backward(&wide, &gradient.matmul(&w_out)?)?;
        Ok([d_wide.matmul(&w_in)?, d_wide.t()?.matmul(&operand)?, d_out])
    })
}

/// A linear layer `[out, in]` with an optional bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The weight matrix, `[out, in]`.
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
    /// The type that operands of the layer's product are rounded to. Frozen weights are stored in this type; trained
    /// weights keep full precision between steps.
    pub compute: DType,
}

impl Linear {
    /// Fuses layers with the same input into one layer with weights of `dtype`, whose output has their outputs side by
    /// side.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn fused(parts: &[&LinearWeights], dtype: DType, device: &Device) -> Result<Self> {
        let weights: Vec<Tensor> =
            parts.iter().map(|part| tensor(&part.weight, dtype, device)).collect::<Result<_>>()?;
        let biases: Vec<Tensor> = parts
            .iter()
            .filter_map(|part| part.bias.as_ref())
            .map(|bias| tensor(bias, working_type(dtype), device))
            .collect::<Result<_>>()?;
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        Ok(Self { weight: Tensor::cat(&weights, 0)?, bias, compute: dtype })
    }

    /// Computes x · weightᵀ + bias; gradients flow to `x`, weight and bias.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = linear(x, &self.weight, self.compute)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// The attention projectors of a layer: linear layers for queries, keys, values and output.
#[derive(Clone, Debug)]
pub struct Projectors {
    /// The q, k and v projections side by side, `[(q_heads + 2 · kv_heads) · head_dim, hidden]`.
    pub qkv: Linear,
    /// The output projection, `[hidden, q_heads · head_dim]`.
    pub o: Linear,
    /// Weights `[head_dim]` of the norms of queries and keys (Qwen3).
    pub qk_norms: Option<(Tensor, Tensor)>,
}

impl Projectors {
    /// Converts the runner's attention weights to tensors: matrices of `dtype`, the rest of its [`working_type`].
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn new(weights: &AttentionWeights, dtype: DType, device: &Device) -> Result<Self> {
        let qk_norms = match &weights.qk_norms {
            Some((q, k)) => {
                let norm = |weights| tensor(weights, working_type(dtype), device);
                Some((norm(q)?, norm(k)?))
            }
            None => None,
        };
        Ok(Self {
            qkv: Linear::fused(&[&weights.q, &weights.k, &weights.v], dtype, device)?,
            o: Linear::fused(&[&weights.o], dtype, device)?,
            qk_norms,
        })
    }

    /// Returns the weights of the norms of queries and keys, as [`Heads::attend`](crate::attention::Heads::attend)
    /// takes them.
    pub fn norms(&self) -> Option<(&Tensor, &Tensor)> {
        self.qk_norms.as_ref().map(|(q, k)| (q, k))
    }
}

/// A frozen decoder layer of the target.
#[derive(Clone, Debug)]
pub struct FrozenLayer {
    /// `[hidden]`
    pub input_norm: Tensor,
    /// The target's own attention projectors.
    pub projectors: Projectors,
    /// `[hidden]`
    pub post_attention_norm: Tensor,
    /// The gate and up projections side by side, `[2 · intermediate, hidden]`.
    pub gate_up: Linear,
    /// The down projection, `[hidden, intermediate]`.
    pub down: Linear,
    eps: f64,
}

impl FrozenLayer {
    /// Converts the runner's weights of a layer to tensors: matrices of `dtype`, the rest of its [`working_type`].
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn new(weights: &LayerWeights, eps: f64, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self {
            input_norm: tensor(&weights.input_norm, working_type(dtype), device)?,
            projectors: Projectors::new(&weights.attention, dtype, device)?,
            post_attention_norm: tensor(&weights.post_attention_norm, working_type(dtype), device)?,
            gate_up: Linear::fused(&[&weights.gate, &weights.up], dtype, device)?,
            down: Linear::fused(&[&weights.down], dtype, device)?,
            eps,
        })
    }

    /// Returns the MLP's contribution to `x` `[rows, hidden]`, including the norm before it. Gradients flow to `x`
    /// alone.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        let operand = x.detach();
        let normed = rms_norm(&operand, &self.post_attention_norm, self.eps)?;
        let gate_up = self.gate_up.forward(&normed)?;
        let value = self.down.forward(&silu_mul(&gate_up)?)?;
        let layer = self.clone();
        graph::unary("frozen MLP", x, value, move |gradient| {
            let activated = product(gradient, &layer.down.weight, layer.down.compute)?;
            let wide = silu_mul_backward(&gate_up, &activated)?;
            let normed = product(&wide, &layer.gate_up.weight, layer.gate_up.compute)?;
            Ok(rms_norm_backward(&operand, &layer.post_attention_norm, layer.eps, &normed, false)?.0)
        })
    }
}
