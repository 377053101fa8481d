/**
 * What products with float activations have in common where one vector is multiplied at a time: the
 * walk over streams, and the kernels by kind. An instruction set brings the products of one stream.
 */
#ifndef PDVM_BACKEND_CPU_FLOAT_PRODUCTS_H
#define PDVM_BACKEND_CPU_FLOAT_PRODUCTS_H

#include "backend/cpu/cpu.h"

#include <string.h>

/** The four rows of a stream times x; kind and dense are the matrix's, as constants. */
typedef void (*stream_product_fn)(const struct cpu_matrix *m, int64_t stream, enum cpu_kind kind,
                                  bool dense, const float *x, float result[4]);

/** Scale of row r of a stream at micro-block i. */
ALWAYS_INLINE float stream_scale(const struct cpu_matrix *m, int64_t stream, int64_t i, int r,
                                 enum cpu_kind kind) {
    if (kind != CPU_LUT8) return 1;
    int64_t g = m->group ? 16 * i / m->group : 0;
    return cpu_scale(m, stream / 4, g, stream % 4 * 4 + r);
}

/** cpu_product_fn, stream after stream and token after token. */
ALWAYS_INLINE void product_of_streams(stream_product_fn one, const struct cpu_matrix *m,
                                      enum cpu_kind kind, bool dense, int64_t tile0, int64_t tile1,
                                      const struct cpu_act *act, uint32_t n, float *out,
                                      int64_t stride) {
    for (int64_t row = tile0 * TILE_ROWS; row < tile1 * TILE_ROWS && row < m->rows; row += 4) {
        size_t size = (size_t)(m->rows - row < 4 ? m->rows - row : 4) * sizeof *out;
        for (uint32_t t = 0; t < n; t++) {
            float result[4];
            one(m, row / 4, kind, dense, act[t].x, result);
            memcpy(out + t * stride + row - tile0 * TILE_ROWS, result, size);
        }
    }
}

/** Defines the kernel NAME. */
#define FLOAT_PRODUCT(NAME, ONE, KIND, DENSE)                                                      \
    CPU_PRODUCT(NAME) {                                                                            \
        product_of_streams(ONE, m, KIND, DENSE, tile0, tile1, act, n, out, stride);                \
    }

/** Defines PREFIX_f32_bitmap, PREFIX_f32_dense, ... from the products of one stream. */
#define FLOAT_PRODUCTS(PREFIX, ONE)                                                                \
    FLOAT_PRODUCT(PREFIX##_f32_bitmap, ONE, CPU_F32, false)                                        \
    FLOAT_PRODUCT(PREFIX##_f32_dense, ONE, CPU_F32, true)                                          \
    FLOAT_PRODUCT(PREFIX##_bf16_bitmap, ONE, CPU_BF16, false)                                      \
    FLOAT_PRODUCT(PREFIX##_bf16_dense, ONE, CPU_BF16, true)                                        \
    FLOAT_PRODUCT(PREFIX##_f16_bitmap, ONE, CPU_F16, false)                                        \
    FLOAT_PRODUCT(PREFIX##_f16_dense, ONE, CPU_F16, true)                                          \
    FLOAT_PRODUCT(PREFIX##_lut8_bitmap, ONE, CPU_LUT8, false)                                      \
    FLOAT_PRODUCT(PREFIX##_lut8_dense, ONE, CPU_LUT8, true)

#endif
