/* The SIMT emulator's interface for Rust, in plain C. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Memory that a kernel may use. The fields after `writable` are results, counted by the checked variant:
 * distinct bytes read and written, and the bytes of all accesses. */
struct FlexdraftSimtRegion {
    const char* name;
    uint64_t name_bytes;
    uint64_t address;
    uint64_t bytes;
    uint64_t writable;
    uint64_t read;
    uint64_t written;
    uint64_t read_total;
    uint64_t written_total;
};

/* What launches wrote and read, for the checks of their order (launch_order.h). */
struct FlexdraftSimtHistory;

struct FlexdraftSimtLaunch {
    const char* kernel; /* not zero-terminated */
    uint64_t kernel_bytes;
    const void* params;
    struct FlexdraftSimtRegion* regions;
    uint64_t region_count;
    uint64_t seed;                        /* seed of the order in which threads run; 0: in the order of their indices */
    struct FlexdraftSimtHistory* history; /* the launches in front; null: their order is not checked */
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t checked;     /* nonzero: the variant that checks every access (checks.h) */
    uint32_t late_copies; /* nonzero: cp.async copies as late as its waits allow, not at once */
    uint32_t dependent;   /* nonzero: the launch may begin before the launch in front has ended */
    uint32_t unwaited;    /* nonzero: a planted mistake, the kernel's waits for earlier launches do nothing */
    uint32_t unused;
};

#ifdef __cplusplus
static_assert(sizeof(FlexdraftSimtRegion) == 72 && offsetof(FlexdraftSimtRegion, written_total) == 64,
              "mirrored in Rust");
static_assert(sizeof(FlexdraftSimtLaunch) == 96 && offsetof(FlexdraftSimtLaunch, grid) == 56 &&
                  offsetof(FlexdraftSimtLaunch, unwaited) == 88,
              "mirrored in Rust");
#endif

/* Runs the launch to its end. Returns 0 on success, 2 if the kernel does not exist, and 1 on any other error. On an
 * error, `message` gets its text, up to `capacity` bytes with the terminating zero. */
int flexdraft_simt_launch(struct FlexdraftSimtLaunch* launch, char* message, uint64_t capacity);

/* Returns the zero-terminated name of a kernel, which lives as long as the process, and writes the size of its
 * parameter struct in bytes and the most threads of its CTAs. Returns null if the kernel does not exist. */
const char* flexdraft_simt_kernel(const char* name, uint64_t name_bytes, uint32_t* params_bytes, uint32_t* threads);

/* Makes a history without launches, and frees it. */
struct FlexdraftSimtHistory* flexdraft_simt_history_new(void);
void flexdraft_simt_history_free(struct FlexdraftSimtHistory* history);

/* Notes that everything in the history has ended. */
void flexdraft_simt_history_barrier(struct FlexdraftSimtHistory* history);

/* Adds a launch that the emulator does not run, which begins with a full barrier, and the regions that it uses. */
void flexdraft_simt_history_launch(struct FlexdraftSimtHistory* history, const struct FlexdraftSimtRegion* regions,
                                   uint64_t region_count);

#ifdef __cplusplus
}
#endif
