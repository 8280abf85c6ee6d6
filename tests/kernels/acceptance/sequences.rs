//! Generates sequences to verify, and runs the acceptance kernels on them.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, ChosenRows, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::chain::MAX_CHOSEN;
use flexdraft::kernels::sampling::{Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::chain::likeliest;
use flexdraft_reference::warp::{Warping, warp};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::processors::{Bench, Operand};
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

    fn has_rows_of(&self, other: &Sequence) -> bool {
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

/// The outcome of a batch: a verdict and the committed tokens per sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub verdicts: Vec<Verdict>,
    pub committed: Vec<Vec<i32>>,
}

/// Number of rows in front of the drafts' rows in the draft logits; these rows have no statistics.
const ROWS_BEFORE_DRAFTS: usize = 2;

/// Returns the number of ids above −∞ in a row of logits.
fn ids_above(row: &[f32]) -> usize {
    row.iter().filter(|&&x| x > f32::NEG_INFINITY).count()
}

/// The most likely ids of rows of logits, with their logits: all ids above −∞ if these are few.
struct ChosenIds {
    count: usize,
    ids: Operand<i32>,
    logits: Operand<f32>,
}

impl ChosenIds {
    fn of(bench: &Bench, rows: &[&Vec<f32>], vocab: usize) -> Self {
        let count = MAX_CHOSEN.min(vocab);
        let ids: Vec<Vec<u32>> = rows.iter().map(|row| likeliest(row, count)).collect();
        let logits = rows.iter().zip(&ids).flat_map(|(row, ids)| ids.iter().map(|&id| row[id as usize]));
        let logits: Vec<f32> = logits.collect();
        let ids: Vec<i32> = ids.concat().iter().map(|&id| id as i32).collect();
        Self { count, ids: bench.memory(&ids), logits: bench.memory(&logits) }
    }
}

pub fn run<L: Logit + Stored>(bench: &Bench, vocab: usize, sequences: &[Sequence]) -> Outcome {
    let Bench { kernels, stream } = bench;
    let stride = vocab.next_multiple_of(8) + 8;
    let (mut target, mut draft) = (Vec::new(), vec![L::of(f32::NAN); ROWS_BEFORE_DRAFTS * stride]);
    let (mut target_ways, mut draft_ways) = (Vec::new(), Vec::new());
    let (mut tokens, mut requests, mut chained_requests) = (vec![-7], Vec::new(), Vec::new());
    let mut any_chained = false;
    let mut draft_rows: Vec<&Vec<f32>> = Vec::new();
    let store = |row: &[f32], to: &mut Vec<L>| {
        to.extend(row.iter().map(|&x| L::of(x)));
        to.resize(to.len().next_multiple_of(stride), L::of(f32::NAN));
    };
    let mut last: Option<(&Sequence, [usize; 3])> = None;
    for sequence in sequences {
        let drafts = sequence.tokens.len();
        let draws = drafts == 0 || sequence.effective_rule() == Rule::Match;
        // Sequences that differ only in their random numbers share their rows, unless the token that is drawn from each
        // row is needed.
        let shared = last.filter(|(last, _)| !draws && last.has_rows_of(sequence));
        let first = shared.map_or([target_ways.len(), draft_ways.len(), tokens.len()], |(_, first)| first);
        let request = Verify::new(&VerifySequence {
            rule: sequence.effective_rule(),
            seed: sequence.seed,
            position: sequence.position,
            drafts,
            first_target: first[0],
            first_draft: sequence.draft.is_some().then_some(ROWS_BEFORE_DRAFTS + first[1]),
            first_token: first[2],
            groups: sequence.groups,
        })
        .unwrap();
        requests.push(request.with_draft_stats_at(first[1]).unwrap());
        // Sequences whose q is above 0 for few ids read the chosen ids of their drafts, and the others rows of logits.
        let chained =
            sequence.draft.as_ref().is_some_and(|rows| rows.iter().all(|row| ids_above(row) <= MAX_CHOSEN));
        any_chained |= chained;
        chained_requests.push(match chained {
            true => request.with_chained_draft_at(first[1]).unwrap(),
            false => request.with_draft_stats_at(first[1]).unwrap(),
        });
        last = Some((sequence, first));
        if shared.is_some() {
            continue;
        }
        for (i, row) in sequence.target.iter().enumerate() {
            let numbers = draws.then(|| Stream::target_draw(sequence.seed, sequence.position + i + 1));
            target_ways.push(RowSampling::new(&sequence.params, numbers).unwrap());
            store(row, &mut target);
        }
        for row in sequence.draft.iter().flatten() {
            draft_ways.push(RowSampling::new(&sequence.params, None).unwrap());
            draft_rows.push(row);
            store(row, &mut draft);
        }
        tokens.extend(&sequence.tokens);
    }
    let chained = ChosenIds::of(bench, &draft_rows, vocab);
    let drafts_rows = bench.memory(&draft[ROWS_BEFORE_DRAFTS * stride..]);
    let (target, draft, tokens) = (bench.memory(&target), bench.memory(&draft), bench.memory(&tokens));
    let sample = |logits: &Operand<L>, ways: &[RowSampling]| {
        let mut stats = bench.memory(&vec![bytemuck::Zeroable::zeroed(); ways.len()]);
        let mut workspace = bench.memory(&vec![f32::NAN; workspace_len(ways.len(), vocab, false).unwrap()]);
        let ways = bench.memory(ways);
        let sample = Sample {
            vocab,
            stride,
            logits: LogitRows::Read(bench.view(logits)),
            logit_index: None,
            sampling: bench.view(&ways),
            starts: None,
            draft: None,
            calibration: None,
            workspace: bench.view_mut(&mut workspace),
            stats: bench.view_mut(&mut stats),
            error: None,
        };
        kernels.sample(stream, sample).unwrap();
        (stats, workspace)
    };
    let (target_stats, partials): (Operand<RowStats>, _) = sample(&target, &target_ways);
    let (draft_stats, _) = sample(&drafts_rows, &draft_ways);
    let batch = sequences.len();
    let (requests, chained_requests) = (bench.memory(&requests), bench.memory(&chained_requests));
    let mut workspace = bench.memory(&vec![f32::NAN; accept_workspace_len(batch, vocab).unwrap()]);
    let (mut arrived, mut error) = (bench.memory(&vec![0u32; batch]), bench.memory(&[0u32]));
    let unwritten = Verdict {
        accepted: 99,
        bonus: 99,
        probability: 9.0,
        group: 99,
        cached_length: 99,
        fault: 99,
        unused: 99,
    };
    let mut verdicts = bench.memory(&vec![unwritten; batch]);
    let mut committed = bench.memory(&vec![99i32; batch * MAX_COMMITTED]);
    let mut outcomes = Vec::new();
    // The kernel runs with every id read, and with chunks skipped that have no id that p keeps; and in both ways with
    // the chosen ids of the drafts that have few in place of their logits.
    let ways =
        [(None, None), (Some(&partials), None), (None, Some(&chained)), (Some(&partials), Some(&chained))];
    for (partials, chained) in ways.into_iter().take(if any_chained { 4 } else { 2 }) {
        let args = Accept {
            vocab,
            stride,
            sequences: bench.view(if chained.is_some() { &chained_requests } else { &requests }),
            target_partials: partials.map(|partials| bench.view(partials)),
            any_block: sequences.iter().any(|s| s.effective_rule() == Rule::Block),
            tokens: bench.view(&tokens),
            target: SampledRows { logits: bench.view(&target), stats: bench.view(&target_stats) },
            draft: Some(match chained {
                None => DraftDistributions {
                    logits: Some(bench.view(&draft)),
                    chosen: None,
                    stats: bench.view(&draft_stats),
                },
                Some(chained) => DraftDistributions {
                    logits: Some(bench.view(&draft)),
                    chosen: Some(ChosenRows {
                        count: chained.count,
                        ids: bench.view(&chained.ids),
                        logits: bench.view(&chained.logits),
                    }),
                    stats: bench.view(&draft_stats),
                },
            }),
            workspace: bench.view_mut(&mut workspace),
            arrived: bench.view_mut(&mut arrived),
            verdicts: bench.view_mut(&mut verdicts),
            committed: bench.view_mut(&mut committed),
            error: Some(bench.view_mut(&mut error)),
        };
        kernels.accept(stream, &args).unwrap();
        drop(args);
        // The kernel has set its counters back to 0, so it can be launched again.
        assert!(bench.host(&arrived).iter().all(|&count| count == 0));
        let committed = bench.host(&committed).chunks(MAX_COMMITTED).map(<[i32]>::to_vec).collect();
        outcomes.push(Outcome { verdicts: bench.host(&verdicts), committed });
    }
    assert_eq!(bench.host(&error), [0]);
    let outcome = outcomes.pop().unwrap();
    assert!(outcomes.iter().all(|other| *other == outcome), "{outcomes:?} differ from {outcome:?}");
    outcome
}

/// A type that stores logits, with a conversion from the tests' f32 logits.
pub trait Stored {
    fn of(value: f32) -> Self;
}

impl Stored for f32 {
    fn of(value: f32) -> Self {
        value
    }
}

impl Stored for bf16 {
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Stored for f16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
}
