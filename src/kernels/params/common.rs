//! `cuda/common/params.h`.

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftPass {
    pub start: *const i32,
    pub candidates: *const i32,
    pub groups: *const u64,
    pub slots: *const i32,
    pub first_candidate: *const i32,
    pub first_mask: *const i32,
    pub batch: i32,
    pub rows: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftPagedKv {
    pub k: *mut std::ffi::c_void,
    pub v: *mut std::ffi::c_void,
    pub page_table: *const i32,
    pub k_page_stride: i64,
    pub k_token_stride: i64,
    pub k_head_stride: i64,
    pub v_page_stride: i64,
    pub v_token_stride: i64,
    pub v_head_stride: i64,
    pub page_table_stride: i64,
    pub pages: i32,
    pub page_size: i32,
}
