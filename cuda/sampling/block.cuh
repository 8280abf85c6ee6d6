// Reductions over a CTA, in an order that depends only on the number of threads.
#pragma once

#include "../common/platform.cuh"

// Returns the values of all threads of a CTA, combined by `combine`, in every thread. `scratch` has an element per warp
// and may be reused at once.
template <int32_t Threads, typename T, typename Combine>
FLEXDRAFT_INLINE T block_reduce(T value, T* scratch, Combine combine) {
    constexpr int32_t warps = Threads / 32;
#pragma unroll
    for (int32_t offset = 16; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    T all = scratch[0];
#pragma unroll
    for (int32_t warp = 1; warp < warps; ++warp) all = combine(all, scratch[warp]);
    __syncthreads();
    return all;
}

// Returns the sum of the values of all threads of the CTA with a smaller index than this thread. `scratch` has an
// element per warp and may be reused at once.
template <int32_t Threads>
FLEXDRAFT_INLINE uint64_t block_sum_before(uint64_t value, uint64_t* scratch) {
    constexpr int32_t warps = Threads / 32;
    const int32_t lane = int32_t(threadIdx.x) % 32, warp = int32_t(threadIdx.x) / 32;
    uint64_t up_to = value;
#pragma unroll
    for (int32_t offset = 1; offset < 32; offset *= 2) {
        const uint64_t other = __shfl_up_sync(0xffffffffu, up_to, offset);
        if (lane >= offset) up_to += other;
    }
    if (lane == 31) scratch[warp] = up_to;
    __syncthreads();
    uint64_t before = up_to - value;
#pragma unroll
    for (int32_t other = 0; other < warps; ++other) before += other < warp ? scratch[other] : 0u;
    __syncthreads();
    return before;
}
