//! Small random targets and drafters of every shape that the loaders support.

use flexdraft::decode::Mode;
use flexdraft::device::{AttentionShape, Rope};
use flexdraft::model::config::{Architecture, DrafterConfig, DrafterKind, ModelConfig};
use flexdraft::model::weights::{
    AttentionWeights, CalibratorWeights, ChainConfig, ChainKind, ChainWeights, DrafterWeights, LayerWeights,
    LinearWeights, TargetWeights,
};
use flexdraft::tensor::{DType, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;

use super::noise::SplitMix;

/// The shape of a random model.
#[derive(Clone, Debug)]
pub struct Spec {
    pub architecture: Architecture,
    pub kind: DrafterKind,
    pub layers: usize,
    pub tail: usize,
    pub kv_heads: usize,
    pub q_per_kv: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub block_size: usize,
    pub rank: Option<usize>,
    pub chain: Option<ChainSpec>,
    pub bias: bool,
    pub tied: bool,
    pub dtype: DType,
    pub context_len: usize,
    pub seed: u64,
    /// Scale of the LM head's rows, which determines how peaked the distributions are.
    pub gain: f32,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            architecture: Architecture::Qwen3,
            kind: DrafterKind::FlexDraft,
            layers: 3,
            tail: 2,
            kv_heads: 2,
            q_per_kv: 2,
            head_dim: 8,
            hidden: 24,
            vocab: 29,
            block_size: 5,
            rank: Some(6),
            chain: None,
            bias: false,
            tied: false,
            dtype: DType::F32,
            context_len: 512,
            seed: 1,
            gain: 3.0,
        }
    }
}

/// The kind and sizes of a random chain.
#[derive(Clone, Copy, Debug)]
pub struct ChainSpec {
    pub kind: ChainKind,
    pub rank: usize,
    pub top_k: usize,
}

/// The shapes from which random models are made.
#[derive(Clone, Copy, Debug)]
pub struct Shapes {
    pub most_layers: usize,
    pub head_dims: &'static [usize],
    pub hidden: &'static [usize],
    pub largest_block: usize,
    pub ranks: &'static [usize],
    pub dtypes: &'static [DType],
    /// The number that divides the ranks of chains (Chained Calibration).
    pub chain_ranks: usize,
}

impl Shapes {
    /// The shapes of any small model.
    pub const SMALL: Self = Shapes {
        most_layers: 3,
        head_dims: &[4, 8, 10, 16],
        hidden: &[8, 17, 24],
        largest_block: 7,
        ranks: &[1, 2, 3, 4, 5, 6],
        dtypes: &[DType::F32, DType::F16, DType::Bf16],
        chain_ranks: 1,
    };

    /// The shapes of small models that the kernels support.
    pub const OF_KERNELS: Self = Shapes {
        most_layers: 2,
        head_dims: &[64, 128],
        hidden: &[8, 24, 32],
        largest_block: 5,
        ranks: &[8, 16],
        dtypes: &[DType::Bf16],
        chain_ranks: 8,
    };
}

prop_compose! {
    fn chain()(pair in any::<bool>(), rank in 1usize..6, top_k in 1usize..12) -> ChainSpec {
        ChainSpec { kind: if pair { ChainKind::Pair } else { ChainKind::Hidden }, rank, top_k }
    }
}

prop_compose! {
    /// Generates a random model with one of the given shapes.
    pub fn spec(shapes: Shapes)(
        llama in any::<bool>(),
        (layers, tail) in (1..=shapes.most_layers, 1..=shapes.most_layers),
        (kv_heads, q_per_kv) in (1usize..3, 1usize..4),
        head_dim in prop::sample::select(shapes.head_dims),
        hidden in prop::sample::select(shapes.hidden),
        vocab in 3usize..40,
        block_size in 1..=shapes.largest_block,
        rank in prop::option::of(prop::sample::select(shapes.ranks)),
        (bias, tied) in any::<(bool, bool)>(),
        dtype in prop::sample::select(shapes.dtypes),
        seed in any::<u64>(),
        // `chain` is drawn last, so that recorded seeds of earlier failures still give the same models.
        chain in prop::option::of(chain()),
    ) -> Spec {
        Spec {
            architecture: if llama { Architecture::Llama } else { Architecture::Qwen3 },
            layers,
            tail: tail.min(layers),
            kv_heads,
            q_per_kv,
            head_dim,
            hidden,
            vocab,
            block_size,
            rank,
            bias,
            tied,
            dtype,
            seed,
            chain: chain.map(|chain: ChainSpec| ChainSpec { rank: shapes.chain_ranks * chain.rank, ..chain }),
            ..Spec::default()
        }
    }
}

/// Generates a shape from `spec`, with a FlexDraft or an Orthrus drafter.
pub fn either_drafter(spec: impl Strategy<Value = Spec>) -> impl Strategy<Value = Spec> {
    (spec, any::<bool>()).prop_map(|(spec, orthrus)| if orthrus { spec.with_orthrus() } else { spec })
}

/// The source of a random model's weights.
struct Generator(SplitMix);

impl Generator {
    /// Returns a tensor of numbers uniform on [−1, 1), times `scale`, plus `centre`.
    fn tensor(&mut self, dtype: DType, shape: &[usize], centre: f32, scale: f32) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| centre + scale * self.0.signed()).collect();
        match dtype {
            DType::F32 => Tensor::from_f32(shape, values),
            DType::F16 => Tensor::from_f16(shape, values.into_iter().map(f16::from_f32).collect()),
            DType::Bf16 => Tensor::from_bf16(shape, values.into_iter().map(bf16::from_f32).collect()),
        }
        .unwrap()
    }

    fn linear(&mut self, dtype: DType, out: usize, input: usize, bias: bool) -> LinearWeights {
        let scale = 1.7 / (input as f32).sqrt();
        LinearWeights {
            weight: self.tensor(dtype, &[out, input], 0.0, scale),
            bias: bias.then(|| self.tensor(dtype, &[out], 0.0, 0.3)),
        }
    }
}

impl Spec {
    /// Returns this shape of a model with an Orthrus drafter in place of a FlexDraft drafter.
    pub fn with_orthrus(self) -> Self {
        Self { kind: DrafterKind::Orthrus, tail: self.layers, rank: None, chain: None, ..self }
    }

    /// Returns the modes in which the drafter can draft.
    pub fn drafting_modes(&self) -> Vec<Mode> {
        let all = [Mode::Parallel, Mode::Sequential];
        all.into_iter()
            .filter(|&mode| mode == Mode::Sequential || self.kind.drafts_while_verifying())
            .collect()
    }

    pub fn config(&self) -> ModelConfig {
        let half = self.head_dim / 2;
        let inv_freq = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        ModelConfig {
            architecture: self.architecture,
            hidden_size: self.hidden,
            intermediate_size: 2 * self.hidden,
            layers: self.layers,
            attention: AttentionShape {
                q_heads: self.kv_heads * self.q_per_kv,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
            },
            vocab_size: self.vocab,
            context_len: self.context_len,
            rms_norm_eps: 1e-6,
            rope: Rope { inv_freq, scale: 1.0 },
            layers_without_rope: Vec::new(),
            attention_bias: self.bias,
            mlp_bias: self.bias,
            tied_embeddings: self.tied,
            eos_ids: Vec::new(),
        }
    }

    fn chain_weights(&self, chain: ChainSpec, random: &mut Generator) -> ChainWeights {
        let ChainSpec { kind, rank, top_k } = chain;
        let [first, second] = match kind {
            ChainKind::Pair => [[rank, self.hidden], [rank, self.hidden]],
            ChainKind::Hidden => [[rank, 2 * self.hidden], [self.hidden, rank]],
        };
        ChainWeights {
            config: ChainConfig { kind, top_k },
            first: random.linear(self.dtype, first[0], first[1], false),
            second: random.linear(self.dtype, second[0], second[1], false),
        }
    }

    fn attention(&self, random: &mut Generator) -> AttentionWeights {
        let (q, kv) = (self.kv_heads * self.q_per_kv * self.head_dim, self.kv_heads * self.head_dim);
        AttentionWeights {
            q: random.linear(self.dtype, q, self.hidden, self.bias),
            k: random.linear(self.dtype, kv, self.hidden, self.bias),
            v: random.linear(self.dtype, kv, self.hidden, self.bias),
            o: random.linear(self.dtype, self.hidden, q, self.bias),
            qk_norms: (self.architecture == Architecture::Qwen3).then(|| {
                let mut norm = || random.tensor(self.dtype, &[self.head_dim], 1.0, 0.5);
                (norm(), norm())
            }),
        }
    }

    pub fn weights(&self) -> (TargetWeights, DrafterWeights) {
        let random = &mut Generator(SplitMix(self.seed));
        let (hidden, dtype) = (self.hidden, self.dtype);
        let embed = random.tensor(dtype, &[self.vocab, hidden], 0.0, self.gain / (hidden as f32).sqrt());
        let layers = (0..self.layers)
            .map(|_| LayerWeights {
                input_norm: random.tensor(dtype, &[hidden], 1.0, 0.5),
                attention: self.attention(random),
                post_attention_norm: random.tensor(dtype, &[hidden], 1.0, 0.5),
                gate: random.linear(dtype, 2 * hidden, hidden, self.bias),
                up: random.linear(dtype, 2 * hidden, hidden, self.bias),
                down: random.linear(dtype, hidden, 2 * hidden, self.bias),
            })
            .collect();
        let norm = random.tensor(dtype, &[hidden], 1.0, 0.5);
        let lm_head = if self.tied {
            embed.clone()
        } else {
            random.tensor(dtype, &[self.vocab, hidden], 0.0, self.gain / (hidden as f32).sqrt())
        };
        let target =
            TargetWeights { config: self.config(), embed, layers, norm, lm_head, warnings: Vec::new() };
        let drafter = DrafterWeights {
            config: DrafterConfig { kind: self.kind, tail_layers: self.tail, block_size: self.block_size },
            attention: (0..self.tail).map(|_| self.attention(random)).collect(),
            mask_embedding: match self.kind {
                DrafterKind::FlexDraft => random.tensor(dtype, &[hidden], 0.0, 1.0),
                DrafterKind::Orthrus => target.embed.row(self.vocab - 1).unwrap(),
            },
            calibrator: self.rank.map(|rank| CalibratorWeights {
                hidden: random.linear(dtype, rank, 2 * hidden, true),
                output: random.linear(dtype, self.vocab, rank, true),
            }),
            chain: self.chain.map(|chain| self.chain_weights(chain, random)),
        };
        (target, drafter)
    }
}
