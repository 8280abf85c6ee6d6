//! A block of device memory with all tables of one step.

use super::tables::{StagedTables, TableRange};
use crate::device::DeviceError;
use crate::runtime::{Runtime, View};

/// Device memory with the tables of one step.
#[derive(Debug)]
pub(super) struct TableBlock<R: Runtime> {
    pub(super) tables: StagedTables<R>,
    /// Tables of indices that operations will ask for, each with its contents.
    indices: Vec<(Vec<i32>, TableRange<i32>)>,
}

impl<R: Runtime> Default for TableBlock<R> {
    fn default() -> Self {
        Self { tables: StagedTables::default(), indices: Vec::new() }
    }
}

impl<R: Runtime> TableBlock<R> {
    /// Removes all tables.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
        self.indices.clear();
    }

    /// Adds a table of indices. Indices beyond the type are left to the operation, which refuses them.
    pub(super) fn push_indices(&mut self, indices: impl Iterator<Item = usize>) {
        let indices: Result<Vec<i32>, _> = indices.map(i32::try_from).collect();
        let Ok(indices) = indices else { return };
        if !indices.is_empty() && self.range_of(&indices).is_none() {
            let range = self.tables.push(&indices);
            self.indices.push((indices, range));
        }
    }

    /// Returns the place of the table whose contents are `indices`, if there is one.
    fn range_of(&self, indices: &[i32]) -> Option<&TableRange<i32>> {
        self.indices.iter().find(|(known, _)| known == indices).map(|(_, range)| range)
    }

    /// Views the table whose contents are `indices`, if the step has one.
    pub(super) fn indices<'a>(
        &'a self,
        queue: (&R, &'a R::Stream),
        indices: &[i32],
    ) -> Option<Result<View<'a, i32>, DeviceError>> {
        self.range_of(indices).map(|range| self.tables.view(queue, range))
    }
}
