/* The parts of the solvers against plain forms: selection, factorisations. */
// ctest: labels=threads
#include "base/random.h"
#include "compress/factor.h"
#include "compress/select.h"
#include "support/solver_layer.h"
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct pd_threads *threads;

static int start_threads(void **state) {
    pdvm_error err;
    (void)state;
    assert_ok(pd_threads_create(3, &threads, &err), &err);
    return 0;
}

static int stop_threads(void **state) {
    (void)state;
    pd_threads_free(threads);
    return 0;
}

/* ---- selection ------------------------------------------------------------------------- */

struct place {
    double magnitude;
    int64_t at;
};

static int compare_places(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->magnitude != y->magnitude) return x->magnitude < y->magnitude ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

/* Which of x[rows, cols] (of `stride`) are its k smallest magnitudes, by sorting. */
static void plain_select(const double *x, int64_t rows, int64_t cols, int64_t stride, int64_t k,
                         bool *taken) {
    struct place *p = calloc((size_t)(rows * cols), sizeof *p);
    for (int64_t i = 0; i < rows * cols; i++)
        p[i] = (struct place){fabs(x[i / cols * stride + i % cols]), i};
    qsort(p, (size_t)(rows * cols), sizeof *p, compare_places);
    for (int64_t i = 0; i < rows * cols; i++) taken[i] = false;
    for (int64_t i = 0; i < k; i++) taken[p[i].at] = true;
    free(p);
}

/* Values of all sizes; `kinds` of them only, so that there are ties; 0: all different. */
static void random_values(double *x, int64_t n, int kinds, uint64_t *seed) {
    static const double special[] = {0, -0.0, DBL_MIN, DBL_MAX, -DBL_MAX, 4.9e-324};
    for (int64_t i = 0; i < n; i++) {
        double v = (pd_random_unit(seed) - 0.5) * exp2((double)(pd_random(seed) % 40));
        uint64_t pick = pd_random(seed);
        int middle = kinds / 2;
        x[i] = kinds ? (double)((int)(pick % (uint64_t)kinds) - middle) : v;
        if (pick % 17 == 0) x[i] = special[pick / 17 % 6];
    }
}

static void test_selection_takes_the_smallest(void **state) {
    static const int64_t shapes[][3] = {
        {1, 1, 1}, {1, 7, 9}, {13, 5, 5}, {40, 33, 50}, {3, 2000, 2000}};
    uint64_t seed = 31;
    (void)state;
    for (int i = 0; i < 5 * 40; i++) {
        int64_t rows = shapes[i % 5][0], cols = shapes[i % 5][1], stride = shapes[i % 5][2];
        int64_t n = rows * cols, k = (int64_t)(pd_random(&seed) % (uint64_t)(n + 1));
        if (i < 10) k = i < 5 ? 0 : n;
        double *x = calloc((size_t)(rows * stride), sizeof *x);
        bool *taken = calloc((size_t)n, sizeof *taken);
        int64_t *counters = calloc(3 * SELECT_COUNTERS, sizeof *counters);
        struct select_end *ends = calloc((size_t)rows, sizeof *ends);
        random_values(x, rows * stride, i % 3 * 4, &seed);
        plain_select(x, rows, cols, stride, k, taken);
        for (int t = 0; t < 2; t++) {
            select_matrix((struct select_values){.d = x}, rows, cols, stride, k, t ? threads : NULL,
                          counters, ends);
            for (int64_t j = 0; j < n; j++)
                assert_int_equal(select_takes(&ends[j / cols], x[j / cols * stride + j % cols]),
                                 taken[j]);
        }
        k = k % (cols + 1);
        plain_select(x, 1, cols, cols, k, taken);
        struct select_end end = select_row((struct select_values){.d = x}, cols, k, counters);
        for (int64_t j = 0; j < cols; j++) assert_int_equal(select_takes(&end, x[j]), taken[j]);
        free(x);
        free(taken);
        free(counters);
        free(ends);
    }
}

/* ---- factorisations -------------------------------------------------------------------- */

static void test_blocked_factors_multiply_back(void **state) {
    static const int64_t sizes[] = {1, 2, 37, 255, 256, 257, 530};
    const struct blas *blas = solver_layer_blas();
    uint64_t seed = 32;
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s], square = n * n;
        double *a = calloc((size_t)square, sizeof *a), *l = calloc((size_t)square, sizeof *l);
        double *inverse = calloc((size_t)square, sizeof *l), *x = calloc((size_t)square, sizeof *x);
        double *panel = calloc((size_t)((n + 3 * FACTOR_TILE) * FACTOR_TILE), sizeof *panel);
        for (int64_t i = 0; i < square; i++) x[i] = pd_random_unit(&seed) - 0.5;
        blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_TRANS, (int)n, (int)n, (int)n, 1, x, (int)n,
                    x, (int)n, 0, a, (int)n);
        for (int64_t i = 0; i < n; i++) a[i * n + i] += 0.1;
        memcpy(l, a, (size_t)square * sizeof *l);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i + 1; j < n; j++) l[i * n + j] = NAN; /* is not to be read */
        assert_true(factor_cholesky(blas, l, n, threads));
        memcpy(inverse, l, (size_t)square * sizeof *l);
        assert_true(factor_invert(blas, inverse, n, panel, threads));
        factor_product(blas, inverse, n, x, threads);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t k = i > j ? i : j; k < n; k++)
                    sum += inverse[k * n + i] * inverse[k * n + j];
                assert_true(fabs(sum - x[i * n + j]) < 1e-8);
            }
            for (int64_t j = 0; j <= i; j++) {
                double sum = 0, one = 0;
                for (int64_t k = 0; k <= j; k++) sum += l[i * n + k] * l[j * n + k];
                for (int64_t k = j; k <= i; k++) one += l[i * n + k] * inverse[k * n + j];
                assert_true(fabs(sum - a[i * n + j]) < 1e-10 * (double)n);
                assert_true(fabs(one - (i == j)) < 1e-9);
            }
            for (int64_t j = i + 1; j < n; j++) assert_true(inverse[i * n + j] == 0);
        }
        a[square - 1] = -a[square - 1];
        assert_false(factor_cholesky(blas, a, n, threads));
        free(a);
        free(l);
        free(inverse);
        free(x);
        free(panel);
    }
}

static void test_factor_is_of_the_damped_inverse(void **state) {
    const struct solver_factor *f, *again;
    struct solver_layer l;
    pdvm_error err;
    (void)state;
    solver_layer_make(&l, 1, 300, 500, 33, 17);
    for (int order = 0; order < 2; order++) {
        l.options.act_order = order;
        assert_ok(factor_hessian(&l.hessian, &l.options, threads, &f, &err), &err);
        assert_ok(factor_hessian(&l.hessian, &l.options, threads, &again, &err), &err);
        assert_ptr_equal(f, again); /* matrices of one input share it */
        assert_int_equal(f->n_dead, 1);
        for (int64_t i = 0; i + 1 < 300 && order; i++)
            assert_true(l.diagonal[f->order[i]] >= l.diagonal[f->order[i + 1]]);
        /* U H U^T = I */
        static double uh[300 * 300];
        memset(uh, 0, sizeof uh);
        for (int64_t i = 0; i < 300; i++)
            for (int64_t k = i; k < 300; k++)
                for (int64_t j = 0; j < 300; j++) {
                    double h = l.hessian.h[f->order[k] * 300 + f->order[j]];
                    if (k == j) h += f->damping + (f->order[k] == 17 ? f->mean : 0);
                    uh[i * 300 + j] += f->u[i * 300 + k] * h;
                }
        for (int64_t i = 0; i < 300; i++)
            for (int64_t j = 0; j <= i; j++) {
                double sum = 0;
                for (int64_t k = j; k < 300; k++) sum += uh[i * 300 + k] * f->u[j * 300 + k];
                assert_true(fabs(sum - (i == j)) < 1e-10);
            }
    }
    solver_layer_free(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection_takes_the_smallest),
        cmocka_unit_test(test_blocked_factors_multiply_back),
        cmocka_unit_test(test_factor_is_of_the_damped_inverse),
    };
    return cmocka_run_group_tests(tests, start_threads, stop_threads);
}
