// The functions of libtvm_ffi that the library looks up, for tests without the real one. A test loads this file into
// the global scope and reads what was raised.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static char raised_kind[64], raised_message[512];

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    strncpy(raised_kind, kind, sizeof raised_kind - 1);
    strncpy(raised_message, message, sizeof raised_message - 1);
}

const char *raised(int want_message) { return want_message ? raised_message : raised_kind; }

void *TVMFFIEnvGetStream(int32_t device_type, int32_t device_id) {
    (void)device_type;
    (void)device_id;
    return NULL;
}

typedef struct {
    const char *data;
    size_t size;
} ByteArray;

int32_t TVMFFITypeGetOrAllocIndex(const ByteArray *key, int32_t index, int32_t depth, int32_t child_slots, int32_t overflow,
                                  int32_t parent) {
    int known = key->size == 21 && memcmp(key->data, "flexdraft.PassTables", 20) == 0;
    (void)known;
    return index == -1 && depth == 1 && child_slots == 0 && overflow == 0 && parent == 64 ? 200 : -1;
}
