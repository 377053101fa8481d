/**
 * The dialect as CUDA C. Everything that is not in CUDA's own headers is in ptx.h, so that an
 * emulation on the CPU only has to stand in for that file and for CUDA's built-in names.
 */
#ifndef PDVM_KERNELS_DIALECT_CUDA_H
#define PDVM_KERNELS_DIALECT_CUDA_H

#ifdef PDVM_EMULATE_CUDA
#include "cuda_shim.h"
#include <stddef.h>
#define UNROLL
#define NO_UNROLL
#else
#include <stdint.h>

#include <cuda_fp16.h>
#define PDVM_SHARED extern __shared__ __align__(128) uint8_t pdvm_shared[]
PDVM_SHARED;
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#include "ptx.h"
#endif

#define PDVM_KERNEL_TYPES
#define PDVM_GRID_SYNC 1
#ifdef PDVM_EMULATE_CUDA
#define PDVM_LOCAL_ADDRESSES 0
#else
#define PDVM_LOCAL_ADDRESSES 1
#endif
#if defined(PDVM_EMULATE_CUDA) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define PDVM_ASYNC_WORDS 1 /* cp.async */
#else
#define PDVM_ASYNC_WORDS 0
#endif
#if defined(PDVM_EMULATE_CUDA) ? PDVM_EMULATE_BULK                                                 \
                               : (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define PDVM_BULK 1 /* cp.async.bulk into a ring per warp */
#else
#define PDVM_BULK 0
#endif

#define FN static __device__ __forceinline__
#define FN_APART static __device__ __noinline__
#define GLOBAL
#define LOCAL
#ifdef PDVM_EMULATE_CUDA
#define LOCAL_BASE(c) ((void)(c), pdvm_shared)
#else
#define LOCAL_BASE(c) ((uint8_t *)__cvta_shared_to_generic((c)->l))
#define LOCAL_HANDLE uint32_t /* an address of the shared window */
#endif
#define LOAD_ONLY(T, p) __ldg((const T *)(p))

typedef uint2 u32x2;
typedef uint4 u32x4;
#define MAKE_X2(a, b) make_uint2(a, b)
#define MAKE_X4(a, b, c, d) make_uint4(a, b, c, d)

#define ALL_LANES 0xffffffffu

FN void sync(void) {
    __syncthreads();
}
FN void lane_sync(void) {
    __syncwarp(ALL_LANES);
}
FN float lane_xor_f(float v, uint32_t mask) {
    return __shfl_xor_sync(ALL_LANES, v, (int)mask);
}
FN uint32_t lane_xor_u(uint32_t v, uint32_t mask) {
    return __shfl_xor_sync(ALL_LANES, v, (int)mask);
}
FN uint32_t lane_get_u(uint32_t v, uint32_t lane) {
    return __shfl_sync(ALL_LANES, v, (int)lane);
}
FN uint32_t lane_ballot(int p) {
    return __ballot_sync(ALL_LANES, p);
}
FN uint32_t lane_max_u(uint32_t v) {
#if !defined(PDVM_EMULATE_CUDA) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, v);
#else
    for (uint32_t m = 16; m > 0; m /= 2) {
        uint32_t o = __shfl_xor_sync(ALL_LANES, v, (int)m);
        v = o > v ? o : v;
    }
    return v;
#endif
}
FN uint32_t lane_sum_u(uint32_t v) {
#if !defined(PDVM_EMULATE_CUDA) && __CUDA_ARCH__ >= 800
    return __reduce_add_sync(ALL_LANES, v);
#else
    for (uint32_t m = 16; m > 0; m /= 2) v += __shfl_xor_sync(ALL_LANES, v, (int)m);
    return v;
#endif
}
FN uint32_t count_bits(uint32_t v) {
    return (uint32_t)__popc(v);
}

FN uint32_t float_bits(float f) {
    return __float_as_uint(f);
}
FN float bits_float(uint32_t u) {
    return __uint_as_float(u);
}
FN float f16_to_float(uint32_t h) {
    return __half2float(__ushort_as_half((unsigned short)h));
}
FN uint32_t float_to_f16(float f) {
    return __half_as_ushort(__float2half_rn(f));
}
FN float fma_f(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
FN float exp_f(float x) {
    return expf(x);
}
FN float exp2_f(float x) {
    return exp2f(x);
}
/** 1 / x and 1 / sqrt(x), within a few units in the last place. */
FN float fast_inverse(float x) {
    return ptx_inverse(x);
}
FN float fast_rsqrt(float x) {
    return ptx_rsqrt(x);
}
FN float sqrt_f(float x) {
    return sqrtf(x);
}
FN float rint_f(float x) {
    return rintf(x);
}
FN double rint_d(double x) {
    return rint(x);
}
/** sin and cos of pi * x. */
FN void sincospi_f(float x, float *s, float *c) {
    sincospif(x, s, c);
}
FN float long_to_float(int64_t v) {
    return __ll2float_rn(v);
}
FN int64_t float_to_long(float v) {
    return __float2ll_rn(v);
}

/** acc + the four unsigned bytes' products. */
FN uint32_t dot4_u8(uint32_t a, uint32_t b, uint32_t acc) {
    return __dp4a(a, b, acc);
}
/** acc + two signed 16-bit numbers times the low (high) two signed bytes of b. */
FN int32_t dot2_lo(uint32_t a, uint32_t b, int32_t acc) {
    return __dp2a_lo((int)a, (int)b, acc);
}
FN int32_t dot2_hi(uint32_t a, uint32_t b, int32_t acc) {
    return __dp2a_hi((int)a, (int)b, acc);
}
/** 0xff in the bytes whose highest bit is set, 0 in the others. */
FN uint32_t sign_bytes(uint32_t v) {
    return ptx_sign_bytes(v);
}
/** Byte i of the result is byte (selector nibble i, 0 to 7) of b:a. */
FN uint32_t bytes(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}

FN uint32_t local_add(uint32_t *p, uint32_t v) {
    return atomicAdd(p, v);
}
FN void prefetch(const uint8_t *p) {
    ptx_prefetch_l2(p);
}
/** 16, 8, 4 and 2 bytes of a stream: read once, so they should not push anything out of L1. */
FN u32x4 load_x4(const uint8_t *p) {
    return ptx_load_stream_x4(p);
}
FN u32x2 load_x2(const uint8_t *p) {
    return ptx_load_stream_x2(p);
}
FN uint32_t load_x1(const uint8_t *p) {
    return ptx_load_stream_x1(p);
}
FN uint32_t load_u16(const uint8_t *p) {
    return __ldg((const uint16_t *)p);
}

/*
 * Between groups: a part is 16 bytes, the third word says which one it is. What the group wrote
 * before grid_put (other threads: before a sync) is visible behind a grid_get that found it.
 */
FN void grid_put(uint8_t *part, u32x4 v) {
    ptx_store_release(part, v);
}
/**
 * The part as it is at some time; `wanted` is what the caller waits for. Of several, the last one is
 * asked for by grid_get_last: acquiring empties the first level cache, which takes a while, and
 * nobody in the group reads what others write until all have come.
 */
FN u32x4 grid_get(const uint8_t *part, uint32_t wanted) {
    (void)wanted; /* the emulator's faults want to know it */
    return ptx_load_relaxed(part);
}
FN u32x4 grid_get_last(const uint8_t *part, uint32_t wanted) {
    (void)wanted;
    return ptx_load_acquire(part);
}
FN uint32_t grid_add_both(uint32_t *p) {
    return ptx_add_acq_rel(p, 1);
}
FN uint32_t device_clock(void) {
    return ptx_clock();
}
FN void give_up(void) {
    ptx_trap();
}

/* A constant number of threads: 384 with 168 registers; 512 with 128 spill, and all warps do what is around a product. */
#ifndef PDVM_EMULATE_CUDA
#define KERNEL(name)                                                                               \
    extern "C" __global__ void __launch_bounds__(GPU_BLOCK_THREADS, 1) name(                       \
        const uint8_t *w, uint8_t *g, uint8_t *k, const __grid_constant__ struct gpu_launch p)
#define KERNEL_CTX                                                                                 \
    struct Ctx ctx = {w,                                                                           \
                      g,                                                                           \
                      k,                                                                           \
                      ptx_once(ptx_shared_address(pdvm_shared)),                                   \
                      blockIdx.x,                                                                  \
                      gridDim.x,                                                                   \
                      threadIdx.x,                                                                 \
                      GPU_BLOCK_THREADS,                                                           \
                      threadIdx.x % 32,                                                            \
                      threadIdx.x / 32,                                                            \
                      GPU_BLOCK_THREADS / 32}
#endif

#endif
