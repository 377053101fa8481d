/**
 * cuBLAS, found with dlopen at run time as the driver is: products of large dense matrices on a GPU.
 * Only what calibration calls is declared, from the public cuBLAS reference; no header of the toolkit
 * is needed to build this. A handle computes in the context that is current in its thread.
 */
#ifndef PDVM_BACKEND_CUDA_CUBLAS_H
#define PDVM_BACKEND_CUDA_CUBLAS_H

#include "backend/cuda/driver.h"

typedef int cublas_result; /**< cublasStatus_t; 0 is success */
typedef struct cublasContext *cublas_handle;

/** Values of the API's enumerations that are used here. */
enum {
    CUBLAS_SUCCESS = 0,
    CUBLAS_ALLOC_FAILED = 3,
    CUBLAS_FILL_LOWER = 0,
    CUBLAS_OP_PLAIN = 0,
    CUBLAS_OP_TRANSPOSED = 1
};

/** Every entry point: name in this table, name in the library, arguments. Matrices are column-major. */
#define CUBLAS_ENTRY_POINTS(X)                                                                     \
    X(create, "cublasCreate_v2", (cublas_handle * handle))                                         \
    X(destroy, "cublasDestroy_v2", (cublas_handle handle))                                         \
    X(version, "cublasGetVersion_v2", (cublas_handle handle, int *version))                        \
    X(set_stream, "cublasSetStream_v2", (cublas_handle handle, cu_stream stream))                  \
    X(set_workspace, "cublasSetWorkspace_v2",                                                      \
      (cublas_handle handle, void *workspace, size_t bytes))                                       \
    X(sgemm, "cublasSgemm_v2",                                                                     \
      (cublas_handle handle, int transpose_a, int transpose_b, int m, int n, int k,                \
       const float *alpha, const float *a, int a_stride, const float *b, int b_stride,             \
       const float *beta, float *c, int c_stride))                                                 \
    X(ssyrk, "cublasSsyrk_v2",                                                                     \
      (cublas_handle handle, int fill, int transpose, int n, int k, const float *alpha,            \
       const float *a, int a_stride, const float *beta, float *c, int c_stride))

/** The entry points of the library. */
struct cublas {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declarator and its parameters */
#define CUBLAS_DECLARE(name, symbol, arguments) cublas_result(*name) arguments;
    /* NOLINTNEXTLINE(bugprone-macro-parentheses) */
    CUBLAS_ENTRY_POINTS(CUBLAS_DECLARE)
#undef CUBLAS_DECLARE
};

/**
 * The cuBLAS of this machine, loaded once per process and never unloaded: libcublas.so.13, 12 or 11,
 * where the dynamic linker or /usr/local/cuda has them. The environment variable PDVM_LIBCUBLAS names
 * another file. PDVM_ERR_UNSUPPORTED says what is missing: the library or an entry point.
 */
pdvm_status cublas_load(const struct cublas **out, pdvm_error *err);

/** PDVM_OK for CUBLAS_SUCCESS, else an error "cuBLAS: what: ..." */
pdvm_status cublas_check(cublas_result result, const char *what, pdvm_error *err);

/** A device's address as cuBLAS wants it. */
static inline float *cublas_floats(cu_address address) {
    return (float *)(uintptr_t)
        address; /* NOLINT(performance-no-int-to-ptr): it points to no host memory */
}

#endif
