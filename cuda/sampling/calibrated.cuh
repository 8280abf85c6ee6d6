// calibrated_sample_*: the pass over logits that the calibrator corrects.
//
// logits[row] + W2 · u[row] + b2, rounded to the stored type, then the partial results of what came out.
// One CTA owns Tile ids: their part of W2 comes in once, in slices along the rank, and stays in shared memory
// while all rows of the launch pass by in blocks of RowBlock. The slices of u go through a ring of cp.async
// stages that runs on across blocks; those of W2 ride with the first block's. The block's logits are
// fetched into registers before its product, so both arrive while the other is computed.
//
// Each product is one chain along the rank, so a row has the same bits in any tile, block or batch.
#pragma once

#include "../common/shapes.h"
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "../ptx/mma.cuh"
#include "partials.cuh"

// Warps are laid out [WarpsAcrossTile, WarpsAcrossRows]; a warp's part is a multiple of 16 both ways.
template <int Tile_, int RowBlock_, int WarpsAcrossTile_, int WarpsAcrossRows_, int Stages_>
struct CalibratedShape {
    static constexpr int kTile = Tile_;
    static constexpr int kRowBlock = RowBlock_;
    static constexpr int kWarpsAcrossTile = WarpsAcrossTile_;
    static constexpr int kWarpsAcrossRows = WarpsAcrossRows_;
    static constexpr int kStages = Stages_;
    static constexpr int kThreads = 32 * kWarpsAcrossTile * kWarpsAcrossRows;
    static constexpr int kWarpTile = kTile / kWarpsAcrossTile;
    static constexpr int kWarpRows = kRowBlock / kWarpsAcrossRows;
    static_assert(kTile % FLEXDRAFT_CALIBRATED_CHUNK == 0 && kWarpTile % 16 == 0 && kWarpRows % 16 == 0, "");
};

constexpr int kSlice = FLEXDRAFT_SLICE; // elements of the rank a stage carries
constexpr int kSliceStride = kSlice + FLEXDRAFT_SLICE_PADDING;

// Starts the copies of 64 elements from column `column` of `rows` rows, zero where row or column does not
// exist.
template <int Rows, int Threads>
FLEXDRAFT_INLINE void copy_slice(bf16* shared, int shared_stride, const uint16_t* matrix, int first_row,
                                 int end_row, int column, int rank) {
    constexpr int kPieces = kSlice / 8;
#pragma unroll 4
    for (int piece = int(threadIdx.x); piece < Rows * kPieces; piece += Threads) {
        const int row = piece / kPieces, at = column + 8 * (piece % kPieces);
        const bool exists = first_row + row < end_row && at < rank;
        const uint16_t* source = exists ? matrix + int64_t(first_row + row) * rank + at : matrix;
        cp_async_16(shared_address(shared + row * shared_stride + 8 * (piece % kPieces)), source,
                    exists ? 16u : 0u);
    }
}

template <typename L, typename Shape>
FLEXDRAFT_INLINE void calibrated_sample(const FlexdraftSample& p, unsigned char* shared) {
    constexpr int kTile = Shape::kTile, kRowBlock = Shape::kRowBlock, kStages = Shape::kStages;
    constexpr int kThreads = Shape::kThreads;
    constexpr int kTileParts = Shape::kWarpTile / 16, kRowParts = Shape::kWarpRows / 16;
    constexpr int kLanes = FLEXDRAFT_CALIBRATED_CHUNK / 4; // lanes a chunk
    constexpr int kSlots = kThreads / kLanes;              // chunks at a time
    constexpr int kTileChunks = kTile / FLEXDRAFT_CALIBRATED_CHUNK;
    constexpr int kTurns = kRowBlock * kTileChunks / kSlots;
    static_assert(kRowBlock * kTileChunks % kSlots == 0 && kSlots % kTileChunks == 0, "");
    constexpr int kCorrectionStride = kTile + FLEXDRAFT_TILE_PADDING;

    const int slices = (p.rank + kSlice - 1) / kSlice;
    const int weight_stride = slices * kSlice + FLEXDRAFT_SLICE_PADDING;
    bf16* weights = reinterpret_cast<bf16*>(shared);       // [kTile, weight_stride]
    bf16* ring = weights + kTile * weight_stride;          // [kStages, kRowBlock, kSliceStride]
    float* correction = reinterpret_cast<float*>(ring + kStages * kRowBlock * kSliceStride);
                                                           // [kRowBlock, kCorrectionStride]

    const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int tile_start = int(blockIdx.x) * kTile;
    const int warp_tile = warp % Shape::kWarpsAcrossTile * Shape::kWarpTile;
    const int warp_rows = warp / Shape::kWarpsAcrossTile * Shape::kWarpRows;
    const int row_blocks = (p.rows + kRowBlock - 1) / kRowBlock;

    // This thread's part of a block's sampling: chunk `slot % kTileChunks` of row turn · kSlots /
    // kTileChunks + slot / kTileChunks, four ids.
    const int slot = thread / kLanes;
    const int slot_id = slot % kTileChunks * FLEXDRAFT_CALIBRATED_CHUNK + 4 * (thread % kLanes);
    const int first = tile_start + slot_id;
    float bias[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) bias[j] = p.b2 != nullptr && first + j < p.vocab ? p.b2[first + j] : 0.0f;

    // What is fetched next, by counters: a division by a number that is not known takes as long as part of a product.
    int next_slice = 0, next_block = 0, next_stage = 0;
    const auto fetch = [&]() {
        if (next_block < row_blocks) {
            copy_slice<kRowBlock, kThreads>(ring + next_stage * kRowBlock * kSliceStride, kSliceStride, p.u,
                                            next_block * kRowBlock, p.rows, next_slice * kSlice, p.rank);
            if (next_block == 0) {
                copy_slice<kTile, kThreads>(weights + next_slice * kSlice, weight_stride, p.w2, tile_start, p.vocab,
                                            next_slice * kSlice, p.rank);
            }
        }
        if (++next_slice == slices) next_slice = 0, ++next_block;
        if (++next_stage == kStages) next_stage = 0;
        // Empty groups too, so that the count of groups under way is the same for every step.
        cp_async_commit();
    };
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) fetch();
    int stage = 0;

    bool has_nan = false;
    for (int block = 0; block < row_blocks; ++block) {
        float v[kTurns][4];
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int row = block * kRowBlock + (turn * kSlots + slot) / kTileChunks;
            const int source = row < p.rows ? logits_row(p, row) : -1;
            if (source >= 0 && first < p.vocab) {
                load_logits(v[turn], logits_at<L>(p, source, first));
            } else {
                v[turn][0] = v[turn][1] = v[turn][2] = v[turn][3] = -kInfinity;
            }
        }

        float d[kTileParts][2 * kRowParts][4] = {};
        for (int slice = 0; slice < slices; ++slice) {
            cp_async_wait<kStages - 2>();
            // The stage that is filled next was last read before this barrier.
            __syncthreads();
            fetch();
            const bf16* u = ring + stage * kRowBlock * kSliceStride;
            if (++stage == kStages) stage = 0;
#pragma unroll
            for (int k = 0; k < kSlice; k += 16) {
                uint32_t a[kTileParts][4], b[kRowParts][4];
#pragma unroll
                for (int i = 0; i < kTileParts; ++i) {
                    // Matrices: ids 0 to 7 and 8 to 15 at k, the same at k + 8.
                    const int id = warp_tile + 16 * i + lane % 16;
                    ldmatrix_x4(a[i], shared_address(weights + id * weight_stride + slice * kSlice + k +
                                                     8 * (lane / 16)));
                }
#pragma unroll
                for (int i = 0; i < kRowParts; ++i) {
                    // Matrices: rows 0 to 7 at k and k + 8, then rows 8 to 15.
                    const int row = warp_rows + 16 * i + lane / 16 * 8 + lane % 8;
                    ldmatrix_x4(b[i], shared_address(u + row * kSliceStride + k + lane / 8 % 2 * 8));
                }
#pragma unroll
                for (int i = 0; i < kTileParts; ++i) {
#pragma unroll
                    for (int j = 0; j < kRowParts; ++j) {
                        mma_m16n8k16(d[i][2 * j], a[i], b[j][0], b[j][1]);
                        mma_m16n8k16(d[i][2 * j + 1], a[i], b[j][2], b[j][3]);
                    }
                }
            }
        }

        // From mma's layout, ids by rows, to consecutive ids of a row. What the last block's sampling read of
        // `correction` is behind the barriers since.
#pragma unroll
        for (int i = 0; i < kTileParts; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kRowParts; ++j) {
                float* at = correction + (warp_rows + 8 * j + 2 * (lane % 4)) * kCorrectionStride + warp_tile +
                            16 * i + lane / 4;
                at[0] = d[i][j][0];
                at[kCorrectionStride] = d[i][j][1];
                at[8] = d[i][j][2];
                at[kCorrectionStride + 8] = d[i][j][3];
            }
        }
        __syncthreads();

#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int block_row = (turn * kSlots + slot) / kTileChunks;
            const int row = block * kRowBlock + block_row;
            const int source = row < p.rows ? logits_row(p, row) : -1;
            const float4 added =
                *reinterpret_cast<const float4*>(correction + block_row * kCorrectionStride + slot_id);
            const float sums[4] = {added.x, added.y, added.z, added.w};
            const L* type = nullptr;
#pragma unroll
            for (int j = 0; j < 4; ++j) v[turn][j] = rounded(v[turn][j] + (sums[j] + bias[j]), type);
            if (source >= 0 && p.store) {
                L* at = logits_at<L>(p, source, first);
                if (first + 3 < p.vocab) {
                    store_logits(at, v[turn]);
                } else {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        if (first + j < p.vocab) store_logit(at + j, v[turn][j]);
                    }
                }
            }
            float counting[1][4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const bool exists = source >= 0 && first + j < p.vocab;
                has_nan |= exists && v[turn][j] != v[turn][j];
                counting[0][j] = exists ? counted(v[turn][j]) : -kInfinity;
            }
            RowDraw draw = {};
            if (source >= 0) draw = row_draw(p, p.sampling[row]);
            const Partial partial = chunk_partial<1, kLanes>(counting, first, draw);
            const int chunk = (tile_start + slot % kTileChunks * FLEXDRAFT_CALIBRATED_CHUNK) /
                              FLEXDRAFT_CALIBRATED_CHUNK;
            if (source >= 0 && thread % kLanes == 0 && chunk < p.chunks) store_partial(p, row, chunk, partial);
        }
    }
    if (has_nan && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_NAN));
}
