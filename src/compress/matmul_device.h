/**
 * Where a device computes calibration's heavy products: the few functions that one offers. Matrices
 * come from and go to the host's memory; what is multiplied many times stays on the device.
 *
 * What a device fails at after it was created is remembered: the products since then are worth
 * nothing, and `status` says so. It must be asked before they are used.
 */
#ifndef PDVM_COMPRESS_MATMUL_DEVICE_H
#define PDVM_COMPRESS_MATMUL_DEVICE_H

#include "base/threads.h"

#include <stdbool.h>

struct matmul_task;
struct matmul_device;

/** A device's functions. */
struct matmul_device_ops {
    void (*destroy)(struct matmul_device *d);

    /**
     * Brings b[n, k] of a task that is not transposed to the device. *out is 0 if there is no room
     * left, then the product is the host's; else it goes to `unload`, last in first out.
     */
    pdvm_status (*load)(struct matmul_device *d, const struct matmul_task *task, uint64_t *out,
                        pdvm_error *err);
    void (*unload)(struct matmul_device *d, uint64_t loaded);

    /** Products of one a[m, k] with several loaded b; called from several workers at once. */
    void (*products)(struct matmul_device *d, const struct matmul_task *tasks, int n, int worker);

    /**
     * Adds X^T X of x[n * seq, cols], n windows, to the upper half of h[cols, cols]. A window is added
     * up in float32, up to MATMUL_DEVICE_WINDOWS of them after one another too, and these in double.
     * The bits do not depend on the workers, nor on how windows are given to calls if all calls but the
     * last have multiples of MATMUL_DEVICE_WINDOWS.
     */
    pdvm_status (*gram)(struct matmul_device *d, const float *x, int64_t n, int64_t seq,
                        int64_t cols, struct pd_threads *threads, double *h, pdvm_error *err);

    /** PDVM_OK, or what failed first. */
    pdvm_status (*status)(struct matmul_device *d, pdvm_error *err);
};

#define MATMUL_DEVICE_WINDOWS ((int64_t)16)

/** A device; implementations begin with this. */
struct matmul_device {
    const struct matmul_device_ops *ops;
    char name[160]; /**< for people, and for telling whose products have the same bits */
};

/** What a device will be asked for: it takes all its memory at once. */
struct matmul_device_size {
    int64_t loaded;  /**< most bytes of loaded matrices at a time */
    int64_t seq;     /**< rows of a window */
    int64_t widest;  /**< most columns of a window */
    int64_t outputs; /**< most columns that come out of the products of one `products` call */
    bool gram;       /**< it will be asked for gram */
};

/**
 * The first NVIDIA GPU, by cuBLAS. PDVM_ERR_UNSUPPORTED if there is no GPU or no cuBLAS, PDVM_ERR_MEMORY if
 * its memory is too small or taken.
 */
pdvm_status matmul_cuda_create(const struct matmul_device_size *size, int n_workers,
                               struct matmul_device **out, pdvm_error *err);

#endif
