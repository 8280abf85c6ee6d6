//! Tests joint attention with the heads and page sizes of released models, over contexts of many splits: compared with
//! the reference, and with the same rows in other passes.

use flexdraft::kernels::attention::DEFAULT_SPLIT;
use flexdraft::layout::AttentionShape;

use super::case::{Sequence, Setting, compare, run};
use super::check_independence;
use crate::processors::{Processor, processors, the_gpu};

/// The attention heads of Qwen3-8B and SmolLM2-135M, with their usual page sizes.
const RELEASED: [(AttentionShape, usize); 2] = [
    (AttentionShape { q_heads: 32, kv_heads: 8, head_dim: 128 }, 64),
    (AttentionShape { q_heads: 9, kv_heads: 3, head_dim: 64 }, 16),
];

fn sequence(seed: u64, start: usize, candidates: usize, groups: &[usize]) -> Sequence {
    let slots = if groups.is_empty() { 0 } else { 16 };
    Sequence { start, candidates, groups: groups.to_vec(), slots, seed, first: 0 }
}

/// Checks the rows of a pass, with the number of CTAs and the shared memory that the processor has.
fn check(processor: Processor, shape: AttentionShape, page_size: usize, sequences: &[Sequence]) {
    let multiprocessors = if processor == Processor::Emulator { 4 } else { 132 };
    let usual =
        Setting { page_size, split: DEFAULT_SPLIT, multiprocessors, ..Setting::of(shape) }.on(processor);
    let other = Setting { page_size: if page_size == 16 { 64 } else { 16 }, head_major: true, ..usual };
    let together = run(usual, sequences);
    let checked = check_independence(other, sequences, usual, &together, 3);
    checked.unwrap_or_else(|problem| panic!("{usual:?}: {problem}"));
    for (sequence, rows) in sequences.iter().zip(&together) {
        compare(usual, sequence, rows).unwrap_or_else(|problem| panic!("{usual:?} {sequence:?}: {problem}"));
    }
}

/// Tests contexts of up to 8190 keys, only on a GPU, because the emulator would take too long.
#[test]
fn long_contexts() {
    for (processor, (shape, page_size)) in the_gpu().flat_map(|gpu| RELEASED.map(|model| (gpu, model))) {
        let start = if shape.head_dim == 128 { 8190 } else { 5000 };
        let sequences = [
            sequence(6, start, 5, &[0, 1, 4]),
            sequence(7, 700, 16, &[3, 15]),
            sequence(8, start / 2, 1, &[]),
        ];
        check(processor, shape, page_size, &sequences);
    }
}

/// Tests a step of eight sequences that verify 4 draft tokens and draft after each of 5 accepted lengths.
#[test]
fn a_batch() {
    let sequence = |context: usize, i: usize| sequence(20 + i as u64, context + 37 * i, 5, &[0, 1, 2, 3, 4]);
    for (processor, (shape, page_size)) in the_gpu().flat_map(|gpu| RELEASED.map(|model| (gpu, model))) {
        let sequences: Vec<Sequence> = (0..8).map(|i| sequence(800, i)).collect();
        check(processor, shape, page_size, &sequences);
    }
    // The emulator runs one short sequence of the small model, so that the test itself is tested without a GPU.
    let (shape, page_size) = RELEASED[1];
    for processor in processors() {
        check(processor, shape, page_size, &[sequence(20, 0)]);
    }
}
