//! Memory that the operations of a step share, and that every step uses again.

use std::sync::Arc;

use super::frequencies::Frequencies;
use super::memory::GrowableMemory;
use super::pass_memory::PassMemory;
use super::table_block::TableBlock;
use super::tables::{CachedTable, StagedTables};
use crate::device::DeviceError;
use crate::runtime::{Runtime, Staging, ViewMut};

/// Tables and memory that the operations of a device share.
#[derive(Debug)]
pub(super) struct Scratch<R: Runtime> {
    /// The token ids whose embeddings an operation looks up.
    pub(super) ids: CachedTable<R>,
    /// The indices of the rows that a gather copies.
    pub(super) gathered: CachedTable<R>,
    /// Zeros: the row index for every row that is filled with the one row of a vector.
    pub(super) filled: CachedTable<R>,
    /// For each row of the calibrator, the index of its bonus token's row among the bonus tokens' rows.
    pub(super) owners: CachedTable<R>,
    /// The index of the verdict that each mask group of a drafting pass follows.
    pub(super) followed: CachedTable<R>,
    /// The workspace of the attention, sampling and acceptance kernels.
    pub(super) workspace: GrowableMemory<R, f32>,
    /// Rows of logits, side by side, on their way to the host.
    pub(super) read_rows: GrowableMemory<R, f32>,
    /// The device error word. Kernels set it, and [`read`](crate::device::Verification::read) looks at it.
    pub(super) error: GrowableMemory<R, u64>,
    /// The frequencies of the rotation that was used last.
    pub(super) frequencies: Frequencies<R>,
    /// The tables of a drafting pass that the step did not announce.
    pub(super) late_pass: StagedTables<R>,
    /// Host memory through which tables and reports are copied.
    pub(super) staging: Staging,
    /// The tables of the step that began last.
    block: Arc<TableBlock<R>>,
    /// Memory of passes that were dropped, which later passes use again.
    passes: Vec<PassMemory<R>>,
}

impl<R: Runtime> Default for Scratch<R> {
    fn default() -> Self {
        Scratch {
            ids: CachedTable::default(),
            gathered: CachedTable::default(),
            filled: CachedTable::default(),
            owners: CachedTable::default(),
            followed: CachedTable::default(),
            workspace: GrowableMemory::default(),
            read_rows: GrowableMemory::default(),
            error: GrowableMemory::default(),
            frequencies: Frequencies::default(),
            late_pass: StagedTables::default(),
            staging: Staging::default(),
            block: Arc::default(),
            passes: Vec::new(),
        }
    }
}

/// Returns the device error word in the form in which kernels take it.
pub(super) fn error_word<'a, R: Runtime>(
    (runtime, stream): (&R, &'a R::Stream),
    error: &'a mut GrowableMemory<R, u64>,
) -> Result<ViewMut<'a, u32>, DeviceError> {
    let memory = error.reserve((runtime, stream), 1)?;
    let word = runtime.view_mut(stream, memory).cast().and_then(|words| words.range(0..1));
    word.ok_or(DeviceError::Overflow { operation: "step", operand: "error word" })
}

impl<R: Runtime> Scratch<R> {
    /// Returns the tables of the step that began last.
    pub(super) fn block(&self) -> Arc<TableBlock<R>> {
        self.block.clone()
    }

    /// Takes the tables of the step that began last, for the tables of another step.
    pub(super) fn take_block(&mut self) -> Arc<TableBlock<R>> {
        std::mem::take(&mut self.block)
    }

    /// Keeps the tables of a step that begins.
    pub(super) fn keep_block(&mut self, block: Arc<TableBlock<R>>) {
        self.block = block;
    }

    /// Takes memory for a pass of up to `batch` sequences of up to `pages` pages, if a dropped pass left some.
    pub(super) fn take_pass_memory(&mut self, batch: usize, pages: usize) -> Option<PassMemory<R>> {
        let index = self.passes.iter().position(|memory| memory.suits(batch, pages))?;
        Some(self.passes.swap_remove(index))
    }

    /// Keeps the memory of a dropped pass for the next pass.
    pub(super) fn keep_pass_memory(&mut self, memory: PassMemory<R>) {
        // Memory that only smaller batches could use is not needed any more.
        self.passes.retain(|kept| !memory.replaces(kept));
        self.passes.push(memory);
    }
}
