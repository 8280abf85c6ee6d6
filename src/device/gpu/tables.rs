//! Small tables on the device that the host fills.

use std::marker::PhantomData;
use std::ops::Range;

use super::memory::GrowableMemory;
use crate::device::DeviceError;
use crate::kernels::PassTables;
use crate::runtime::{Element, Runtime, RuntimeError, Staging, View};

/// A table of indices on the device, which is uploaded only if it changed.
#[derive(Debug)]
pub(super) struct CachedTable<R: Runtime> {
    host: Vec<i32>,
    memory: GrowableMemory<R, i32>,
}

impl<R: Runtime> Default for CachedTable<R> {
    fn default() -> Self {
        CachedTable { host: Vec::new(), memory: GrowableMemory::default() }
    }
}

impl<R: Runtime> CachedTable<R> {
    /// Returns the index table in device memory; its first entries are `indices`.
    pub(super) fn holding(
        &mut self,
        queue: (&R, &R::Stream),
        indices: Vec<i32>,
    ) -> Result<&R::Memory<i32>, DeviceError> {
        let current = self.host.starts_with(&indices);
        if !current {
            // The contents of the memory are unknown until the copy is on its way.
            self.host.clear();
        }
        let memory = self.memory.reserve(queue, indices.len())?;
        if !current {
            let (runtime, stream) = queue;
            runtime.upload(stream, &indices, memory, 0)?;
            self.host = indices;
        }
        Ok(memory)
    }
}

/// Small tables of several types, which one copy uploads together.
#[derive(Debug)]
pub(super) struct StagedTables<R: Runtime> {
    host: Vec<u64>,
    memory: GrowableMemory<R, u64>,
}

impl<R: Runtime> Default for StagedTables<R> {
    fn default() -> Self {
        StagedTables { host: Vec::new(), memory: GrowableMemory::default() }
    }
}

/// The place of a table in [`StagedTables`].
#[derive(Clone, Debug)]
pub(super) struct TableRange<T> {
    words: Range<usize>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T> Default for TableRange<T> {
    fn default() -> Self {
        TableRange { words: 0..0, len: 0, elements: PhantomData }
    }
}

impl<T> TableRange<T> {
    /// Returns the number of elements of the table.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl<R: Runtime> StagedTables<R> {
    /// Removes all tables.
    pub(super) fn clear(&mut self) {
        self.host.clear();
    }

    /// Adds a table.
    pub(super) fn push<T: Element>(&mut self, table: &[T]) -> TableRange<T> {
        let (first, bytes) = (self.host.len(), bytemuck::cast_slice::<T, u8>(table));
        self.host.resize(first + bytes.len().div_ceil(size_of::<u64>()), 0);
        let words: &mut [u8] = bytemuck::cast_slice_mut(&mut self.host[first..]);
        words[..bytes.len()].copy_from_slice(bytes);
        TableRange { words: first..self.host.len(), len: table.len(), elements: PhantomData }
    }

    /// Uploads all tables in one copy, through `staging`.
    pub(super) fn upload(
        &mut self,
        queue: (&R, &R::Stream),
        staging: &mut Staging,
    ) -> Result<(), DeviceError> {
        let memory = self.memory.reserve(queue, self.host.len())?;
        let (runtime, stream) = queue;
        Ok(runtime.upload_staged(stream, &self.host, memory, staging)?)
    }

    /// Uploads all tables in one copy, like [`upload`](Self::upload). No gathered launch uses the tables' memory, so launches
    /// are gathered on.
    pub(super) fn upload_ahead(
        &mut self,
        queue: (&R, &R::Stream),
        staging: &mut Staging,
    ) -> Result<(), DeviceError> {
        let memory = self.memory.reserve(queue, self.host.len())?;
        let (runtime, stream) = queue;
        Ok(runtime.upload_ahead(stream, &self.host, memory, staging)?)
    }

    /// Copies the words of a forward pass from this memory to the pass's own tables.
    pub(super) fn fetch(
        &self,
        (runtime, stream): (&R, &R::Stream),
        part: &TableRange<u64>,
        to: &mut PassTables<R>,
    ) -> Result<(), DeviceError> {
        let missing = RuntimeError::CopyLength { wanted: part.words.end, found: 0 };
        let memory = self.memory.memory().ok_or(missing)?;
        Ok(to.fetch(runtime, stream, memory, part.words.clone())?)
    }

    /// Views a table on the device.
    pub(super) fn view<'a, T: Element>(
        &'a self,
        (runtime, stream): (&R, &'a R::Stream),
        part: &TableRange<T>,
    ) -> Result<View<'a, T>, DeviceError> {
        let memory = self.memory.memory().map(|memory| runtime.view(stream, memory));
        let words = memory.and_then(|view| view.range(part.words.clone()));
        let table = words.and_then(View::cast).and_then(|view| view.range(0..part.len));
        table.ok_or(RuntimeError::CopyLength { wanted: part.words.end, found: self.host.len() }.into())
    }
}
