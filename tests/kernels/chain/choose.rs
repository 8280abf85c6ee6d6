//! Tests of the choice of the most likely ids: exactly the ids and the order of the reference.

use flexdraft::kernels::chain::ChainChoose;
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, Sample, workspace_len};
use flexdraft::runtime::simt::Checking;
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::chain::likeliest;
use half::{bf16, f16};
use proptest::prelude::*;

use super::bench;
use crate::halves::Half;
use crate::processors::{Bench, processors};
use crate::sampling::batch::{Stored, poisoned_stats};
use crate::sampling::generators::{Shape, logits, shape};
use crate::support::properties::properties;

/// The chosen ids of each row with their logits, and the error word.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    pub ids: Vec<Vec<i32>>,
    pub logits: Vec<Vec<f32>>,
    pub error: u32,
}

/// Runs the pass over the logits, with a calibrator that adds zeros if `calibrated`, and chooses `count` ids per row.
pub fn choose<L: Stored>(
    bench: &Bench,
    rows: &[Vec<f32>],
    index: Option<&[i32]>,
    calibrated: bool,
    count: usize,
) -> Chosen {
    let Bench { kernels, stream } = bench;
    let vocab = rows[0].len();
    let stride = vocab.next_multiple_of(8) + 8;
    let mut stored = vec![L::of(f32::NAN); rows.len() * stride];
    for (row, stored) in rows.iter().zip(stored.chunks_exact_mut(stride)) {
        row.iter().zip(stored).for_each(|(&value, stored)| *stored = L::of(value));
    }
    let (mut memory, chosen_rows) = (bench.memory(&stored), index.map_or(rows.len(), <[i32]>::len));
    let index = index.map(|index| bench.memory(index));
    let greedy = RowSampling::new(&SamplingParams::GREEDY, None).unwrap();
    let sampling = bench.memory(&vec![greedy; chosen_rows]);
    let [hidden, weight] =
        [chosen_rows, vocab].map(|rows| bench.memory(&vec![L::Calibrator::rounded(0.0); rows * 8]));
    let needed = workspace_len(chosen_rows, vocab, calibrated).unwrap();
    let mut workspace = bench.memory(&vec![f32::NAN; needed]);
    let mut stats = bench.memory(&vec![poisoned_stats(); chosen_rows]);
    let mut error = bench.memory(&[0]);
    let args = Sample {
        vocab,
        stride,
        logits: match calibrated {
            true => LogitRows::Update(bench.view_mut(&mut memory)),
            false => LogitRows::Read(bench.view(&memory)),
        },
        logit_index: index.as_ref().map(|index| bench.view(index)),
        sampling: bench.view(&sampling),
        starts: None,
        draft: None,
        calibration: calibrated.then(|| Calibration {
            rank: 8,
            hidden: bench.view(&hidden).into(),
            weight: bench.view(&weight).into(),
            bias: None,
        }),
        workspace: bench.view_mut(&mut workspace),
        stats: bench.view_mut(&mut stats),
        error: None,
    };
    kernels.sample_partials(stream, args).unwrap();
    assert!(
        bench.host(&stats).iter().all(|row| bytemuck::bytes_of(row) == bytemuck::bytes_of(&poisoned_stats()))
    );
    let mut ids = bench.memory(&vec![-7; chosen_rows * count]);
    let mut chosen = bench.memory(&vec![f32::NAN; chosen_rows * count]);
    let args = ChainChoose {
        vocab,
        stride,
        logits: bench.view(&memory),
        logit_index: index.as_ref().map(|index| bench.view(index)),
        partials: bench.view(&workspace),
        calibrated,
        count,
        ids: bench.view_mut(&mut ids),
        chosen: bench.view_mut(&mut chosen),
        error: Some(bench.view_mut(&mut error)),
    };
    kernels.chain_choose(stream, &args).unwrap();
    drop(args);
    Chosen {
        ids: bench.host(&ids).chunks(count).map(<[i32]>::to_vec).collect(),
        logits: bench.host(&chosen).chunks(count).map(<[f32]>::to_vec).collect(),
        error: bench.host(&error)[0],
    }
}

/// Checks that the kernel chooses the reference's ids, on every processor.
fn check<L: Stored>(rows: &[Vec<f32>], calibrated: bool, count: usize, schedule: u64) {
    let rows: Vec<Vec<f32>> =
        rows.iter().map(|row| row.iter().map(|&x| L::of(x).value()).collect()).collect();
    for processor in processors() {
        let found = choose::<L>(&bench(processor, Checking::Off, schedule), &rows, None, calibrated, count);
        assert_eq!(found.error, 0);
        for ((row, ids), logits) in rows.iter().zip(&found.ids).zip(&found.logits) {
            let exact: Vec<f64> = row.iter().map(|&l| l.into()).collect();
            let expected: Vec<i32> = likeliest(&exact, count).into_iter().map(|id| id as i32).collect();
            assert_eq!(ids, &expected);
            let expected: Vec<f32> = ids.iter().map(|&id| row[id as usize].max(f32::NEG_INFINITY)).collect();
            assert_eq!(logits, &expected);
        }
    }
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn the_chosen_ids_are_the_reference_s(
        (vocab, count) in prop_oneof![1usize..40, 40usize..1100, 1100usize..9000]
            .prop_flat_map(|vocab| (Just(vocab), 1..=vocab.min(32))),
        rows in prop::collection::vec((any::<u64>(), shape()), 1..4),
        (calibrated, stored) in (any::<bool>(), 0..3),
        schedule in 0u64..4,
    ) {
        let vocab = if calibrated { vocab.min(2500) } else { vocab };
        let count = count.min(vocab);
        let rows: Vec<Vec<f32>> = rows.into_iter().map(|(seed, shape)| logits(seed, vocab, shape)).collect();
        match stored {
            0 => check::<bf16>(&rows, calibrated, count, schedule),
            1 => check::<f16>(&rows, calibrated, count, schedule),
            _ => check::<f32>(&rows, calibrated, count, schedule),
        }
    }
}

/// The largest logits stand in one chunk, one per chunk, or are all equal; no chunk with a chosen id is passed over.
#[test]
fn logits_in_any_arrangement() {
    let vocab = 40 * 1024 + 5;
    let one_chunk = |id: usize| if id / 1024 == 39 { 5.0 + (id * 7 % 64) as f32 } else { 4.0 };
    let one_per_chunk = |id: usize| if id % 1024 == 1023 { (id / 1024 * 13 % 40) as f32 } else { -1.0 };
    let nowhere = |_| f32::NEG_INFINITY;
    let last = |id: usize| if id + 1 == 40 * 1024 + 5 { 1.0 } else { f32::NAN };
    let arrangements: [&dyn Fn(usize) -> f32; 5] = [&one_chunk, &one_per_chunk, &|_| 2.5, &nowhere, &last];
    for arrangement in arrangements {
        let row: Vec<f32> = (0..vocab).map(arrangement).collect();
        for count in [1, 16, 32] {
            check::<f32>(std::slice::from_ref(&row), false, count, 1);
        }
        check::<f32>(&[row[vocab - 2000..].to_vec()], true, 32, 0);
    }
}

/// Rows are looked up by index. A row that the index leaves out, or that does not exist, gets valid ids and no logits.
#[test]
fn rows_by_index() {
    let rows: Vec<Vec<f32>> = (0..3).map(|seed| logits(seed, 70, Shape::Bell(2.0))).collect();
    for processor in processors() {
        let bench = bench(processor, Checking::Accesses, 2);
        let all = choose::<f32>(&bench, &rows, None, false, 3);
        for calibrated in [false, true] {
            let found = choose::<f32>(&bench, &rows, Some(&[2, -1, 0]), calibrated, 3);
            assert_eq!(found.error, 0);
            assert_eq!(found.ids, [all.ids[2].clone(), vec![0, 1, 2], all.ids[0].clone()]);
            assert_eq!(found.logits[1], [f32::NEG_INFINITY; 3]);
            for wrong in [-2, 3, i32::MAX] {
                let found = choose::<f32>(&bench, &rows, Some(&[wrong, 1]), calibrated, 3);
                assert_eq!((found.error, &found.ids[0], &found.ids[1]), (16, &vec![0, 1, 2], &all.ids[1]));
                assert_eq!(found.logits[0], [f32::NEG_INFINITY; 3]);
            }
        }
    }
}
