#include "io/gguf_types.h"

#include "base/half.h"

#include <string.h>

static const struct gguf_type_info types[] = {
    [GGUF_F32] = {"F32", 1, 4, true},
    [GGUF_F16] = {"F16", 1, 2, true},
    [GGUF_Q4_0] = {"Q4_0", 32, 18, true},
    [GGUF_Q4_1] = {"Q4_1", 32, 20, true},
    [GGUF_Q5_0] = {"Q5_0", 32, 22, true},
    [GGUF_Q5_1] = {"Q5_1", 32, 24, true},
    [GGUF_Q8_0] = {"Q8_0", 32, 34, true},
    [9] = {"Q8_1", 32, 36, false},
    [10] = {"Q2_K", 256, 84, false},
    [11] = {"Q3_K", 256, 110, false},
    [GGUF_Q4_K] = {"Q4_K", 256, 144, true},
    [GGUF_Q5_K] = {"Q5_K", 256, 176, true},
    [GGUF_Q6_K] = {"Q6_K", 256, 210, true},
    [15] = {"Q8_K", 256, 292, false},
    [16] = {"IQ2_XXS", 256, 66, false},
    [17] = {"IQ2_XS", 256, 74, false},
    [18] = {"IQ3_XXS", 256, 98, false},
    [19] = {"IQ1_S", 256, 50, false},
    [20] = {"IQ4_NL", 32, 18, false},
    [21] = {"IQ3_S", 256, 110, false},
    [22] = {"IQ2_S", 256, 82, false},
    [23] = {"IQ4_XS", 256, 136, false},
    [24] = {"I8", 1, 1, false},
    [25] = {"I16", 1, 2, false},
    [26] = {"I32", 1, 4, false},
    [27] = {"I64", 1, 8, false},
    [GGUF_F64] = {"F64", 1, 8, true},
    [29] = {"IQ1_M", 256, 56, false},
    [GGUF_BF16] = {"BF16", 1, 2, true},
    [34] = {"TQ1_0", 256, 54, false},
    [35] = {"TQ2_0", 256, 66, false},
    [39] = {"MXFP4", 32, 17, false},
};

const struct gguf_type_info *gguf_type_info(uint32_t type) {
    return type < sizeof types / sizeof *types && types[type].name ? &types[type] : NULL;
}

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static float load_half(const uint8_t *p) {
    return pd_f16_to_float(load_u16(p));
}

static void q8_0(const uint8_t *b, float *y) {
    float d = load_half(b);
    for (int i = 0; i < 32; i++) y[i] = (float)(int8_t)b[2 + i] * d;
}

static void q4_0(const uint8_t *b, float *y) {
    float d = load_half(b);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

static void q4_1(const uint8_t *b, float *y) {
    float d = load_half(b), m = load_half(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(b[4 + i] & 15) * d + m;
        y[i + 16] = (float)(b[4 + i] >> 4) * d + m;
    }
}

static void q5_0(const uint8_t *b, float *y) {
    float d = load_half(b);
    uint32_t high = load_u32(b + 2);
    for (int i = 0; i < 16; i++) {
        int low = (b[6 + i] & 15) | (int)(high >> i & 1) << 4;
        int up = b[6 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        y[i] = (float)(low - 16) * d;
        y[i + 16] = (float)(up - 16) * d;
    }
}

static void q5_1(const uint8_t *b, float *y) {
    float d = load_half(b), m = load_half(b + 2);
    uint32_t high = load_u32(b + 4);
    for (int i = 0; i < 16; i++) {
        int low = (b[8 + i] & 15) | (int)(high >> i & 1) << 4;
        int up = b[8 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        y[i] = (float)low * d + m;
        y[i + 16] = (float)up * d + m;
    }
}

/*
 * Scale and minimum number j of the eight pairs of a Q4_K or Q5_K block: 6 bits each, the first
 * four pairs in the low bits of bytes 0-7, the others split between bytes 8-11 and the high bits
 * of bytes 0-7.
 */
static void scale_and_min(const uint8_t *s, int j, float *scale, float *min) {
    int sc, m;
    if (j < 4) {
        sc = s[j] & 63;
        m = s[j + 4] & 63;
    } else {
        sc = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        m = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
    *scale = (float)sc;
    *min = (float)m;
}

static void q4_k(const uint8_t *b, float *y) {
    float d = load_half(b), dmin = load_half(b + 2);
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 16 + 32 * (j / 2);
        int shift = 4 * (j % 2);
        float scale, min;
        scale_and_min(b + 4, j, &scale, &min);
        float d1 = d * scale, m1 = dmin * min;
        for (int i = 0; i < 32; i++) y[32 * j + i] = d1 * (float)(q[i] >> shift & 15) - m1;
    }
}

static void q5_k(const uint8_t *b, float *y) {
    float d = load_half(b), dmin = load_half(b + 2);
    const uint8_t *high = b + 16;
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 48 + 32 * (j / 2);
        int shift = 4 * (j % 2);
        float scale, min;
        scale_and_min(b + 4, j, &scale, &min);
        float d1 = d * scale, m1 = dmin * min;
        for (int i = 0; i < 32; i++) {
            int v = (q[i] >> shift & 15) | (high[i] >> j & 1) << 4;
            y[32 * j + i] = d1 * (float)v - m1;
        }
    }
}

static void q6_k(const uint8_t *b, float *y) {
    float d = load_half(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
        int low = b[64 * half + 32 * (quarter % 2) + lane] >> 4 * (quarter / 2) & 15;
        int high = b[128 + 32 * half + lane] >> 2 * quarter & 3;
        float scale = (float)(int8_t)b[192 + i / 16];
        y[i] = d * scale * (float)((low | high << 4) - 32);
    }
}

/* Types without blocks. */
static bool plain(uint32_t type, const uint8_t *data, size_t n, float *out) {
    double d;
    switch (type) {
    case GGUF_F32: memcpy(out, data, n * sizeof *out); return true;
    case GGUF_F16:
        for (size_t i = 0; i < n; i++) out[i] = load_half(data + 2 * i);
        return true;
    case GGUF_BF16:
        for (size_t i = 0; i < n; i++) out[i] = pd_bf16_to_float(load_u16(data + 2 * i));
        return true;
    case GGUF_F64:
        for (size_t i = 0; i < n; i++) {
            memcpy(&d, data + 8 * i, sizeof d);
            out[i] = (float)d;
        }
        return true;
    default: return false;
    }
}

bool gguf_dequantize(uint32_t type, const uint8_t *data, size_t n_blocks, float *out) {
    void (*block)(const uint8_t *, float *) = NULL;
    switch (type) {
    case GGUF_Q8_0: block = q8_0; break;
    case GGUF_Q4_0: block = q4_0; break;
    case GGUF_Q4_1: block = q4_1; break;
    case GGUF_Q5_0: block = q5_0; break;
    case GGUF_Q5_1: block = q5_1; break;
    case GGUF_Q4_K: block = q4_k; break;
    case GGUF_Q5_K: block = q5_k; break;
    case GGUF_Q6_K: block = q6_k; break;
    default: return plain(type, data, n_blocks, out);
    }
    for (size_t i = 0; i < n_blocks; i++)
        block(data + i * types[type].bytes, out + i * types[type].block);
    return true;
}
