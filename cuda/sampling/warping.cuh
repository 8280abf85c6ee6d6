// Functions from a logit to its score (the logit after temperature) and to its probability. Sampling and acceptance
// share this code, because the draft distribution that acceptance compares must be exactly the distribution that the
// draft was drawn from. src/sampling.rs has the rules.
#pragma once

#include "../common/element.cuh"
#include "params.h"

constexpr float infinity = __builtin_inff();

// Loads and stores of four consecutive logits and of one logit, for each stored type: f32, bf16 and f16.
FLEXDRAFT_INLINE void load_logits(float (&v)[4], const float* address) {
    const float4 loaded = *reinterpret_cast<const float4*>(address);
    v[0] = loaded.x, v[1] = loaded.y, v[2] = loaded.z, v[3] = loaded.w;
}
template <typename Element>
FLEXDRAFT_INLINE void load_logits(float (&v)[4], const Element* address) {
    const uint2 loaded = *reinterpret_cast<const uint2*>(address);
    v[0] = Element::low(loaded.x), v[1] = Element::high(loaded.x);
    v[2] = Element::low(loaded.y), v[3] = Element::high(loaded.y);
}
FLEXDRAFT_INLINE void store_logits(float* address, const float (&v)[4]) {
    *reinterpret_cast<float4*>(address) = make_float4(v[0], v[1], v[2], v[3]);
}
template <typename Element>
FLEXDRAFT_INLINE void store_logits(Element* address, const float (&v)[4]) {
    *reinterpret_cast<uint2*>(address) = make_uint2(Element::pack(v[0], v[1]), Element::pack(v[2], v[3]));
}
FLEXDRAFT_INLINE float load_logit(const float* address) { return *address; }
template <typename Element>
FLEXDRAFT_INLINE float load_logit(const Element* address) {
    return address->value();
}
FLEXDRAFT_INLINE void store_logit(float* address, float v) { *address = v; }
template <typename Element>
FLEXDRAFT_INLINE void store_logit(Element* address, float v) {
    *address = Element::of(v);
}

// Returns `value`, rounded to the type in which logits are stored.
FLEXDRAFT_INLINE float rounded(float value, const float*) { return value; }
template <typename Element>
FLEXDRAFT_INLINE float rounded(float value, const Element*) {
    return Element::of(value).value();
}

// Returns the logit as it counts in sampling: −inf for NaN.
FLEXDRAFT_INLINE float counted(float logit) { return fmaxf(logit, -infinity); }

// Returns the reciprocal of the temperature as it counts in sampling: 0, which is greedy, if it is not a finite number
// above 0.
FLEXDRAFT_INLINE float counted_inverse(float inverse_temperature) {
    return inverse_temperature > 0.0f && inverse_temperature < infinity ? inverse_temperature : 0.0f;
}

// Returns the score of a logit that is not NaN, for an inverse temperature above 0 and a largest logit above −inf.
FLEXDRAFT_INLINE float warped_score(float logit, float max, float inverse_temperature) {
    return logit == max ? 0.0f : (logit - max) * inverse_temperature;
}

// Returns a bound of the distance logit − max: logits with a smaller distance have scores below `score`. The product of
// a distance and the reciprocal of the temperature has a relative error of 2^−24, or an error of half of the smallest
// number; the result leaves more room than that.
FLEXDRAFT_INLINE float least_distance(float score, float inverse_temperature) {
    return (score - 1e-44f) / inverse_temperature * 1.00001f - 1e-37f;
}

// Integer keys that order scores: a higher score has a smaller key, from 0 for +0 and 1 for −0 up to the key of −inf.
FLEXDRAFT_INLINE uint32_t score_key(float score) {
    const uint32_t bits = __float_as_uint(score);
    return bits == 0u ? 0u : (bits & 0x7fffffffu) + 1u;
}
FLEXDRAFT_INLINE float score_of_key(uint32_t key) {
    return key == 0u ? 0.0f : __uint_as_float((key - 1u) | 0x80000000u);
}
constexpr uint32_t key_end = 0x7f800002u; // one more than the key of −inf

FLEXDRAFT_INLINE bool is_truncating(const FlexdraftRowSampling& row, int32_t vocab) {
    return counted_inverse(row.inverse_temperature) > 0.0f &&
           ((row.top_k > 0 && row.top_k < vocab) || (row.top_p > 0.0f && row.top_p < 1.0f) ||
            row.min_score > -infinity);
}

// Returns whether one token, stats.token, has probability 1: in a greedy row, or if every logit is −inf.
FLEXDRAFT_INLINE bool is_one_hot(const FlexdraftRowStats& stats) {
    return stats.inverse_temperature == 0.0f || stats.max == -infinity;
}

// Returns whether top-k, top-p and min-p keep the id, whose score is `score`.
FLEXDRAFT_INLINE bool is_kept(const FlexdraftRowStats& stats, float score, int32_t id) {
    const uint32_t key = score_key(score), cut = score_key(stats.cut_score);
    return key < cut || (key == cut && id <= stats.cut_id);
}

// Returns a bound of the distance logit − max: logits with a smaller distance have probability 0, because the score is
// beyond the cut, or its exponential is less than half of the smallest number, exp(−103.97).
FLEXDRAFT_INLINE float least_distance_kept(const FlexdraftRowStats& stats) {
    if (is_one_hot(stats)) return -infinity;
    return least_distance(fmaxf(stats.cut_score, stats.log_sum - 110.0f), stats.inverse_temperature);
}

// Returns the probability of an id after temperature and truncation, from its logit as it is stored.
FLEXDRAFT_INLINE float warped_probability(const FlexdraftRowStats& stats, float logit, int32_t id) {
    if (is_one_hot(stats)) return id == stats.token ? 1.0f : 0.0f;
    const float score = warped_score(counted(logit), stats.max, stats.inverse_temperature);
    return is_kept(stats, score, id) ? expf(score - stats.log_sum) : 0.0f;
}
