/** What packing does with bytes: one table per instruction set, all with the same result. */
#ifndef PDVM_BACKEND_CPU_PACK_H
#define PDVM_BACKEND_CPU_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Inner loops of packing integer matrices. 64 bytes behind every array may be read or written. */
struct cpu_packer {
    /** out[2 i], out[2 i + 1] = the low and the high nibble of bytes[i] */
    void (*unpack_nibbles)(const uint8_t *bytes, size_t n, uint8_t *out);
    /** Spreads codes over the set bits of masks[n], 64 positions each; `fill` elsewhere. */
    void (*spread)(const uint8_t *codes, const uint64_t *masks, size_t n, uint8_t fill,
                   uint8_t *out);
    /**
     * Cuts 16 rows of 64 codes, `stride` bytes apart, into 16 micro-blocks of 16 rows x 4 columns
     * (position 4 r + c), and appends the codes under masks[i], XORed with `flip`, to out[0], or,
     * if `two`, those of odd micro-blocks to out[1]; moves these pointers on.
     */
    void (*squeeze)(const uint8_t *rows, size_t stride, const uint64_t masks[16], uint8_t flip,
                    bool two, uint8_t *out[2]);
    /** low[i] |= high[i] << 4 */
    void (*join_nibbles)(uint8_t *low, const uint8_t *high, size_t n);
    /**
     * Gathers the codes of a row's block of 64 under `mask`: their columns, and behind them zeros; and
     * code + 128, or table[code] + 128 unless `table` (64 entries) is NULL, and behind them 128.
     */
    void (*gather)(const uint8_t *codes, uint64_t mask, const int8_t *table, uint8_t cols[64],
                   uint8_t values[64]);
};

extern const struct cpu_packer cpu_packer_scalar;
#ifdef PDVM_HAVE_AVX512
extern const struct cpu_packer cpu_packer_avx512;
#endif

#endif
