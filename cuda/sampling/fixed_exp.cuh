// Weights exp(score) of vocabulary ids in fixed point, computed by integer arithmetic alone. Sums of such weights
// depend neither on the order of addition nor on the machine, so the ids that top-p keeps do not depend on them either.
#pragma once

#include "../common/platform.cuh"

// Weights are in units of 2^−43, so that the sum of 2^20 weights fits 63 bits.
constexpr int32_t weight_bits = 43;
// The score from which on a weight is 0: exp(−31) is below half a unit.
constexpr float weightless_score = -31.0f;

// Returns 2^43 · exp(score) for a score of at most 0, within a factor of 1 ± 2·10^−9, then rounded down.
FLEXDRAFT_INLINE uint64_t fixed_weight(float score) {
    // The negated comparison refuses NaN too.
    if (!(score > weightless_score)) return 0;
    // −score · log2(e) = whole + fraction · 2^−32, from −score in units of 2^−58 (exact above 2^−34).
    const uint64_t negated = uint64_t(-score * 288230376151711744.0f);
    const uint64_t exponent = __umul64hi(negated, 0xB8AA3B295C17F0BCull); // log2(e) · 2^63; units of 2^−57
    const int32_t whole = int32_t(exponent >> 57);
    const uint32_t fraction = uint32_t(exponent >> 25);
    // 2^−f = 1 − f · g(f) for the fraction f; g is the polynomial of degree 6 that interpolates at the Chebyshev nodes
    // of [0, 1]. Units: 2^−32.
    uint32_t g = 0x0000BDA6u;
    g = 0x0009C200u - __umulhi(fraction, g);
    g = 0x005728B0u - __umulhi(fraction, g);
    g = 0x027641A9u - __umulhi(fraction, g);
    g = 0x0E358127u - __umulhi(fraction, g);
    g = 0x3D7F7BCBu - __umulhi(fraction, g);
    g = 0xB17217F7u - __umulhi(fraction, g);
    const uint64_t power = (1ull << 32) - __umulhi(fraction, g);
    return (power << (weight_bits - 32)) >> whole;
}

// Returns the smallest integer that is at least `fraction` · `total`, exactly, for a fraction in (0, 1).
FLEXDRAFT_INLINE uint64_t ceil_of_fraction(float fraction, uint64_t total) {
    // The fraction is mantissa · 2^−shift, with a shift of 24 to 149.
    const uint32_t bits = __float_as_uint(fraction);
    const uint32_t biased = bits >> 23;
    const uint64_t mantissa = biased == 0u ? bits : (bits & 0x7fffffu) | 0x800000u;
    const uint32_t shift = biased == 0u ? 149u : 150u - biased;
    const uint64_t low = total * mantissa, high = __umul64hi(total, mantissa);
    if (shift >= 64u) {
        const uint32_t rest = shift - 64u;
        const uint64_t quotient = rest < 64u ? high >> rest : 0u;
        const bool exact = low == 0u && rest < 64u && (quotient << rest) == high;
        return quotient + (exact ? 0u : 1u);
    }
    const uint64_t quotient = (high << (64u - shift)) | (low >> shift);
    return quotient + ((quotient << shift) == low ? 0u : 1u);
}
