// Generated from cuda/common/shapes.h by the crate in bindings.

pub const FLEXDRAFT_ATTENTION_THREADS: FlexdraftAttentionShape = 128;
/// keys of a tile; splits are multiples of it; arithmetic
pub const FLEXDRAFT_TILE_KEYS: FlexdraftAttentionShape = 64;
/// keys of a split, arithmetic: at batch 1 and context 8k, splits of 512 keys keep 132 multiprocessors busy
pub const FLEXDRAFT_DEFAULT_SPLIT: FlexdraftAttentionShape = 512;
/// splits that merge one after the other, spans in a tree; arithmetic
pub const FLEXDRAFT_SPAN_SPLITS: FlexdraftAttentionShape = 4;
/// of shared memory: what a CTA works on
pub const FLEXDRAFT_ITEM_BYTES: FlexdraftAttentionShape = 44;
/// and what it knows of each row
pub const FLEXDRAFT_ROW_BYTES: FlexdraftAttentionShape = 10;
/// Levels of the tree of attention_merge_d*_l*, for 2^levels - 1 spans, or fours of them: for few, and for any.
pub const FLEXDRAFT_FEW_LEVELS: FlexdraftAttentionShape = 5;
/// Levels of the tree of attention_merge_d*_l*, for 2^levels - 1 spans, or fours of them: for few, and for any.
pub const FLEXDRAFT_MERGE_LEVELS: FlexdraftAttentionShape = 12;
/// of a CTA of the merge, a head of a row each
pub const FLEXDRAFT_MERGE_WARPS: FlexdraftAttentionShape = 4;
/// clang-format on
pub type FlexdraftAttentionShape = ::core::ffi::c_uint;
pub const FLEXDRAFT_D64_R64_S2_ROWS: FlexdraftAttentionTile = 64;
pub const FLEXDRAFT_D64_R64_S2_SHARED: FlexdraftAttentionTile = 41644;
pub const FLEXDRAFT_D64_R64_S3_ROWS: FlexdraftAttentionTile = 64;
pub const FLEXDRAFT_D64_R64_S3_SHARED: FlexdraftAttentionTile = 58028;
pub const FLEXDRAFT_D64_R128_S2_ROWS: FlexdraftAttentionTile = 128;
pub const FLEXDRAFT_D64_R128_S2_SHARED: FlexdraftAttentionTile = 50476;
pub const FLEXDRAFT_D64_R128_S3_ROWS: FlexdraftAttentionTile = 128;
pub const FLEXDRAFT_D64_R128_S3_SHARED: FlexdraftAttentionTile = 66860;
pub const FLEXDRAFT_D128_R64_S2_ROWS: FlexdraftAttentionTile = 64;
pub const FLEXDRAFT_D128_R64_S2_SHARED: FlexdraftAttentionTile = 82604;
pub const FLEXDRAFT_D128_R64_S3_ROWS: FlexdraftAttentionTile = 64;
pub const FLEXDRAFT_D128_R64_S3_SHARED: FlexdraftAttentionTile = 115372;
pub const FLEXDRAFT_D128_R128_S2_ROWS: FlexdraftAttentionTile = 128;
pub const FLEXDRAFT_D128_R128_S2_SHARED: FlexdraftAttentionTile = 99628;
pub type FlexdraftAttentionTile = ::core::ffi::c_uint;
pub const FLEXDRAFT_SMALL_ROWS: FlexdraftCalibratedShape = 64;
pub const FLEXDRAFT_SMALL_TILE: FlexdraftCalibratedShape = 64;
pub const FLEXDRAFT_SMALL_ROW_BLOCK: FlexdraftCalibratedShape = 16;
pub const FLEXDRAFT_SMALL_WARPS_ACROSS_TILE: FlexdraftCalibratedShape = 4;
pub const FLEXDRAFT_SMALL_WARPS_ACROSS_ROWS: FlexdraftCalibratedShape = 1;
pub const FLEXDRAFT_SMALL_STAGES: FlexdraftCalibratedShape = 6;
pub const FLEXDRAFT_LARGE_TILE: FlexdraftCalibratedShape = 128;
pub const FLEXDRAFT_LARGE_ROW_BLOCK: FlexdraftCalibratedShape = 64;
pub const FLEXDRAFT_LARGE_WARPS_ACROSS_TILE: FlexdraftCalibratedShape = 4;
pub const FLEXDRAFT_LARGE_WARPS_ACROSS_ROWS: FlexdraftCalibratedShape = 2;
pub const FLEXDRAFT_LARGE_STAGES: FlexdraftCalibratedShape = 4;
/// elements of the rank that a stage carries
pub const FLEXDRAFT_SLICE: FlexdraftCalibratedShape = 64;
/// rows 16 bytes further than a multiple of 128: ldmatrix meets no bank conflict
pub const FLEXDRAFT_SLICE_PADDING: FlexdraftCalibratedShape = 8;
/// of a row of corrections: float4 rows, and the stores of mma's layout meet none
pub const FLEXDRAFT_TILE_PADDING: FlexdraftCalibratedShape = 4;
/// calibrated_sample_*: ids by rows a CTA, warps across them, and stages of u. Up to FLEXDRAFT_SMALL_ROWS rows W2's
/// traffic decides: small tiles, so that several CTAs share a multiprocessor and one computes while another loads.
/// Beyond, the product and the traffic of u decide: larger tiles on both sides.
pub type FlexdraftCalibratedShape = ::core::ffi::c_uint;
pub const FLEXDRAFT_SMALL_SLICE_SHARED: FlexdraftCalibratedShared = 8192;
pub const FLEXDRAFT_SMALL_SHARED: FlexdraftCalibratedShared = 19200;
pub const FLEXDRAFT_LARGE_SLICE_SHARED: FlexdraftCalibratedShared = 16384;
pub const FLEXDRAFT_LARGE_SHARED: FlexdraftCalibratedShared = 72704;
pub type FlexdraftCalibratedShared = ::core::ffi::c_uint;
/// of sample_rows_*, a chunk of ids each
pub const FLEXDRAFT_PLAIN_WARPS: FlexdraftCta = 8;
pub const FLEXDRAFT_FINISH_THREADS: FlexdraftCta = 512;
/// of sample_finish_*
pub const FLEXDRAFT_FINISH_SHARED: FlexdraftCta = 24768;
/// of accept_*; sums over a chunk are arithmetic
pub const FLEXDRAFT_ACCEPT_THREADS: FlexdraftCta = 256;
pub const FLEXDRAFT_ACCEPT_SHARED: FlexdraftCta = 1024;
/// CTAs that share a sequence's draft tokens in the first launch of block verification:
/// only the device knows their number, and most drafts have no more
pub const FLEXDRAFT_BLOCK_SHARES: FlexdraftCta = 16;
/// of embedding, activation and rope kernels: a row each, or 8 columns a thread
pub const FLEXDRAFT_ROW_THREADS: FlexdraftCta = 128;
/// of rms_norm, a row; its sum is arithmetic
pub const FLEXDRAFT_NORM_THREADS: FlexdraftCta = 256;
/// a float a warp
pub const FLEXDRAFT_NORM_SHARED: FlexdraftCta = 32;
/// of rope_table, a row each
pub const FLEXDRAFT_ROPE_THREADS: FlexdraftCta = 64;
/// CTAs of the other kernels: threads, and shared memory in bytes.
pub type FlexdraftCta = ::core::ffi::c_uint;
