//! The device memory of a forward pass, which later passes use again: tables, and the rotations of rows.

use super::memory::GrowableMemory;
use crate::device::{DeviceError, Rope};
use crate::kernels::rope::RopeTable;
use crate::kernels::{Kernels, PassTables};
use crate::runtime::{Runtime, RuntimeError};

/// Device memory of a forward pass. Passes of similar size use it one after the other.
#[derive(Debug)]
pub(super) struct PassMemory<R: Runtime> {
    pub(super) tables: PassTables<R>,
    /// The maximum number of sequences, and of pages per sequence, for which the tables have room.
    limits: (usize, usize),
    cos_sin: GrowableMemory<R, f32>,
    /// The rotation whose cosines and sines `cos_sin` holds for the rows of the pass in the tables.
    rotation: Option<Rope>,
}

impl<R: Runtime> PassMemory<R> {
    /// Makes tables for up to `batch` sequences of up to `pages` pages.
    pub(super) fn new(
        (runtime, stream): (&R, &R::Stream),
        batch: usize,
        pages: usize,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            tables: PassTables::new(runtime, stream, batch, pages)?,
            limits: (batch, pages),
            cos_sin: GrowableMemory::default(),
            rotation: None,
        })
    }

    /// Returns whether a pass of `batch` sequences fits, with tables no longer than tables for `pages` pages.
    pub(super) fn suits(&self, batch: usize, pages: usize) -> bool {
        self.limits.0 >= batch && self.limits.1 == pages
    }

    /// Returns whether every pass that suits `other`, which has room for fewer sequences, suits this memory too.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        self.limits.0 > other.limits.0 && self.limits.1 == other.limits.1
    }

    /// Returns the tables, for a change of the rows' positions. Rotations depend on positions, so they are
    /// computed again.
    pub(super) fn tables_mut(&mut self) -> &mut PassTables<R> {
        self.rotation = None;
        &mut self.tables
    }

    /// Computes the rotation of every row, unless the memory already holds it. Returns the tables and the
    /// rotations.
    pub(super) fn rotations(
        &mut self,
        kernels: &Kernels<R>,
        stream: &R::Stream,
        rope: &Rope,
        inv_freq: &R::Memory<f32>,
    ) -> Result<(&PassTables<R>, &R::Memory<f32>), DeviceError> {
        let Self { tables, cos_sin, rotation, .. } = self;
        let runtime = kernels.runtime();
        let len = tables.rows() * 2 * rope.inv_freq.len();
        let cos_sin = cos_sin.reserve((runtime, stream), len)?;
        if rotation.as_ref() != Some(rope) {
            let all = runtime.view_mut(stream, cos_sin);
            let found = all.len();
            let cos_sin = all.range(0..len).ok_or(RuntimeError::CopyLength { wanted: len, found })?;
            let inv_freq = runtime.view(stream, inv_freq);
            kernels.rope_table(stream, &RopeTable { pass: tables, inv_freq, scale: rope.scale, cos_sin })?;
            *rotation = Some(rope.clone());
        }
        Ok((tables, cos_sin))
    }
}
