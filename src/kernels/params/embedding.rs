// Generated from cuda/embedding/params.h by the crate in bindings.

use super::common::*;

/// Copies the embeddings of token ids: out[r] = table[ids[r]], or zeros if the table has no such id.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftEmbedParams {
    /// the token ids, [rows]
    pub ids: *const i32,
    /// the embedding table, [vocab, cols]
    pub table: *const u16,
    /// the result, [rows, cols]
    pub out: *mut u16,
    /// the device error word, for FLEXDRAFT_ERROR_TOKEN; may be null
    pub error: *mut u32,
    pub cols: i64,
    pub rows: i32,
    pub vocab: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftEmbedParams"][::core::mem::size_of::<FlexdraftEmbedParams>() - 48usize];
    ["Alignment of FlexdraftEmbedParams"][::core::mem::align_of::<FlexdraftEmbedParams>() - 8usize];
    ["Offset of field: FlexdraftEmbedParams::ids"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, ids) - 0usize];
    ["Offset of field: FlexdraftEmbedParams::table"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, table) - 8usize];
    ["Offset of field: FlexdraftEmbedParams::out"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, out) - 16usize];
    ["Offset of field: FlexdraftEmbedParams::error"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, error) - 24usize];
    ["Offset of field: FlexdraftEmbedParams::cols"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, cols) - 32usize];
    ["Offset of field: FlexdraftEmbedParams::rows"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, rows) - 40usize];
    ["Offset of field: FlexdraftEmbedParams::vocab"]
        [::core::mem::offset_of!(FlexdraftEmbedParams, vocab) - 44usize];
};
/// Copies rows by index: out[r] = x[indices[r]], or zeros if `x` has no such row.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftGatherParams {
    /// the row of `x` for each row of `out`, [rows]; -1: zeros, on purpose
    pub indices: *const i32,
    /// the rows to copy from, [x_rows, cols]
    pub x: *const u16,
    /// the result, [rows, cols]
    pub out: *mut u16,
    /// the device error word, for FLEXDRAFT_ERROR_ROW; may be null
    pub error: *mut u32,
    pub cols: i64,
    pub rows: i32,
    pub x_rows: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftGatherParams"][::core::mem::size_of::<FlexdraftGatherParams>() - 48usize];
    ["Alignment of FlexdraftGatherParams"][::core::mem::align_of::<FlexdraftGatherParams>() - 8usize];
    ["Offset of field: FlexdraftGatherParams::indices"]
        [::core::mem::offset_of!(FlexdraftGatherParams, indices) - 0usize];
    ["Offset of field: FlexdraftGatherParams::x"][::core::mem::offset_of!(FlexdraftGatherParams, x) - 8usize];
    ["Offset of field: FlexdraftGatherParams::out"]
        [::core::mem::offset_of!(FlexdraftGatherParams, out) - 16usize];
    ["Offset of field: FlexdraftGatherParams::error"]
        [::core::mem::offset_of!(FlexdraftGatherParams, error) - 24usize];
    ["Offset of field: FlexdraftGatherParams::cols"]
        [::core::mem::offset_of!(FlexdraftGatherParams, cols) - 32usize];
    ["Offset of field: FlexdraftGatherParams::rows"]
        [::core::mem::offset_of!(FlexdraftGatherParams, rows) - 40usize];
    ["Offset of field: FlexdraftGatherParams::x_rows"]
        [::core::mem::offset_of!(FlexdraftGatherParams, x_rows) - 44usize];
};
