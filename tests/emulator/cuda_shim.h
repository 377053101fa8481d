/** CUDA's built-in names, as the emulator has them: what src/kernels/dialect_cuda.h needs. */
#ifndef PDVM_TESTS_CUDA_SHIM_H
#define PDVM_TESTS_CUDA_SHIM_H

#include "base/half.h"
#include "emulator/emulator.h"
#include "emulator/entry.h"

#include <math.h>

#define __device__
#define __forceinline__ inline
#define __noinline__
#define pdvm_shared emu_self()->shared

typedef struct {
    uint32_t x, y;
} uint2;
typedef struct {
    uint32_t x, y, z, w;
} uint4;
static inline uint2 make_uint2(uint32_t x, uint32_t y) {
    return (uint2){x, y};
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return (uint4){x, y, z, w};
}

#define __ldg(p) (*(p))
#define __syncthreads() emu_sync()
#define __syncwarp(mask) ((void)(mask), (void)emu_lanes(EMU_LANE_SYNC, 0, 0))
#define __ballot_sync(mask, p) ((void)(mask), emu_lanes(EMU_LANE_BALLOT, (p) != 0, 0))
#define __shfl_sync(mask, v, lane) ((void)(mask), emu_lanes(EMU_LANE_GET, v, (uint32_t)(lane)))
#define __shfl_xor_sync(mask, v, x)                                                                \
    ((void)(mask), _Generic((v), float : shim_xor_f, default : shim_xor_u)(v, (uint32_t)(x)))
static inline uint32_t shim_xor_u(uint32_t v, uint32_t x) {
    return emu_lanes(EMU_LANE_XOR, v, x);
}
static inline float shim_xor_f(float v, uint32_t x) {
    return pd_bits_float(emu_lanes(EMU_LANE_XOR, pd_float_bits(v), x));
}

#define __popc(v) __builtin_popcount(v)
#define __float_as_uint(f) pd_float_bits(f)
#define __uint_as_float(u) pd_bits_float(u)
#define __ushort_as_half(h) (h)
#define __half_as_ushort(h) (h)
#define __half2float(h) pd_f16_to_float(h)
#define __float2half_rn(f) pd_float_to_f16(f)
#define __fmaf_rn(a, b, c) fmaf(a, b, c)
#define __ll2float_rn(v) ((float)(v))
#define __float2ll_rn(v) llrintf(v)

static inline void sincospif(float x, float *s, float *c) {
    *s = (float)sin(3.14159265358979323846 * (double)x);
    *c = (float)cos(3.14159265358979323846 * (double)x);
}

static inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 255u) * (b >> i & 255u);
    return c;
}
static inline int shim_dp2a(int a, int b, int c) {
    int x0 = (int16_t)(a & 0xffff), x1 = (int16_t)((unsigned)a >> 16);
    /* Sign extension of bytes without a signed char. */
    int w0 = ((b & 0xff) ^ 0x80) - 0x80, w1 = ((int)((unsigned)b >> 8 & 0xff) ^ 0x80) - 0x80;
    return c + x0 * w0 + x1 * w1;
}
#define __dp2a_lo(a, b, c) shim_dp2a(a, b, c)
#define __dp2a_hi(a, b, c) shim_dp2a(a, (int)((unsigned)(b) >> 16), c)
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t all = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> (4 * i) & 7u; /* of the fourth bit nothing is promised */
        out |= ((uint32_t)(all >> (8 * s)) & 255u) << (8 * i);
    }
    return out;
}
static inline uint32_t atomicAdd(uint32_t *p, uint32_t v) {
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

/* ptx.h */
#define ptx_prefetch_l2(p) ((void)(p))
#define ptx_load_stream_x4(p) (*(const uint4 *)(const void *)(p))
#define ptx_load_stream_x2(p) (*(const uint2 *)(const void *)(p))
#define ptx_load_stream_x1(p) (*(const uint32_t *)(const void *)(p))
#define ptx_sign_bytes(v) (((v) >> 7 & 0x01010101u) * 255u)
#define ptx_inverse(x) (1.0f / (x))
#define ptx_rsqrt(x) (1.0f / sqrtf(x))
#define ptx_store_release(part, v) emu_put((uint32_t *)(void *)(part), (v).x, (v).y, (v).z)
static inline uint4 shim_get(const uint8_t *part, uint32_t wanted) {
    uint32_t v[3];
    emu_get((const uint32_t *)(const void *)part, wanted, v);
    return make_uint4(v[0], v[1], v[2], 0);
}
#define ptx_load_relaxed(part) shim_get(part, wanted) /* grid_get's argument */
#define ptx_load_acquire(part) shim_get(part, wanted)
#define ptx_add_acq_rel(p, v) __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)
#define ptx_async_word(dst, src) memcpy(dst, src, 4)
#define ptx_async_wait() ((void)0)
#define ptx_clock() emu_clock()
#define ptx_trap() emu_give_up("trap")
#define ptx_mbarrier_init(b) (*(b) = 0)
#define ptx_mbarrier_fence() ((void)0)
#define ptx_mbarrier_expect(b, bytes) emu_expect(b, bytes)
#define ptx_mbarrier_wait(b, parity) emu_wait(b, parity)
#define ptx_bulk_load(dst, src, n, b) emu_copy(dst, src, n, b)

#endif
