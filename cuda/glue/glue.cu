// The kernels around the matrix products of a decode step: embedding, gathering, norms, activations, rotation and
// append to the cache. Each reads and writes its rows once, and a row's result does not depend on other rows. The
// grid's x dimension covers the rows, one CTA per row, except for `add`, which covers 16-byte chunks.
#include "../common/rows.cuh"
#include "../common/shapes.h"
#include "../common/trigonometry.cuh"
#include "params.h"
#include "vectors.cuh"

namespace {

constexpr int32_t row_threads = FLEXDRAFT_ROW_THREADS;
constexpr int32_t row_warps = row_threads / 32;
constexpr int32_t norm_threads = FLEXDRAFT_NORM_THREADS;
constexpr int32_t norm_warps = norm_threads / 32;
constexpr int32_t norm_held = 4; // chunks of a row that a thread keeps
static_assert(FLEXDRAFT_NORM_SHARED == norm_warps * sizeof(float), "what the launch asks for");

// Copies a row from `from` to `out`, or writes zeros if `from` is null.
FLEXDRAFT_INLINE void copy_row(const uint16_t* from, uint16_t* out, int64_t cols) {
    for (int64_t c = threadIdx.x; c < cols / 8; c += row_threads) {
        chunks(out)[c] = from != nullptr ? chunks(from)[c] : make_uint4(0, 0, 0, 0);
    }
}

// Returns whether `index` is one of `rows` rows. Indices are in device memory, so the host cannot check them; an index
// that is neither a row nor -1 is reported in `error`.
FLEXDRAFT_INLINE bool row_exists(int32_t index, int32_t rows, uint32_t* error) {
    const bool exists = index >= 0 && index < rows;
    if (!exists && index != -1 && threadIdx.x == 0 && error != nullptr) {
        atomicOr(error, uint32_t(FLEXDRAFT_ERROR_ROW));
    }
    return exists;
}

// Returns the cosine and sine of `angle` >= 0. Whole turns are subtracted in f64, which is accurate at any position and
// avoids the slow path of sincosf.
FLEXDRAFT_INLINE float2 cos_sin(float angle) {
    const double turns = double(angle) * 0.15915494309189533577; // 1 / (2 pi)
    const float half_turns = float(2.0 * (turns - rint(turns)));
    return make_float2(cos_pi(half_turns), sin_pi(half_turns));
}

} // namespace

FLEXDRAFT_KERNEL(embed, FlexdraftEmbedParams, row_threads, 4) {
    const int64_t row = blockIdx.x;
    const int32_t id = __ldg(p.ids + row);
    const bool valid = id >= 0 && id < p.vocab;
    if (!valid && threadIdx.x == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_TOKEN));
    copy_row(valid ? p.table + id * p.cols : nullptr, p.out + row * p.cols, p.cols);
}

FLEXDRAFT_KERNEL(gather, FlexdraftGatherParams, row_threads, 4) {
    const int64_t row = blockIdx.x;
    const int32_t index = __ldg(p.indices + row);
    const bool valid = row_exists(index, p.x_rows, p.error);
    copy_row(valid ? p.x + index * p.cols : nullptr, p.out + row * p.cols, p.cols);
}

// One CTA per row. All loads of a thread are in flight together, for rows up to `norm_held` chunks per thread (8192
// columns); the rest of a longer row is read a second time.
FLEXDRAFT_KERNEL(rms_norm, FlexdraftRmsNormParams, norm_threads, 2) {
    FLEXDRAFT_SHARED(shared);
    auto* const partial = reinterpret_cast<float*>(shared); // [norm_warps]
    const int64_t first = int64_t(blockIdx.x) * p.cols;
    const int64_t end = p.cols / 8;
    uint4* const x = chunks(p.x + first);
    const uint4* const deltas = p.delta != nullptr ? chunks(p.delta + first) : nullptr;
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
            Eight exact = unpack(values[i]);
            if (deltas != nullptr) {
                const Eight more = unpack(delta[i]);
#pragma unroll
                for (int32_t j = 0; j < 8; ++j) exact.x[j] += more.x[j];
                values[i] = x[c] = pack(exact);
                exact = unpack(values[i]);
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
    const auto norm = [&](uint4 value, int64_t c) {
        Eight values = unpack(value);
        const float4 low = __ldg(reinterpret_cast<const float4*>(p.weight) + 2 * c);
        const float4 high = __ldg(reinterpret_cast<const float4*>(p.weight) + 2 * c + 1);
        const float weights[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int32_t j = 0; j < 8; ++j) values.x[j] = values.x[j] * scale * weights[j];
        chunks(p.out + first)[c] = pack(values);
    };
#pragma unroll
    for (int32_t i = 0; i < norm_held; ++i) {
        const int64_t c = i * norm_threads + threadIdx.x;
        if (c < end) norm(held[i], c);
    }
    // This thread wrote these chunks above.
    for (int64_t c = norm_held * norm_threads + threadIdx.x; c < end; c += norm_threads) norm(x[c], c);
}

FLEXDRAFT_KERNEL(add, FlexdraftAddParams, row_threads, 4) {
    const int64_t c = int64_t(blockIdx.x) * row_threads + threadIdx.x;
    if (c >= p.chunks) return;
    Eight values = unpack(chunks(p.x)[c]);
    const Eight delta = unpack(chunks(p.delta)[c]);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) values.x[i] += delta.x[i];
    chunks(p.x)[c] = pack(values);
}

// Grid [rows, chunks of a row / row_threads]: a decode step has few rows with many columns.
FLEXDRAFT_KERNEL(silu_mul, FlexdraftSiluMulParams, row_threads, 4) {
    const int64_t row = blockIdx.x, c = int64_t(blockIdx.y) * row_threads + threadIdx.x;
    if (c >= p.cols / 8) return;
    const uint16_t* const x = p.x + row * 2 * p.cols;
    const Eight gate = unpack(chunks(x)[c]), up = unpack(chunks(x + p.cols)[c]);
    Eight out;
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) out.x[i] = silu(gate.x[i]) * up.x[i];
    chunks(p.out + row * p.cols)[c] = pack(out);
}

FLEXDRAFT_KERNEL(silu_add, FlexdraftSiluAddParams, row_threads, 4) {
    const int64_t row = blockIdx.x;
    const int32_t owner = __ldg(p.owner + row);
    if (!row_exists(owner, p.bonus_rows, p.error)) return;
    uint4* const x = chunks(p.x + row * p.cols);
    const uint4* const bonus = chunks(p.bonus + owner * p.cols);
    for (int64_t c = threadIdx.x; c < p.cols / 8; c += row_threads) {
        Eight values = unpack(x[c]);
        const Eight more = unpack(bonus[c]);
#pragma unroll
        for (int32_t i = 0; i < 8; ++i) values.x[i] = silu(values.x[i] + more.x[i]);
        x[c] = pack(values);
    }
}

FLEXDRAFT_KERNEL(rope_table, FlexdraftRopeTableParams, FLEXDRAFT_ROPE_THREADS, 4) {
    const int32_t row = int32_t(blockIdx.x);
    const PassRow place = pass_row(p.pass, row);
    for (int32_t i = int32_t(threadIdx.x); i < p.half_dim; i += FLEXDRAFT_ROPE_THREADS) {
        float2 turn = make_float2(0.0f, 0.0f);
        if (place.sequence >= 0) {
            // The angle is rounded to f32, as transformers rounds it.
            turn = cos_sin(float(place.position) * __ldg(p.inv_freq + i));
            turn = make_float2(turn.x * p.scale, turn.y * p.scale);
        }
        reinterpret_cast<float2*>(p.cos_sin)[int64_t(row) * p.half_dim + i] = turn;
    }
}

namespace {

// One head of one row, held by one warp: lane l has `Pairs` neighbouring elements of the lower half, and the elements
// of the upper half that are rotated with them.
template <int32_t Pairs>
struct Head {
    static_assert(Pairs == 1 || Pairs == 2, "head_dim 64 or 128");
    float low[Pairs], high[Pairs];

    static constexpr int32_t half = 32 * Pairs;

    static FLEXDRAFT_METHOD void load(float (&values)[Pairs], const uint16_t* from, int32_t lane) {
        if constexpr (Pairs == 2) {
            const uint32_t two = reinterpret_cast<const uint32_t*>(from)[lane];
            values[0] = bf16_low(two);
            values[1] = bf16_high(two);
        } else {
            values[0] = bf16_to_float(bf16{from[lane]});
        }
    }

    static FLEXDRAFT_METHOD void store(const float (&values)[Pairs], uint16_t* to, int32_t lane) {
        if constexpr (Pairs == 2) {
            reinterpret_cast<uint32_t*>(to)[lane] = pack_bf16(values[0], values[1]);
        } else {
            to[lane] = float_to_bf16(values[0]).bits;
        }
    }

    FLEXDRAFT_METHOD void load(const uint16_t* head, int32_t lane) {
        load(low, head, lane);
        load(high, head + half, lane);
    }

    FLEXDRAFT_METHOD void store(uint16_t* head, int32_t lane) const {
        store(low, head, lane);
        store(high, head + half, lane);
    }

    FLEXDRAFT_METHOD void norm(const float* weight, float eps, int32_t lane) {
        float sum = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < Pairs; ++i) sum = fmaf(high[i], high[i], fmaf(low[i], low[i], sum));
        const float scale = 1.0f / sqrtf(warp_sum(sum) / float(2 * half) + eps);
#pragma unroll
        for (int32_t i = 0; i < Pairs; ++i) {
            low[i] = low[i] * scale * __ldg(weight + lane * Pairs + i);
            high[i] = high[i] * scale * __ldg(weight + half + lane * Pairs + i);
        }
    }

    FLEXDRAFT_METHOD void turn(const float* turns, int32_t lane) {
#pragma unroll
        for (int32_t i = 0; i < Pairs; ++i) {
            const float2 t = reinterpret_cast<const float2*>(turns)[lane * Pairs + i];
            const float x = low[i], y = high[i];
            low[i] = x * t.x - y * t.y;
            high[i] = y * t.x + x * t.y;
        }
    }
};

// One warp per head: q heads, then k heads, then v heads.
template <int32_t Pairs>
FLEXDRAFT_INLINE void norm_rope_append(const FlexdraftNormRopeAppendParams& p) {
    constexpr int32_t head_dim = 64 * Pairs;
    const int32_t row = p.first_row + int32_t(blockIdx.x);
    const int32_t head = int32_t(blockIdx.y * row_warps + threadIdx.x / 32);
    const int32_t lane = int32_t(threadIdx.x % 32);
    if (head >= p.q_heads + 2 * p.kv_heads) return;
    const PassRow place = pass_row(p.pass, row);
    if (place.sequence < 0) return;
    const bool is_q = head < p.q_heads, is_v = head >= p.q_heads + p.kv_heads;
    if (is_v && place.mask) return;
    uint16_t* const in_place = p.qkv + row * p.qkv_stride + int64_t(head) * head_dim;
    Head<Pairs> values;
    values.load(in_place, lane);
    if (!is_v) {
        const float* const weight = is_q ? p.q_norm : p.k_norm;
        if (weight != nullptr) values.norm(weight, p.eps, lane);
        values.turn(p.cos_sin + int64_t(row) * head_dim, lane);
    }
    // Attention reads candidates' k and v from the cache only.
    if (is_q || place.mask) {
        values.store(in_place, lane);
        return;
    }
    const FlexdraftPagedKv& cache = p.cache;
    const int64_t entry = place.sequence * cache.page_table_stride + place.position / cache.page_size;
    const int32_t page = __ldg(cache.page_table + entry);
    if (page < 0 || page >= cache.pages) {
        if (lane == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PAGE));
        return;
    }
    const int64_t token = place.position % cache.page_size;
    const int64_t kv_head = head - p.q_heads - (is_v ? p.kv_heads : 0);
    uint16_t* const to = is_v ? static_cast<uint16_t*>(cache.v) + page * cache.v_page_stride +
                                    token * cache.v_token_stride + kv_head * cache.v_head_stride
                              : static_cast<uint16_t*>(cache.k) + page * cache.k_page_stride +
                                    token * cache.k_token_stride + kv_head * cache.k_head_stride;
    values.store(to, lane);
}

} // namespace

FLEXDRAFT_KERNEL(norm_rope_append_d64, FlexdraftNormRopeAppendParams, row_threads, 4) { norm_rope_append<1>(p); }
FLEXDRAFT_KERNEL(norm_rope_append_d128, FlexdraftNormRopeAppendParams, row_threads, 4) { norm_rope_append<2>(p); }

FLEXDRAFT_KERNEL_TABLE(glue, embed, gather, rms_norm, add, silu_mul, silu_add, rope_table, norm_rope_append_d64,
                       norm_rope_append_d128)
