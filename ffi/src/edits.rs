//! Edits of logits before they are sampled: penalties, bias, minimum length, bad words, and masks of allowed ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use flexdraft::kernels::ExceededLimit;
use flexdraft::kernels::sampling::{EditTables, LogitEdit, RowEdits};
use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::processors::{History, LogitProcessors};

use crate::status::{
    FLEXDRAFT_LENGTH, FlexdraftError, Outcome, Refusal, guard, read, size, table, versioned,
};

/// The edits of one row of logits, in device memory. `flexdraft_edit_rows` makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRowEdits {
    /// The library's representation.
    pub words: [u32; 6],
}

/// The change of one id's logit in some rows of a sequence, in device memory. `flexdraft_edit_rows` makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftLogitEdit {
    /// The library's representation.
    pub words: [u32; 4],
}

const _: () = {
    assert!(size_of::<FlexdraftRowEdits>() == size_of::<RowEdits>());
    assert!(size_of::<FlexdraftLogitEdit>() == size_of::<LogitEdit>());
};

/// The logit processors of one sequence and the tokens before its rows, for `flexdraft_edit_rows`. All tables are in host
/// memory. The processors act in this order: penalties, bias, forbidden ids, masks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftEditedRows {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// V: number of token ids, 1 to 2^20.
    pub vocab: u64,
    /// Index of the sequence's first row among the rows of the call of `flexdraft_sample`.
    pub first_row: u64,
    /// 0 for rows of the target: row i follows draft token i, and there are `draft_count` + 1 rows. 1 to 64 for this
    /// number of rows of a draft, which no token before a row changes: only bias, bad words of one id and masks act.
    pub draft_rows: u64,
    /// Ids of the prompt and of the output, up to the newest token, `[token_count]`.
    pub tokens: *const u32,
    /// Number of ids in `tokens`.
    pub token_count: u64,
    /// Number of ids in `tokens` that belong to the prompt.
    pub prompt_len: u64,
    /// Ids of the draft tokens that the step verifies, `[draft_count]`.
    pub draft: *const u32,
    /// Number of draft tokens.
    pub draft_count: u64,
    /// Ids that `min_tokens` forbids, `[stop_count]`.
    pub stop_ids: *const u32,
    /// Number of ids in `stop_ids`.
    pub stop_count: u64,
    /// Number of output tokens before which `stop_ids` are forbidden; 0 is off.
    pub min_tokens: u64,
    /// Ids to which `bias` is added, each once, `[bias_count]`.
    pub bias_ids: *const u32,
    /// The numbers that are added, finite, `[bias_count]`.
    pub bias: *const f32,
    /// Number of ids in `bias_ids`.
    pub bias_count: u64,
    /// Ids of the bad words, one word after the other. An id that would complete a word in prompt and output is forbidden.
    pub bad_words: *const u32,
    /// Number of ids of each bad word, above 0, `[bad_word_count]`.
    pub bad_word_lens: *const u64,
    /// Number of bad words.
    pub bad_word_count: u64,
    /// Optional. The allowed ids of all rows, `[ceil(vocab / 32)]`: bit id % 32 of word id / 32.
    pub allowed: *const u32,
    /// Optional. The allowed ids of each row, in addition to `allowed`, `[rows, ceil(vocab / 32)]`.
    pub allowed_by_row: *const u32,
    /// Repetition penalty (arXiv 1909.05858), above 0: divides positive logits of the ids in `tokens` and in the draft
    /// before a row, and multiplies negative logits of these ids; 1 is off.
    pub repetition_penalty: f32,
    /// Frequency penalty: subtracted from an id's logit for each of its occurrences in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Presence penalty: subtracted from the logits of ids that occur in the output; 0 is off.
    pub presence_penalty: f32,
    /// Unused; 0.
    pub reserved: u32,
}

/// Tables of edits in host memory of the caller, to which `flexdraft_edit_rows` adds. The caller sets the three counts to 0
/// before the first sequence of a step, and after the last sequence copies the tables to the device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftEditTables {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Written: the edits of each row, `[row_count]`. Every row that is sampled must be written, also without edits.
    pub row_edits: *mut FlexdraftRowEdits,
    /// Number of rows of the call of `flexdraft_sample`.
    pub row_count: u64,
    /// Written: places of edits, `[offset_room]`. A sequence with edits adds ceil(vocab / 1024) + 1 entries.
    pub offsets: *mut i32,
    /// Number of entries for which `offsets` has room.
    pub offset_room: u64,
    /// Read and written: number of entries of `offsets` that are used.
    pub offset_count: u64,
    /// Written: the edits, `[edit_room]`. A sequence adds at most token_count + draft_count + bias_count + stop_count +
    /// bad_word_count * (draft_count + 1) entries.
    pub edits: *mut FlexdraftLogitEdit,
    /// Number of entries for which `edits` has room.
    pub edit_room: u64,
    /// Read and written: number of entries of `edits` that are used.
    pub edit_count: u64,
    /// Written: masks of allowed ids, `[mask_room]`. A sequence with a mask adds ceil(vocab / 32) words, and with masks by
    /// row as many per row.
    pub masks: *mut u32,
    /// Number of words for which `masks` has room.
    pub mask_room: u64,
    /// Read and written: number of words of `masks` that are used.
    pub mask_count: u64,
}

versioned!(FlexdraftEditedRows, FlexdraftEditTables);

/// The largest number of token ids that the kernels support.
const VOCAB_LIMIT: usize = 1 << 20;

impl FlexdraftEditedRows {
    /// Returns the logit processors of the sequence.
    ///
    /// # Safety
    ///
    /// The tables are null or readable for the stated numbers of entries.
    unsafe fn processors(&self, vocab: usize) -> Outcome<LogitProcessors> {
        // SAFETY: the caller upholds the contract of this function.
        let (ids, bias, lens) = unsafe {
            (
                table("bias_ids", self.bias_ids, self.bias_count)?,
                table("bias", self.bias, self.bias_count)?,
                table("bad_word_lens", self.bad_word_lens, self.bad_word_count)?,
            )
        };
        let logit_bias: BTreeMap<u32, f32> = ids.iter().copied().zip(bias.iter().copied()).collect();
        if logit_bias.len() < ids.len() {
            let found = format!("a list of {} ids with {} different ids", ids.len(), logit_bias.len());
            return Err(Refusal::value("bias_ids", found, "each id once"));
        }
        let total = lens.iter().try_fold(0u64, |total, &len| total.checked_add(len));
        let total = total.ok_or_else(|| Refusal::overflow("bad_word_lens"))?;
        // SAFETY: the caller upholds the contract of this function.
        let mut ids = unsafe { table("bad_words", self.bad_words, total)? };
        let word = |&len: &u64| {
            let (word, rest) = ids.split_at(len as usize);
            ids = rest;
            word.to_vec()
        };
        let bad_words = lens.iter().map(word).collect();
        let allowed = match self.allowed.is_null() {
            true => None,
            // SAFETY: the caller upholds the contract of this function.
            false => Some(Arc::from(unsafe { table("allowed", self.allowed, vocab.div_ceil(32) as u64)? })),
        };
        let processors = LogitProcessors {
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias,
            min_tokens: size("min_tokens", self.min_tokens)?,
            bad_words,
            allowed,
        };
        processors.validate(vocab)?;
        Ok(processors)
    }

    /// Returns the edits of the sequence's rows, as tables of these rows alone.
    ///
    /// # Safety
    ///
    /// The tables are null or readable for the stated numbers of entries.
    unsafe fn edits(&self) -> Outcome<EditTables> {
        let vocab = size("vocab", self.vocab)?;
        if !(1..=VOCAB_LIMIT).contains(&vocab) {
            return Err(ExceededLimit { what: "vocabulary", found: vocab, supported: "1 to 2^20" }.into());
        }
        // SAFETY: the caller upholds the contract of this function.
        let (processors, tokens, draft, stop_ids) = unsafe {
            (
                self.processors(vocab)?,
                table("tokens", self.tokens, self.token_count)?,
                table("draft", self.draft, self.draft_count)?,
                table("stop_ids", self.stop_ids, self.stop_count)?,
            )
        };
        let rows = match size("draft_rows", self.draft_rows)? {
            0 => draft.len() + 1,
            rows => rows,
        };
        if rows > MAX_BLOCK_SIZE {
            return Err(ExceededLimit { what: "number of rows", found: rows, supported: "1 to 64" }.into());
        }
        let prompt_len = size("prompt_len", self.prompt_len)?;
        if prompt_len > tokens.len() {
            let expected = format!("at most {}, the number of tokens", tokens.len());
            return Err(Refusal::value("prompt_len", prompt_len, &expected));
        }
        let mut edits = match self.draft_rows {
            0 => processors.edits(History { tokens, prompt_len, draft, stop_ids }, vocab),
            _ => processors.draft_edits(),
        };
        if !self.allowed_by_row.is_null() {
            let words = rows * vocab.div_ceil(32);
            // SAFETY: the caller upholds the contract of this function.
            let masks = unsafe { table("allowed_by_row", self.allowed_by_row, words as u64)? };
            edits.allow_by_row(masks.to_vec(), vocab);
        }
        let mut tables = EditTables::new(rows);
        tables.push(0, rows, &edits, vocab)?;
        Ok(tables)
    }
}

/// A host table of the caller with room for more entries.
struct Room<'a, T> {
    name: &'a str,
    to: *mut T,
    used: u64,
    room: u64,
}

impl<T: Copy> Room<'_, T> {
    /// Checks that `entries` more entries fit, and returns the number of entries that are then used.
    fn after(&self, entries: usize) -> Outcome<u64> {
        let (name, room) = (self.name, self.room);
        let needed = self.used.checked_add(entries as u64).ok_or_else(|| Refusal::overflow(name))?;
        if needed > room {
            let text = format!("`{name}` has room for {room} entries, expected at least {needed}");
            return Err(Refusal { status: FLEXDRAFT_LENGTH, text });
        }
        if entries > 0 && self.to.is_null() {
            return Err(Refusal::null(name, &format!("memory for {room} entries")));
        }
        Ok(needed)
    }

    /// Writes entries behind the used entries.
    ///
    /// # Safety
    ///
    /// [`after`](Self::after) has found room for the entries, and the memory is writable for `room` entries.
    unsafe fn write<E: bytemuck::Pod>(&self, entries: &[E]) {
        const { assert!(size_of::<E>() == size_of::<T>()) };
        let from: &[u8] = bytemuck::cast_slice(entries);
        if !from.is_empty() {
            // SAFETY: the caller upholds the contract of this function.
            unsafe {
                let to = self.to.add(self.used as usize).cast();
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
            }
        }
    }
}

/// Adds the edits of a sequence's rows to the caller's tables. After an error the tables hold what they held before.
///
/// # Safety
///
/// The tables of `rows` are null or readable for the stated numbers of entries. Those of `tables` are null or writable for
/// `row_count` rows and for the entries for which they have room.
pub(crate) unsafe fn edit_rows(rows: &FlexdraftEditedRows, tables: &mut FlexdraftEditTables) -> Outcome<()> {
    // SAFETY: the caller upholds the contract of this function.
    let found = unsafe { rows.edits()? };
    let used = |name, count| size(name, count);
    let found = found.behind(
        used("offset_count", tables.offset_count)?,
        used("edit_count", tables.edit_count)?,
        used("mask_count", tables.mask_count)?,
    )?;
    let FlexdraftEditTables { row_edits, row_count, .. } = *tables;
    let row_edits = Room { name: "row_edits", to: row_edits, used: rows.first_row, room: row_count };
    let FlexdraftEditTables { offsets, offset_room, offset_count, .. } = *tables;
    let offsets = Room { name: "offsets", to: offsets, used: offset_count, room: offset_room };
    let FlexdraftEditTables { edits, edit_room, edit_count, .. } = *tables;
    let edits = Room { name: "edits", to: edits, used: edit_count, room: edit_room };
    let FlexdraftEditTables { masks, mask_room, mask_count, .. } = *tables;
    let masks = Room { name: "masks", to: masks, used: mask_count, room: mask_room };
    row_edits.after(found.rows.len())?;
    let offset_count = offsets.after(found.offsets.len())?;
    let edit_count = edits.after(found.edits.len())?;
    let mask_count = masks.after(found.masks.len())?;
    // SAFETY: each table has the room; the caller guarantees the memory.
    unsafe {
        row_edits.write(&found.rows);
        offsets.write(&found.offsets);
        edits.write(&found.edits);
        masks.write(&found.masks);
    }
    (tables.offset_count, tables.edit_count, tables.mask_count) = (offset_count, edit_count, mask_count);
    Ok(())
}

/// Adds the edits of a sequence's rows to tables in host memory, which `flexdraft_sample` takes in device memory. Launches
/// nothing. Call it once per sequence of a step, also for a sequence without edits.
///
/// Errors: FLEXDRAFT_VALUE for a parameter out of its range; FLEXDRAFT_LENGTH for a table without room, whose text says
/// how much is needed; FLEXDRAFT_UNSUPPORTED for a vocabulary or a number of rows beyond the limits. After an error the
/// tables hold what they held before.
///
/// # Safety
///
/// `rows`, `tables` and `error` are null or valid for the size that they state. The tables of `rows` are readable for the
/// stated numbers of entries, and the tables of `tables` are writable for the rows and for the room that it states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_edit_rows(
    rows: *const FlexdraftEditedRows,
    tables: *mut FlexdraftEditTables,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            let rows = read(rows)?;
            let mut found = read(tables.cast_const())?;
            edit_rows(&rows, &mut found)?;
            // The struct of the caller may be longer than the counts, and is not aligned for certain.
            (&raw mut (*tables).offset_count).write_unaligned(found.offset_count);
            (&raw mut (*tables).edit_count).write_unaligned(found.edit_count);
            (&raw mut (*tables).mask_count).write_unaligned(found.mask_count);
        }
        Ok(())
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}
