#include "compress/solver.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "compress/blas.h"

#include <inttypes.h>
#include <stdlib.h>

/* Rows of a piece of a product: fixed, so that the sums do not depend on the threads. */
#define ROWS 64

struct solver_options solver_options_default(void) {
    return (struct solver_options){
        .damping = 0.01, .block = 128, .iterations = 30, .cg_iterations = 10};
}

void solver_result_free(struct solver_result *r) {
    free(r->grid.scales);
    *r = (struct solver_result){0};
}

/* ---- Hessians -------------------------------------------------------------------------- */

pdvm_status solver_hessian_create(int64_t n, struct solver_hessian *out, pdvm_error *err) {
    size_t size;
    *out = (struct solver_hessian){.n = n};
    if (n < 1 || n > INT32_MAX || !pd_mul_size((size_t)n, (size_t)n, &size))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "a Hessian of %" PRId64 " columns", n);
    return pd_calloc(&out->h, size, sizeof *out->h, "a Hessian", err);
}

void solver_hessian_free(struct solver_hessian *h) {
    if (h->factor) h->factor_free(h->factor);
    free(h->h);
    *h = (struct solver_hessian){0};
}

struct product {
    const struct blas *blas;
    const struct solver_hessian *hessian;
    const float *a, *b;
    int64_t rows;
    double *difference; /* [workers, ROWS, n] */
    double *image;      /* likewise: times H */
    double *sums;       /* [pieces] */
};

static void add_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const struct product *p = arg;
    int64_t n = p->hessian->n;
    double *d = p->difference + worker * ROWS * n, *dh = p->image + worker * ROWS * n;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t first = piece * ROWS, rows = p->rows - first < ROWS ? p->rows - first : ROWS;
        for (int64_t i = 0; i < rows * n; i++) {
            d[i] = (double)p->a[first * n + i];
            if (p->b) d[i] -= (double)p->b[first * n + i];
        }
        p->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_NO_TRANS, (int)rows, (int)n, (int)n, 1,
                       d, (int)n, p->hessian->h, (int)n, 0, dh, (int)n);
        double sum = 0;
        for (int64_t i = 0; i < rows * n; i++) sum += d[i] * dh[i];
        p->sums[piece] = sum;
    }
}

pdvm_status solver_output_error(const struct solver_hessian *hessian, const float *a,
                                const float *b, int64_t rows, struct pd_threads *threads,
                                double *out, pdvm_error *err) {
    struct product p = {.hessian = hessian, .a = a, .b = b, .rows = rows};
    size_t size = (size_t)pd_threads_count(threads) * ROWS * (size_t)hessian->n;
    int64_t pieces = (rows + ROWS - 1) / ROWS;
    *out = 0;
    PD_TRY(blas_open(&p.blas, err));
    pdvm_status status = pd_calloc(&p.difference, size, sizeof *p.difference, "a product", err);
    if (status == PDVM_OK) status = pd_calloc(&p.image, size, sizeof *p.image, "a product", err);
    if (status == PDVM_OK)
        status = pd_calloc(&p.sums, (size_t)pieces, sizeof *p.sums, "sums of rows", err);
    if (status == PDVM_OK) {
        pd_threads_for(threads, pieces, 1, add_pieces, &p);
        for (int64_t i = 0; i < pieces; i++) *out += p.sums[i];
    }
    free(p.difference);
    free(p.image);
    free(p.sums);
    return status;
}
