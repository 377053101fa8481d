// Fuzz target: any bytes as a .pdvm file. What opens must hold together, and every matrix that
// passes its check must give up its entries without a step outside its arrays.
//
// An input that begins with '#' is a file in parts, so that mutations reach past the escaping of
// JSON inside JSON and the header's size: '#', the text of pdvm.matrices, a newline, the members of
// the header, a newline, the tensors' bytes.

#include "mdcsr/container.h"

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_COLUMNS 4096

static void touch_matrix(const struct container *c, const struct container_matrix *info) {
    struct mdcsr m;
    pdvm_error err;
    if (container_matrix_find(c, info->name) != info) abort();
    if (container_read_matrix(c, info->name, &m, &err) != PDVM_OK) {
        if (err.message[0] == 0) abort();
        return;
    }
    if (m.rows != info->rows || m.cols != info->cols || m.n_entries != info->n_entries) abort();
    int64_t total = 0;
    for (int64_t r = 0; r < m.rows; r++) {
        int64_t n = mdcsr_row_entries(&m, r);
        total += n;
        if (n > m.cols) abort();
        if (m.cols > MOST_COLUMNS || r > 256) continue;
        uint32_t *cols = malloc((size_t)n * sizeof *cols + 1);
        float *row = malloc((size_t)m.cols * sizeof *row);
        if (cols && row) {
            mdcsr_row_columns(&m, r, cols);
            mdcsr_decode_row(&m, r, row);
            for (int64_t i = 0; i < n; i++)
                if (cols[i] >= m.cols || (i > 0 && cols[i] <= cols[i - 1])) abort();
        }
        free(cols);
        free(row);
    }
    if (total != m.n_entries) abort();
    mdcsr_free(&m);
}

static void try_file(const uint8_t *data, size_t size) {
    struct container *c;
    pdvm_error err;
    if (container_open_memory("fuzz", data, size, &c, &err) != PDVM_OK) {
        if (err.message[0] == 0) abort();
        return;
    }
    for (size_t i = 0; i < container_matrix_count(c); i++)
        touch_matrix(c, container_matrix_at(c, i));
    for (size_t i = 0; i < container_vector_count(c); i++) {
        int64_t n;
        const char *name = container_vector_at(c, i, &n);
        if (container_vector_size(c, name) != n) abort();
        float *x = malloc((size_t)n * sizeof *x);
        if (x) container_read_vector(c, name, x, n, &err);
        free(x);
    }
    const char *file;
    size_t file_size, sum = 0;
    container_file(c, "config.json", &file, &file_size);
    for (size_t i = 0; file && i < file_size; i++) sum += (unsigned char)file[i];
    if (sum > 255 * size) abort();
    container_verify_hash(c, &err);
    container_close(c);
}

/* The JSON string of n bytes, or an empty one if they are not UTF-8. Freed with free(). */
static char *quote(const uint8_t *text, size_t n) {
    json_t *string = json_stringn((const char *)text, n);
    char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY) : strdup("\"\"");
    json_decref(string);
    return quoted;
}

static void try_parts(const uint8_t *data, size_t size) {
    const uint8_t *line = memchr(data, '\n', size);
    if (!line) return;
    const uint8_t *members = line + 1, *end = data + size;
    const uint8_t *tensors = memchr(members, '\n', (size_t)(end - members));
    if (!tensors) return;
    char *matrices = quote(data, (size_t)(line - data));
    size_t room = (matrices ? strlen(matrices) : 0) + size + 300;
    char *file = malloc(room);
    if (file && matrices) {
        int n = snprintf(file + 8, room - 8,
                         "{\"__metadata__\":{\"format\":\"pdvm\",\"pdvm.version\":\"1\","
                         "\"pdvm.hash\":\"0123456789abcdef\",\"pdvm.matrices\":%s},%.*s}",
                         matrices, (int)(tensors - members), (const char *)members);
        uint64_t header = (uint64_t)n;
        for (int i = 0; i < 8; i++) file[i] = (char)(header >> (8 * i) & 0xff);
        size_t rest = (size_t)(end - tensors) - 1;
        memcpy(file + 8 + n, tensors + 1, rest);
        try_file((const uint8_t *)file, 8 + (size_t)n + rest);
    }
    free(file);
    free(matrices);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 0 && data[0] == '#')
        try_parts(data + 1, size - 1);
    else
        try_file(data, size);
    return 0;
}
