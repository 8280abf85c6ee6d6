//! The tables of a step in device memory: one upload at the start of the step brings all of them.

use std::sync::{Arc, Mutex, PoisonError};

use super::buffer::GpuBuffer;
use super::check;
use super::context::Context;
use super::pass::UploadedPass;
use super::selected::SelectionTables;
use super::table_block::TableBlock;
use super::verify::VerifyTables;
use crate::device::{DeviceError, DraftTables, DraftingPass, SlotRows, StepTables};
use crate::kernels::Paging;
use crate::runtime::Runtime;

/// The tables of a step on the device.
#[derive(Debug)]
pub struct UploadedTables<'a, R: Runtime> {
    context: &'a Context<R>,
    /// The tables of the step, as the host announced them.
    pub(super) step: StepTables<'a, GpuBuffer<R>>,
    pub(super) block: Arc<TableBlock<R>>,
    pub(super) verify: VerifyTables,
    /// The tables of the drafts from mask groups of the pass.
    drafts: SelectionTables,
    /// The tables of the drafts from the drafting pass.
    late_drafts: SelectionTables,
    /// The drafting pass, until it begins.
    drafting: Mutex<Option<UploadedPass<'a, R>>>,
}

impl<'a, R: Runtime> UploadedTables<'a, R> {
    /// Uploads the tables of a step. Also returns its pass.
    pub(super) fn new(
        context: &'a Context<R>,
        step: StepTables<'a, GpuBuffer<R>>,
        paging: Paging,
    ) -> Result<(UploadedPass<'a, R>, Self), DeviceError> {
        // A block of tables that an earlier step still uses stays with the earlier step.
        let mut block = Arc::try_unwrap(context.scratch().take_block()).unwrap_or_default();
        block.clear();
        let mut pass = UploadedPass::reserved(context, step.pass)?;
        let words = block.tables.push(pass.words(step.pass, paging)?);
        block.push_indices(step.tokens.iter().map(|&token| token as usize));
        block.push_indices(step.logits_rows.iter().copied());
        let mut verify = VerifyTables::stage(&mut block.tables, step.sequences, step.logits_rows.len())?;
        let batch = step.sequences.len();
        let stage_drafts = |block: &mut TableBlock<R>, drafts: DraftTables<'_>| {
            block.push_indices(drafts.owners().into_iter());
            SelectionTables::stage(&mut block.tables, drafts, batch)
        };
        let drafts = stage_drafts(&mut block, step.drafts)?;
        let (mut drafting, mut late_drafts) = (None, SelectionTables::default());
        if let Some((of, drafts)) = step.drafting {
            check::drafting_pass(of)?;
            let mut pass = UploadedPass::reserved(context, of.pass)?;
            let words = block.tables.push(pass.words(of.pass, paging)?);
            block.push_indices(of.verdicts.iter().copied());
            late_drafts = stage_drafts(&mut block, drafts)?;
            drafting = Some((pass, words));
        }
        verify.stage_edits(&mut block.tables, step.sequences, step.vocab)?;
        let mut scratch = context.scratch();
        block.tables.upload(context.queue(), &mut scratch.staging)?;
        let block = Arc::new(block);
        scratch.keep_block(block.clone());
        drop(scratch);
        if step.only_decodes() {
            context.runtime().gather_launches(&context.stream)?;
        }
        block.tables.fetch(context.queue(), &words, &mut pass.memory.tables)?;
        let drafting = match drafting {
            None => None,
            Some((mut pass, words)) => {
                block.tables.fetch(context.queue(), &words, &mut pass.memory.tables)?;
                Some(pass)
            }
        };
        let drafting = Mutex::new(drafting);
        Ok((pass, Self { context, step, block, verify, drafts, late_drafts, drafting }))
    }

    /// Returns the tables of `drafts`, if the step announced these drafts.
    pub(super) fn drafts(&self, drafts: DraftTables<'_>) -> Option<&SelectionTables> {
        // The announced slices stay borrowed, so a slice at the same place has the same contents.
        let announced =
            |known: DraftTables<'_>| same(known.drafts, drafts.drafts) && known.rows == drafts.rows;
        match self.step.drafting {
            _ if announced(self.step.drafts) => Some(&self.drafts),
            Some((_, known)) if announced(known) => Some(&self.late_drafts),
            _ => None,
        }
    }

    /// Returns the tables of the drafts from the drafting pass, and their slots, if the step announced such drafts and draft
    /// i is of verdict `verdicts[i]`.
    pub(super) fn drafts_of(&self, verdicts: &[usize]) -> Option<(&SelectionTables, SlotRows)> {
        let (_, DraftTables { drafts, rows }) = self.step.drafting?;
        let same = drafts.iter().map(|draft| draft.sequence).eq(verdicts.iter().copied());
        same.then_some((&self.late_drafts, rows))
    }

    /// Takes the pass on the device for `drafting`, if the step announced this drafting pass and it has not begun yet.
    pub(super) fn take_drafting(&self, drafting: DraftingPass<'_>) -> Option<UploadedPass<'a, R>> {
        let (known, _) = self.step.drafting?;
        if !std::ptr::eq(known.pass, drafting.pass) || !same(known.verdicts, drafting.verdicts) {
            return None;
        }
        self.drafting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<R: Runtime> Drop for UploadedTables<'_, R> {
    fn drop(&mut self) {
        // A step that reads nothing leaves no collected launch.
        self.context.runtime().finish_launches(&self.context.stream);
    }
}

/// Returns whether two slices are the same memory.
fn same<T>(one: &[T], other: &[T]) -> bool {
    std::ptr::eq(one.as_ptr(), other.as_ptr()) && one.len() == other.len()
}
