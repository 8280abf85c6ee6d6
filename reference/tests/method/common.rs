//! Small random models for the tests of the reference.

use flexdraft_reference::attention::Heads;
use flexdraft_reference::calibration::Calibrator;
use flexdraft_reference::chain::{Chain, ChainScores};
use flexdraft_reference::float::Float;
use flexdraft_reference::linear::Linear;
use flexdraft_reference::model::{Drafter, DrafterKind, Layer, Projectors, Target};
use flexdraft_reference::process::{Processors, RowMask};
use flexdraft_reference::random::{Numbers, Purpose, uniform};
use flexdraft_reference::rope::Rope;
use proptest::prelude::*;

/// The shape of a random model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: Heads,
    pub layers: usize,
    /// The drafter's kind.
    pub kind: DrafterKind,
    /// Layers with mask rows; not used for Orthrus, which has them in all layers.
    pub tail_layers: usize,
    /// True if the model has RMSNorms over query and key heads, as Qwen3 has; otherwise its projections have biases.
    pub qk_norms: bool,
    /// Rank of the calibrator; not used for Orthrus, which has none.
    pub calibrator_rank: Option<usize>,
    /// The chain of the draft's tokens, if there is one.
    pub chain: Option<ChainShape>,
}

/// The kind and sizes of a random chain.
#[derive(Clone, Copy, Debug)]
pub enum ChainShape {
    Pair { rank: usize, top_k: usize },
    Hidden { rank: usize, top_k: usize },
}

impl Shape {
    pub const TINY: Self = Self {
        vocab: 11,
        hidden: 8,
        intermediate: 12,
        heads: Heads { q_heads: 4, kv_heads: 2, head_dim: 4 },
        layers: 3,
        kind: DrafterKind::FlexDraft,
        tail_layers: 2,
        qk_norms: true,
        calibrator_rank: Some(3),
        chain: None,
    };
}

/// Returns numbers that follow from a seed, evenly spread around 0.
struct Weights {
    numbers: Numbers,
    next: u32,
}

impl Weights {
    fn vector<F: Float>(&mut self, len: usize, centre: f64, spread: f64) -> Vec<F> {
        let mut number = || {
            self.next += 1;
            F::from_f64(centre + spread * (2.0 * uniform::<f64>(self.numbers.words(self.next)[0]) - 1.0))
        };
        (0..len).map(|_| number()).collect()
    }

    fn linear<F: Float>(&mut self, outputs: usize, inputs: usize, bias: bool) -> Linear<F> {
        let mut linear =
            Linear::new(self.vector(outputs * inputs, 0.0, 2.0 / (inputs as f64).sqrt()), inputs);
        linear.bias = bias.then(|| self.vector(outputs, 0.0, 0.3));
        linear
    }

    fn projectors<F: Float>(&mut self, shape: Shape) -> Projectors<F> {
        let Heads { q_heads, kv_heads, head_dim } = shape.heads;
        let bias = !shape.qk_norms;
        Projectors {
            q: self.linear(q_heads * head_dim, shape.hidden, bias),
            k: self.linear(kv_heads * head_dim, shape.hidden, bias),
            v: self.linear(kv_heads * head_dim, shape.hidden, bias),
            o: self.linear(shape.hidden, q_heads * head_dim, bias),
            qk_norms: shape
                .qk_norms
                .then(|| (self.vector(head_dim, 1.0, 0.5), self.vector(head_dim, 1.0, 0.5))),
        }
    }
}

/// Returns a random target and drafter.
pub fn random_model<F: Float>(shape: Shape, seed: u64) -> (Target<F>, Drafter<F>) {
    let numbers = Numbers { seed, purpose: Purpose::TargetDraw, slot: 0, position: 0 };
    let mut weights = Weights { numbers, next: 0 };
    let hidden = shape.hidden;
    let layers: Vec<Layer<F>> = (0..shape.layers)
        .map(|_| Layer {
            input_norm: weights.vector(hidden, 1.0, 0.3),
            attention: weights.projectors(shape),
            post_attention_norm: weights.vector(hidden, 1.0, 0.3),
            gate: weights.linear(shape.intermediate, hidden, false),
            up: weights.linear(shape.intermediate, hidden, false),
            down: weights.linear(hidden, shape.intermediate, false),
        })
        .collect();
    let target = Target {
        heads: shape.heads,
        rope: Rope::unscaled(shape.heads.head_dim, 100.0),
        rms_norm_eps: F::from_f64(1e-6),
        embed: weights.vector(shape.vocab * hidden, 0.0, 1.0),
        layers,
        norm: weights.vector(hidden, 1.0, 0.3),
        lm_head: weights.linear(shape.vocab, hidden, false),
    };
    let (tail_layers, rank) = match shape.kind {
        DrafterKind::FlexDraft => (shape.tail_layers, shape.calibrator_rank),
        DrafterKind::Orthrus => (shape.layers, None),
    };
    let drafter = Drafter {
        kind: shape.kind,
        attention: (0..tail_layers).map(|_| weights.projectors(shape)).collect(),
        mask_embedding: weights.vector(hidden, 0.0, 1.0),
        calibrator: rank.map(|rank| Calibrator {
            hidden: weights.linear(rank, 2 * hidden, true),
            output: weights.linear(shape.vocab, rank, true),
        }),
        chain: shape.chain.map(|chain| match chain {
            ChainShape::Pair { rank, top_k } => {
                let (before, after) =
                    (weights.linear(rank, hidden, false), weights.linear(rank, hidden, false));
                Chain { scores: ChainScores::Pair { before, after }, top_k }
            }
            ChainShape::Hidden { rank, top_k } => {
                let (inner, output) =
                    (weights.linear(rank, 2 * hidden, false), weights.linear(hidden, rank, false));
                Chain { scores: ChainScores::Hidden { hidden: inner, output }, top_k }
            }
        }),
    };
    (target, drafter)
}

/// A mask of a row that depends on the tokens before it: no id follows itself, and id 1 does not follow an even number
/// of tokens.
pub fn grammar(tokens: &[u32]) -> Vec<u32> {
    let last = tokens[tokens.len() - 1];
    let even = u32::from(tokens.len().is_multiple_of(2));
    vec![!(1 << last | even << 1)]
}

/// Generates processors for a vocabulary of at most 32 ids that are often off, alone or together. Each of them forbids at
/// most two ids: the mask allows all ids but one, and bad words are two ids long or more.
pub fn any_processors(vocab: usize) -> impl Strategy<Value = Processors> {
    let id = move || 0..vocab as u32;
    let maybe = |values: std::ops::Range<f64>, off: f64| prop_oneof![2 => Just(off), 1 => values];
    let biases = prop::collection::btree_map(id(), -3.0..3.0f64, 0..3);
    let bad_word = prop::collection::vec(id(), 2..4);
    let words = move |forbidden: u32| {
        let mut words = vec![u32::MAX; vocab.div_ceil(32)];
        words[forbidden as usize / 32] &= !(1 << (forbidden % 32));
        words
    };
    (
        (maybe(0.3..3.0, 1.0), maybe(-2.0..2.0, 0.0), maybe(-2.0..2.0, 0.0)),
        prop_oneof![1 => Just(Default::default()), 1 => biases],
        prop_oneof![1 => Just(0), 1 => 0..8usize],
        prop::collection::vec(bad_word, 0..2),
        prop::option::weighted(0.3, id().prop_map(words)),
        prop::option::weighted(0.2, Just(grammar as RowMask)),
    )
        .prop_map(
            |(
                (repetition_penalty, frequency_penalty, presence_penalty),
                bias,
                min_tokens,
                bad_words,
                mask,
                row_mask,
            )| {
                Processors {
                    repetition_penalty,
                    frequency_penalty,
                    presence_penalty,
                    bias: bias.into_iter().collect(),
                    min_tokens,
                    bad_words,
                    mask,
                    row_mask,
                }
            },
        )
}
