//! Tables of edits, and sampling of edited rows.

use std::ptr;

use flexdraft_ffi::*;
use half::{bf16, f16};

use super::Argument::{At, Value};
use super::Type::{Bf16, F16, F32, I32, I64, U32};
use super::{
    EDITS, NONE, Operand, ROW_EDITS, SAMPLING, STATS, Tensor, Type, call, flag, float, int, same, value,
};
use crate::support::{ABSENT, Noise, Opened, Stored, attempt};

const VOCAB: usize = 70;
const ROWS: usize = 3;

/// Returns the tables of a step: rows, offsets, edits, masks, and the numbers of used entries.
fn tables(room: usize) -> [Operand; 5] {
    [
        Operand::new(ROW_EDITS, &[ROWS]),
        Operand::new(I32, &[4]),
        Operand::new(EDITS, &[room]),
        Operand::new(U32, &[6]),
        Operand::new(I64, &[3]),
    ]
}

/// Calls `edit_rows` for the tokens 1, 2, 3, 3, two of them output, and the draft token 5.
fn edit_rows(
    tables: &mut [Operand; 5],
    draft_rows: i64,
    first_row: i64,
) -> Result<super::Any, (String, String)> {
    let vector = |numbers: &[i64]| Operand::of(I64, &[numbers.len()], numbers);
    let (tokens, draft, stop_ids) = (vector(&[1, 2, 3, 3]), vector(&[5]), vector(&[8]));
    let (bias_ids, bias) = (vector(&[40, 7]), Operand::of(F32, &[2], &[0.5f32, -1.0]));
    let (bad_words, lens) = (vector(&[9, 3, 4]), vector(&[1, 2]));
    let allowed = Operand::of(U32, &[3], &[!0u32, !8, 63]);
    let mut operands = [tokens, draft, stop_ids, bias_ids, bias, bad_words, lens, allowed];
    let tables = tables.each_mut().map(Operand::tensor);
    let [tokens, draft, stop_ids, bias_ids, bias, bad_words, lens, allowed] =
        operands.each_mut().map(Operand::tensor);
    let mut values: Vec<_> = tables.iter().map(value).collect();
    values.extend([int(VOCAB as i64), int(first_row), int(draft_rows), value(&tokens), int(2)]);
    values.extend([value(&draft), value(&stop_ids), int(3), float(1.5), float(0.25), float(0.5)]);
    values.extend([&bias_ids, &bias, &bad_words, &lens, &allowed].map(|tensor: &Tensor| value(tensor)));
    values.push(NONE);
    call("edit_rows", &values)
}

/// Returns the same tables, made by the C interface.
fn through_c() -> [Operand; 5] {
    let mut made = tables(20);
    let buffers = made.each_mut().map(|operand| operand.memory.as_mut_ptr());
    let (tokens, draft, stop_ids) = ([1u32, 2, 3, 3], [5u32], [8u32]);
    let (bias_ids, bias, bad_words, lens) = ([40u32, 7], [0.5f32, -1.0], [9u32, 3, 4], [1u64, 2]);
    let allowed = [!0u32, !8, 63];
    let rows = versioned!(FlexdraftEditedRows {
        vocab: VOCAB as u64,
        first_row: 0,
        draft_rows: 0,
        tokens: tokens.as_ptr(),
        token_count: 4,
        prompt_len: 2,
        draft: draft.as_ptr(),
        draft_count: 1,
        stop_ids: stop_ids.as_ptr(),
        stop_count: 1,
        min_tokens: 3,
        bias_ids: bias_ids.as_ptr(),
        bias: bias.as_ptr(),
        bias_count: 2,
        bad_words: bad_words.as_ptr(),
        bad_word_lens: lens.as_ptr(),
        bad_word_count: 2,
        allowed: allowed.as_ptr(),
        allowed_by_row: ptr::null(),
        repetition_penalty: 1.5,
        frequency_penalty: 0.25,
        presence_penalty: 0.5,
        reserved: 0,
    });
    let mut tables = versioned!(FlexdraftEditTables {
        row_edits: buffers[0].cast(),
        row_count: ROWS as u64,
        offsets: buffers[1].cast(),
        offset_room: 4,
        offset_count: 0,
        edits: buffers[2].cast(),
        edit_room: 20,
        edit_count: 0,
        masks: buffers[3].cast(),
        mask_room: 6,
        mask_count: 0,
    });
    for rows in [rows, FlexdraftEditedRows { first_row: 2, draft_rows: 1, ..rows }] {
        // SAFETY: the pointers lead to variables and to tables of the stated sizes.
        attempt(|error| unsafe { flexdraft_edit_rows(&raw const rows, &raw mut tables, error) }).unwrap();
    }
    let used = [tables.offset_count, tables.edit_count, tables.mask_count];
    made[4] = Operand::of(I64, &[3], &used);
    made
}

#[test]
fn edited_rows() {
    edited_rows_of::<f32>(F32);
    edited_rows_of::<bf16>(Bf16);
    edited_rows_of::<f16>(F16);
}

fn edited_rows_of<L: Stored + Into<f32>>(kind: Type) {
    let (opened, mut noise) = (Opened::new(), Noise(8));
    let mut made = tables(20);
    assert_eq!(edit_rows(&mut made, 0, 0), Ok(NONE));
    assert_eq!(edit_rows(&mut made, 1, 2), Ok(NONE));
    for (index, (found, expected)) in made.iter().zip(through_c()).enumerate() {
        assert_eq!(found.memory, expected.memory, "table {index}");
    }
    let [offsets, edits, masks] = [0, 1, 2].map(|index| made[4].elements::<i64>()[index] as usize);
    assert_eq!((offsets, masks), (4, 6));

    let [row_edits, edit_offsets, all, words, _] = made;
    let mut used = all;
    used.shape = vec![edits as i64, 16];
    let operands = [
        Operand::noise(kind, &[ROWS, 72], &mut noise),
        Operand::of(SAMPLING, &[ROWS], &[[0u64; 5]; ROWS]),
        Operand::new(F32, &[15]),
        Operand::new(STATS, &[ROWS]),
        row_edits,
        edit_offsets,
        used,
        words,
    ];
    let c = c!(opened, flexdraft_sample, |b| versioned!(FlexdraftSample {
        vocab: VOCAB as u64,
        stride: 72,
        logits: b[0],
        logit_index: ABSENT,
        sampling: b[1],
        starts: ABSENT,
        draft: ABSENT,
        rank: 0,
        hidden: ABSENT,
        weight: ABSENT,
        bias: ABSENT,
        workspace: b[2],
        stats: b[3],
        error_word: ABSENT,
        update: 0,
        reserved: 0,
        row_edits: b[4],
        edit_offsets: b[5],
        edits: b[6],
        masks: b[7],
    }));
    let absent = Value(NONE);
    let arguments = [
        At(0),
        Value(int(VOCAB as i64)),
        absent,
        At(1),
        absent,
        absent,
        absent,
        absent,
        absent,
        At(2),
        At(3),
        Value(flag(false)),
        absent,
        At(4),
        At(5),
        At(6),
        At(7),
    ];
    let after = same("sample", &operands, &arguments, c);
    let logits: Vec<f32> = after[0].elements::<L>().iter().map(|&logit| logit.into()).collect();
    // The mask forbids id 35 in every row, a bad word of one id forbids id 9, and the minimum length id 8 in the first row.
    for row in 0..ROWS {
        assert_eq!([35, 9].map(|id| logits[72 * row + id]), [f32::NEG_INFINITY; 2]);
        assert_eq!(logits[72 * row + 8] == f32::NEG_INFINITY, row == 0);
    }
}

#[test]
fn misuse() {
    let refused = |found: Result<super::Any, (String, String)>, words: &str| {
        let (kind, text) = found.unwrap_err();
        assert_eq!(kind, "ValueError");
        assert!(text.contains(words), "{text}");
    };
    let mut small = tables(1);
    let before = small.clone().map(|operand| operand.memory);
    refused(edit_rows(&mut small, 0, 0), "`edits` has room for 1 entries, expected at least");
    refused(edit_rows(&mut small, 0, 2), "`row_edits` has room for 3 entries, expected at least 4");
    refused(edit_rows(&mut small, 65, 0), "number of rows is 65; the kernels support 1 to 64");
    assert_eq!(small.clone().map(|operand| operand.memory), before);
    small[4] = Operand::of(I64, &[3], &[0i64, -1, 0]);
    refused(edit_rows(&mut small, 0, 0), "`used` is -1, expected 0 or more");
}
