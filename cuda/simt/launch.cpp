// Runs a kernel launch on the SIMT emulator: its CTAs one after another, and the threads of a CTA as fibers. A fiber
// runs until it waits.
//
// A thread waits at a barrier, or for the other lanes of a warp-wide operation. The last thread to arrive performs the
// operation and makes all of the waiting threads runnable. If no thread can run and some have not ended, they wait for
// a barrier or an operation that other threads never reach.
#include "launch.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "emulator.h"
#include "fiber.h"
#include "launch_order.h"

namespace simt {

thread_local Coordinates coordinates;

namespace {

constexpr uint32_t warp_lanes = 32;
constexpr uint32_t max_cta_threads = 1024;

enum class State : uint8_t { runnable, barrier, collective, ended };

struct Copy {
    uint32_t shared;
    const void* global;
    uint32_t source_bytes;
};

struct Thread {
    Fiber fiber;
    State state;
    // The warp-wide operation that the thread waits for.
    Collective operation;
    uint32_t argument, mask;
    const char* name;
    // The thread's asynchronous copies: committed groups, oldest first, and the open group.
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

// The emulator's state in a host thread: one launch at a time, with stacks kept between launches.
struct Machine {
    Thread threads[max_cta_threads];
    Exchange exchanges[max_cta_threads];
    Fiber main; // the host thread's own stack, which the launch was called on
    FlexdraftSimtLaunch* launch = nullptr;
    const Kernel* kernel = nullptr;
    // The CTA's shared memory, exactly as large as the launch asks for, so that AddressSanitizer sees an access beyond
    // it.
    std::unique_ptr<unsigned char, decltype(&free)> shared_storage{nullptr, free};
    unsigned char* shared = nullptr;
    uint32_t shared_bytes = 0;
    uint32_t thread_count = 0, current = 0, ended = 0, at_barrier = 0, predicates = 0, predicate_sum = 0;
    // The threads of the CTA that can run, in the order in which they became runnable.
    uint32_t queue[max_cta_threads + 1];
    uint32_t queue_first = 0, queue_len = 0;
    uint64_t random = 0;
    std::string error;

    ~Machine();
};

Machine& machine() {
    thread_local Machine* const instance = new Machine;
    struct Owner {
        Machine* machine;
        ~Owner() { delete machine; }
    };
    thread_local Owner owner{instance};
    return *owner.machine;
}

thread_local Machine* running = nullptr;

void push(Machine& m, uint32_t thread) {
    m.threads[thread].state = State::runnable;
    m.queue[(m.queue_first + m.queue_len++) % (max_cta_threads + 1)] = thread;
}

// Removes the next thread from the queue of runnable threads: the first, or with a seed a random thread.
uint32_t pop(Machine& m) {
    if (m.launch->seed != 0 && m.queue_len > 1) {
        m.random ^= m.random << 13;
        m.random ^= m.random >> 7;
        m.random ^= m.random << 17;
        const uint32_t other = (m.queue_first + m.random % m.queue_len) % (max_cta_threads + 1);
        const uint32_t chosen = m.queue[other];
        m.queue[other] = m.queue[m.queue_first];
        m.queue[m.queue_first] = chosen;
    }
    const uint32_t thread = m.queue[m.queue_first];
    m.queue_first = (m.queue_first + 1) % (max_cta_threads + 1);
    m.queue_len--;
    return thread;
}

// Makes the next runnable thread current and returns its fiber; returns the host thread's own fiber if no thread is
// runnable.
Fiber& next_fiber(Machine& m) {
    if (m.queue_len == 0 || !m.error.empty()) return m.main;
    const uint32_t next = pop(m);
    const uint32_t previous = m.current;
    m.current = next;
    coordinates.thread.x = next;
    checks_switch(previous, next);
    return m.threads[next].fiber;
}

// Runs other threads until it is the current thread's turn again.
void wait(Machine& m) {
    Fiber& self = m.threads[m.current].fiber;
    Fiber& next = next_fiber(m);
    if (&next != &self) switch_fiber(self, next);
}

void perform(const Copy& copy) {
    unsigned char* const to = shared_range(copy.shared, 16, 16, "cp.async");
    memset(to, 0, 16);
    if (copy.source_bytes != 0) {
        checks_access(copy.global, copy.source_bytes, false);
        memcpy(to, copy.global, copy.source_bytes);
    }
}

void land(const Copy& copy, bool late) {
    if (late) perform(copy);
    checks_copy_end(shared_range(copy.shared, 16, 16, "cp.async"), 16);
}

void release_barrier(Machine& m) {
    m.predicate_sum = m.predicates;
    m.predicates = 0;
    m.at_barrier = 0;
    checks_barrier();
    for (uint32_t t = 0; t < m.thread_count; ++t) {
        if (m.threads[t].state == State::barrier) push(m, t);
    }
}

void thread_main() {
    fiber_begins();
    Machine& m = *running;
    m.kernel->entry(m.launch->params);
    Thread& self = m.threads[m.current];
    // Asynchronous copies that are unfinished when a thread ends still arrive.
    for (const auto& group : self.groups) {
        for (const Copy& copy : group) land(copy, m.launch->late_copies != 0);
    }
    for (const Copy& copy : self.open) land(copy, m.launch->late_copies != 0);
    self.state = State::ended;
    m.ended++;
    // A thread that has ended counts as a thread that has arrived at the barrier.
    if (m.at_barrier != 0 && m.at_barrier + m.ended == m.thread_count) release_barrier(m);
    leave_fiber(self.fiber, next_fiber(m));
}

// Returns whether all lanes in the mask of `self` wait for the same operation.
bool complete(const Machine& m, const Thread& self, uint32_t first_lane) {
    for (uint32_t rest = self.mask; rest != 0; rest &= rest - 1) {
        const Thread& lane = m.threads[first_lane + uint32_t(__builtin_ctz(rest))];
        if (lane.state != State::collective || lane.operation != self.operation || lane.mask != self.mask ||
            lane.argument != self.argument) {
            return false;
        }
    }
    return true;
}

std::string deadlock(const Machine& m) {
    for (uint32_t t = 0; t < m.thread_count; ++t) {
        const Thread& thread = m.threads[t];
        if (thread.state == State::ended) continue;
        const char* what = thread.state == State::barrier ? "__syncthreads" : thread.name;
        return "thread " + std::to_string(t) + " waits in " + what +
               " for threads that never come: " + std::to_string(m.at_barrier) + " of " +
               std::to_string(m.thread_count) + " threads are at a barrier, " + std::to_string(m.ended) + " have ended";
    }
    return "deadlock";
}

// Runs one CTA of a launch; returns false on an error, which is then in `m.error`.
bool run_cta(Machine& m) {
    const uint32_t shared_bytes = m.launch->shared_bytes;
    // Shared memory is filled with this value before a CTA runs; no kernel may rely on uninitialised memory.
    memset(m.shared, 0xff, shared_bytes);
    m.ended = m.at_barrier = m.predicates = 0;
    m.queue_first = m.queue_len = 0;
    checks_cta(m.shared, shared_bytes, m.thread_count);
    order_cta_begin(m.thread_count);
    for (uint32_t t = 0; t < m.thread_count; ++t) {
        Thread& thread = m.threads[t];
        if (!thread.fiber.map()) {
            m.error = "out of memory for the threads' stacks";
            return false;
        }
        thread.fiber.start(thread_main);
        thread.groups.clear();
        thread.open.clear();
        push(m, t);
    }
    m.current = max_cta_threads;
    switch_fiber(m.main, next_fiber(m));
    if (m.error.empty() && m.ended != m.thread_count) m.error = deadlock(m);
    order_cta_end();
    return m.error.empty();
}

} // namespace

Machine::~Machine() {
    for (Thread& thread : threads) thread.fiber.unmap();
}

unsigned char* shared_memory() { return running->shared; }

const unsigned char* stack_of(uint32_t thread) { return running->threads[thread].fiber.stack; }

uint64_t params_bytes() { return running->kernel->params_bytes; }

Exchange& exchange() { return running->exchanges[running->current]; }

void collective(Collective operation, uint32_t argument, uint32_t mask, const char* name) {
    Machine& m = *running;
    Thread& self = m.threads[m.current];
    const uint32_t first_lane = m.current / warp_lanes * warp_lanes;
    if ((mask >> (m.current - first_lane) & 1) == 0) fail("%s: a mask without the lane that calls it", name);
    if (mask >> 1 >> (std::min(m.thread_count - first_lane, warp_lanes) - 1) != 0) {
        fail("%s: a mask with lanes that the warp does not have", name);
    }
    self.operation = operation;
    self.argument = argument;
    self.mask = mask;
    self.name = name;
    self.state = State::collective;
    if (complete(m, self, first_lane)) {
        operation(m.exchanges + first_lane, mask, argument);
        if (!m.error.empty()) wait(m);
        // The last lane to arrive at a warp-wide operation continues first; the others follow it.
        self.state = State::runnable;
        for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
            const uint32_t lane = first_lane + uint32_t(__builtin_ctz(rest));
            if (lane != m.current) push(m, lane);
        }
        if (m.launch->seed == 0) return;
        push(m, m.current);
    }
    wait(m);
}

uint32_t barrier(bool predicate) {
    Machine& m = *running;
    m.predicates += predicate;
    m.at_barrier++;
    m.threads[m.current].state = State::barrier;
    if (m.at_barrier + m.ended == m.thread_count) release_barrier(m);
    wait(m);
    return m.predicate_sum;
}

unsigned char* shared_range(uint32_t address, size_t bytes, size_t alignment, const char* name) {
    Machine& m = *running;
    if (address % alignment != 0) fail("%s: shared address %u is not a multiple of %zu", name, address, alignment);
    if (address < shared_base || address - shared_base > m.launch->shared_bytes ||
        m.launch->shared_bytes - (address - shared_base) < bytes) {
        fail("%s: %zu bytes at shared address %u, out of the CTA's %u bytes", name, bytes, address - shared_base,
             m.launch->shared_bytes);
    }
    return m.shared + (address - shared_base);
}

uint32_t shared_address(const void* pointer) {
    Machine& m = *running;
    const auto* at = static_cast<const unsigned char*>(pointer);
    if (at < m.shared || at > m.shared + m.launch->shared_bytes) fail("not an address of shared memory");
    return shared_base + uint32_t(at - m.shared);
}

void copy_async(uint32_t shared, const void* global, uint32_t source_bytes) {
    Machine& m = *running;
    checks_copy_issue(global, source_bytes);
    if (source_bytes > 16) fail("cp.async: %u source bytes of 16", source_bytes);
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
        fail("cp.async: global address %p is not a multiple of 16", global);
    checks_copy_begin(shared_range(shared, 16, 16, "cp.async"), 16);
    const Copy copy{shared, global, source_bytes};
    m.threads[m.current].open.push_back(copy);
    if (m.launch->late_copies == 0) perform(copy);
}

void wait_for_earlier_launches() {
    if (running->launch->unwaited == 0) order_wait(running->current);
}

void copy_commit() {
    Thread& self = running->threads[running->current];
    self.groups.push_back(std::move(self.open));
    self.open.clear();
}

void copy_wait(int pending) {
    Thread& self = running->threads[running->current];
    while (self.groups.size() > size_t(pending)) {
        for (const Copy& copy : self.groups.front()) land(copy, running->launch->late_copies != 0);
        self.groups.erase(self.groups.begin());
    }
}

void fail(const char* format, ...) {
    Machine& m = *running;
    if (m.error.empty()) {
        char text[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        m.error = "thread " + std::to_string(m.current) + ": " + text;
    }
    // The other fibers of the failed launch stay where they stopped.
    leave_fiber(m.threads[m.current].fiber, m.main);
}

} // namespace simt

extern "C" int flexdraft_simt_launch(FlexdraftSimtLaunch* launch, char* message, uint64_t capacity) {
    using namespace simt;
    const auto report = [&](int code, const std::string& text) {
        if (capacity != 0) snprintf(message, capacity, "%s", text.c_str());
        return code;
    };
    const Kernel* const kernel = find(launch->checked != 0, {launch->kernel, launch->kernel_bytes});
    if (kernel == nullptr) return report(2, "no such kernel");
    if (launch->threads == 0 || launch->threads > kernel->max_threads || launch->threads > max_cta_threads) {
        return report(
            1, std::to_string(launch->threads) + " threads a CTA, of at most " + std::to_string(kernel->max_threads));
    }
    Machine& m = machine();
    running = &m;
    m.launch = launch;
    m.kernel = kernel;
    m.thread_count = launch->threads;
    m.random = launch->seed * 0x9e3779b97f4a7c15u | 1;
    m.error.clear();
    if (m.shared_storage == nullptr || m.shared_bytes != launch->shared_bytes) {
        void* storage = nullptr;
        const size_t bytes = std::max(launch->shared_bytes, 1u);
        if (posix_memalign(&storage, 1024, bytes) != 0) return report(1, "out of memory for the CTA's shared memory");
        m.shared_storage.reset(static_cast<unsigned char*>(storage));
        m.shared_bytes = launch->shared_bytes;
    }
    m.shared = m.shared_storage.get();
    coordinates.block_dim = {launch->threads, 1, 1};
    coordinates.grid_dim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    coordinates.thread = {0, 0, 0};
    checks_launch(launch);
    order_begin(launch);
    const uint64_t ctas = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
    for (uint64_t i = 0; i < ctas; ++i) {
        // Odd seeds run the CTAs in reverse order, because no kernel may rely on their order.
        const uint64_t cta = launch->seed % 2 != 0 ? ctas - 1 - i : i;
        coordinates.block = {uint32_t(cta % launch->grid[0]), uint32_t(cta / launch->grid[0] % launch->grid[1]),
                             uint32_t(cta / launch->grid[0] / launch->grid[1])};
        if (!run_cta(m)) {
            const Index block = coordinates.block;
            checks_end();
            order_end();
            return report(1, "CTA (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
                                 std::to_string(block.z) + "), " + m.error);
        }
    }
    checks_end();
    order_end();
    return 0;
}

extern "C" const char* flexdraft_simt_kernel(const char* name, uint64_t name_bytes, uint32_t* params_bytes,
                                             uint32_t* threads) {
    const simt::Kernel* const kernel = simt::find(false, {name, name_bytes});
    if (kernel == nullptr) return nullptr;
    *params_bytes = kernel->params_bytes;
    *threads = kernel->max_threads;
    return kernel->name;
}
