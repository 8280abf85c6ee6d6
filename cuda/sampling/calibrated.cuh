// calibrated_sample_*: the pass over logits that the calibrator corrects.
//
// logits[row] + W2 · u[row] + b2, rounded to the stored type, then the partial results of what came out.
// One CTA owns Tile ids: their part of W2 comes in once, in slices along the rank, and stays in shared memory
// while all rows of the launch pass by in blocks of RowBlock. The slices of u go through a ring of cp.async
// stages that runs on across blocks; the stages of W2 ride with the first block's. The block's logits are
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

// A thread's share of the copies of a matrix's slices into shared memory: the same 16 bytes of a slice's columns in
// every kRowStep-th row. All that depends on the thread is worked out once; a copy costs the addition of a row step, and
// the next slice the addition of a slice.
template <int Rows, int Threads>
struct SliceCopies {
    static constexpr int kPieces = kSlice / 8;        // pieces of 16 bytes of a row's part of a slice
    static constexpr int kRowStep = Threads / kPieces; // rows from one of a thread's copies to the next
    static constexpr int kCopies = Rows / kRowStep;
    static_assert(Threads % kPieces == 0 && Rows % kRowStep == 0, "every thread has whole copies");

    const uint16_t* source; // of the first copy of the next slice
    int64_t source_step;    // elements from a copy to the next
    int rows_left;          // rows that exist, counted from the first copy's
    int column;             // of the next slice, the same in all copies

    // The slices of `matrix`, whose rows have `rank` elements and end at `end_row`, from row `first_row` on.
    FLEXDRAFT_METHOD void start(const uint16_t* matrix, int first_row, int end_row, int rank) {
        const int own_row = first_row + int(threadIdx.x) / kPieces;
        column = 8 * (int(threadIdx.x) % kPieces);
        source = matrix + int64_t(own_row) * rank + column;
        source_step = int64_t(kRowStep) * rank;
        rows_left = end_row - own_row;
    }

    // Where this thread's first copy goes, in bytes from where a slice's rows of `row_bytes` bytes begin.
    static FLEXDRAFT_METHOD uint32_t place(int row_bytes) {
        return uint32_t(int(threadIdx.x) / kPieces * row_bytes + 16 * (int(threadIdx.x) % kPieces));
    }

    // Starts the copies of the next slice, `shared` being the place of the first. Rows and columns that do not exist
    // become zero: nothing is read for them, so that their addresses may be any.
    FLEXDRAFT_METHOD void copy(uint32_t shared, int row_bytes, int rank) {
        const int rows = column < rank ? rows_left : 0;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            cp_async_16(shared + uint32_t(i * kRowStep * row_bytes), source + i * source_step,
                        i * kRowStep < rows ? 16u : 0u);
        }
        source += kSlice, column += kSlice;
    }

    // After `slices` slices: back to the first of them, `rows` rows further.
    FLEXDRAFT_METHOD void next_rows(int rows, int slices, int rank) {
        source += int64_t(rows) * rank - slices * kSlice;
        column -= slices * kSlice;
        rows_left -= rows;
    }
};

template <typename L, typename Shape>
FLEXDRAFT_INLINE void calibrated_sample(const FlexdraftSample& p, unsigned char* shared) {
    constexpr int kTile = Shape::kTile, kRowBlock = Shape::kRowBlock, kStages = Shape::kStages;
    constexpr int kThreads = Shape::kThreads;
    constexpr int kTileParts = Shape::kWarpTile / 16, kRowParts = Shape::kWarpRows / 16;
    constexpr int kChunk = FLEXDRAFT_CALIBRATED_CHUNK;
    // A thread samples one chunk of one row of a block, together with as few other lanes as the block's size allows:
    // reductions across lanes then come once in kFours · 4 ids.
    constexpr int kFours = kTile * kRowBlock / kThreads / 4;
    constexpr int kLanes = kChunk / 4 / kFours;
    static_assert(kFours * 4 * kThreads == kTile * kRowBlock && kFours * 4 * kLanes == kChunk, "whole chunks");
    constexpr int kCorrectionStride = kTile + FLEXDRAFT_TILE_PADDING;
    constexpr int kRingRow = 2 * kSliceStride; // bytes
    constexpr int kRingStage = kRowBlock * kRingRow;

    const int slices = (p.rank + kSlice - 1) / kSlice;
    const int weight_row = 2 * (slices * kSlice + FLEXDRAFT_SLICE_PADDING); // bytes
    const uint32_t weights = shared_address(shared);    // bf16 [kTile, weight_row / 2]
    const uint32_t ring = weights + kTile * weight_row; // bf16 [kStages, kRowBlock, kSliceStride]
    float* const correction = reinterpret_cast<float*>(shared + kTile * weight_row + kStages * kRingStage);
                                                        // [kRowBlock, kCorrectionStride]

    const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int tile_start = int(blockIdx.x) * kTile;
    const int warp_tile = warp % Shape::kWarpsAcrossTile * Shape::kWarpTile;
    const int warp_rows = warp / Shape::kWarpsAcrossTile * Shape::kWarpRows;
    const int row_blocks = (p.rows + kRowBlock - 1) / kRowBlock;

    // This thread's row of a block, its chunk of the tile and the first of its ids; the others are 4 · kLanes apart.
    // Where two lanes share a row, eight lanes read rows that are two apart: from `correction` without a bank conflict.
    const int slot = thread / kLanes % kRowBlock;
    const int block_row = kLanes == 2 ? slot / 16 * 16 + slot % 8 * 2 + slot % 16 / 8 : slot;
    const int tile_chunk = thread / kLanes / kRowBlock;
    const int own_id = tile_chunk * kChunk + 4 * (thread % kLanes);
    const int first = tile_start + own_id;
    const int chunk = tile_start / kChunk + tile_chunk;

    // b2 in mma's layout, where it is added: ids lane / 4 and lane / 4 + 8 of each part of the warp's tile.
    float bias[kTileParts][2];
#pragma unroll
    for (int i = 0; i < kTileParts; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int id = tile_start + warp_tile + 16 * i + 8 * half + lane / 4;
            bias[i][half] = p.b2 != nullptr && id < p.vocab ? p.b2[id] : 0.0f;
        }
    }

    // What is fetched next, by counters: a division by a number that is not known takes as long as part of a product.
    SliceCopies<kRowBlock, kThreads> u_copies;
    SliceCopies<kTile, kThreads> weight_copies;
    u_copies.start(p.u, 0, p.rows, p.rank);
    weight_copies.start(p.w2, tile_start, p.vocab, p.rank);
    uint32_t weight_to = weights + weight_copies.place(weight_row);
    const uint32_t first_stage = ring + u_copies.place(kRingRow);
    uint32_t stage_to = first_stage;
    int next_slice = 0, next_block = 0;
    const auto fetch = [&]() {
        if (next_block < row_blocks) {
            u_copies.copy(stage_to, kRingRow, p.rank);
            if (next_block == 0) weight_copies.copy(weight_to, weight_row, p.rank);
        }
        weight_to += 2 * kSlice;
        stage_to += kRingStage;
        if (stage_to == first_stage + kStages * kRingStage) stage_to = first_stage;
        if (++next_slice == slices) {
            next_slice = 0, ++next_block;
            u_copies.next_rows(kRowBlock, slices, p.rank);
        }
        // Empty groups too, so that the count of groups under way is the same for every step.
        cp_async_commit();
    };
#pragma unroll 1
    for (int step = 0; step < kStages - 1; ++step) fetch();

    // ldmatrix's row of this lane. Of W2, ids 0 to 7 and 8 to 15 at k, the same at k + 8; of u, rows 0 to 7 at k and
    // k + 8, then rows 8 to 15.
    const uint32_t a_row = weights + (warp_tile + lane % 16) * weight_row + lane / 16 * 16;
    const uint32_t b_row =
        ring + (warp_rows + lane / 16 * 8 + lane % 8) * kRingRow + lane / 8 % 2 * 16;
    uint32_t stage = 0; // bytes

    bool has_nan = false;
    for (int block = 0; block < row_blocks; ++block) {
        const int row = block * kRowBlock + block_row;
        const int source = row < p.rows && chunk < p.chunks ? logits_row(p, row) : -1;
        L* const logits = logits_at<L>(p, max(source, 0), first);
        float v[kFours][4];
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
            const int id = 4 * kLanes * i;
            if (source >= 0 && first + id < p.vocab) {
                load_logits(v[i], logits + id);
            } else {
                v[i][0] = v[i][1] = v[i][2] = v[i][3] = -kInfinity;
            }
        }

        float d[kTileParts][2 * kRowParts][4] = {};
        uint32_t a_slice = a_row;
        for (int slice = 0; slice < slices; ++slice) {
            cp_async_wait<kStages - 2>();
            // The stage that is filled next was last read before this barrier.
            __syncthreads();
            fetch();
            const uint32_t b_slice = b_row + stage;
            stage += kRingStage;
            if (stage == kStages * kRingStage) stage = 0;
#pragma unroll
            for (int k = 0; k < kSlice; k += 16) {
                uint32_t a[kTileParts][4], b[kRowParts][4];
#pragma unroll
                for (int i = 0; i < kTileParts; ++i) ldmatrix_x4(a[i], a_slice + 16 * i * weight_row + 2 * k);
#pragma unroll
                for (int i = 0; i < kRowParts; ++i) ldmatrix_x4(b[i], b_slice + 16 * i * kRingRow + 2 * k);
#pragma unroll
                for (int i = 0; i < kTileParts; ++i) {
#pragma unroll
                    for (int j = 0; j < kRowParts; ++j) {
                        mma_m16n8k16(d[i][2 * j], a[i], b[j][0], b[j][1]);
                        mma_m16n8k16(d[i][2 * j + 1], a[i], b[j][2], b[j][3]);
                    }
                }
            }
            a_slice += 2 * kSlice;
        }

        // From mma's layout, ids by rows, to ids of a row, with b2. What the last block's sampling read of
        // `correction` is behind the barriers since.
#pragma unroll
        for (int i = 0; i < kTileParts; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kRowParts; ++j) {
                float* at = correction + (warp_rows + 8 * j + 2 * (lane % 4)) * kCorrectionStride + warp_tile +
                            16 * i + lane / 4;
                at[0] = d[i][j][0] + bias[i][0];
                at[kCorrectionStride] = d[i][j][1] + bias[i][0];
                at[8] = d[i][j][2] + bias[i][1];
                at[kCorrectionStride + 8] = d[i][j][3] + bias[i][1];
            }
        }
        __syncthreads();

        bool row_has_nan = false;
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
            const int id = 4 * kLanes * i;
            const float4 added =
                *reinterpret_cast<const float4*>(correction + block_row * kCorrectionStride + own_id + id);
            const float sums[4] = {added.x, added.y, added.z, added.w};
            const L* type = nullptr;
#pragma unroll
            for (int j = 0; j < 4; ++j) v[i][j] = rounded(v[i][j] + sums[j], type);
            if (first + id + 3 < p.vocab) {
                if (source >= 0 && p.store) store_logits(logits + id, v[i]);
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (first + id + j >= p.vocab) {
                        v[i][j] = -kInfinity;
                    } else if (source >= 0 && p.store) {
                        store_logit(logits + id + j, v[i][j]);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                row_has_nan |= v[i][j] != v[i][j];
                v[i][j] = counted(v[i][j]);
            }
        }
        has_nan |= row_has_nan && source >= 0;
        RowDraw draw = {};
        if (source >= 0) draw = row_draw(p, p.sampling[row]);
        const Partial partial = chunk_partial<kFours, kLanes>(v, first, draw);
        if (source >= 0 && thread % kLanes == 0) store_partial(p, row, chunk, partial);
    }
    if (has_nan && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_NAN));
}
