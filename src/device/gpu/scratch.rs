//! What the operations of a step share, and what they reuse from step to step.

use super::memory::Grown;
use crate::backend::{Backend, BackendError, ViewMut};
use crate::device::{DeviceError, Rope};
use crate::kernels::glue::RopeTable;
use crate::kernels::{Kernels, Paging, PassTables};
use crate::layout::{Pass, SequenceRows};

/// Tables and memory of a device.
#[derive(Debug)]
pub(super) struct Scratch<B: Backend> {
    /// Row indices and token ids of one operation.
    pub(super) ids: Grown<B, i32>,
    /// For attention, sampling and acceptance.
    pub(super) workspace: Grown<B, f32>,
    /// The device error word, which kernels set and a step's [`read`](crate::device::Device::read) looks at.
    pub(super) error: Grown<B, u64>,
    pub(super) tables: Option<PassTables<B>>,
    /// What `tables` was made for, and what is in it.
    limits: (usize, usize),
    uploaded: Option<Uploaded>,
    /// The rotation that `turns` is for, and its frequencies on the device.
    rope: Option<(Rope, B::Memory<f32>)>,
    turns: Grown<B, f32>,
    /// Whether `turns` is of the pass that was uploaded last.
    turned: bool,
}

impl<B: Backend> Default for Scratch<B> {
    fn default() -> Self {
        Scratch {
            ids: Grown::default(),
            workspace: Grown::default(),
            error: Grown::default(),
            tables: None,
            limits: (0, 0),
            uploaded: None,
            rope: None,
            turns: Grown::default(),
            turned: false,
        }
    }
}

/// The error word as the kernels take it.
pub(super) fn error_word<'a, B: Backend>(
    backend: &B,
    stream: &'a B::Stream,
    error: &'a mut Grown<B, u64>,
) -> Result<ViewMut<'a, u32>, DeviceError> {
    let memory = error.reserve(backend, stream, 1)?;
    let word = backend.view_mut(stream, memory).cast().and_then(|words| words.range(0..1));
    word.ok_or(BackendError::CopyLength { wanted: 1, found: 0 }.into())
}

/// Tables that nothing was uploaded to.
const NO_PASS: DeviceError = DeviceError::OutOfRange { operation: "pass", what: "row", index: 0, limit: 0 };

/// A pass on the device, and the error word.
type LaidOut<'a, B> = (&'a PassTables<B>, &'a <B as Backend>::Memory<f32>, &'a mut Grown<B, u64>);

/// A pass on the device, memory for attention, and the error word.
type Uploads<'a, B> = (&'a PassTables<B>, &'a mut Grown<B, f32>, &'a mut Grown<B, u64>);

/// A pass that outlives what it borrows.
#[derive(Debug)]
struct Uploaded {
    sequences: Vec<(Vec<u32>, SequenceRows<'static>)>,
    paging: Paging,
}

impl Uploaded {
    fn new(pass: &Pass<'_>, paging: Paging) -> Self {
        let owned = |s: &SequenceRows<'_>| {
            let rows = SequenceRows { pages: &[], groups: s.groups.clone(), ..*s };
            (s.pages.to_vec(), rows)
        };
        Uploaded { sequences: pass.sequences.iter().map(owned).collect(), paging }
    }

    fn is(&self, pass: &Pass<'_>, paging: Paging) -> bool {
        self.paging == paging
            && self.sequences.len() == pass.sequences.len()
            && self.sequences.iter().zip(&pass.sequences).all(|((pages, old), new)| {
                pages == new.pages
                    && old.start == new.start
                    && old.candidates == new.candidates
                    && old.groups == new.groups
                    && old.slots == new.slots
            })
    }
}

impl<B: Backend> Scratch<B> {
    /// Puts the tables of `pass` on the device, unless they are there.
    pub(super) fn upload(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        pass: &Pass<'_>,
        paging: Paging,
    ) -> Result<(), DeviceError> {
        if self.uploaded.as_ref().is_some_and(|uploaded| uploaded.is(pass, paging)) {
            return Ok(());
        }
        (self.uploaded, self.turned) = (None, false);
        let batch = pass.sequences.len();
        let pages = pass.sequences.iter().map(|s| s.pages.len()).max().unwrap_or(0);
        if self.tables.is_none() || batch > self.limits.0 || pages > self.limits.1 {
            let limits =
                (batch.max(self.limits.0).next_power_of_two(), pages.max(self.limits.1).next_power_of_two());
            self.tables = Some(PassTables::new(backend, stream, limits.0, limits.1)?);
            self.limits = limits;
        }
        if let Some(tables) = &mut self.tables {
            tables.upload(backend, stream, pass, paging)?;
        }
        self.uploaded = Some(Uploaded::new(pass, paging));
        Ok(())
    }

    /// As [`upload`](Self::upload), and gives the tables out, with memory for attention and the error word.
    pub(super) fn uploaded(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        pass: &Pass<'_>,
        paging: Paging,
    ) -> Result<Uploads<'_, B>, DeviceError> {
        self.upload(backend, stream, pass, paging)?;
        match &self.tables {
            Some(tables) => Ok((tables, &mut self.workspace, &mut self.error)),
            None => Err(NO_PASS),
        }
    }

    /// As [`upload`](Self::upload), for tables that kernels are going to change.
    pub(super) fn upload_anew(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        pass: &Pass<'_>,
        paging: Paging,
    ) -> Result<(), DeviceError> {
        self.uploaded = None;
        self.upload(backend, stream, pass, paging)
    }

    /// As [`upload`](Self::upload), with every row's rotation.
    pub(super) fn lay_out(
        &mut self,
        kernels: &Kernels<B>,
        stream: &B::Stream,
        pass: &Pass<'_>,
        paging: Paging,
        rope: &Rope,
    ) -> Result<(), DeviceError> {
        let backend = kernels.backend();
        self.upload(backend, stream, pass, paging)?;
        if self.rope.as_ref().is_none_or(|(known, _)| known != rope) {
            let mut inv_freq = backend.allocate(stream, rope.inv_freq.len())?;
            backend.upload(stream, &rope.inv_freq, &mut inv_freq, 0)?;
            (self.rope, self.turned) = (Some((rope.clone(), inv_freq)), false);
        }
        if self.turned {
            return Ok(());
        }
        let (Some(tables), Some((rope, inv_freq))) = (&self.tables, &self.rope) else { return Ok(()) };
        let len = tables.rows() * 2 * rope.inv_freq.len();
        let turns = self.turns.reserve(backend, stream, len)?;
        let what = "rows";
        let turns = backend.view_mut(stream, turns).range(0..len).ok_or(DeviceError::OutOfRange {
            operation: "rope_table",
            what,
            index: len,
            limit: len,
        })?;
        let inv_freq = backend.view(stream, inv_freq);
        kernels.rope_table(stream, &RopeTable { pass: tables, inv_freq, scale: rope.scale, turns })?;
        self.turned = true;
        Ok(())
    }

    /// The tables and rotations of the last [`lay_out`](Self::lay_out), and the error word.
    pub(super) fn laid_out(&mut self) -> Result<LaidOut<'_, B>, DeviceError> {
        match (&self.tables, self.turns.memory()) {
            (Some(tables), Some(turns)) => Ok((tables, turns, &mut self.error)),
            _ => Err(NO_PASS),
        }
    }
}
