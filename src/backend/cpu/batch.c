/* Batches of tokens: packing activations, expanding panels of weights. */
#include "backend/cpu/batch.h"

#include <string.h>

/* A panel and the activations that meet it shall fit a second-level cache of 1 to 2 MB. */
#define PANEL_BYTES ((size_t)768 << 10)

/* Between tiles of codes, or rows of floats: not a power of two, whose multiples would meet in a few
 * sets of the cache. */
static int64_t panel_stride(int64_t n_blocks, bool integer) {
    return n_blocks * BLOCK_COLS * (integer ? TILE_ROWS : 1) + 64;
}

size_t batch_panel_bytes(int64_t cols) {
    int64_t stride = panel_stride((cols + BLOCK_COLS - 1) / BLOCK_COLS, false);
    size_t least = PANEL_STEP * (size_t)stride * sizeof(float);
    return least > PANEL_BYTES ? least : PANEL_BYTES;
}

/* 16-bit integers in units of 65536 / 255, which gives -127..127. */
static void shorten(int16_t *q, int64_t n) {
    for (int64_t i = 0; i < n; i++) q[i] = (int16_t)((q[i] * 255 + 32768) >> 16);
}

void cpu_batch_pack(const struct cpu_kernels *k, struct cpu_batch_acts *acts, uint32_t tile,
                    const float *in, size_t stride, int64_t n, uint32_t n_tokens,
                    struct cpu_act *scratch) {
    uint8_t *packed = acts->packed + tile * acts->tile_bytes;
    float *scales = acts->scales + (size_t)tile * BATCH_TOKENS;
    if (n_tokens < BATCH_TOKENS) memset(packed, 0, acts->tile_bytes);
    for (uint32_t t = 0; t < n_tokens; t++) {
        k->quantise(in + t * stride, n, scratch);
        scales[t] = scratch->scale;
        if (acts->digits == 1) {
            shorten(scratch->q, n);
            scales[t] *= 65536.0f / 255;
        }
        k->batch->pack(scratch->q, (n + BLOCK_COLS - 1) / BLOCK_COLS, acts->digits, t, packed);
    }
}

void cpu_batch_product(const struct cpu_kernels *k, const struct cpu_matrix *m, int64_t tile0,
                       int64_t tile1, const struct cpu_batch_acts *acts, uint32_t n, void *panel,
                       float *out, int64_t stride) {
    const bool integer = cpu_kind_is_integer(m->kind);
    struct cpu_panel p = {.m = m, .stride = panel_stride(m->n_blocks, integer)};
    size_t row_bytes = integer ? (size_t)p.stride / TILE_ROWS : (size_t)p.stride * sizeof(float);
    int64_t most = (int64_t)(PANEL_BYTES / row_bytes) / PANEL_STEP * PANEL_STEP;
    if (most > PANEL_MAX_ROWS) most = PANEL_MAX_ROWS;
    if (most < PANEL_STEP) most = PANEL_STEP; /* what batch_panel_bytes has room for at least */
    if (integer)
        p.codes = panel;
    else
        p.values = panel;
    for (int64_t tile = tile0; tile < tile1; tile += most / TILE_ROWS) {
        int64_t end = tile + most / TILE_ROWS < tile1 ? tile + most / TILE_ROWS : tile1;
        p.tile0 = tile;
        p.rows = (end * TILE_ROWS < m->rows ? end * TILE_ROWS : m->rows) - tile * TILE_ROWS;
        for (int64_t i = tile; i < end; i++) {
            if (integer)
                k->expand(m, i, 0, m->n_blocks, (int8_t *)panel + (i - tile) * p.stride);
            else
                k->expand_float(m, i, (float *)panel + (i - tile) * TILE_ROWS * p.stride, p.stride);
        }
        if (integer && k->batch->arrange) k->batch->arrange(panel, (end - tile) * p.stride);
        for (uint32_t t = 0; t < n; t += BATCH_TOKENS) {
            size_t i = t / BATCH_TOKENS;
            const uint8_t *packed = acts->packed + i * acts->tile_bytes;
            bool last = t + BATCH_TOKENS >= n;
            struct cpu_token_tile tokens = {.packed = packed,
                                            .next = last ? NULL : packed + acts->tile_bytes,
                                            .digits = acts->digits,
                                            .scales = acts->scales + i * BATCH_TOKENS,
                                            .x = acts->x + i * BATCH_TOKENS,
                                            .n = n - t < BATCH_TOKENS ? n - t : BATCH_TOKENS};
            float *dst = out + t * stride + (tile - tile0) * TILE_ROWS;
            if (integer)
                k->batch->integers(&p, &tokens, dst, stride);
            else
                k->batch->floats(&p, &tokens, dst, stride);
        }
    }
}
