//! `cuda/sampling/params.h`.

pub const FLEXDRAFT_CHUNK: usize = 1024;
pub const FLEXDRAFT_CALIBRATED_CHUNK: usize = 64;
pub const FLEXDRAFT_PARTIAL_FIELDS: usize = 5;
pub const FLEXDRAFT_VOCAB_LIMIT: usize = 1 << 20;
pub const FLEXDRAFT_FINISH_SHARED_BYTES: u32 = 24768;

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlexdraftRowSampling {
    pub seed: u64,
    pub position: u64,
    pub temperature: f32,
    pub top_p: f32,
    pub min_score: f32,
    pub top_k: i32,
    pub purpose_and_slot: u32,
    pub sequence: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlexdraftRowStats {
    pub token: i32,
    pub max: f32,
    pub log_sum: f32,
    pub probability: f32,
    pub confidence: f32,
    pub token_logit: f32,
    pub draft_probability: f32,
    pub temperature: f32,
    pub cut_score: f32,
    pub cut_id: i32,
    pub kept: i32,
    pub padding: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FlexdraftSample {
    pub logits: *mut std::ffi::c_void,
    pub logit_index: *const i32,
    pub sampling: *const FlexdraftRowSampling,
    pub starts: *const i32,
    pub draft: *const i32,
    pub u: *const u16,
    pub w2: *const u16,
    pub b2: *const f32,
    pub partials: *mut f32,
    pub stats: *mut FlexdraftRowStats,
    pub error: *mut u32,
    pub logit_stride: i64,
    pub rows: i32,
    pub logit_rows: i32,
    pub vocab: i32,
    pub rank: i32,
    pub sequences: i32,
    pub chunks: i32,
    pub store: i32,
    pub logits_current: i32,
}

const _: () = assert!(size_of::<FlexdraftRowSampling>() == 40);
const _: () = assert!(size_of::<FlexdraftRowStats>() == 48);
const _: () = assert!(size_of::<FlexdraftSample>() == 128);
