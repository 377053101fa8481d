/* The portable batch kernels, compiled for AVX2. */
#define cpu_batch_scalar cpu_batch_avx2
#include "backend/cpu/batch_scalar.c" /* NOLINT(bugprone-suspicious-include) */
