//! Tests every shape that the attention kernels support, and every position where the keys are divided, once each.

use flexdraft::layout::AttentionShape;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::Copies;

use super::case::{Sequence, Setting, compare, run};
use super::sample;
use crate::halves::Kind;
use crate::processors::processors;

/// Compares the rows of a pass with the reference, on every processor.
fn check(setting: Setting, sequences: &[Sequence]) {
    for setting in processors().map(|processor| setting.on(processor)) {
        for (sequence, rows) in sequences.iter().zip(run(setting, sequences)) {
            compare(setting, sequence, &rows)
                .unwrap_or_else(|problem| panic!("{setting:?} {sequence:?}: {problem}"));
        }
    }
}

fn copies(late: bool) -> Copies {
    if late { Copies::Late } else { Copies::Eager }
}

/// Tests every head_dim in one type of elements, ratio of query to KV heads, page size and layout of the cache.
#[test]
fn every_shape() {
    let mut all = Vec::new();
    for (head_dim, ratio) in
        [64, 128].into_iter().flat_map(|head_dim| (1..=16).map(move |ratio| (head_dim, ratio)))
    {
        for page_size in [1, 16, 48, 128] {
            all.extend([false, true].map(|head_major| (head_dim, ratio, page_size, head_major)));
        }
    }
    // The sample takes every seventh case; 7 has no factor in common with the numbers of values, so the sample contains
    // every value.
    for (head_dim, ratio, page_size, head_major) in sample(all, 7) {
        let kv_heads = if head_major { 2 } else { 1 };
        let shape = AttentionShape { q_heads: ratio * kv_heads, kv_heads, head_dim };
        let usual = Setting::of(shape);
        let options = SimtOptions { copies: copies(ratio % 2 == 0), ..usual.options };
        let setting = Setting {
            kind: Kind::BOTH[(ratio + head_dim / 64) % 2],
            page_size,
            head_major,
            options,
            small: ratio % 3 == 0,
            padding: ratio % 4 / 3,
            ..usual
        };
        // The first candidate is on the last token of a cache page, and the following rows are on the next page.
        let (start, seed) = (page_size - 1, ratio as u64);
        check(setting, &[Sequence { start, candidates: 3, groups: vec![0, 2], slots: 2, seed, first: 0 }]);
    }
}

/// Tests the shape of the released drafters: blocks of 16, so 15 draft tokens, and a mask group for each accepted
/// length.
#[test]
fn the_released_shape() {
    for head_dim in sample([64, 128], 2) {
        let shape = AttentionShape { q_heads: 4, kv_heads: 1, head_dim };
        let groups = (0..16).collect();
        let sequence = Sequence { start: 250, candidates: 16, groups, slots: 16, seed: 1, first: 0 };
        check(Setting { page_size: 64, ..Setting::of(shape) }, &[sequence]);
    }
}

/// Tests ends of tiles (64 keys), of splits (128) and of spans (256) at each of the positions n + i that a pass with v
/// = 5 appends, and just before and after these positions. The bits are the same with a span per CTA and with a split
/// per CTA.
#[test]
fn every_row_at_every_boundary() {
    let (drafts, mut cases) = (5, Vec::new());
    for (boundary, split) in [(64, 64), (128, 128), (256, 64)] {
        cases.extend((boundary - drafts - 1..=boundary + 1).map(|start| (start, split)));
    }
    for (start, split) in sample(cases, 5) {
        let shape =
            AttentionShape { q_heads: 3, kv_heads: 1, head_dim: if start % 2 == 0 { 64 } else { 128 } };
        let groups = (0..=drafts).collect();
        let sequence =
            [Sequence { start, candidates: drafts + 1, groups, slots: 2, seed: start as u64, first: 0 }];
        let together = Setting { split, multiprocessors: 1, ..Setting::of(shape) };
        check(together, &sequence);
        for together in processors().map(|processor| together.on(processor)) {
            let apart = Setting { multiprocessors: 24, ..together };
            assert!(run(together, &sequence) == run(apart, &sequence), "{start}: other bits");
        }
    }
}
