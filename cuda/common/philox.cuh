// The random-number contract: Philox 4x32-10, keyed by the request and counted by position. Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3" (SC 2011). Words, uniforms and the use of every counter word agree with
// src/random.rs; the tests compare the two.
#pragma once

#include "platform.cuh"

// The purpose of a draw: the upper half of counter word 1 (src/random.rs, `Purpose`).
enum DrawPurpose : uint32_t {
    target_draw = 1,
    draft_draw = 2,
    acceptance_uniform = 3,
    residual_draw = 4,
};

// The random numbers of one draw: Philox's key, and every counter word except the index.
struct DrawNumbers {
    uint32_t key[2];     // the seed, low word first
    uint32_t counter[3]; // purpose · 2^16 + slot; the position, low word first
};

FLEXDRAFT_INLINE DrawNumbers draw_numbers(uint64_t seed, uint32_t purpose_and_slot, uint64_t position) {
    return DrawNumbers{{uint32_t(seed), uint32_t(seed >> 32)},
                       {purpose_and_slot, uint32_t(position), uint32_t(position >> 32)}};
}

struct PhiloxWords {
    uint32_t word[4];
};

// Returns the four random words at `index`, which belong to the vocabulary ids 4 · index to 4 · index + 3.
FLEXDRAFT_INLINE PhiloxWords philox(const DrawNumbers& numbers, uint32_t index) {
    uint32_t a = index, b = numbers.counter[0], c = numbers.counter[1], d = numbers.counter[2];
    uint32_t key0 = numbers.key[0], key1 = numbers.key[1];
#pragma unroll
    for (int32_t round = 0; round < 10; ++round) {
        const uint64_t first = uint64_t(0xD2511F53u) * a;
        const uint64_t second = uint64_t(0xCD9E8D57u) * c;
        a = uint32_t(second >> 32) ^ b ^ key0;
        b = uint32_t(second);
        c = uint32_t(first >> 32) ^ d ^ key1;
        d = uint32_t(first);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return PhiloxWords{{a, b, c, d}};
}

// Returns a standard exponential random number, −ln u for u = (word + ½) · 2^−32, at least 2^−34. Computed from 1 − u
// if u is near 1, because u itself would round to 1.
FLEXDRAFT_INLINE float exponential(uint32_t word) {
    constexpr float ulp = 1.0f / 4294967296.0f;
    if (word < 0x80000000u) return -logf((float(word) + 0.5f) * ulp);
    return -log1pf(-((float(~word) + 0.5f) * ulp));
}

// Returns a standard Gumbel random number, −ln(−ln u) for u = (word + ½) · 2^−32.
FLEXDRAFT_INLINE float gumbel(uint32_t word) { return -logf(exponential(word)); }

// Returns the standard Gumbel random number of one vocabulary id.
FLEXDRAFT_INLINE float gumbel_of(const DrawNumbers& numbers, uint32_t id) {
    const PhiloxWords words = philox(numbers, id / 4);
    const uint32_t low = id & 1u ? words.word[1] : words.word[0];
    const uint32_t high = id & 1u ? words.word[3] : words.word[2];
    return gumbel(id & 2u ? high : low);
}
