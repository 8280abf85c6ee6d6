//! A pass as the GPU device keeps it: its tables in device memory, and the rotations of its rows.

use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

use super::memory::Grown;
use super::scratch::Scratch;
use crate::backend::Backend;
use crate::device::{DeviceError, Rope};
use crate::kernels::glue::RopeTable;
use crate::kernels::{Kernels, Paging, PassTables};
use crate::layout::Pass;

/// Device memory of a pass. Passes of similar size use it one after the other.
#[derive(Debug)]
pub(super) struct PassMemory<B: Backend> {
    pub(super) tables: PassTables<B>,
    /// The most sequences, and the most pages a sequence, that the tables have room for.
    limits: (usize, usize),
    turns: Grown<B, f32>,
    /// The rotation that `turns` holds for the pass in the tables.
    turned: Option<Rope>,
}

/// A pass whose tables are on the device. The memory goes back to the device when the pass is dropped.
#[derive(Debug)]
pub struct LaidOut<'a, B: Backend> {
    /// What was laid out.
    pub(super) layout: &'a Pass<'a>,
    pub(super) memory: ManuallyDrop<PassMemory<B>>,
    scratch: &'a Mutex<Scratch<B>>,
}

impl<'a, B: Backend> LaidOut<'a, B> {
    /// Puts the tables of `layout` on the device.
    pub(super) fn new(
        scratch: &'a Mutex<Scratch<B>>,
        (backend, stream): (&B, &B::Stream),
        layout: &'a Pass<'a>,
        paging: Paging,
    ) -> Result<Self, DeviceError> {
        let batch = layout.sequences.len().next_power_of_two();
        let pages =
            layout.sequences.iter().map(|rows| rows.pages.len()).max().unwrap_or(0).next_power_of_two();
        let kept = lock(scratch).take_pass_memory(batch, pages);
        let memory = match kept {
            Some(memory) => memory,
            None => PassMemory {
                tables: PassTables::new(backend, stream, batch, pages)?,
                limits: (batch, pages),
                turns: Grown::default(),
                turned: None,
            },
        };
        let mut pass = Self { layout, memory: ManuallyDrop::new(memory), scratch };
        pass.memory.turned = None;
        pass.memory.tables.upload(backend, stream, layout, paging)?;
        Ok(pass)
    }

    /// The tables, for a kernel that changes them.
    pub(super) fn tables_mut(&mut self) -> &mut PassTables<B> {
        // A row's rotation depends on its position, which is in the tables.
        self.memory.turned = None;
        &mut self.memory.tables
    }
}

impl<B: Backend> PassMemory<B> {
    /// Whether a pass of `batch` sequences fits, with tables that are no longer than those of `pages` pages.
    pub(super) fn suits(&self, batch: usize, pages: usize) -> bool {
        self.limits.0 >= batch && self.limits.1 == pages
    }

    /// Whether any pass that `other` suits, which has room for fewer sequences, can use this memory instead.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        self.limits.0 > other.limits.0 && self.limits.1 == other.limits.1
    }

    /// Computes the rotation of every row, unless that was done. Returns the tables and the rotations.
    pub(super) fn turned(
        &mut self,
        kernels: &Kernels<B>,
        stream: &B::Stream,
        rope: &Rope,
        inv_freq: &B::Memory<f32>,
    ) -> Result<(&PassTables<B>, &B::Memory<f32>), DeviceError> {
        let Self { tables, turns, turned, .. } = self;
        let backend = kernels.backend();
        let len = tables.rows() * 2 * rope.inv_freq.len();
        let turns = turns.reserve(backend, stream, len)?;
        if turned.as_ref() != Some(rope) {
            let all = backend.view_mut(stream, turns).range(0..len);
            let (index, limit) = (len, len);
            let missing = DeviceError::OutOfRange { operation: "rope_table", what: "rows", index, limit };
            let turns = all.ok_or(missing)?;
            let inv_freq = backend.view(stream, inv_freq);
            kernels.rope_table(stream, &RopeTable { pass: tables, inv_freq, scale: rope.scale, turns })?;
            *turned = Some(rope.clone());
        }
        Ok((tables, turns))
    }
}

/// The frequencies of a rotation on the device.
#[derive(Debug)]
pub(super) struct Frequencies<B: Backend>(Option<(Rope, B::Memory<f32>)>);

impl<B: Backend> Default for Frequencies<B> {
    fn default() -> Self {
        Self(None)
    }
}

impl<B: Backend> Frequencies<B> {
    /// Those of `rope`, uploaded if they are not there.
    pub(super) fn of(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        rope: &Rope,
    ) -> Result<&B::Memory<f32>, DeviceError> {
        let (_, inv_freq) = match self.0.take().filter(|(known, _)| known == rope) {
            Some(same) => self.0.insert(same),
            None => {
                let mut inv_freq = backend.allocate(stream, rope.inv_freq.len())?;
                backend.upload(stream, &rope.inv_freq, &mut inv_freq, 0)?;
                self.0.insert((rope.clone(), inv_freq))
            }
        };
        Ok(inv_freq)
    }
}

impl<B: Backend> Drop for LaidOut<'_, B> {
    fn drop(&mut self) {
        // SAFETY: the memory is taken nowhere else, and a dropped pass is not used again.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        lock(self.scratch).keep_pass_memory(memory);
    }
}

fn lock<B: Backend>(scratch: &Mutex<Scratch<B>>) -> std::sync::MutexGuard<'_, Scratch<B>> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}
