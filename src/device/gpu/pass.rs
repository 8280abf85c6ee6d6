//! A forward pass as the GPU device keeps it: its tables in device memory, and the rotations of its rows.

use std::mem::ManuallyDrop;

use super::context::Context;
use super::pass_memory::PassMemory;
use super::scratch::Scratch;
use crate::device::DeviceError;
use crate::kernels::Paging;
use crate::layout::Pass;
use crate::runtime::Runtime;

/// A forward pass whose tables are on the device. When the pass is dropped, later passes use its memory.
#[derive(Debug)]
pub struct UploadedPass<'a, R: Runtime> {
    pub(super) memory: ManuallyDrop<PassMemory<R>>,
    context: &'a Context<R>,
}

impl<'a, R: Runtime> UploadedPass<'a, R> {
    /// Uploads the tables of `layout`, a drafting pass that its step did not announce, and collects the launches that
    /// follow the upload.
    pub(super) fn late(
        context: &'a Context<R>,
        layout: &Pass<'_>,
        paging: Paging,
    ) -> Result<Self, DeviceError> {
        let mut pass = Self::reserved(context, layout)?;
        let mut scratch = context.scratch();
        let Scratch { late_pass, staging, .. } = &mut *scratch;
        late_pass.clear();
        let words = late_pass.push(pass.words(layout, paging)?);
        late_pass.upload(context.queue(), staging)?;
        context.runtime().gather_launches(&context.stream)?;
        late_pass.fetch(context.queue(), &words, pass.memory.tables_mut())?;
        drop(scratch);
        Ok(pass)
    }

    /// Returns the words of the tables of `layout`, which are to be uploaded with others.
    pub(super) fn words(&mut self, layout: &Pass<'_>, paging: Paging) -> Result<&[u64], DeviceError> {
        Ok(self.memory.tables_mut().words(layout, paging)?)
    }

    /// Reserves memory for the tables of `layout`.
    pub(super) fn reserved(context: &'a Context<R>, layout: &Pass<'_>) -> Result<Self, DeviceError> {
        let batch = layout.sequences.len().next_power_of_two();
        let pages =
            layout.sequences.iter().map(|rows| rows.pages.len()).max().unwrap_or(0).next_power_of_two();
        let kept = context.scratch().take_pass_memory(batch, pages);
        let memory = match kept {
            Some(memory) => memory,
            None => PassMemory::new(context.queue(), batch, pages)?,
        };
        Ok(Self { memory: ManuallyDrop::new(memory), context })
    }
}

impl<R: Runtime> Drop for UploadedPass<'_, R> {
    fn drop(&mut self) {
        // SAFETY: nothing else takes the memory, and a dropped pass is not used again.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        self.context.scratch().keep_pass_memory(memory);
    }
}
