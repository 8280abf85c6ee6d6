//! A pass as the GPU device keeps it: its tables in device memory, and the rotations of its rows.

use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

use super::pass_memory::PassMemory;
use super::scratch::Scratch;
use crate::device::DeviceError;
use crate::kernels::{Paging, PassTables};
use crate::layout::Pass;
use crate::runtime::Runtime;

/// A pass whose tables are on the device. The memory goes back to the device when the pass is dropped.
#[derive(Debug)]
pub struct UploadedPass<'a, B: Runtime> {
    /// What was laid out.
    pub(super) layout: &'a Pass<'a>,
    pub(super) memory: ManuallyDrop<PassMemory<B>>,
    scratch: &'a Mutex<Scratch<B>>,
}

impl<'a, B: Runtime> UploadedPass<'a, B> {
    /// Puts the tables of `layout` on the device.
    pub(super) fn new(
        scratch: &'a Mutex<Scratch<B>>,
        (runtime, stream): (&B, &B::Stream),
        layout: &'a Pass<'a>,
        paging: Paging,
    ) -> Result<Self, DeviceError> {
        let batch = layout.sequences.len().next_power_of_two();
        let pages =
            layout.sequences.iter().map(|rows| rows.pages.len()).max().unwrap_or(0).next_power_of_two();
        let kept = lock(scratch).take_pass_memory(batch, pages);
        let memory = match kept {
            Some(memory) => memory,
            None => PassMemory::new(runtime, stream, batch, pages)?,
        };
        let mut pass = Self { layout, memory: ManuallyDrop::new(memory), scratch };
        pass.memory.turned = None;
        pass.memory.tables.upload(runtime, stream, layout, paging)?;
        Ok(pass)
    }

    /// The tables, for a kernel that changes them.
    pub(super) fn tables_mut(&mut self) -> &mut PassTables<B> {
        // A row's rotation depends on its position, which is in the tables.
        self.memory.turned = None;
        &mut self.memory.tables
    }
}

impl<B: Runtime> Drop for UploadedPass<'_, B> {
    fn drop(&mut self) {
        // SAFETY: the memory is taken nowhere else, and a dropped pass is not used again.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        lock(self.scratch).keep_pass_memory(memory);
    }
}

fn lock<B: Runtime>(scratch: &Mutex<Scratch<B>>) -> std::sync::MutexGuard<'_, Scratch<B>> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}
