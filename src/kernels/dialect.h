/**
 * The language of the kernels: a subset of C that CUDA, OpenCL and plain C compilers read the same
 * way. What differs between them is here and in the dialect_*.h files, and nowhere else.
 *
 * Rules: functions for anything with a body (FN in front), macros only for qualifiers, accessors
 * and entry points. Arrays lie at offsets in the arenas of abi.h and are reached by W(T, offset)
 * (never written by a kernel), G(T, offset), K(T, offset) and, in group memory, L(T, offset); all
 * need a `const struct Ctx *c` in scope. Every thread of a group reaches every sync, every lane of a
 * warp every lane_*. No designated initialisers, no pointers in structs but Ctx. Floats: `f` on
 * every literal, fma_f where a fused multiply-add is meant, and no contraction elsewhere
 * (-fmad=false), so that a function gives the same bits in every kernel it is inlined in.
 */
#ifndef PDVM_KERNELS_DIALECT_H
#define PDVM_KERNELS_DIALECT_H

#if defined(__OPENCL_C_VERSION__) || defined(__OPENCL_VERSION__)
#include "dialect_opencl.h"
#elif defined(__CUDACC__) || defined(PDVM_EMULATE_CUDA)
#include "dialect_cuda.h"
#else
#include "dialect_c.h"
#endif

#include "abi.h"

#ifndef LOCAL_HANDLE
#define LOCAL_HANDLE LOCAL uint8_t *
#endif

/** Where a thread is, and the arenas. */
struct Ctx {
    GLOBAL const uint8_t *w;
    GLOBAL uint8_t *g;
    GLOBAL uint8_t *k;
    LOCAL_HANDLE l; /**< group memory */
    uint32_t block, n_blocks;
    uint32_t thread, n_threads;
    uint32_t lane, warp, n_warps;
};

#define W(T, offset) LOAD_ONLY(T, c->w + (offset))
#define G(T, offset) (*(GLOBAL T *)(c->g + (offset)))
#define K(T, offset) (*(GLOBAL T *)(c->k + (offset)))
#define L(T, offset) (*(LOCAL T *)(LOCAL_BASE(c) + (offset)))

/**
 * A word of an arena on its way to `to` in group memory, without a register to wait for it; see
 * async_wait, which waits for those that the thread asked for. They may come at once.
 */
FN void async_word(const struct Ctx *c, uint32_t to, GLOBAL const uint8_t *from) {
#if PDVM_ASYNC_WORDS
    ptx_async_word(LOCAL_BASE(c) + to, from);
#else
    L(uint32_t, to) = *(GLOBAL const uint32_t *)from;
#endif
}

FN void async_wait(void) {
#if PDVM_ASYNC_WORDS
    ptx_async_wait();
#endif
}

/*
 * Group memory by address, for loops that gather from it: an address plus a constant is one load
 * where the hardware has 32-bit addresses, while an offset costs an addition to the base each time.
 */
#if PDVM_LOCAL_ADDRESSES
FN uint32_t local_address(const struct Ctx *c, uint32_t offset) {
    return c->l + offset;
}
FN uint32_t local_u16(const struct Ctx *c, uint32_t address) {
    (void)c;
    return ptx_load_shared_u16(address);
}
FN uint32_t local_x1(const struct Ctx *c, uint32_t address) {
    (void)c;
    return ptx_load_shared_x1(address);
}
FN u32x2 local_x2(const struct Ctx *c, uint32_t address) {
    (void)c;
    return ptx_load_shared_x2(address);
}
FN u32x4 local_x4(const struct Ctx *c, uint32_t address) {
    (void)c;
    return ptx_load_shared_x4(address);
}
#else
FN uint32_t local_address(const struct Ctx *c, uint32_t offset) {
    (void)c;
    return offset;
}
FN uint32_t local_u16(const struct Ctx *c, uint32_t address) {
    return L(uint16_t, address);
}
FN uint32_t local_x1(const struct Ctx *c, uint32_t address) {
    return L(uint32_t, address);
}
FN u32x2 local_x2(const struct Ctx *c, uint32_t address) {
    return L(u32x2, address);
}
FN u32x4 local_x4(const struct Ctx *c, uint32_t address) {
    return L(u32x4, address);
}
#endif

FN float bf16_to_float(uint32_t h) {
    return bits_float(h << 16);
}

FN uint32_t min_u(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

FN uint32_t max_u(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

FN uint32_t round_up_u(uint32_t a, uint32_t b) {
    return (a + b - 1) / b * b;
}

/** Sum over the warp, the same bits on every lane. */
FN float lane_sum(float v) {
    for (uint32_t m = 16; m > 0; m /= 2) v += lane_xor_f(v, m);
    return v;
}

/** Floats as integers of the same order; never 0 for a number. */
FN uint32_t order_of(float v) {
    uint32_t u = float_bits(v);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

FN float order_to_float(uint32_t o) {
    return bits_float(o & 0x80000000u ? o & 0x7fffffffu : ~o);
}

/** Largest over the warp; NaN is larger than any number. */
FN float lane_max_f(float v) {
    return order_to_float(lane_max_u(order_of(v)));
}

#endif
