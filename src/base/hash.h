/** 64-bit FNV-1a (Fowler, Noll, Vo): fingerprints and hash tables, not security. */
#ifndef PDVM_BASE_HASH_H
#define PDVM_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define PD_HASH_INIT 0xcbf29ce484222325u

/** Folds `size` bytes into `hash`; start with PD_HASH_INIT. */
static inline uint64_t pd_hash(uint64_t hash, const void *data, size_t size) {
    const uint8_t *p = (const uint8_t *)data;
    for (size_t i = 0; i < size; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

#endif
