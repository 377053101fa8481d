/* Attention's kernels for AVX-512. Additions are in the order of attention_scalar.c. */
#include "backend/cpu/attention.h"
#include "backend/cpu/avx512.h"
#include "backend/cpu/exp.h"

#include <math.h>

ALWAYS_INLINE __m512 exp16(__m512 x) {
    const __m512 round = _mm512_set1_ps(EXP_ROUND);
    __m512 v = _mm512_min_ps(_mm512_set1_ps(EXP_MAX), x); /* NaN stays: the second operand */
    __m512 shifted = _mm512_add_ps(_mm512_mul_ps(v, _mm512_set1_ps(EXP_LOG2E)), round);
    __m512 n = _mm512_sub_ps(shifted, round);
    __m512 r = _mm512_sub_ps(v, _mm512_mul_ps(n, _mm512_set1_ps(EXP_LN2_HIGH)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(EXP_LN2_LOW)));
    __m512 p = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(EXP_C0), r), _mm512_set1_ps(EXP_C1));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(EXP_C2));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(EXP_C3));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(EXP_C4));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(EXP_C5));
    p = _mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    __m512i bits = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
    p = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23)));
    __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_MIN), _CMP_NLT_UQ);
    return _mm512_maskz_mov_ps(nonzero, p);
}

static void silu_mul(const float *gate, const float *up, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        __m512 g = _mm512_maskz_loadu_ps(k, gate + i), u = _mm512_maskz_loadu_ps(k, up + i);
        __m512 e = exp16(_mm512_xor_ps(g, _mm512_set1_ps(-0.0f)));
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
        _mm512_mask_storeu_ps(out + i, k, _mm512_mul_ps(silu, u));
    }
}

static float softmax(float *scores, uint32_t n, float scale, float state[2]) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 v[KV_CHUNK / 16], max = _mm512_set1_ps(state[0]), sum = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        v[i / 16] = _mm512_mul_ps(_mm512_maskz_loadu_ps(k, scores + i), factor);
        bad |= _mm512_mask_cmp_ps_mask(k, v[i / 16], v[i / 16], _CMP_UNORD_Q);
        max = _mm512_mask_max_ps(max, k, max, v[i / 16]);
    }
    float largest = bad ? NAN : _mm512_reduce_max_ps(max), shrink = 1;
    if (!(largest <= state[0]))
        shrink = _mm512_cvtss_f32(exp16(_mm512_set1_ps(state[0] - largest)));
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        __m512 p = exp16(_mm512_sub_ps(v[i / 16], _mm512_set1_ps(largest)));
        sum = _mm512_mask_add_ps(sum, k, sum, p);
        _mm512_mask_storeu_ps(scores + i, k, p);
    }
    state[0] = largest;
    state[1] = state[1] * shrink + sum16(sum);
    return shrink;
}

/* 16 elements of a cache row as floats. */
ALWAYS_INLINE __m512 load_row(const uint8_t *row, pdvm_kv_type type, uint32_t c, __mmask16 k) {
    if (type == PDVM_KV_F32) return _mm512_maskz_loadu_ps(k, row + 4 * c);
    if (type == PDVM_KV_F16) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, row + 2 * c));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(k, row + c)));
}

/* Transposes 16 x 16 floats in place. */
ALWAYS_INLINE void transpose(__m512 v[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        v[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        v[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        v[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

ALWAYS_INLINE void keys(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d, float *out,
                        pdvm_kv_type type) {
    for (uint32_t i0 = 0; i0 < KV_CHUNK; i0 += 16) {
        for (uint32_t c0 = 0; c0 < d; c0 += 16) {
            __m512 v[16];
            for (uint32_t i = 0; i < 16; i++)
                v[i] = i0 + i < n ? load_row(rows + (i0 + i) * row_bytes, type, c0, tail(d, c0))
                                  : _mm512_setzero_ps();
            transpose(v);
            for (uint32_t c = 0; c < 16 && c0 + c < d; c++)
                _mm512_storeu_ps(out + (c0 + c) * KV_CHUNK + i0, v[c]);
        }
    }
}

ALWAYS_INLINE void values(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d, float *out,
                          pdvm_kv_type type) {
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < d; c += 16) {
            __mmask16 k = tail(d, c);
            _mm512_mask_storeu_ps(out + i * d + c, k, load_row(rows + i * row_bytes, type, c, k));
        }
}

ATTENTION_ROWS(f32, PDVM_KV_F32)
ATTENTION_ROWS(f16, PDVM_KV_F16)
ATTENTION_ROWS(i8, PDVM_KV_INT8)

/* ---- scores ---------------------------------------------------------------------------- */

/* Sums of 4 queries with 16 keys each. */
struct four {
    __m512 v[4];
};

ALWAYS_INLINE struct four plus(struct four a, struct four b) {
    for (int j = 0; j < 4; j++) a.v[j] = _mm512_add_ps(a.v[j], b.v[j]);
    return a;
}

/* Lane l of lanes_sum's 16: elements l, l + 16, ... */
ALWAYS_INLINE struct four lane(const float *const q[4], const float *keys, uint32_t d, uint32_t l) {
    struct four s;
    for (int j = 0; j < 4; j++) s.v[j] = _mm512_setzero_ps();
    for (uint32_t c = l; c < d; c += 16) {
        __m512 k = _mm512_loadu_ps(keys + c * KV_CHUNK);
        for (int j = 0; j < 4; j++)
            s.v[j] = _mm512_add_ps(s.v[j], _mm512_mul_ps(_mm512_set1_ps(q[j][c]), k));
    }
    return s;
}

/* lanes_sum's tree, from its leaves. */
ALWAYS_INLINE struct four lanes2(const float *const q[4], const float *keys, uint32_t d,
                                 uint32_t l) {
    return plus(lane(q, keys, d, l), lane(q, keys, d, l + 8));
}

ALWAYS_INLINE struct four lanes4(const float *const q[4], const float *keys, uint32_t d,
                                 uint32_t l) {
    return plus(lanes2(q, keys, d, l), lanes2(q, keys, d, l + 4));
}

ALWAYS_INLINE struct four lanes8(const float *const q[4], const float *keys, uint32_t d,
                                 uint32_t l) {
    return plus(lanes4(q, keys, d, l), lanes4(q, keys, d, l + 2));
}

ALWAYS_INLINE void scores_of(const float *q, uint32_t n, const float *keys, uint32_t d,
                             float *out) {
    for (uint32_t j0 = 0; j0 < n; j0 += 4) {
        const float *rows[4];
        for (uint32_t j = 0; j < 4; j++) rows[j] = q + (j0 + j < n ? j0 + j : j0) * d;
        for (uint32_t i = 0; i < KV_CHUNK; i += 16) {
            struct four s = plus(lanes8(rows, keys + i, d, 0), lanes8(rows, keys + i, d, 1));
            for (uint32_t j = 0; j < 4 && j0 + j < n; j++)
                _mm512_storeu_ps(out + (j0 + j) * KV_CHUNK + i, s.v[j]);
        }
    }
}

/* The usual sizes of heads as constants, so that the loops are unrolled. */
static void scores(const float *q, uint32_t n, const float *keys, uint32_t d, float *out) {
    if (d == 64)
        scores_of(q, n, keys, 64, out);
    else if (d == 128)
        scores_of(q, n, keys, 128, out);
    else
        scores_of(q, n, keys, d, out);
}

/* ---- weighted values ------------------------------------------------------------------- */

/* 16 * vectors columns of up to 4 queries; `k` masks the last of the vectors. */
ALWAYS_INLINE void mix_columns(const float *p, int n, uint32_t begin, uint32_t end,
                               const float *values, uint32_t d, int vectors, __mmask16 k,
                               float *acc) {
    __m512 sums[4][4];
    for (int j = 0; j < n; j++)
        for (int c = 0; c < vectors; c++)
            sums[j][c] = _mm512_maskz_loadu_ps(k, acc + j * d + 16 * c);
    for (uint32_t i = begin; i < end; i++) {
        __m512 v[4];
        for (int c = 0; c < vectors; c++) v[c] = _mm512_maskz_loadu_ps(k, values + i * d + 16 * c);
        for (int j = 0; j < n; j++) {
            __m512 weight = _mm512_set1_ps(p[j * KV_CHUNK + (int)i]);
            for (int c = 0; c < vectors; c++)
                sums[j][c] = _mm512_add_ps(sums[j][c], _mm512_mul_ps(weight, v[c]));
        }
    }
    for (int j = 0; j < n; j++)
        for (int c = 0; c < vectors; c++)
            _mm512_mask_storeu_ps(acc + j * d + 16 * c, k, sums[j][c]);
}

ALWAYS_INLINE void mix_queries(const float *p, int n, uint32_t begin, uint32_t end,
                               const float *values, uint32_t d, float *acc) {
    uint32_t c = 0;
    for (; c + 64 <= d; c += 64)
        mix_columns(p, n, begin, end, values + c, d, 4, (__mmask16)0xffff, acc + c);
    for (; c < d; c += 16) mix_columns(p, n, begin, end, values + c, d, 1, tail(d, c), acc + c);
}

static void mix(const float *p, uint32_t n, uint32_t begin, uint32_t end, const float *values,
                uint32_t d, float *acc) {
    uint32_t j = 0;
    for (; j + 4 <= n; j += 4) mix_queries(p + j * KV_CHUNK, 4, begin, end, values, d, acc + j * d);
    for (; j < n; j++) mix_queries(p + j * KV_CHUNK, 1, begin, end, values, d, acc + j * d);
}

const struct cpu_attention_kernels cpu_attention_avx512 = {
    .silu_mul = silu_mul,
    .softmax = softmax,
    .keys = {[PDVM_KV_F32] = keys_f32, [PDVM_KV_F16] = keys_f16, [PDVM_KV_INT8] = keys_i8},
    .values = {[PDVM_KV_F32] = values_f32, [PDVM_KV_F16] = values_f16, [PDVM_KV_INT8] = values_i8},
    .scores = scores,
    .mix = mix,
};
