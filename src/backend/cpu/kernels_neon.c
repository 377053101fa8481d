/*
 * The table of the NEON kernels. Batches and attention are the portable ones: every compiler for AArch64
 * vectorises them.
 */
#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"
#include "backend/cpu/neon.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

static bool supported(void) {
#ifdef __linux__
    const unsigned long asimddp = 1ul << 20; /* HWCAP_ASIMDDP */
    return (getauxval(AT_HWCAP) & asimddp) != 0;
#elif defined(__APPLE__)
    return true; /* since the M1 */
#else
    return false;
#endif
}

const struct cpu_kernels cpu_kernels_neon = {
    .name = "neon",
    .supported = supported,
    .product = {[CPU_INT8] = {neon_int8_bitmap, neon_int8_dense},
                [CPU_LUT4] = {neon_lut4_bitmap, neon_lut4_dense},
                [CPU_SELL] = {cpu_product_integer, NULL},
                [CPU_F32] = {neon_f32_bitmap, neon_f32_dense},
                [CPU_BF16] = {neon_bf16_bitmap, neon_bf16_dense},
                [CPU_F16] = {neon_f16_bitmap, neon_f16_dense},
                [CPU_LUT8] = {neon_lut8_bitmap, neon_lut8_dense}},
    .expand = neon_expand,
    .expand_float = neon_expand_float,
    .batch = &cpu_batch_scalar,
    .attention = &cpu_attention_scalar,
    .rms_norm = neon_rms_norm,
    .quantise = neon_quantise,
    .dot =
        {[PDVM_KV_F32] = neon_dot_f32, [PDVM_KV_F16] = neon_dot_f16, [PDVM_KV_INT8] = neon_dot_i8},
    .add_scaled =
        {[PDVM_KV_F32] = neon_add_f32, [PDVM_KV_F16] = neon_add_f16, [PDVM_KV_INT8] = neon_add_i8},
};
