//! Tests of joint draft-and-verify attention. Rows are compared with the reference in f64 while every byte that no row
//! may see is NaN, and must have the same bits in every pass that computes them.

mod case;
mod contexts;
mod f16;
mod influence;
mod items;
mod many_candidates;
mod on_the_emulator;
mod released_models;
mod shapes;

use std::collections::BTreeSet;

use flexdraft::layout::AttentionShape;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use proptest::prelude::*;

use crate::halves::Kind;
use crate::processors::{Processor, processors, runtimes_agree};
use crate::support::close::close;
use crate::support::properties::{fewer_than_usual, properties};
use crate::support::simt_variant::checking;
use case::{Changes, RowBits, Sequence, Setting, compare, run, run_on};

prop_compose! {
    fn sequence(longest: usize)(
        start in prop_oneof![
            4 => 0usize..longest,
            1 => Just(63),
            1 => Just(64),
            1 => Just(127),
            // A start around 256, where a span of four splits of 64 keys ends.
            1 => 250usize..260,
            1 => 700usize..780,
        ],
        candidates in prop_oneof![4 => 0usize..6, 1 => 30usize..70],
        groups in prop_oneof![
            4 => prop::collection::btree_set(0usize..6, 0..4),
            1 => prop::collection::btree_set(70usize..130, 1..3),
        ],
        slots in 1usize..9,
        seed in any::<u64>(),
    ) -> Sequence {
        // Groups see no position after the candidates, if there are candidates.
        let groups: BTreeSet<usize> =
            groups.into_iter().map(|group| if candidates > 0 { group % candidates } else { group }).collect();
        Sequence { start, candidates, groups: groups.into_iter().collect(), slots, seed, first: 0 }
    }
}

prop_compose! {
    fn changes()(
        window in prop::option::of(prop_oneof![Just(65usize), 65usize..300]),
        soft_cap in prop::option::of(prop::sample::select(vec![1.0f32, 5.0, 30.0])),
        has_sinks in any::<bool>(),
    ) -> Changes {
        Changes { window, soft_cap, has_sinks }
    }
}

prop_compose! {
    fn setting()(
        (head_dim, kind) in (prop::sample::select(vec![64usize, 128]), prop::sample::select(Kind::BOTH.to_vec())),
        ratio in 1usize..17,
        kv_heads in 1usize..3,
        page_size in prop::sample::select(vec![1usize, 3, 16, 32, 48, 64, 272]),
        split in prop::sample::select(vec![64usize, 64, 128, 512]),
        (head_major, separate) in any::<(bool, bool)>(),
        padding in 0usize..3,
        changes in prop_oneof![Just(Changes::default()), changes()],
        late in any::<bool>(),
        schedule in 0u64..4,
        small in any::<bool>(),
        multiprocessors in prop::sample::select(vec![2u32, 4, 24]),
    ) -> Setting {
        let kv_heads = if ratio > 4 { 1 } else { kv_heads };
        let shape = AttentionShape { q_heads: ratio * kv_heads, kv_heads, head_dim };
        let copies = if late { Copies::Late } else { Copies::Eager };
        let options = SimtOptions { checking: checking(Checking::Off), copies, schedule };
        let processor = Processor::Emulator;
        Setting {
            shape,
            kind,
            split,
            page_size,
            head_major,
            separate,
            padding,
            changes,
            processor,
            options,
            small,
            multiprocessors,
        }
    }
}

proptest! {
    #![proptest_config(properties(8))]

    #[test]
    fn the_reference_agrees(setting in setting(), sequences in prop::collection::vec(sequence(260), 1..6)) {
        for processor in processors() {
            for (sequence, rows) in sequences.iter().zip(run(setting.on(processor), &sequences)) {
                compare(setting, sequence, &rows)?;
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_wherever_it_is(
        setting in setting(),
        other in setting(),
        sequences in prop::collection::vec(sequence(200), 1..6),
    ) {
        for processor in processors() {
            let together = run(setting.on(processor), &sequences);
            check_independence(other.on(processor), &sequences, setting, &together, 1)?;
        }
    }
}

/// Checks that the rows of a pass have the same bits in other passes, which have the paging, tiles, order, copies and
/// limits of `other`: all sequences in reverse order, each sequence alone, and `parts` candidates and groups of each
/// sequence alone.
fn check_independence(
    other: Setting,
    sequences: &[Sequence],
    setting: Setting,
    together: &[Vec<RowBits>],
    parts: usize,
) -> Result<(), TestCaseError> {
    let Setting { shape, kind, split, changes, .. } = setting;
    let other = Setting { shape, kind, split, changes, ..other };
    let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
    let mut permuted = run(other, &reversed);
    permuted.reverse();
    prop_assert!(together == permuted, "permuted");
    for (sequence, rows) in sequences.iter().zip(together) {
        prop_assert!(run(other, std::slice::from_ref(sequence))[0] == *rows, "alone");
        // Returns the indices in the middle of `parts` equal parts of a list, without repetition.
        let picked = |len: usize| {
            let parts = parts.min(len);
            (0..parts).map(move |part| (2 * part + 1) * len / (2 * parts))
        };
        // Candidate i of a joint pass has the bits of the row of autoregressive decoding at its position. Its cache
        // ends at its own position, so later positions have no influence.
        for row in picked(sequence.candidates) {
            let ar = run(other, &[sequence.candidate(row)]).remove(0);
            prop_assert!(ar[0] == rows[row], "autoregressive");
        }
        // Mask group a of a joint pass has the bits of the group of a drafting pass after a tokens were accepted.
        for group in picked(sequence.groups.len()) {
            let drafted = run(other, &[sequence.group(group)]).remove(0);
            let first = sequence.candidates + group * sequence.slots;
            prop_assert!(drafted == rows[first..first + sequence.slots], "drafted alone");
        }
    }
    Ok(())
}

#[test]
fn is_the_same_on_every_runtime() {
    let sequences = [
        Sequence { start: 300, candidates: 4, groups: vec![0, 2, 3], slots: 5, seed: 1, first: 0 },
        Sequence { start: 63, candidates: 1, groups: vec![], slots: 0, seed: 2, first: 0 },
        Sequence { start: 17, candidates: 0, groups: vec![2], slots: 16, seed: 3, first: 0 },
    ];
    let changed = Changes { window: Some(100), soft_cap: Some(5.0), has_sinks: true };
    for (kind, head_dim, kv_heads, ratio, page_size, split, other_layout) in [
        (Kind::Bf16, 64, 1, 3, 16, 64, false),
        (Kind::F16, 64, 2, 1, 64, 128, true),
        (Kind::F16, 128, 1, 8, 32, 64, false),
        (Kind::Bf16, 128, 2, 2, 128, 512, true),
    ] {
        let shape = AttentionShape { q_heads: kv_heads * ratio, kv_heads, head_dim };
        let (head_major, separate) = (other_layout, other_layout);
        let changes = if other_layout { changed } else { Changes::default() };
        let setting = Setting {
            kind,
            page_size,
            split,
            head_major,
            separate,
            changes,
            padding: 1,
            ..Setting::of(shape)
        };
        runtimes_agree(
            |bench| {
                let rows = run_on(bench, setting, &sequences).concat();
                let (out, lse): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
                let out = out.concat().into_iter().map(|x| kind.value(x) as f32).collect();
                [out, lse.concat().into_iter().map(f32::from_bits).collect::<Vec<f32>>()]
            },
            |expected, found| {
                for (name, (found, expected)) in ["out", "lse"].iter().zip(found.iter().zip(expected)) {
                    close(name, found, expected, 4.0 * kind.roundoff() as f32);
                }
            },
        );
    }
}

/// Returns `1 / whole` of `cases` if fewer random cases than usual are asked for (in race mode and under sanitizers),
/// and otherwise all of them.
fn sample<T>(cases: impl IntoIterator<Item = T>, whole: usize) -> impl Iterator<Item = T> {
    let step = if fewer_than_usual() { whole } else { 1 };
    cases.into_iter().step_by(step)
}
