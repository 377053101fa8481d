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

static void try_file(const uint8_t *data, size_t size) {
    struct safetensors *st;
    pdvm_error err;
    if (safetensors_open_memory("fuzz", data, size, &st, &err) != PDVM_OK) {
        if (err.message[0] == 0) abort();
        return;
    }
    size_t total = 0;
    const uint8_t *end = NULL;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct safetensors_tensor *t = safetensors_at(st, i);
        if (end && t->data != end) abort();
        end = t->data + t->size;
        if (end > data + size || safetensors_find(st, t->name) != t) abort();
        float out[64];
        int64_t n = t->n_elements < 64 ? t->n_elements : 64;
        if (safetensors_to_float(st, t, t->n_elements - n, n, out, &err) == PDVM_OK && n > 0)
            total += out[0] == out[0];
    }
    size_t n = 0;
    safetensors_metadata_each(st, touch_pair, &n);
    if (n > size || total > safetensors_count(st)) abort();
    safetensors_close(st);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try_file(data, size);
    if (size == 0 || data[0] != '{') return 0;

    /* A header without its size: mutations that change its length stay interesting. It ends with
       the last brace, and the tensors' bytes follow. */
    size_t header = size;
    while (data[header - 1] != '}' && header > 1) header--;
    uint8_t *file = malloc(8 + size);
    if (!file) return 0;
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)header >> (8 * i));
    memcpy(file + 8, data, size);
    try_file(file, 8 + size);
    free(file);
    return 0;
}
