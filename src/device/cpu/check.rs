//! Checks that the operands of an operation fit each other.

use std::ops::Range;

use super::buffer::CpuBuffer;
use crate::device::{AttentionShape, DeviceError, DraftingPass};

/// Checks that `found` is `expected`.
pub(super) fn shape(
    operation: &'static str,
    operand: &'static str,
    expected: &[usize],
    found: &[usize],
) -> Result<(), DeviceError> {
    if expected == found {
        return Ok(());
    }
    Err(DeviceError::Shape { operation, operand, expected: expected.to_vec(), found: found.to_vec() })
}

/// Checks that `buffer` has `cols` columns.
pub(super) fn cols(
    operation: &'static str,
    operand: &'static str,
    buffer: &CpuBuffer,
    cols: usize,
) -> Result<(), DeviceError> {
    shape(operation, operand, &[buffer.rows(), cols], &[buffer.rows(), buffer.cols()])
}

/// Checks that `buffer` has `cols` columns and at least `rows` rows.
pub(super) fn at_least(
    operation: &'static str,
    operand: &'static str,
    buffer: &CpuBuffer,
    rows: usize,
    cols: usize,
) -> Result<(), DeviceError> {
    shape(operation, operand, &[buffer.rows().max(rows), cols], &[buffer.rows(), buffer.cols()])
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

/// Checks that rows `rows` exist in every one of `buffers`. A range that ends before it starts is empty.
pub(super) fn rows(
    operation: &'static str,
    rows: Range<usize>,
    buffers: &[&CpuBuffer],
) -> Result<Range<usize>, DeviceError> {
    if rows.is_empty() {
        return Ok(0..0);
    }
    for buffer in buffers {
        index(operation, "row", rows.end - 1, buffer.rows())?;
    }
    Ok(rows)
}

/// Checks that a drafting pass has no candidate rows, and one mask group and one verdict per sequence.
pub(super) fn drafting_pass(DraftingPass { pass, verdicts }: DraftingPass<'_>) -> Result<(), DeviceError> {
    const OPERATION: &str = "begin_drafting";
    shape(OPERATION, "verdicts", &[pass.sequences.len()], &[verdicts.len()])?;
    pass.sequences.iter().try_for_each(|rows| {
        shape(OPERATION, "candidates and groups", &[0, 1], &[rows.candidates, rows.groups.len()])
    })
}

/// Checks that rows of logits are not empty: the vocabulary has an id.
pub(super) fn vocabulary(operation: &'static str, logits: &CpuBuffer) -> Result<(), DeviceError> {
    cols(operation, "logits", logits, logits.cols().max(1))
}

/// Checks that the numbers of `count` positions after `start` do not overflow.
pub(super) fn positions(operation: &'static str, start: usize, count: usize) -> Result<(), DeviceError> {
    index(operation, "position", start.saturating_add(count), usize::MAX)
}

/// Checks that attention supports the heads of `shape`: the same number of q heads for each KV head, an even
/// number of dimensions for the rotation, and no overflow in the number of columns.
pub(super) fn heads(operation: &'static str, heads: AttentionShape) -> Result<(), DeviceError> {
    let AttentionShape { q_heads, kv_heads, head_dim } = heads;
    let columns = kv_heads
        .checked_mul(2)
        .and_then(|kv| kv.checked_add(q_heads)?.checked_mul(head_dim))
        .filter(|_| kv_heads > 0 && q_heads.is_multiple_of(kv_heads))
        .filter(|_| head_dim > 0 && head_dim.is_multiple_of(2));
    if columns.is_some() {
        return Ok(());
    }
    let kv = kv_heads.max(1);
    let q = q_heads.checked_next_multiple_of(kv).unwrap_or(q_heads);
    Err(DeviceError::Shape {
        operation,
        operand: "[q_heads, kv_heads, head_dim]",
        expected: vec![q, kv, 2 * (head_dim / 2).max(1)],
        found: vec![q_heads, kv_heads, head_dim],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;

    #[test]
    fn rows_must_exist() {
        let mut buffer = CpuBuffer::new(2, Precision::F32);
        buffer.resize(3).unwrap();
        assert_eq!(rows("add", 1..3, &[&buffer]), Ok(1..3));
        assert_eq!(rows("add", 9..9, &[&buffer]), Ok(0..0));
        assert_eq!(
            rows("add", 1..5, &[&buffer]).unwrap_err().to_string(),
            "add: row 4 is out of range, the limit is 3"
        );
        assert_eq!(
            cols("add", "delta", &buffer, 4).unwrap_err().to_string(),
            "add: delta has shape [3, 2], expected [3, 4]"
        );
        assert!(at_least("add", "delta", &buffer, 2, 2).is_ok());
        assert_eq!(
            at_least("add", "delta", &buffer, 5, 2).unwrap_err().to_string(),
            "add: delta has shape [3, 2], expected [5, 2]"
        );
    }

    #[test]
    fn heads_must_divide() {
        let check =
            |q_heads, kv_heads, head_dim| heads("new_cache", AttentionShape { q_heads, kv_heads, head_dim });
        assert!(check(6, 2, 8).is_ok());
        assert!(check(0, 1, 2).is_ok());
        for (q, kv, dim) in
            [(5, 2, 8), (6, 0, 8), (6, 2, 7), (6, 2, 0), (6, usize::MAX, 8), (1, 1, usize::MAX - 1)]
        {
            assert!(matches!(check(q, kv, dim), Err(DeviceError::Shape { .. })), "{q} {kv} {dim}");
        }
    }
}
