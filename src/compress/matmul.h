/**
 * Products of large float32 matrices for calibration: OpenBLAS's, or, where the processor has AMX,
 * three or four times faster ones of bfloat16 pairs.
 *
 * Those split every number into bfloat16 parts, x = high + middle + low, and add up the products of
 * parts in float32, leaving out those below the precision: Henry, Tang, Heinecke 2019, "Leveraging the
 * bfloat16 artificial intelligence datatype for higher-precision computations". With two parts (three
 * products) each term is right to 2^-15 and sums of many to about 4e-6 of their size, with three parts
 * (six products) to float32's rounding, as sums of squares need it.
 *
 * Every product is computed by one worker in a fixed order.
 */
#ifndef PDVM_COMPRESS_MATMUL_H
#define PDVM_COMPRESS_MATMUL_H

#include "compress/blas.h"

#include <stdbool.h>

/** One product C = A B or C = C + A B. */
struct matmul_task {
    int64_t m, n, k;
    const float *a, *b;
    int64_t a_stride, b_stride; /**< from row to row, as stored */
    float *c;                   /**< [m, n] row-major */
    int64_t c_stride;
    bool transposed; /**< a[k, m] and b[k, n]: C = A^T B; else a[m, k] and b[n, k]: C = A B^T */
    bool add;        /**< to what C holds */
    bool upper;      /**< only the half of C above the diagonal, and it, are wanted */
    bool exact;      /**< three parts, where numbers are split */
};

/** How products are computed, and memory for it. Zero-initialise, free with matmul_free. */
struct matmul {
    const struct blas *blas;
    const char *name; /**< "amx", or what OpenBLAS calls its kernels */
    void (*split)(const struct matmul_task *task, char *scratch); /**< NULL: by OpenBLAS */
    int n_workers;
    char **scratch; /**< [n_workers] */
};

/** Chooses and allocates. */
pdvm_status matmul_create(const struct blas *blas, int n_workers, struct matmul *out,
                          pdvm_error *err);

/** Frees the memory; a zeroed one is allowed. */
void matmul_free(struct matmul *m);

/** Computes one product with a worker's memory. */
void matmul_run(const struct matmul *m, const struct matmul_task *task, int worker);

#ifdef PDVM_HAVE_AMX
/** Bytes of memory that the split products need, aligned to 64. */
#define MATMUL_AMX_BYTES ((int64_t)15 << 19)

/** The products on AMX; only where pd_amx_supported(PD_AMX_BF16) and AVX-512 are there. */
void matmul_split_amx(const struct matmul_task *task, char *scratch);
#endif

#endif
