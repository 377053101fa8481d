// A file of packed weights from a stranger: whatever its bytes, a matrix is refused, or it can be
// multiplied without a step outside its arrays.
//
// The input is the metadata of a matrix without the checksum, a newline, and the tensor. The right
// checksum is added, so that mutations get behind it.

#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/hash.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 21
#define COLS 150
#define HEADER 1016 // the data begin at a multiple of 128
#define MOST_BYTES (1 << 18)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void multiply(const struct cpu_matrix *m) {
    float x[192], out[2 * TILE_ROWS * 4];
    for (int i = 0; i < 192; i++) x[i] = i < COLS ? (float)(i % 7) - 3 : 0;
    for (size_t k = 0; cpu_kernels_at(k); k++) {
        const struct cpu_kernels *kernels = cpu_kernels_at(k);
        struct cpu_act act = {.x = x};
        void *memory;
        if (!kernels->supported()) continue;
        if (pd_alloc_aligned(&memory, cpu_act_bytes(COLS), "fuzz", NULL) != PDVM_OK) return;
        cpu_act_place(&act, memory, COLS);
        kernels->quantise(x, COLS, &act);
        kernels->product[m->kind][m->dense](m, 0, m->n_tiles, &act, 1, out, ROWS);
        free(memory);
    }
}

/* The file's image, aligned as a map would be; NULL: not worth trying. */
static uint8_t *make_file(const char *facts, const uint8_t *tensor, size_t n, size_t *size) {
    char text[256], header[HEADER + 1];
    uint8_t *file;
    uint64_t piece = pd_hash_large(PD_HASH_INIT, tensor, n);
    snprintf(text, sizeof text, "%s %016" PRIx64, facts, pd_hash(PD_HASH_INIT, &piece, 8));
    int used = snprintf(header, sizeof header,
                        "{\"__metadata__\":{\"m\":\"%s\"},\"m\":{\"dtype\":\"U8\",\"shape\":[%zu],"
                        "\"data_offsets\":[0,%zu]}}",
                        text, n, n);
    if (used < 0 || used > HEADER) return NULL;
    memset(header + used, ' ', (size_t)(HEADER - used));
    *size = 8 + HEADER + n;
    if (pd_alloc_aligned(&file, *size, "fuzz", NULL) != PDVM_OK) return NULL;
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)HEADER >> (8 * i));
    memcpy(file + 8, header, HEADER);
    memcpy(file + 8 + HEADER, tensor, n);
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *line = memchr(data, '\n', size < 200 ? size : 200);
    char facts[201];
    if (!line || size > MOST_BYTES) return 0;
    size_t length = (size_t)(line - data), n = size - length - 1;
    for (size_t i = 0; i < length; i++) {
        bool plain = data[i] == ' ' || (data[i] >= '0' && data[i] <= '9') ||
                     (data[i] >= 'a' && data[i] <= 'z');
        if (!plain) return 0;
        facts[i] = (char)data[i];
    }
    facts[length] = '\0';
    size_t file_size;
    uint8_t *file = make_file(facts, line + 1, n, &file_size);
    if (!file) return 0;
    struct safetensors *st;
    struct cpu_matrix *m;
    struct pd_arena arena = {0};
    pdvm_error err = {0};
    if (safetensors_open_memory("fuzz", file, file_size, &st, &err) == PDVM_OK) {
        if (cpu_matrix_map(st, "m", ROWS, COLS, NULL, &arena, &m, &err) == PDVM_OK) {
            multiply(m);
            cpu_matrix_free(m);
        } else if (err.message[0] == 0) {
            abort();
        }
        safetensors_close(st);
    }
    pd_arena_free(&arena);
    free(file);
    return 0;
}
