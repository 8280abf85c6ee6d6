//! Tests that the results have the same bits for every division of attention into work items, and in whatever order
//! CTAs take the items.

use flexdraft::layout::AttentionShape;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::Copies;

use super::case::{Changes, RowBits, Sequence, Setting, compare, run};
use super::sample;
use crate::halves::Kind;
use crate::processors::processors;

pub fn sequence(start: usize, candidates: usize, groups: &[usize], slots: usize) -> Sequence {
    Sequence { start, candidates, groups: groups.to_vec(), slots, seed: start as u64, first: 0 }
}

/// Returns sequences that are divided in different ways: full spans of 256 keys, spans of a few keys, slots as work
/// items of their own and as part of an item with all keys, groups that lie in two blocks of rows, and blocks of
/// several groups.
fn mixed() -> Vec<Sequence> {
    vec![
        sequence(10, 2, &[1], 16),
        // The keys of this sequence are two full spans, and two keys of a third span that some rows see.
        sequence(510, 4, &[0, 2, 3], 5),
        // The keys of this sequence are one full span and nothing else.
        sequence(255, 1, &[0], 16),
        sequence(300, 5, &[0, 1, 2], 16),
        // The keys of this sequence are full spans, without mask groups.
        sequence(511, 1, &[], 0),
        // Groups of one slot each: the sequence has more groups than a block has rows.
        sequence(257, 0, &[0, 1, 2, 5, 6, 7, 8, 9, 11], 1),
    ]
}

/// The number of multiprocessors ranges from one, which computes all work items in turn, to more than there are items.
#[test]
fn any_number_of_multiprocessors_gives_the_same_bits() {
    let sequences = mixed();
    for processor in processors() {
        for (kind, head_dim, ratio) in
            sample([(Kind::F16, 64, 4), (Kind::Bf16, 128, 4), (Kind::Bf16, 64, 9)], 3)
        {
            let shape = AttentionShape { q_heads: ratio, kv_heads: 1, head_dim };
            let setting = |multiprocessors, small| {
                Setting { kind, multiprocessors, small, ..Setting::of(shape) }.on(processor)
            };
            let first = run(setting(1, false), &sequences);
            for (sequence, rows) in sequences.iter().zip(&first) {
                compare(setting(1, false), sequence, rows)
                    .unwrap_or_else(|problem| panic!("{sequence:?}: {problem}"));
                let alone: Vec<Vec<RowBits>> = run(setting(3, false), std::slice::from_ref(sequence));
                assert!(alone[0] == *rows, "{sequence:?}: other bits alone");
            }
            // With 500 multiprocessors and large tiles, each work item has one split. Smaller samples include it.
            for (multiprocessors, small) in [(2, true), (3, false), (7, false), (500, true), (500, false)] {
                let options = SimtOptions { copies: Copies::Late, schedule: 1, ..Setting::of(shape).options };
                let found = run(Setting { options, ..setting(multiprocessors, small) }, &sequences);
                assert!(found == first, "{shape:?}: other bits on {multiprocessors} multiprocessors");
            }
        }
    }
}

/// Tests windows that begin at every kind of edge: of a tile, of a split and of a span of 256 keys, before and behind it,
/// far into a sequence, for mask rows whose windows begin in another item than the windows of candidates.
#[test]
fn windows() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 1, head_dim: 64 };
    let window = 100;
    let mut sequences: Vec<Sequence> = [63, 64, 65, 255, 256, 257, 2047, 2048]
        .map(|begin| sequence(begin + window - 1, 3, &[0, 2], 6))
        .to_vec();
    // The window of the last slot begins in the next span; a sequence that the window holds whole; a group alone.
    sequences.push(sequence(250 + window, 1, &[0], 16));
    sequences.push(sequence(40, 2, &[1], 8));
    sequences.push(sequence(511 + window, 0, &[3, 9], 16));
    let changes = Changes { window: Some(window), soft_cap: None, has_sinks: true };
    for processor in processors() {
        let setting =
            |multiprocessors| Setting { multiprocessors, changes, ..Setting::of(shape) }.on(processor);
        let first = run(setting(1), &sequences);
        for (sequence, rows) in sequences.iter().zip(&first) {
            compare(setting(1), sequence, rows).unwrap_or_else(|problem| panic!("{sequence:?}: {problem}"));
            let alone = run(setting(500), std::slice::from_ref(sequence));
            assert!(alone[0] == *rows, "{sequence:?}: other bits alone");
        }
        assert!(run(setting(500), &sequences) == first, "other bits in splits");
    }
}

/// Tests an odd batch with more sequences than a warp has lanes: the plan has two entries per two sequences, and a warp
/// adds up 32 entries at once.
#[test]
fn large_batches() {
    let shape = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 };
    let sequences: Vec<Sequence> = (0..71)
        .map(|i| {
            let groups: &[usize] = if i % 3 == 0 { &[0] } else { &[] };
            // Some sequences have no rows and therefore no work items.
            sequence(i * 13 % 290, i % 5 % 3, groups, 2)
        })
        .collect();
    for setting in processors().map(|processor| Setting::of(shape).on(processor)) {
        for (sequence, rows) in sequences.iter().zip(run(setting, &sequences)) {
            compare(setting, sequence, &rows).unwrap_or_else(|problem| panic!("{sequence:?}: {problem}"));
        }
    }
}
