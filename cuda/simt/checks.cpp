// Implementation of checks.h: the checks of every memory access in the SIMT emulator, with the detection of races.
// Races are found by happens-before, over the operations that order threads in these kernels: barriers, __syncwarp with
// all lanes, and between CTAs a pair of fences with atomics on the same word between them. (A CTA that overwrites
// memory that another CTA has read is not reported.)
//
// The pair of fences follows the PTX ISA's memory consistency model ("Release and Acquire Patterns", "Synchronizes",
// "Causality Order"). CUDA's atomicAdd and similar operations are relaxed, and __threadfence is a fence at device
// scope:
//
//   release   a fence, and after it in the same thread an atomic on the word
//   acquire   an atomic on the word that sees it, and after it in the same thread a fence
//
// Memory operations before the first fence then precede operations after the second. This holds in the two threads
// themselves and, because barriers are part of causality order, in threads that met the first thread in a barrier
// before its fence or meet the second thread in a barrier after its fence. A fence of another thread, on either side of
// a barrier, is not part of either pattern.
#include "checks.h"

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "launch.h"
#include "launch_order.h"

extern "C" char __executable_start;
extern "C" char _end;

namespace simt {
namespace {

constexpr uint32_t max_threads = 1024;
// Accesses are tracked in units of two bytes, the size of the smallest element of an operand.
constexpr uint64_t granule = 2;

// A memory access for the detection of races: its thread and its time. `ordered` decides whether it precedes another
// access.
struct Stamp {
    uint32_t sequence = 0; // of all stamps of the launch; 0: never
    uint32_t cta = 0;
    uint32_t barrier = 0;
    uint32_t warp_sync = 0;
    uint16_t thread = 0;
    bool several = false; // readers: the last of several that are not ordered
};

struct Shadow {
    Stamp write, read;
    uint16_t copying = 0; // thread + 1 whose asynchronous copy is under way
};

// The accesses that a CTA published by a fence and an atomic of `thread`: the thread's own accesses up to one stamp,
// and up to another stamp the accesses of the CTA's other threads, which met this thread in the last barrier before the
// fence.
struct Published {
    uint32_t cta;
    uint16_t thread;
    uint32_t own_up_to, others_up_to;
};

// An entry of published accesses whose atomic another thread has seen. It is ordered before this thread's accesses from
// the next fence on, and before other threads' accesses from the barrier after that fence.
struct Seen {
    Published what;
    uint16_t thread;
    bool fenced;
    uint32_t barrier; // of the fence
};

struct Region {
    FlexdraftSimtRegion* region;
    std::vector<uint64_t> read, written; // a bit a byte
    uint64_t read_total = 0, written_total = 0;
    std::vector<Shadow> shadow;
};

struct Checks {
    FlexdraftSimtLaunch* launch = nullptr;
    std::vector<Region> regions; // by address
    size_t last = 0;
    const unsigned char* shared = nullptr;
    uint32_t shared_bytes = 0, threads = 0;
    std::vector<Shadow> shared_shadow;
    uint32_t thread = 0, cta = 0, sequence = 0, barrier = 0, barrier_sequence = 0;
    uint32_t warp_sync[max_threads / 32];
    // The number of stamps when each thread ran its last fence, and at the last barrier before that fence.
    uint32_t fence_sequence[max_threads], fence_barrier_sequence[max_threads];
    std::map<const void*, std::vector<Published>> published;
    std::vector<Seen> seen;
};

thread_local Checks* active = nullptr;

Stamp now(Checks& c) {
    Stamp stamp;
    stamp.sequence = ++c.sequence;
    stamp.cta = c.cta;
    stamp.barrier = c.barrier;
    stamp.warp_sync = c.warp_sync[c.thread / 32];
    stamp.thread = uint16_t(c.thread);
    return stamp;
}

bool ordered(const Checks& c, const Stamp& before) {
    if (before.sequence == 0) return true;
    if (before.cta != c.cta) {
        return std::any_of(c.seen.begin(), c.seen.end(), [&](const Seen& seen) {
            const bool here = seen.fenced && (seen.thread == c.thread || seen.barrier < c.barrier);
            const bool own = before.thread == seen.what.thread && !before.several;
            const uint32_t up_to = own ? seen.what.own_up_to : seen.what.others_up_to;
            return here && seen.what.cta == before.cta && before.sequence <= up_to;
        });
    }
    if (before.barrier < c.barrier || (before.thread == c.thread && !before.several)) return true;
    return !before.several && before.thread / 32 == c.thread / 32 && before.warp_sync < c.warp_sync[c.thread / 32];
}

// Returns the operand that holds an address, or null if no operand does.
Region* region_of(Checks& c, uint64_t address) {
    const auto holds = [&](const Region& r) { return address - r.region->address < r.region->bytes; };
    if (c.last < c.regions.size() && holds(c.regions[c.last])) return &c.regions[c.last];
    for (size_t i = 0; i < c.regions.size(); ++i) {
        if (holds(c.regions[i])) {
            c.last = i;
            return &c.regions[i];
        }
    }
    return nullptr;
}

void count(Region& region, bool write, uint64_t first, size_t bytes) {
    std::vector<uint64_t>& bits = write ? region.written : region.read;
    for (uint64_t i = first; i < first + bytes; ++i) bits[i / 64] |= uint64_t(1) << i % 64;
    (write ? region.written_total : region.read_total) += bytes;
}

void race(std::string_view where, uint64_t offset, const char* now, const char* before, const Stamp& stamp) {
    fail("%s at byte %llu of `%.*s` races with a %s by thread %u of CTA %u", now,
         static_cast<unsigned long long>(offset), int(where.size()), where.data(), before, stamp.thread, stamp.cta);
}

void watch(Checks& c, std::vector<Shadow>& shadows, std::string_view where, uint64_t offset, size_t bytes, bool write,
           bool across_ctas) {
    const Stamp stamp = now(c);
    for (uint64_t g = offset / granule; g <= (offset + bytes - 1) / granule; ++g) {
        Shadow& shadow = shadows[g];
        if (shadow.copying != 0) {
            fail("access to byte %llu of %.*s while an asynchronous copy of thread %u writes it",
                 static_cast<unsigned long long>(offset), int(where.size()), where.data(), shadow.copying - 1u);
        }
        if (!ordered(c, shadow.write)) race(where, offset, write ? "a write" : "a read", "write", shadow.write);
        if (write) {
            const bool foreign = across_ctas && shadow.read.cta != c.cta;
            if (!foreign && !ordered(c, shadow.read)) race(where, offset, "a write", "read", shadow.read);
            shadow.write = stamp;
            shadow.read = Stamp();
        } else {
            const bool alone = shadow.read.cta != c.cta || ordered(c, shadow.read);
            shadow.read = stamp;
            shadow.read.several = !alone;
        }
    }
}

std::string_view name_of(const FlexdraftSimtRegion& region) { return {region.name, region.name_bytes}; }

void outside(Checks& c, uint64_t address, size_t bytes, bool write) {
    const FlexdraftSimtRegion* nearest = nullptr;
    uint64_t distance = UINT64_MAX;
    for (const Region& r : c.regions) {
        const uint64_t end = r.region->address + r.region->bytes;
        const uint64_t apart = address >= end ? address - end : r.region->address - address;
        if (apart < distance) {
            distance = apart;
            nearest = r.region;
        }
    }
    const std::string name(nearest == nullptr ? std::string_view("nothing") : name_of(*nearest));
    const bool after = nearest != nullptr && address >= nearest->address;
    fail("%s of %zu bytes out of bounds: %llu bytes %s `%s`", write ? "a write" : "a read", bytes,
         static_cast<unsigned long long>(distance), after ? "after" : "before", name.c_str());
}

} // namespace

void checks_launch(FlexdraftSimtLaunch* launch) {
    active = nullptr;
    if (launch->checked == 0) return;
    thread_local Checks checks;
    checks = Checks();
    checks.launch = launch;
    for (uint64_t i = 0; i < launch->region_count; ++i) {
        Region region;
        region.region = &launch->regions[i];
        const uint64_t bytes = region.region->bytes;
        region.read.assign(bytes / 64 + 1, 0);
        region.written.assign(bytes / 64 + 1, 0);
        if (region.region->writable != 0) region.shadow.resize(bytes / granule + 1);
        checks.regions.push_back(std::move(region));
    }
    active = &checks;
}

void checks_end() {
    if (active == nullptr) return;
    for (Region& region : active->regions) {
        const auto bits = [](const std::vector<uint64_t>& words) {
            uint64_t sum = 0;
            for (const uint64_t word : words) sum += uint64_t(__builtin_popcountll(word));
            return sum;
        };
        region.region->read = bits(region.read);
        region.region->written = bits(region.written);
        region.region->read_total = region.read_total;
        region.region->written_total = region.written_total;
    }
    active = nullptr;
}

void checks_cta(const unsigned char* shared, uint32_t shared_bytes, uint32_t threads) {
    if (active == nullptr) return;
    Checks& c = *active;
    c.shared = shared;
    c.shared_bytes = shared_bytes;
    c.threads = threads;
    c.shared_shadow.assign(shared_bytes / granule + 1, Shadow());
    c.cta++;
    c.barrier = 1;
    c.barrier_sequence = c.sequence;
    std::fill(std::begin(c.warp_sync), std::end(c.warp_sync), 1);
    std::fill(std::begin(c.fence_sequence), std::end(c.fence_sequence), 0);
    std::fill(std::begin(c.fence_barrier_sequence), std::end(c.fence_barrier_sequence), 0);
    c.seen.clear();
}

void checks_switch(uint32_t, uint32_t next) {
    if (active != nullptr) active->thread = next;
}

void checks_barrier() {
    if (active == nullptr) return;
    active->barrier++;
    active->barrier_sequence = active->sequence;
}

void checks_warp(uint32_t mask) {
    if (active == nullptr) return;
    const uint32_t first = active->thread / 32 * 32;
    const uint32_t lanes = std::min(active->threads - first, 32u);
    if (mask == 0xffffffffu >> (32 - lanes)) active->warp_sync[first / 32]++;
}

void checks_fence() {
    if (active == nullptr) return;
    Checks& c = *active;
    c.fence_sequence[c.thread] = c.sequence;
    c.fence_barrier_sequence[c.thread] = c.barrier_sequence;
    for (Seen& seen : c.seen) {
        if (seen.thread != c.thread || seen.fenced) continue;
        seen.fenced = true;
        seen.barrier = c.barrier;
    }
}

void checks_atomic(const void* at, size_t bytes) {
    if (active == nullptr) return;
    Checks& c = *active;
    const auto address = reinterpret_cast<uint64_t>(at);
    if (address - reinterpret_cast<uint64_t>(c.shared) < c.shared_bytes) return;
    Region* const region = region_of(c, address);
    if (region == nullptr || address - region->region->address + bytes > region->region->bytes) {
        outside(c, address, bytes, true);
    }
    if (region->region->writable == 0)
        fail("an atomic on `%.*s`, which is only read", int(region->region->name_bytes), region->region->name);
    order_access(c.thread, name_of(*region->region), address, bytes, true);
    count(*region, false, address - region->region->address, bytes);
    count(*region, true, address - region->region->address, bytes);
    std::vector<Published>& word = c.published[at];
    for (const Published& other : word) {
        if (other.cta != c.cta) c.seen.push_back({other, uint16_t(c.thread), false, 0});
    }
    const uint16_t thread = uint16_t(c.thread);
    word.push_back({c.cta, thread, c.fence_sequence[thread], c.fence_barrier_sequence[thread]});
}

void checks_access(const void* at, size_t bytes, bool write) {
    if (active == nullptr || bytes == 0) return;
    Checks& c = *active;
    const auto address = reinterpret_cast<uint64_t>(at);
    const auto within = [&](const void* first, uint64_t length) {
        const uint64_t offset = address - reinterpret_cast<uint64_t>(first);
        return offset < length && length - offset >= bytes;
    };
    if (within(c.shared, c.shared_bytes)) {
        watch(c, c.shared_shadow, "shared memory", address - reinterpret_cast<uint64_t>(c.shared), bytes, write, false);
        return;
    }
    if (Region* const region = region_of(c, address)) {
        FlexdraftSimtRegion& r = *region->region;
        const uint64_t offset = address - r.address;
        if (r.bytes - offset < bytes) outside(c, address + bytes - 1, bytes, write);
        if (write && r.writable == 0) fail("a write to `%.*s`, which is only read", int(r.name_bytes), r.name);
        order_access(c.thread, name_of(r), address, bytes, write);
        count(*region, write, offset, bytes);
        if (r.writable != 0) watch(c, region->shadow, name_of(r), offset, bytes, write, true);
        return;
    }
    // The thread's own variables, the parameters, and the program's constants are always accessible.
    if (within(stack_of(c.thread), Fiber::stack_bytes)) return;
    if (!write && within(c.launch->params, params_bytes())) return;
    if (!write && within(&coordinates, sizeof coordinates)) return;
    if (!write && within(&__executable_start, uint64_t(&_end - &__executable_start))) return;
    outside(c, address, bytes, write);
}

void checks_copy_issue(const void* from, size_t bytes) {
    if (active == nullptr || bytes == 0) return;
    Checks& c = *active;
    const auto address = reinterpret_cast<uint64_t>(from);
    // An address outside of the operands is reported when the copy happens.
    if (Region* const region = region_of(c, address)) {
        order_access(c.thread, name_of(*region->region), address, bytes, false);
    }
}

void checks_copy_begin(const unsigned char* to, size_t bytes) {
    if (active == nullptr) return;
    checks_access(to, bytes, true);
    const uint64_t offset = uint64_t(to - active->shared);
    for (uint64_t g = offset / granule; g <= (offset + bytes - 1) / granule; ++g) {
        active->shared_shadow[g].copying = uint16_t(active->thread + 1);
    }
}

void checks_copy_end(const unsigned char* to, size_t bytes) {
    if (active == nullptr) return;
    const uint64_t offset = uint64_t(to - active->shared);
    const Stamp stamp = now(*active);
    for (uint64_t g = offset / granule; g <= (offset + bytes - 1) / granule; ++g) {
        active->shared_shadow[g].copying = 0;
        active->shared_shadow[g].write = stamp;
    }
}

namespace {

void hooked(const void* at, size_t bytes, bool write) {
    if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
        if (active != nullptr) fail("an access of %zu bytes at %p, which is not aligned", bytes, at);
    }
    checks_access(at, bytes, write);
}

} // namespace
} // namespace simt

// The hooks that code compiled with -fsanitize=thread calls before each memory access.
extern "C" {
#define FLEXDRAFT_HOOKS(bytes)                                                             \
    void __tsan_read##bytes(void* at) { simt::hooked(at, bytes, false); }                  \
    void __tsan_write##bytes(void* at) { simt::hooked(at, bytes, true); }                  \
    void __tsan_unaligned_read##bytes(void* at) { simt::checks_access(at, bytes, false); } \
    void __tsan_unaligned_write##bytes(void* at) { simt::checks_access(at, bytes, true); } \
    void __tsan_read##bytes##_pc(void* at, void*) { simt::hooked(at, bytes, false); }      \
    void __tsan_write##bytes##_pc(void* at, void*) { simt::hooked(at, bytes, true); }
FLEXDRAFT_HOOKS(1)
FLEXDRAFT_HOOKS(2)
FLEXDRAFT_HOOKS(4)
FLEXDRAFT_HOOKS(8)
FLEXDRAFT_HOOKS(16)
#undef FLEXDRAFT_HOOKS
void __tsan_read_range(void* at, unsigned long bytes) { simt::checks_access(at, bytes, false); }
void __tsan_write_range(void* at, unsigned long bytes) { simt::checks_access(at, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
}
