/* The tables of the AVX2 kernels, with and without AVX-VNNI. */
#include "backend/cpu/attention.h"
#include "backend/cpu/avx2.h"
#include "backend/cpu/batch.h"

#include <cpuid.h>

/* F16C is not among the names that clang 14 knows for __builtin_cpu_supports. */
static bool has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & 1u << 29);
}

static bool supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && has_f16c();
}

#define AVX2_KERNELS(PRODUCTS)                                                                     \
    .product = {[CPU_INT8] = {PRODUCTS##_int8_bitmap, PRODUCTS##_int8_dense},                      \
                [CPU_LUT4] = {PRODUCTS##_lut4_bitmap, PRODUCTS##_lut4_dense},                      \
                [CPU_SELL] = {cpu_product_integer, NULL},                                          \
                [CPU_F32] = {avx2_f32_bitmap, avx2_f32_dense},                                     \
                [CPU_BF16] = {avx2_bf16_bitmap, avx2_bf16_dense},                                  \
                [CPU_F16] = {avx2_f16_bitmap, avx2_f16_dense},                                     \
                [CPU_LUT8] = {avx2_lut8_bitmap, avx2_lut8_dense}},                                 \
    .expand = avx2_expand, .expand_float = avx2_expand_float, .batch = &cpu_batch_avx2,            \
    .attention = &cpu_attention_avx2, .rms_norm = avx2_rms_norm, .quantise = avx2_quantise,        \
    .dot = {[PDVM_KV_F32] = avx2_dot_f32,                                                          \
            [PDVM_KV_F16] = avx2_dot_f16,                                                          \
            [PDVM_KV_INT8] = avx2_dot_i8},                                                         \
    .add_scaled = {                                                                                \
        [PDVM_KV_F32] = avx2_add_f32, [PDVM_KV_F16] = avx2_add_f16, [PDVM_KV_INT8] = avx2_add_i8}

const struct cpu_kernels cpu_kernels_avx2 = {
    .name = "avx2", .supported = supported, AVX2_KERNELS(avx2)};

#ifdef PDVM_HAVE_AVXVNNI
/* Not among the names that gcc 12 and clang 14 know for __builtin_cpu_supports. */
static bool supported_with_vnni(void) {
    unsigned eax, ebx, ecx, edx;
    return supported() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
}

const struct cpu_kernels cpu_kernels_avxvnni = {
    .name = "avxvnni", .supported = supported_with_vnni, AVX2_KERNELS(avxvnni)};
#endif
