//! Tests of joint attention that need the SIMT emulator: accesses, bytes, and the size of the workspace.

use flexdraft::layout::AttentionShape;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Traffic};
use proptest::prelude::*;

use super::case::{Changes, Sequence, Setting, run, traffic, workspace_len};
use super::items::sequence as sequence_at;
use super::{sequence, setting};
use crate::support::properties::properties;
use crate::support::simt_variant::checking;

proptest! {
    #![proptest_config(properties(8))]

    #[test]
    fn checked_runs_find_nothing_and_say_the_same(setting in setting(), sequence in sequence(140)) {
        let sequences = [sequence];
        let options = SimtOptions { checking: checking(Checking::Accesses), ..setting.options };
        let checked = Setting { options, ..setting };
        prop_assert!(run(setting, &sequences) == run(checked, &sequences), "other bits");
    }
}

/// Checks the bytes that attention moves: the rows of each of the two sequences fill one block, so every visible key
/// and value is read once. If the keys are divided into parts, the states of each part go through memory; if there is
/// only one part, no states do.
#[test]
fn bytes_are_those_of_the_floor() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    // The keys are 0..=302 in work items of one split of 128 keys; 0..=302 in spans of 512; 0..=1535 in spans of 512.
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
            // The work items of a sequence read disjoint keys, so each key is read once, however many items there are.
            assert_eq!(of("joint_attention", operand).map(|t| t.read_total), Some(read));
        }
        // Attention reads the q of every row, and the k and v of mask rows.
        assert_eq!(bytes("joint_attention", "qkv"), Some((rows * 4 * 64 * 2 + 2 * 8 * 2 * token, 0)));
        let out = Some((0, rows * 4 * 64 * 2));
        if parts == 1 {
            assert_eq!(bytes("joint_attention", "workspace"), Some((0, 0)));
            assert_eq!(bytes("joint_attention", "out"), out);
            assert_eq!(bytes("attention_merge", "out"), None, "there is nothing to merge");
        } else {
            // The workspace holds one state per row for each part of the keys, and for mask rows one more state for
            // their group's slots.
            let written = parts * states + states * 16 / rows;
            assert_eq!(bytes("joint_attention", "workspace"), Some((0, written)));
            assert_eq!(bytes("attention_merge", "workspace"), Some((written, 0)));
            assert_eq!(bytes("attention_merge", "out"), out);
        }
    }
}

/// With a window, attention reads the keys and values that some row sees, and writes states for these alone.
#[test]
fn a_window_saves_bytes() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    let sequences = [sequence_at(1500, 3, &[0, 2], 4)];
    let changes = Changes { window: Some(150), ..Changes::default() };
    let setting = Setting { changes, split: 128, multiprocessors: 24, options, ..Setting::of(shape) };
    let traffic = traffic(setting, &sequences);
    let of = |kernel: &str, operand: &str| {
        let is = |t: &&Traffic| t.kernel.starts_with(kernel) && t.operand == operand;
        traffic.iter().find(is).map(|t| (t.read_total, t.written))
    };
    // Candidate 0 sees the positions from 1351 on, and candidate 2 the last, 1502.
    let read = (1502 + 1 - 1351) * 2 * 64 * 2;
    assert_eq!(of("joint_attention", "k cache"), Some((read, 0)));
    assert_eq!(of("joint_attention", "v cache"), Some((read, 0)));
    // The positions lie in two splits, 1280 to 1407 and 1408 to 1535, and slots leave one more state.
    let state = 4 * (64 + 2) * 4;
    assert_eq!(of("joint_attention", "workspace").map(|(_, written)| written), Some((2 * 11 + 8) * state));
}

/// The workspace has a state per work item for every row and head, and one more for the slots unless one item has all
/// keys.
#[test]
fn the_workspace_has_a_state_an_item() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
    // The keys are 0..=302 in work items of one split of 128 keys; 0..=302 in spans of 512; 0..=1535 in spans of 512.
    for (start, multiprocessors, places) in [(300, 24, 3 + 1), (300, 4, 1), (1533, 2, 3 + 1)] {
        let sequences = [sequence_at(start, 3, &[0, 2], 4), sequence_at(start - 7, 3, &[1], 4)];
        let setting = Setting { split: 128, multiprocessors, ..Setting::of(shape) };
        let rows = 3 + 2 * 4 + 3 + 4;
        assert_eq!(
            workspace_len(setting, &sequences),
            rows * 4 * places * (64 + 2),
            "{start}, {multiprocessors}"
        );
    }
}
