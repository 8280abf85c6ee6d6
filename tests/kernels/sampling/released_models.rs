//! Tests sampling over the vocabularies of Qwen3 and SmolLM2, with the calibrator of the released drafters.

use flexdraft::sampling::SamplingParams;
use half::bf16;

use super::batch::{Batch, Correction, Stored, bench, check};
use super::generators::{Shape, logits, noise};
use super::way::Way;
use super::{check_calibrated, check_calibrated_outcome, check_independence_on, exact_corrections};
use crate::processors::{Processor, processors_of_large_cases, the_gpu};

/// The vocabulary of Qwen3. Its plain rows have more chunks than one CTA takes, and its calibrated rows have more
/// chunks than the last pass has threads.
const LARGE_VOCAB: usize = 151_936;

/// Returns rows of logits over the vocabulary of Qwen3, to sample greedily, at random, and with every truncation.
fn large_rows(seed: u64) -> (Vec<Vec<f32>>, Vec<Way>) {
    let one = SamplingParams::at_temperature(0.9);
    let ways = vec![
        Way { draft: LARGE_VOCAB as i32 - 1, ..Way::greedy() },
        Way { draft: 77_777, ..Way::drawn(one, seed) },
        Way { draft: 140_000, ..Way::drawn(SamplingParams { top_k: 1000, top_p: 0.8, ..one }, seed + 1) },
        Way::drawn(SamplingParams { top_p: 0.95, min_p: 1e-4, ..one }, seed + 2),
    ];
    let rows = (0..4).map(|row| {
        let mut row = logits(seed + row, LARGE_VOCAB, Shape::Bell(1.5));
        // The largest logit is in the last chunk of the vocabulary.
        row[LARGE_VOCAB - 3] = 9.0;
        row
    });
    (rows.collect(), ways)
}

#[test]
fn plain_rows_of_a_model_s_vocabulary() {
    let (rows, ways) = large_rows(21);
    for outcome in Batch::<f32>::plain(rows, ways.clone()).on_every_processor(false) {
        assert_eq!(outcome.stats[0].token, LARGE_VOCAB as i32 - 3);
        check(&outcome, &ways);
    }
    let (rows, ways) = large_rows(22);
    let batch = Batch::<bf16>::plain(rows, ways.clone());
    batch.on_every_processor(false).for_each(|outcome| check(&outcome, &ways));
}

#[test]
fn calibrated_rows_of_a_model_s_vocabulary() {
    let rank = 8;
    fn run<L: Stored>(seed: u64, rank: usize) {
        let (rows, ways) = large_rows(seed);
        let mut batch = Batch::<L>::plain(rows, ways);
        let halves = |seed, len, scale| noise(seed, len, scale).into_iter().map(bf16::from_f32).collect();
        batch.correction = Some(Correction {
            rank,
            weight: halves(1, LARGE_VOCAB * rank, 0.3),
            bias: Some(noise(2, LARGE_VOCAB, 1.0)),
            hidden: (0..4).map(|row| halves(seed + row, rank, 0.7)).collect(),
        });
        check_calibrated(&batch);
    }
    run::<f32>(23, rank);
    run::<bf16>(24, rank);
}

/// Returns sampling parameters of every kind: greedy, plain, and with each truncation.
fn kinds() -> [SamplingParams; 6] {
    let params = |temperature, top_k, top_p, min_p| SamplingParams { temperature, top_k, top_p, min_p };
    [
        params(1.0, 0, 1.0, 0.0),
        params(0.0, 0, 1.0, 0.0),
        params(0.8, 40, 1.0, 0.0),
        params(1.0, 0, 0.9, 0.0),
        params(0.7, 20, 0.8, 0.05),
        params(1.5, 0, 1.0, 0.02),
    ]
}

/// Checks rows with parameters of every kind: against the reference, in another order and alone. A calibrator of rank 0
/// is none.
fn check_rows(processor: Processor, vocab: usize, count: u64, rank: usize) {
    let ways = (0..count).map(|row| Way::drawn(kinds()[row as usize % kinds().len()], row)).collect();
    let rows = (0..count).map(|row| logits(30 + row, vocab, Shape::Bell(1.5))).collect();
    let mut batch = Batch::<f32>::plain(rows, ways);
    let halves = |seed, len, scale| noise(seed, len, scale).into_iter().map(bf16::from_f32).collect();
    batch.correction = (rank > 0).then(|| Correction {
        rank,
        weight: halves(1, vocab * rank, 0.3),
        bias: Some(noise(2, vocab, 1.0)),
        hidden: (0..count).map(|row| halves(100 + row, rank, 0.7)).collect(),
    });
    let outcome = check_independence_on(&bench(processor), &batch, rank > 0, kinds().len());
    match rank {
        0 => check(&outcome, &batch.ways),
        _ => check_calibrated_outcome(&batch, &exact_corrections(&batch), &outcome),
    }
}

/// The rank of the released drafters' calibrators.
const RANK: usize = 512;

#[test]
fn rows_of_a_batch() {
    for processor in the_gpu() {
        for (vocab, rank) in [(LARGE_VOCAB, 0), (LARGE_VOCAB, RANK), (49_152, 0), (49_152, RANK)] {
            check_rows(processor, vocab, 33, rank);
        }
    }
}

#[test]
fn rows_of_a_draft() {
    for processor in processors_of_large_cases() {
        for rank in [0, RANK] {
            check_rows(processor, 49_152, 7, rank);
        }
    }
}
