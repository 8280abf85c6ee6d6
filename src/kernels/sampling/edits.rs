//! The tables of edits: the changes that logit processors make to rows of logits, in the form that the kernel reads.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use crate::kernels::KernelError;
use crate::kernels::params::sampling::{
    FLEXDRAFT_CHUNK, FLEXDRAFT_EDIT_BIASED, FLEXDRAFT_EDIT_FORBIDDEN, FLEXDRAFT_EDIT_GENERATED,
    FLEXDRAFT_EDIT_REPEATED, FlexdraftLogitEdit, FlexdraftRowEdits,
};
use crate::processors::{Effect, LogitEdits};
use crate::runtime::{Element, View};

/// The edits of one row of logits: `FlexdraftRowEdits` of `cuda/sampling/params.h`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowEdits(FlexdraftRowEdits);

// SAFETY: six words without padding (24 bytes, as asserted in the header), each valid for any bits; the kernels give
// every value a defined meaning.
unsafe impl bytemuck::Zeroable for RowEdits {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowEdits {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for RowEdits {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for RowEdits {}

impl Element for RowEdits {}

/// The change of one id's logit in some rows of a sequence: `FlexdraftLogitEdit` of `cuda/sampling/params.h`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitEdit(FlexdraftLogitEdit);

// SAFETY: a word, two halves of a word and two words, without padding (16 bytes, as asserted in the header), each valid
// for any bits; the kernels give every value a defined meaning.
unsafe impl bytemuck::Zeroable for LogitEdit {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for LogitEdit {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for LogitEdit {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for LogitEdit {}

impl Element for LogitEdit {}

/// The kernel that errors of tables name.
const KERNEL: &str = "sample";

/// The edits of rows on the host. The kernel reads the four tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EditTables {
    /// The edits of each row, `[rows]`.
    pub rows: Vec<RowEdits>,
    /// For each chunk of 1024 ids of each sequence, and for the end, the place of the first edit.
    pub offsets: Vec<i32>,
    /// The edits of the sequences.
    pub edits: Vec<LogitEdit>,
    /// The masks of the sequences, or of their rows.
    pub masks: Vec<u32>,
}

impl EditTables {
    /// Returns tables that edit none of `rows` rows.
    pub fn new(rows: usize) -> Self {
        Self { rows: vec![RowEdits::NONE; rows], ..Self::default() }
    }

    /// Adds the edits of a sequence, whose rows 0..=v are `rows` rows from `first_row` on, over `vocab` ids.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if the tables have no such rows, or if an index is beyond its type.
    pub fn push(
        &mut self,
        first_row: usize,
        rows: usize,
        edits: &LogitEdits<'_>,
        vocab: usize,
    ) -> Result<(), KernelError> {
        let overflow = |what| KernelError::Overflow { kernel: KERNEL, what };
        let index = |what, value: usize| i32::try_from(value).map_err(|_| overflow(what));
        let row_index = |value: usize| u16::try_from(value).map_err(|_| overflow("row of an edit"));
        let found = self.rows.len();
        let end = first_row.checked_add(rows).ok_or(overflow("row"))?;
        let of_sequence = self.rows.get_mut(first_row..end);
        let length = KernelError::Length { kernel: KERNEL, operand: "row edits", expected: end, found };
        let of_sequence = of_sequence.ok_or(length)?;
        let mut row_edits = RowEdits::NONE.0;
        row_edits.repetition_penalty = edits.repetition_penalty();
        row_edits.presence_penalty = edits.presence_penalty();
        if !edits.edits().is_empty() {
            row_edits.first_offset = index("number of offsets", self.offsets.len())?;
            let first = self.edits.len();
            for edit in edits.edits() {
                let (effects, operand) = match edit.effect {
                    Effect::Penalty { repeats, generated } => {
                        let repeated = if repeats { FLEXDRAFT_EDIT_REPEATED } else { 0 };
                        let is_generated = generated.map_or(0, |_| FLEXDRAFT_EDIT_GENERATED);
                        (repeated | is_generated, generated.unwrap_or(0.0))
                    }
                    Effect::Bias(bias) => (FLEXDRAFT_EDIT_BIASED, bias),
                    Effect::Forbid => (FLEXDRAFT_EDIT_FORBIDDEN, 0.0),
                };
                self.edits.push(LogitEdit(FlexdraftLogitEdit {
                    id: i32::try_from(edit.id).map_err(|_| overflow("id of an edit"))?,
                    first_row: row_index(edit.first_row)?,
                    end_row: row_index(edit.end_row)?,
                    effects,
                    operand,
                }));
            }
            for chunk in 0..=vocab.div_ceil(FLEXDRAFT_CHUNK as usize) {
                let id = chunk.saturating_mul(FLEXDRAFT_CHUNK as usize);
                let before = edits.edits().partition_point(|edit| (edit.id as usize) < id);
                self.offsets.push(index("number of edits", first + before)?);
            }
        }
        for (row, to) in of_sequence.iter_mut().enumerate() {
            if let Some(mask) = edits.allowed(row).filter(|_| row == 0 || edits.has_masks_by_row()) {
                row_edits.first_word = index("number of mask words", self.masks.len())?;
                let words = vocab.div_ceil(32);
                self.masks.extend(mask.iter().take(words));
                // A mask that is too short allows no further id, as on the host.
                self.masks.extend(std::iter::repeat_n(0, words.saturating_sub(mask.len())));
            }
            *to = RowEdits(FlexdraftRowEdits { row: index("row", row)?, ..row_edits });
        }
        Ok(())
    }

    /// Returns the tables for places behind the tables of other sequences, which have `offsets` offsets, `edits` edits and
    /// `masks` words of masks.
    ///
    /// # Errors
    ///
    /// [`KernelError::Overflow`] if a place is beyond its type.
    pub fn behind(mut self, offsets: usize, edits: usize, masks: usize) -> Result<Self, KernelError> {
        let moved = |what, place: i32, by: usize| {
            let sum = i32::try_from(by).ok().and_then(|by| place.checked_add(by));
            sum.ok_or(KernelError::Overflow { kernel: KERNEL, what })
        };
        for RowEdits(row) in &mut self.rows {
            if row.first_offset >= 0 {
                row.first_offset = moved("number of offsets", row.first_offset, offsets)?;
            }
            if row.first_word >= 0 {
                row.first_word = moved("number of mask words", row.first_word, masks)?;
            }
        }
        for offset in &mut self.offsets {
            *offset = moved("number of edits", *offset, edits)?;
        }
        Ok(self)
    }
}

impl RowEdits {
    /// No edits.
    const NONE: Self = Self(FlexdraftRowEdits {
        first_offset: -1,
        first_word: -1,
        row: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        unused: 0,
    });
}

/// Edits of rows of logits, on the device: [`EditTables`].
///
/// The kernel reports an index beyond the tables, and then edits nothing of the row. If the edits of a chunk are not
/// sorted by id, ids that occur twice get an unspecified logit.
#[derive(Debug)]
pub struct Edits<'a> {
    /// The edits of each row, `[rows]`.
    pub rows: View<'a, RowEdits>,
    /// [`EditTables::offsets`].
    pub offsets: View<'a, i32>,
    /// [`EditTables::edits`].
    pub edits: View<'a, LogitEdit>,
    /// [`EditTables::masks`].
    pub masks: View<'a, u32>,
}
