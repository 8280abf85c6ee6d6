// Generated from cuda/attention/params.h by the crate in bindings.

use super::common::*;

/// Joint draft-and-verify attention of one layer. A candidate row sees the cache up to its own position. A row of group k
/// sees the cache up to position n + k, n being the position of candidate 0, and the slots of its own group, whose K and
/// V are rows of `mask_k` and `mask_v`. Query head h reads KV head h / head_ratio. With a window, a row at position p sees
/// the cached positions above p - window only. Row r of the pass is row r of `q` if it is a candidate row, and row
/// r - candidates of `mask_q`, `mask_k` and `mask_v` if it is a mask row. A projection that has q, k and v side by side in
/// one row is all of these, with one stride.
#[repr(C)]
pub struct FlexdraftAttentionParams {
    pub pass: FlexdraftPass,
    pub cache: FlexdraftPagedKv,
    /// the q heads of candidate rows, q_heads of head_dim elements, [candidates, q_stride]
    pub q: *const u16,
    /// the q heads of mask rows, [mask rows, mask_q_stride]
    pub mask_q: *const u16,
    /// the k heads of mask rows, kv_heads of head_dim elements, [mask rows, mask_k_stride]
    pub mask_k: *const u16,
    /// the v heads of mask rows, [mask rows, mask_v_stride]
    pub mask_v: *const u16,
    /// the result, [rows, q_heads * head_dim]
    pub out: *mut u16,
    /// the natural logarithm of the sum of exp(score), [rows, q_heads]; may be null
    pub lse: *mut f32,
    /// workspace: the elements of the states of splits, [rows, q_heads, places, head_dim]
    pub partial_out: *mut f32,
    /// workspace: the largest score times log2(e), and the sum, of each state, [rows, q_heads, places, 2]
    pub partial_stats: *mut f32,
    /// a score per head, without a value, that joins every row's softmax in the last merge, [q_heads]; may be null
    pub sinks: *const f32,
    /// the device error word, for FLEXDRAFT_ERROR_PAGE and _PLAN; may be null
    pub error: *mut u32,
    /// distance between rows of `q`, in elements
    pub q_stride: i64,
    pub mask_q_stride: i64,
    pub mask_k_stride: i64,
    pub mask_v_stride: i64,
    /// factor of the scores: head_dim^-1/2 * log2(e) of q · k or, if scores are capped, cap * log2(e) of the tangent
    pub scale_log2: f32,
    /// 0: no cap; otherwise scores are tanh(q · k * cap_scale * ln(2) / 2) * scale_log2
    pub cap_scale: f32,
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
    /// number of candidate rows in the pass
    pub candidates: i32,
    /// positions that a row sees up to its own; FLEXDRAFT_NO_WINDOW: all
    pub window: i32,
    /// position / page_size is position * page_magic >> page_shift, for positions below 2^31
    pub page_magic: u32,
    pub page_shift: i32,
    /// nonzero: a kernel may have changed the tables of the pass since they were copied to the device
    pub tables_change: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftAttentionParams"][::core::mem::size_of::<FlexdraftAttentionParams>() - 320usize];
    ["Alignment of FlexdraftAttentionParams"][::core::mem::align_of::<FlexdraftAttentionParams>() - 8usize];
    ["Offset of field: FlexdraftAttentionParams::pass"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, pass) - 0usize];
    ["Offset of field: FlexdraftAttentionParams::cache"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, cache) - 64usize];
    ["Offset of field: FlexdraftAttentionParams::q"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, q) - 152usize];
    ["Offset of field: FlexdraftAttentionParams::mask_q"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_q) - 160usize];
    ["Offset of field: FlexdraftAttentionParams::mask_k"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_k) - 168usize];
    ["Offset of field: FlexdraftAttentionParams::mask_v"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_v) - 176usize];
    ["Offset of field: FlexdraftAttentionParams::out"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, out) - 184usize];
    ["Offset of field: FlexdraftAttentionParams::lse"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, lse) - 192usize];
    ["Offset of field: FlexdraftAttentionParams::partial_out"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, partial_out) - 200usize];
    ["Offset of field: FlexdraftAttentionParams::partial_stats"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, partial_stats) - 208usize];
    ["Offset of field: FlexdraftAttentionParams::sinks"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, sinks) - 216usize];
    ["Offset of field: FlexdraftAttentionParams::error"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, error) - 224usize];
    ["Offset of field: FlexdraftAttentionParams::q_stride"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, q_stride) - 232usize];
    ["Offset of field: FlexdraftAttentionParams::mask_q_stride"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_q_stride) - 240usize];
    ["Offset of field: FlexdraftAttentionParams::mask_k_stride"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_k_stride) - 248usize];
    ["Offset of field: FlexdraftAttentionParams::mask_v_stride"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, mask_v_stride) - 256usize];
    ["Offset of field: FlexdraftAttentionParams::scale_log2"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, scale_log2) - 264usize];
    ["Offset of field: FlexdraftAttentionParams::cap_scale"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, cap_scale) - 268usize];
    ["Offset of field: FlexdraftAttentionParams::q_heads"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, q_heads) - 272usize];
    ["Offset of field: FlexdraftAttentionParams::kv_heads"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, kv_heads) - 276usize];
    ["Offset of field: FlexdraftAttentionParams::head_ratio"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, head_ratio) - 280usize];
    ["Offset of field: FlexdraftAttentionParams::split"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, split) - 284usize];
    ["Offset of field: FlexdraftAttentionParams::item_splits"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, item_splits) - 288usize];
    ["Offset of field: FlexdraftAttentionParams::max_states"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, max_states) - 292usize];
    ["Offset of field: FlexdraftAttentionParams::places"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, places) - 296usize];
    ["Offset of field: FlexdraftAttentionParams::candidates"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, candidates) - 300usize];
    ["Offset of field: FlexdraftAttentionParams::window"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, window) - 304usize];
    ["Offset of field: FlexdraftAttentionParams::page_magic"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, page_magic) - 308usize];
    ["Offset of field: FlexdraftAttentionParams::page_shift"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, page_shift) - 312usize];
    ["Offset of field: FlexdraftAttentionParams::tables_change"]
        [::core::mem::offset_of!(FlexdraftAttentionParams, tables_change) - 316usize];
};
pub const FLEXDRAFT_NO_WINDOW: FlexdraftWindow = 2147483647;
/// The largest window, from which a row sees everything before it.
pub type FlexdraftWindow = ::core::ffi::c_uint;
