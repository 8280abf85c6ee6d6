// Generated from cuda/attention/params.h by the crate in bindings.

use super::common::*;

/// Joint draft-and-verify attention of one layer. A candidate row sees the cache up to its own position. A row of group k
/// sees the cache up to position n + k, n being the position of candidate 0, and the slots of its own group, whose K and
/// V are rows of `mask_k` and `mask_v`. Query head h reads KV head h / head_ratio.
#[repr(C)]
pub struct FlexdraftAttentionParams {
    pub pass: FlexdraftPass,
    pub cache: FlexdraftPagedKv,
    /// the q heads of every row, q_heads of head_dim bf16, [rows, q_stride]
    pub q: *const u16,
    /// the k heads of the mask rows, kv_heads of head_dim bf16, [rows, mask_stride]; other rows are not read
    pub mask_k: *const u16,
    /// the v heads of the mask rows, as mask_k
    pub mask_v: *const u16,
    /// the result in bf16, [rows, q_heads * head_dim]
    pub out: *mut u16,
    /// the natural logarithm of the sum of exp(score), [rows, q_heads]; may be null
    pub lse: *mut f32,
    /// workspace: the elements of the states of splits, [rows, q_heads, places, head_dim]
    pub partial_out: *mut f32,
    /// workspace: the largest score times log2(e), and the sum, of each state, [rows, q_heads, places, 2]
    pub partial_stats: *mut f32,
    /// the device error word, for FLEXDRAFT_ERROR_PAGE and _PLAN; may be null
    pub error: *mut u32,
    pub q_stride: i64,
    pub mask_stride: i64,
    /// factor of the scores q · k: head_dim^-1/2 * log2(e)
    pub scale_log2: f32,
    pub q_heads: i32,
    pub kv_heads: i32,
    /// query heads per KV head: q_heads / kv_heads
    pub head_ratio: i32,
    /// keys per split of a long sequence, a multiple of 64
    pub split: i32,
    /// splits that a CTA computes one after the other: 1 or FLEXDRAFT_SPAN_SPLITS
    pub item_splits: i32,
    /// the most states that the cached keys of a sequence may leave in the workspace
    pub max_states: i32,
    /// states per row and head for which the workspace has a place: max_states and, if that is more
    /// than one, a last place for the slots
    pub places: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftAttentionParams"][::core::mem::size_of::<FlexdraftAttentionParams>() - 264usize];
    ["Alignment of FlexdraftAttentionParams"][::core::mem::align_of::<FlexdraftAttentionParams>() - 8usize];
    ["Offset of field: FlexdraftAttentionParams::pass"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, pass) - 0usize];
    ["Offset of field: FlexdraftAttentionParams::cache"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, cache) - 64usize];
    ["Offset of field: FlexdraftAttentionParams::q"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, q) - 152usize];
    ["Offset of field: FlexdraftAttentionParams::mask_k"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_k) - 160usize];
    ["Offset of field: FlexdraftAttentionParams::mask_v"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_v) - 168usize];
    ["Offset of field: FlexdraftAttentionParams::out"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, out) - 176usize];
    ["Offset of field: FlexdraftAttentionParams::lse"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, lse) - 184usize];
    ["Offset of field: FlexdraftAttentionParams::partial_out"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, partial_out) - 192usize];
    ["Offset of field: FlexdraftAttentionParams::partial_stats"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, partial_stats) - 200usize];
    ["Offset of field: FlexdraftAttentionParams::error"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, error) - 208usize];
    ["Offset of field: FlexdraftAttentionParams::q_stride"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, q_stride) - 216usize];
    ["Offset of field: FlexdraftAttentionParams::mask_stride"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_stride) - 224usize];
    ["Offset of field: FlexdraftAttentionParams::scale_log2"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, scale_log2) - 232usize];
    ["Offset of field: FlexdraftAttentionParams::q_heads"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, q_heads) - 236usize];
    ["Offset of field: FlexdraftAttentionParams::kv_heads"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, kv_heads) - 240usize];
    ["Offset of field: FlexdraftAttentionParams::head_ratio"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, head_ratio) - 244usize];
    ["Offset of field: FlexdraftAttentionParams::split"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, split) - 248usize];
    ["Offset of field: FlexdraftAttentionParams::item_splits"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, item_splits) - 252usize];
    ["Offset of field: FlexdraftAttentionParams::max_states"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, max_states) - 256usize];
    ["Offset of field: FlexdraftAttentionParams::places"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, places) - 260usize];
};
