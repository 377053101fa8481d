/** Deterministic random numbers: SplitMix64 (Steele, Lea, Flood 2014). */
#ifndef PDVM_BASE_RANDOM_H
#define PDVM_BASE_RANDOM_H

#include <stdint.h>

/** Next 64 random bits; `state` may start with any seed. */
static inline uint64_t pd_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/** Uniform in [0, 1), 53 bits. */
static inline double pd_random_unit(uint64_t *state) {
    return (double)(pd_random(state) >> 11) * 0x1p-53;
}

#endif
