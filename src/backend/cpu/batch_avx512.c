/* Batch kernels for AVX-512 with VNNI; packing and float products serve AMX as well. */
#include "backend/cpu/batch_avx512.h"

/* Adds the products of 4 unsigned by 4 signed bytes in each lane. As assembly, because compilers
 * copy the accumulators around the intrinsic. */
ALWAYS_INLINE __m512i dot4(__m512i acc, __m512i u, __m512i s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}

void batch_pack_avx512(const int16_t *q, int64_t n_blocks, int digits, uint32_t t, void *out) {
    int8_t *blocks = out;
    int32_t *prefix = (int32_t *)(void *)(blocks + n_blocks * digits * 1024);
    for (int digit = 0; digit < digits; digit++) {
        __m512i ones = _mm512_set1_epi8(1);
        int32_t sum = 0;
        prefix[digit * BATCH_TOKENS + t] = 0;
        for (int64_t column = 0; column < n_blocks * BLOCK_COLS; column += 32) {
            __m512i v = _mm512_loadu_si512(q + column);
            if (digit) /* what is left when the low byte, taken as signed, is gone */
                v = _mm512_srai_epi16(_mm512_add_epi16(v, _mm512_set1_epi16(128)), 8);
            __m256i d = _mm512_cvtepi16_epi8(v);
            int8_t *dst = blocks + (column / BLOCK_COLS * digits + digit) * 1024 + t * BLOCK_COLS +
                          column % BLOCK_COLS;
            _mm256_storeu_si256((__m256i *)(void *)dst, d);
            sum += _mm512_reduce_add_epi32(
                dot4(_mm512_setzero_si512(), ones, _mm512_zextsi256_si512(d)));
            prefix[(column / 32 + 1) * 32 + digit * BATCH_TOKENS + t] = sum;
        }
    }
}

/* w + 128 is unsigned, as the instruction wants its first factor; that adds 128 * sum(x). */
static void arrange(int8_t *codes, int64_t size) {
    for (int64_t i = 0; i < size; i += 64)
        _mm512_storeu_si512(codes + i, _mm512_xor_si512(_mm512_loadu_si512(codes + i),
                                                        _mm512_set1_epi8((char)0x80)));
}

/* Sums of a few tokens, so that the accumulators are registers. */
ALWAYS_INLINE void dots_tokens(const struct cpu_panel *panel, int64_t row, int token, int n,
                               int digits, const struct cpu_token_tile *tokens, int64_t begin,
                               int64_t end, struct batch_sums *sums) {
    const int32_t *before = batch_prefix(panel, tokens, begin) + token;
    const int32_t *behind = batch_prefix(panel, tokens, end) + token;
    __m512i acc[8][2];
    for (int t = 0; t < n; t++)
        for (int digit = 0; digit < digits; digit++)
            for (int i = 0; i < 2; i++)
                acc[t * digits + digit][i] = _mm512_set1_epi32(
                    (before[digit * BATCH_TOKENS + t] - behind[digit * BATCH_TOKENS + t]) * 128);
    for (int64_t column = begin; column < end; column += 32) {
        const int8_t *w0 = batch_codes(panel, row, column);
        const int8_t *w1 = batch_codes(panel, row + 16, column);
        const int8_t *x = batch_digits(tokens, column) + token * BLOCK_COLS;
        for (int k = 0; k < 8; k++) {
            __m512i u0 = _mm512_loadu_si512(w0 + 64 * k);
            __m512i u1 = _mm512_loadu_si512(w1 + 64 * k);
#pragma GCC unroll 8
            for (int j = 0; j < n * digits; j++) {
                int32_t four;
                memcpy(&four, x + (j / digits) * BLOCK_COLS + (j % digits) * 1024 + 4 * k, 4);
                __m512i s = _mm512_set1_epi32(four);
                acc[j][0] = dot4(acc[j][0], u0, s);
                acc[j][1] = dot4(acc[j][1], u1, s);
            }
        }
    }
    for (int t = 0; t < n; t++)
        for (int digit = 0; digit < digits; digit++)
            for (int i = 0; i < 2; i++)
                _mm512_store_si512(sums->c[digit][i][token + t], acc[t * digits + digit][i]);
}

static void dots(const struct cpu_panel *panel, int64_t row, const struct cpu_token_tile *tokens,
                 int64_t begin, int64_t end, struct batch_sums *sums) {
    int n = (int)tokens->n;
    if (tokens->digits > 1)
        for (int t = 0; t < n; t += 4) dots_tokens(panel, row, t, 4, 2, tokens, begin, end, sums);
    else
        for (int t = 0; t < n; t += 8) dots_tokens(panel, row, t, 8, 1, tokens, begin, end, sums);
}

static void integers(const struct cpu_panel *panel, const struct cpu_token_tile *tokens, float *out,
                     int64_t stride) {
    for (int64_t row = 0; row < panel->rows; row += PANEL_STEP) {
        if (panel->m->group)
            batch_grouped(panel, row, tokens, dots, out, stride);
        else
            batch_row_scaled(panel, row, tokens, dots, out, stride);
    }
}

/* ---- floats ---------------------------------------------------------------------------- */

/* 16 results of 4 rows and 4 tokens: each is a sum of 16 lanes by halving. */
ALWAYS_INLINE __m512 sum_lanes(const __m512 acc[16]) {
    __m512 a[8], b[4], c[2];
    /* Of two vectors the lower halves and the upper halves are added, and so on inward. */
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(acc[i], acc[i + 8], 0x44),
                             _mm512_shuffle_f32x4(acc[i], acc[i + 8], 0xee));
    for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88),
                             _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_ps(b[i], b[i + 2], 0x44),
                             _mm512_shuffle_ps(b[i], b[i + 2], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
}

/* Which of the 16 sums each lane of sum_lanes' result holds: acc[i] ends in lane place[i]. */
static const uint8_t place[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};

void batch_floats_avx512(const struct cpu_panel *panel, const struct cpu_token_tile *tokens,
                         float *out, int64_t stride) {
    int64_t cols = panel->m->n_blocks * BLOCK_COLS;
    for (int64_t row = 0; row < panel->rows; row += 4) {
        const float *w = panel->values + row * panel->stride;
        int64_t rows = panel->rows - row < 4 ? panel->rows - row : 4;
        for (uint32_t t0 = 0; t0 < tokens->n; t0 += 4) {
            uint32_t n = tokens->n - t0 < 4 ? tokens->n - t0 : 4;
            const float *x[4];
            for (uint32_t t = 0; t < 4; t++) x[t] = tokens->x[t < n ? t0 + t : t0];
            __m512 acc[16];
            for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_ps();
            for (int64_t c = 0; c < cols; c += 16) {
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) {
                    __m512 v = _mm512_loadu_ps(w + r * panel->stride + c);
#pragma GCC unroll 4
                    for (int t = 0; t < 4; t++)
                        acc[4 * r + t] = _mm512_add_ps(acc[4 * r + t],
                                                       _mm512_mul_ps(v, _mm512_loadu_ps(x[t] + c)));
                }
            }
            _Alignas(64) float results[16];
            _mm512_store_ps(results, sum_lanes(acc));
            for (uint32_t t = 0; t < n; t++)
                for (int64_t r = 0; r < rows; r++)
                    out[(t0 + t) * stride + row + r] = results[place[4 * r + t]];
        }
    }
}

const struct cpu_batch_kernels cpu_batch_avx512 = {
    .min_tokens = 4,
    .pack = batch_pack_avx512,
    .arrange = arrange,
    .integers = integers,
    .floats = batch_floats_avx512,
};
