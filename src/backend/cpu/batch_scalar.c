/*
 * Batch kernels in plain C, written so that compilers find their instructions for sums of products
 * of 16-bit integers.
 */
#include "backend/cpu/batch.h"

#include <string.h>

/* Columns whose products of 8 by 16 bits fit a 32-bit sum: 512 * 127 * 32639 < 2^31. */
#define SEGMENT 512

/* Activations stay as they are, vector after vector. */
static void pack(const int16_t *q, int64_t n_blocks, int digits, uint32_t t, void *out) {
    (void)digits;
    size_t cols = (size_t)n_blocks * BLOCK_COLS;
    memcpy((int16_t *)out + t * cols, q, cols * sizeof *q);
}

static int32_t dot(const int16_t *w, const int16_t *x, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += w[i] * x[i];
    return sum;
}

/* Row r of a panel, columns [column, column + n), as 16-bit integers. */
static void widen_row(const struct cpu_panel *panel, int64_t r, int64_t column, int64_t n,
                      int16_t *out) {
    const int8_t *codes = panel->codes + r / 16 * panel->stride + r % 16 * 4 + column * 16;
    for (int64_t c = 0; c < n; c += 4, codes += 64)
        for (int i = 0; i < 4; i++) out[c + i] = (int16_t)codes[i];
}

static void integers(const struct cpu_panel *panel, const struct cpu_token_tile *tokens, float *out,
                     int64_t stride) {
    const struct cpu_matrix *m = panel->m;
    const int64_t cols = m->n_blocks * BLOCK_COLS, step = m->group ? m->group : SEGMENT;
    for (int64_t r = 0; r < panel->rows; r++) {
        const int64_t tile = panel->tile0 + r / TILE_ROWS;
        int64_t sums[BATCH_TOKENS] = {0};
        float lanes[BATCH_TOKENS][16] = {{0}};
        for (int64_t c = 0, g = 0; c < cols; c += step, g++) {
            int64_t n = c + step < cols ? step : cols - c;
            int16_t w[SEGMENT];
            const float scale = cpu_scale(m, tile, g, r % TILE_ROWS);
            widen_row(panel, r, c, n, w);
            for (uint32_t t = 0; t < tokens->n; t++) {
                int32_t sum = dot(w, (const int16_t *)tokens->packed + t * cols + c, n);
                if (m->group)
                    lanes[t][g % 16] += (float)sum * scale;
                else
                    sums[t] += sum;
            }
        }
        const float row_scale = m->group ? 1 : cpu_scale(m, tile, 0, r % TILE_ROWS);
        for (uint32_t t = 0; t < tokens->n; t++)
            out[t * stride + r] = m->group ? lanes_sum(lanes[t]) * tokens->scales[t]
                                           : (float)sums[t] * (row_scale * tokens->scales[t]);
    }
}

static void floats(const struct cpu_panel *panel, const struct cpu_token_tile *tokens, float *out,
                   int64_t stride) {
    int64_t cols = panel->m->n_blocks * BLOCK_COLS;
    for (int64_t r = 0; r < panel->rows; r++) {
        const float *w = panel->values + r * panel->stride;
        for (uint32_t t = 0; t < tokens->n; t++) {
            const float *x = tokens->x[t];
            float lanes[16] = {0};
            for (int64_t c = 0; c < cols; c += 16)
                for (int l = 0; l < 16; l++) lanes[l] += w[c + l] * x[c + l];
            out[t * stride + r] = lanes_sum(lanes);
        }
    }
}

const struct cpu_batch_kernels cpu_batch_scalar = {
    .min_tokens = 4,
    .pack = pack,
    .integers = integers,
    .floats = floats,
};
