/** The instructions that CUDA C has no name for. */
#ifndef PDVM_KERNELS_PTX_H
#define PDVM_KERNELS_PTX_H

#include <stdint.h>

#define PTX_FN static __device__ __forceinline__

PTX_FN uint32_t ptx_shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/** A value that is kept in a register: compilers work out group memory's address again and again. */
PTX_FN uint32_t ptx_once(uint32_t v) {
    asm volatile("" : "+r"(v));
    return v;
}

/** The sign of every byte in all of its bits. __byte_perm promises nothing of the sort. */
PTX_FN uint32_t ptx_sign_bytes(uint32_t v) {
    uint32_t r;
    asm("prmt.b32 %0, %1, 0, 0xba98;" : "=r"(r) : "r"(v));
    return r;
}

/* Approximations, spelled out: compilers must not choose another one in another place. */
PTX_FN float ptx_inverse(float x) {
    float v;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

PTX_FN float ptx_rsqrt(float x) {
    float v;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

PTX_FN void ptx_prefetch_l2(const uint8_t *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

PTX_FN uint4 ptx_load_stream_x4(const uint8_t *p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}

PTX_FN uint2 ptx_load_stream_x2(const uint8_t *p) {
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

PTX_FN uint32_t ptx_load_stream_x1(const uint8_t *p) {
    uint32_t v;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* Volatile: what the copy engine brings must not be read before it has come. */
PTX_FN uint32_t ptx_load_shared_u16(uint32_t address) {
    return *(const uint16_t *)__cvta_shared_to_generic(address);
}

PTX_FN uint32_t ptx_load_shared_x1(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

PTX_FN uint2 ptx_load_shared_x2(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}

PTX_FN uint4 ptx_load_shared_x4(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}

#if __CUDA_ARCH__ >= 800
PTX_FN void ptx_async_word(uint8_t *dst, const uint8_t *src) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(ptx_shared_address(dst)), "l"(src)
                 : "memory");
}

PTX_FN void ptx_async_wait(void) {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

/** Cycles of the multiprocessor, low half. */
PTX_FN uint32_t ptx_clock(void) {
    uint32_t v;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(v));
    return v;
}

/** 16 bytes that are written, and read, as one. */
PTX_FN void ptx_store_release(uint8_t *p, uint4 v) {
    asm volatile("{\n"
                 ".reg .b128 all;\n"
                 "mov.b128 all, {%1, %2};\n"
                 "st.release.gpu.global.b128 [%0], all;\n"
                 "}" ::"l"(p),
                 "l"((uint64_t)v.y << 32 | v.x), "l"((uint64_t)v.w << 32 | v.z)
                 : "memory");
}

#define PTX_LOAD_16(name, order)                                                                   \
    PTX_FN uint4 name(const uint8_t *p) {                                                          \
        uint64_t low, high;                                                                        \
        asm volatile("{\n"                                                                         \
                     ".reg .b128 all;\n"                                                           \
                     "ld." order ".gpu.global.b128 all, [%2];\n"                                   \
                     "mov.b128 {%0, %1}, all;\n"                                                   \
                     "}"                                                                           \
                     : "=l"(low), "=l"(high)                                                       \
                     : "l"(p)                                                                      \
                     : "memory");                                                                  \
        return make_uint4((uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high,                    \
                          (uint32_t)(high >> 32));                                                 \
    }
PTX_LOAD_16(ptx_load_relaxed, "relaxed")
PTX_LOAD_16(ptx_load_acquire, "acquire")

PTX_FN uint32_t ptx_add_acq_rel(uint32_t *p, uint32_t v) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(p), "r"(v)
                 : "memory");
    return old;
}

PTX_FN void ptx_trap(void) {
    asm volatile("trap;");
}

#if __CUDA_ARCH__ >= 900

PTX_FN void ptx_mbarrier_init(uint64_t *b) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(ptx_shared_address(b)) : "memory");
}

/** Makes initialised barriers known to the copy engine. */
PTX_FN void ptx_mbarrier_fence(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/** One arrival, and `bytes` of copies to come before the phase completes. */
PTX_FN void ptx_mbarrier_expect(uint64_t *b, uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx_shared_address(b)),
        "r"(bytes)
        : "memory");
}

PTX_FN void ptx_mbarrier_wait(uint64_t *b, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(ptx_shared_address(b)),
                 "r"(parity)
                 : "memory");
}

/**
 * Copies a multiple of 16 bytes from global to group memory; completes on the barrier. They are the
 * first to leave the second level cache, where what is read once for every token would push out what
 * phases wait for: scales, tables, keys and values.
 */
PTX_FN void ptx_bulk_load(uint8_t *dst, const uint8_t *src, uint32_t bytes, uint64_t *b) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(ptx_shared_address(dst)),
                 "l"(src), "r"(bytes), "r"(ptx_shared_address(b)), "l"(policy)
                 : "memory");
}

#endif

#endif
