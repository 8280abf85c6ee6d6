/* The shapes of launches, for the kernels, the wrappers that launch them and the report on their code: tiles, stages,
 * splits, threads and shared memory. Plain C, as params.h.
 *
 * Results do not depend on these constants, except where a comment says that a constant decides the order of sums. */
#pragma once

/* The variants of joint_attention_d*_r*_s*, as tile(head_dim, rows, parts, stages). The rows of four warps share tiles of
 * keys, which go through a ring of stages: the warps read one stage while the others are filled. A warp has parts of 16
 * rows; with two parts it reads a key once for both. */
/* clang-format off */
#define FLEXDRAFT_ATTENTION_TILES(tile) \
    tile(64, 64, 1, 2) tile(64, 64, 1, 3) tile(64, 128, 2, 2) tile(64, 128, 2, 3) \
    tile(128, 64, 1, 2) tile(128, 64, 1, 3) tile(128, 128, 2, 2)
/* clang-format on */

/* The shapes of attention's CTAs, and the units in which attention divides the keys of a sequence. */
enum FlexdraftAttentionShape {
    FLEXDRAFT_ATTENTION_THREADS = 128,
    /* keys per tile of K and V; a split is a whole number of tiles; decides the order of sums */
    FLEXDRAFT_TILE_KEYS = 64,
    /* default number of keys per split of a long sequence, which decides the order of sums: at batch 1 and context 8k,
     * splits of 512 keys keep 132 multiprocessors busy */
    FLEXDRAFT_DEFAULT_SPLIT = 512,
    /* splits per span, whose states merge one after the other; decides the order of sums */
    FLEXDRAFT_SPAN_SPLITS = 4,
    FLEXDRAFT_ITEM_BYTES = 44, /* shared memory of a CTA for its work item, in bytes */
    FLEXDRAFT_ROW_BYTES = 10,  /* shared memory of a CTA for each row of its block, in bytes */
    /* Levels of the tree in which attention_merge_d*_l* merges up to 2^levels - 1 groups of states, in the variant for
     * short sequences. */
    FLEXDRAFT_FEW_LEVELS = 5,
    /* Levels of the tree in the variant of attention_merge_d*_l* for every sequence. */
    FLEXDRAFT_MERGE_LEVELS = 12,
    FLEXDRAFT_MERGE_WARPS = 4 /* warps per CTA of attention_merge_d*_l*, each with one head of a row */
};

/* The rows of each variant, and its shared memory in bytes (Q, stages of K and V, the item and its rows) without the plan
 * of items: two int32_t per two sequences, and one more. */
#define FLEXDRAFT_ATTENTION_TILE_SIZES(head_dim, rows, parts, stages) \
    FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_ROWS = rows,        \
    FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_SHARED =            \
        2 * head_dim * (rows + stages * 2 * FLEXDRAFT_TILE_KEYS) + rows * FLEXDRAFT_ROW_BYTES + FLEXDRAFT_ITEM_BYTES,
enum FlexdraftAttentionTile { FLEXDRAFT_ATTENTION_TILES(FLEXDRAFT_ATTENTION_TILE_SIZES) };

/* The two tile shapes of the kernels calibrated_sample_*: vocabulary ids and rows per CTA, warps along each of the two,
 * and stages of the ring for u, the calibrator's hidden rows. Up to
 * FLEXDRAFT_SMALL_ROWS rows, the time depends on the traffic of W2: with small tiles, several CTAs share a
 * multiprocessor, and one computes while another loads. With more rows, the time depends on the product and on the
 * traffic of u, so both sides of a tile are larger. */
enum FlexdraftCalibratedShape {
    FLEXDRAFT_SMALL_ROWS = 64,

    FLEXDRAFT_SMALL_TILE = 64,
    FLEXDRAFT_SMALL_ROW_BLOCK = 16,
    FLEXDRAFT_SMALL_WARPS_ACROSS_TILE = 4,
    FLEXDRAFT_SMALL_WARPS_ACROSS_ROWS = 1,
    FLEXDRAFT_SMALL_STAGES = 6,

    FLEXDRAFT_LARGE_TILE = 128,
    FLEXDRAFT_LARGE_ROW_BLOCK = 64,
    FLEXDRAFT_LARGE_WARPS_ACROSS_TILE = 4,
    FLEXDRAFT_LARGE_WARPS_ACROSS_ROWS = 2,
    FLEXDRAFT_LARGE_STAGES = 4,

    FLEXDRAFT_SLICE = 64, /* elements of the calibrator's rank per stage of a ring */
    /* padding behind a row, in elements, so that the rows of an ldmatrix lie in different banks */
    FLEXDRAFT_SLICE_PADDING = 8,
    /* padding behind a row of corrections, in floats, so that stores lie in different banks */
    FLEXDRAFT_TILE_PADDING = 4
};

/* Shared memory of calibrated_sample_* in bytes: per slice of the rank for the rows of W2, and a fixed part for their
 * padding, the ring of u and the corrections in f32. */
#define FLEXDRAFT_CALIBRATED_SLICE_SHARED(tile) (2 * tile * FLEXDRAFT_SLICE)
#define FLEXDRAFT_CALIBRATED_FIXED_SHARED(tile, row_block, stages)                                               \
    (2 * tile * FLEXDRAFT_SLICE_PADDING + 2 * stages * row_block * (FLEXDRAFT_SLICE + FLEXDRAFT_SLICE_PADDING) + \
     4 * row_block * (tile + FLEXDRAFT_TILE_PADDING))
enum FlexdraftCalibratedShared {
    FLEXDRAFT_SMALL_SLICE_SHARED = FLEXDRAFT_CALIBRATED_SLICE_SHARED(FLEXDRAFT_SMALL_TILE),
    FLEXDRAFT_SMALL_SHARED =
        FLEXDRAFT_CALIBRATED_FIXED_SHARED(FLEXDRAFT_SMALL_TILE, FLEXDRAFT_SMALL_ROW_BLOCK, FLEXDRAFT_SMALL_STAGES),
    FLEXDRAFT_LARGE_SLICE_SHARED = FLEXDRAFT_CALIBRATED_SLICE_SHARED(FLEXDRAFT_LARGE_TILE),
    FLEXDRAFT_LARGE_SHARED =
        FLEXDRAFT_CALIBRATED_FIXED_SHARED(FLEXDRAFT_LARGE_TILE, FLEXDRAFT_LARGE_ROW_BLOCK, FLEXDRAFT_LARGE_STAGES)
};

/* CTAs of the other kernels: threads, and shared memory in bytes. */
enum FlexdraftCta {
    FLEXDRAFT_PLAIN_WARPS = 8, /* warps per CTA of sample_rows_*, each with a chunk of vocabulary ids */
    FLEXDRAFT_FINISH_THREADS = 512,
    FLEXDRAFT_FINISH_SHARED = 24768, /* shared memory of sample_finish_* */
    FLEXDRAFT_ACCEPT_THREADS = 256,  /* threads per CTA of accept_*; decides the order of the sums over a chunk */
    FLEXDRAFT_ACCEPT_SHARED = 1024,
    FLEXDRAFT_BLOCK_SHARES = 16,  /* CTAs that share the draft tokens of a sequence in the first launch of block
                                  * verification; only the device knows the number of draft tokens, mostly at most 16 */
    FLEXDRAFT_ROW_THREADS = 128,  /* threads per CTA of embedding, activation and rope kernels, except rope_table */
    FLEXDRAFT_NORM_THREADS = 256, /* threads per CTA of rms_norm; decides the order of the sum of squares */
    FLEXDRAFT_NORM_SHARED = FLEXDRAFT_NORM_THREADS / 32 * 4, /* shared memory of rms_norm: a float per warp */
    FLEXDRAFT_ROPE_THREADS = 64,                             /* threads per CTA of rope_table */
    FLEXDRAFT_CHOOSE_THREADS = 128,                          /* threads per CTA of chain_choose_* */
    FLEXDRAFT_CHOOSE_SHARED = FLEXDRAFT_CHOOSE_THREADS * 8,  /* shared memory of chain_choose_*: a rank per thread */
    FLEXDRAFT_SCORE_THREADS = 128,                           /* threads per CTA of chain_score_* */
    FLEXDRAFT_SCORE_TILE = 4, /* rows and columns of the tile of scores that a warp of chain_score_* computes at once */
    FLEXDRAFT_WALK_THREADS = 128,       /* threads per CTA of chain_walk */
    FLEXDRAFT_WALK_SHARED = 63 * 32 * 4 /* shared memory of chain_walk: a float per draft token and lane of a warp */
};
