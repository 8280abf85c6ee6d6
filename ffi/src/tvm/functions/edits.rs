//! The function on tables of edits: what logit processors change in rows of logits.

use super::super::abi::Any;
use super::super::arguments::Elements::{HostF32, HostI32, HostI64, HostStruct, HostWord};
use super::super::arguments::{Arguments, Found};
use super::super::launch::{ANY, NO_RESULT};
use crate::buffer::{FLEXDRAFT_LOGIT_EDIT, FLEXDRAFT_ROW_EDITS};
use crate::edits::{FlexdraftEditTables, FlexdraftEditedRows, edit_rows as add_rows};
use crate::status::{Outcome, Refusal};

/// Takes a vector of ids of 32 bits, which are i64 on the host.
fn ids(args: &mut Arguments<'_>, name: &str) -> Outcome<Vec<u32>> {
    let found = args.tensor(name, HostI64, &[ANY])?;
    let narrow = |&id: &i64| u32::try_from(id).map_err(|_| Refusal::value(name, id, "ids of 32 bits"));
    // SAFETY: the tensor is on the host, contiguous, and has elements of i64.
    unsafe { found.host::<i64>(name)? }.iter().map(narrow).collect()
}

/// `edit_rows(row_edits [rows, 24], edit_offsets [any], edits [any, 16], masks [any], used [3] of entries of offsets, edits
/// and masks, vocab, first_row, draft_rows or 0, tokens [tokens], prompt_len, draft [v], stop_ids [any], min_tokens,
/// repetition_penalty, frequency_penalty, presence_penalty, bias_ids [biases], bias [biases], bad_words [ids],
/// bad_word_lens [bad words], allowed [words] or None, allowed_by_row [rows, words] or None)`, with ⌈vocab / 32⌉ words;
/// all tensors are on the host, and ids, lengths and `used` are i64.
pub(super) fn edit_rows(args: &mut Arguments<'_>) -> Outcome<Any> {
    let row_edits = args.tensor("row_edits", HostStruct(FLEXDRAFT_ROW_EDITS, 24), &[ANY])?;
    let offsets = args.tensor("edit_offsets", HostI32, &[ANY])?;
    let edits = args.tensor("edits", HostStruct(FLEXDRAFT_LOGIT_EDIT, 16), &[ANY])?;
    let masks = args.tensor("masks", HostWord, &[ANY])?;
    let used = args.tensor("used", HostI64, &[3])?;
    let vocab = args.size("vocab")?;
    let words = i64::try_from(vocab.div_ceil(32)).unwrap_or(i64::MAX);
    let (first_row, draft_rows) = (args.size("first_row")?, args.size("draft_rows")?);
    let tokens = ids(args, "tokens")?;
    let prompt_len = args.size("prompt_len")?;
    let (draft, stop_ids) = (ids(args, "draft")?, ids(args, "stop_ids")?);
    let min_tokens = args.size("min_tokens")?;
    let repetition_penalty = args.float("repetition_penalty")?;
    let frequency_penalty = args.float("frequency_penalty")?;
    let presence_penalty = args.float("presence_penalty")?;
    let bias_ids = ids(args, "bias_ids")?;
    let bias = args.tensor("bias", HostF32, &[bias_ids.len() as i64])?;
    let bad_words = ids(args, "bad_words")?;
    let bad_word_lens = args.tensor("bad_word_lens", HostI64, &[ANY])?;
    let allowed = args.optional_tensor("allowed", HostWord, &[words])?;
    let rows = if draft_rows > 0 { draft_rows } else { draft.len() as u64 + 1 };
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let allowed_by_row = args.optional_tensor("allowed_by_row", HostWord, &[rows, words])?;
    args.end()?;
    let mask = |name: &str, found: Option<Found<'_>>| -> Outcome<*const u32> {
        // SAFETY: the tensor is on the host, contiguous, and has elements of 4 bytes.
        found.map_or(Ok(std::ptr::null()), |found| Ok(unsafe { found.host::<u32>(name)? }.as_ptr()))
    };
    // SAFETY: the tensors are on the host, contiguous, and have these elements.
    let (bias, lens, counts) = unsafe {
        (bias.host::<f32>("bias")?, bad_word_lens.host::<i64>("bad_word_lens")?, used.host::<i64>("used")?)
    };
    let from_0 = |name: &str, number: i64| {
        u64::try_from(number).map_err(|_| Refusal::value(name, number, "0 or more"))
    };
    let lens = lens.iter().map(|&len| from_0("bad_word_lens", len)).collect::<Outcome<Vec<u64>>>()?;
    let all: u64 = lens.iter().fold(0, |all: u64, &len| all.saturating_add(len));
    if all != bad_words.len() as u64 {
        let expected = format!("{all}, the sum of `bad_word_lens`");
        return Err(Refusal::value("bad_words", format!("{} ids", bad_words.len()), &expected));
    }
    let rows = FlexdraftEditedRows {
        struct_size: 0,
        vocab,
        first_row,
        draft_rows,
        tokens: tokens.as_ptr(),
        token_count: tokens.len() as u64,
        prompt_len,
        draft: draft.as_ptr(),
        draft_count: draft.len() as u64,
        stop_ids: stop_ids.as_ptr(),
        stop_count: stop_ids.len() as u64,
        min_tokens,
        bias_ids: bias_ids.as_ptr(),
        bias: bias.as_ptr(),
        bias_count: bias_ids.len() as u64,
        bad_words: bad_words.as_ptr(),
        bad_word_lens: lens.as_ptr(),
        bad_word_count: lens.len() as u64,
        allowed: mask("allowed", allowed)?,
        allowed_by_row: mask("allowed_by_row", allowed_by_row)?,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        reserved: 0,
    };
    let [offset_count, edit_count, mask_count] = [0, 1, 2].map(|index| counts[index]);
    let mut tables = FlexdraftEditTables {
        struct_size: 0,
        row_edits: row_edits.buffer.data.cast(),
        row_count: row_edits.buffer.len,
        offsets: offsets.buffer.data.cast(),
        offset_room: offsets.buffer.len,
        offset_count: from_0("used", offset_count)?,
        edits: edits.buffer.data.cast(),
        edit_room: edits.buffer.len,
        edit_count: from_0("used", edit_count)?,
        masks: masks.buffer.data.cast(),
        mask_room: masks.buffer.len,
        mask_count: from_0("used", mask_count)?,
    };
    // SAFETY: the slices outlive the call, the tensors are on the host and as large as the tables say, and no other call
    // uses them meanwhile.
    unsafe { add_rows(&rows, &mut tables)? };
    let counts = [tables.offset_count, tables.edit_count, tables.mask_count].map(u64::cast_signed);
    // SAFETY: `used` is on the host, aligned, and has three elements of i64.
    unsafe { used.buffer.data.cast::<[i64; 3]>().write(counts) };
    Ok(NO_RESULT)
}
