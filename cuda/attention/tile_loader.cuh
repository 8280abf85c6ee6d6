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
            const int32_t mask = index - p.candidates;
            from = mask < 0 ? p.q + index * p.q_stride : p.mask_q + mask * p.mask_q_stride;
            from += head * Shape::head_dim + chunk * 8;
        }
        cp_async_16(cta.shared_q + swizzled<Shape::head_dim>(m, chunk), from, index >= 0 ? 16 : 0);
    }
}

// Returns the page from which this thread's warp copies its keys of the tile that begins at key `first`; with small pages,
// the page of the warp's key lane % warp_keys. Returns 0 if the range has no cached key of this number.
template <typename Shape>
FLEXDRAFT_INLINE int32_t page_of(const JointCta<Shape>& cta, const KeyRange& keys, int32_t first) {
    const FlexdraftPagedKv& cache = cta.p.cache;
    int32_t position = first + cta.compiler_barrier(cta.warp) * Shape::warp_keys, count = Shape::warp_keys;
    if (cta.has_small_pages()) {
        position += cta.compiler_barrier(cta.lane) % Shape::warp_keys;
        count = 1;
    }
    if (keys.group_row >= 0 || position >= keys.end || position + count <= cta.begin_of(keys)) return 0;
    return cache.page_table[cta.shared.item.sequence * cache.page_table_stride + cta.page_place(position)];
}

// Starts the copies of load_tile for cached keys in small pages. `page` is the page of the warp's key lane % warp_keys.
template <typename Shape>
FLEXDRAFT_INLINE void load_tokens(const JointCta<Shape>& cta, const KeyRange& keys, int32_t first, int32_t page,
                                  int32_t stage) {
    const FlexdraftAttentionParams& p = cta.p;
    const FlexdraftPagedKv& cache = p.cache;
    const int32_t chunk = cta.lane % Shape::row_chunks, kv_head = cta.shared.item.kv_head;
    const uint32_t stage_at = cta.shared_kv + uint32_t(stage * 2 * Shape::tile_bytes);
#pragma unroll 1
    for (int32_t i = cta.lane / Shape::row_chunks; i < Shape::warp_keys; i += Shape::keys_at_once) {
        const int32_t key = cta.warp * Shape::warp_keys + i, position = first + key;
        int32_t own_page = __shfl_sync(0xffffffffu, page, i);
        bool seen = position >= cta.begin_of(keys) && position < keys.end;
        if (own_page < 0 || own_page >= cache.pages) {
            if (seen && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PAGE));
            own_page = 0;
            seen = false;
        }
        const int64_t token = position - cta.page_place(position) * cache.page_size;
        const uint32_t at = stage_at + swizzled<Shape::head_dim>(key, chunk);
        cp_async_16(at,
                    static_cast<const uint16_t*>(cache.k) + own_page * cache.k_page_stride +
                        token * cache.k_token_stride + kv_head * cache.k_head_stride + chunk * 8,
                    seen ? 16 : 0);
        cp_async_16(at + Shape::tile_bytes,
                    static_cast<const uint16_t*>(cache.v) + own_page * cache.v_page_stride +
                        token * cache.v_token_stride + kv_head * cache.v_head_stride + chunk * 8,
                    seen ? 16 : 0);
    }
}

// Starts the copies of K and V of the keys from `first` to `first` + 63 into a stage of the ring; this thread's warp
// copies its keys from `page`. Keys before the begin and beyond the end of the range become zeros, and so do keys of a page
// that the cache does not have.
template <typename Shape>
FLEXDRAFT_INLINE void load_tile(const JointCta<Shape>& cta, const KeyRange& keys, int32_t first, int32_t page,
                                int32_t stage) {
    const FlexdraftAttentionParams& p = cta.p;
    const FlexdraftPagedKv& cache = p.cache;
    if (cta.has_small_pages() && keys.group_row < 0) {
        load_tokens(cta, keys, first, page, stage);
        return;
    }
    // The values that follow from `lane` and `at_once` are computed again for every tile, because keeping them would
    // take registers.
    const int32_t lane = cta.compiler_barrier(cta.lane), at_once = cta.compiler_barrier(Shape::keys_at_once);
    const int32_t key = cta.compiler_barrier(cta.warp) * Shape::warp_keys + lane / Shape::row_chunks;
    const int32_t chunk = lane % Shape::row_chunks;
    const int32_t position = first + key;
    const int32_t begin = cta.begin_of(keys);
    uint32_t count = uint32_t(keys.end - begin);
    const int32_t kv_head = cta.shared.item.kv_head;
    const uint16_t *k, *v;
    int64_t k_step, v_step;
    if (keys.group_row >= 0) {
        const int32_t row = keys.group_row + position, column = kv_head * Shape::head_dim + chunk * 8;
        k = p.mask_k + row * p.mask_k_stride + column;
        v = p.mask_v + row * p.mask_v_stride + column;
        k_step = at_once * p.mask_k_stride;
        v_step = at_once * p.mask_v_stride;
    } else {
        if (page < 0 || page >= cache.pages) {
            if (position < keys.end && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PAGE));
            page = 0;
            count = 0;
        }
        const int64_t token = position - cta.page_place(position) * cache.page_size;
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
        const uint32_t bytes = uint32_t(position + i - begin) < count ? 16 : 0;
        const uint32_t at = swizzled_step(to, i % 8) + uint32_t(i * Shape::head_dim * 2);
        cp_async_16(at, k, bytes);
        cp_async_16(at + Shape::tile_bytes, v, bytes);
        k += k_step;
        v += v_step;
    }
}
