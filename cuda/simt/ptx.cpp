// Implementation of ptx.h: models of warp-wide operations and PTX instructions. A warp-wide operation is a function
// over the lanes' exchanges; the last lane to arrive runs it.
#include "ptx.h"

#include <math.h>
#include <string.h>

#include "checks.h"

namespace simt {
namespace {

template <class F>
void for_lanes(uint32_t mask, F&& f) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) f(uint32_t(__builtin_ctz(rest)));
}

// Computes every shuffle: in[0] is the lane's value; in[1] is the lane to read, which may be the lane itself.
void do_shuffle(Exchange* lanes, uint32_t mask, uint32_t) {
    for_lanes(mask, [&](uint32_t lane) { lanes[lane].out[0] = lanes[lanes[lane].in[1]].in[0]; });
}

uint64_t shuffle_from(uint32_t mask, uint64_t value, uint32_t source, const char* name) {
    // A shuffle from a lane outside the mask has an undefined result.
    if ((mask >> source & 1) == 0) fail("%s: lane %u is not in the mask 0x%x", name, source, mask);
    Exchange& self = exchange();
    self.in[0] = value;
    self.in[1] = source;
    collective(do_shuffle, 0, mask, name);
    return self.out[0];
}

uint32_t lane_index() { return coordinates.thread.x % 32; }

void check_width(int width, const char* name) {
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("%s: a width of %d", name, width);
}

void do_ballot(Exchange* lanes, uint32_t mask, uint32_t) {
    uint32_t votes = 0;
    for_lanes(mask, [&](uint32_t lane) { votes |= uint32_t(lanes[lane].in[0]) << lane; });
    for_lanes(mask, [&](uint32_t lane) { lanes[lane].out[0] = votes; });
}

void do_match(Exchange* lanes, uint32_t mask, uint32_t) {
    for_lanes(mask, [&](uint32_t lane) {
        uint32_t same = 0;
        for_lanes(mask, [&](uint32_t other) { same |= uint32_t(lanes[other].in[0] == lanes[lane].in[0]) << other; });
        lanes[lane].out[0] = same;
    });
}

enum Reduction : uint32_t { add, maximum, minimum };

void do_reduce(Exchange* lanes, uint32_t mask, uint32_t reduction) {
    uint32_t result = reduction == minimum ? UINT32_MAX : 0;
    for_lanes(mask, [&](uint32_t lane) {
        const uint32_t value = uint32_t(lanes[lane].in[0]);
        if (reduction == add) result += value;
        if (reduction == maximum && value > result) result = value;
        if (reduction == minimum && value < result) result = value;
    });
    for_lanes(mask, [&](uint32_t lane) { lanes[lane].out[0] = result; });
}

uint32_t vote(Collective operation, uint32_t argument, uint32_t mask, uint64_t value, const char* name) {
    Exchange& self = exchange();
    self.in[0] = value;
    collective(operation, argument, mask, name);
    return uint32_t(self.out[0]);
}

void do_sync_warp(Exchange*, uint32_t mask, uint32_t) { checks_warp(mask); }

// Computes ldmatrix for a warp: in[0] is the host address of a row of eight 16-bit elements.
void do_ldmatrix(Exchange* lanes, uint32_t, uint32_t transposed) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
        for (uint32_t lane = 0; lane < 32; ++lane) {
            uint16_t pair[2];
            for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t outer = lane / 4, inner = 2 * (lane % 4) + i;
                const uint32_t row = transposed ? inner : outer, col = transposed ? outer : inner;
                const auto* from = reinterpret_cast<const unsigned char*>(lanes[8 * matrix + row].in[0]);
                memcpy(&pair[i], from + 2 * col, 2);
            }
            lanes[lane].out[matrix] = pair[0] | uint32_t(pair[1]) << 16;
        }
    }
}

float bf16_value(uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

// Computes mma for a warp whose factors have the values `value`: in[0..4] are sums, in[4..8] a, and in[8..10] b.
template <float (*value)(uint16_t)>
void do_mma(Exchange* lanes, uint32_t, uint32_t) {
    float a[16][16], b[16][8];
    for (uint32_t lane = 0; lane < 32; ++lane) {
        const uint32_t group = lane / 4, pair = 2 * (lane % 4);
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = group + 8 * (i % 2), k = pair + 8 * (i / 2);
            a[row][k] = value(uint16_t(lanes[lane].in[4 + i]));
            a[row][k + 1] = value(uint16_t(lanes[lane].in[4 + i] >> 16));
        }
        for (uint32_t i = 0; i < 2; ++i) {
            b[pair + 8 * i][group] = value(uint16_t(lanes[lane].in[8 + i]));
            b[pair + 8 * i + 1][group] = value(uint16_t(lanes[lane].in[8 + i] >> 16));
        }
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = lane / 4 + 8 * (i / 2), col = 2 * (lane % 4) + i % 2;
            float sum;
            memcpy(&sum, &lanes[lane].in[i], 4);
            for (uint32_t k = 0; k < 16; ++k) sum += a[row][k] * b[k][col];
            lanes[lane].out[i] = 0;
            memcpy(&lanes[lane].out[i], &sum, 4);
        }
    }
}

} // namespace

void sync_warp(uint32_t mask) { collective(do_sync_warp, 0, mask, "__syncwarp"); }

void fence() { checks_fence(); }

uint64_t shuffle(uint32_t mask, uint64_t value, int lane, int width) {
    check_width(width, "__shfl_sync");
    const uint32_t segment = lane_index() & ~uint32_t(width - 1);
    return shuffle_from(mask, value, segment | (uint32_t(lane) & uint32_t(width - 1)), "__shfl_sync");
}

uint64_t shuffle_up(uint32_t mask, uint64_t value, uint32_t delta, int width) {
    check_width(width, "__shfl_up_sync");
    const uint32_t lane = lane_index(), place = lane & uint32_t(width - 1);
    return shuffle_from(mask, value, delta <= place ? lane - delta : lane, "__shfl_up_sync");
}

uint64_t shuffle_down(uint32_t mask, uint64_t value, uint32_t delta, int width) {
    check_width(width, "__shfl_down_sync");
    const uint32_t lane = lane_index(), place = lane & uint32_t(width - 1);
    const bool inside = delta < uint32_t(width) && place + delta < uint32_t(width);
    return shuffle_from(mask, value, inside ? lane + delta : lane, "__shfl_down_sync");
}

uint64_t shuffle_xor(uint32_t mask, uint64_t value, int lanes, int width) {
    check_width(width, "__shfl_xor_sync");
    const uint32_t lane = lane_index(), source = lane ^ uint32_t(lanes);
    // The source lane of __shfl_xor_sync may be in an earlier segment of the warp, but not in a later one.
    const uint32_t last = lane | uint32_t(width - 1);
    return shuffle_from(mask, value, source <= last ? source : lane, "__shfl_xor_sync");
}

uint32_t ballot(uint32_t mask, bool predicate) { return vote(do_ballot, 0, mask, predicate, "__ballot_sync"); }
uint32_t match_any(uint32_t mask, uint32_t value) { return vote(do_match, 0, mask, value, "__match_any_sync"); }
uint32_t reduce_add(uint32_t mask, uint32_t value) { return vote(do_reduce, add, mask, value, "__reduce_add_sync"); }
uint32_t reduce_max(uint32_t mask, uint32_t value) {
    return vote(do_reduce, maximum, mask, value, "__reduce_max_sync");
}
uint32_t reduce_min(uint32_t mask, uint32_t value) {
    return vote(do_reduce, minimum, mask, value, "__reduce_min_sync");
}

uint64_t atomic_load(const void* at, uint32_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("atomic: address %p is not a multiple of %u", at, bytes);
    checks_atomic(at, bytes);
    uint64_t value = 0;
    memcpy(&value, at, bytes);
    return value;
}

void atomic_store(void* at, uint64_t value, uint32_t bytes) { memcpy(at, &value, bytes); }

void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address, bool transposed) {
    const unsigned char* const row = shared_range(row_address, 16, 16, "ldmatrix");
    checks_access(row, 16, false);
    Exchange& self = exchange();
    self.in[0] = reinterpret_cast<uintptr_t>(row);
    collective(do_ldmatrix, transposed, 0xffffffffu, "ldmatrix");
    for (uint32_t i = 0; i < 4; ++i) r[i] = uint32_t(self.out[i]);
}

static void mma_m16n8k16(Collective product, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Exchange& self = exchange();
    for (uint32_t i = 0; i < 4; ++i) {
        self.in[i] = 0;
        memcpy(&self.in[i], &d[i], 4);
        self.in[4 + i] = a[i];
    }
    self.in[8] = b0;
    self.in[9] = b1;
    collective(product, 0, 0xffffffffu, "mma.sync");
    for (uint32_t i = 0; i < 4; ++i) memcpy(&d[i], &self.out[i], 4);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16(do_mma<bf16_value>, d, a, b0, b1);
}

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16(do_mma<f16_value>, d, a, b0, b1);
}

float exp2_approx(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

} // namespace simt
