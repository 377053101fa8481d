/** The read bandwidth: memory read as fast as ordinary loads can. */
#ifndef PDVM_KERNELS_READ_H
#define PDVM_KERNELS_READ_H

#include "dialect.h"

#define READ_AHEAD 8u /* loads of a thread under way */

/**
 * Reads p->read_bytes of W (a multiple of 16), neighbours by neighbouring threads. Each thread leaves
 * the exclusive or of its words at its place in G (uint32_t[all threads]), so that no load is left out.
 */
FN void read_stream(const struct Ctx *c, const struct gpu_launch *p) {
    uint64_t all = (uint64_t)c->n_blocks * c->n_threads;
    uint64_t self = (uint64_t)c->block * c->n_threads + c->thread;
    uint64_t n = p->read_bytes / 16, i = self;
    uint32_t sum = 0;
    for (; i + (READ_AHEAD - 1) * all < n; i += READ_AHEAD * all) {
        u32x4 v[READ_AHEAD];
        UNROLL
        for (uint32_t j = 0; j < READ_AHEAD; j++) v[j] = load_x4(c->w + 16 * (i + j * all));
        UNROLL
        for (uint32_t j = 0; j < READ_AHEAD; j++) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < n; i += all) {
        u32x4 v = load_x4(c->w + 16 * i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    G(uint32_t, 4 * self) = sum;
}

#endif
