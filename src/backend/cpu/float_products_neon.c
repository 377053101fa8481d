/* Products of 16-bit, 32-bit and 8-bit codebook values with float activations, for NEON. */
#include "backend/cpu/float_products.h"
#include "backend/cpu/neon.h"

/* Eight floats. */
struct eight {
    float32x4_t v[2];
};

/* Eight entries as floats, as they stand. */
ALWAYS_INLINE struct eight load_values(const uint8_t *p, enum cpu_kind kind, const float *table,
                                       float scale) {
    struct eight v;
    if (kind == CPU_F32) {
        v.v[0] = vreinterpretq_f32_u8(vld1q_u8(p));
        v.v[1] = vreinterpretq_f32_u8(vld1q_u8(p + 16));
    } else if (kind == CPU_LUT8) {
        float f[8];
        for (int i = 0; i < 8; i++) f[i] = table[p[i]];
        for (int i = 0; i < 2; i++) v.v[i] = vmulq_n_f32(vld1q_f32(f + 4 * i), scale);
    } else {
        uint16x8_t h = vreinterpretq_u16_u8(vld1q_u8(p));
        uint16x4_t half[2] = {vget_low_u16(h), vget_high_u16(h)};
        for (int i = 0; i < 2; i++)
            v.v[i] = kind == CPU_F16 ? vcvt_f32_f16(vreinterpret_f16_u16(half[i]))
                                     : vreinterpretq_f32_u32(vshll_n_u16(half[i], 16));
    }
    return v;
}

/* Which of 32 packed bytes four positions' floats are; behind all of them for gaps. */
ALWAYS_INLINE uint8x16_t shuffle_of(const uint8_t rows[4]) {
    uint32_t four;
    memcpy(&four, rows, sizeof four);
    const uint8x16_t each = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x16_t byte = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    uint8x16_t from = vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), each);
    return vqaddq_u8(vqshlq_n_u8(from, 2), byte); /* saturates for gaps: no byte is there */
}

/* The next up to 8 entries at their columns, zero elsewhere. */
ALWAYS_INLINE struct eight next_values(const uint8_t **p, enum cpu_kind kind, bool dense,
                                       uint32_t mask, const float *table, float scale) {
    const size_t size = kind == CPU_F32 ? 4 : kind == CPU_LUT8 ? 1 : 2;
    struct eight v = load_values(*p, kind, table, scale);
    *p += size * (dense ? 8 : (size_t)__builtin_popcount(mask));
    if (dense) return v;
    uint8x16x2_t packed = {{vreinterpretq_u8_f32(v.v[0]), vreinterpretq_u8_f32(v.v[1])}};
    for (int i = 0; i < 2; i++)
        v.v[i] =
            vreinterpretq_f32_u8(vqtbl2q_u8(packed, shuffle_of(cpu_expand_table[mask] + 4 * i)));
    return v;
}

/* Four rows, one stream. */
ALWAYS_INLINE void products_of_stream(const struct cpu_matrix *m, int64_t stream,
                                      enum cpu_kind kind, bool dense, const float *x,
                                      float result[4]) {
    const int64_t micros = cpu_stream_micros(m);
    const uint64_t *masks = cpu_stream_masks(m, stream);
    const uint8_t *p = cpu_stream_values(m, stream);
    struct lanes acc[4];
    for (int r = 0; r < 4; r++) acc[r] = zero_lanes();
    for (int64_t i = 0; i < micros; i++) {
        uint64_t mask = dense ? 0 : masks[i];
        prefetch_line(p);
        for (int r = 0; r < 4; r++) {
            float scale = stream_scale(m, stream, i, r, kind);
            for (int h = 0; h < 2; h++, mask >>= 8) {
                struct eight w = next_values(&p, kind, dense, mask & 255, m->table, scale);
                for (int k = 0; k < 2; k++) {
                    float32x4_t a = vld1q_f32(x + 16 * i + 8 * h + 4 * k);
                    float32x4_t *lane = &acc[r].v[2 * h + k];
                    *lane = vaddq_f32(*lane, vmulq_f32(w.v[k], a));
                }
            }
        }
    }
    for (int r = 0; r < 4; r++) result[r] = sum16(acc[r]);
}

FLOAT_PRODUCTS(neon, products_of_stream)

void neon_expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride) {
    for (int64_t stream = 4 * tile; stream < 4 * tile + 4; stream++, out += 4 * stride) {
        const uint64_t *masks = cpu_stream_masks(m, stream);
        const uint8_t *p = cpu_stream_values(m, stream);
        for (int64_t i = 0; i < cpu_stream_micros(m); i++) {
            uint64_t mask = masks ? masks[i] : ~(uint64_t)0;
            for (int r = 0; r < 4; r++) {
                float scale = stream_scale(m, stream, i, r, m->kind);
                for (int h = 0; h < 2; h++, mask >>= 8) {
                    struct eight w = next_values(&p, m->kind, false, mask & 255, m->table, scale);
                    for (int k = 0; k < 2; k++)
                        vst1q_f32(out + r * stride + 16 * i + 8 * h + 4 * k, w.v[k]);
                }
            }
        }
    }
}
