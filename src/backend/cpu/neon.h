/**
 * What the files of the NEON kernels share. They need AArch64 with the dot product instructions (Arm
 * Cortex-A55, A75 and Neoverse N1 and later, Apple's processors). Every function adds in the order
 * that cpu.h promises, so the results equal the scalar kernels' bit for bit.
 */
#ifndef PDVM_BACKEND_CPU_NEON_H
#define PDVM_BACKEND_CPU_NEON_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/expand_table.h"

#include <arm_neon.h>
#include <string.h>

/** How far ahead of use values and masks are requested. */
#define PREFETCH_BYTES 1024

ALWAYS_INLINE void prefetch_line(const void *p) {
    __builtin_prefetch((const char *)p + PREFETCH_BYTES);
}

/** 4 bfloat16 numbers as floats. */
ALWAYS_INLINE float32x4_t widen_bf16(uint16x4_t v) {
    return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}

/** Sixteen lanes of floats. */
struct lanes {
    float32x4_t v[4];
};

ALWAYS_INLINE struct lanes zero_lanes(void) {
    const float32x4_t zero = vdupq_n_f32(0);
    return (struct lanes){{zero, zero, zero, zero}};
}

/** lanes_sum on registers. */
ALWAYS_INLINE float sum16(struct lanes s) {
    float32x4_t a = vaddq_f32(vaddq_f32(s.v[0], s.v[2]), vaddq_f32(s.v[1], s.v[3]));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}

/* products_neon.c */
CPU_PRODUCT(neon_int8_bitmap);
CPU_PRODUCT(neon_int8_dense);
CPU_PRODUCT(neon_lut4_bitmap);
CPU_PRODUCT(neon_lut4_dense);
void neon_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                 int8_t *out);

/* float_products_neon.c */
CPU_PRODUCT(neon_f32_bitmap);
CPU_PRODUCT(neon_f32_dense);
CPU_PRODUCT(neon_bf16_bitmap);
CPU_PRODUCT(neon_bf16_dense);
CPU_PRODUCT(neon_f16_bitmap);
CPU_PRODUCT(neon_f16_dense);
CPU_PRODUCT(neon_lut8_bitmap);
CPU_PRODUCT(neon_lut8_dense);
void neon_expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride);

/* vectors_neon.c */
void neon_rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out);
void neon_quantise(const float *x, int64_t n, struct cpu_act *act);
float neon_dot_f32(const float *a, const void *row, uint32_t n);
float neon_dot_f16(const float *a, const void *row, uint32_t n);
float neon_dot_i8(const float *a, const void *row, uint32_t n);
void neon_add_f32(float *acc, float p, const void *row, uint32_t n);
void neon_add_f16(float *acc, float p, const void *row, uint32_t n);
void neon_add_i8(float *acc, float p, const void *row, uint32_t n);

#endif
