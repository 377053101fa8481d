/**
 * Products of large float32 matrices for calibration: OpenBLAS's; or, where the processor has AMX,
 * three or four times faster ones of bfloat16 pairs; or a device's (matmul_device.h).
 *
 * Those of pairs split every number into bfloat16 parts, x = high + middle + low, and add up the products of
 * parts in float32, leaving out those below the precision: Henry, Tang, Heinecke 2019, "Leveraging the
 * bfloat16 artificial intelligence datatype for higher-precision computations". With two parts (three
 * products) each term is right to 2^-15 and sums of many to about 4e-6 of their size, with three parts
 * (six products) to float32's rounding, as sums of squares need it.
 *
 * Every product is computed by one worker in a fixed order.
 */
#ifndef PDVM_COMPRESS_MATMUL_H
#define PDVM_COMPRESS_MATMUL_H

#include "base/threads.h"
#include "compress/blas.h"
#include "compress/matmul_device.h"

#include <stdbool.h>

/** A b that was made ready for many products, by matmul_prepare. Zero: it is not. */
struct matmul_ready {
    char *parts;        /* split, on the host */
    uint64_t on_device; /* what the device calls it; 0: it is not there */
};

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
    /** From matmul_prepare for the same b, n, k, transposed and exact; NULL: there is nothing. */
    const struct matmul_ready *ready;
};

/** A way of computing products of split numbers. */
struct matmul_split {
    int64_t scratch_bytes; /**< of each worker, aligned to 64 */
    void (*run)(const struct matmul_task *task, char *scratch);
    /** Bytes that the parts of a task's b take. */
    int64_t (*parts_bytes)(const struct matmul_task *task);
    /** Splits columns [begin, end) of b, multiples of MATMUL_COLUMNS or n, into its parts. */
    void (*prepare)(const struct matmul_task *task, int64_t begin, int64_t end, char *parts);
};

#define MATMUL_COLUMNS ((int64_t)256)

/** How products are computed, and memory for it. Zero-initialise, free with matmul_free. */
struct matmul {
    const struct blas *blas;
    const char *name; /**< of the device, "amx", or what OpenBLAS calls its kernels */
    const struct matmul_split *split; /**< NULL: by OpenBLAS */
    struct matmul_device *device;     /**< computes what was prepared for it; NULL: there is none */
    int n_workers;
    char **scratch; /**< [n_workers] */
};

/** Chooses and allocates. `device` is borrowed and may be NULL. */
pdvm_status matmul_create(const struct blas *blas, int n_workers, struct matmul_device *device,
                          struct matmul *out, pdvm_error *err);

/** Frees the memory; a zeroed one is allowed. */
void matmul_free(struct matmul *m);

/**
 * Makes a task's b ready for many products with it: on the device if there is one with room for it,
 * else split, where products split. Released by matmul_release, the last one first.
 */
pdvm_status matmul_prepare(const struct matmul *m, const struct matmul_task *task,
                           struct pd_threads *threads, struct matmul_ready *out, pdvm_error *err);

/** Undoes matmul_prepare; a zeroed one is allowed. */
void matmul_release(const struct matmul *m, struct matmul_ready *ready);

/** Computes one product with a worker's memory. */
void matmul_run(const struct matmul *m, const struct matmul_task *task, int worker);

/** Computes n products of the same a, m, and k: a device gets a only once. */
void matmul_run_all(const struct matmul *m, const struct matmul_task *tasks, int n, int worker);

/** PDVM_OK, or what the device failed at: its products since then are worth nothing. */
pdvm_status matmul_status(const struct matmul *m, pdvm_error *err);

#ifdef PDVM_HAVE_AMX
/** On AMX; only where pd_amx_supported(PD_AMX_BF16) and AVX-512 are there. */
extern const struct matmul_split matmul_split_amx;
#endif

#endif
