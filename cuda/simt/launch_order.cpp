// Implementation of launch_order.h.
#include "launch_order.h"

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emulator.h"
#include "launch.h"

namespace {

constexpr uint64_t page_bytes = 4096;
// Pages are dropped at a full barrier when there are more. A page of the history is 32 KiB.
constexpr size_t most_pages = 8192;

// Numbers of launches; 0: none.
struct Byte {
    uint32_t written_by; // the last launch that wrote the byte
    uint32_t read_by;    // the first launch that read it since a launch wrote it, or since the last full barrier
};

using Page = std::array<Byte, page_bytes>;

} // namespace

struct FlexdraftSimtHistory {
    std::unordered_map<uint64_t, std::unique_ptr<Page>> pages;
    uint64_t last_page = UINT64_MAX;
    Page* last = nullptr;
    uint32_t launch = 0;    // the number of the newest launch
    uint32_t barrier = 1;   // launches with lower numbers have ended
    uint32_t unordered = 1; // launches from `barrier` to unordered − 1 may run even after a wait

    void full_barrier() {
        barrier = unordered = launch + 1;
        if (pages.size() <= most_pages) return;
        pages.clear();
        last_page = UINT64_MAX;
    }

    Byte& at(uint64_t address) {
        const uint64_t page = address / page_bytes;
        if (page != last_page) {
            std::unique_ptr<Page>& found = pages[page];
            if (found == nullptr) found = std::make_unique<Page>();
            last_page = page;
            last = found.get();
        }
        return (*last)[address % page_bytes];
    }

    void note(uint64_t address, uint64_t bytes, bool write) {
        for (uint64_t at_byte = address; at_byte < address + bytes; ++at_byte) {
            Byte& byte = at(at_byte);
            if (write) {
                byte = {launch, 0};
            } else if (byte.read_by < barrier) {
                byte.read_by = launch;
            }
        }
    }
};

namespace simt {
namespace {

// The launch that runs in this thread of the host, if it has a history.
struct Running {
    FlexdraftSimtHistory* history = nullptr;
    std::vector<bool> waited; // by thread of the CTA
    bool all_waited = false;
};

thread_local Running running;

} // namespace

void order_begin(const FlexdraftSimtLaunch* launch) {
    running.history = launch->checked != 0 ? launch->history : nullptr;
    if (running.history == nullptr) return;
    if (launch->dependent == 0) running.history->full_barrier();
    running.history->launch++;
    running.all_waited = true;
}

void order_end() {
    FlexdraftSimtHistory* const history = running.history;
    running.history = nullptr;
    // Without a wait, this launch may end at any time, even before earlier launches.
    if (history != nullptr && !running.all_waited && history->barrier < history->launch) {
        history->unordered = history->launch;
    }
}

void order_cta_begin(uint32_t threads) {
    if (running.history != nullptr) running.waited.assign(threads, false);
}

void order_cta_end() {
    if (running.history == nullptr) return;
    running.all_waited &= std::find(running.waited.begin(), running.waited.end(), false) == running.waited.end();
}

void order_wait(uint32_t thread) {
    if (running.history != nullptr) running.waited[thread] = true;
}

void order_access(uint32_t thread, std::string_view operand, uint64_t address, size_t bytes, bool write) {
    FlexdraftSimtHistory* const history = running.history;
    if (history == nullptr) return;
    const bool waited = running.waited[thread];
    const uint32_t ended = waited ? history->unordered : history->launch;
    const auto runs = [&](uint32_t launch) { return launch >= history->barrier && launch < ended; };
    for (uint64_t at_byte = address; at_byte < address + bytes; ++at_byte) {
        const Byte& byte = history->at(at_byte);
        const bool written = runs(byte.written_by);
        if (!written && !(write && runs(byte.read_by))) continue;
        const uint32_t other = written ? byte.written_by : byte.read_by;
        fail("a %s of `%.*s`, while the launch %u in front, which %s it, may still run: %s", write ? "write" : "read",
             int(operand.size()), operand.data(), history->launch - other, written ? "writes" : "reads",
             waited ? "a launch between them did not wait" : "the thread has not waited for earlier launches");
    }
    history->note(address, bytes, write);
}

} // namespace simt

extern "C" FlexdraftSimtHistory* flexdraft_simt_history_new() { return new FlexdraftSimtHistory; }
extern "C" void flexdraft_simt_history_free(FlexdraftSimtHistory* history) { delete history; }
extern "C" void flexdraft_simt_history_barrier(FlexdraftSimtHistory* history) { history->full_barrier(); }

extern "C" void flexdraft_simt_history_launch(FlexdraftSimtHistory* history, const FlexdraftSimtRegion* regions,
                                              uint64_t region_count) {
    history->full_barrier();
    history->launch++;
    for (uint64_t i = 0; i < region_count; ++i) {
        history->note(regions[i].address, regions[i].bytes, regions[i].writable != 0);
    }
}
