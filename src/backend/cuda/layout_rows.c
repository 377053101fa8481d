#include "backend/cuda/layout_rows.h"

#include "base/alloc.h"
#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

pdvm_status row_buffer_create(struct row_buffer *b, int64_t cols, pdvm_error *err) {
    size_t n = (size_t)cols + 1;
    *b = (struct row_buffer){0};
    PD_TRY(pd_calloc(&b->cols, n, sizeof *b->cols, "packing", err));
    PD_TRY(pd_calloc(&b->raw, n, 4, "packing", err));
    PD_TRY(pd_calloc(&b->col, n, sizeof *b->col, "packing", err));
    return pd_calloc(&b->src, n, sizeof *b->src, "packing", err);
}

void row_buffer_free(struct row_buffer *b) {
    free(b->cols);
    free(b->raw);
    free(b->col);
    free(b->src);
}

static void push(struct row_buffer *b, uint32_t col, int32_t src) {
    b->col[b->n] = col;
    b->src[b->n++] = src;
}

void row_sequence(const struct mdcsr *m, const struct gpu_coding *c, int64_t row,
                  struct row_buffer *b) {
    int64_t n = mdcsr_row_entries(m, row);
    b->n = 0;
    if (m->index_coding == MDCSR_DENSE)
        for (int64_t i = 0; i < n; i++) b->cols[i] = (uint32_t)i;
    else
        n = mdcsr_row_columns(m, row, b->cols);
    uint32_t next = 0;
    if (c->gap_bits == 0) {
        for (int64_t i = 0; i < n; i++) {
            while (next < b->cols[i]) push(b, next++, GPU_NO_ENTRY);
            push(b, next++, (int32_t)i);
        }
        while (next < m->cols) push(b, next++, GPU_NO_ENTRY);
        return;
    }
    uint32_t reach = (1u << c->gap_bits) - 1 - c->skip; /* the largest gap in front of a value */
    uint32_t step = c->skip ? 1 : 1u << c->gap_bits;    /* columns that a bridge takes */
    for (int64_t i = 0; i < n; i++) {
        while (b->cols[i] - next > reach) {
            push(b, next + step - 1, GPU_NO_ENTRY);
            next += step;
        }
        push(b, b->cols[i], (int32_t)i);
        next = b->cols[i] + 1;
    }
}

uint32_t gpu_value_bytes(enum gpu_values v) {
    static const uint32_t bytes[] = {
        [GPU_INT8] = 16, [GPU_LUT4] = 8, [GPU_F16] = 32, [GPU_BF16] = 32, [GPU_F32] = 64};
    return bytes[v];
}

uint32_t gpu_gap_bytes(uint32_t gap_bits) {
    static const uint32_t bytes[] = {
        [0] = 0, [2] = 4, [3] = 6, [4] = 8, [5] = 10, [6] = 12, [8] = 16};
    return bytes[gap_bits];
}

uint32_t gpu_coding_chunk_bytes(const struct gpu_coding *c) {
    return gpu_value_bytes(c->values) + gpu_gap_bytes(c->gap_bits) +
           (c->group && c->gap_bits ? 2 : 0);
}

void row_put_value(const struct mdcsr *m, const struct gpu_coding *c, const uint8_t *raw,
                   int32_t src, float scale, uint8_t *chunk, uint32_t lane, uint32_t slot) {
    switch (c->values) {
    case GPU_INT8: chunk[lane * 16 + slot] = src < 0 ? 0 : raw[src]; break;
    case GPU_LUT4: {
        uint8_t *p = &chunk[lane * 8 + slot / 2];
        uint8_t code = src < 0 ? c->zero : raw[src];
        *p = (uint8_t)(slot % 2 ? (*p & 15) | code << 4 : (*p & 0xf0) | code);
        break;
    }
    case GPU_F16:
    case GPU_BF16: {
        uint8_t *p = chunk + (slot / 8) * 16 * GPU_LANES + lane * 16 + slot % 8 * 2;
        if (src < 0)
            memset(p, 0, 2);
        else
            memcpy(p, raw + 2 * (size_t)src, 2);
        break;
    }
    case GPU_F32: {
        uint8_t *p = chunk + (slot / 4) * 16 * GPU_LANES + lane * 16 + slot % 4 * 4;
        float v = 0;
        if (src >= 0 && m->value_coding == MDCSR_LUT8)
            v = m->codebook[raw[src]] * scale;
        else if (src >= 0)
            memcpy(&v, raw + 4 * (size_t)src, 4);
        memcpy(p, &v, 4);
        break;
    }
    }
}

/* Sequence entries per stored entry for every number of gap bits, from a sample of the rows. */
static void measure_bridges(const struct mdcsr *m, struct row_buffer *b, bool skip,
                            double ratio[9]) {
    static const uint32_t bits[] = {2, 3, 4, 5, 6, 8};
    const int64_t step = m->rows > 64 ? m->rows / 64 : 1;
    uint64_t entries = 0, slots[9] = {0};
    for (int64_t r = 0; r < m->rows; r += step) {
        int64_t n = mdcsr_row_columns(m, r, b->cols);
        uint32_t next = 0;
        entries += (uint64_t)n;
        for (int64_t i = 0; i < n; i++) {
            uint32_t gap = b->cols[i] - next;
            next = b->cols[i] + 1;
            for (size_t k = 0; k < sizeof bits / sizeof *bits; k++) {
                uint32_t reach = (1u << bits[k]) - 2;
                uint32_t bridges = skip ? (gap > reach ? gap - reach : 0) : gap >> bits[k];
                slots[bits[k]] += 1 + bridges;
            }
        }
    }
    for (size_t k = 0; k < 9; k++) ratio[k] = entries ? (double)slots[k] / (double)entries : 1;
}

static int find_zero(const struct mdcsr *m) {
    if (m->value_coding != MDCSR_LUT4) return 0;
    for (int i = 0; i < 16; i++)
        if (m->codebook[i] == 0.0f) return i;
    return -1;
}

void row_choose_coding(const struct mdcsr *m, struct row_buffer *b, struct gpu_coding *out) {
    static const enum gpu_values values[MDCSR_N_VALUES] = {
        [MDCSR_F32] = GPU_F32,   [MDCSR_BF16] = GPU_BF16, [MDCSR_F16] = GPU_F16,
        [MDCSR_INT8] = GPU_INT8, [MDCSR_LUT8] = GPU_F32,  [MDCSR_LUT4] = GPU_LUT4};
    int zero = find_zero(m);
    *out = (struct gpu_coding){.values = values[m->value_coding],
                               .has_zero = zero >= 0,
                               .zero = zero < 0 ? 0 : (uint8_t)zero};
    if (out->values == GPU_INT8 || out->values == GPU_LUT4) out->group = m->group;
    if (m->index_coding == MDCSR_DENSE || out->values >= GPU_F16) return;

    bool missing = zero < 0;
    double positions = (double)m->rows * (double)m->cols;
    double best = missing ? INFINITY : gpu_value_bytes(out->values) * positions;
    if (out->group && !missing) best += positions * 32 / out->group;
    static const uint32_t bits[] = {2, 3, 4, 5, 6, 8};
    double ratio[9];
    measure_bridges(m, b, missing, ratio);
    for (size_t k = 0; k < sizeof bits / sizeof *bits; k++) {
        struct gpu_coding c = *out;
        c.gap_bits = bits[k];
        double bytes = gpu_coding_chunk_bytes(&c) * ratio[bits[k]] * (double)m->n_entries;
        if (bytes < best) {
            best = bytes;
            out->gap_bits = bits[k];
        }
    }
    out->skip = missing;
}
