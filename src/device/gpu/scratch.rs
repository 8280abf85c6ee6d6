//! What the operations of a step share, and what they reuse from step to step.

use super::memory::{Grown, Kept};
use crate::backend::{Backend, BackendError, ViewMut};
use crate::device::{DeviceError, Rope};
use crate::kernels::glue::RopeTable;
use crate::kernels::{Kernels, Paging, PassTables};
use crate::layout::{Pass, SequenceRows};

/// Tables and memory of a device.
#[derive(Debug)]
pub(super) struct Scratch<B: Backend> {
    /// Token ids of an embedding.
    pub(super) ids: Grown<B, i32>,
    /// Tables that are the same from step to step while the rows of a step are: of gathers, of the rows that a
    /// vector fills, of calibrated rows, and of the verdicts that groups follow.
    pub(super) gathered: Kept<B>,
    pub(super) filled: Kept<B>,
    pub(super) owners: Kept<B>,
    pub(super) followed: Kept<B>,
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
            gathered: Kept::default(),
            filled: Kept::default(),
            owners: Kept::default(),
            followed: Kept::default(),
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
pub(super) const NO_PASS: DeviceError =
    DeviceError::OutOfRange { operation: "pass", what: "row", index: 0, limit: 0 };

/// A pass on the device.
#[derive(Debug)]
pub(super) struct LaidOut<'a, B: Backend> {
    pub tables: &'a PassTables<B>,
    /// Whether the pass that was asked for has the groups of the tables.
    pub masks: bool,
    /// Every row's rotation, after [`Scratch::turn`].
    pub turns: Option<&'a B::Memory<f32>>,
    /// Memory for attention.
    pub workspace: &'a mut Grown<B, f32>,
    pub error: &'a mut Grown<B, u64>,
}

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

    /// Whether it is this pass with its groups, this pass with other groups that are to be left out, or neither.
    fn holds(&self, pass: &Pass<'_>, paging: Paging) -> Option<bool> {
        let same_but_for_groups = self.paging == paging
            && self.sequences.len() == pass.sequences.len()
            && self.sequences.iter().zip(&pass.sequences).all(|((pages, old), new)| {
                pages == new.pages
                    && old.start == new.start
                    && old.candidates == new.candidates
                    && old.slots == new.slots
            });
        let groups = || self.sequences.iter().zip(&pass.sequences);
        if !same_but_for_groups {
            None
        } else if groups().all(|((_, old), new)| old.groups == new.groups) {
            Some(true)
        } else if pass.sequences.iter().all(|new| new.groups.is_empty()) {
            Some(false)
        } else {
            None
        }
    }
}

impl<B: Backend> Scratch<B> {
    /// Puts the tables of `pass` on the device, unless they are there, and gives them out.
    pub(super) fn upload(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        pass: &Pass<'_>,
        paging: Paging,
    ) -> Result<LaidOut<'_, B>, DeviceError> {
        let held = self.uploaded.as_ref().and_then(|uploaded| uploaded.holds(pass, paging));
        if held.is_none() {
            self.upload_anew(backend, stream, pass, paging)?;
        }
        let Scratch { tables, turns, turned, workspace, error, .. } = self;
        let tables = tables.as_ref().ok_or(NO_PASS)?;
        let turns = turns.memory().filter(|_| *turned);
        Ok(LaidOut { tables, masks: held.unwrap_or(true), turns, workspace, error })
    }

    /// Puts the tables of `pass` on the device.
    pub(super) fn upload_anew(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        pass: &Pass<'_>,
        paging: Paging,
    ) -> Result<(), DeviceError> {
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

    /// Works out the rotation of every row of the tables, unless that was done.
    pub(super) fn turn(
        &mut self,
        kernels: &Kernels<B>,
        stream: &B::Stream,
        rope: &Rope,
    ) -> Result<(), DeviceError> {
        let backend = kernels.backend();
        if self.rope.as_ref().is_none_or(|(known, _)| known != rope) {
            let mut inv_freq = backend.allocate(stream, rope.inv_freq.len())?;
            backend.upload(stream, &rope.inv_freq, &mut inv_freq, 0)?;
            (self.rope, self.turned) = (Some((rope.clone(), inv_freq)), false);
        }
        if self.turned {
            return Ok(());
        }
        let (Some(tables), Some((rope, inv_freq))) = (&self.tables, &self.rope) else { return Err(NO_PASS) };
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
}
