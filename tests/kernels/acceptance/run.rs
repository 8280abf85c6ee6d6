//! Runs the acceptance kernels on sequences to verify.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, ChosenRows, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::chain::MAX_CHOSEN;
use flexdraft::kernels::sampling::{Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::random::Stream;
use flexdraft_reference::chain::likeliest;
use half::{bf16, f16};

use super::sequences::{Sequence, ids_above};
use crate::processors::{Bench, Operand};

/// The outcome of a batch: a verdict and the committed tokens per sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub verdicts: Vec<Verdict>,
    pub committed: Vec<Vec<i32>>,
}

/// Number of rows in front of the drafts' rows in the draft logits; these rows have no statistics.
const ROWS_BEFORE_DRAFTS: usize = 2;

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
