// Generated from cuda/glue/params.h by the crate in bindings.

use super::common::*;

/// out[r] = table[ids[r]], or zeros where the id is not of the table.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftEmbedParams {
    /// [rows]
    pub ids: *const i32,
    /// [vocab, cols]
    pub table: *const u16,
    /// [rows, cols]
    pub out: *mut u16,
    /// null, or FLEXDRAFT_ERROR_TOKEN is set
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
/// out[r] = x[indices[r]], or zeros where there is no such row.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftGatherParams {
    /// [rows]; -1: none, on purpose
    pub indices: *const i32,
    /// [x_rows, cols]
    pub x: *const u16,
    /// [rows, cols]
    pub out: *mut u16,
    /// null, or FLEXDRAFT_ERROR_ROW is set
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
/// x[r] += delta[r], if there is a delta; out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftRmsNormParams {
    /// [rows, cols]
    pub x: *mut u16,
    /// [rows, cols] or null
    pub delta: *const u16,
    /// [cols]
    pub weight: *const f32,
    /// [rows, cols]
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
/// x += delta, eight elements a chunk.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftAddParams {
    /// [8 chunks]
    pub x: *mut u16,
    /// [8 chunks]
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
/// out[r] = silu(x[r][0..cols]) * x[r][cols..2 cols].
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSiluMulParams {
    /// [rows, 2 cols]
    pub x: *const u16,
    /// [rows, cols]
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
/// x[r] = silu(x[r] + bonus[owner[r]]): the calibrator's hidden row. It stays as it is where there is no such row
/// of bonus.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSiluAddParams {
    /// [rows, cols]
    pub x: *mut u16,
    /// [bonus_rows, cols]
    pub bonus: *const u16,
    /// [rows]; -1: none, on purpose
    pub owner: *const i32,
    /// null, or FLEXDRAFT_ERROR_ROW is set
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
/// cos_sin[r][i] = (cos, sin)(position of row r * inv_freq[i]) * scale; padded rows: (0, 0).
#[repr(C)]
pub struct FlexdraftRopeTableParams {
    pub pass: FlexdraftPass,
    /// [head_dim / 2]
    pub inv_freq: *const f32,
    /// [rows, head_dim / 2, 2]
    pub cos_sin: *mut f32,
    pub scale: f32,
    pub half_dim: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftRopeTableParams"][::core::mem::size_of::<FlexdraftRopeTableParams>() - 88usize];
    ["Alignment of FlexdraftRopeTableParams"][::core::mem::align_of::<FlexdraftRopeTableParams>() - 8usize];
    ["Offset of field: FlexdraftRopeTableParams::pass"]
        [::core::mem::offset_of!(FlexdraftRopeTableParams, pass) - 0usize];
    ["Offset of field: FlexdraftRopeTableParams::inv_freq"]
        [::core::mem::offset_of!(FlexdraftRopeTableParams, inv_freq) - 64usize];
    ["Offset of field: FlexdraftRopeTableParams::cos_sin"]
        [::core::mem::offset_of!(FlexdraftRopeTableParams, cos_sin) - 72usize];
    ["Offset of field: FlexdraftRopeTableParams::scale"]
        [::core::mem::offset_of!(FlexdraftRopeTableParams, scale) - 80usize];
    ["Offset of field: FlexdraftRopeTableParams::half_dim"]
        [::core::mem::offset_of!(FlexdraftRopeTableParams, half_dim) - 84usize];
};
/// Norms (where there are weights) and rotates the q and k heads of rows first_row..end_row: q and mask rows' k in
/// place. The k and v heads of candidate rows go to the cache.
#[repr(C)]
pub struct FlexdraftNormRopeAppendParams {
    pub pass: FlexdraftPass,
    pub cache: FlexdraftPagedKv,
    /// [rows, qkv_stride]: q heads, k heads, v heads
    pub qkv: *mut u16,
    /// [rows, head_dim / 2, 2]
    pub cos_sin: *const f32,
    /// [head_dim] or null
    pub q_norm: *const f32,
    /// [head_dim] or null, as q_norm
    pub k_norm: *const f32,
    /// null, or FLEXDRAFT_ERROR_PAGE is set
    pub error: *mut u32,
    pub qkv_stride: i64,
    pub eps: f32,
    pub q_heads: i32,
    pub kv_heads: i32,
    pub first_row: i32,
    pub end_row: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftNormRopeAppendParams"]
        [::core::mem::size_of::<FlexdraftNormRopeAppendParams>() - 224usize];
    ["Alignment of FlexdraftNormRopeAppendParams"]
        [::core::mem::align_of::<FlexdraftNormRopeAppendParams>() - 8usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::pass"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, pass) - 0usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::cache"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, cache) - 64usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::qkv"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, qkv) - 152usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::cos_sin"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, cos_sin) - 160usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::q_norm"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, q_norm) - 168usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::k_norm"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, k_norm) - 176usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::error"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, error) - 184usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::qkv_stride"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, qkv_stride) - 192usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::eps"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, eps) - 200usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::q_heads"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, q_heads) - 204usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::kv_heads"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, kv_heads) - 208usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::first_row"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, first_row) - 212usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::end_row"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, end_row) - 216usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::unused"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, unused) - 220usize];
};
