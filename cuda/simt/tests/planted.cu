// Small kernels for the SIMT emulator's own tests: kernels that use every modelled operation, and kernels with bugs
// that the host must find. Each kernel with a bug has a correct twin.
#include "../../common/element.cuh"
#include "../../ptx/cp_async.cuh"
#include "../../ptx/griddepcontrol.cuh"
#include "../../ptx/ldmatrix.cuh"
#include "../../ptx/mma.cuh"
#include "planted.h"

namespace {

FLEXDRAFT_INLINE uint32_t thread_of_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Reverses a CTA's elements through shared memory.
FLEXDRAFT_INLINE void reverse(const PlantedParams& p, bool with_barrier) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    const uint32_t first = blockIdx.x * blockDim.x;
    staged[threadIdx.x] = p.in[first + threadIdx.x];
    if (with_barrier) __syncthreads();
    p.out[first + threadIdx.x] = staged[blockDim.x - 1 - threadIdx.x];
}

// Copies 16 bytes per thread of the CTA through shared memory, asynchronously.
FLEXDRAFT_INLINE void copy_async(const PlantedParams& p, bool with_wait, bool with_barrier) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x * 4;
    cp_async_16(shared_address(staged + 4 * threadIdx.x), p.in + first + 4 * threadIdx.x, p.argument);
    cp_async_commit();
    if (with_wait) cp_async_wait<0>();
    if (with_barrier) __syncthreads();
    const uint32_t other = blockDim.x - 1 - threadIdx.x;
    for (uint32_t i = 0; i < 4; ++i) p.out[first + 4 * threadIdx.x + i] = staged[4 * other + i];
}

// The fences of the kernel `last_cta`: in the thread that counts CTAs, before and after its atomic, and in the thread
// that adds up, on the other side of the barriers between the two.
enum Fences { release = 1, acquire = 2, release_elsewhere = 4, acquire_elsewhere = 8 };

// Sums all elements in the last CTA to arrive: thread 0 counts the CTAs that have arrived, and thread `argument` adds
// up.
FLEXDRAFT_INLINE void last_cta(const PlantedParams& p, int32_t fences) {
    FLEXDRAFT_SHARED(shared);
    auto* last = reinterpret_cast<uint32_t*>(shared);
    if (threadIdx.x == p.argument) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < blockDim.x; ++i) sum += p.in[blockIdx.x * blockDim.x + i];
        p.out[1 + blockIdx.x] = sum;
        if (fences & release_elsewhere) __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        if (fences & release) __threadfence();
        *last = atomicAdd(p.counter, 1u) == gridDim.x - 1;
        if (fences & acquire) __threadfence();
    }
    __syncthreads();
    if (*last != 0 && threadIdx.x == p.argument) {
        if (fences & acquire_elsewhere) __threadfence();
        uint32_t sum = 0;
        for (uint32_t i = 0; i < gridDim.x; ++i) sum += p.out[1 + i];
        p.out[0] = sum;
        *p.counter = 0;
    }
}

// Adds a CTA's largest element to each of the CTA's elements; a thread keeps its element in a register, or reads it a
// second time.
FLEXDRAFT_INLINE void add_largest(const PlantedParams& p, bool again) {
    FLEXDRAFT_SHARED(shared);
    auto* largest = reinterpret_cast<uint32_t*>(shared);
    const uint32_t own = p.in[thread_of_grid()];
    if (threadIdx.x == 0) *largest = 0;
    __syncthreads();
    atomicMax(largest, own);
    __syncthreads();
    p.out[thread_of_grid()] = *largest + (again ? p.in[thread_of_grid()] : own);
}

// The place of the wait for earlier launches in a kernel that looks values up in a table.
enum class Wait { in_front, behind_table, missing, in_half_of_the_threads };

// Looks values up: out[i] = in[i] · table[0], with `counter` as the table.
FLEXDRAFT_INLINE void look_up(const PlantedParams& p, Wait wait) {
    if (wait == Wait::in_front || (wait == Wait::in_half_of_the_threads && threadIdx.x % 2 == 0)) {
        wait_for_earlier_launches();
    }
    const uint32_t factor = p.counter[0];
    if (wait == Wait::behind_table) wait_for_earlier_launches();
    p.out[thread_of_grid()] = p.in[thread_of_grid()] * factor;
}

} // namespace

FLEXDRAFT_KERNEL(planted_reverse, PlantedParams, 1024, 1) { reverse(p, true); }
FLEXDRAFT_KERNEL(planted_reverse_without_barrier, PlantedParams, 1024, 1) { reverse(p, false); }
FLEXDRAFT_KERNEL(planted_copy, PlantedParams, 1024, 1) { copy_async(p, true, true); }
FLEXDRAFT_KERNEL(planted_copy_without_wait, PlantedParams, 1024, 1) { copy_async(p, false, true); }
FLEXDRAFT_KERNEL(planted_copy_without_barrier, PlantedParams, 1024, 1) { copy_async(p, true, false); }
FLEXDRAFT_KERNEL(planted_last_cta, PlantedParams, 1024, 1) { last_cta(p, release | acquire); }
FLEXDRAFT_KERNEL(planted_last_cta_without_release, PlantedParams, 1024, 1) { last_cta(p, acquire); }
FLEXDRAFT_KERNEL(planted_last_cta_without_acquire, PlantedParams, 1024, 1) { last_cta(p, release); }
FLEXDRAFT_KERNEL(planted_last_cta_releases_elsewhere, PlantedParams, 1024, 1) {
    last_cta(p, release_elsewhere | acquire);
}
FLEXDRAFT_KERNEL(planted_last_cta_acquires_elsewhere, PlantedParams, 1024, 1) {
    last_cta(p, release | acquire_elsewhere);
}
FLEXDRAFT_KERNEL(planted_add_largest, PlantedParams, 1024, 1) { add_largest(p, false); }
FLEXDRAFT_KERNEL(planted_add_largest_reading_twice, PlantedParams, 1024, 1) { add_largest(p, true); }

// Copies elements with an offset, out[i] = in[i + argument], which reads beyond the operand if the argument is above 0.
FLEXDRAFT_KERNEL(planted_offset, PlantedParams, 1024, 1) {
    p.out[thread_of_grid()] = p.in[thread_of_grid() + p.argument];
}

// Writes to the kernel's input, which is read-only.
FLEXDRAFT_KERNEL(planted_write_input, PlantedParams, 1024, 1) {
    const_cast<uint32_t*>(p.in)[thread_of_grid()] = p.argument;
}

// Copies from or to a misaligned address, if the argument is not a multiple of 16 bytes.
FLEXDRAFT_KERNEL(planted_misaligned, PlantedParams, 1024, 1) {
    FLEXDRAFT_SHARED(shared);
    cp_async_16(shared_address(shared), reinterpret_cast<const unsigned char*>(p.in) + p.argument);
    cp_async_commit();
    cp_async_wait<0>();
    p.out[threadIdx.x] = *reinterpret_cast<const uint32_t*>(shared);
}

// Makes threads below the argument wait at a barrier, and the others in a warp-wide operation with all lanes.
FLEXDRAFT_KERNEL(planted_divergent_barrier, PlantedParams, 1024, 1) {
    if (threadIdx.x < p.argument) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    p.out[threadIdx.x] = 1;
}

// Reads a neighbouring lane's value through shared memory; with argument 1 after __syncwarp, otherwise in a race.
FLEXDRAFT_KERNEL(planted_lanes, PlantedParams, 1024, 1) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    staged[threadIdx.x] = p.in[threadIdx.x];
    if (p.argument == 1) __syncwarp();
    p.out[threadIdx.x] = staged[threadIdx.x ^ 1];
}

// Runs every warp-wide operation, with ten results per thread.
FLEXDRAFT_KERNEL(planted_collectives, PlantedParams, 1024, 1) {
    const uint32_t value = p.in[threadIdx.x];
    uint32_t* const out = p.out + 10 * threadIdx.x;
    const uint32_t full = 0xffffffffu;
    out[0] = __shfl_sync(full, value, int32_t(value % 32));
    out[1] = __shfl_up_sync(full, value, 3, 16);
    out[2] = __shfl_down_sync(full, value, 5);
    out[3] = __shfl_xor_sync(full, value, 9);
    out[4] = __ballot_sync(full, int32_t(value & 1));
    out[5] = __match_any_sync(full, value % 3);
    out[6] = __reduce_add_sync(full, value);
    out[7] = __reduce_max_sync(full, value);
    out[8] = __reduce_min_sync(full, value);
    out[9] = uint32_t(__syncthreads_count(int32_t(value & 1)));
}

// Computes out [16, 8] += a [16, 16] · b [16, 8], with a and b in bf16: a row-major, b column-major (stored as [8,
// 16]).
FLEXDRAFT_KERNEL(planted_mma, PlantedParams, 32, 1) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    const uint32_t lane = threadIdx.x;
    for (uint32_t i = lane; i < 192; i += 32) staged[i] = p.in[i];
    __syncwarp();
    uint32_t a[4], b[4];
    // Loads the four matrices of a's fragment: rows 0 to 7, then 8 to 15, of columns 0 to 7, then of columns 8 to 15.
    ldmatrix_x4(a, shared_address(shared) + lane % 16 * 32 + lane / 16 * 16);
    // Loads the two halves of b along k, twice.
    ldmatrix_x4(b, shared_address(shared) + 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
    auto* out = reinterpret_cast<float*>(p.out);
    float* const places[4] = {out + lane / 4 * 8 + 2 * (lane % 4), out + lane / 4 * 8 + 2 * (lane % 4) + 1,
                              out + (lane / 4 + 8) * 8 + 2 * (lane % 4), out + (lane / 4 + 8) * 8 + 2 * (lane % 4) + 1};
    float d[4];
    for (int32_t i = 0; i < 4; ++i) d[i] = *places[i];
    mma_m16n8k16_bf16(d, a, b[0], b[1]);
    for (int32_t i = 0; i < 4; ++i) *places[i] = d[i];
}

// Transposes an 8 × 8 matrix of 16-bit elements by ldmatrix.
FLEXDRAFT_KERNEL(planted_transpose, PlantedParams, 32, 1) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    const uint32_t lane = threadIdx.x;
    staged[lane] = p.in[lane];
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4_trans(r, shared_address(shared) + lane % 8 * 16);
    p.out[lane] = r[0];
}

// Writes to a thread's own array, beyond the array's end if the argument is 4 or more. (The pointer is volatile, so
// that the compiler cannot see the error and AddressSanitizer does.)
FLEXDRAFT_KERNEL(planted_stack_overflow, PlantedParams, 1024, 1) {
    volatile uint32_t own[4] = {1, 2, 3, 4};
    volatile uint32_t* volatile first = own;
    first[p.argument] = p.in[threadIdx.x];
    p.out[threadIdx.x] = own[threadIdx.x % 4];
}

// Writes one word per thread to the CTA's shared memory, from byte `argument` on, so beyond its end if `argument` is
// too large.
FLEXDRAFT_KERNEL(planted_shared_overflow, PlantedParams, 1024, 1) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared + p.argument);
    staged[threadIdx.x] = p.in[threadIdx.x];
    p.out[threadIdx.x] = staged[threadIdx.x];
}

// Shifts by the argument, which is undefined in C++ from 32 on, where a GPU and a CPU give different results.
FLEXDRAFT_KERNEL(planted_shift, PlantedParams, 1024, 1) { p.out[threadIdx.x] = p.in[threadIdx.x] << p.argument; }

// Adds two signed integers, which is undefined in C++ if the sum overflows.
FLEXDRAFT_KERNEL(planted_signed_sum, PlantedParams, 1024, 1) {
    p.out[threadIdx.x] = uint32_t(int32_t(p.in[threadIdx.x]) + int32_t(p.argument));
}

FLEXDRAFT_KERNEL(planted_look_up, PlantedParams, 1024, 1) { look_up(p, Wait::in_front); }
FLEXDRAFT_KERNEL(planted_look_up_before_waiting, PlantedParams, 1024, 1) { look_up(p, Wait::behind_table); }
FLEXDRAFT_KERNEL(planted_look_up_without_wait, PlantedParams, 1024, 1) { look_up(p, Wait::missing); }
FLEXDRAFT_KERNEL(planted_look_up_with_half_a_wait, PlantedParams, 1024, 1) { look_up(p, Wait::in_half_of_the_threads); }

// Change the table `counter`, before or after the wait for earlier launches.
FLEXDRAFT_KERNEL(planted_table, PlantedParams, 1024, 1) {
    wait_for_earlier_launches();
    p.counter[thread_of_grid()] += p.argument;
}
FLEXDRAFT_KERNEL(planted_table_before_waiting, PlantedParams, 1024, 1) {
    p.counter[thread_of_grid()] = p.argument;
    wait_for_earlier_launches();
}

// Copies 16 bytes of the table `counter` asynchronously; the copy begins before or after the wait for earlier launches.
FLEXDRAFT_INLINE void copy_table(const PlantedParams& p, bool before_waiting) {
    FLEXDRAFT_SHARED(shared);
    if (!before_waiting) wait_for_earlier_launches();
    if (threadIdx.x == 0) cp_async_16(shared_address(shared), p.counter);
    cp_async_commit();
    if (before_waiting) wait_for_earlier_launches();
    cp_async_wait<0>();
    __syncthreads();
    p.out[threadIdx.x] = *reinterpret_cast<const uint32_t*>(shared);
}
FLEXDRAFT_KERNEL(planted_copy_table, PlantedParams, 1024, 1) { copy_table(p, false); }
FLEXDRAFT_KERNEL(planted_copy_table_before_waiting, PlantedParams, 1024, 1) { copy_table(p, true); }

// Reads the table and writes nothing.
FLEXDRAFT_KERNEL(planted_read_table, PlantedParams, 1024, 1) {
    wait_for_earlier_launches();
    const volatile uint32_t* const table = p.counter;
    [[maybe_unused]] const uint32_t value = table[thread_of_grid()];
}

// Use no memory. Threads with an index from the argument on do not wait in the last kernel.
FLEXDRAFT_KERNEL(planted_idle, PlantedParams, 1024, 1) { wait_for_earlier_launches(); }
FLEXDRAFT_KERNEL(planted_idle_without_wait, PlantedParams, 1024, 1) {}
FLEXDRAFT_KERNEL(planted_idle_with_some_waits, PlantedParams, 1024, 1) {
    if (threadIdx.x < p.argument) wait_for_earlier_launches();
}

FLEXDRAFT_KERNEL_TABLE(planted, planted_reverse, planted_reverse_without_barrier, planted_copy,
                       planted_copy_without_wait, planted_copy_without_barrier, planted_last_cta,
                       planted_last_cta_without_release, planted_last_cta_without_acquire,
                       planted_last_cta_releases_elsewhere, planted_last_cta_acquires_elsewhere, planted_add_largest,
                       planted_add_largest_reading_twice, planted_offset, planted_write_input, planted_misaligned,
                       planted_divergent_barrier, planted_lanes, planted_collectives, planted_mma, planted_transpose,
                       planted_stack_overflow, planted_shared_overflow, planted_shift, planted_signed_sum,
                       planted_look_up, planted_look_up_before_waiting, planted_look_up_without_wait,
                       planted_look_up_with_half_a_wait, planted_table, planted_table_before_waiting,
                       planted_copy_table, planted_copy_table_before_waiting, planted_read_table, planted_idle,
                       planted_idle_without_wait, planted_idle_with_some_waits)
