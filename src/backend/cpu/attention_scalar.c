/*
 * Attention's kernels in plain C, the reference. The exponential is computed here and not by the C
 * library, so that every instruction set gives the same bits.
 */
#include "backend/cpu/attention.h"
#include "backend/cpu/exp.h"
#include "base/half.h"

#include <string.h>

static void silu_mul(const float *gate, const float *up, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

static float softmax(float *scores, uint32_t n, float scale, float state[2]) {
    float max = state[0], shrink = 1;
    float lanes[16] = {0};
    for (uint32_t i = 0; i < n; i++) {
        scores[i] *= scale;
        if (!(scores[i] <= max)) max = scores[i];
    }
    if (!(max <= state[0])) shrink = exp_f32(state[0] - max);
    for (uint32_t i = 0; i < n; i++) {
        scores[i] = exp_f32(scores[i] - max);
        lanes[i % 16] += scores[i];
    }
    state[0] = max;
    state[1] = state[1] * shrink + lanes_sum(lanes);
    return shrink;
}

static float element(const uint8_t *row, pdvm_kv_type type, uint32_t c) {
    if (type == PDVM_KV_F32) return ((const float *)(const void *)row)[c];
    if (type == PDVM_KV_F16) return pd_f16_to_float(((const uint16_t *)(const void *)row)[c]);
    return (float)((const int8_t *)row)[c];
}

static inline void keys(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d, float *out,
                        pdvm_kv_type type) {
    for (uint32_t c = 0; c < d; c++)
        for (uint32_t i = 0; i < KV_CHUNK; i++)
            out[c * KV_CHUNK + i] = i < n ? element(rows + i * row_bytes, type, c) : 0.0f;
}

static inline void values(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d, float *out,
                          pdvm_kv_type type) {
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < d; c++) out[i * d + c] = element(rows + i * row_bytes, type, c);
}

ATTENTION_ROWS(f32, PDVM_KV_F32)
ATTENTION_ROWS(f16, PDVM_KV_F16)
ATTENTION_ROWS(i8, PDVM_KV_INT8)

static void scores(const float *q, uint32_t n, const float *keys, uint32_t d, float *out) {
    for (uint32_t j = 0; j < n; j++) {
        float lanes[16][KV_CHUNK] = {{0}};
        for (uint32_t c = 0; c < d; c++)
            for (uint32_t i = 0; i < KV_CHUNK; i++)
                lanes[c % 16][i] += q[j * d + c] * keys[c * KV_CHUNK + i];
        for (int half = 8; half > 0; half /= 2) /* as lanes_sum does */
            for (int l = 0; l < half; l++)
                for (uint32_t i = 0; i < KV_CHUNK; i++) lanes[l][i] += lanes[l + half][i];
        memcpy(out + j * KV_CHUNK, lanes[0], sizeof lanes[0]);
    }
}

static void mix(const float *p, uint32_t n, uint32_t begin, uint32_t end, const float *values,
                uint32_t d, float *acc) {
    for (uint32_t j = 0; j < n; j++)
        for (uint32_t i = begin; i < end; i++)
            for (uint32_t c = 0; c < d; c++)
                acc[j * d + c] += p[j * KV_CHUNK + i] * values[i * d + c];
}

const struct cpu_attention_kernels cpu_attention_scalar = {
    .silu_mul = silu_mul,
    .softmax = softmax,
    .keys = {[PDVM_KV_F32] = keys_f32, [PDVM_KV_F16] = keys_f16, [PDVM_KV_INT8] = keys_i8},
    .values = {[PDVM_KV_F32] = values_f32, [PDVM_KV_F16] = values_f16, [PDVM_KV_INT8] = values_i8},
    .scores = scores,
    .mix = mix,
};
