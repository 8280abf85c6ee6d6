// Generated from cuda/activation/params.h by the crate in bindings.

use super::common::*;

/// The MLP's activation: out[r] = silu(x[r][0..cols]) * x[r][cols..2 cols].
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSiluMulParams {
    /// the gate and the up projection, side by side, [rows, 2 cols]
    pub x: *const u16,
    /// the result, [rows, cols]
    pub out: *mut u16,
    pub cols: i64,
    pub rows: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftSiluMulParams"][::core::mem::size_of::<FlexdraftSiluMulParams>() - 32usize];
    ["Alignment of FlexdraftSiluMulParams"][::core::mem::align_of::<FlexdraftSiluMulParams>() - 8usize];
    ["Offset of field: FlexdraftSiluMulParams::x"]
        [::core::mem::offset_of!(FlexdraftSiluMulParams, x) - 0usize];
    ["Offset of field: FlexdraftSiluMulParams::out"]
        [::core::mem::offset_of!(FlexdraftSiluMulParams, out) - 8usize];
    ["Offset of field: FlexdraftSiluMulParams::cols"]
        [::core::mem::offset_of!(FlexdraftSiluMulParams, cols) - 16usize];
    ["Offset of field: FlexdraftSiluMulParams::rows"]
        [::core::mem::offset_of!(FlexdraftSiluMulParams, rows) - 24usize];
    ["Offset of field: FlexdraftSiluMulParams::unused"]
        [::core::mem::offset_of!(FlexdraftSiluMulParams, unused) - 28usize];
};
/// The hidden layer of the calibrator: x[r] = silu(x[r] + bonus[owner[r]]). Without such a row of bonus, x[r] does not
/// change.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSiluAddParams {
    /// the slots' half of the hidden layer, which the result replaces, [rows, cols]
    pub x: *mut u16,
    /// the bonus tokens' half of the hidden layer, [bonus_rows, cols]
    pub bonus: *const u16,
    /// the row of `bonus` for each row of `x`, [rows]; -1: none, on purpose
    pub owner: *const i32,
    /// the device error word, for FLEXDRAFT_ERROR_ROW; may be null
    pub error: *mut u32,
    pub cols: i64,
    pub rows: i32,
    pub bonus_rows: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftSiluAddParams"][::core::mem::size_of::<FlexdraftSiluAddParams>() - 48usize];
    ["Alignment of FlexdraftSiluAddParams"][::core::mem::align_of::<FlexdraftSiluAddParams>() - 8usize];
    ["Offset of field: FlexdraftSiluAddParams::x"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, x) - 0usize];
    ["Offset of field: FlexdraftSiluAddParams::bonus"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, bonus) - 8usize];
    ["Offset of field: FlexdraftSiluAddParams::owner"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, owner) - 16usize];
    ["Offset of field: FlexdraftSiluAddParams::error"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, error) - 24usize];
    ["Offset of field: FlexdraftSiluAddParams::cols"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, cols) - 32usize];
    ["Offset of field: FlexdraftSiluAddParams::rows"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, rows) - 40usize];
    ["Offset of field: FlexdraftSiluAddParams::bonus_rows"]
        [::core::mem::offset_of!(FlexdraftSiluAddParams, bonus_rows) - 44usize];
};
