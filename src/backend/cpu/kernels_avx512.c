/* The tables of the AVX-512 kernels, with and without AMX. */
#include "backend/cpu/attention.h"
#include "backend/cpu/avx512.h"
#include "backend/cpu/batch.h"

static bool supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
}

#define AVX512_KERNELS                                                                             \
    .product = {[CPU_INT8] = {avx512_int8_bitmap, avx512_int8_dense},                              \
                [CPU_LUT4] = {avx512_lut4_bitmap, avx512_lut4_dense},                              \
                [CPU_SELL] = {avx512_sell, NULL},                                                  \
                [CPU_F32] = {avx512_f32_bitmap, avx512_f32_dense},                                 \
                [CPU_BF16] = {avx512_bf16_bitmap, avx512_bf16_dense},                              \
                [CPU_F16] = {avx512_f16_bitmap, avx512_f16_dense},                                 \
                [CPU_LUT8] = {avx512_lut8_bitmap, avx512_lut8_dense}},                             \
    .fast_sparse = true, .expand = avx512_expand, .expand_float = avx512_expand_float,             \
    .attention = &cpu_attention_avx512, .rms_norm = avx512_rms_norm, .quantise = avx512_quantise,  \
    .dot = {[PDVM_KV_F32] = avx512_dot_f32,                                                        \
            [PDVM_KV_F16] = avx512_dot_f16,                                                        \
            [PDVM_KV_INT8] = avx512_dot_i8},                                                       \
    .add_scaled = {[PDVM_KV_F32] = avx512_add_f32,                                                 \
                   [PDVM_KV_F16] = avx512_add_f16,                                                 \
                   [PDVM_KV_INT8] = avx512_add_i8}

const struct cpu_kernels cpu_kernels_avx512 = {
    .name = "avx512", .supported = supported, .batch = &cpu_batch_avx512, AVX512_KERNELS};

#ifdef PDVM_HAVE_AMX
static bool supported_with_amx(void) {
    return supported() && cpu_amx_supported();
}

const struct cpu_kernels cpu_kernels_amx = {
    .name = "amx", .supported = supported_with_amx, .batch = &cpu_batch_amx, AVX512_KERNELS};
#endif
