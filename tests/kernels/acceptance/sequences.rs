//! Generates sequences to verify.

use flexdraft::acceptance::Rule;
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::chain::likeliest;
use flexdraft_reference::warp::{Warping, warp};
use proptest::prelude::*;

use crate::support::noise::Xorshift;

/// The description of a sequence to verify, from which its rows of logits are generated.
#[derive(Clone, Debug)]
pub struct Generated {
    pub rule: Rule,
    pub params: SamplingParams,
    pub drafts: usize,
    /// The distance of the draft's logits from the target's logits; at 0, the distributions p and q are equal.
    pub distance: f32,
    /// True if the draft tokens were drawn from a distribution q; false if each draft token is certain (a point mass).
    pub has_distribution: bool,
    /// The number of ids that each q is above 0 for, if the draft has a chain.
    pub chosen: Option<usize>,
    pub groups: GroupSet,
    pub position: usize,
    pub seed: u64,
}

/// A sequence to verify, with its rows of logits and its draft tokens.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub rule: Rule,
    pub params: SamplingParams,
    pub groups: GroupSet,
    pub position: usize,
    pub seed: u64,
    /// Logits of the target's distributions p_0..p_v.
    pub target: Vec<Vec<f32>>,
    /// Logits of the draft distributions q_1..q_v; `None` if every q_j is the point mass at d_j.
    pub draft: Option<Vec<Vec<f32>>>,
    /// d_1..d_v.
    pub tokens: Vec<i32>,
}

/// Returns the distribution of a row of logits in double precision.
pub fn warped(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let warping = Warping {
        temperature: params.temperature.into(),
        top_k: params.top_k,
        top_p: params.top_p.into(),
        min_p: params.min_p.into(),
    };
    let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
    warp(&logits, &warping).probabilities
}

impl Generated {
    pub fn sequence(&self, vocab: usize) -> Sequence {
        let mut random = Xorshift::new(self.seed);
        let mut next = || random.uniform() * 2.0 - 1.0;
        // The logits are multiples of a step that bf16 represents exactly. A few ids stand out, and some are
        // impossible.
        let mut row = || -> Vec<f32> {
            let mut row: Vec<f32> = (0..vocab)
                .map(|id| match (next() * 8.0).floor() {
                    -8.0 => f32::NEG_INFINITY,
                    x if id % 97 == 3 => x / 2.0 + 6.0,
                    x => x / 2.0,
                })
                .collect();
            // A row without a possible id would be faulty.
            if row.iter().all(|&x| x == f32::NEG_INFINITY) {
                row[0] = 0.0;
            }
            row
        };
        let target: Vec<Vec<f32>> = (0..=self.drafts).map(|_| row()).collect();
        let draft: Vec<Vec<f32>> = target[..self.drafts]
            .iter()
            .map(|p| {
                let mut q = p.clone();
                if self.distance > 0.0 {
                    q.iter_mut().for_each(|x| *x += (next() * 2.0).round() / 2.0 * self.distance);
                }
                if let Some(chosen) = self.chosen {
                    let likeliest = likeliest(&q, chosen);
                    (0..)
                        .zip(&mut q)
                        .filter(|(id, _)| !likeliest.contains(id))
                        .for_each(|(_, x)| *x = f32::NEG_INFINITY);
                }
                q
            })
            .collect();
        let mut tokens = Vec::new();
        for (i, q) in draft.iter().enumerate() {
            let stream = Stream::new(self.seed, Purpose::DraftDraw, i + 1, self.position);
            let from = if self.rule == Rule::Match { &target[i] } else { q };
            let stream = match self.rule {
                Rule::Match if i % 5 != 4 || self.distance == 0.0 => {
                    Stream::target_draw(self.seed, self.position + i + 1)
                }
                _ => stream,
            };
            let weights = warped(from, &self.params);
            let scores = weights.iter().map(|&w| w.ln() as f32);
            tokens.push(if self.params.temperature == 0.0 {
                weights.iter().position(|&w| w == 1.0).unwrap() as i32
            } else {
                stream.gumbel_argmax(scores) as i32
            });
        }
        Sequence {
            rule: self.rule,
            params: self.params,
            groups: self.groups,
            position: self.position,
            seed: self.seed,
            target,
            draft: self.has_distribution.then_some(draft),
            tokens,
        }
    }
}

impl Sequence {
    /// Returns the rule that the kernel applies: at temperature 0 all rules are the same.
    pub fn effective_rule(&self) -> Rule {
        if self.params.temperature == 0.0 { Rule::Match } else { self.rule }
    }

    pub fn has_rows_of(&self, other: &Sequence) -> bool {
        let rows = |s: &Sequence| (s.params, s.effective_rule() == Rule::Match, s.draft.is_some());
        rows(self) == rows(other)
            && self.tokens == other.tokens
            && self.target == other.target
            && self.draft == other.draft
    }
}

prop_compose! {
    /// Generates a sequence whose number of draft tokens comes from `drafts`.
    pub fn generated(drafts: BoxedStrategy<usize>)(
        rule in prop::sample::select(vec![Rule::Match, Rule::Rejection, Rule::Rejection, Rule::Block, Rule::Block]),
        temperature in prop::sample::select(vec![0.0f32, 1.0, 0.7, 2.0, 1.0]),
        top_k in prop::sample::select(vec![0usize, 0, 1, 5]),
        // No top-p is a sum of a few equal probabilities, because there 64-bit sums and the kernel's sums could decide
        // differently.
        top_p in prop::sample::select(vec![1.0f32, 1.0, 0.913, 0.47]),
        min_p in prop::sample::select(vec![0.0f32, 0.0, 0.05, 0.3]),
        drafts in drafts,
        distance in prop::sample::select(vec![0.0f32, 0.5, 1.0, 4.0]),
        has_distribution in prop::bool::weighted(0.8),
        chosen in prop::option::of(prop_oneof![Just(1usize), 2usize..9, Just(32)]),
        groups in prop::collection::vec(0usize..9, 0..4),
        position in 0usize..100_000,
        seed in any::<u64>(),
    ) -> Generated {
        let params = SamplingParams { temperature, top_k, top_p, min_p };
        let groups = groups.into_iter().fold(GroupSet::default(), GroupSet::with);
        Generated { rule, params, drafts, distance, has_distribution, chosen, groups, position, seed }
    }
}

/// Returns the number of ids above −∞ in a row of logits.
pub fn ids_above(row: &[f32]) -> usize {
    row.iter().filter(|&&x| x > f32::NEG_INFINITY).count()
}
