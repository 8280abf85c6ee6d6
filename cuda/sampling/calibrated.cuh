// calibrated_sample_*: the pass over the logits of draft rows, which corrects them by the calibrator.
//
// Computes logits[row] + W2 · u[row] + b2, rounded to the stored type, and the partial results of these logits. W2
// [vocab, rank] and b2 [vocab] are the calibrator's last layer, u [rows, rank] is its hidden layer. `L` is the type of
// the logits, and `Element` the type of W2 and u.
//
// One CTA owns `Tile` ids. The rows of W2 for these ids are copied to shared memory once, in slices along the rank, and
// stay there while all rows of the launch are computed in blocks of `RowBlock`. The slices of u go through a ring of
// cp.async stages that does not stop between blocks; the slices of W2 are copied with those for the first block, and
// the first of them already in the prologue (ptx/griddepcontrol.cuh), because no kernel writes W2. The logits of a
// block are loaded into registers before its matrix product, so they arrive while the product is computed.
//
// Each element of W2 · u is one chain of sums along the rank, so a row has the same bits in any tile, block or batch.
#pragma once

#include "../common/shapes.h"
#include "../ptx/cp_async.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "../ptx/ldmatrix.cuh"
#include "partials.cuh"

// The shape of calibrated_sample_*, whose warps are laid out [WarpsAcrossTile, WarpsAcrossRows]. A warp has a multiple
// of 16 ids and of 16 rows.
template <int32_t Tile, int32_t RowBlock, int32_t WarpsAcrossTile, int32_t WarpsAcrossRows, int32_t Stages>
struct CalibratedShape {
    static constexpr int32_t tile_ids = Tile;
    static constexpr int32_t row_block = RowBlock;
    static constexpr int32_t warps_across_tile = WarpsAcrossTile;
    static constexpr int32_t warps_across_rows = WarpsAcrossRows;
    static constexpr int32_t stages = Stages;
    static constexpr int32_t threads = 32 * warps_across_tile * warps_across_rows;
    static constexpr int32_t warp_tile_ids = tile_ids / warps_across_tile;
    static constexpr int32_t warp_row_count = row_block / warps_across_rows;
    static_assert(tile_ids % FLEXDRAFT_CALIBRATED_CHUNK == 0 && warp_tile_ids % 16 == 0 && warp_row_count % 16 == 0,
                  "");
};

constexpr int32_t slice_size = FLEXDRAFT_SLICE; // elements of the rank in a stage
constexpr int32_t slice_stride = slice_size + FLEXDRAFT_SLICE_PADDING;

// A thread's share in copying the slices of a matrix to shared memory: the same 16 bytes of a slice's columns in every
// row_step-th row. Everything that depends on the thread is computed once. Going to the next copy costs the addition of
// a row step, and going to the next slice the addition of a slice.
template <int32_t Rows, int32_t Threads>
struct SliceCopies {
    static constexpr int32_t pieces = slice_size / 8;     // pieces of 16 bytes of a row's part of a slice
    static constexpr int32_t row_step = Threads / pieces; // rows from one of a thread's copies to the next
    static constexpr int32_t copies = Rows / row_step;
    static_assert(Threads % pieces == 0 && Rows % row_step == 0, "every thread has whole copies");

    const uint16_t* source; // source of the first copy of the next slice
    int64_t source_step;    // elements from one copy to the next
    int32_t rows_left;      // rows of the matrix from the first copy's row on
    int32_t column;         // column of the copies of the next slice

    // Starts this thread's copies at row `first_row` of `matrix`, which has `end_row` rows of `rank` elements.
    FLEXDRAFT_METHOD void start(const uint16_t* matrix, int32_t first_row, int32_t end_row, int32_t rank) {
        const int32_t own_row = first_row + int32_t(threadIdx.x) / pieces;
        column = 8 * (int32_t(threadIdx.x) % pieces);
        source = matrix + int64_t(own_row) * rank + column;
        source_step = int64_t(row_step) * rank;
        rows_left = end_row - own_row;
    }

    // Returns the destination of this thread's first copy, in bytes from the beginning of a slice with rows of
    // `row_bytes` bytes.
    static FLEXDRAFT_METHOD uint32_t place(int32_t row_bytes) {
        return uint32_t(int32_t(threadIdx.x) / pieces * row_bytes + 16 * (int32_t(threadIdx.x) % pieces));
    }

    // Starts the copies of the next slice; `shared` is the destination of the first copy. Rows and columns beyond the
    // matrix become zero. Nothing is read for them, so their addresses may be arbitrary.
    FLEXDRAFT_METHOD void copy(uint32_t shared, int32_t row_bytes, int32_t rank) {
        const int32_t rows = column < rank ? rows_left : 0;
#pragma unroll
        for (int32_t i = 0; i < copies; ++i) {
            cp_async_16(shared + uint32_t(i * row_step * row_bytes), source + i * source_step,
                        i * row_step < rows ? 16u : 0u);
        }
        source += slice_size, column += slice_size;
    }

    // Goes back from the end of a row, after `slices` slices, to the first slice of the row that is `rows` rows further
    // down.
    FLEXDRAFT_METHOD void next_rows(int32_t rows, int32_t slices, int32_t rank) {
        source += int64_t(rows) * rank - slices * slice_size;
        column -= slices * slice_size;
        rows_left -= rows;
    }
};

template <typename L, typename Element, typename Shape>
FLEXDRAFT_INLINE void calibrated_sample(const FlexdraftSampleParams& p, unsigned char* shared) {
    constexpr int32_t tile_ids = Shape::tile_ids, row_block = Shape::row_block, stages = Shape::stages;
    constexpr int32_t threads = Shape::threads;
    constexpr int32_t tile_parts = Shape::warp_tile_ids / 16, row_parts = Shape::warp_row_count / 16;
    constexpr int32_t chunk_ids = FLEXDRAFT_CALIBRATED_CHUNK;
    // Few lanes share a chunk of a row, so that a lane has fours · 4 vocabulary ids and reductions across lanes are
    // rare.
    constexpr int32_t fours = tile_ids * row_block / threads / 4;
    constexpr int32_t chunk_lanes = chunk_ids / 4 / fours;
    static_assert(fours * 4 * threads == tile_ids * row_block && fours * 4 * chunk_lanes == chunk_ids, "whole chunks");
    constexpr int32_t correction_stride = tile_ids + FLEXDRAFT_TILE_PADDING;
    constexpr int32_t ring_row_bytes = 2 * slice_stride; // bytes
    constexpr int32_t ring_stage_bytes = row_block * ring_row_bytes;

    const int32_t slices = (p.rank + slice_size - 1) / slice_size;
    const int32_t weight_row = 2 * (slices * slice_size + FLEXDRAFT_SLICE_PADDING); // bytes
    const uint32_t weights = shared_address(shared);                                // [tile_ids, weight_row / 2]
    const uint32_t ring = weights + tile_ids * weight_row;                          // [stages, row_block, slice_stride]
    float* const correction = reinterpret_cast<float*>(shared + tile_ids * weight_row + stages * ring_stage_bytes);
    // The corrections W2 · u + b2 of a block of rows, [row_block, correction_stride].

    const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int32_t tile_start = int32_t(blockIdx.x) * tile_ids;
    const int32_t warp_tile = warp % Shape::warps_across_tile * Shape::warp_tile_ids;
    const int32_t warp_rows = warp / Shape::warps_across_tile * Shape::warp_row_count;
    const int32_t row_blocks = (p.rows + row_block - 1) / row_block;

    // This thread's row of a block of rows, its chunk of the tile of vocabulary ids, and the first of its ids; its
    // other ids are 4 · chunk_lanes apart. If two lanes share a row, eight lanes read rows of `correction` that are two
    // apart, without a bank conflict.
    const int32_t slot = thread / chunk_lanes % row_block;
    const int32_t block_row = chunk_lanes == 2 ? slot / 16 * 16 + slot % 8 * 2 + slot % 16 / 8 : slot;
    const int32_t tile_chunk = thread / chunk_lanes / row_block;
    const int32_t own_id = tile_chunk * chunk_ids + 4 * (thread % chunk_lanes);
    const int32_t first = tile_start + own_id;
    const int32_t chunk = tile_start / chunk_ids + tile_chunk;

    // The bias b2 in the layout of mma's results: ids lane / 4 and lane / 4 + 8 of each part of the warp's tile.
    float bias[tile_parts][2];
#pragma unroll
    for (int32_t i = 0; i < tile_parts; ++i) {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
            const int32_t id = tile_start + warp_tile + 16 * i + 8 * half + lane / 4;
            bias[i][half] = p.b2 != nullptr && id < p.vocab ? p.b2[id] : 0.0f;
        }
    }

    // Counters say which slice is fetched next, because a division by a number that is unknown at compile time is slow
    // compared with the matrix product.
    SliceCopies<row_block, threads> u_copies;
    SliceCopies<tile_ids, threads> weight_copies;
    u_copies.start(p.u, 0, p.rows, p.rank);
    weight_copies.start(p.w2, tile_start, p.vocab, p.rank);
    uint32_t weight_to = weights + weight_copies.place(weight_row);
    const uint32_t first_stage = ring + u_copies.place(ring_row_bytes);
    uint32_t stage_to = first_stage;
    int32_t weight_slices_left = slices;
    const auto fetch_weights = [&]() {
        if (weight_slices_left > 0) weight_copies.copy(weight_to, weight_row, p.rank);
        weight_to += 2 * slice_size;
        --weight_slices_left;
    };
#pragma unroll 1
    for (int32_t step = 0; step < stages - 1; ++step) fetch_weights();
    wait_for_earlier_launches();
    int32_t next_slice = 0, next_block = 0;
    const auto fetch = [&](bool with_weights) {
        if (next_block < row_blocks) u_copies.copy(stage_to, ring_row_bytes, p.rank);
        if (with_weights) fetch_weights();
        stage_to += ring_stage_bytes;
        if (stage_to == first_stage + stages * ring_stage_bytes) stage_to = first_stage;
        if (++next_slice == slices) {
            next_slice = 0, ++next_block;
            u_copies.next_rows(row_block, slices, p.rank);
        }
        // A group of copies is committed even if it is empty, so that the number of groups in flight is the same in
        // every step.
        cp_async_commit();
    };
#pragma unroll 1
    for (int32_t step = 0; step < stages - 1; ++step) fetch(false);

    // The row of a matrix in shared memory whose address this lane passes to ldmatrix. For W2: ids 0 to 7 and 8 to 15
    // at column k, then the same ids at k + 8. For u: rows 0 to 7 at k and at k + 8, then rows 8 to 15.
    const uint32_t a_row = weights + (warp_tile + lane % 16) * weight_row + lane / 16 * 16;
    const uint32_t b_row = ring + (warp_rows + lane / 16 * 8 + lane % 8) * ring_row_bytes + lane / 8 % 2 * 16;
    uint32_t stage = 0; // bytes

    bool has_nan = false;
    for (int32_t block = 0; block < row_blocks; ++block) {
        const int32_t row = block * row_block + block_row;
        const int32_t source = row < p.rows && chunk < p.chunks ? logits_row(p, row) : -1;
        L* const logits = logits_at<L>(p, max(source, 0), first);
        float v[fours][4];
#pragma unroll
        for (int32_t i = 0; i < fours; ++i) {
            const int32_t id = 4 * chunk_lanes * i;
            if (source >= 0 && first + id < p.vocab) {
                load_logits(v[i], logits + id);
            } else {
                v[i][0] = v[i][1] = v[i][2] = v[i][3] = -infinity;
            }
        }

        float d[tile_parts][2 * row_parts][4] = {};
        uint32_t a_slice = a_row;
        for (int32_t slice = 0; slice < slices; ++slice) {
            cp_async_wait<stages - 2>();
            // Before this barrier, all threads have read the stage of the ring that is filled next.
            __syncthreads();
            fetch(true);
            const uint32_t b_slice = b_row + stage;
            stage += ring_stage_bytes;
            if (stage == stages * ring_stage_bytes) stage = 0;
#pragma unroll
            for (int32_t k = 0; k < slice_size; k += 16) {
                uint32_t a[tile_parts][4], b[row_parts][4];
#pragma unroll
                for (int32_t i = 0; i < tile_parts; ++i) ldmatrix_x4(a[i], a_slice + 16 * i * weight_row + 2 * k);
#pragma unroll
                for (int32_t i = 0; i < row_parts; ++i) ldmatrix_x4(b[i], b_slice + 16 * i * ring_row_bytes + 2 * k);
#pragma unroll
                for (int32_t i = 0; i < tile_parts; ++i) {
#pragma unroll
                    for (int32_t j = 0; j < row_parts; ++j) {
                        Element::mma(d[i][2 * j], a[i], b[j][0], b[j][1]);
                        Element::mma(d[i][2 * j + 1], a[i], b[j][2], b[j][3]);
                    }
                }
            }
            a_slice += 2 * slice_size;
        }

        // Stores the corrections W2 · u + b2 from mma's layout (ids by rows) to rows of ids. All threads have read the
        // last block from `correction` before the barriers of this block's slices.
#pragma unroll
        for (int32_t i = 0; i < tile_parts; ++i) {
#pragma unroll
            for (int32_t j = 0; j < 2 * row_parts; ++j) {
                float* at = correction + (warp_rows + 8 * j + 2 * (lane % 4)) * correction_stride + warp_tile + 16 * i +
                            lane / 4;
                at[0] = d[i][j][0] + bias[i][0];
                at[correction_stride] = d[i][j][1] + bias[i][0];
                at[8] = d[i][j][2] + bias[i][1];
                at[correction_stride + 8] = d[i][j][3] + bias[i][1];
            }
        }
        __syncthreads();

        bool row_has_nan = false;
#pragma unroll
        for (int32_t i = 0; i < fours; ++i) {
            const int32_t id = 4 * chunk_lanes * i;
            const float4 added =
                *reinterpret_cast<const float4*>(correction + block_row * correction_stride + own_id + id);
            const float sums[4] = {added.x, added.y, added.z, added.w};
            const L* type = nullptr;
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) v[i][j] = rounded(v[i][j] + sums[j], type);
            if (first + id + 3 < p.vocab) {
                if (source >= 0 && p.store) store_logits(logits + id, v[i]);
            } else {
#pragma unroll
                for (int32_t j = 0; j < 4; ++j) {
                    if (first + id + j >= p.vocab) {
                        v[i][j] = -infinity;
                    } else if (source >= 0 && p.store) {
                        store_logit(logits + id + j, v[i][j]);
                    }
                }
            }
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                row_has_nan |= v[i][j] != v[i][j];
                v[i][j] = counted(v[i][j]);
            }
        }
        has_nan |= row_has_nan && source >= 0;
        RowDraw draw = {};
        if (source >= 0) draw = row_draw(p, p.sampling[row]);
        const Partial partial = chunk_partial<fours, chunk_lanes>(v, first, draw);
        // One lane per chunk stores; the chunk's lanes follow it.
        const uint32_t chunk_nans = __ballot_sync(0xffffffffu, row_has_nan) >> lane & ((1u << chunk_lanes) - 1u);
        if (source >= 0 && thread % chunk_lanes == 0) store_partial(p, row, chunk, partial, chunk_nans != 0u);
    }
    if (has_nan && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_NAN));
}
