//! What operands have to be before a kernel sees them.

use std::ops::Range;

use super::memory::GpuBuffer;
use crate::device::{DeviceError, DraftLogits};
use crate::kernels::{Paging, PassTables};
use crate::runtime::Runtime;

/// That two shapes are the same.
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

/// Checks that a buffer has `cols` columns and rows up to `end`.
pub(super) fn expect_rows<B: Runtime>(
    operation: &'static str,
    operand: &'static str,
    buffer: &GpuBuffer<B>,
    cols: usize,
    end: usize,
) -> Result<(), DeviceError> {
    expect(operation, operand, vec![buffer.rows, cols], vec![buffer.rows, buffer.cols])?;
    if end <= buffer.rows {
        return Ok(());
    }
    Err(DeviceError::OutOfRange { operation, what: "row", index: end - 1, limit: buffer.rows })
}

/// That `cache` is divided into pages as the one that a pass was laid out for.
pub(super) fn expect_paging<B: Runtime>(
    operation: &'static str,
    tables: &PassTables<B>,
    cache: Paging,
) -> Result<(), DeviceError> {
    let [expected, found] = [tables.paging(), cache].map(|paging| vec![paging.pages, paging.page_size]);
    expect(operation, "cache [pages, page_size]", expected, found)
}

/// That `rows` rows of a draft exist, and were drawn from.
pub(super) fn expect_draws<B: Runtime>(
    operation: &'static str,
    draft: DraftLogits<'_, GpuBuffer<B>>,
    rows: usize,
) -> Result<(), DeviceError> {
    let drawn = draft.logits.drawn();
    for (first, limit) in [(draft.first_row, drawn.end), (draft.first_draw, drawn.draws)] {
        let end = first.saturating_add(rows);
        if end > limit {
            let (what, index) = ("row that was not drafted", end - 1);
            return Err(DeviceError::OutOfRange { operation, what, index, limit });
        }
    }
    Ok(())
}

/// An index that the kernels count in 32 bits.
pub(super) fn index32(operation: &'static str, what: &'static str, value: usize) -> Result<i32, DeviceError> {
    i32::try_from(value).map_err(|_| DeviceError::OutOfRange {
        operation,
        what,
        index: value,
        limit: i32::MAX as usize,
    })
}

/// Elements of rows `rows`.
pub(super) fn elements<B: Runtime>(buffer: &GpuBuffer<B>, rows: &Range<usize>) -> Range<usize> {
    rows.start * buffer.stride()..rows.end * buffer.stride()
}
