/* How launches are shaped, for the kernels, for the wrappers that launch them and for the report on their code:
 * tiles, stages, splits, threads and shared memory. Plain C, as params.h.
 *
 * Results do not depend on it, but for what says "arithmetic": with other values sums are in another order. */
#pragma once

/* joint_attention_d*_r*_s*: rows of four warps share tiles of keys, which go through a ring of stages; one is read
 * while the others are filled. A warp has parts of 16 rows: with two of them it reads a key for both. A list of
 * tile(head_dim, rows, parts, stages). */
/* clang-format off */
#define FLEXDRAFT_ATTENTION_TILES(tile) \
    tile(64, 64, 1, 2) tile(64, 64, 1, 3) tile(64, 128, 2, 2) tile(64, 128, 2, 3) \
    tile(128, 64, 1, 2) tile(128, 64, 1, 3) tile(128, 128, 2, 2)
/* clang-format on */

enum FlexdraftAttentionShape {
    FLEXDRAFT_ATTENTION_THREADS = 128,
    FLEXDRAFT_TILE_KEYS = 64, /* keys of a tile; splits are multiples of it; arithmetic */
    /* keys of a split, arithmetic: at batch 1 and context 8k, splits of 512 keys keep 132 multiprocessors busy */
    FLEXDRAFT_DEFAULT_SPLIT = 512,
    FLEXDRAFT_SPAN_SPLITS = 4, /* splits that merge one after the other, spans in a tree; arithmetic */
    FLEXDRAFT_ITEM_BYTES = 44, /* of shared memory: what a CTA works on */
    FLEXDRAFT_ROW_BYTES = 10,  /* and what it knows of each row */
    /* Levels of the tree of attention_merge_d*_l*, for 2^levels - 1 spans, or fours of them: for few, and for any. */
    FLEXDRAFT_FEW_LEVELS = 5,
    FLEXDRAFT_MERGE_LEVELS = 12,
    FLEXDRAFT_MERGE_WARPS = 4 /* of a CTA of the merge, a head of a row each */
};

/* Of every tile: rows, and shared memory in bytes (Q, stages of K and V, the item and its rows) without the plan,
 * which is two int32_t for two sequences and one more. */
#define FLEXDRAFT_ATTENTION_TILE_SIZES(head_dim, rows, parts, stages) \
    FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_ROWS = rows,        \
    FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_SHARED =            \
        2 * head_dim * (rows + stages * 2 * FLEXDRAFT_TILE_KEYS) + rows * FLEXDRAFT_ROW_BYTES + FLEXDRAFT_ITEM_BYTES,
enum FlexdraftAttentionTile { FLEXDRAFT_ATTENTION_TILES(FLEXDRAFT_ATTENTION_TILE_SIZES) };

/* calibrated_sample_*: ids by rows a CTA, warps across them, and stages of u. Up to FLEXDRAFT_SMALL_ROWS rows W2's
 * traffic decides: small tiles, so that several CTAs share a multiprocessor and one computes while another loads.
 * Beyond, the product and the traffic of u decide: larger tiles on both sides. */
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

    FLEXDRAFT_SLICE = 64,        /* elements of the rank that a stage carries */
    FLEXDRAFT_SLICE_PADDING = 8, /* rows 16 bytes further than a multiple of 128: ldmatrix meets no bank conflict */
    FLEXDRAFT_TILE_PADDING = 4   /* of a row of corrections: float4 rows, and the stores of mma's layout meet none */
};

/* Their shared memory in bytes: W2's rows grow with every slice of the rank; their padding, the ring of u and the
 * corrections in f32 do not. */
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
    FLEXDRAFT_PLAIN_WARPS = 8, /* of sample_rows_*, a chunk of ids each */
    FLEXDRAFT_FINISH_THREADS = 512,
    FLEXDRAFT_FINISH_SHARED = 24768, /* of sample_finish_* */
    FLEXDRAFT_ACCEPT_THREADS = 256,  /* of accept_*; sums over a chunk are arithmetic */
    FLEXDRAFT_ACCEPT_SHARED = 1024,
    FLEXDRAFT_BLOCK_SHARES = 16, /* CTAs that share a sequence's draft tokens in the first launch of block verification:
                                  * only the device knows their number, and most drafts have no more */
    FLEXDRAFT_ROW_THREADS = 128, /* of embedding, activation and rope kernels: a row each, or 8 columns a thread */
    FLEXDRAFT_NORM_THREADS = 256,                            /* of rms_norm, a row; its sum is arithmetic */
    FLEXDRAFT_NORM_SHARED = FLEXDRAFT_NORM_THREADS / 32 * 4, /* a float a warp */
    FLEXDRAFT_ROPE_THREADS = 64                              /* of rope_table, a row each */
};
