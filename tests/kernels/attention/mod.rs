//! Joint attention on the SIMT emulator. Rows are compared with the reference in f64 while every byte that no row may see
//! is NaN, and must have the same bits in every pass that computes them.

mod case;
mod contexts;
mod influence;
mod items;
mod misuse;
mod shapes;

use flexdraft::layout::AttentionShape;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies, Traffic};
use proptest::prelude::*;

use crate::support::properties::{fewer_than_usual, properties};
use crate::support::simt_variant::checking;
use case::{Sequence, Setting, compare, run, traffic};

prop_compose! {
    fn sequence(longest: usize)(
        start in prop_oneof![
            4 => 0usize..longest,
            1 => Just(63),
            1 => Just(64),
            1 => Just(127),
            // Spans of splits of 64 keys end at multiples of 256.
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
        Sequence { start, candidates, groups: groups.into_iter().collect(), slots, seed, first: 0 }
    }
}

prop_compose! {
    fn setting()(
        head_dim in prop::sample::select(vec![64usize, 128]),
        ratio in 1usize..17,
        kv_heads in 1usize..3,
        page_size in prop::sample::select(vec![16usize, 32, 64, 128]),
        split in prop::sample::select(vec![64usize, 64, 128, 512]),
        head_major in any::<bool>(),
        padding in 0usize..3,
        late in any::<bool>(),
        schedule in 0u64..4,
        small in any::<bool>(),
        multiprocessors in prop::sample::select(vec![2u32, 4, 24]),
    ) -> Setting {
        let kv_heads = if ratio > 4 { 1 } else { kv_heads };
        let shape = AttentionShape { q_heads: ratio * kv_heads, kv_heads, head_dim };
        let copies = if late { Copies::Late } else { Copies::Eager };
        let options = SimtOptions { checking: checking(Checking::Off), copies, schedule };
        Setting { shape, split, page_size, head_major, padding, options, small, multiprocessors }
    }
}

proptest! {
    #![proptest_config(properties(8))]

    #[test]
    fn the_reference_agrees(setting in setting(), sequences in prop::collection::vec(sequence(260), 1..6)) {
        for (sequence, rows) in sequences.iter().zip(run(setting, &sequences)) {
            compare(setting, sequence, &rows)?;
        }
    }

    #[test]
    fn a_row_has_the_same_bits_wherever_it_is(
        setting in setting(),
        other in setting(),
        sequences in prop::collection::vec(sequence(200), 1..6),
    ) {
        let together = run(setting, &sequences);
        // The same arithmetic with other paging, tiles, order, copies and limits.
        let other = Setting { shape: setting.shape, split: setting.split, ..other };
        let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
        let mut permuted = run(other, &reversed);
        permuted.reverse();
        prop_assert!(together == permuted, "permuted");
        for (sequence, rows) in sequences.iter().zip(&together) {
            prop_assert!(run(other, std::slice::from_ref(sequence))[0] == *rows, "alone");
            // Candidate i is the row of autoregressive decoding at its position. Its cache ends at its own position, so
            // later positions have no influence.
            let row = sequence.candidates / 2;
            if row < sequence.candidates {
                let ar = run(other, &[sequence.candidate(row)]).remove(0);
                prop_assert!(ar[0] == rows[row], "autoregressive");
            }
            // Group a of a joint pass equals the group of a drafting pass after acceptance.
            let group = sequence.groups.len() / 2;
            if group < sequence.groups.len() {
                let drafted = run(other, &[sequence.group(group)]).remove(0);
                let first = sequence.candidates + group * sequence.slots;
                prop_assert!(drafted == rows[first..first + sequence.slots], "drafted alone");
            }
        }
    }

    #[test]
    fn checked_runs_find_nothing_and_say_the_same(setting in setting(), sequence in sequence(140)) {
        let sequences = [sequence];
        let options = SimtOptions { checking: checking(Checking::Accesses), ..setting.options };
        let checked = Setting { options, ..setting };
        prop_assert!(run(setting, &sequences) == run(checked, &sequences), "other bits");
    }
}

/// The rows of each of the two sequences fill one block, so every visible K and V is needed once. If the keys are
/// divided into parts, the states of each part go through memory; if there is only one part, no states do.
#[test]
fn bytes_are_those_of_the_floor() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    // Keys 0..=302 in splits of 128, one split per item; in spans of 512; keys 0..=1535 in spans of 512.
    for (start, multiprocessors, parts) in [(300, 24, 3), (300, 4, 1), (1533, 2, 3)] {
        let sequence = |seed| Sequence { start, candidates: 3, groups: vec![0, 2], slots: 4, seed, first: 0 };
        let sequences = [sequence(1), sequence(2)];
        let setting = Setting { split: 128, page_size: 32, options, multiprocessors, ..Setting::of(shape) };
        let traffic = traffic(setting, &sequences);
        let of = |kernel: &str, operand: &str| {
            let is = |t: &&Traffic| t.kernel.starts_with(kernel) && t.operand == operand;
            traffic.iter().find(is)
        };
        let bytes = |kernel: &str, operand: &str| of(kernel, operand).map(|t| (t.read, t.written));
        let rows: u64 = 2 * (3 + 2 * 4);
        let (token, states) = (2 * 64 * 2, rows * 4 * 64 * 4 + rows * 4 * 8);
        for operand in ["k cache", "v cache"] {
            let read = 2 * (start as u64 + 3) * token;
            assert_eq!(bytes("joint_attention", operand), Some((read, 0)));
            // The items of a sequence read disjoint keys, however many items there are.
            assert_eq!(of("joint_attention", operand).map(|t| t.read_total), Some(read));
        }
        // The q of every row, and the k and v of mask rows.
        assert_eq!(bytes("joint_attention", "qkv"), Some((rows * 4 * 64 * 2 + 2 * 8 * 2 * token, 0)));
        let out = Some((0, rows * 4 * 64 * 2));
        if parts == 1 {
            assert_eq!(bytes("joint_attention", "workspace"), Some((0, 0)));
            assert_eq!(bytes("joint_attention", "out"), out);
            assert_eq!(bytes("attention_merge", "out"), None, "there is nothing to merge");
        } else {
            // One state of each part for every row, and one of their slots for the mask rows.
            let written = parts * states + states * 16 / rows;
            assert_eq!(bytes("joint_attention", "workspace"), Some((0, written)));
            assert_eq!(bytes("attention_merge", "workspace"), Some((written, 0)));
            assert_eq!(bytes("attention_merge", "out"), out);
        }
    }
}

/// Returns `1 / whole` of `cases` if fewer random cases than usual are asked for (in race mode and under sanitizers),
/// and otherwise all of them.
fn sample<T>(cases: impl IntoIterator<Item = T>, whole: usize) -> impl Iterator<Item = T> {
    let step = if fewer_than_usual() { whole } else { 1 };
    cases.into_iter().step_by(step)
}
