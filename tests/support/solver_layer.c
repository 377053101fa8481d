#include "support/solver_layer.h"

#include "base/random.h"
#include "compress/blas.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

static void *allocate(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) support_fail("out of memory");
    return p;
}

/* As in make.py, with the same operations in the same order. */
static void make_inputs(double *x, int64_t tokens, int64_t cols, const double *scale, int64_t dead,
                        uint64_t *state) {
    for (int64_t t = 0; t < tokens; t++) {
        double last = 0;
        for (int64_t c = 0; c < cols; c++) {
            last = 0.7 * last + pd_random_unit(state) - 0.5;
            x[t * cols + c] = c == dead ? 0 : last * scale[c];
        }
    }
}

const struct blas *solver_layer_blas(void) {
    const struct blas *blas;
    pdvm_error err = {0};
    if (blas_open(&blas, &err) == PDVM_OK) return blas;
    print_message("skipped: %s\n", err.message);
    skip();
    return NULL;
}

void solver_layer_make(struct solver_layer *l, int64_t rows, int64_t cols, int64_t tokens,
                       uint64_t seed, int64_t dead) {
    pdvm_error err;
    *l = (struct solver_layer){.rows = rows, .cols = cols, .options = solver_options_default()};
    solver_layer_blas();
    size_t size = (size_t)(rows * cols);
    l->source = allocate(size, sizeof *l->source);
    l->w = allocate(size, sizeof *l->w);
    l->diagonal = allocate((size_t)cols, sizeof *l->diagonal);
    assert_ok(solver_hessian_create(cols, &l->hessian, &err), &err);
    double *x = allocate((size_t)(tokens * cols), sizeof *x);
    double *scale = allocate((size_t)cols, sizeof *scale);
    for (size_t i = 0; i < size; i++) l->source[i] = (float)(pd_random_unit(&seed) - 0.5);
    for (int64_t c = 0; c < cols; c++) {
        double first = pd_random_unit(&seed), second = pd_random_unit(&seed);
        scale[c] = 0.2 + 3 * first * second;
    }
    make_inputs(x, tokens, cols, scale, dead, &seed);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = 0; j < cols; j++)
                l->hessian.h[i * cols + j] +=
                    2 / (double)tokens * x[t * cols + i] * x[t * cols + j];
    for (int64_t c = 0; c < cols; c++) l->diagonal[c] = l->hessian.h[c * (cols + 1)];
    free(x);
    free(scale);
    l->task = (struct solver_task){.w = l->w,
                                   .rows = rows,
                                   .cols = cols,
                                   .diagonal = l->diagonal,
                                   .hessian = &l->hessian,
                                   .sparsity = 0.5,
                                   .scope = PRUNE_BLOCK,
                                   .options = &l->options};
    solver_layer_reset(l);
}

void solver_layer_reset(struct solver_layer *l) {
    memcpy(l->w, l->source, (size_t)(l->rows * l->cols) * sizeof *l->w);
    solver_result_free(&l->result);
}

void solver_layer_solve(struct solver_layer *l,
                        pdvm_status (*solve)(const struct solver_task *, struct solver_result *,
                                             pdvm_error *)) {
    pdvm_error err;
    solver_layer_reset(l);
    assert_ok(solve(&l->task, &l->result, &err), &err);
}

double solver_layer_error(const struct solver_layer *l) {
    double error, all;
    pdvm_error err;
    assert_ok(
        solver_output_error(&l->hessian, l->source, l->w, l->rows, l->task.threads, &error, &err),
        &err);
    assert_ok(
        solver_output_error(&l->hessian, l->source, NULL, l->rows, l->task.threads, &all, &err),
        &err);
    return error / all;
}

int64_t solver_layer_zeros(const struct solver_layer *l, int64_t begin, int64_t end, int64_t first,
                           int64_t last) {
    int64_t zeros = 0;
    for (int64_t r = begin; r < end; r++)
        for (int64_t c = first; c < last; c++) zeros += l->w[r * l->cols + c] == 0;
    return zeros;
}

void solver_layer_free(struct solver_layer *l) {
    solver_layer_reset(l);
    solver_hessian_free(&l->hessian);
    free(l->source);
    free(l->w);
    free(l->diagonal);
}
