//! Acceptance compared with the reference in f64; a sequence's verdict does not depend on the other sequences.

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::layout::GroupSet;
use flexdraft::random::Stream;
use flexdraft::runtime::Runtime;
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::accept;
use flexdraft_reference::random::{Numbers, Purpose as Used};
use flexdraft_reference::sample::{argmax, draw_by_weights};
use flexdraft_reference::warp::{Warping, warp};

use crate::bench::{Bench, noise};
use crate::{Case, everywhere, on_a_gpu_or_rehearsed};

/// A sequence to verify, whose logits follow from its seed.
#[derive(Clone, Debug)]
struct Sequence {
    rule: Rule,
    params: SamplingParams,
    drafts: usize,
    /// The distance of the draft's logits from the target's.
    distance: f32,
    /// True if the draft tokens come from a distribution q; false for point masses.
    has_distribution: bool,
    seed: u64,
    /// The draft tokens, drawn from the draft's logits.
    tokens: Vec<u32>,
}

const GROUPS: usize = 4;

impl Sequence {
    fn position(&self) -> usize {
        50 + 1000 * self.seed as usize
    }

    /// Returns the target's and the draft's logits.
    fn logits(&self, vocab: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let row = |i: usize| -> Vec<f32> {
            noise(100 * self.seed + i as u64, vocab).into_iter().map(|x| x * x * x).collect()
        };
        let target: Vec<_> = (0..=self.drafts).map(row).collect();
        let draft = target[..self.drafts].iter().enumerate().map(|(i, p)| {
            let off = noise(100 * self.seed + 50 + i as u64, vocab);
            p.iter().zip(off).map(|(x, off)| x + off * self.distance).collect()
        });
        let draft = draft.collect();
        (target, draft)
    }

    fn warped(&self, logits: &[f32]) -> Vec<f64> {
        let SamplingParams { temperature, top_k, top_p, min_p } = self.params;
        let (temperature, top_p, min_p) = (temperature.into(), top_p.into(), min_p.into());
        let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        warp(&logits, &Warping { temperature, top_k, top_p, min_p }).probabilities
    }

    /// True if the rule is `match` in effect: at temperature 0, and without a draft, all rules agree.
    fn matches(&self) -> bool {
        self.params.temperature == 0.0 || self.rule == Rule::Match || self.drafts == 0
    }

    /// Returns the sequence with draft tokens drawn as its rule requires.
    fn drafted(self, vocab: usize) -> Self {
        let n = self.position();
        let token = |(i, logits): (usize, Vec<f32>)| {
            let q = self.warped(&logits);
            match self.matches() {
                true if self.params.temperature == 0.0 => argmax(&q),
                true => draw_by_weights(&q, &Numbers::target_draw(self.seed, n + i + 1)),
                false => draw_by_weights(&q, &Numbers::of_step(self.seed, Used::DraftDraw, i + 1, n)),
            }
        };
        let tokens = self.logits(vocab).1.into_iter().enumerate().map(token).collect();
        Sequence { tokens, ..self }
    }

    /// Returns the distributions p and q.
    fn laws(&self, vocab: usize) -> [Vec<Vec<f64>>; 2] {
        let (target, draft) = self.logits(vocab);
        let warped = |rows: &[Vec<f32>]| rows.iter().map(|row| self.warped(row)).collect();
        let point = |&d: &u32| (0..vocab).map(|x| f64::from(u8::from(x == d as usize))).collect();
        let q = if self.has_distribution { warped(&draft) } else { self.tokens.iter().map(point).collect() };
        [warped(&target), q]
    }

    /// Returns the reference's verdict, and p of the bonus token. Panics if rounding could decide a test or a draw,
    /// because agreement would then mean nothing.
    fn expected(&self, vocab: usize) -> (accept::Verdict, f64) {
        let ([p, q], tokens) = (self.laws(vocab), &self.tokens);
        let (seed, n) = (self.seed, self.position());
        let clearly = |weights: &[f64], numbers: &Numbers| {
            let scores: Vec<f64> =
                weights.iter().enumerate().map(|(id, w)| w.ln() + numbers.gumbel::<f64>(id as u32)).collect();
            let best = argmax(&scores);
            let second = scores.iter().enumerate().filter(|(id, _)| *id != best as usize);
            let second = second.fold(f64::NEG_INFINITY, |most, (_, x)| most.max(*x));
            assert!(scores[best as usize] - second > 1e-3, "{self:?}: a tie");
            best
        };
        let verdict = if self.matches() {
            accept::matching(tokens, |i| match self.params.temperature == 0.0 {
                true => argmax(&p[i]),
                false => clearly(&p[i], &Numbers::target_draw(seed, n + i + 1)),
            })
        } else {
            let uniform = |i: usize| Numbers::of_step(seed, Used::Acceptance, i, n).uniform::<f64>();
            let decide = |shift: f64| {
                let uniforms: Vec<f64> = (1..=tokens.len()).map(|i| uniform(i) + shift).collect();
                let draw = |a: usize, weights: &[f64]| {
                    clearly(weights, &Numbers::of_step(seed, Used::FinalDraw, a, n))
                };
                match self.rule {
                    Rule::Block => accept::block(&p, &q, tokens, &uniforms, draw),
                    _ => accept::rejection(&p, &q, tokens, &uniforms, draw),
                }
            };
            let verdict = decide(0.0);
            assert!([1e-4, -1e-4].iter().all(|&s| decide(s) == verdict), "{self:?}: a close test");
            verdict
        };
        (verdict, p[verdict.accepted][verdict.bonus as usize])
    }
}

/// Sequences that are verified together.
struct Batch {
    vocab: usize,
    sequences: Vec<Sequence>,
}

/// The verdicts, and the tokens that each verdict commits.
type Found = (Vec<Verdict>, Vec<Vec<i32>>);

impl Batch {
    fn verify<B: Runtime>(&self, bench: &Bench<B>, sequences: &[Sequence]) -> Found {
        let Bench { kernels, stream } = bench;
        let runtime = kernels.runtime();
        let (vocab, stride) = (self.vocab, self.vocab.next_multiple_of(8));
        let (mut target, mut draft, mut tokens) = (vec![], vec![], vec![]);
        let (mut target_ways, mut draft_ways, mut requests) = (vec![], vec![], vec![]);
        let store = |row: Vec<f32>, to: &mut Vec<f32>| {
            to.extend(row);
            to.resize(to.len().next_multiple_of(stride), f32::NAN);
        };
        for sequence in sequences {
            let rule = if sequence.params.temperature == 0.0 { Rule::Match } else { sequence.rule };
            requests.push(
                Verify::new(&VerifySequence {
                    rule,
                    seed: sequence.seed,
                    position: sequence.position(),
                    drafts: sequence.drafts,
                    first_target: target_ways.len(),
                    first_draft: sequence.has_distribution.then_some(draft_ways.len()),
                    first_token: tokens.len(),
                    groups: GroupSet::all(GROUPS),
                })
                .unwrap(),
            );
            let (p, q) = sequence.logits(vocab);
            for (i, row) in p.into_iter().enumerate() {
                let numbers = Stream::target_draw(sequence.seed, sequence.position() + i + 1);
                let drawn = sequence.matches() && sequence.params.temperature > 0.0;
                target_ways.push(RowSampling::new(&sequence.params, drawn.then_some(numbers)).unwrap());
                store(row, &mut target);
            }
            for row in q {
                draft_ways.push(RowSampling::new(&sequence.params, None).unwrap());
                store(row, &mut draft);
            }
            tokens.extend(sequence.tokens.iter().map(|&token| token as i32));
        }
        // Operands have at least one element.
        if draft_ways.is_empty() {
            draft_ways.push(RowSampling::new(&SamplingParams::GREEDY, None).unwrap());
            draft.resize(stride, 0.0);
            tokens.push(0);
        }
        let (target, draft) = (bench.memory(&target), bench.memory(&draft));
        let stats = |logits, ways: &[RowSampling]| {
            let mut stats = bench.memory(&vec![RowStats::zeroed(); ways.len()]);
            let mut workspace =
                bench.memory(&vec![f32::NAN; workspace_len(ways.len(), vocab, false).unwrap()]);
            let ways = bench.memory(ways);
            let sample = Sample {
                vocab,
                stride,
                logits: LogitRows::Read(runtime.view(stream, logits)),
                logit_index: None,
                sampling: runtime.view(stream, &ways),
                starts: None,
                draft: None,
                calibration: None,
                workspace: runtime.view_mut(stream, &mut workspace),
                stats: runtime.view_mut(stream, &mut stats),
                error: None,
            };
            kernels.sample(stream, sample).unwrap();
            stats
        };
        let (target_stats, draft_stats) = (stats(&target, &target_ways), stats(&draft, &draft_ways));
        let batch = sequences.len();
        let (requests, tokens) = (bench.memory(&requests), bench.memory(&tokens));
        let mut workspace = bench.memory(&vec![f32::NAN; accept_workspace_len(batch, vocab).unwrap()]);
        let (mut arrived, mut error) = (bench.memory(&vec![0u32; batch]), bench.memory(&[0u32]));
        let unwritten = Verdict { accepted: 99, bonus: 99, probability: 9.0, group: 99, cached_length: 99 };
        let mut verdicts = bench.memory(&vec![unwritten; batch]);
        let mut committed = bench.memory(&vec![99i32; batch * MAX_COMMITTED]);
        // The counters are back at 0 after a launch, so the kernel can be launched again.
        for _ in 0..2 {
            let args = Accept {
                vocab,
                stride,
                sequences: runtime.view(stream, &requests),
                target_partials: None,
                any_block: sequences.iter().any(|s| s.rule == Rule::Block),
                tokens: runtime.view(stream, &tokens),
                target: SampledRows {
                    logits: runtime.view(stream, &target),
                    stats: runtime.view(stream, &target_stats),
                },
                draft: Some(SampledRows {
                    logits: runtime.view(stream, &draft),
                    stats: runtime.view(stream, &draft_stats),
                }),
                workspace: runtime.view_mut(stream, &mut workspace),
                arrived: runtime.view_mut(stream, &mut arrived),
                verdicts: runtime.view_mut(stream, &mut verdicts),
                committed: runtime.view_mut(stream, &mut committed),
                error: Some(runtime.view_mut(stream, &mut error)),
            };
            kernels.accept(stream, &args).unwrap();
        }
        assert_eq!(bench.host(&error, 1), [0]);
        let committed = bench.host(&committed, batch * MAX_COMMITTED);
        (bench.host(&verdicts, batch), committed.chunks(MAX_COMMITTED).map(<[i32]>::to_vec).collect())
    }

    fn check(&self, (verdicts, committed): &Found) {
        let mut lengths = vec![];
        for (sequence, (verdict, committed)) in self.sequences.iter().zip(verdicts.iter().zip(committed)) {
            let (expected, p) = sequence.expected(self.vocab);
            let found = (verdict.accepted as usize, verdict.bonus as u32);
            assert_eq!(found, (expected.accepted, expected.bonus), "{sequence:?}");
            assert!((f64::from(verdict.probability) - p).abs() < 1e-3, "{sequence:?}");
            let rank = GroupSet::all(GROUPS).iter().position(|group| group == expected.accepted);
            assert_eq!(verdict.group, rank.map_or(-1, |rank| rank as i32), "{sequence:?}");
            assert_eq!(verdict.cached_length, (sequence.position() + expected.accepted + 1) as i64);
            let mut tokens: Vec<i32> = sequence.tokens.iter().map(|&token| token as i32).collect();
            tokens.truncate(expected.accepted);
            tokens.push(verdict.bonus);
            tokens.resize(MAX_COMMITTED, -1);
            assert_eq!(*committed, tokens, "{sequence:?}");
            lengths.push(expected.accepted);
        }
        lengths.sort_unstable();
        lengths.dedup();
        assert!(lengths.len() >= 3, "drafts are accepted as far as {lengths:?} alone");
    }
}

impl Case for Batch {
    type Output = Found;

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Found {
        let together = self.verify(bench, &self.sequences);
        let reversed: Vec<Sequence> = self.sequences.iter().rev().cloned().collect();
        let permuted = self.verify(bench, &reversed);
        for (i, sequence) in self.sequences.iter().enumerate() {
            let of = |found: &Found, i: usize| (found.0[i], found.1[i].clone());
            assert_eq!(of(&permuted, self.sequences.len() - 1 - i), of(&together, i), "in another order");
            let alone = self.verify(bench, std::slice::from_ref(sequence));
            assert_eq!(of(&alone, 0), of(&together, i), "alone");
        }
        together
    }
}

/// Returns a batch with every rule: close and distant drafts, point masses and no draft.
fn batch(vocab: usize) -> Batch {
    let mut sequences = vec![];
    let mut seed = 0;
    for rule in [Rule::Rejection, Rule::Block, Rule::Match] {
        for (temperature, top_k, drafts, distance, has_distribution) in [
            (1.0, 0, 5, 0.3, true),
            (0.8, 40, 7, 0.1, true),
            (1.0, 0, 3, 2.0, true),
            (0.7, 5, 4, 0.3, false),
            (0.0, 0, 6, 0.05, true),
            (1.0, 0, 0, 0.0, true),
        ] {
            seed += 1;
            let params = SamplingParams { temperature, top_k, top_p: 1.0, min_p: 0.0 };
            let tokens = vec![];
            let sequence = Sequence { rule, params, drafts, distance, has_distribution, seed, tokens };
            sequences.push(sequence.drafted(vocab));
        }
    }
    Batch { vocab, sequences }
}

#[test]
fn decisions() {
    for vocab in [100, 3001] {
        let case = batch(vocab);
        everywhere(&case, |found| case.check(found));
    }
}

/// Tests the vocabulary sizes of Qwen3 and SmolLM2.
#[test]
fn decisions_over_a_large_vocabulary() {
    for vocab in [151_936, 49_152] {
        let case = batch(vocab);
        on_a_gpu_or_rehearsed(&case, |found| case.check(found));
    }
}
