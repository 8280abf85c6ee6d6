//! Checks that the operands of an operation fit each other, before a kernel sees them.

use crate::device::{DeviceError, DraftingPass};
use crate::kernels::{Paging, PassTables};
use crate::runtime::Runtime;

/// Checks that `found` is `expected`.
pub(super) fn expect(
    operation: &'static str,
    operand: &'static str,
    expected: Vec<usize>,
    found: Vec<usize>,
) -> Result<(), DeviceError> {
    if expected == found {
        return Ok(());
    }
    Err(DeviceError::Shape { operation, operand, expected, found })
}

/// Checks that `index` is below `limit`.
pub(super) fn index(
    operation: &'static str,
    what: &'static str,
    index: usize,
    limit: usize,
) -> Result<(), DeviceError> {
    if index < limit {
        return Ok(());
    }
    Err(DeviceError::OutOfRange { operation, what, index, limit })
}

/// Checks that a cache is divided into the same pages as the cache that a pass was laid out for.
pub(super) fn expect_paging<R: Runtime>(
    operation: &'static str,
    tables: &PassTables<R>,
    cache: Paging,
) -> Result<(), DeviceError> {
    let [expected, found] = [tables.paging(), cache].map(|paging| vec![paging.pages, paging.page_size]);
    expect(operation, "cache [pages, page_size]", expected, found)
}

/// Checks that a drafting pass has no candidate rows, and one mask group and one verdict per sequence.
pub(super) fn drafting_pass(DraftingPass { pass, verdicts }: DraftingPass<'_>) -> Result<(), DeviceError> {
    const OPERATION: &str = "begin_drafting";
    expect(OPERATION, "verdicts", vec![pass.sequences.len()], vec![verdicts.len()])?;
    pass.sequences.iter().try_for_each(|rows| {
        expect(OPERATION, "candidates and groups", vec![0, 1], vec![rows.candidates, rows.groups.len()])
    })
}

/// Returns an index as the 32-bit number that kernels take.
pub(super) fn index32(operation: &'static str, what: &'static str, value: usize) -> Result<i32, DeviceError> {
    i32::try_from(value).map_err(|_| DeviceError::OutOfRange {
        operation,
        what,
        index: value,
        limit: i32::MAX as usize,
    })
}
