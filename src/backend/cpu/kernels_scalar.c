/* The reference kernels, in plain C. They add in the order that cpu.h promises. */
#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"
#include "base/half.h"

#include <float.h>
#include <math.h>
#include <string.h>

static bool always(void) {
    return true;
}

/* A stream of packed entries of one tile: where the next one of each row pair comes from. */
struct stream {
    const uint8_t *p[2]; /* LUT4: low and high nibbles; otherwise only p[0] */
};

static struct stream stream_open(const struct cpu_matrix *m, int64_t tile) {
    const uint8_t *p = m->values + m->offsets[tile];
    return (struct stream){{p, p}};
}

static uint64_t block_mask(const struct cpu_matrix *m, int64_t tile, int64_t block, int r) {
    return m->masks ? m->masks[(tile * m->n_blocks + block) * TILE_ROWS + r] : ~(uint64_t)0;
}

/* Expands row r's part of a block to 64 signed bytes. */
static void expand_codes(const struct cpu_matrix *m, struct stream *s, uint64_t mask, int r,
                         int8_t out[BLOCK_COLS]) {
    bool high = m->kind == CPU_LUT4 && r >= 2;
    const uint8_t *p = s->p[high];
    memset(out, 0, BLOCK_COLS);
    for (; mask; mask &= mask - 1) {
        uint8_t code = *p++;
        if (m->kind == CPU_LUT4)
            out[__builtin_ctzll(mask)] = m->table4[high ? code >> 4 : code & 15];
        else
            out[__builtin_ctzll(mask)] = (int8_t)code;
    }
    s->p[high] = p;
}

/* A stream is read from its beginning, so blocks in front of block0 cost the bits of their masks. */
static void expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                   int8_t *out, int64_t stride) {
    struct stream s = stream_open(m, tile);
    for (int64_t block = 0; block < block1; block++)
        for (int r = 0; r < TILE_ROWS; r++) {
            int8_t w[BLOCK_COLS];
            expand_codes(m, &s, block_mask(m, tile, block, r), r, w);
            if (block >= block0) memcpy(out + r * stride + (block - block0) * BLOCK_COLS, w, 64);
        }
}

/* Adds a block's products to 16 lanes: lane l of half h takes columns 32 h + 2 l and 2 l + 1. */
static void add_block(const int8_t *w, const int16_t *x, int half, int32_t lanes[16]) {
    for (int l = 0; l < 16; l++) {
        int c = 32 * half + 2 * l;
        lanes[l] += w[c] * x[c] + w[c + 1] * x[c + 1];
    }
}

/* One scale per row: the exact sum of all products, rounded once. */
static float row_scaled(int64_t sum, float scale, float act_scale) {
    return (float)sum * (scale * act_scale);
}

static void product_integer(const struct cpu_matrix *m, int64_t tile0, int64_t tile1,
                            const struct cpu_act *act, uint32_t n, float *out, int64_t stride) {
    for (uint32_t t = 0; t < n; t++) {
        for (int64_t tile = tile0; tile < tile1; tile++) {
            struct stream s = stream_open(m, tile);
            int64_t sums[TILE_ROWS] = {0};
            int32_t lanes[TILE_ROWS][2][16] = {{{0}}};
            float grouped[TILE_ROWS][16] = {{0}};
            const float *scales = m->scales + tile * m->n_groups * TILE_ROWS;
            int64_t blocks_per_group = m->group > BLOCK_COLS ? m->group / BLOCK_COLS : 1;
            for (int64_t block = 0; block < m->n_blocks; block++) {
                const int16_t *x = act[t].q + block * BLOCK_COLS;
                bool group_ends = (block + 1) % blocks_per_group == 0 || block + 1 == m->n_blocks;
                for (int r = 0; r < TILE_ROWS; r++) {
                    int8_t w[BLOCK_COLS];
                    expand_codes(m, &s, block_mask(m, tile, block, r), r, w);
                    if (m->group == 0) {
                        for (int c = 0; c < BLOCK_COLS; c++) sums[r] += w[c] * x[c];
                        continue;
                    }
                    for (int half = 0; half < 2; half++)
                        add_block(w, x, half, lanes[r][m->group == 32 ? half : 0]);
                    if (!group_ends) continue;
                    for (int part = 0; part < (m->group == 32 ? 2 : 1); part++) {
                        int64_t g = m->group == 32 ? 2 * block + part : block / blocks_per_group;
                        float scale = scales[g * TILE_ROWS + r];
                        for (int l = 0; l < 16; l++)
                            grouped[r][l] += (float)lanes[r][part][l] * scale;
                        memset(lanes[r][part], 0, sizeof lanes[r][part]);
                    }
                }
            }
            for (int r = 0; r < TILE_ROWS && tile * TILE_ROWS + r < m->rows; r++)
                out[t * stride + (tile - tile0) * TILE_ROWS + r] =
                    m->group ? lanes_sum(grouped[r]) * act[t].scale
                             : row_scaled(sums[r], scales[r], act[t].scale);
        }
    }
}

static float entry_value(const struct cpu_matrix *m, const uint8_t *p, float scale) {
    uint16_t h;
    float f;
    switch (m->kind) {
    case CPU_F32: memcpy(&f, p, 4); return f;
    case CPU_BF16: memcpy(&h, p, 2); return pd_bf16_to_float(h);
    case CPU_F16: memcpy(&h, p, 2); return pd_f16_to_float(h);
    default: return m->table[*p] * scale;
    }
}

/* The scale of column c of a block; 1 for kinds without scales. */
static float entry_scale(const struct cpu_matrix *m, int64_t tile, int64_t block, int r, int c) {
    if (!m->scales) return 1;
    int64_t g = m->group ? (block * BLOCK_COLS + c) / m->group : 0;
    return m->scales[(tile * m->n_groups + g) * TILE_ROWS + r];
}

static void expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride) {
    size_t size = m->kind == CPU_F32 ? 4 : m->kind == CPU_LUT8 ? 1 : 2;
    const uint8_t *p = m->values + m->offsets[tile];
    for (int64_t block = 0; block < m->n_blocks; block++) {
        for (int r = 0; r < TILE_ROWS; r++) {
            float *w = out + r * stride + block * BLOCK_COLS;
            uint64_t mask = block_mask(m, tile, block, r);
            memset(w, 0, BLOCK_COLS * sizeof *w);
            for (; mask; mask &= mask - 1, p += size) {
                int c = __builtin_ctzll(mask);
                w[c] = entry_value(m, p, entry_scale(m, tile, block, r, c));
            }
        }
    }
}

static void product_float(const struct cpu_matrix *m, int64_t tile0, int64_t tile1,
                          const struct cpu_act *act, uint32_t n, float *out, int64_t stride) {
    size_t size = m->kind == CPU_F32 ? 4 : m->kind == CPU_LUT8 ? 1 : 2;
    for (uint32_t t = 0; t < n; t++) {
        for (int64_t tile = tile0; tile < tile1; tile++) {
            const uint8_t *p = m->values + m->offsets[tile];
            float lanes[TILE_ROWS][16] = {{0}};
            for (int64_t block = 0; block < m->n_blocks; block++) {
                const float *x = act[t].x + block * BLOCK_COLS;
                for (int r = 0; r < TILE_ROWS; r++) {
                    uint64_t mask = block_mask(m, tile, block, r);
                    for (; mask; mask &= mask - 1, p += size) {
                        int c = __builtin_ctzll(mask);
                        float scale = entry_scale(m, tile, block, r, c);
                        lanes[r][c % 16] += entry_value(m, p, scale) * x[c];
                    }
                }
            }
            for (int r = 0; r < TILE_ROWS && tile * TILE_ROWS + r < m->rows; r++)
                out[t * stride + (tile - tile0) * TILE_ROWS + r] = lanes_sum(lanes[r]);
        }
    }
}

static void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    float lanes[16] = {0};
    for (int64_t i = 0; i < n; i++) lanes[i % 16] += x[i] * x[i];
    float scale = 1.0f / sqrtf(lanes_sum(lanes) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

static float quantise(const float *x, int64_t n, int16_t *out) {
    float amax = 0;
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (a > amax) amax = a;
        finite &= a <= FLT_MAX;
    }
    if (!finite || amax < 1e-30f) { /* below, 32767 / amax overflows */
        memset(out, 0, (size_t)n * sizeof *out);
        return finite ? 0.0f : NAN;
    }
    float inverse = 32767.0f / amax;
    for (int64_t i = 0; i < n; i++) {
        float v = rintf(x[i] * inverse);
        out[i] = (int16_t)(v > 32767 ? 32767 : v < -32767 ? -32767 : v);
    }
    return amax / 32767.0f;
}

static float dot_f32(const float *a, const void *row, uint32_t n) {
    float lanes[16] = {0};
    const float *b = row;
    for (uint32_t i = 0; i < n; i++) lanes[i % 16] += a[i] * b[i];
    return lanes_sum(lanes);
}

static float dot_f16(const float *a, const void *row, uint32_t n) {
    float lanes[16] = {0};
    const uint16_t *b = row;
    for (uint32_t i = 0; i < n; i++) lanes[i % 16] += a[i] * pd_f16_to_float(b[i]);
    return lanes_sum(lanes);
}

static float dot_i8(const float *a, const void *row, uint32_t n) {
    float lanes[16] = {0};
    const int8_t *b = row;
    for (uint32_t i = 0; i < n; i++) lanes[i % 16] += a[i] * (float)b[i];
    return lanes_sum(lanes);
}

static void add_f32(float *acc, float p, const void *row, uint32_t n) {
    const float *b = row;
    for (uint32_t i = 0; i < n; i++) acc[i] += p * b[i];
}

static void add_f16(float *acc, float p, const void *row, uint32_t n) {
    const uint16_t *b = row;
    for (uint32_t i = 0; i < n; i++) acc[i] += p * pd_f16_to_float(b[i]);
}

static void add_i8(float *acc, float p, const void *row, uint32_t n) {
    const int8_t *b = row;
    for (uint32_t i = 0; i < n; i++) acc[i] += p * (float)b[i];
}

const struct cpu_kernels cpu_kernels_scalar = {
    .name = "scalar",
    .supported = always,
    .product = {[CPU_INT8] = {product_integer, product_integer},
                [CPU_LUT4] = {product_integer, product_integer},
                [CPU_F32] = {product_float, product_float},
                [CPU_BF16] = {product_float, product_float},
                [CPU_F16] = {product_float, product_float},
                [CPU_LUT8] = {product_float, product_float}},
    .expand = expand,
    .expand_float = expand_float,
    .batch = &cpu_batch_scalar,
    .attention = &cpu_attention_scalar,
    .rms_norm = rms_norm,
    .quantise = quantise,
    .dot = {[PDVM_KV_F32] = dot_f32, [PDVM_KV_F16] = dot_f16, [PDVM_KV_INT8] = dot_i8},
    .add_scaled = {[PDVM_KV_F32] = add_f32, [PDVM_KV_F16] = add_f16, [PDVM_KV_INT8] = add_i8},
};
