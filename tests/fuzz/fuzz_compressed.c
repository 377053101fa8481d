// Fuzz target: one weight in the forms of compressed-tensors. The input chooses sizes and parts,
// their types, shapes and bytes; what opens must read the same in one piece and row by row.
//
// Input: rows, columns, a mask of parts, then for each part one byte that is 0 for the right type
// and shape or says what is wrong with them; the rest are the parts' bytes.

#include "model/compressed_tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 12
#define MAX_COLS 40
#define MAX_DATA 8192

static const struct {
    const char *name;
    const char *dtype;
} parts[] = {
    {"w.shape", "I64"},
    {"w.compressed", "BF16"},
    {"w.compressed", "F8_E4M3"},
    {"w.bitmask", "U8"},
    {"w.row_offsets", "I64"},
    {"w.weight_packed", "I32"},
    {"w.weight_shape", "I64"},
    {"w.weight_scale", "F32"},
    {"w.weight_zero_point", "I32"},
    {"w.weight_zero_point", "I8"},
    {"w.weight_g_idx", "I32"},
    {"w.weight", "I8"},
    {"w.weight", "F8_E5M2"},
    {"w.weight.compressed", "F32"},
    {"w.weight.bitmask", "U8"},
    {"w.weight.shape", "I32"},
};
#define N_PARTS (sizeof parts / sizeof *parts)

struct input {
    const uint8_t *data;
    size_t size;
};

static uint8_t next(struct input *in) {
    if (in->size == 0) return 0;
    in->size--;
    return *in->data++;
}

static size_t dtype_size(const char *dtype) {
    for (int d = 0; d < SAFETENSORS_N_DTYPES; d++)
        if (strcmp(dtype, safetensors_dtype_name((enum safetensors_dtype)d)) == 0)
            return safetensors_dtype_size((enum safetensors_dtype)d);
    abort();
}

/* The right shape of part i; `n` is free where the format leaves it so. */
static int right_shape(size_t i, int64_t rows, int64_t cols, int64_t n, int64_t *dims) {
    static const char *const flat[] = {"shape", "row_offsets", "g_idx"};
    const char *name = parts[i].name;
    dims[0] = rows;
    dims[1] = cols;
    for (size_t k = 0; k < 3; k++) {
        if (!strstr(name, flat[k])) continue;
        dims[0] = k == 0 ? 2 : k == 1 ? rows : cols;
        return 1;
    }
    if (strstr(name, "bitmask")) dims[1] = (cols + 7) / 8;
    if (strstr(name, "packed")) dims[1] = n % 2 ? (cols + 7) / 8 : (cols + 3) / 4;
    if (strstr(name, "scale") || strstr(name, "zero_point")) dims[1] = 1 + n % 4;
    if (strstr(name, "zero_point") && strcmp(parts[i].dtype, "I32") == 0)
        dims[0] = n % 2 ? (rows + 7) / 8 : (rows + 3) / 4;
    if (!strstr(name, "compressed")) return 2;
    dims[0] = n % 2 ? rows : n * 2;
    dims[1] = cols / 2;
    return n % 2 ? 2 : 1;
}

/* Writes the file that the input describes; returns its size, 0 if there is no room. */
static size_t build(struct input *in, int64_t rows, int64_t cols, uint8_t *file, size_t max) {
    char header[4096] = "{";
    size_t n = 1, end = 0;
    unsigned mask = next(in);
    mask |= (unsigned)next(in) << 8;
    for (size_t i = 0; i < N_PARTS; i++) {
        if (!(mask >> i & 1)) continue;
        if (n > 1 && header[n - 1] == '}' && strstr(header, parts[i].name)) {
            /* A second tensor of one name would only test the container. */
            char quoted[64];
            snprintf(quoted, sizeof quoted, "\"%s\"", parts[i].name);
            if (strstr(header, quoted)) continue;
        }
        uint8_t fault = next(in), count = next(in);
        const char *dtype = parts[i].dtype;
        int64_t dims[2];
        int n_dims = right_shape(i, rows, cols, count, dims);
        if (fault & 1)
            dtype = safetensors_dtype_name((enum safetensors_dtype)(count % SAFETENSORS_N_DTYPES));
        if (fault & 2) dims[0] = count;
        if (fault & 4) n_dims = count % 3;
        size_t bytes = dtype_size(dtype);
        for (int d = 0; d < n_dims; d++) bytes *= (size_t)dims[d];
        char shape[64] = "";
        if (n_dims == 1) snprintf(shape, sizeof shape, "%d", (int)dims[0]);
        if (n_dims == 2) snprintf(shape, sizeof shape, "%d,%d", (int)dims[0], (int)dims[1]);
        n += (size_t)snprintf(
            header + n, sizeof header - n,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
            n > 1 ? "," : "", parts[i].name, dtype, shape, end, end + bytes);
        end += bytes;
    }
    header[n++] = '}';
    if (8 + n + end > max) return 0;
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(file + 8, header, n);
    memset(file + 8 + n, 0, end);
    memcpy(file + 8 + n, in->data, in->size < end ? in->size : end);
    return 8 + n + end;
}

static void read_both_ways(const struct compressed_tensor *t) {
    static float whole[MAX_ROWS * MAX_COLS], row[MAX_COLS];
    pdvm_error err = {0};
    bool good = compressed_tensor_read_rows(t, 0, t->rows, whole, &err) == PDVM_OK;
    if (!good && err.message[0] == 0) abort();
    bool all = true;
    for (int64_t r = 0; r < t->rows; r++) {
        if (compressed_tensor_read_rows(t, r, 1, row, &err) != PDVM_OK)
            all = false;
        else if (good && memcmp(row, whole + r * t->cols, (size_t)t->cols * sizeof *row) != 0)
            abort();
    }
    if (all != good || compressed_tensor_bytes(t) == 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    struct tensor_info info = {.role = TENSOR_Q, .name = "w.weight", .is_matrix = true};
    info.rows = 1 + next(&in) % MAX_ROWS;
    info.cols = 1 + next(&in) % MAX_COLS;
    size_t max = MAX_DATA + 4096 + size;
    uint8_t *file = malloc(max);
    if (!file) return 0;
    size_t n = build(&in, info.rows, info.cols, file, max);
    struct safetensors *st;
    pdvm_error err = {0};
    if (n > 0 && safetensors_open_memory("fuzz", file, n, &st, &err) == PDVM_OK) {
        struct compressed_tensor *t;
        if (compressed_tensor_open(&st, 1, &info, &t, &err) != PDVM_OK) {
            if (t || err.message[0] == 0) abort();
        } else if (t) {
            read_both_ways(t);
        }
        free(t);
        safetensors_close(st);
    }
    free(file);
    return 0;
}
