//! `cuda/glue/params.h`.

use super::common::{FlexdraftPagedKv, FlexdraftPass};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftEmbedParams {
    pub ids: *const i32,
    pub table: *const u16,
    pub out: *mut u16,
    pub error: *mut u32,
    pub cols: i64,
    pub rows: i32,
    pub vocab: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftGatherParams {
    pub indices: *const i32,
    pub x: *const u16,
    pub out: *mut u16,
    pub cols: i64,
    pub rows: i32,
    pub x_rows: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRmsNormParams {
    pub x: *mut u16,
    pub delta: *const u16,
    pub weight: *const f32,
    pub out: *mut u16,
    pub cols: i64,
    pub rows: i32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSiluMulParams {
    pub x: *const u16,
    pub out: *mut u16,
    pub cols: i64,
    pub rows: i32,
    pub unused: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSiluAddParams {
    pub x: *mut u16,
    pub bonus: *const u16,
    pub owner: *const i32,
    pub cols: i64,
    pub rows: i32,
    pub bonus_rows: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRopeTableParams {
    pub pass: FlexdraftPass,
    pub inv_freq: *const f32,
    pub turns: *mut f32,
    pub scale: f32,
    pub half_dim: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftNormRopeAppendParams {
    pub pass: FlexdraftPass,
    pub cache: FlexdraftPagedKv,
    pub qkv: *mut u16,
    pub turns: *const f32,
    pub q_norm: *const f32,
    pub k_norm: *const f32,
    pub error: *mut u32,
    pub qkv_stride: i64,
    pub eps: f32,
    pub q_heads: i32,
    pub kv_heads: i32,
    pub first_row: i32,
    pub end_row: i32,
    pub unused: i32,
}
