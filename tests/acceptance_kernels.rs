//! Acceptance on the SIMT host: the decisions of the reference for the same rows and random numbers, for all
//! rules, whatever else is in the batch.

#![cfg(feature = "simt")]
#![allow(clippy::unwrap_used, missing_docs)]

mod simt_variant;

use flexdraft::acceptance::Rule;
use flexdraft::backend::simt::{Checking, Copies};
use flexdraft::backend::{Simt, SimtOptions};
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::sampling::{Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::{KernelError, Kernels};
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::accept;
use flexdraft_reference::warp::{Warping, warp};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// One sequence: what its rows are made of.
#[derive(Clone, Debug)]
struct Sequence {
    rule: Rule,
    params: SamplingParams,
    drafts: usize,
    /// How far the draft's logits are from the target's; 0 makes p and q equal.
    distance: f32,
    /// Whether the draft comes from a distribution at all.
    has_distribution: bool,
    groups: GroupSet,
    position: usize,
    seed: u64,
}

/// The target's and the draft's logits, and the draft.
struct Rows {
    target: Vec<Vec<f32>>,
    draft: Vec<Vec<f32>>,
    tokens: Vec<i32>,
}

fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

impl Sequence {
    fn rows(&self, vocab: usize) -> Rows {
        let mut next = noise(self.seed);
        // In steps that bf16 holds; a few ids stand out, and some are impossible.
        let mut row = || -> Vec<f32> {
            (0..vocab)
                .map(|id| match (next() * 8.0).floor() {
                    -8.0 => f32::NEG_INFINITY,
                    x if id % 97 == 3 => x / 2.0 + 6.0,
                    x => x / 2.0,
                })
                .collect()
        };
        let target: Vec<Vec<f32>> = (0..=self.drafts).map(|_| row()).collect();
        let draft: Vec<Vec<f32>> = target[..self.drafts]
            .iter()
            .map(|p| {
                let mut q = p.clone();
                if self.distance > 0.0 {
                    q.iter_mut().for_each(|x| *x += (next() * 2.0).round() / 2.0 * self.distance);
                }
                q
            })
            .collect();
        let mut tokens = Vec::new();
        for (i, q) in draft.iter().enumerate() {
            let stream = Stream::new(self.seed, Purpose::DraftDraw, i + 1, self.position);
            let from = if self.rule == Rule::Match { &target[i] } else { q };
            let stream = match self.rule {
                Rule::Match if i % 5 != 4 => Stream::target_draw(self.seed, self.position + i + 1),
                _ => stream,
            };
            let weights = self.warped(from);
            let scores = weights.iter().map(|&w| w.ln() as f32);
            tokens.push(if self.params.temperature == 0.0 {
                weights.iter().position(|&w| w == 1.0).unwrap() as i32
            } else {
                stream.gumbel_argmax(scores) as i32
            });
        }
        Rows { target, draft, tokens }
    }

    fn warped(&self, logits: &[f32]) -> Vec<f64> {
        let warping = Warping {
            temperature: self.params.temperature.into(),
            top_k: self.params.top_k,
            top_p: self.params.top_p.into(),
            min_p: self.params.min_p.into(),
        };
        let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        warp(&logits, &warping).probabilities
    }

    /// The kernel's rule: at temperature 0 all are the same.
    fn effective_rule(&self) -> Rule {
        if self.params.temperature == 0.0 { Rule::Match } else { self.rule }
    }
}

/// Verdicts, committed tokens and whether truncation kept what the reference keeps.
struct Outcome {
    verdicts: Vec<Verdict>,
    committed: Vec<Vec<i32>>,
}

fn run<L: Logit + From16>(kernels: &Kernels<Simt>, vocab: usize, sequences: &[Sequence]) -> Outcome {
    let stream = kernels.backend().stream();
    let stride = vocab.next_multiple_of(8) + 8;
    let (mut target, mut draft) = (Vec::new(), Vec::new());
    let (mut target_ways, mut draft_ways) = (Vec::new(), Vec::new());
    let (mut tokens, mut requests) = (vec![-7], Vec::new());
    let store = |row: &[f32], to: &mut Vec<L>| {
        to.extend(row.iter().map(|&x| L::from_f32(x)));
        to.resize(to.len().next_multiple_of(stride), L::from_f32(f32::NAN));
    };
    for sequence in sequences {
        let rows = sequence.rows(vocab);
        let draws = sequence.drafts == 0 || sequence.effective_rule() == Rule::Match;
        requests.push(
            Verify::new(&VerifySequence {
                rule: sequence.effective_rule(),
                seed: sequence.seed,
                position: sequence.position,
                drafts: sequence.drafts,
                first_target: target_ways.len(),
                first_draft: sequence.has_distribution.then_some(draft_ways.len()),
                first_token: tokens.len(),
                groups: sequence.groups,
            })
            .unwrap(),
        );
        for (i, row) in rows.target.iter().enumerate() {
            let numbers = draws.then(|| Stream::target_draw(sequence.seed, sequence.position + i + 1));
            target_ways.push(RowSampling::new(&sequence.params, numbers).unwrap());
            store(row, &mut target);
        }
        for row in &rows.draft {
            draft_ways.push(RowSampling::new(&sequence.params, None).unwrap());
            store(row, &mut draft);
        }
        tokens.extend(rows.tokens);
    }
    let sample = |logits: &[L], ways: &[RowSampling]| {
        let mut stats = vec![bytemuck::Zeroable::zeroed(); ways.len()];
        let mut workspace = vec![f32::NAN; workspace_len(ways.len(), vocab, false).unwrap()];
        let sample = Sample {
            vocab,
            stride,
            logits: LogitRows::Read(stream.view(logits)),
            logit_index: None,
            sampling: stream.view(ways),
            starts: None,
            draft: None,
            calibration: None,
            workspace: stream.view_mut(&mut workspace),
            stats: stream.view_mut(&mut stats),
            error: None,
        };
        kernels.sample(&stream, sample).unwrap();
        stats
    };
    let (target_stats, draft_stats): (Vec<RowStats>, Vec<RowStats>) =
        (sample(&target, &target_ways), sample(&draft, &draft_ways));
    let batch = sequences.len();
    let mut workspace = vec![f64::NAN; accept_workspace_len(batch, vocab).unwrap().div_ceil(2)];
    let (mut arrived, mut error) = (vec![0u32; batch], [0u32]);
    let mut verdicts =
        vec![Verdict { accepted: 99, bonus: 99, probability: 9.0, group: 99, cached_length: 99 }; batch];
    let mut committed = vec![99i32; batch * MAX_COMMITTED];
    for _ in 0..2 {
        kernels
            .accept(
                &stream,
                &Accept {
                    vocab,
                    stride,
                    sequences: stream.view(&requests),
                    any_block: sequences.iter().any(|s| s.effective_rule() == Rule::Block),
                    tokens: stream.view(&tokens),
                    target: SampledRows { logits: stream.view(&target), stats: stream.view(&target_stats) },
                    draft: Some(SampledRows {
                        logits: stream.view(&draft),
                        stats: stream.view(&draft_stats),
                    }),
                    workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                    arrived: stream.view_mut(&mut arrived),
                    verdicts: stream.view_mut(&mut verdicts),
                    committed: stream.view_mut(&mut committed),
                    error: Some(stream.view_mut(&mut error)),
                },
            )
            .unwrap();
        // It can be launched again: the counters are as they were.
        assert!(arrived.iter().all(|&count| count == 0));
    }
    assert_eq!(error, [0]);
    Outcome { verdicts, committed: committed.chunks(MAX_COMMITTED).map(<[i32]>::to_vec).collect() }
}

trait From16 {
    fn from_f32(value: f32) -> Self;
}

impl From16 for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl From16 for bf16 {
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

/// The verdict against the reference's, unless a test or a draw is decided by less than rounding.
fn check(
    sequence: &Sequence,
    vocab: usize,
    verdict: &Verdict,
    committed: &[i32],
) -> Result<(), TestCaseError> {
    let rows = sequence.rows(vocab);
    let p: Vec<Vec<f64>> = rows.target.iter().map(|row| sequence.warped(row)).collect();
    let q: Vec<Vec<f64>> = match sequence.has_distribution {
        true => rows.draft.iter().map(|row| sequence.warped(row)).collect(),
        false => rows
            .tokens
            .iter()
            .map(|&d| (0..vocab).map(|x| f64::from(u8::from(x == d as usize))).collect())
            .collect(),
    };
    let draft: Vec<u32> = rows.tokens.iter().map(|&token| token as u32).collect();
    let (seed, n) = (sequence.seed, sequence.position);
    let mut weights = Vec::new();
    let accepted = match sequence.effective_rule() {
        rule if rule == Rule::Match || draft.is_empty() => {
            let draw = |i: usize| match sequence.params.temperature == 0.0 {
                true => p[i].iter().position(|&x| x == 1.0).unwrap() as u32,
                false => {
                    Stream::target_draw(seed, n + i + 1).gumbel_argmax(p[i].iter().map(|x| x.ln() as f32))
                }
            };
            let expected = accept::matching(&draft, draw);
            prop_assert_eq!(verdict.accepted, expected.accepted as i32);
            prop_assert_eq!(verdict.bonus, expected.bonus as i32);
            expected.accepted
        }
        rule => {
            let uniform = |i: usize| Stream::new(seed, Purpose::AcceptanceUniform, i, n).uniform();
            let decide = |shift: f64| {
                let uniforms: Vec<f64> = (1..=draft.len()).map(|i| uniform(i) + shift).collect();
                let mut law = Vec::new();
                let keep = |_: usize, weights: &[f64]| {
                    law = weights.to_vec();
                    0
                };
                let verdict = match rule {
                    Rule::Block => accept::block(&p, &q, &draft, &uniforms, keep),
                    _ => accept::rejection(&p, &q, &draft, &uniforms, keep),
                };
                (verdict.accepted, law)
            };
            let (accepted, law) = decide(0.0);
            if decide(1e-5).0 != accepted || decide(-1e-5).0 != accepted {
                return Ok(()); // Closer than f32 tells apart.
            }
            prop_assert_eq!(verdict.accepted, accepted as i32);
            weights = law;
            accepted
        }
    };
    if !weights.is_empty() {
        let numbers = Stream::new(seed, Purpose::ResidualDraw, accepted, n);
        let scores: Vec<f64> =
            weights.iter().zip(numbers.gumbels()).map(|(w, g)| w.ln() + f64::from(g)).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let found = scores[verdict.bonus as usize];
        // A weight is a difference of two f32 probabilities: what is within their rounding may win or not.
        let weight = weights[verdict.bonus as usize];
        let total: f64 = weights.iter().sum();
        if total > 1e-4 {
            prop_assert!(
                found >= largest - 1e-3 || weight < 1e-5 * total,
                "{found} is not the largest, {largest}"
            );
        }
    }
    let expected = p[accepted][verdict.bonus as usize];
    prop_assert!(
        (f64::from(verdict.probability) - expected).abs() < 1e-4,
        "{} for {expected}",
        verdict.probability
    );
    prop_assert_eq!(verdict.cached_length, (n + accepted + 1) as i64);
    let rank = sequence.groups.iter().position(|k| k == accepted).map_or(-1, |rank| rank as i32);
    prop_assert_eq!(verdict.group, rank);
    let mut tokens: Vec<i32> = rows.tokens[..accepted].to_vec();
    tokens.push(verdict.bonus);
    tokens.resize(MAX_COMMITTED, -1);
    prop_assert_eq!(committed, tokens);
    Ok(())
}

prop_compose! {
    fn sequence()(
        rule in prop::sample::select(vec![Rule::Match, Rule::Rejection, Rule::Rejection, Rule::Block, Rule::Block]),
        temperature in prop::sample::select(vec![0.0f32, 1.0, 0.7, 2.0, 1.0]),
        top_k in prop::sample::select(vec![0usize, 0, 1, 5]),
        drafts in 0usize..8,
        distance in prop::sample::select(vec![0.0f32, 0.5, 1.0, 4.0]),
        has_distribution in prop::bool::weighted(0.8),
        groups in prop::collection::vec(0usize..9, 0..4),
        position in 0usize..100_000,
        seed in any::<u64>(),
    ) -> Sequence {
        let params = SamplingParams { temperature, top_k, top_p: 1.0, min_p: 0.0 };
        let groups = groups.into_iter().fold(GroupSet::default(), GroupSet::with);
        Sequence { rule, params, drafts, distance, has_distribution, groups, position, seed }
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        // A quarter of what `PROPTEST_CASES` asks for.
        cases: ProptestConfig::default().cases.div_ceil(4),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

fn kernels(checking: Checking, schedule: u64) -> Kernels<Simt> {
    let checking = simt_variant::checking(checking);
    Kernels::new(Simt::new(SimtOptions { checking, copies: Copies::Eager, schedule }))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn decisions_are_the_reference_s(
        vocab in prop_oneof![1usize..300, 2040usize..4200],
        sequences in prop::collection::vec(sequence(), 1..5),
        schedule in 0u64..4,
        half in any::<bool>(),
    ) {
        let kernels = kernels(Checking::Off, schedule);
        let outcome = match half {
            true => run::<bf16>(&kernels, vocab, &sequences),
            false => run::<f32>(&kernels, vocab, &sequences),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            check(sequence, vocab, &outcome.verdicts[i], &outcome.committed[i])?;
        }
    }

    #[test]
    fn a_sequence_s_verdict_does_not_depend_on_the_batch(
        vocab in prop_oneof![1usize..40, 2040usize..2100],
        sequences in prop::collection::vec(sequence(), 2..4),
        schedule in 0u64..4,
    ) {
        let together = run::<f32>(&kernels(Checking::Accesses, schedule), vocab, &sequences);
        for (i, sequence) in sequences.iter().enumerate() {
            let alone = run::<f32>(&kernels(Checking::Off, 0), vocab, std::slice::from_ref(sequence));
            prop_assert_eq!(alone.verdicts[0], together.verdicts[i]);
            prop_assert_eq!(&alone.committed[0], &together.committed[i]);
        }
    }
}

/// A verification of one draft token over four ids, by hand.
fn by_hand(rule: Rule, p: [[f32; 4]; 2], q: [f32; 4], token: i32, seed: u64) -> Verdict {
    let kernels = kernels(Checking::Accesses, 0);
    let stream = kernels.backend().stream();
    let row = |logits: [f32; 4]| [logits.as_slice(), &[f32::NAN; 4]].concat();
    let (target, draft) = ([row(p[0]), row(p[1])].concat(), row(q));
    let params = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let ways = [RowSampling::new(&params, None).unwrap(); 2];
    let stats = |logits: &[f32]| {
        let rows = logits.len() / 8;
        let mut stats: Vec<RowStats> = vec![bytemuck::Zeroable::zeroed(); rows];
        let mut workspace = vec![0.0; workspace_len(rows, 4, false).unwrap()];
        let sample = Sample {
            vocab: 4,
            stride: 8,
            logits: LogitRows::Read(stream.view(logits)),
            logit_index: None,
            sampling: stream.view(&ways[..rows]),
            starts: None,
            draft: None,
            calibration: None,
            workspace: stream.view_mut(&mut workspace),
            stats: stream.view_mut(&mut stats),
            error: None,
        };
        kernels.sample(&stream, sample).unwrap();
        stats
    };
    let (target_stats, draft_stats) = (stats(&target), stats(&draft));
    let request = VerifySequence {
        rule,
        seed,
        position: 7,
        drafts: 1,
        first_target: 0,
        first_draft: Some(0),
        first_token: 0,
        groups: GroupSet::default(),
    };
    let requests = [Verify::new(&request).unwrap()];
    let mut workspace = vec![0u64; accept_workspace_len(1, 4).unwrap()];
    let (mut arrived, mut committed) = ([0], [0; MAX_COMMITTED]);
    let mut verdicts: [Verdict; 1] = bytemuck::Zeroable::zeroed();
    kernels
        .accept(
            &stream,
            &Accept {
                vocab: 4,
                stride: 8,
                sequences: stream.view(&requests),
                any_block: rule == Rule::Block,
                tokens: stream.view(&[token]),
                target: SampledRows { logits: stream.view(&target), stats: stream.view(&target_stats) },
                draft: Some(SampledRows { logits: stream.view(&draft), stats: stream.view(&draft_stats) }),
                workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                arrived: stream.view_mut(&mut arrived),
                verdicts: stream.view_mut(&mut verdicts),
                committed: stream.view_mut(&mut committed),
                error: None,
            },
        )
        .unwrap();
    verdicts[0]
}

#[test]
fn what_cannot_be_is_never_committed() {
    const NO: f32 = f32::NEG_INFINITY;
    let all = [0.0; 4];
    for rule in [Rule::Rejection, Rule::Block] {
        for seed in 0..200 {
            // p(d) = 0: never accepted, and the bonus token is one that p can draw.
            let verdict = by_hand(rule, [[NO, 0.0, 0.0, NO], all], all, 0, seed);
            assert_eq!(verdict.accepted, 0);
            assert!([1, 2].contains(&verdict.bonus), "{verdict:?}");
            // q(d) = 0 where p(d) > 0: always accepted. A token that is not of the vocabulary: never.
            assert_eq!(by_hand(rule, [all, all], [NO, 0.0, 0.0, 0.0], 0, seed).accepted, 1);
            assert_eq!(by_hand(rule, [all, all], all, 4, seed).accepted, 0);
            // p = q: always accepted.
            assert_eq!(by_hand(rule, [all, all], all, 3, seed).accepted, 1);
            // One-hot p and q elsewhere: the residual is p.
            let verdict = by_hand(rule, [[NO, NO, 5.0, NO], all], [0.0, NO, NO, NO], 0, seed);
            assert_eq!((verdict.accepted, verdict.bonus, verdict.probability), (0, 2, 1.0));
            // Nothing left of p after an impossible draft, as q = p: p itself.
            let verdict = by_hand(rule, [[NO, 0.0, NO, NO], all], [NO, 0.0, NO, NO], 0, seed);
            assert_eq!((verdict.accepted, verdict.bonus), (0, 1));
        }
    }
}

#[test]
fn rows_that_do_not_exist() {
    let kernels = kernels(Checking::Accesses, 0);
    let stream = kernels.backend().stream();
    let sound = VerifySequence {
        rule: Rule::Rejection,
        seed: 1,
        position: 3,
        drafts: 2,
        first_target: 0,
        first_draft: Some(0),
        first_token: 0,
        groups: GroupSet::default(),
    };
    let (target, draft) = (vec![0.0f32; 3 * 8], vec![0.0f32; 2 * 8]);
    let stats: Vec<RowStats> = vec![bytemuck::Zeroable::zeroed(); 3];
    let run = |sequence: VerifySequence, tokens: &[i32]| {
        let mut workspace = vec![0u64; accept_workspace_len(1, 8).unwrap()];
        let (mut arrived, mut error) = ([0u32], [0u32]);
        let mut verdicts: [Verdict; 1] = bytemuck::Zeroable::zeroed();
        let mut committed = [0i32; MAX_COMMITTED];
        let requests = [Verify::new(&sequence).unwrap()];
        kernels.accept(
            &stream,
            &Accept {
                vocab: 8,
                stride: 8,
                sequences: stream.view(&requests),
                any_block: true,
                tokens: stream.view(tokens),
                target: SampledRows { logits: stream.view(&target), stats: stream.view(&stats) },
                draft: Some(SampledRows { logits: stream.view(&draft), stats: stream.view(&stats[..2]) }),
                workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                arrived: stream.view_mut(&mut arrived),
                verdicts: stream.view_mut(&mut verdicts),
                committed: stream.view_mut(&mut committed),
                error: Some(stream.view_mut(&mut error)),
            },
        )?;
        Ok::<_, KernelError>((verdicts[0].accepted, error[0]))
    };
    for rule in [Rule::Match, Rule::Rejection, Rule::Block] {
        assert_eq!(run(VerifySequence { rule, ..sound }, &[1, 2]).unwrap().1, 0);
        for wrong in [
            VerifySequence { rule, first_target: 1, ..sound },
            VerifySequence { rule, first_target: i32::MAX as usize, ..sound },
            VerifySequence { rule, first_draft: Some(1), ..sound },
            VerifySequence { rule, first_token: 1, ..sound },
        ] {
            assert_eq!(run(wrong, &[1, 2]).unwrap(), (-1, 16));
        }
        assert_eq!(run(VerifySequence { rule, ..sound }, &[1]).unwrap(), (-1, 16));
    }
}
