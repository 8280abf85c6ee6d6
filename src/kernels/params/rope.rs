// Generated from cuda/rope/params.h by the crate in bindings.

use super::common::*;

/// The table of rotations: cos_sin[r][i] = (cos, sin)(position of row r * inv_freq[i]) * scale; padding rows: (0, 0).
#[repr(C)]
pub struct FlexdraftRopeTableParams {
    pub pass: FlexdraftPass,
    /// inverse frequencies, in radians per position, [head_dim / 2]
    pub inv_freq: *const f32,
    /// the result: cosine and sine of every angle, [rows, head_dim / 2, 2]
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
/// Applies norms (if there are weights) and rotation to the q and k heads of rows first_row..end_row. q, and the k of
/// mask rows, change in place; the k and v of candidate rows go to the cache. Row 0 of `q`, `k` and `v` is row first_row
/// of the pass. A projection that has q, k and v side by side in one row is all three, with one stride.
#[repr(C)]
pub struct FlexdraftNormRopeAppendParams {
    pub pass: FlexdraftPass,
    pub cache: FlexdraftPagedKv,
    /// the q heads, q_heads of head_dim elements, [rows, q_stride]
    pub q: *mut u16,
    /// the k heads, kv_heads of head_dim elements, [rows, k_stride]
    pub k: *mut u16,
    /// the v heads, kv_heads of head_dim elements, [rows, v_stride]
    pub v: *const u16,
    /// the cosines and sines that rope_table wrote, [rows, head_dim / 2, 2]
    pub cos_sin: *const f32,
    /// the weight of the norm of q heads, [head_dim]; null: no norms
    pub q_norm: *const f32,
    /// the weight of the norm of k heads, [head_dim]; null if q_norm is
    pub k_norm: *const f32,
    /// the device error word, for FLEXDRAFT_ERROR_PAGE; may be null
    pub error: *mut u32,
    /// distances between rows, in elements
    pub q_stride: i64,
    /// distances between rows, in elements
    pub k_stride: i64,
    /// distances between rows, in elements
    pub v_stride: i64,
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
        [::core::mem::size_of::<FlexdraftNormRopeAppendParams>() - 256usize];
    ["Alignment of FlexdraftNormRopeAppendParams"]
        [::core::mem::align_of::<FlexdraftNormRopeAppendParams>() - 8usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::pass"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, pass) - 0usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::cache"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, cache) - 64usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::q"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, q) - 152usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::k"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, k) - 160usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::v"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, v) - 168usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::cos_sin"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, cos_sin) - 176usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::q_norm"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, q_norm) - 184usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::k_norm"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, k_norm) - 192usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::error"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, error) - 200usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::q_stride"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, q_stride) - 208usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::k_stride"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, k_stride) - 216usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::v_stride"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, v_stride) - 224usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::eps"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, eps) - 232usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::q_heads"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, q_heads) - 236usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::kv_heads"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, kv_heads) - 240usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::first_row"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, first_row) - 244usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::end_row"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, end_row) - 248usize];
    ["Offset of field: FlexdraftNormRopeAppendParams::unused"]
        [::core::mem::offset_of!(FlexdraftNormRopeAppendParams, unused) - 252usize];
};
