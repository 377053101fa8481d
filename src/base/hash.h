/** 64-bit FNV-1a (Fowler, Noll, Vo): fingerprints and hash tables, not security. */
#ifndef PDVM_BASE_HASH_H
#define PDVM_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PD_HASH_INIT 0xcbf29ce484222325u

/** Folds `size` bytes into `hash`; start with PD_HASH_INIT. */
static inline uint64_t pd_hash(uint64_t hash, const void *data, size_t size) {
    const uint8_t *p = (const uint8_t *)data;
    for (size_t i = 0; i < size; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

/**
 * A hash of data[0, size) at the speed of memory, for checksums of large files: eight lanes of the
 * same steps over words of 64 bits as they lie in memory, folded into `hash` with the rest. Another
 * value than pd_hash's.
 */
static inline uint64_t pd_hash_large(uint64_t hash, const void *data, size_t size) {
    const uint8_t *p = (const uint8_t *)data;
    uint64_t lanes[8], word;
    for (unsigned i = 0; i < 8; i++) lanes[i] = PD_HASH_INIT + i;
    size_t n = size / 64;
    for (; n > 0; n--, p += 64)
        for (unsigned i = 0; i < 8; i++) {
            memcpy(&word, p + 8 * i, 8);
            lanes[i] = (lanes[i] ^ word) * 0x9e3779b97f4a7c15u;
            lanes[i] ^= lanes[i] >> 32; /* or high bits of words would never reach low ones */
        }
    hash = pd_hash(hash, lanes, sizeof lanes);
    return pd_hash(hash, p, size % 64);
}

#endif
