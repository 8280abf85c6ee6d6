//! What verdicts decide about the next draft, found on the device.
//!
//! A step need not read its verdicts before it drafts. [`Kernels::follow_verdicts`] puts the groups of a pass
//! that drafts after the verification where they belong; [`Kernels::select_drafts`] looks up which of a pass's
//! groups came true and makes the tables that the kernels after it take, the rows to gather
//! ([`gather`](Kernels::gather)), the bonus tokens to embed ([`embed`](Kernels::embed)), the positions that
//! draws count from and the rows that are drawn ([`sample`](Kernels::sample)).

use std::mem::size_of;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::acceptance::Verdict;
use super::operands::{Grid, Operands};
use super::params::acceptance::{FlexdraftDraft, FlexdraftFollow, FlexdraftSelect};
use super::pass::PassTables;
use super::{KernelError, Kernels};
use crate::backend::{Backend, Element, View, ViewMut};
use crate::layout::{GroupSet, MAX_BLOCK_SIZE};

/// Threads of a CTA (`selection_threads` in selection.cuh): a slot each.
const THREADS: u32 = MAX_BLOCK_SIZE as u32;

/// A sequence that drafts from a pass: `FlexdraftDraft` of `cuda/acceptance/params.h`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draft(FlexdraftDraft);

const _: () = assert!(size_of::<Draft>() == 32);

// SAFETY: 32 bytes without padding, as asserted in the header, valid for any bits.
unsafe impl bytemuck::Zeroable for Draft {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Draft {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for Draft {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for Draft {}
impl Element for Draft {}

/// What [`Draft::new`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct DraftGroups {
    /// Which of the verdicts is the sequence's.
    pub sequence: usize,
    /// Accepted lengths that the pass has a group for. [`GroupSet::NONE`] where its one group
    /// [follows](Kernels::follow_verdicts) the verdict.
    pub groups: GroupSet,
    /// The first row of the first group; the other groups follow. In a pass ([`Draft::new`]) it belongs to slot 0 and
    /// a group has S rows, in logits ([`Draft::in_logits`]) to slot 1 and a group has S − 1 rows.
    pub first_slot: usize,
    /// S, slots of a group: 1 to [`MAX_BLOCK_SIZE`].
    pub slots: usize,
    /// The first of the sequence's S − 1 draft rows.
    pub first_draft: usize,
}

impl Draft {
    /// A sequence whose groups are rows of a pass. The logits of its draft come later, in the draft rows.
    ///
    /// # Errors
    ///
    /// [`KernelError::Unsupported`] for other numbers of slots, [`KernelError::Overflow`] for an index
    /// beyond 2³¹.
    pub fn new(draft: &DraftGroups) -> Result<Self, KernelError> {
        Draft::with_rows(draft, false)
    }

    /// A sequence whose groups all have logits: row r of the logits came from row r of what
    /// [`sources`](SelectDrafts::sources) index.
    ///
    /// # Errors
    ///
    /// As [`new`](Draft::new).
    pub fn in_logits(draft: &DraftGroups) -> Result<Self, KernelError> {
        Draft::with_rows(draft, true)
    }

    fn with_rows(draft: &DraftGroups, in_logits: bool) -> Result<Self, KernelError> {
        const KERNEL: &str = "select_drafts";
        let index = |what, value: usize| {
            i32::try_from(value).map_err(|_| KernelError::Overflow { kernel: KERNEL, what })
        };
        let slots = index("number of slots", draft.slots)?;
        if !(1..=MAX_BLOCK_SIZE).contains(&draft.slots) {
            let (what, found) = ("number of slots", slots.into());
            return Err(KernelError::Unsupported { kernel: KERNEL, what, found, supported: "1 to 64" });
        }
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

/// The operands of [`Kernels::select_drafts`].
#[derive(Debug)]
pub struct SelectDrafts<'a> {
    /// `[drafts]`. Together they have every draft row once: a row that none has stays as it is in `sources` and
    /// `draft_rows`, and one that several have gets the source that one of them says, which one is unspecified.
    pub drafts: View<'a, Draft>,
    /// `[batch]`, from [`Kernels::accept`].
    pub verdicts: View<'a, Verdict>,
    /// `[drafts]`, written: the bonus tokens.
    pub bonus: ViewMut<'a, i32>,
    /// `[drafts]`, written: n + a + 1, the position of c_0 of the step that will verify the draft.
    pub starts: ViewMut<'a, i32>,
    /// `[rows]`, written: the row of the pass, or of the logits, that each draft row comes from; −1 if the accepted
    /// length has no group.
    pub sources: ViewMut<'a, i32>,
    /// `[rows]`, written: the row of each draft row's logits. That is its source where [groups have
    /// logits](Draft::in_logits), and the draft row itself otherwise; −1 as in `sources`.
    pub draft_rows: ViewMut<'a, i32>,
    /// `[1]`, the device error word: bit 16 is set for a draft whose rows or verdict do not exist.
    pub error: Option<ViewMut<'a, u32>>,
}

/// The operands of [`Kernels::follow_verdicts`].
#[derive(Debug)]
pub struct FollowVerdicts<'a, B: Backend> {
    /// A pass of one group a sequence and no candidates, each laid out for the largest accepted length that
    /// is possible. Its tables change on the device only, so that the next upload takes that back.
    pub pass: &'a mut PassTables<B>,
    /// `[batch of the pass]`: which verdict is a sequence's.
    pub sequences: View<'a, i32>,
    /// From [`Kernels::accept`].
    pub verdicts: View<'a, Verdict>,
    /// `[1]`, the device error word: bit 16 is set for a sequence without a verdict, or one whose verdict is
    /// beyond what was laid out; its group stays then.
    pub error: Option<ViewMut<'a, u32>>,
}

impl<B: Backend> Kernels<B> {
    /// Moves the group of every sequence of a drafting pass to the accepted length of its verdict.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use bytemuck::Zeroable;
    /// use flexdraft::backend::{Simt, SimtOptions};
    /// use flexdraft::kernels::acceptance::Verdict;
    /// use flexdraft::kernels::selection::FollowVerdicts;
    /// use flexdraft::kernels::{Kernels, Paging, PassTables};
    /// use flexdraft::layout::{Pass, SequenceRows};
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let (simt, stream) = (kernels.backend(), kernels.backend().stream());
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
        stream: &B::Stream,
        args: FollowVerdicts<'_, B>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new("follow_verdicts", self.backend.queue(stream));
        let (batch, verdicts) = (args.pass.batch(), args.verdicts.len());
        let (starts, first_groups) = args.pass.starts_and_first_groups();
        let tables = args.pass.view_mut(&self.backend, stream);
        let entries: *mut i32 = operands.write("pass", &tables, tables.len(), 8)?.cast();
        let params = FlexdraftFollow {
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
        // SAFETY: the parameters are of this kernel; the tables hold an entry of each kind for every
        // sequence of the pass, and the other operands were checked against its batch.
        unsafe { operands.launch(&self.backend, stream, grid, &params) }
    }

    /// Looks up for every draft what the verdict of its sequence decides.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use bytemuck::Zeroable;
    /// use flexdraft::backend::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::acceptance::Verdict;
    /// use flexdraft::kernels::selection::{Draft, DraftGroups, SelectDrafts};
    /// use flexdraft::layout::GroupSet;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.backend().stream();
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
    pub fn select_drafts(&self, stream: &B::Stream, args: &SelectDrafts<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("select_drafts", self.backend.queue(stream));
        let (count, batch, rows) = (args.drafts.len(), args.verdicts.len(), args.sources.len());
        let params = FlexdraftSelect {
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
        // SAFETY: the parameters are of this kernel and its operands were checked against their shapes; rows
        // and sequences of drafts are checked by the kernel.
        unsafe { operands.launch(&self.backend, stream, grid, &params) }
    }
}
