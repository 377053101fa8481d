/** Half floats: IEEE binary16 (f16) and bfloat16, round to nearest even, exact both ways. */
#ifndef PDVM_BASE_HALF_H
#define PDVM_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t pd_float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float pd_bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float pd_bf16_to_float(uint16_t h) {
    return pd_bits_float((uint32_t)h << 16);
}

/** Nearest bfloat16; NaN stays NaN, overflow becomes infinity. */
static inline uint16_t pd_float_to_bf16(float f) {
    uint32_t u = pd_float_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float pd_f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31) return pd_bits_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    return pd_bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

/** Nearest binary16; NaN stays NaN, overflow becomes infinity. */
static inline uint16_t pd_float_to_f16(float f) {
    uint32_t u = pd_float_bits(f);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (u >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) {
        /* Subnormal: adding 0.5 lets the FPU do the shift and the rounding. */
        uint32_t bits = pd_float_bits(pd_bits_float(u) + 0.5f) - pd_float_bits(0.5f);
        return (uint16_t)(sign | bits);
    }
    uint32_t odd = (u >> 13) & 1u;
    u += 0xc8000fffu + odd;
    return (uint16_t)(sign | (u >> 13));
}

#endif
