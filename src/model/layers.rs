//! The layers of a target and its drafter on a device.

use crate::device::{Chain, ChainScores, Device, DeviceError, LinearPart, QkTransform, Rope};
use crate::model::config::{DrafterKind, ModelConfig};
use crate::model::weights::{
    AttentionWeights, ChainKind, ChainWeights, DrafterWeights, LayerWeights, LinearWeights,
};

/// A decoder layer of the target.
pub(super) struct Layer<D: Device> {
    pub(super) input_norm: D::Vector,
    pub(super) attention: Attention<D>,
    pub(super) post_attention_norm: D::Vector,
    pub(super) gate_up: D::Linear,
    pub(super) down: D::Linear,
}

/// The attention projectors of a layer, from the target or from the drafter.
pub(super) struct Attention<D: Device> {
    pub(super) qkv: D::Linear,
    pub(super) o: D::Linear,
    pub(super) qk_norms: Option<(D::Vector, D::Vector)>,
}

/// A drafter.
pub(super) struct Drafter<D: Device> {
    pub(super) kind: DrafterKind,
    pub(super) block_size: usize,
    pub(super) attention: Vec<Attention<D>>,
    pub(super) mask_embedding: D::Vector,
    pub(super) calibrator: Option<Calibrator<D>>,
    pub(super) chain: Option<ChainLayers<D>>,
}

/// The weights of the calibrator on the device. W1 is split into two halves: the half for the bonus token includes b1
/// and has one product per sequence.
pub(super) struct Calibrator<D: Device> {
    pub(super) rank: usize,
    pub(super) bonus_half: D::Linear,
    pub(super) hidden_half: D::Linear,
    pub(super) output: D::Linear,
}

/// The layers of a chain on the device, which correct the logits of each slot by the token before it.
pub(super) struct ChainLayers<D: Device> {
    pub(super) top_k: usize,
    pub(super) scores: ScoreLayers<D>,
}

/// The layers of each kind of score.
pub(super) enum ScoreLayers<D: Device> {
    Pair { before: D::Linear, after: D::Linear },
    Hidden { before_half: D::Linear, hidden_half: D::Linear, output: D::Linear },
}

fn linear<D: Device>(device: &D, layers: &[&LinearWeights]) -> Result<D::Linear, DeviceError> {
    let parts: Vec<_> =
        layers.iter().map(|layer| LinearPart::new(&layer.weight, layer.bias.as_ref())).collect();
    device.new_linear(&parts)
}

impl<D: Device> Attention<D> {
    /// Loads the projectors onto `device`.
    pub(super) fn new(device: &D, weights: &AttentionWeights) -> Result<Self, DeviceError> {
        let qk_norms = match &weights.qk_norms {
            Some((q, k)) => Some((device.new_vector(q)?, device.new_vector(k)?)),
            None => None,
        };
        Ok(Self {
            qkv: linear(device, &[&weights.q, &weights.k, &weights.v])?,
            o: linear(device, &[&weights.o])?,
            qk_norms,
        })
    }

    /// Returns the operation between the projection to queries and keys and their attention.
    pub(super) fn transform<'a>(
        &'a self,
        config: &ModelConfig,
        rope: &'a Rope,
    ) -> QkTransform<'a, D::Vector> {
        QkTransform {
            shape: config.attention,
            norms: self.qk_norms.as_ref().map(|(q, k)| (q, k)),
            eps: config.rms_norm_eps,
            rope,
        }
    }
}

impl<D: Device> Layer<D> {
    /// Loads a layer onto `device`.
    pub(super) fn new(device: &D, weights: &LayerWeights) -> Result<Self, DeviceError> {
        Ok(Self {
            input_norm: device.new_vector(&weights.input_norm)?,
            attention: Attention::new(device, &weights.attention)?,
            post_attention_norm: device.new_vector(&weights.post_attention_norm)?,
            gate_up: linear(device, &[&weights.gate, &weights.up])?,
            down: linear(device, &[&weights.down])?,
        })
    }
}

impl<D: Device> Drafter<D> {
    /// Loads a drafter onto `device`.
    pub(super) fn new(device: &D, weights: &DrafterWeights, hidden_size: usize) -> Result<Self, DeviceError> {
        let calibrator = match &weights.calibrator {
            None => None,
            Some(calibrator) => {
                let half = |columns, bias| {
                    let part = LinearPart { weight: &calibrator.hidden.weight, columns: Some(columns), bias };
                    device.new_linear(&[part])
                };
                Some(Calibrator {
                    rank: calibrator.hidden.weight.shape().first().copied().unwrap_or(0),
                    bonus_half: half(0..hidden_size, calibrator.hidden.bias.as_ref())?,
                    hidden_half: half(hidden_size..2 * hidden_size, None)?,
                    output: linear(device, &[&calibrator.output])?,
                })
            }
        };
        Ok(Self {
            kind: weights.config.kind,
            block_size: weights.config.block_size,
            attention: weights
                .attention
                .iter()
                .map(|layer| Attention::new(device, layer))
                .collect::<Result<_, _>>()?,
            mask_embedding: device.new_vector(&weights.mask_embedding)?,
            calibrator,
            chain: weights
                .chain
                .as_ref()
                .map(|chain| ChainLayers::new(device, chain, hidden_size))
                .transpose()?,
        })
    }
}

impl<D: Device> ChainLayers<D> {
    /// Loads the layers of a chain onto `device`.
    pub(super) fn new(device: &D, weights: &ChainWeights, hidden_size: usize) -> Result<Self, DeviceError> {
        let scores = match weights.config.kind {
            ChainKind::Pair => ScoreLayers::Pair {
                before: linear(device, &[&weights.first])?,
                after: linear(device, &[&weights.second])?,
            },
            ChainKind::Hidden => {
                let half = |columns| {
                    let weight = &weights.first.weight;
                    device.new_linear(&[LinearPart { weight, columns: Some(columns), bias: None }])
                };
                ScoreLayers::Hidden {
                    before_half: half(0..hidden_size)?,
                    hidden_half: half(hidden_size..2 * hidden_size)?,
                    output: linear(device, &[&weights.second])?,
                }
            }
        };
        Ok(Self { top_k: weights.config.top_k, scores })
    }

    /// Returns the operands for slots with the final-normed hidden rows `rows`.
    pub(super) fn operands<'a>(
        &'a self,
        embed: &'a D::Linear,
        lm_head: &'a D::Linear,
        rows: &'a D::Buffer,
    ) -> Chain<'a, D::Buffer, D::Linear> {
        let scores = match &self.scores {
            ScoreLayers::Pair { before, after } => ChainScores::Pair { before, after },
            ScoreLayers::Hidden { before_half, hidden_half, output } => {
                ChainScores::Hidden { rows, before_half, hidden_half, output, lm_head }
            }
        };
        Chain { scores, top_k: self.top_k, embed }
    }
}
