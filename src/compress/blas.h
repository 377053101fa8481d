/**
 * Linear algebra for calibrated pruning: the BLAS and LAPACK routines of OpenBLAS, loaded when they
 * are first asked for, so that a program that never calibrates neither needs nor loads it.
 *
 * OpenBLAS runs on one thread only. Its own threads would split sums by their number; instead,
 * callers give fixed blocks to the workers of a pd_threads, and the results do not depend on the
 * number of threads. All routines may be called from several threads at once.
 */
#ifndef PDVM_COMPRESS_BLAS_H
#define PDVM_COMPRESS_BLAS_H

#include "base/error.h"

/* The values of CBLAS's enumerations. */
enum blas_order { BLAS_ROW_MAJOR = 101, BLAS_COL_MAJOR = 102 };
enum blas_transpose { BLAS_NO_TRANS = 111, BLAS_TRANS = 112 };
enum blas_uplo { BLAS_UPPER = 121, BLAS_LOWER = 122 };
enum blas_diag { BLAS_NON_UNIT = 131, BLAS_UNIT = 132 };
enum blas_side { BLAS_LEFT = 141, BLAS_RIGHT = 142 };

/** The routines, with the arguments of CBLAS or, the last ones, of Fortran's LAPACK. */
struct blas {
    const char *(*config)(void); /**< openblas_get_config: version and how it was built */
    const char *(*core)(void);   /**< openblas_get_corename: the kernels in use */

    void (*sgemm)(enum blas_order, enum blas_transpose a, enum blas_transpose b, int m, int n,
                  int k, float alpha, const float *A, int lda, const float *B, int ldb, float beta,
                  float *C, int ldc);
    void (*dgemm)(enum blas_order, enum blas_transpose a, enum blas_transpose b, int m, int n,
                  int k, double alpha, const double *A, int lda, const double *B, int ldb,
                  double beta, double *C, int ldc);
    void (*ssyrk)(enum blas_order, enum blas_uplo, enum blas_transpose, int n, int k, float alpha,
                  const float *A, int lda, float beta, float *C, int ldc);
    void (*dsyrk)(enum blas_order, enum blas_uplo, enum blas_transpose, int n, int k, double alpha,
                  const double *A, int lda, double beta, double *C, int ldc);
    void (*strsm)(enum blas_order, enum blas_side, enum blas_uplo, enum blas_transpose,
                  enum blas_diag, int m, int n, float alpha, const float *A, int lda, float *B,
                  int ldb);
    void (*dtrsm)(enum blas_order, enum blas_side, enum blas_uplo, enum blas_transpose,
                  enum blas_diag, int m, int n, double alpha, const double *A, int lda, double *B,
                  int ldb);

    /* Column-major; `uplo`, `diag` and `jobz` are letters ("U", "L", "N", "V"). */
    void (*dpotrf)(const char *uplo, const int *n, double *A, const int *lda, int *info);
    void (*dpotri)(const char *uplo, const int *n, double *A, const int *lda, int *info);
    void (*dtrtri)(const char *uplo, const char *diag, const int *n, double *A, const int *lda,
                   int *info);
    void (*dsyevd)(const char *jobz, const char *uplo, const int *n, double *A, const int *lda,
                   double *w, double *work, const int *lwork, int *iwork, const int *liwork,
                   int *info);
};

/**
 * The routines, loaded once and never unloaded. PDVM_ERR_UNSUPPORTED if there is no OpenBLAS or it
 * was built with 64-bit integers; the message says what to install. The environment variable
 * PDVM_OPENBLAS names a library file to load instead of the system's.
 */
pdvm_status blas_open(const struct blas **out, pdvm_error *err);

#endif
