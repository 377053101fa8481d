/**
 * The dialect as OpenCL C 1.2. Groups of OpenCL promise each other no progress, so there is no grid
 * barrier: only pdvm_phase. Lanes exchange values by cl_khr_subgroups' relatives of 32 lanes, and
 * dot products and byte permutes are spelled out; a compiler knows their patterns.
 */
#ifndef PDVM_KERNELS_DIALECT_OPENCL_H
#define PDVM_KERNELS_DIALECT_OPENCL_H

#pragma OPENCL EXTENSION cl_khr_fp64 : enable

typedef uchar uint8_t;
typedef char int8_t;
typedef ushort uint16_t;
typedef short int16_t;
typedef uint uint32_t;
typedef int int32_t;
typedef ulong uint64_t;
typedef long int64_t;
typedef uint2 u32x2;
typedef uint4 u32x4;

#define PDVM_KERNEL_TYPES
#define offsetof(type, field) __builtin_offsetof(type, field)
#define PDVM_LOCAL_ADDRESSES 0
#define PDVM_ASYNC_WORDS 0
#define PDVM_GRID_SYNC 0
#define PDVM_BULK 0

#define FN static inline
#define FN_APART static
#define GLOBAL __global
#define LOCAL __local
#define LOCAL_BASE(c) ((c)->l)
#define LOAD_ONLY(T, p) (*(__global const T *)(p))
#define UNROLL
#define NO_UNROLL
#define MAKE_X2(a, b) ((uint2)(a, b))
#define MAKE_X4(a, b, c, d) ((uint4)(a, b, c, d))

/* cl_khr_subgroup_shuffle, where sub-groups have 32 lanes; the host checks for both. */
uint __attribute__((overloadable)) sub_group_shuffle(uint v, uint lane);
uint __attribute__((overloadable)) sub_group_shuffle_xor(uint v, uint mask);
uint4 __attribute__((overloadable)) sub_group_ballot(int p);
void __attribute__((overloadable)) sub_group_barrier(cl_mem_fence_flags flags);

FN void sync(void) {
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
}
FN void lane_sync(void) {
    sub_group_barrier(CLK_LOCAL_MEM_FENCE);
}
FN uint lane_xor_u(uint v, uint mask) {
    return sub_group_shuffle_xor(v, mask);
}
FN float lane_xor_f(float v, uint mask) {
    return as_float(sub_group_shuffle_xor(as_uint(v), mask));
}
FN uint lane_get_u(uint v, uint lane) {
    return sub_group_shuffle(v, lane);
}
FN uint lane_ballot(int p) {
    return sub_group_ballot(p).x;
}
FN uint lane_max_u(uint v) {
    for (uint m = 16; m > 0; m /= 2) v = max(v, lane_xor_u(v, m));
    return v;
}
FN uint lane_sum_u(uint v) {
    for (uint m = 16; m > 0; m /= 2) v += lane_xor_u(v, m);
    return v;
}
FN uint count_bits(uint v) {
    return popcount(v);
}

FN uint float_bits(float f) {
    return as_uint(f);
}
FN float bits_float(uint u) {
    return as_float(u);
}
FN float f16_to_float(uint h) {
    ushort bits = (ushort)h;
    return vload_half(0, (const half *)&bits);
}
FN uint float_to_f16(float f) {
    ushort bits;
    vstore_half_rte(f, 0, (half *)&bits);
    return bits;
}
FN float fma_f(float a, float b, float c) {
    return fma(a, b, c);
}
FN float exp_f(float x) {
    return exp(x);
}
FN float exp2_f(float x) {
    return exp2(x);
}
FN float fast_inverse(float x) {
    return native_recip(x);
}
FN float fast_rsqrt(float x) {
    return rsqrt(x);
}
FN float sqrt_f(float x) {
    return sqrt(x);
}
FN float rint_f(float x) {
    return rint(x);
}
FN double rint_d(double x) {
    return rint(x);
}
FN void sincospi_f(float x, float *s, float *c) {
    *s = sinpi(x);
    *c = cospi(x);
}
FN float long_to_float(long v) {
    return convert_float_rte(v);
}
FN long float_to_long(float v) {
    return convert_long_rte(v);
}

FN uint dot4_u8(uint a, uint b, uint acc) {
    uchar4 x = as_uchar4(a), y = as_uchar4(b);
    return acc + x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}
FN int dot2_lo(uint a, uint b, int acc) {
    short2 x = as_short2(a);
    char4 y = as_char4(b);
    return acc + x.x * y.x + x.y * y.y;
}
FN int dot2_hi(uint a, uint b, int acc) {
    return dot2_lo(a, b >> 16, acc);
}
FN uint sign_bytes(uint v) {
    return (v >> 7 & 0x01010101u) * 255u;
}
FN uint bytes(uint a, uint b, uint selector) {
    uint out = 0;
    for (uint i = 0; i < 4; i++) {
        uint s = selector >> (4 * i) & 7u;
        uint byte = (s & 4u ? b : a) >> (8 * (s & 3u)) & 255u;
        out |= byte << (8 * i);
    }
    return out;
}

FN uint local_add(__local uint *p, uint v) {
    return atomic_add(p, v);
}
FN void prefetch_line(__global const uchar *p) {
    (void)p;
}
#define prefetch prefetch_line
FN uint4 load_x4(__global const uchar *p) {
    return *(__global const uint4 *)p;
}
FN uint2 load_x2(__global const uchar *p) {
    return *(__global const uint2 *)p;
}
FN uint load_x1(__global const uchar *p) {
    return *(__global const uint *)p;
}
FN uint load_u16(__global const uchar *p) {
    return *(__global const ushort *)p;
}

/* Between groups, only to find who comes last: device scope, as OpenCL 1.2's atomics have it. */
FN uint grid_add_both(__global uint *p) {
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    uint old = atomic_inc(p);
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    return old;
}

/* OpenCL has no clock; its events time launches. */
FN uint device_clock(void) {
    return 0;
}

#define KERNEL(name)                                                                               \
    __kernel void name(__global const uchar *w, __global uchar *g, __global uchar *k,              \
                       __local uchar *shared_memory, const struct gpu_launch p)
#define KERNEL_CTX                                                                                 \
    struct Ctx ctx;                                                                                \
    ctx.w = w;                                                                                     \
    ctx.g = g;                                                                                     \
    ctx.k = k;                                                                                     \
    ctx.l = shared_memory;                                                                         \
    ctx.block = get_group_id(0);                                                                   \
    ctx.n_blocks = get_num_groups(0);                                                              \
    ctx.thread = get_local_id(0);                                                                  \
    ctx.n_threads = get_local_size(0);                                                             \
    ctx.lane = ctx.thread % 32;                                                                    \
    ctx.warp = ctx.thread / 32;                                                                    \
    ctx.n_warps = ctx.n_threads / 32

#endif
