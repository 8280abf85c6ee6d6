//! Sampling of rows of logits, plain, calibrated and edited.

#[allow(dead_code)]
#[path = "../../../../tests/kernels/sampling/generators.rs"]
pub mod generators;
#[allow(dead_code)]
#[path = "../../../../tests/kernels/sampling/oracle.rs"]
pub mod oracle;
#[path = "../../../../tests/support/processors.rs"]
mod random;
#[allow(dead_code)]
#[path = "../../../../tests/kernels/sampling/way.rs"]
pub mod way;

use candle_core::{Tensor, WithDType};
use flexdraft::kernels::Fault;
use flexdraft::kernels::sampling::{EditTables, RowSampling, RowStats};
use flexdraft::processors::{History, LogitProcessors};
use flexdraft_candle::{Calibration, Sample, Sampled, SampledLogits, read_table, table};
use flexdraft_reference::linear::Linear;
use flexdraft_reference::process::{History as Past, Processors, process};
use proptest::prelude::*;

use crate::properties::properties;
use crate::support::{Noise, Stored, both, of_stored, same, tensor, values};
use generators::{Shape, logits, shape, way};
use oracle::check_row;
use way::Way;

/// Returns rows of logits as a tensor whose columns beyond the vocabulary are NaN.
pub fn stored<L: Stored>(rows: &[Vec<f32>]) -> Tensor {
    let stride = rows[0].len().next_multiple_of(8) + 8;
    let mut elements = Vec::new();
    for (r, row) in rows.iter().enumerate() {
        elements.extend(row.iter().map(|&logit| L::from_f64(logit.into())));
        elements.resize((r + 1) * stride, L::from_f64(f64::NAN));
    }
    tensor(&elements, &[rows.len(), stride])
}

/// Returns the logits of each row of a tensor.
pub fn loaded<L: Stored>(rows: &Tensor, vocab: usize) -> Vec<Vec<f32>> {
    let (elements, stride) = (values::<L>(rows), rows.dims()[1]);
    elements.chunks(stride).map(|row| row[..vocab].iter().map(|x| x.to_f64() as f32).collect()).collect()
}

/// Returns the table of rows that are sampled in these ways.
pub fn sampling(ways: &[Way]) -> Tensor {
    let rows = ways.iter().map(|way| RowSampling::new(&way.params, way.stream()).unwrap());
    table(&rows.collect::<Vec<_>>(), &candle_core::Device::Cpu).unwrap()
}

/// Rows of logits to sample.
#[derive(Clone, Debug)]
struct Rows {
    logits: Vec<Vec<f32>>,
    ways: Vec<Way>,
    seed: u64,
}

fn rows() -> impl Strategy<Value = Rows> {
    let vocab = prop_oneof![4 => 1usize..300, 1 => 1000usize..1100];
    let rows = vocab.prop_flat_map(|vocab| {
        (prop::collection::vec((any::<u64>(), shape(), way(vocab)), 1..4), Just(vocab), any::<u64>())
    });
    rows.prop_map(|(rows, vocab, seed)| Rows {
        logits: rows.iter().map(|row| logits(row.0, vocab, row.1)).collect(),
        ways: rows.iter().map(|row| row.2).collect(),
        seed,
    })
}

/// Checks the statistics of rows whose logits after sampling are `after`.
fn check_rows(sampled: &Sampled, after: &[Vec<f32>], ways: &[Way]) {
    let stats: Vec<RowStats> = read_table(&sampled.stats).unwrap();
    assert_eq!(stats.len(), ways.len());
    for ((stats, logits), way) in stats.iter().zip(after).zip(ways) {
        check_row(stats, logits, way);
    }
}

fn check_plain<L: Stored>(rows: &Rows) {
    let (kernels, vocab) = (both().0, rows.logits[0].len());
    let logits = stored::<L>(&rows.logits);
    let before = values::<L>(&logits);
    let draft: Vec<i32> = rows.ways.iter().map(|way| way.draft).collect();
    let args = Sample {
        vocab,
        logits: SampledLogits::Read(&logits),
        logit_index: None,
        sampling: &sampling(&rows.ways),
        starts: None,
        draft: Some(&tensor(&draft, &[draft.len()])),
        calibration: None,
    };
    let sampled = kernels.sample(&args).unwrap();
    same(&logits, &before);
    let before = loaded::<L>(&logits, vocab);
    check_rows(&sampled, &before, &rows.ways);
    let faults = kernels.take_faults().unwrap();
    let has_nan = before.iter().flatten().any(|logit| logit.is_nan());
    assert_eq!(faults.is_some_and(|faults| faults.contains(Fault::Nan)), has_nan);

    // The correction of the logits by a calibrator, with the sum of the magnitudes of its products.
    let (rank, mut noise) = (8 * (1 + rows.seed as usize % 9), Noise(rows.seed));
    let (hidden, weight, bias): (Vec<L::Calibrator>, Vec<L::Calibrator>, _) =
        (noise.halves(draft.len() * rank), noise.halves(vocab * rank), noise.floats(vocab));
    let calibration = Calibration {
        hidden: &tensor(&hidden, &[draft.len(), rank]),
        weight: &tensor(&weight, &[vocab, rank]),
        bias: Some(&tensor(&bias, &[vocab])),
    };
    let args = Sample { logits: SampledLogits::Update(&logits), calibration: Some(calibration), ..args };
    let sampled = kernels.sample(&args).unwrap();
    let after = loaded::<L>(&logits, vocab);
    let wide = |values: &[L::Calibrator]| values.iter().map(|value| value.to_f64()).collect::<Vec<f64>>();
    let bias = Some(bias.into_iter().map(f64::from).collect());
    let output = Linear { bias, ..Linear::new(wide(&weight), rank) };
    for ((before, after), hidden) in before.iter().zip(&after).zip(hidden.chunks(rank)) {
        let hidden = wide(hidden);
        for (id, correction) in output.apply(&hidden).into_iter().enumerate() {
            let size: f64 = output.row(id).iter().zip(&hidden).map(|(w, u)| (w * u).abs()).sum();
            let (found, exact) = (f64::from(after[id]), f64::from(before[id]) + correction);
            if exact.is_nan() || exact.is_infinite() {
                assert!(
                    found == exact || (found.is_nan() && exact.is_nan()),
                    "id {id}: {found}, not {exact}"
                );
            } else if exact.abs() <= L::LARGE {
                let tolerance = L::EPSILON * 0.51 * exact.abs() + (1e-6 * size).max(2e-5);
                assert!((found - exact).abs() <= tolerance, "id {id}: {found}, not {exact}");
            }
        }
    }
    check_rows(&sampled, &after, &rows.ways);
}

/// Returns rows of one sequence, with its processors and the tokens before each row: of a prompt of two tokens, of the
/// output and of the draft.
fn edited() -> impl Strategy<Value = (Rows, LogitProcessors, Vec<u32>)> {
    rows().prop_flat_map(|rows| {
        let vocab = rows.logits[0].len();
        let tokens = prop::collection::vec(0..vocab as u32, rows.ways.len() + 3..20);
        let bell = Rows {
            logits: (0..rows.ways.len() as u64)
                .map(|r| logits(rows.seed ^ r, vocab, Shape::Bell(2.0)))
                .collect(),
            ..rows
        };
        (Just(bell), random::processors(vocab), tokens)
    })
}

fn check_edited<L: Stored>(rows: &Rows, processors: &LogitProcessors, tokens: &[u32]) {
    let (kernels, vocab) = (both().0, rows.logits[0].len());
    let (count, end_ids) = (rows.ways.len(), [0]);
    let (past, draft) = tokens.split_at(tokens.len() + 1 - count);
    let mut tables = EditTables::new(count);
    let history = History { tokens: past, prompt_len: 2, draft, stop_ids: &end_ids };
    tables.push(0, count, &processors.edits(history, vocab), vocab).unwrap();
    let logits = stored::<L>(&rows.logits);
    let before = loaded::<L>(&logits, vocab);
    let draft: Vec<i32> = rows.ways.iter().map(|way| way.draft).collect();
    let sampled = kernels
        .sample(&Sample {
            vocab,
            logits: SampledLogits::Edit(&logits, &tables),
            logit_index: None,
            sampling: &sampling(&rows.ways),
            starts: None,
            draft: Some(&tensor(&draft, &[count])),
            calibration: None,
        })
        .unwrap();
    let after = loaded::<L>(&logits, vocab);
    let of_reference = Processors {
        repetition_penalty: processors.repetition_penalty.into(),
        frequency_penalty: processors.frequency_penalty.into(),
        presence_penalty: processors.presence_penalty.into(),
        bias: processors.logit_bias.iter().map(|(&id, &bias)| (id, bias.into())).collect(),
        min_tokens: processors.min_tokens,
        bad_words: processors.bad_words.clone(),
        mask: processors.allowed.as_deref().map(<[u32]>::to_vec),
        row_mask: None,
    };
    for (r, (before, after)) in before.iter().zip(&after).enumerate() {
        let before: Vec<f64> = before.iter().map(|&logit| logit.into()).collect();
        let past = Past { tokens: &tokens[..past.len() + r], prompt_len: 2, end_ids: &end_ids };
        for (id, exact) in process(&before, &of_reference, past).into_iter().enumerate() {
            let found = f64::from(after[id]);
            // Up to four operations in f32 on numbers below 100, and the rounding to the stored type.
            let tolerance = L::EPSILON * 0.51 * exact.abs() + 3e-5;
            assert!(
                found == exact || (found - exact).abs() <= tolerance,
                "row {r}, id {id}: {found}, not {exact}"
            );
        }
    }
    check_rows(&sampled, &after, &rows.ways);
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn rows_are_sampled_as_the_reference_samples_them(rows in rows(), stored in 0..3) {
        of_stored!(stored, check_plain(&rows));
    }

    #[test]
    fn edited_rows_are_the_reference_s((rows, processors, tokens) in edited(), stored in 0..3) {
        of_stored!(stored, check_edited(&rows, &processors, &tokens));
    }
}
