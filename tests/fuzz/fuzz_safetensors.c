// Fuzz target: any bytes as a safetensors file. What opens must hold together: every tensor inside
// the file, found by its name, readable.

#include "io/safetensors.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void touch_pair(void *user, const char *key, const char *value) {
    size_t *n = user;
    *n += strlen(key) + strlen(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors *st;
    pdvm_error err;
    if (safetensors_open_memory("fuzz", data, size, &st, &err) != PDVM_OK) {
        if (err.message[0] == 0)
            abort();
        return 0;
    }
    size_t total = 0;
    const uint8_t *end = NULL;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct safetensors_tensor *t = safetensors_at(st, i);
        if (end && t->data != end)
            abort();
        end = t->data + t->size;
        if (end > data + size || safetensors_find(st, t->name) != t)
            abort();
        float out[64];
        int64_t n = t->n_elements < 64 ? t->n_elements : 64;
        if (safetensors_to_float(st, t, t->n_elements - n, n, out, &err) == PDVM_OK)
            total += out[0] == out[0];
    }
    size_t n = 0;
    safetensors_metadata_each(st, touch_pair, &n);
    if (n > size || total > size + 1)
        abort();
    safetensors_close(st);
    return 0;
}
