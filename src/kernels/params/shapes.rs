// Generated from cuda/common/shapes.h by the crate in bindings.

pub const FLEXDRAFT_ATTENTION_THREADS: FlexdraftAttentionShape = 128;
/// keys per tile of K and V; a split is a whole number of tiles; decides the order of sums
pub const FLEXDRAFT_TILE_KEYS: FlexdraftAttentionShape = 64;
/// default number of keys per split of a long sequence, which decides the order of sums: at batch 1 and context 8k,
/// splits of 512 keys keep 132 multiprocessors busy
pub const FLEXDRAFT_DEFAULT_SPLIT: FlexdraftAttentionShape = 512;
/// splits per span, whose states merge one after the other; decides the order of sums
pub const FLEXDRAFT_SPAN_SPLITS: FlexdraftAttentionShape = 4;
/// shared memory of a CTA for its work item, in bytes
pub const FLEXDRAFT_ITEM_BYTES: FlexdraftAttentionShape = 44;
/// shared memory of a CTA for each row of its block, in bytes
pub const FLEXDRAFT_ROW_BYTES: FlexdraftAttentionShape = 10;
/// Levels of the tree in which attention_merge_d*_l* merges up to 2^levels - 1 groups of states, in the variant for
/// short sequences.
pub const FLEXDRAFT_FEW_LEVELS: FlexdraftAttentionShape = 5;
/// Levels of the tree in the variant of attention_merge_d*_l* for every sequence.
pub const FLEXDRAFT_MERGE_LEVELS: FlexdraftAttentionShape = 12;
/// warps per CTA of attention_merge_d*_l*, each with one head of a row
pub const FLEXDRAFT_MERGE_WARPS: FlexdraftAttentionShape = 4;
/// The shapes of attention's CTAs, and the units in which attention divides the keys of a sequence.
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
/// elements of the calibrator's rank per stage of a ring
pub const FLEXDRAFT_SLICE: FlexdraftCalibratedShape = 64;
/// padding behind a row, in elements, so that the rows of an ldmatrix lie in different banks
pub const FLEXDRAFT_SLICE_PADDING: FlexdraftCalibratedShape = 8;
/// padding behind a row of corrections, in floats, so that stores lie in different banks
pub const FLEXDRAFT_TILE_PADDING: FlexdraftCalibratedShape = 4;
/// The two tile shapes of the kernels calibrated_sample_*: vocabulary ids and rows per CTA, warps along each of the two,
/// and stages of the ring for u, the calibrator's hidden rows. Up to
/// FLEXDRAFT_SMALL_ROWS rows, the time depends on the traffic of W2: with small tiles, several CTAs share a
/// multiprocessor, and one computes while another loads. With more rows, the time depends on the product and on the
/// traffic of u, so both sides of a tile are larger.
pub type FlexdraftCalibratedShape = ::core::ffi::c_uint;
pub const FLEXDRAFT_SMALL_SLICE_SHARED: FlexdraftCalibratedShared = 8192;
pub const FLEXDRAFT_SMALL_SHARED: FlexdraftCalibratedShared = 19200;
pub const FLEXDRAFT_LARGE_SLICE_SHARED: FlexdraftCalibratedShared = 16384;
pub const FLEXDRAFT_LARGE_SHARED: FlexdraftCalibratedShared = 72704;
pub type FlexdraftCalibratedShared = ::core::ffi::c_uint;
/// warps per CTA of sample_rows_*, each with a chunk of vocabulary ids
pub const FLEXDRAFT_PLAIN_WARPS: FlexdraftCta = 8;
pub const FLEXDRAFT_FINISH_THREADS: FlexdraftCta = 512;
/// shared memory of sample_finish_*
pub const FLEXDRAFT_FINISH_SHARED: FlexdraftCta = 24768;
/// threads per CTA of accept_*; decides the order of the sums over a chunk
pub const FLEXDRAFT_ACCEPT_THREADS: FlexdraftCta = 256;
pub const FLEXDRAFT_ACCEPT_SHARED: FlexdraftCta = 1024;
/// CTAs that share the draft tokens of a sequence in the first launch of block
/// verification; only the device knows the number of draft tokens, mostly at most 16
pub const FLEXDRAFT_BLOCK_SHARES: FlexdraftCta = 16;
/// threads per CTA of embedding, activation and rope kernels, except rope_table
pub const FLEXDRAFT_ROW_THREADS: FlexdraftCta = 128;
/// threads per CTA of rms_norm; decides the order of the sum of squares
pub const FLEXDRAFT_NORM_THREADS: FlexdraftCta = 256;
/// shared memory of rms_norm: a float per warp
pub const FLEXDRAFT_NORM_SHARED: FlexdraftCta = 32;
/// threads per CTA of rope_table
pub const FLEXDRAFT_ROPE_THREADS: FlexdraftCta = 64;
/// threads per CTA of chain_choose_*
pub const FLEXDRAFT_CHOOSE_THREADS: FlexdraftCta = 128;
/// shared memory of chain_choose_*: a rank per thread
pub const FLEXDRAFT_CHOOSE_SHARED: FlexdraftCta = 1024;
/// threads per CTA of chain_score_*
pub const FLEXDRAFT_SCORE_THREADS: FlexdraftCta = 128;
/// rows and columns of the tile of scores that a warp of chain_score_* computes at once
pub const FLEXDRAFT_SCORE_TILE: FlexdraftCta = 4;
/// threads per CTA of chain_walk
pub const FLEXDRAFT_WALK_THREADS: FlexdraftCta = 128;
/// shared memory of chain_walk: a float per draft token and lane of a warp
pub const FLEXDRAFT_WALK_SHARED: FlexdraftCta = 8064;
/// CTAs of the other kernels: threads, and shared memory in bytes.
pub type FlexdraftCta = ::core::ffi::c_uint;
