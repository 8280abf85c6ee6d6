// Generated from cuda/norm/params.h by the crate in bindings.

use super::common::*;

/// RMSNorm after an optional addition: x[r] += delta[r], if there is a delta; out[r] = weight * x[r] /
/// sqrt(mean(x[r]^2) + eps).
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftRmsNormParams {
    /// the residual stream, [rows, cols]
    pub x: *mut u16,
    /// the values to add to `x`, [rows, cols]; may be null
    pub delta: *const u16,
    /// the weight of the norm, [cols]
    pub weight: *const f32,
    /// the normed rows, [rows, cols]
    pub out: *mut u16,
    pub cols: i64,
    pub rows: i32,
    pub eps: f32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftRmsNormParams"][::core::mem::size_of::<FlexdraftRmsNormParams>() - 48usize];
    ["Alignment of FlexdraftRmsNormParams"][::core::mem::align_of::<FlexdraftRmsNormParams>() - 8usize];
    ["Offset of field: FlexdraftRmsNormParams::x"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, x) - 0usize];
    ["Offset of field: FlexdraftRmsNormParams::delta"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, delta) - 8usize];
    ["Offset of field: FlexdraftRmsNormParams::weight"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, weight) - 16usize];
    ["Offset of field: FlexdraftRmsNormParams::out"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, out) - 24usize];
    ["Offset of field: FlexdraftRmsNormParams::cols"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, cols) - 32usize];
    ["Offset of field: FlexdraftRmsNormParams::rows"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, rows) - 40usize];
    ["Offset of field: FlexdraftRmsNormParams::eps"]
        [::core::mem::offset_of!(FlexdraftRmsNormParams, eps) - 44usize];
};
/// The addition of a vector to another: x += delta, in chunks of eight elements.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftAddParams {
    /// the vector to add to, [8 * chunks]
    pub x: *mut u16,
    /// the vector to add, [8 * chunks]
    pub delta: *const u16,
    pub chunks: i64,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftAddParams"][::core::mem::size_of::<FlexdraftAddParams>() - 24usize];
    ["Alignment of FlexdraftAddParams"][::core::mem::align_of::<FlexdraftAddParams>() - 8usize];
    ["Offset of field: FlexdraftAddParams::x"][::core::mem::offset_of!(FlexdraftAddParams, x) - 0usize];
    ["Offset of field: FlexdraftAddParams::delta"]
        [::core::mem::offset_of!(FlexdraftAddParams, delta) - 8usize];
    ["Offset of field: FlexdraftAddParams::chunks"]
        [::core::mem::offset_of!(FlexdraftAddParams, chunks) - 16usize];
};
