// The order of launches that may begin before the previous launch has ended (programmatic dependent launch,
// ptx/griddepcontrol.cuh), and checks that kernels do not depend on more order than there is.
//
// The emulator runs one launch after the other. The checks find accesses that a GPU may make too early. For each byte of
// device memory, a history has the launch that last wrote the byte and the first launch that read it since. An access is
// an error if it conflicts with a launch that may still run:
//
//   before the wait   every launch since the last full barrier may still run
//   after the wait    earlier launches have ended, if all of them waited. A launch that ends without a wait may end
//                     before launches that are earlier still, and the wait of the next launch does not cover those
//
// A full barrier is a launch that may not begin early, a copy, or a synchronisation by the host. Only checked launches
// with a history are checked.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string_view>

struct FlexdraftSimtLaunch;

namespace simt {

// Begins and ends a launch in its history, if it has one.
void order_begin(const FlexdraftSimtLaunch* launch);
void order_end();
// Begins and ends a CTA with a number of threads.
void order_cta_begin(uint32_t threads);
void order_cta_end();
// Records that a thread of the CTA waited for earlier launches.
void order_wait(uint32_t thread);
// Checks an access of a thread to device memory, to bytes of an operand.
void order_access(uint32_t thread, std::string_view operand, uint64_t address, size_t bytes, bool write);

} // namespace simt
