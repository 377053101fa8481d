/**
 * The dialect as plain C: the reference form. Whoever compiles it brings a native.h with what threads
 * of a group do together, native_sync and native_lane_*, and KERNEL and KERNEL_CTX.
 */
#ifndef PDVM_KERNELS_DIALECT_C_H
#define PDVM_KERNELS_DIALECT_C_H

#include "base/half.h"
#include "native.h"
#include <stddef.h>

#include <math.h>
#include <stdint.h>

#define PDVM_KERNEL_TYPES
#define PDVM_LOCAL_ADDRESSES 0
#define PDVM_ASYNC_WORDS 0
#define PDVM_GRID_SYNC 1
#define PDVM_BULK 0

#define FN static inline
#define FN_APART static
#define GLOBAL
#define LOCAL
#define LOCAL_BASE(c) ((c)->l)
#define LOAD_ONLY(T, p) (*(const T *)(const void *)(p))
#define UNROLL
#define NO_UNROLL

typedef struct {
    uint32_t x, y;
} u32x2;
typedef struct {
    uint32_t x, y, z, w;
} u32x4;
#define MAKE_X2(a, b) ((u32x2){a, b})
#define MAKE_X4(a, b, c, d) ((u32x4){a, b, c, d})

FN void sync(void) {
    native_sync();
}
FN void lane_sync(void) {
    native_lane_sync();
}
FN uint32_t lane_xor_u(uint32_t v, uint32_t mask) {
    return native_lane_xor(v, mask);
}
FN float lane_xor_f(float v, uint32_t mask) {
    return pd_bits_float(native_lane_xor(pd_float_bits(v), mask));
}
FN uint32_t lane_get_u(uint32_t v, uint32_t lane) {
    return native_lane_get(v, lane);
}
FN uint32_t lane_ballot(int p) {
    return native_lane_ballot(p);
}
FN uint32_t lane_max_u(uint32_t v) {
    for (uint32_t m = 16; m > 0; m /= 2) {
        uint32_t o = lane_xor_u(v, m);
        v = o > v ? o : v;
    }
    return v;
}
FN uint32_t lane_sum_u(uint32_t v) {
    for (uint32_t m = 16; m > 0; m /= 2) v += lane_xor_u(v, m);
    return v;
}
FN uint32_t count_bits(uint32_t v) {
    uint32_t n = 0;
    for (; v; v &= v - 1) n++;
    return n;
}

FN uint32_t float_bits(float f) {
    return pd_float_bits(f);
}
FN float bits_float(uint32_t u) {
    return pd_bits_float(u);
}
FN float f16_to_float(uint32_t h) {
    return pd_f16_to_float((uint16_t)h);
}
FN uint32_t float_to_f16(float f) {
    return pd_float_to_f16(f);
}
FN float fma_f(float a, float b, float c) {
    return fmaf(a, b, c);
}
FN float exp_f(float x) {
    return expf(x);
}
FN float exp2_f(float x) {
    return exp2f(x);
}
FN float fast_inverse(float x) {
    return 1.0f / x;
}
FN float fast_rsqrt(float x) {
    return 1.0f / sqrtf(x);
}
FN float sqrt_f(float x) {
    return sqrtf(x);
}
FN float rint_f(float x) {
    return rintf(x);
}
FN double rint_d(double x) {
    return rint(x);
}
FN void sincospi_f(float x, float *s, float *c) {
    *s = (float)sin(3.14159265358979323846 * (double)x);
    *c = (float)cos(3.14159265358979323846 * (double)x);
}
FN float long_to_float(int64_t v) {
    return (float)v;
}
FN int64_t float_to_long(float v) {
    return llrintf(v);
}

FN uint32_t dot4_u8(uint32_t a, uint32_t b, uint32_t acc) {
    for (uint32_t i = 0; i < 32; i += 8) acc += (a >> i & 255u) * (b >> i & 255u);
    return acc;
}
FN int32_t dot2_lo(uint32_t a, uint32_t b, int32_t acc) {
    acc += (int16_t)(a & 0xffffu) * (int8_t)(b & 255u);
    return acc + (int16_t)(a >> 16) * (int8_t)(b >> 8 & 255u);
}
FN int32_t dot2_hi(uint32_t a, uint32_t b, int32_t acc) {
    return dot2_lo(a, b >> 16, acc);
}
FN uint32_t sign_bytes(uint32_t v) {
    return (v >> 7 & 0x01010101u) * 255u;
}
FN uint32_t bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t s = selector >> (4 * i) & 7u;
        uint32_t byte = (s & 4u ? b : a) >> (8 * (s & 3u)) & 255u;
        out |= byte << (8 * i);
    }
    return out;
}

FN uint32_t local_add(uint32_t *p, uint32_t v) {
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
FN void prefetch(const uint8_t *p) {
    (void)p;
}
FN u32x4 load_x4(const uint8_t *p) {
    return *(const u32x4 *)(const void *)p;
}
FN u32x2 load_x2(const uint8_t *p) {
    return *(const u32x2 *)(const void *)p;
}
FN uint32_t load_x1(const uint8_t *p) {
    return *(const uint32_t *)(const void *)p;
}
FN uint32_t load_u16(const uint8_t *p) {
    return *(const uint16_t *)(const void *)p;
}

FN void grid_put(uint8_t *part, u32x4 v) {
    native_put(part, v.x, v.y, v.z);
}
FN u32x4 grid_get(const uint8_t *part, uint32_t wanted) {
    uint32_t v[3];
    native_get(part, wanted, v);
    return MAKE_X4(v[0], v[1], v[2], 0);
}
FN u32x4 grid_get_last(const uint8_t *part, uint32_t wanted) {
    return grid_get(part, wanted);
}
FN uint32_t grid_add_both(uint32_t *p) {
    return __atomic_fetch_add(p, 1, __ATOMIC_ACQ_REL);
}
FN uint32_t device_clock(void) {
    return native_clock();
}
FN void give_up(void) {
    native_give_up();
}

#endif
