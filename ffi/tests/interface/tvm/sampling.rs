//! Sampling, acceptance, the selection of drafts, and chains.

use std::ptr;

use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::sampling::RowStats;
use flexdraft_ffi::*;

use super::Argument::{At, Value};
use super::Type::{Bf16, F16, F32, I32, U32};
use super::{
    DRAFT, NONE, Operand, SAMPLING, STATS, Tensor, Type, VERDICT, VERIFY, call, flag, float, int, number,
    same, value,
};
use crate::support::{ABSENT, Noise, Opened, attempt};

/// Returns the sampling of rows, made by the TVM-FFI function.
fn samplings(rows: usize, purpose: u32) -> Operand {
    let mut table = Operand::new(SAMPLING, &[rows]);
    let tensor = table.tensor();
    for row in 0..rows as i64 {
        let relative = if row == 0 { 0 } else { -1 };
        let position = if row == 0 { 1 } else { 50 };
        let values = [
            value(&tensor),
            int(row),
            float(0.8),
            int(9),
            float(0.95),
            float(0.0),
            int(purpose.into()),
            int(-3),
            int(row),
            int(position),
            int(relative),
        ];
        assert_eq!(call("row_sampling", &values), Ok(NONE));
        let params = versioned!(FlexdraftSamplingParams {
            temperature: 0.8,
            top_p: 0.95,
            min_p: 0.0,
            purpose,
            top_k: 9,
            seed: (-3i64).cast_unsigned(),
            slot: row as u64,
            position: position as u64,
            relative: u32::from(relative == 0),
            sequence: 0,
        });
        let mut expected = FlexdraftRowSampling { words: [0; 5] };
        // SAFETY: both pointers lead to variables.
        attempt(|error| unsafe { flexdraft_row_sampling(&raw const params, &raw mut expected, error) })
            .unwrap();
        assert_eq!(table.elements::<u64>()[row as usize * 5..][..5], expected.words);
    }
    table
}

/// Samples rows of logits of one type, with a calibrator of another type, through both interfaces. Returns the operands
/// after the call: logits, workspace and statistics are at 0, 6 and 7.
fn sampled(
    [logits, half]: [Type; 2],
    opened: &Opened,
    noise: &mut Noise,
    rows: usize,
    vocab: usize,
    purpose: u32,
) -> Vec<Operand> {
    let (stride, rank) = (vocab.next_multiple_of(8), 8);
    let len = number("sample_workspace_len", &[int(rows as i64), int(vocab as i64), flag(true)]);
    let operands = [
        Operand::noise(logits, &[rows, stride], noise),
        samplings(rows, purpose),
        Operand::of(I32, &[1], &[49i32]),
        Operand::noise(half, &[rows, rank], noise),
        Operand::noise(half, &[vocab, rank], noise),
        Operand::noise(F32, &[vocab], noise),
        Operand::new(F32, &[len]),
        Operand::new(STATS, &[rows]),
        Operand::new(U32, &[1]),
        Operand::of(I32, &[rows], &vec![3i32; rows]),
    ];
    let arguments = [
        At(0),
        Value(int(vocab as i64)),
        Value(NONE),
        At(1),
        At(2),
        At(9),
        At(3),
        At(4),
        At(5),
        At(6),
        At(7),
        Value(flag(true)),
        At(8),
    ];
    let args = |b: &[FlexdraftBuffer]| {
        versioned!(FlexdraftSample {
            vocab: vocab as u64,
            stride: stride as u64,
            logits: b[0],
            logit_index: ABSENT,
            sampling: b[1],
            starts: b[2],
            draft: b[9],
            rank: rank as u64,
            hidden: b[3],
            weight: b[4],
            bias: b[5],
            workspace: b[6],
            stats: b[7],
            error_word: b[8],
            update: 1,
            reserved: 0,
            row_edits: ABSENT,
            edit_offsets: ABSENT,
            edits: ABSENT,
            masks: ABSENT,
        })
    };
    same("sample_partials", &operands, &arguments, c!(opened, flexdraft_sample_partials, |b| args(b)));
    same("sample", &operands, &arguments, c!(opened, flexdraft_sample, |b| args(b)))
}

#[test]
fn sampling_acceptance_and_chain() {
    let (opened, mut noise) = (Opened::new(), Noise(9));
    sampled([F32, F16], &opened, &mut noise, 2, 30, FLEXDRAFT_DRAFT_DRAW);
    for types in [[F32, Bf16], [Bf16, Bf16], [F16, F16]] {
        sampling_acceptance_and_chain_of(types);
    }
}

fn sampling_acceptance_and_chain_of(types: [Type; 2]) {
    let (opened, mut noise) = (Opened::new(), Noise(6));
    let (drafts, vocab) = (2, 30);
    let stride = 32;
    let target = sampled(types, &opened, &mut noise, drafts + 1, vocab, FLEXDRAFT_TARGET_DRAW);
    let draft = sampled(types, &opened, &mut noise, drafts, vocab, FLEXDRAFT_DRAFT_DRAW);
    let tokens: Vec<i32> =
        draft[7].elements::<i32>().chunks_exact(12).map(|row| row[0]).take(drafts).collect();
    let mut sequence = Operand::new(VERIFY, &[1]);
    let values = |tensor: &Tensor| {
        let kinds = [FLEXDRAFT_BLOCK, FLEXDRAFT_DRAFT_LOGITS].map(|kind| int(kind.into()));
        let numbers = [-3, 50, drafts as i64, 0, 0, 0, 0, 0b101].map(int);
        [&[value(tensor), int(0)][..], &kinds, &numbers].concat()
    };
    assert_eq!(call("verify", &values(&sequence.tensor())), Ok(NONE));
    let len = number("accept_workspace_len", &[int(1), int(vocab as i64)]);
    let operands = [
        sequence,
        Operand::of(I32, &[drafts], &tokens),
        target[0].clone(),
        target[7].clone(),
        draft[0].clone(),
        draft[7].clone(),
        Operand::new(F32, &[len]),
        Operand::new(U32, &[1]),
        Operand::new(VERDICT, &[1]),
        Operand::new(I32, &[1, 64]),
    ];
    let arguments = [
        Value(int(vocab as i64)),
        At(0),
        At(1),
        At(2),
        At(3),
        Value(NONE),
        At(4),
        At(5),
        Value(NONE),
        Value(NONE),
        At(6),
        At(7),
        At(8),
        At(9),
        Value(flag(true)),
        Value(NONE),
    ];
    let c = c!(opened, flexdraft_accept, |b| versioned!(FlexdraftAccept {
        vocab: vocab as u64,
        stride: stride as u64,
        sequences: b[0],
        tokens: b[1],
        target: b[2],
        target_stats: b[3],
        target_partials: ABSENT,
        draft: b[4],
        draft_stats: b[5],
        chosen_count: 0,
        chosen_ids: ABSENT,
        chosen_logits: ABSENT,
        workspace: b[6],
        arrived: b[7],
        verdicts: b[8],
        committed: b[9],
        error_word: ABSENT,
        any_block: 1,
        reserved: 0,
    }));
    let after = same("accept", &operands, &arguments, c);
    let verdict = after[8].elements::<Verdict>()[0];
    assert!((0..=2).contains(&verdict.accepted), "{verdict:?}");

    // The verdict selects the mask group of the next draft.
    let mut next = Operand::new(DRAFT, &[1]);
    let fields = [0, 0b111, 3, 4, 0, FLEXDRAFT_PASS_SLOTS.into()].map(int);
    let tensor = next.tensor();
    assert_eq!(call("draft", &[&[value(&tensor), int(0)][..], &fields].concat()), Ok(NONE));
    let rows = 3;
    let ids = |count: usize| Operand::new(I32, &[count]);
    let operands =
        [next.clone(), after[8].clone(), ids(1), ids(1), ids(rows), ids(rows), Operand::new(U32, &[1])];
    let c = c!(opened, flexdraft_select_drafts, |b| versioned!(FlexdraftSelectDrafts {
        drafts: b[0],
        verdicts: b[1],
        bonus: b[2],
        starts: b[3],
        sources: b[4],
        draft_rows: b[5],
        error_word: b[6],
    }));
    let after = same("select_drafts", &operands, &[At(0), At(1), At(2), At(3), At(4), At(5), At(6)], c);
    assert_eq!(after[2].elements::<i32>()[0], verdict.bonus);

    // A chain over the rows of the next draft.
    let count = 4;
    let following = sampled(types, &opened, &mut noise, rows, vocab, FLEXDRAFT_DRAFT_DRAW);
    let chosen = [Operand::new(I32, &[rows, count]), Operand::new(F32, &[rows, count])];
    let operands = [following[0].clone(), following[6].clone(), chosen[0].clone(), chosen[1].clone()];
    let c = c!(opened, flexdraft_chain_choose, |b| versioned!(FlexdraftChainChoose {
        vocab: vocab as u64,
        stride: stride as u64,
        count: count as u64,
        logits: b[0],
        logit_index: ABSENT,
        partials: b[1],
        ids: b[2],
        chosen: b[3],
        error_word: ABSENT,
        calibrated: 1,
        reserved: 0,
    }));
    let arguments =
        [At(0), Value(int(vocab as i64)), Value(NONE), At(1), Value(flag(true)), At(2), At(3), Value(NONE)];
    let chosen = same("chain_choose", &operands, &arguments, c);
    let factors = [
        Operand::noise(F32, &[1 + rows * count, 8], &mut noise),
        Operand::noise(types[0], &[rows * count, 8], &mut noise),
    ];
    let operands =
        [factors[0].clone(), factors[1].clone(), ids(rows), Operand::new(F32, &[rows, count, count])];
    let c = c!(opened, flexdraft_chain_score, |b| versioned!(FlexdraftChainScore {
        rank: 7,
        count: count as u64,
        drafts: 1,
        before: b[0],
        before_stride: 8,
        after: b[1],
        after_stride: 8,
        owners: b[2],
        scores: b[3],
        error_word: ABSENT,
    }));
    let arguments = [At(0), At(1), At(2), At(3), Value(int(7)), Value(int(1)), Value(NONE)];
    let scores = same("chain_score", &operands, &arguments, c);
    let operands = [
        next,
        samplings(rows, FLEXDRAFT_DRAFT_DRAW),
        Operand::of(I32, &[1], &[49i32]),
        chosen[2].clone(),
        scores[3].clone(),
        chosen[3].clone(),
        Operand::new(STATS, &[rows]),
    ];
    let c = c!(opened, flexdraft_chain_walk, |b| versioned!(FlexdraftChainWalk {
        count: count as u64,
        drafts: b[0],
        logit_index: ABSENT,
        sampling: b[1],
        starts: b[2],
        ids: b[3],
        scores: b[4],
        chosen: b[5],
        stats: b[6],
        error_word: ABSENT,
    }));
    let arguments = [At(0), Value(NONE), At(1), At(2), At(3), At(4), At(5), At(6), Value(NONE)];
    let after = same("chain_walk", &operands, &arguments, c);
    let stats: &[RowStats] = &after[6].elements::<RowStats>()[..rows];
    assert!(stats.iter().all(|row| (0..30).contains(&row.token) && row.probability > 0.0), "{stats:?}");
}
