//! Device memory of a pass, which later passes use again: tables, and the rotations of rows.

use super::memory::GrowableMemory;
use crate::device::{DeviceError, Rope};
use crate::kernels::glue::RopeTable;
use crate::kernels::{Kernels, PassTables};
use crate::runtime::Runtime;

/// Device memory of a pass. Passes of similar size use it one after the other.
#[derive(Debug)]
pub(super) struct PassMemory<B: Runtime> {
    pub(super) tables: PassTables<B>,
    /// The most sequences, and the most pages a sequence, that the tables have room for.
    limits: (usize, usize),
    cos_sin: GrowableMemory<B, f32>,
    /// The rotation that `cos_sin` holds for the pass in the tables.
    pub(super) turned: Option<Rope>,
}

impl<B: Runtime> PassMemory<B> {
    /// Tables for up to `batch` sequences of up to `pages` pages.
    pub(super) fn new(
        runtime: &B,
        stream: &B::Stream,
        batch: usize,
        pages: usize,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            tables: PassTables::new(runtime, stream, batch, pages)?,
            limits: (batch, pages),
            cos_sin: GrowableMemory::default(),
            turned: None,
        })
    }

    /// Whether a pass of `batch` sequences fits, with tables no longer than tables for `pages` pages.
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
        let Self { tables, cos_sin, turned, .. } = self;
        let runtime = kernels.runtime();
        let len = tables.rows() * 2 * rope.inv_freq.len();
        let cos_sin = cos_sin.reserve(runtime, stream, len)?;
        if turned.as_ref() != Some(rope) {
            let all = runtime.view_mut(stream, cos_sin).range(0..len);
            let (index, limit) = (len, len);
            let missing = DeviceError::OutOfRange { operation: "rope_table", what: "rows", index, limit };
            let cos_sin = all.ok_or(missing)?;
            let inv_freq = runtime.view(stream, inv_freq);
            kernels.rope_table(stream, &RopeTable { pass: tables, inv_freq, scale: rope.scale, cos_sin })?;
            *turned = Some(rope.clone());
        }
        Ok((tables, cos_sin))
    }
}

/// The frequencies of a rotation on the device.
#[derive(Debug)]
pub(super) struct Frequencies<B: Runtime>(Option<(Rope, B::Memory<f32>)>);

impl<B: Runtime> Default for Frequencies<B> {
    fn default() -> Self {
        Self(None)
    }
}

impl<B: Runtime> Frequencies<B> {
    /// The frequencies of `rope`, uploaded if the device has others.
    pub(super) fn of(
        &mut self,
        runtime: &B,
        stream: &B::Stream,
        rope: &Rope,
    ) -> Result<&B::Memory<f32>, DeviceError> {
        let (_, inv_freq) = match self.0.take().filter(|(known, _)| known == rope) {
            Some(same) => self.0.insert(same),
            None => {
                let mut inv_freq = runtime.allocate(stream, rope.inv_freq.len())?;
                runtime.upload(stream, &rope.inv_freq, &mut inv_freq, 0)?;
                self.0.insert((rope.clone(), inv_freq))
            }
        };
        Ok(inv_freq)
    }
}
