//! Drawing from logits, and acceptance.

use super::Cpu;
use super::buffer::Buffer;
use crate::device::{DeviceError, DraftRows, DraftToken, SampleRow, Verdict, VerifyRows};

fn unavailable<T>(operation: &str) -> Result<T, DeviceError> {
    Err(DeviceError::Unavailable {
        requested: "cpu".to_owned(),
        reason: format!("`{operation}` is not part of this build"),
    })
}

pub(super) fn draft(
    _cpu: &Cpu,
    _logits: &Buffer,
    _drafts: &[DraftRows<'_>],
) -> Result<Vec<Vec<DraftToken>>, DeviceError> {
    unavailable("draft")
}

pub(super) fn verify(
    _cpu: &Cpu,
    _logits: &Buffer,
    _sequences: &[VerifyRows<'_, Buffer>],
) -> Result<Vec<Verdict>, DeviceError> {
    unavailable("verify")
}

pub(super) fn sample(_cpu: &Cpu, _logits: &Buffer, _rows: &[SampleRow<'_>]) -> Result<Vec<u32>, DeviceError> {
    unavailable("sample")
}
