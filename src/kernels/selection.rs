//! Kernels that select the rows of the next draft on the device, by the accepted length of each sequence.
//!
//! With these kernels, a step need not read its verdicts before it drafts. [`Kernels::follow_verdicts`] moves
//! the groups of a pass that drafts after the verification to their accepted lengths.
//! [`Kernels::select_drafts`] finds the group of a pass that matches each verdict, and makes the tables that
//! the next kernels read: the rows to gather ([`gather`](Kernels::gather)), the bonus tokens to embed
//! ([`embed`](Kernels::embed)), and the positions and rows of the draws ([`sample`](Kernels::sample)).

use std::mem::size_of;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::acceptance::Verdict;
use super::limits;
use super::operands::{Grid, Operands};
use super::params::acceptance::{FlexdraftDraft, FlexdraftFollowParams, FlexdraftSelectParams};
use super::pass::PassTables;
use super::{KernelError, Kernels};
#[cfg(doc)]
use crate::layout::Prediction;
use crate::layout::{GroupSet, MAX_BLOCK_SIZE};
use crate::runtime::{Element, Runtime, View, ViewMut};

/// The number of threads per CTA (`selection_threads` in selection.cuh): one per slot of a mask group.
const THREADS: u32 = MAX_BLOCK_SIZE as u32;

/// A sequence whose next draft comes from a mask group of a pass: `FlexdraftDraft` of `cuda/acceptance/params.h`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draft(FlexdraftDraft);

const _: () = assert!(size_of::<Draft>() == 32);

// SAFETY: 32 bytes without padding, as asserted in the header; any bits are valid.
unsafe impl bytemuck::Zeroable for Draft {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Draft {}
// SAFETY: this is plain data, declared by the kernels in the same way.
unsafe impl DeviceRepr for Draft {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for Draft {}
impl Element for Draft {}

/// The arguments of [`Draft::new`].
#[derive(Clone, Copy, Debug)]
pub struct DraftGroups {
    /// Index of the sequence's verdict.
    pub sequence: usize,
    /// The accepted lengths for which the pass has a mask group. [`GroupSet::NONE`] if its only group
    /// [follows](Kernels::follow_verdicts) the verdict.
    pub groups: GroupSet,
    /// The first row of the sequence's first mask group; the rows of the other groups follow. In a pass
    /// ([`Draft::new`]), this is the row of slot 0, and a group has S rows. In logits ([`Draft::in_logits`]), this is
    /// the row of slot 1, and a group has S − 1 rows.
    pub first_slot: usize,
    /// The number S of slots per mask group, 1 to [`MAX_BLOCK_SIZE`].
    pub slots: usize,
    /// The first of the sequence's S − 1 draft rows.
    pub first_draft: usize,
}

impl Draft {
    /// Makes a sequence whose mask groups are rows of a pass, without logits yet. The logits of its draft are computed
    /// later, in the draft rows.
    ///
    /// # Errors
    ///
    /// [`KernelError::Unsupported`] for an unsupported number of slots, [`KernelError::Overflow`] for an
    /// index beyond 2³¹.
    pub fn new(draft: &DraftGroups) -> Result<Self, KernelError> {
        Draft::with_rows(draft, false)
    }

    /// Makes a sequence whose mask groups all have logits already. Row r of the logits was computed from row r of the
    /// operand that [`sources`](SelectDrafts::sources) index.
    ///
    /// # Errors
    ///
    /// The errors of [`new`](Draft::new).
    pub fn in_logits(draft: &DraftGroups) -> Result<Self, KernelError> {
        Draft::with_rows(draft, true)
    }

    /// Makes a sequence like [`new`](Draft::new), for slots that predict the token at the
    /// [next position](Prediction::NextPosition): slots 0 to S − 2 draft, in place of slots 1 to S − 1.
    ///
    /// # Errors
    ///
    /// The errors of [`new`](Draft::new).
    pub fn predicting_next(draft: &DraftGroups) -> Result<Self, KernelError> {
        let Draft(entry) = Draft::with_rows(draft, false)?;
        // The kernel reads the slots after `first_slot`; −1 stands before row 0.
        Ok(Draft(FlexdraftDraft { first_slot: entry.first_slot - 1, ..entry }))
    }

    fn with_rows(draft: &DraftGroups, in_logits: bool) -> Result<Self, KernelError> {
        const KERNEL: &str = "select_drafts";
        let index = |what, value: usize| {
            i32::try_from(value).map_err(|_| KernelError::Overflow { kernel: KERNEL, what })
        };
        let slots = index("number of slots", draft.slots)?;
        limits::slots(draft.slots).map_err(|limit| KernelError::exceeded(KERNEL, limit))?;
        Ok(Draft(FlexdraftDraft {
            groups: draft.groups.bits(),
            sequence: index("sequence", draft.sequence)?,
            first_slot: index("first slot", draft.first_slot)?,
            slots,
            first_draft: index("first draft row", draft.first_draft)?,
            in_logits: i32::from(in_logits),
            unused: 0,
        }))
    }
}

/// Operands of [`Kernels::select_drafts`].
#[derive(Debug)]
pub struct SelectDrafts<'a> {
    /// The sequences whose next drafts are selected, `[drafts]`. Together they have every draft row once. A draft row
    /// that no sequence has does not change in `sources` and `draft_rows`. A draft row that several sequences have gets
    /// the source of an unspecified one of them.
    pub drafts: View<'a, Draft>,
    /// The results of the verification, `[batch]`, from [`Kernels::accept`].
    pub verdicts: View<'a, Verdict>,
    /// Written by the kernel: the bonus token of each sequence that drafts, `[drafts]`.
    pub bonus: ViewMut<'a, i32>,
    /// Written by the kernel: n + a + 1, the position of candidate 0 in the step that will verify each draft,
    /// `[drafts]`.
    pub starts: ViewMut<'a, i32>,
    /// Written by the kernel: the source of each draft row, `[rows]`, a row of the pass or of the logits; −1 if the
    /// accepted length has no mask group.
    pub sources: ViewMut<'a, i32>,
    /// Written by the kernel: the row of each draft row's logits, `[rows]`. If [groups have logits](Draft::in_logits),
    /// this is the draft row's source, otherwise the draft row itself; −1 as in `sources`.
    pub draft_rows: ViewMut<'a, i32>,
    /// The device error word `[1]`, optional. The kernel sets value 16 for a draft whose rows or verdict do not
    /// exist.
    pub error: Option<ViewMut<'a, u32>>,
}

/// Operands of [`Kernels::follow_verdicts`].
#[derive(Debug)]
pub struct FollowVerdicts<'a, R: Runtime> {
    /// A drafting pass with one mask group per sequence and no candidates, each group laid out for the largest possible
    /// accepted length. Its tables change only on the device, so the next upload restores them.
    pub pass: &'a mut PassTables<R>,
    /// Index of each sequence's verdict, `[batch of the pass]`.
    pub sequences: View<'a, i32>,
    /// The results of the verification, from [`Kernels::accept`].
    pub verdicts: View<'a, Verdict>,
    /// The device error word `[1]`, optional. The kernel sets value 16 for a sequence without a verdict, or with an
    /// accepted length beyond its layout; the sequence's mask group then does not move.
    pub error: Option<ViewMut<'a, u32>>,
}

impl<R: Runtime> Kernels<R> {
    /// Moves the mask group of every sequence of a drafting pass to the sequence's accepted length.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use bytemuck::Zeroable;
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::acceptance::Verdict;
    /// use flexdraft::kernels::selection::FollowVerdicts;
    /// use flexdraft::kernels::{Kernels, Paging, PassTables};
    /// use flexdraft::layout::{Pass, SequenceRows};
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
    /// // c_0 was at position 5, with up to three drafts.
    /// let rows = SequenceRows { pages: &[0], start: 5, candidates: 0, groups: vec![3], slots: 4 };
    /// let mut pass = PassTables::new(simt, &stream, 1, 1)?;
    /// let paging = Paging { pages: 1, page_size: 16 };
    /// pass.upload(simt, &stream, &Pass { sequences: vec![rows] }, paging)?;
    /// // One of them was accepted: the group is now that of accepted length 1.
    /// let verdict = Verdict { accepted: 1, cached_length: 7, ..Verdict::zeroed() };
    /// kernels.follow_verdicts(&stream, FollowVerdicts {
    ///     pass: &mut pass,
    ///     sequences: stream.view(&[0]),
    ///     verdicts: stream.view(&[verdict]),
    ///     error: None,
    /// })?;
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn follow_verdicts(
        &self,
        stream: &R::Stream,
        args: FollowVerdicts<'_, R>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new("follow_verdicts", self.runtime.queue(stream));
        let (batch, verdicts) = (args.pass.batch(), args.verdicts.len());
        let (starts, first_groups) = args.pass.starts_and_first_groups();
        let tables = args.pass.view_mut(&self.runtime, stream);
        let entries: *mut i32 = operands.write("pass", &tables, tables.len(), 8)?.cast();
        let params = FlexdraftFollowParams {
            sequences: operands.read("sequences", &args.sequences, batch, 4)?,
            verdicts: operands.read("verdicts", &args.verdicts, verdicts, 8)?.cast(),
            start: entries.wrapping_add(starts),
            first_group: entries.wrapping_add(first_groups),
            error: operands.error_word(args.error.as_ref())?,
            batch: operands.i32("batch", batch)?,
            verdict_count: operands.i32("verdicts", verdicts)?,
        };
        let ctas = params.batch.cast_unsigned().div_ceil(THREADS);
        let grid = Grid { ctas: [ctas, 1, 1], threads: THREADS, shared_bytes: 0 };
        // SAFETY: the parameters belong to this kernel; the tables hold an entry of each kind for every
        // sequence of the pass, and the other operands were checked against its batch.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Selects, for every sequence that drafts, the rows of its mask group, its bonus token and its start position, as
    /// its accepted length requires.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use bytemuck::Zeroable;
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::acceptance::Verdict;
    /// use flexdraft::kernels::selection::{Draft, DraftGroups, SelectDrafts};
    /// use flexdraft::layout::GroupSet;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// // Two drafts were accepted, at positions up to 42; the bonus token is 9.
    /// let verdict = Verdict { accepted: 2, bonus: 9, cached_length: 43, ..Verdict::zeroed() };
    /// // The pass has groups of three slots for the accepted lengths 0 and 2, from its row 5 on.
    /// let groups = GroupSet::NONE.with(0).with(2);
    /// let draft = Draft::new(&DraftGroups { sequence: 0, groups, first_slot: 5, slots: 3, first_draft: 0 })?;
    /// let (mut bonus, mut starts, mut sources, mut draft_rows) = ([0], [0], [0; 2], [0; 2]);
    /// kernels.select_drafts(&stream, &SelectDrafts {
    ///     drafts: stream.view(&[draft]),
    ///     verdicts: stream.view(&[verdict]),
    ///     bonus: stream.view_mut(&mut bonus),
    ///     starts: stream.view_mut(&mut starts),
    ///     sources: stream.view_mut(&mut sources),
    ///     draft_rows: stream.view_mut(&mut draft_rows),
    ///     error: None,
    /// })?;
    /// assert_eq!((bonus, starts), ([9], [43]));
    /// // Slots 1 and 2 of the second group.
    /// assert_eq!((sources, draft_rows), ([9, 10], [0, 1]));
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn select_drafts(&self, stream: &R::Stream, args: &SelectDrafts<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("select_drafts", self.runtime.queue(stream));
        let (count, batch, rows) = (args.drafts.len(), args.verdicts.len(), args.sources.len());
        let params = FlexdraftSelectParams {
            drafts: operands.read("drafts", &args.drafts, count, 8)?.cast(),
            verdicts: operands.read("verdicts", &args.verdicts, batch, 8)?.cast(),
            bonus: operands.write("bonus", &args.bonus, count, 4)?,
            starts: operands.write("starts", &args.starts, count, 4)?,
            sources: operands.write("sources", &args.sources, rows, 4)?,
            draft_rows: operands.write("draft rows", &args.draft_rows, rows, 4)?,
            error: operands.error_word(args.error.as_ref())?,
            count: operands.i32("drafts", count)?,
            batch: operands.i32("batch", batch)?,
            rows: operands.i32("rows", rows)?,
            unused: 0,
        };
        let grid = Grid { ctas: [params.count.cast_unsigned(), 1, 1], threads: THREADS, shared_bytes: 0 };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes;
        // the kernel checks rows and sequences of drafts.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}
