// Rotary embedding: the table of rotations of a pass, and the rotation of q and k, with their norms and the append to
// the cache.
//
// Registers per thread:
//
//   kernel                       sm_80   sm_90a
//   rope_table                      30       31
//   norm_rope_append_d64            27       24
//   norm_rope_append_d64_f16        27       24
//   norm_rope_append_d128           31       32
//   norm_rope_append_d128_f16       31       32
#include "../common/rows.cuh"
#include "../common/trigonometry.cuh"
#include "../common/vectors.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "params.h"

namespace {

constexpr int32_t row_warps = row_threads / 32;

// Returns the cosine and sine of `angle` >= 0. Whole turns are subtracted in f64, which is accurate at any position and
// avoids the slow path of sincosf.
FLEXDRAFT_INLINE float2 cos_sin(float angle) {
    const double turns = double(angle) * 0.15915494309189533577; // 1 / (2 pi)
    const float half_turns = float(2.0 * (turns - rint(turns)));
    return make_float2(cos_pi(half_turns), sin_pi(half_turns));
}

// One attention head of one row, held by one warp: lane l has `Pairs` neighbouring elements of the lower half, and the
// elements of the upper half that are rotated with them.
template <typename Element, int32_t Pairs>
struct Head {
    static_assert(Pairs == 1 || Pairs == 2, "head_dim 64 or 128");
    float low[Pairs], high[Pairs];

    static constexpr int32_t half = 32 * Pairs;

    static FLEXDRAFT_METHOD void load(float (&values)[Pairs], const uint16_t* from, int32_t lane) {
        if constexpr (Pairs == 2) {
            const uint32_t two = reinterpret_cast<const uint32_t*>(from)[lane];
            values[0] = Element::low(two);
            values[1] = Element::high(two);
        } else {
            values[0] = Element{from[lane]}.value();
        }
    }

    static FLEXDRAFT_METHOD void store(const float (&values)[Pairs], uint16_t* to, int32_t lane) {
        if constexpr (Pairs == 2) {
            reinterpret_cast<uint32_t*>(to)[lane] = Element::pack(values[0], values[1]);
        } else {
            to[lane] = Element::of(values[0]).bits;
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

    // Loads the head's factors of a norm, which no kernel writes.
    FLEXDRAFT_METHOD void load_factors(const float* weight, int32_t lane) {
#pragma unroll
        for (int32_t i = 0; i < Pairs; ++i) {
            low[i] = weight[lane * Pairs + i];
            high[i] = weight[half + lane * Pairs + i];
        }
    }

    FLEXDRAFT_METHOD void norm(const Head& factors, float eps) {
        float sum = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < Pairs; ++i) sum = fmaf(high[i], high[i], fmaf(low[i], low[i], sum));
        const float scale = 1.0f / sqrtf(warp_sum(sum) / float(2 * half) + eps);
#pragma unroll
        for (int32_t i = 0; i < Pairs; ++i) {
            low[i] = low[i] * scale * factors.low[i];
            high[i] = high[i] * scale * factors.high[i];
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

// Each warp computes one head: q heads come first, then k heads, then v heads.
template <typename Element, int32_t Pairs>
FLEXDRAFT_INLINE void norm_rope_append(const FlexdraftNormRopeAppendParams& p) {
    constexpr int32_t head_dim = 64 * Pairs;
    const int32_t row = p.first_row + int32_t(blockIdx.x);
    const int32_t head = int32_t(blockIdx.y * row_warps + threadIdx.x / 32);
    const int32_t lane = int32_t(threadIdx.x % 32);
    const bool is_q = head < p.q_heads, is_v = head >= p.q_heads + p.kv_heads;
    const float* const weight = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
    Head<Element, Pairs> factors = {};
    if (weight != nullptr) factors.load_factors(weight, lane);
    wait_for_earlier_launches();
    if (head >= p.q_heads + 2 * p.kv_heads) return;
    const PassRow place = pass_row(p.pass, row);
    if (place.sequence < 0) return;
    if (is_v && place.mask) return;
    const int64_t operand_row = int64_t(blockIdx.x);
    const int32_t kv_head = is_q ? 0 : head - p.q_heads - (is_v ? p.kv_heads : 0);
    uint16_t* const in_place =
        is_q ? p.q + operand_row * p.q_stride + head * head_dim : p.k + operand_row * p.k_stride + kv_head * head_dim;
    Head<Element, Pairs> values;
    values.load(is_v ? p.v + operand_row * p.v_stride + kv_head * head_dim : in_place, lane);
    if (!is_v) {
        if (weight != nullptr) values.norm(factors, p.eps);
        values.turn(p.cos_sin + int64_t(row) * head_dim, lane);
    }
    // The heads of q and of mask rows change in place; the k and v of candidate rows are written only to the cache,
    // where attention reads them.
    if (is_q || place.mask) {
        values.store(in_place, lane);
        return;
    }
    const FlexdraftPagedKv& cache = p.cache;
    const int64_t entry = place.sequence * cache.page_table_stride + place.position / cache.page_size;
    const int32_t page = cache.page_table[entry];
    if (page < 0 || page >= cache.pages) {
        if (lane == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PAGE));
        return;
    }
    const int64_t token = place.position % cache.page_size;
    uint16_t* const to = is_v ? static_cast<uint16_t*>(cache.v) + page * cache.v_page_stride +
                                    token * cache.v_token_stride + kv_head * cache.v_head_stride
                              : static_cast<uint16_t*>(cache.k) + page * cache.k_page_stride +
                                    token * cache.k_token_stride + kv_head * cache.k_head_stride;
    values.store(to, lane);
}

} // namespace

// The grid is [rows]: one CTA computes the rotations of one row.
FLEXDRAFT_KERNEL(rope_table, FlexdraftRopeTableParams, FLEXDRAFT_ROPE_THREADS, 4) {
    const int32_t row = int32_t(blockIdx.x), first = int32_t(threadIdx.x);
    const float first_frequency = first < p.half_dim ? p.inv_freq[first] : 0.0f;
    wait_for_earlier_launches();
    const PassRow place = pass_row(p.pass, row);
    for (int32_t i = first; i < p.half_dim; i += FLEXDRAFT_ROPE_THREADS) {
        const float frequency = i == first ? first_frequency : p.inv_freq[i];
        float2 turn = make_float2(0.0f, 0.0f);
        if (place.sequence >= 0) {
            // The angle is rounded to f32, as the Python library transformers rounds it.
            turn = cos_sin(float(place.position) * frequency);
            turn = make_float2(turn.x * p.scale, turn.y * p.scale);
        }
        reinterpret_cast<float2*>(p.cos_sin)[int64_t(row) * p.half_dim + i] = turn;
    }
}

// The grid is [rows, heads / row_warps]: one warp computes one head of a row.
#define FLEXDRAFT_APPEND(Element, suffix, head_dim)                                                         \
    FLEXDRAFT_KERNEL(norm_rope_append_d##head_dim##suffix, FlexdraftNormRopeAppendParams, row_threads, 4) { \
        norm_rope_append<Element, head_dim / 64>(p);                                                        \
    }
FLEXDRAFT_APPEND(bf16, , 64)
FLEXDRAFT_APPEND(bf16, , 128)
FLEXDRAFT_APPEND(f16, _f16, 64)
FLEXDRAFT_APPEND(f16, _f16, 128)

FLEXDRAFT_KERNEL_TABLE(rope, rope_table, norm_rope_append_d64, norm_rope_append_d128, norm_rope_append_d64_f16,
                       norm_rope_append_d128_f16)
