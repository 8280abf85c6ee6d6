//! Tests of the walk: every row is warped and drawn as the reference draws from a row of logits that is s_j for the
//! chosen ids and −∞ elsewhere, where s_j depends on the token that was drawn before.

use flexdraft::kernels::chain::ChainWalk;
use flexdraft::kernels::sampling::{RowSampling, RowStats};
use flexdraft::kernels::selection::{Draft, DraftGroups};
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::simt::Checking;
use flexdraft::sampling::{SamplingParams, confidence};
use proptest::prelude::*;

use super::bench;
use crate::processors::{Bench, processors};
use crate::sampling::batch::{bits, poisoned_stats};
use crate::sampling::generators::{Shape, logits, noise, numbers, params, shape};
use crate::sampling::oracle::check_row;
use crate::sampling::way::Way;
use crate::support::noise::Xorshift;
use crate::support::properties::properties;

const INF: f32 = f32::INFINITY;

/// Drafts to be drawn.
#[derive(Clone, Debug)]
pub struct Walk {
    pub vocab: usize,
    pub count: usize,
    /// The number of rows of each draft.
    pub drafts: Vec<usize>,
    pub ids: Vec<Vec<i32>>,
    pub chosen: Vec<Vec<f32>>,
    /// The scores of each row, [count, count].
    pub scores: Vec<Vec<f32>>,
    pub ways: Vec<Way>,
    /// Whether each row is padding.
    pub padding: Vec<bool>,
}

/// The statistics and chained logits of each row, and the error word.
#[derive(Clone, Debug)]
pub struct Walked {
    pub stats: Vec<RowStats>,
    pub chosen: Vec<Vec<f32>>,
    pub error: u32,
}

/// Returns the table of drafts with the given numbers of rows.
fn drafts(rows: &[usize]) -> Vec<Draft> {
    let mut first_draft = 0;
    let draft = |(sequence, rows): (usize, &usize)| {
        let draft =
            DraftGroups { sequence, groups: GroupSet::NONE, first_slot: 0, slots: rows + 1, first_draft };
        first_draft += rows;
        Draft::new(&draft).unwrap()
    };
    rows.iter().enumerate().map(draft).collect()
}

pub fn walk(bench: &Bench, case: &Walk) -> Walked {
    let rows: usize = case.drafts.iter().sum();
    // Positions that fit an index count from the start of their draft.
    let owners = (0u32..).zip(&case.drafts).flat_map(|(draft, &rows)| std::iter::repeat_n(draft, rows));
    let start = |draft: u32| 7 + 5 * draft as usize;
    let sampling: Vec<RowSampling> = case
        .ways
        .iter()
        .zip(owners)
        .map(|(way, draft)| match way.numbers {
            Some((seed, purpose, slot, position)) if position >= start(draft) => {
                let stream = Stream::new(seed, purpose, slot, position - start(draft));
                RowSampling::new(&way.params, Some(stream)).unwrap().relative_to(draft)
            }
            _ => RowSampling::new(&way.params, way.stream()).unwrap(),
        })
        .collect();
    let starts: Vec<i32> = (0..case.drafts.len() as u32).map(|draft| start(draft) as i32).collect();
    let index: Vec<i32> =
        (0..).zip(&case.padding).map(|(row, &padding)| if padding { -1 } else { row }).collect();
    run(bench, case, &drafts(&case.drafts), &sampling, &starts, &index, rows)
}

fn run(
    bench: &Bench,
    case: &Walk,
    drafts: &[Draft],
    sampling: &[RowSampling],
    starts: &[i32],
    index: &[i32],
    rows: usize,
) -> Walked {
    let count = case.count;
    let (drafts, index) = (bench.memory(drafts), bench.memory(index));
    let (sampling, starts) = (bench.memory(sampling), bench.memory(starts));
    let (ids, scores) = (bench.memory(&case.ids.concat()), bench.memory(&case.scores.concat()));
    let mut chosen = bench.memory(&case.chosen.concat());
    let (mut stats, mut error) = (bench.memory(&vec![poisoned_stats(); rows]), bench.memory(&[0]));
    let args = ChainWalk {
        drafts: bench.view(&drafts),
        logit_index: Some(bench.view(&index)),
        sampling: bench.view(&sampling),
        starts: Some(bench.view(&starts)),
        count,
        ids: bench.view(&ids),
        scores: bench.view(&scores),
        chosen: bench.view_mut(&mut chosen),
        stats: bench.view_mut(&mut stats),
        error: Some(bench.view_mut(&mut error)),
    };
    bench.kernels.chain_walk(&bench.stream, &args).unwrap();
    drop(args);
    Walked {
        stats: bench.host(&stats),
        chosen: bench.host(&chosen).chunks(count).map(<[f32]>::to_vec).collect(),
        error: bench.host(&error)[0],
    }
}

/// Returns distinct ids of the vocabulary in any order.
fn distinct(seed: u64, vocab: usize, count: usize) -> Vec<i32> {
    let mut random = Xorshift::new(seed);
    let mut ids: Vec<i32> = (0..vocab as i32).collect();
    for i in 0..count {
        let other = i + (random.uniform() * (vocab - i) as f32) as usize;
        ids.swap(i, other.min(vocab - 1));
    }
    ids[..count].to_vec()
}

prop_compose! {
    fn case()(
        (vocab, count) in (1usize..200).prop_flat_map(|vocab| (Just(vocab), 1..=vocab.min(32))),
        drafts in prop::collection::vec(0usize..6, 1..4),
    )(
        rows in prop::collection::vec((any::<u64>(), shape(), params(), numbers()), drafts.iter().sum::<usize>()),
        drafts in Just(drafts),
        vocab in Just(vocab),
        count in Just(count),
    ) -> Walk {
        Walk {
            vocab,
            count,
            drafts,
            ids: rows.iter().map(|row| distinct(row.0, vocab, count)).collect(),
            chosen: rows.iter().map(|row| logits(row.0 ^ 1, count, row.1)).collect(),
            scores: rows.iter().map(|row| noise(row.0 ^ 2, count * count, 1.5)).collect(),
            ways: rows.iter().map(|row| Way { params: row.2, numbers: row.3, draft: -1 }).collect(),
            padding: vec![false; rows.len()],
        }
    }
}

/// Checks the drafts of one run against the reference.
fn check(case: &Walk, walked: &Walked) {
    assert_eq!(walked.error, 0);
    let mut row = 0;
    for &rows in &case.drafts {
        let mut before = 0;
        for _ in 0..rows {
            let scores = &case.scores[row][before * case.count..][..case.count];
            let chained: Vec<f32> = case.chosen[row].iter().zip(scores).map(|(l, s)| l + s).collect();
            let counted: Vec<f32> = chained.iter().map(|s| s.max(-INF)).collect();
            assert_eq!(walked.chosen[row], counted, "row {row}");
            let mut dense = vec![-INF; case.vocab];
            case.ids[row].iter().zip(&chained).for_each(|(&id, &s)| dense[id as usize] = s);
            let (way, mut stats) = (&case.ways[row], walked.stats[row]);
            let one_hot = stats.inverse_temperature == 0.0 || stats.max == -INF;
            if !one_hot && stats.cut_score == -INF {
                // Of a row in which nothing is dropped, the ids above −∞ count. The oracle expects all ids.
                let truncated = way.params.top_k > 0 && way.params.top_k < case.vocab;
                let kept = counted
                    .iter()
                    .filter(|&&s| s == stats.max || (s - stats.max) * stats.inverse_temperature > -INF);
                assert_eq!(stats.kept as usize, kept.count());
                if !truncated && way.params.top_p >= 1.0 && way.params.min_p == 0.0 {
                    stats.kept = case.vocab as i32;
                }
            }
            check_row(&stats, &dense, way);
            before = case.ids[row].iter().position(|&id| id == stats.token).unwrap_or(0);
            if stats.max == -INF {
                before = 0;
            }
            row += 1;
        }
    }
}

proptest! {
    #![proptest_config(properties(96))]

    #[test]
    fn drafts_are_drawn_as_the_reference_draws_them(case in case(), schedule in 0u64..4) {
        for processor in processors() {
            check(&case, &walk(&bench(processor, Checking::Off, schedule), &case));
        }
    }

    #[test]
    fn a_draft_does_not_depend_on_the_batch(case in case()) {
        for processor in processors() {
            let bench = bench(processor, Checking::Accesses, 1);
            let together = walk(&bench, &case);
            let mut first = 0;
            for (draft, &rows) in case.drafts.iter().enumerate() {
                let range = first..first + rows;
                // Starts differ from draft to draft, so the draft keeps its place behind drafts without rows.
                let alone = Walk {
                    drafts: [vec![0; draft], vec![rows]].concat(),
                    ids: case.ids[range.clone()].to_vec(),
                    chosen: case.chosen[range.clone()].to_vec(),
                    scores: case.scores[range.clone()].to_vec(),
                    ways: case.ways[range.clone()].to_vec(),
                    padding: case.padding[range.clone()].to_vec(),
                    ..case.clone()
                };
                let alone = walk(&bench, &alone);
                prop_assert_eq!(&alone.chosen, &together.chosen[range.clone()]);
                for (found, expected) in alone.stats.iter().zip(&together.stats[range]) {
                    prop_assert_eq!(bits(found), bits(expected));
                }
                first += rows;
            }
        }
    }
}

/// Returns a case of one draft whose rows have the same ids, logits and parameters.
fn same_rows(rows: usize, chosen: Vec<f32>, params: SamplingParams, vocab: usize) -> Walk {
    let count = chosen.len();
    Walk {
        vocab,
        count,
        drafts: vec![rows],
        ids: vec![(0..count as i32).map(|i| 2 * i).collect(); rows],
        chosen: vec![chosen; rows],
        scores: (0..rows).map(|row| noise(row as u64, count * count, 1.0)).collect(),
        ways: (0..rows)
            .map(|row| Way { params, numbers: Some((row as u64, Purpose::DraftDraw, row, 90)), draft: -1 })
            .collect(),
        padding: vec![false; rows],
    }
}

/// The confidence is the largest probability among the chosen ids at temperature 1, whichever id is drawn.
#[test]
fn the_confidence_is_not_that_of_the_drawn_id() {
    let params = SamplingParams { top_k: 7, ..SamplingParams::at_temperature(3.0) };
    let case = same_rows(40, logits(1, 9, Shape::Bell(1.0)), params, 30);
    for processor in processors() {
        let walked = walk(&bench(processor, Checking::Off, 0), &case);
        let mut others = 0;
        for (stats, chained) in walked.stats.iter().zip(&walked.chosen) {
            assert!((stats.confidence - confidence(chained)).abs() < 1e-5);
            others += usize::from(stats.token_logit < stats.max);
        }
        assert!(others > 10, "only {others} of 40 draws are not of the largest logit");
        check(&case, &walked);
    }
}

/// The largest draft, of 63 rows and 32 chosen ids, and rows without any id that could be drawn.
#[test]
fn the_longest_draft() {
    let mut case = same_rows(63, logits(2, 32, Shape::Bell(2.0)), SamplingParams::at_temperature(0.8), 100);
    for row in [0, 20, 21, 62] {
        case.chosen[row] = vec![[f32::NAN, -INF][row % 2]; 32];
    }
    case.scores[30][5] = INF;
    for processor in processors() {
        let walked = walk(&bench(processor, Checking::Accesses, 3), &case);
        assert_eq!([0, 20, 21, 62].map(|row| walked.stats[row].token), [0; 4]);
        assert_eq!([0, 20, 21, 62].map(|row| walked.stats[row].confidence), [0.0; 4]);
        check(&case, &walked);
    }
}

#[test]
fn rows_that_are_padding() {
    let mut case = same_rows(4, logits(3, 6, Shape::Bell(2.0)), SamplingParams::at_temperature(1.0), 20);
    case.drafts = vec![2, 2];
    for processor in processors() {
        let bench = bench(processor, Checking::Accesses, 0);
        let all = walk(&bench, &case);
        let padded = walk(&bench, &Walk { padding: vec![true, true, false, false], ..case.clone() });
        assert_eq!(padded.error, 0);
        assert_eq!(padded.stats[..2], [RowStats::default(); 2]);
        assert_eq!(padded.chosen[..2], case.chosen[..2]);
        assert_eq!(padded.stats[2..], all.stats[2..]);
    }
}

#[test]
fn drafts_and_starts_that_do_not_exist() {
    let case = same_rows(2, logits(4, 5, Shape::Bell(2.0)), SamplingParams::at_temperature(1.0), 20);
    let sampling = |sequence| {
        let stream = Stream::new(1, Purpose::DraftDraw, 1, 3);
        vec![RowSampling::new(&case.ways[0].params, Some(stream)).unwrap().relative_to(sequence); 2]
    };
    let sound = DraftGroups { sequence: 0, groups: GroupSet::NONE, first_slot: 0, slots: 3, first_draft: 0 };
    for processor in processors() {
        let bench = bench(processor, Checking::Accesses, 0);
        let walked = |draft, sequence| {
            run(&bench, &case, &[Draft::new(&draft).unwrap()], &sampling(sequence), &[9], &[0, 1], 2)
        };
        assert_eq!(walked(sound, 0).error, 0);
        // A sequence without a start counts from position 0.
        assert_eq!(walked(sound, 1).error, 16);
        for wrong in [
            DraftGroups { first_draft: 1, ..sound },
            DraftGroups { first_draft: i32::MAX as usize, ..sound },
            DraftGroups { slots: 64, ..sound },
        ] {
            let walked = walked(wrong, 0);
            assert_eq!((walked.error, &walked.chosen), (16, &case.chosen));
            assert!(walked.stats.iter().all(|stats| bits(stats) == bits(&poisoned_stats())));
        }
    }
}
