/**
 * libcuda_standin.so: the entry points of the CUDA driver that src/backend/cuda/driver.h looks for,
 * with the host's memory for the device's and the emulator for its multiprocessors. With
 * PDVM_LIBCUDA naming it and PDVM_CUDA_KERNELS naming tests/standin/kernels.txt, the CUDA backend
 * runs from end to end on a machine without a GPU. The environment says what the device is like:
 *
 *     PDVM_STANDIN_MEMORY        bytes of device memory [1 GiB]
 *     PDVM_STANDIN_PROCESSORS    multiprocessors [2]
 *     PDVM_STANDIN_THREADS       most threads of a block [512]
 *     PDVM_STANDIN_CAPABILITY    compute capability times ten [90]
 *     PDVM_STANDIN_COOPERATIVE   0: there are no cooperative launches [1]
 *     PDVM_STANDIN_DEVICES       devices [1]
 *     PDVM_STANDIN_FAIL_LAUNCH   the launch of this number (from 1) and all after it fail
 *
 * It is as strict as the driver, and more: calls without a context, copies out of bounds and memory
 * that is not freed are errors.
 */
#ifndef PDVM_TESTS_STANDIN_H
#define PDVM_TESTS_STANDIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** What was asked of the device since it was loaded. */
struct standin_counters {
    uint64_t launches;    /**< calls that launch one kernel */
    uint64_t cooperative; /**< cooperative ones among them */
    uint64_t graphs;      /**< calls that launch a graph */
    uint64_t nodes;       /**< kernels that these graphs have run */
    uint64_t allocations; /**< of device memory */
    uint64_t bytes;       /**< of device memory in use */
    uint64_t bytes_back;  /**< copied to the host */
};

/** dlsym finds it by this name. */
#define STANDIN_COUNTERS "standin_get_counters"
typedef void (*standin_counters_fn)(struct standin_counters *out);

/** Whether the calling thread has a context and [address, address + size) is device memory. */
#define STANDIN_MAY_USE "standin_may_use"
typedef bool (*standin_may_use_fn)(uint64_t address, size_t size);

/*
 * libcublas_standin.so: the entry points of cuBLAS that src/backend/cuda/cublas.h looks for, in plain C on
 * that memory. PDVM_LIBCUBLAS names it. As strict as the driver's stand-in.
 *
 *     PDVM_STANDIN_FAIL_CUBLAS   the product of this number (from 1) and all after it fail
 */

/** What cuBLAS was asked for since it was loaded. */
struct standin_cublas_counters {
    uint64_t products; /**< calls of sgemm */
    uint64_t moments;  /**< calls of ssyrk */
    uint64_t handles;  /**< in use */
};

#define STANDIN_CUBLAS_COUNTERS "standin_cublas_get_counters"
typedef void (*standin_cublas_counters_fn)(struct standin_cublas_counters *out);

#endif
