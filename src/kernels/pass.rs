//! The rows of a pass as tables in device memory, for kernels to read.

use std::ops::Range;

use super::KernelError;
use super::limits;
use super::operands::Operands;
use super::params::common::FlexdraftPass;
use crate::layout::{MAX_BLOCK_SIZE, Pass, SequenceRows};
use crate::runtime::{Runtime, ViewMut};

/// The tables of a [`Pass`] in device memory: the rows and the pages of each sequence. They are checked
/// before they are uploaded and nothing else writes them, so kernels can rely on them.
///
/// The tables are allocated once for the largest pass, [uploaded](PassTables::upload) once per step, and used
/// by every layer. Each table has a fixed place, so launches captured with one pass serve other passes with
/// the same numbers of rows.
#[derive(Debug)]
pub struct PassTables<R: Runtime> {
    memory: R::Memory<u64>,
    staging: Vec<u64>,
    max_batch: usize,
    max_pages: usize,
    batch: usize,
    candidates: usize,
    masks: usize,
    sequences: Vec<SequenceSize>,
    /// The runs of tokens to which candidates of the pass are appended; the field is kept to reuse its memory.
    appends: Vec<Append>,
    paging: Paging,
    /// Whether a kernel changed the tables since they were staged.
    written_on_device: bool,
}

/// A run of tokens within a page to which the candidates of a sequence are appended; ordered by page and token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Append {
    page: u32,
    first: usize,
    end: usize,
    sequence: usize,
}

/// The numbers of a sequence that decide how the keys of its attention are divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct SequenceSize {
    pub candidates: usize,
    pub masks: usize,
    /// The largest number of cached positions that a row of the sequence sees.
    pub seen: usize,
}

/// The division of a paged KV cache into pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// The number of pages; page ids are smaller.
    pub pages: usize,
    /// Tokens per page: 1 to 15, or a multiple of 16 up to 65536. With 1, page ids are slots of tokens.
    pub page_size: usize,
}

const OPERATION: &str = "pass tables";

/// The tables of a pass with entries of 4 bytes, which follow the table of group sets with entries of 8 bytes.
#[derive(Clone, Copy)]
enum Table {
    Start,
    Candidates,
    Slots,
    FirstCandidate,
    FirstMask,
    FirstGroup,
    Pages,
}

impl<R: Runtime> PassTables<R> {
    /// Allocates tables for passes of up to `max_batch` sequences with up to `max_pages` pages each. They
    /// hold no sequence yet.
    ///
    /// # Errors
    ///
    /// [`KernelError::Overflow`] if the sizes overflow, or [`KernelError::Runtime`] if memory runs out.
    pub fn new(
        runtime: &R,
        stream: &R::Stream,
        max_batch: usize,
        max_pages: usize,
    ) -> Result<Self, KernelError> {
        let overflow = || KernelError::Overflow { kernel: OPERATION, what: "max_batch * max_pages" };
        // The memory holds the group sets and the same number of empty group sets (two entries each), six tables with
        // one entry per sequence and one or two more, and the pages.
        let entries_each = max_pages.checked_add(4 + 6).ok_or_else(overflow)?;
        let entries = max_batch.checked_mul(entries_each).and_then(|entries| entries.checked_add(6 * 2));
        let words = entries.filter(|&n| n < i32::MAX as usize).ok_or_else(overflow)?.div_ceil(2);
        let memory = runtime.allocate(stream, words)?;
        Ok(PassTables {
            memory,
            staging: vec![0; words],
            max_batch,
            max_pages,
            batch: 0,
            candidates: 0,
            masks: 0,
            sequences: Vec::with_capacity(max_batch),
            appends: Vec::with_capacity(max_batch),
            paging: Paging::default(),
            written_on_device: false,
        })
    }

    /// Checks `pass` and writes its rows and pages to the tables. Sequences may share pages that they read, but no two
    /// candidates may be appended to the same token of a page.
    ///
    /// # Errors
    ///
    /// [`KernelError::Pass`], [`KernelError::Sequence`], [`KernelError::PageId`], [`KernelError::GroupOrder`],
    /// [`KernelError::NoSlots`] or [`KernelError::GroupBeyondCandidates`] if the pass or a sequence is invalid,
    /// [`KernelError::SharedToken`] if two candidates would be appended to the same place. After an error, the tables
    /// are unchanged.
    pub fn upload(
        &mut self,
        runtime: &R,
        stream: &R::Stream,
        pass: &Pass<'_>,
        paging: Paging,
    ) -> Result<(), KernelError> {
        let used = self.stage(pass, paging)?;
        Ok(runtime.upload(stream, &self.staging[..used], &mut self.memory, 0)?)
    }

    /// Like [`upload`](Self::upload), for a caller who uploads the tables together with others: the caller puts the
    /// returned words into device memory, and [fetches](Self::fetch) them from there before any kernel reads the tables.
    ///
    /// # Errors
    ///
    /// The errors of [`upload`](Self::upload).
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(crate) fn words(&mut self, pass: &Pass<'_>, paging: Paging) -> Result<&[u64], KernelError> {
        let used = self.stage(pass, paging)?;
        Ok(&self.staging[..used])
    }

    /// Copies the [words](Self::words) of the pass from `range` of `from` into the tables.
    ///
    /// # Errors
    ///
    /// [`KernelError::Runtime`] if `from` or the tables are too short, or if the copy fails.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(crate) fn fetch(
        &mut self,
        runtime: &R,
        stream: &R::Stream,
        from: &R::Memory<u64>,
        range: Range<usize>,
    ) -> Result<(), KernelError> {
        Ok(runtime.copy(stream, from, range, &mut self.memory, 0)?)
    }

    /// Checks `pass` and fills the staging memory. Returns the number of words in use.
    fn stage(&mut self, pass: &Pass<'_>, paging: Paging) -> Result<usize, KernelError> {
        limits::page_size(paging.page_size).map_err(|limit| KernelError::exceeded(OPERATION, limit))?;
        let (candidates, masks) = self.check(pass, paging)?;
        self.check_appends(pass, paging.page_size)?;
        let batch = pass.sequences.len();
        let [mut first_candidate, mut first_mask] = [0, candidates];
        for (i, rows) in pass.sequences.iter().enumerate() {
            let first_group = rows.groups.first().copied().unwrap_or(0);
            self.staging[i] = rows.groups.iter().fold(0, |bits, &group| bits | 1 << (group - first_group));
            self.set(Table::FirstGroup, i, first_group);
            self.set(Table::Start, i, rows.start);
            self.set(Table::Candidates, i, rows.candidates);
            self.set(Table::Slots, i, rows.slots);
            self.set(Table::FirstCandidate, i, first_candidate);
            self.set(Table::FirstMask, i, first_mask);
            for (j, &page) in rows.pages.iter().enumerate() {
                self.set(Table::Pages, i * self.max_pages + j, page as usize);
            }
            first_candidate += rows.candidates;
            first_mask += rows.groups.len() * rows.slots;
        }
        self.set(Table::FirstCandidate, batch, first_candidate);
        self.set(Table::FirstMask, batch, first_mask);
        // The upload includes all room for the pages of the last sequence; only larger batches use the rest. The length
        // does not depend on the number of pages, so steps with the same number of sequences make the same copies.
        let used = (self.table(Table::Pages) + batch * self.max_pages).div_ceil(2);
        (self.batch, self.candidates, self.masks, self.paging) = (batch, candidates, masks, paging);
        self.written_on_device = false;
        let size = |s: &SequenceRows<'_>| SequenceSize {
            candidates: s.candidates,
            masks: s.groups.len() * s.slots,
            seen: visible(s),
        };
        self.sequences.clear();
        self.sequences.extend(pass.sequences.iter().map(size));
        Ok(used)
    }

    /// Checks the pass and returns its numbers of candidate rows and mask rows.
    fn check(&self, pass: &Pass<'_>, paging: Paging) -> Result<(usize, usize), KernelError> {
        let in_total = |what: &'static str, found: usize, limit: usize| match found <= limit {
            true => Ok(()),
            false => Err(KernelError::Pass { what, found, limit }),
        };
        let at_most = |sequence: usize, what: &'static str, found: usize, limit: usize| match found <= limit {
            true => Ok(()),
            false => Err(KernelError::Sequence { sequence, what, found, limit }),
        };
        in_total("number of sequences", pass.sequences.len(), self.max_batch)?;
        in_total("number of pages", paging.pages, i32::MAX as usize)?;
        let [mut candidates, mut masks] = [0usize; 2];
        for (sequence, rows) in pass.sequences.iter().enumerate() {
            at_most(sequence, "number of pages", rows.pages.len(), self.max_pages)?;
            at_most(sequence, "number of slots", rows.slots, MAX_BLOCK_SIZE)?;
            for pair in rows.groups.windows(2) {
                let [group, next] = [pair[0], pair[1]];
                if group >= next {
                    return Err(KernelError::GroupOrder { sequence, group, next });
                }
            }
            if let (Some(&first), Some(&last)) = (rows.groups.first(), rows.groups.last()) {
                at_most(sequence, "distance of the first and last group", last - first, 63)?;
                if rows.slots == 0 {
                    return Err(KernelError::NoSlots { sequence, groups: rows.groups.len() });
                }
            }
            if let Some(&page) = rows.pages.iter().find(|&&page| page as usize >= paging.pages) {
                return Err(KernelError::PageId { sequence, page, pages: paging.pages });
            }
            // The rows write or see the cached positions 0..end; the positions of slots come after them.
            let end = visible(rows);
            // Without candidates, an earlier pass wrote the positions that groups see.
            let beyond = |last: &&usize| rows.candidates > 0 && **last >= rows.candidates;
            if let Some(&group) = rows.groups.last().filter(beyond) {
                let candidates = rows.candidates;
                return Err(KernelError::GroupBeyondCandidates { sequence, group, candidates });
            }
            at_most(sequence, "cached positions", end, rows.pages.len() * paging.page_size)?;
            at_most(sequence, "last position", end.saturating_add(MAX_BLOCK_SIZE), i32::MAX as usize)?;
            candidates += rows.candidates;
            masks += rows.groups.len() * rows.slots;
        }
        in_total("number of rows", candidates.saturating_add(masks), i32::MAX as usize)?;
        Ok((candidates, masks))
    }

    /// Checks that no two candidates are appended to the same token of a page. The pages of the pass were checked
    /// before.
    fn check_appends(&mut self, pass: &Pass<'_>, page_size: usize) -> Result<(), KernelError> {
        self.appends.clear();
        let appending = pass.sequences.iter().enumerate().filter(|(_, rows)| rows.candidates > 0);
        for (sequence, rows) in appending {
            let (start, end) = (rows.start, rows.start + rows.candidates);
            let pages = start / page_size..end.div_ceil(page_size);
            for (first, &page) in pages.clone().zip(rows.pages.get(pages).unwrap_or(&[])) {
                let position = first * page_size;
                let (first, end) = (start.max(position) - position, (end - position).min(page_size));
                self.appends.push(Append { page, first, end, sequence });
            }
        }
        self.appends.sort_unstable();
        for pair in self.appends.windows(2) {
            let [one, next] = [pair[0], pair[1]];
            if one.page == next.page && next.first < one.end {
                return Err(KernelError::SharedToken {
                    sequence: one.sequence.max(next.sequence),
                    other: one.sequence.min(next.sequence),
                    page: next.page,
                    token: next.first,
                });
            }
        }
        Ok(())
    }

    /// Returns the place in the tables' memory where a table starts, in 4-byte entries.
    fn table(&self, table: Table) -> usize {
        let stride = self.max_batch + 2;
        4 * self.max_batch + table as usize * stride
    }

    fn set(&mut self, table: Table, index: usize, value: usize) {
        let at = self.table(table) + index;
        let entries: &mut [i32] = bytemuck::cast_slice_mut(&mut self.staging);
        // The check of the pass made sure that the value fits.
        entries[at] = value as i32;
    }

    /// Returns the number of sequences in the pass.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the number of candidate rows of the pass, which come first.
    pub fn candidates(&self) -> usize {
        self.candidates
    }

    /// Returns the number of mask rows of the pass.
    pub fn masks(&self) -> usize {
        self.masks
    }

    /// Returns the number of candidate rows and mask rows of the pass.
    pub fn rows(&self) -> usize {
        self.candidates + self.masks
    }

    /// Returns the number of all rows of the pass, or of its candidate rows alone if `masks` is false.
    pub(super) fn rows_with(&self, masks: bool) -> usize {
        if masks { self.rows() } else { self.candidates }
    }

    /// Returns the largest number of cached positions that the rows of any sequence see.
    pub fn longest(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.seen).max().unwrap_or(0)
    }

    pub(super) fn sequences(&self) -> &[SequenceSize] {
        &self.sequences
    }

    /// Returns the division into pages of the KV cache to which the page ids refer.
    pub fn paging(&self) -> Paging {
        self.paging
    }

    /// Returns the memory of the tables, for a kernel that writes them.
    pub(super) fn view_mut<'a>(&'a mut self, runtime: &R, stream: &'a R::Stream) -> ViewMut<'a, u64> {
        self.written_on_device = true;
        runtime.view_mut(stream, &mut self.memory)
    }

    /// Returns whether a kernel may have changed the tables since they were copied to the device. If not, kernels may read
    /// the tables before earlier launches have ended.
    pub(super) fn written_on_device(&self) -> bool {
        self.written_on_device
    }

    /// Returns the places in the tables' memory where the sequences' first positions and first groups begin, in 4-byte
    /// entries.
    pub(super) fn starts_and_first_groups(&self) -> (usize, usize) {
        (self.table(Table::Start), self.table(Table::FirstGroup))
    }

    /// Returns the tables as parameters of a kernel whose operands have `rows` rows, the page table, and its
    /// stride. If `masks` is false, the parameters describe the pass without its groups.
    pub(super) fn params(
        &self,
        runtime: &R,
        stream: &R::Stream,
        operands: &mut Operands,
        rows: usize,
        masks: bool,
    ) -> Result<(FlexdraftPass, *const i32, i64), KernelError> {
        let groups = operands.read("pass", &runtime.view(stream, &self.memory), self.staging.len(), 8)?;
        let table = |table| groups.cast::<i32>().wrapping_add(self.table(table));
        // In a pass without groups, mask rows begin and end at the same row as candidate rows.
        let (groups, first_mask) = match masks {
            true => (groups, Table::FirstMask),
            false => (groups.wrapping_add(self.max_batch), Table::FirstCandidate),
        };
        let pass = FlexdraftPass {
            start: table(Table::Start),
            candidates: table(Table::Candidates),
            groups,
            slots: table(Table::Slots),
            first_candidate: table(Table::FirstCandidate),
            first_mask: table(first_mask),
            first_group: table(Table::FirstGroup),
            batch: self.batch as i32,
            rows: operands.i32("rows", rows)?,
        };
        Ok((pass, table(Table::Pages), self.max_pages as i64))
    }
}

/// Returns the number of cached positions that at least one row of the sequence sees.
fn visible(rows: &SequenceRows<'_>) -> usize {
    rows.start
        .saturating_add(rows.candidates.max(rows.groups.last().map_or(0, |last| last.saturating_add(1))))
}
