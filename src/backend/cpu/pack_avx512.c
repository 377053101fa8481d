/* Packing with AVX-512 VBMI2. */
#include "backend/cpu/pack.h"

#include <immintrin.h>

static void unpack_nibbles(const uint8_t *bytes, size_t n, uint8_t *out) {
    const __m512i low = _mm512_set1_epi8(15);
    for (size_t i = 0; i < n; i += 32) {
        __m512i b = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(bytes + i)));
        b = _mm512_or_si512(b, _mm512_slli_epi16(b, 4));
        _mm512_storeu_si512(out + 2 * i, _mm512_and_si512(b, low));
    }
}

static void spread(const uint8_t *codes, const uint64_t *masks, size_t n, uint8_t fill,
                   uint8_t *out) {
    const __m512i gaps = _mm512_set1_epi8((char)fill);
    for (size_t i = 0; i < n; i++) {
        __m512i v = _mm512_loadu_si512(codes);
        _mm512_storeu_si512(out + 64 * i, _mm512_mask_expand_epi8(gaps, masks[i], v));
        codes += __builtin_popcountll(masks[i]);
    }
}

/* Element j of t[i] becomes element i of t[j]. */
static inline void transpose(__m512i t[16]) {
    __m512i a[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(t[i], t[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        t[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        t[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        t[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        t[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    /* Now quarter q of t[4 g + k] has rows 4 g .. 4 g + 3 of column 4 q + k. */
    for (int k = 0; k < 4; k++) {
        a[k] = _mm512_shuffle_i32x4(t[k], t[4 + k], 0x88);
        a[4 + k] = _mm512_shuffle_i32x4(t[k], t[4 + k], 0xdd);
        a[8 + k] = _mm512_shuffle_i32x4(t[8 + k], t[12 + k], 0x88);
        a[12 + k] = _mm512_shuffle_i32x4(t[8 + k], t[12 + k], 0xdd);
    }
    for (int k = 0; k < 4; k++) {
        t[k] = _mm512_shuffle_i32x4(a[k], a[8 + k], 0x88);
        t[8 + k] = _mm512_shuffle_i32x4(a[k], a[8 + k], 0xdd);
        t[4 + k] = _mm512_shuffle_i32x4(a[4 + k], a[12 + k], 0x88);
        t[12 + k] = _mm512_shuffle_i32x4(a[4 + k], a[12 + k], 0xdd);
    }
}

static void squeeze(const uint8_t *rows, size_t stride, const uint64_t masks[16], uint8_t flip,
                    bool two, uint8_t *out[2]) {
    const __m512i x = _mm512_set1_epi8((char)flip);
    __m512i t[16];
    for (int r = 0; r < 16; r++)
        t[r] = _mm512_xor_si512(_mm512_loadu_si512(rows + (size_t)r * stride), x);
    transpose(t);
    for (int i = 0; i < 16; i++) {
        uint8_t **dst = &out[two && i % 2];
        _mm512_storeu_si512(*dst, _mm512_maskz_compress_epi8(masks[i], t[i]));
        *dst += __builtin_popcountll(masks[i]);
    }
}

static void join_nibbles(uint8_t *low, const uint8_t *high, size_t n) {
    for (size_t i = 0; i < n; i += 64) {
        __mmask64 mask = n - i < 64 ? ((uint64_t)1 << (n - i)) - 1 : ~(uint64_t)0;
        /* Below 16, so that no bit crosses from one byte of a word to the other. */
        __m512i h = _mm512_slli_epi16(_mm512_maskz_loadu_epi8(mask, high + i), 4);
        _mm512_storeu_si512(low + i, _mm512_or_si512(_mm512_loadu_si512(low + i), h));
    }
}

static void gather(const uint8_t *codes, uint64_t mask, const int8_t *table, uint8_t cols[64],
                   uint8_t values[64]) {
    const __m512i c128 = _mm512_set1_epi8((char)0x80);
    const __m512i iota = _mm512_set_epi64(
        0x3f3e3d3c3b3a3938, 0x3736353433323130, 0x2f2e2d2c2b2a2928, 0x2726252423222120,
        0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908, 0x0706050403020100);
    __m512i v = _mm512_loadu_si512(codes);
    if (table) v = _mm512_permutexvar_epi8(v, _mm512_loadu_si512(table));
    _mm512_storeu_si512(cols, _mm512_maskz_compress_epi8(mask, iota));
    _mm512_storeu_si512(values, _mm512_mask_compress_epi8(c128, mask, _mm512_xor_si512(v, c128)));
}

const struct cpu_packer cpu_packer_avx512 = {
    .unpack_nibbles = unpack_nibbles,
    .spread = spread,
    .squeeze = squeeze,
    .join_nibbles = join_nibbles,
    .gather = gather,
};
