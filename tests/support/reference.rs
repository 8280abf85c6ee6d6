//! Weights of the tests' models and parameters of requests for the reference, widened to f64.

use flexdraft::decode::MaskProvider;
use flexdraft::model::weights::{
    AttentionWeights, ChainKind, ChainWeights, DrafterWeights, LinearWeights, TargetWeights,
};
use flexdraft::processors::LogitProcessors;
use flexdraft::tensor::Tensor;
use flexdraft_reference::attention::Heads;
use flexdraft_reference::calibration::Calibrator;
use flexdraft_reference::chain::{Chain, ChainScores};
use flexdraft_reference::linear::Linear;
use flexdraft_reference::model::{Drafter, DrafterKind, Layer, Projectors, Target};
use flexdraft_reference::process::{Processors, RowMask};
use flexdraft_reference::rope::Rope;

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f32().into_iter().map(f64::from).collect()
}

fn linear(layer: &LinearWeights) -> Linear<f64> {
    Linear {
        weight: values(&layer.weight),
        bias: layer.bias.as_ref().map(values),
        inputs: layer.weight.shape()[1],
    }
}

fn projectors(attention: &AttentionWeights) -> Projectors<f64> {
    Projectors {
        q: linear(&attention.q),
        k: linear(&attention.k),
        v: linear(&attention.v),
        o: linear(&attention.o),
        qk_norms: attention.qk_norms.as_ref().map(|(q, k)| (values(q), values(k))),
    }
}

pub fn target(weights: &TargetWeights) -> Target<f64> {
    let config = &weights.config;
    let layers = weights.layers.iter().map(|layer| Layer {
        input_norm: values(&layer.input_norm),
        attention: projectors(&layer.attention),
        post_attention_norm: values(&layer.post_attention_norm),
        gate: linear(&layer.gate),
        up: linear(&layer.up),
        down: linear(&layer.down),
    });
    Target {
        heads: Heads {
            q_heads: config.attention.q_heads,
            kv_heads: config.attention.kv_heads,
            head_dim: config.attention.head_dim,
        },
        rope: Rope { inv_freq: config.rope.inv_freq.clone(), scale: config.rope.scale },
        rms_norm_eps: f64::from(config.rms_norm_eps),
        embed: values(&weights.embed),
        layers: layers.collect(),
        norm: values(&weights.norm),
        lm_head: Linear::new(values(&weights.lm_head), config.hidden_size),
    }
}

pub fn drafter(weights: &DrafterWeights) -> Drafter<f64> {
    Drafter {
        kind: match weights.config.kind {
            flexdraft::model::DrafterKind::FlexDraft => DrafterKind::FlexDraft,
            flexdraft::model::DrafterKind::Orthrus => DrafterKind::Orthrus,
        },
        attention: weights.attention.iter().map(projectors).collect(),
        mask_embedding: values(&weights.mask_embedding),
        calibrator: weights.calibrator.as_ref().map(|calibrator| Calibrator {
            hidden: linear(&calibrator.hidden),
            output: linear(&calibrator.output),
        }),
        chain: weights.chain.as_ref().map(chain),
    }
}

fn chain(weights: &ChainWeights) -> Chain<f64> {
    let (first, second) = (linear(&weights.first), linear(&weights.second));
    let scores = match weights.config.kind {
        ChainKind::Pair => ChainScores::Pair { before: first, after: second },
        ChainKind::Hidden => ChainScores::Hidden { hidden: first, output: second },
    };
    Chain { scores, top_k: weights.config.top_k }
}

/// Returns the reference's form of logit processors and of a mask provider's masks.
pub fn processors(processors: &LogitProcessors, row_mask: Option<RowMask>) -> Processors {
    Processors {
        repetition_penalty: f64::from(processors.repetition_penalty),
        frequency_penalty: f64::from(processors.frequency_penalty),
        presence_penalty: f64::from(processors.presence_penalty),
        bias: processors.logit_bias.iter().map(|(&id, &bias)| (id, f64::from(bias))).collect(),
        min_tokens: processors.min_tokens,
        bad_words: processors.bad_words.clone(),
        mask: processors.allowed.as_deref().map(<[u32]>::to_vec),
        row_mask,
    }
}

/// Returns the provider of the masks that `row_mask` makes.
pub fn mask_provider(row_mask: RowMask) -> Box<dyn MaskProvider> {
    Box::new(move |prompt: &[u32], output: &[u32], draft: &[u32], masks: &mut [u32]| {
        let words = masks.len() / (draft.len() + 1);
        for (i, mask) in masks.chunks_exact_mut(words).enumerate() {
            mask.copy_from_slice(&row_mask(&[prompt, output, &draft[..i]].concat()));
        }
        Ok(())
    })
}
