/**
 * The exponential function as every instruction set computes it: additions and products one by
 * one in the order given here, so that all give the same bits.
 */
#ifndef PDVM_BACKEND_CPU_EXP_H
#define PDVM_BACKEND_CPU_EXP_H

#include <stdint.h>
#include <string.h>

/* x = n * ln 2 + r, with ln 2 in two parts (Cody and Waite 1980), and a polynomial for exp(r):
 * the Cephes library's coefficients (Moshier 1992). The error is below 2 units in the last place. */
#define EXP_LOG2E 1.44269504f
#define EXP_LN2_HIGH 0.693359375f
#define EXP_LN2_LOW (-2.12194440e-4f)
#define EXP_C0 1.9875691500e-4f
#define EXP_C1 1.3981999507e-3f
#define EXP_C2 8.3334519073e-3f
#define EXP_C3 4.1665795894e-2f
#define EXP_C4 1.6666665459e-1f
#define EXP_C5 5.0000001201e-1f
#define EXP_MIN (-87.3365f)   /* below, the result is 0 and not a subnormal number */
#define EXP_MAX 88.3762f      /* above, the result is that of this */
#define EXP_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer in the low bits */

/** exp(x); NaN for NaN. */
static inline float exp_f32(float x) {
    float v = x > EXP_MAX ? EXP_MAX : x;
    float shifted = v * EXP_LOG2E + EXP_ROUND;
    float n = shifted - EXP_ROUND;
    float r = v - n * EXP_LN2_HIGH;
    r = r - n * EXP_LN2_LOW;
    float p = EXP_C0 * r + EXP_C1;
    p = p * r + EXP_C2;
    p = p * r + EXP_C3;
    p = p * r + EXP_C4;
    p = p * r + EXP_C5;
    p = p * (r * r) + r;
    p = p + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23; /* 2^n */
    float power;
    memcpy(&power, &bits, sizeof power);
    float result = p * power;
    return x < EXP_MIN ? 0.0f : result;
}

#endif
