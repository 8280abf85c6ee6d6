// RMSNorm and the addition to the residual stream.
//
// Registers per thread:
//
//   kernel                    sm_80   sm_90a
//   rms_norm                     99      102
//   rms_norm_f16                 98      102
//   add                          24       24
//   add_f16                      24       24
#include "../common/vectors.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "params.h"

namespace {

constexpr int32_t norm_threads = FLEXDRAFT_NORM_THREADS;
constexpr int32_t norm_warps = norm_threads / 32;
constexpr int32_t norm_held = 4; // chunks of a row that a thread keeps, with their weights
static_assert(FLEXDRAFT_NORM_SHARED == norm_warps * sizeof(float), "what the launch asks for");

// The weights of a chunk of eight elements.
struct ChunkWeights {
    float4 low, high;
};

FLEXDRAFT_INLINE ChunkWeights load_weights(const float* weight, int64_t c) {
    const float4* const at = reinterpret_cast<const float4*>(weight) + 2 * c;
    return {at[0], at[1]};
}

// The grid is [rows]: one CTA normalises one row. All loads of a thread are in flight together, for rows up to
// `norm_held` chunks per thread (8192 columns); the rest of a longer row is read a second time.
template <typename Element>
FLEXDRAFT_INLINE void rms_norm_of(const FlexdraftRmsNormParams& p) {
    FLEXDRAFT_SHARED(shared);
    auto* const partial = reinterpret_cast<float*>(shared); // [norm_warps]
    const int64_t first = int64_t(blockIdx.x) * p.cols;
    const int64_t end = p.cols / 8;
    uint4* const x = chunks(p.x + first);
    const uint4* const deltas = p.delta != nullptr ? chunks(p.delta + first) : nullptr;
    ChunkWeights weights[norm_held] = {};
#pragma unroll
    for (int32_t i = 0; i < norm_held; ++i) {
        const int64_t c = i * norm_threads + threadIdx.x;
        if (c < end) weights[i] = load_weights(p.weight, c);
    }
    wait_for_earlier_launches();
    uint4 held[norm_held];
    float sum = 0.0f;
    for (int64_t block = 0; block < end; block += norm_held * norm_threads) {
        uint4 values[norm_held], delta[norm_held];
#pragma unroll
        for (int32_t i = 0; i < norm_held; ++i) {
            const int64_t c = block + i * norm_threads + threadIdx.x;
            values[i] = delta[i] = make_uint4(0, 0, 0, 0);
            if (c < end) {
                values[i] = x[c];
                if (deltas != nullptr) delta[i] = deltas[c];
            }
        }
#pragma unroll
        for (int32_t i = 0; i < norm_held; ++i) {
            const int64_t c = block + i * norm_threads + threadIdx.x;
            if (c >= end) continue;
            Eight exact = unpack<Element>(values[i]);
            if (deltas != nullptr) {
                const Eight more = unpack<Element>(delta[i]);
#pragma unroll
                for (int32_t j = 0; j < 8; ++j) exact.x[j] += more.x[j];
                values[i] = x[c] = pack<Element>(exact);
                exact = unpack<Element>(values[i]);
            }
#pragma unroll
            for (int32_t j = 0; j < 8; ++j) sum = fmaf(exact.x[j], exact.x[j], sum);
            if (block == 0) held[i] = values[i];
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int32_t w = 0; w < norm_warps; ++w) total += partial[w];
    const float scale = 1.0f / sqrtf(total / float(p.cols) + p.eps);
    const auto norm = [&](uint4 value, const ChunkWeights& weight, int64_t c) {
        Eight values = unpack<Element>(value);
        const float factors[8] = {weight.low.x,  weight.low.y,  weight.low.z,  weight.low.w,
                                  weight.high.x, weight.high.y, weight.high.z, weight.high.w};
#pragma unroll
        for (int32_t j = 0; j < 8; ++j) values.x[j] = values.x[j] * scale * factors[j];
        chunks(p.out + first)[c] = pack<Element>(values);
    };
#pragma unroll
    for (int32_t i = 0; i < norm_held; ++i) {
        const int64_t c = i * norm_threads + threadIdx.x;
        if (c < end) norm(held[i], weights[i], c);
    }
    // No barrier is needed, because this thread itself wrote the chunks that it now reads.
    for (int64_t c = norm_held * norm_threads + threadIdx.x; c < end; c += norm_threads) {
        norm(x[c], load_weights(p.weight, c), c);
    }
}

// The grid is [chunks / row_threads]: one thread adds one chunk of eight elements.
template <typename Element>
FLEXDRAFT_INLINE void add_of(const FlexdraftAddParams& p) {
    const int64_t c = int64_t(blockIdx.x) * row_threads + threadIdx.x;
    wait_for_earlier_launches();
    if (c >= p.chunks) return;
    Eight values = unpack<Element>(chunks(p.x)[c]);
    const Eight delta = unpack<Element>(chunks(p.delta)[c]);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) values.x[i] += delta.x[i];
    chunks(p.x)[c] = pack<Element>(values);
}

} // namespace

FLEXDRAFT_KERNEL(rms_norm, FlexdraftRmsNormParams, norm_threads, 2) { rms_norm_of<bf16>(p); }
FLEXDRAFT_KERNEL(rms_norm_f16, FlexdraftRmsNormParams, norm_threads, 2) { rms_norm_of<f16>(p); }
FLEXDRAFT_KERNEL(add, FlexdraftAddParams, row_threads, 4) { add_of<bf16>(p); }
FLEXDRAFT_KERNEL(add_f16, FlexdraftAddParams, row_threads, 4) { add_of<f16>(p); }

FLEXDRAFT_KERNEL_TABLE(norm, rms_norm, add, rms_norm_f16, add_f16)
