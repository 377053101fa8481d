/* Norms, quantisation and rows of the KV cache for NEON. */
#include "backend/cpu/neon.h"

#include <float.h>
#include <math.h>

/* How many of the elements from i on exist, at most 16. */
ALWAYS_INLINE size_t left_of(int64_t n, int64_t i) {
    return (size_t)(n - i < 16 ? n - i : 16);
}

/* Elements i to i + 15 of n, zero behind the end. */
ALWAYS_INLINE struct lanes load_floats(const float *x, int64_t n, int64_t i) {
    struct lanes v;
    float buffer[16];
    const float *p = x + i;
    if (n - i < 16) {
        memset(buffer, 0, sizeof buffer);
        memcpy(buffer, p, left_of(n, i) * sizeof *x);
        p = buffer;
    }
    for (int k = 0; k < 4; k++) v.v[k] = vld1q_f32(p + 4 * k);
    return v;
}

ALWAYS_INLINE void store_floats(float *x, int64_t n, int64_t i, struct lanes v) {
    float buffer[16];
    float *p = n - i < 16 ? buffer : x + i;
    for (int k = 0; k < 4; k++) vst1q_f32(p + 4 * k, v.v[k]);
    if (p == buffer) memcpy(x + i, buffer, left_of(n, i) * sizeof *x);
}

void neon_rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    struct lanes sum = zero_lanes();
    for (int64_t i = 0; i < n; i += 16) {
        struct lanes v = load_floats(x, n, i);
        for (int k = 0; k < 4; k++) sum.v[k] = vaddq_f32(sum.v[k], vmulq_f32(v.v[k], v.v[k]));
    }
    float scale = 1.0f / sqrtf(sum16(sum) / (float)n + eps);
    for (int64_t i = 0; i < n; i += 16) {
        struct lanes v = load_floats(x, n, i), w = load_floats(weight, n, i);
        for (int k = 0; k < 4; k++) v.v[k] = vmulq_f32(vmulq_n_f32(v.v[k], scale), w.v[k]);
        store_floats(out, n, i, v);
    }
}

/* The largest magnitude of x[n], NaN if one is not finite. */
static float largest(const float *x, int64_t n) {
    float32x4_t max = vdupq_n_f32(0);
    uint32x4_t good = vdupq_n_u32(~0u);
    for (int64_t i = 0; i < n; i += 16) {
        struct lanes v = load_floats(x, n, i);
        for (int k = 0; k < 4; k++) {
            float32x4_t a = vabsq_f32(v.v[k]);
            good = vandq_u32(good, vcleq_f32(a, vdupq_n_f32(FLT_MAX)));
            max = vmaxq_f32(max, a);
        }
    }
    return vminvq_u32(good) ? vmaxvq_f32(max) : NAN;
}

/* Stores 8 integers and their digits. */
ALWAYS_INLINE void store_quantised(int16x8_t q, int64_t i, struct cpu_act *act) {
    int8x8_t high = vrshrn_n_s16(q, 8); /* (q + 128) / 256, rounded down */
    vst1q_s16(act->q + i, q);
    vst1_s8(act->high + i, high);
    vst1_s8(act->low + i, vmovn_s16(q)); /* q mod 256 */
}

void neon_quantise(const float *x, int64_t n, struct cpu_act *act) {
    int64_t padded = (n + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    float amax = largest(x, n);
    bool bad = isnan(amax), zero = bad || amax < 1e-30f; /* below, ACT_MAX / amax overflows */
    const float inverse = zero ? 0 : ACT_MAX / amax;
    const int32x4_t limit = vdupq_n_s32(ACT_MAX), least = vdupq_n_s32(-ACT_MAX);
    act->scale = bad ? NAN : zero ? 0 : amax / ACT_MAX;
    for (int64_t i = 0; i < padded; i += BIAS_COLS) {
        int32x4_t sum = vdupq_n_s32(0);
        for (int64_t j = i; j < i + BIAS_COLS; j += 16) {
            int32x4_t q[4];
            struct lanes v = !zero && j < n ? load_floats(x, n, j) : zero_lanes();
            for (int k = 0; k < 4; k++) {
                q[k] = vcvtnq_s32_f32(vmulq_n_f32(v.v[k], inverse));
                q[k] = vmaxq_s32(vminq_s32(q[k], limit), least);
                sum = vaddq_s32(sum, q[k]);
            }
            for (int k = 0; k < 4; k += 2)
                store_quantised(vcombine_s16(vmovn_s32(q[k]), vmovn_s32(q[k + 1])), j + 4 * k, act);
        }
        act->bias[i / BIAS_COLS] = 128 * vaddvq_s32(sum);
    }
}

/* 16 elements of a cache row as floats. */
ALWAYS_INLINE struct lanes load_row(const void *row, pdvm_kv_type type, uint32_t n, uint32_t i) {
    if (type == PDVM_KV_F32) return load_floats(row, n, i);
    const size_t size = type == PDVM_KV_F16 ? 2 : 1;
    const uint8_t *p = (const uint8_t *)row + i * size;
    uint8_t buffer[32];
    if (n - i < 16) { /* bytes behind the row's end are not to be read */
        memset(buffer, 0, sizeof buffer);
        memcpy(buffer, p, (n - i) * size);
        p = buffer;
    }
    struct lanes v;
    if (type == PDVM_KV_F16) {
        for (int k = 0; k < 4; k++) v.v[k] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * k)));
        return v;
    }
    int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(p));
    int16x8_t h[2] = {vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b))};
    for (int k = 0; k < 4; k++)
        v.v[k] = vcvtq_f32_s32(vmovl_s16(k % 2 ? vget_high_s16(h[k / 2]) : vget_low_s16(h[k / 2])));
    return v;
}

ALWAYS_INLINE float dot(const float *a, const void *row, uint32_t n, pdvm_kv_type type) {
    struct lanes sum = zero_lanes();
    for (uint32_t i = 0; i < n; i += 16) {
        struct lanes v = load_row(row, type, n, i), w = load_floats(a, n, i);
        for (int k = 0; k < 4; k++) sum.v[k] = vaddq_f32(sum.v[k], vmulq_f32(w.v[k], v.v[k]));
    }
    return sum16(sum);
}

ALWAYS_INLINE void add_scaled(float *acc, float p, const void *row, uint32_t n, pdvm_kv_type type) {
    for (uint32_t i = 0; i < n; i += 16) {
        struct lanes v = load_row(row, type, n, i), sum = load_floats(acc, n, i);
        for (int k = 0; k < 4; k++) sum.v[k] = vaddq_f32(sum.v[k], vmulq_n_f32(v.v[k], p));
        store_floats(acc, n, i, sum);
    }
}

#define ROW_KERNELS(SUFFIX, TYPE)                                                                  \
    float neon_dot_##SUFFIX(const float *a, const void *row, uint32_t n) {                         \
        return dot(a, row, n, TYPE);                                                               \
    }                                                                                              \
    void neon_add_##SUFFIX(float *acc, float p, const void *row, uint32_t n) {                     \
        add_scaled(acc, p, row, n, TYPE);                                                          \
    }
ROW_KERNELS(f32, PDVM_KV_F32)
ROW_KERNELS(f16, PDVM_KV_F16)
ROW_KERNELS(i8, PDVM_KV_INT8)
