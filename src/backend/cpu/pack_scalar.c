/* Packing in plain C. */
#include "backend/cpu/pack.h"

#include <string.h>

static void unpack_nibbles(const uint8_t *bytes, size_t n, uint8_t *out) {
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = bytes[i] & 15;
        out[2 * i + 1] = bytes[i] >> 4;
    }
}

static void spread(const uint8_t *codes, const uint64_t *masks, size_t n, uint8_t fill,
                   uint8_t *out) {
    for (size_t i = 0; i < n; i++, out += 64) {
        uint64_t mask = masks[i];
        if (mask == ~(uint64_t)0) {
            memcpy(out, codes, 64);
            codes += 64;
            continue;
        }
        memset(out, fill, 64);
        for (; mask; mask &= mask - 1) out[__builtin_ctzll(mask)] = *codes++;
    }
}

static void squeeze(const uint8_t *rows, size_t stride, const uint64_t masks[16], uint8_t flip,
                    bool two, uint8_t *out[2]) {
    for (int i = 0; i < 16; i++) {
        uint8_t micro[64];
        uint64_t mask = masks[i];
        if (!mask) continue;
        for (size_t r = 0; r < 16; r++) memcpy(micro + 4 * r, rows + r * stride + 4 * i, 4);
        for (int k = 0; k < 64; k++) micro[k] ^= flip;
        uint8_t **dst = &out[two && i % 2];
        if (mask == ~(uint64_t)0) {
            memcpy(*dst, micro, 64);
            *dst += 64;
            continue;
        }
        for (; mask; mask &= mask - 1) *(*dst)++ = micro[__builtin_ctzll(mask)];
    }
}

static void join_nibbles(uint8_t *low, const uint8_t *high, size_t n) {
    for (size_t i = 0; i < n; i++) low[i] = (uint8_t)(low[i] | high[i] << 4);
}

static void gather(const uint8_t *codes, uint64_t mask, const int8_t *table, uint8_t cols[64],
                   uint8_t values[64]) {
    memset(cols, 0, 64);
    memset(values, 128, 64);
    for (; mask; mask &= mask - 1) {
        int c = __builtin_ctzll(mask);
        *cols++ = (uint8_t)c;
        *values++ = (uint8_t)((table ? table[codes[c]] : (int8_t)codes[c]) + 128);
    }
}

const struct cpu_packer cpu_packer_scalar = {
    .unpack_nibbles = unpack_nibbles,
    .spread = spread,
    .squeeze = squeeze,
    .join_nibbles = join_nibbles,
    .gather = gather,
};
