/* The portable kernels of attention, compiled for AVX2. */
#define cpu_attention_scalar cpu_attention_avx2
#include "backend/cpu/attention_scalar.c" /* NOLINT(bugprone-suspicious-include) */
