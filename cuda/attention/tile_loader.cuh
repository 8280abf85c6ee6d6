// The tile loader of joint_attention: asynchronous copies of Q, K and V into shared memory.
#pragma once

#include "joint_cta.cuh"

// Starts the copies of the block's rows of Q; rows that do not belong to the work item become zeros.
template <typename Shape>
FLEXDRAFT_INLINE void load_q(const JointCta<Shape>& cta) {
    const FlexdraftAttentionParams& p = cta.p;
    const int32_t chunk = int32_t(threadIdx.x) % Shape::row_chunks;
#pragma unroll 1
    for (int32_t m = int32_t(threadIdx.x) / Shape::row_chunks; m < Shape::rows;
         m += Shape::threads / Shape::row_chunks) {
        const int32_t index = cta.shared.row_index[m];
        const uint16_t* from = p.q;
        if (index >= 0) {
            const int64_t head = cta.head_row_of(m) - int64_t(index) * p.q_heads;
            from += index * p.q_stride + head * Shape::head_dim + chunk * 8;
        }
        cp_async_16(cta.shared_q + swizzled<Shape::head_dim>(m, chunk), from, index >= 0 ? 16 : 0);
    }
}

// Returns the page from which this thread's warp copies its keys of the tile that begins at key `first`; 0 if these are
// not cached keys of the range.
template <typename Shape>
FLEXDRAFT_INLINE int32_t page_of(const JointCta<Shape>& cta, const KeyRange& keys, int32_t first) {
    const FlexdraftPagedKv& cache = cta.p.cache;
    const int32_t position = first + cta.compiler_barrier(cta.warp) * Shape::warp_keys;
    if (keys.group_row >= 0 || position >= keys.end) return 0;
    return cache.page_table[cta.shared.item.sequence * cache.page_table_stride + (position >> cta.page_shift)];
}

// Starts the copies of K and V of the keys from `first` to `first` + 63 into a stage of the ring; this thread's warp
// copies its keys from `page`. Keys beyond the end of the range become zeros, and so do keys of a page that the cache
// does not have.
template <typename Shape>
FLEXDRAFT_INLINE void load_tile(const JointCta<Shape>& cta, const KeyRange& keys, int32_t first, int32_t page,
                                int32_t stage) {
    const FlexdraftAttentionParams& p = cta.p;
    const FlexdraftPagedKv& cache = p.cache;
    // The values that follow from `lane` and `at_once` are computed again for every tile, because keeping them would
    // take registers.
    const int32_t lane = cta.compiler_barrier(cta.lane), at_once = cta.compiler_barrier(Shape::keys_at_once);
    const int32_t key = cta.compiler_barrier(cta.warp) * Shape::warp_keys + lane / Shape::row_chunks;
    const int32_t chunk = lane % Shape::row_chunks;
    const int32_t position = first + key;
    int32_t end = keys.end;
    const int32_t kv_head = cta.shared.item.kv_head;
    const uint16_t *k, *v;
    int64_t k_step, v_step;
    if (keys.group_row >= 0) {
        const int64_t offset =
            (keys.group_row + position) * p.mask_stride + int64_t(kv_head) * Shape::head_dim + chunk * 8;
        k = p.mask_k + offset;
        v = p.mask_v + offset;
        k_step = v_step = at_once * p.mask_stride;
    } else {
        if (page < 0 || page >= cache.pages) {
            if (position < end && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PAGE));
            page = end = 0;
        }
        const int64_t token = position & (cache.page_size - 1);
        k = static_cast<const uint16_t*>(cache.k) + page * cache.k_page_stride + token * cache.k_token_stride +
            kv_head * cache.k_head_stride + chunk * 8;
        v = static_cast<const uint16_t*>(cache.v) + page * cache.v_page_stride + token * cache.v_token_stride +
            kv_head * cache.v_head_stride + chunk * 8;
        k_step = at_once * cache.k_token_stride;
        v_step = at_once * cache.v_token_stride;
    }
    const uint32_t to = cta.shared_kv + uint32_t(stage * 2 * Shape::tile_bytes) + swizzled<Shape::head_dim>(key, chunk);
#pragma unroll
    for (int32_t i = 0; i < Shape::warp_keys; i += Shape::keys_at_once) {
        const uint32_t bytes = position + i < end ? 16 : 0;
        const uint32_t at = swizzled_step(to, i % 8) + uint32_t(i * Shape::head_dim * 2);
        cp_async_16(at, k, bytes);
        cp_async_16(at + Shape::tile_bytes, v, bytes);
        k += k_step;
        v += v_step;
    }
}
