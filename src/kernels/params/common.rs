// Generated from cuda/common/params.h by the crate in bindings.

/// The rows of a forward pass over a batch of sequences: one device array per field. The candidate rows of all
/// sequences come first, then the mask rows of all sequences, groups in ascending order and slots in order.
/// cuda/common/rows.cuh has the position of each row and the positions that it sees.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftPass {
    /// n, the position of candidate 0 of each sequence, [batch]
    pub start: *const i32,
    /// number of candidate rows of each sequence, [batch]; may be 0
    pub candidates: *const i32,
    /// accepted lengths that have a mask group, [batch]: bit i for accepted length first_group + i
    pub groups: *const u64,
    /// the accepted length that bit 0 of `groups` stands for, [batch]: 0 except after a prompt
    pub first_group: *const i32,
    /// number of slots per mask group, [batch], at most 64
    pub slots: *const i32,
    /// first candidate row of each sequence, [batch + 1]; the last entry is the number of candidate rows
    pub first_candidate: *const i32,
    /// first mask row of each sequence, counted from row 0 of the pass, [batch + 1]
    pub first_mask: *const i32,
    pub batch: i32,
    /// number of rows of the operands; the rows after the rows of all sequences are padding
    pub rows: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftPass"][::core::mem::size_of::<FlexdraftPass>() - 64usize];
    ["Alignment of FlexdraftPass"][::core::mem::align_of::<FlexdraftPass>() - 8usize];
    ["Offset of field: FlexdraftPass::start"][::core::mem::offset_of!(FlexdraftPass, start) - 0usize];
    ["Offset of field: FlexdraftPass::candidates"]
        [::core::mem::offset_of!(FlexdraftPass, candidates) - 8usize];
    ["Offset of field: FlexdraftPass::groups"][::core::mem::offset_of!(FlexdraftPass, groups) - 16usize];
    ["Offset of field: FlexdraftPass::first_group"]
        [::core::mem::offset_of!(FlexdraftPass, first_group) - 24usize];
    ["Offset of field: FlexdraftPass::slots"][::core::mem::offset_of!(FlexdraftPass, slots) - 32usize];
    ["Offset of field: FlexdraftPass::first_candidate"]
        [::core::mem::offset_of!(FlexdraftPass, first_candidate) - 40usize];
    ["Offset of field: FlexdraftPass::first_mask"]
        [::core::mem::offset_of!(FlexdraftPass, first_mask) - 48usize];
    ["Offset of field: FlexdraftPass::batch"][::core::mem::offset_of!(FlexdraftPass, batch) - 56usize];
    ["Offset of field: FlexdraftPass::rows"][::core::mem::offset_of!(FlexdraftPass, rows) - 60usize];
};
/// One layer of a paged KV cache. Element (page, token, head, dim) of K is
/// k[page * k_page_stride + token * k_token_stride + head * k_head_stride + dim]; V alike. Position p of a
/// sequence is token p % page_size of page page_table[sequence * page_table_stride + p / page_size].
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftPagedKv {
    /// the keys: rows of head_dim elements, aligned to 16 bytes
    pub k: *mut ::core::ffi::c_void,
    /// the values, in rows as the keys
    pub v: *mut ::core::ffi::c_void,
    /// the page ids of each sequence, [batch, page_table_stride]
    pub page_table: *const i32,
    pub k_page_stride: i64,
    pub k_token_stride: i64,
    pub k_head_stride: i64,
    pub v_page_stride: i64,
    pub v_token_stride: i64,
    pub v_head_stride: i64,
    pub page_table_stride: i64,
    /// number of pages; page ids are below it
    pub pages: i32,
    /// tokens per page: 1 to 15, or a multiple of 16
    pub page_size: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftPagedKv"][::core::mem::size_of::<FlexdraftPagedKv>() - 88usize];
    ["Alignment of FlexdraftPagedKv"][::core::mem::align_of::<FlexdraftPagedKv>() - 8usize];
    ["Offset of field: FlexdraftPagedKv::k"][::core::mem::offset_of!(FlexdraftPagedKv, k) - 0usize];
    ["Offset of field: FlexdraftPagedKv::v"][::core::mem::offset_of!(FlexdraftPagedKv, v) - 8usize];
    ["Offset of field: FlexdraftPagedKv::page_table"]
        [::core::mem::offset_of!(FlexdraftPagedKv, page_table) - 16usize];
    ["Offset of field: FlexdraftPagedKv::k_page_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, k_page_stride) - 24usize];
    ["Offset of field: FlexdraftPagedKv::k_token_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, k_token_stride) - 32usize];
    ["Offset of field: FlexdraftPagedKv::k_head_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, k_head_stride) - 40usize];
    ["Offset of field: FlexdraftPagedKv::v_page_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, v_page_stride) - 48usize];
    ["Offset of field: FlexdraftPagedKv::v_token_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, v_token_stride) - 56usize];
    ["Offset of field: FlexdraftPagedKv::v_head_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, v_head_stride) - 64usize];
    ["Offset of field: FlexdraftPagedKv::page_table_stride"]
        [::core::mem::offset_of!(FlexdraftPagedKv, page_table_stride) - 72usize];
    ["Offset of field: FlexdraftPagedKv::pages"][::core::mem::offset_of!(FlexdraftPagedKv, pages) - 80usize];
    ["Offset of field: FlexdraftPagedKv::page_size"]
        [::core::mem::offset_of!(FlexdraftPagedKv, page_size) - 84usize];
};
/// error: a page id out of range
pub const FLEXDRAFT_ERROR_PAGE: FlexdraftError = 1;
/// error: a token id out of range
pub const FLEXDRAFT_ERROR_TOKEN: FlexdraftError = 2;
/// error: a NaN among the logits, which counts as −inf
pub const FLEXDRAFT_ERROR_NAN: FlexdraftError = 4;
/// error: a sequence longer than the workspace allows
pub const FLEXDRAFT_ERROR_PLAN: FlexdraftError = 8;
/// error: a row or sequence index out of range
pub const FLEXDRAFT_ERROR_ROW: FlexdraftError = 16;
/// error: calibrated logits that were needed again and not stored
pub const FLEXDRAFT_ERROR_STORE: FlexdraftError = 32;
/// The bits of the device error word (`error` of a parameter struct): an id or an index in device memory that a kernel
/// refused, or input that has a defined result but is a mistake.
pub type FlexdraftError = ::core::ffi::c_uint;
