/* What users of the solvers rely on: exact shares of zeros, grids, errors, order of the methods. */
// ctest: labels=threads
#include "compress/solver.h"
#include "mdcsr/mdcsr.h"
#include "support/solver_layer.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct mdcsr_options coding(enum mdcsr_values values, enum mdcsr_codebook codebook,
                                   uint32_t group) {
    return (struct mdcsr_options){
        .values = values, .codebook = codebook, .index_auto = true, .group = group};
}

static pdvm_status magnitude(const struct solver_task *t, struct solver_result *out,
                             pdvm_error *err) {
    struct prune_result result;
    struct prune_task task = {
        .w = t->w, .rows = t->rows, .cols = t->cols, .sparsity = t->sparsity, .scope = PRUNE_ROW};
    (void)out;
    return prune_method_find("magnitude")->prune(&task, &result, err);
}

/* ---- shares of zeros ------------------------------------------------------------------- */

static int64_t rounded(double x) {
    return (int64_t)floor(x + 0.5);
}

static void test_shares_of_zeros_are_exact(void **state) {
    static const double shares[] = {0.1, 0.5, 0.613, 0.97};
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 21, 75, 200, 7, -1);
    l.options.block = 16;
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        double s = l.task.sparsity = shares[i];
        l.task.scope = PRUNE_BLOCK;
        solver_layer_solve(&l, solver_sparsegpt);
        for (int64_t c = 0; c < 75; c += 16) {
            int64_t end = c + 16 < 75 ? c + 16 : 75;
            int64_t want = rounded(s * 21 * (double)end) - rounded(s * 21 * (double)c);
            assert_int_equal(solver_layer_zeros(&l, 0, 21, c, end), want);
        }
        l.task.scope = PRUNE_ROW;
        solver_layer_solve(&l, solver_sparsegpt);
        for (int64_t r = 0; r < 21; r++)
            assert_int_equal(solver_layer_zeros(&l, r, r + 1, 0, 75), rounded(s * 75));
        solver_layer_solve(&l, solver_admm);
        for (int64_t r = 0; r < 21; r++)
            assert_int_equal(solver_layer_zeros(&l, r, r + 1, 0, 75), rounded(s * 75));
        l.task.scope = PRUNE_MATRIX;
        solver_layer_solve(&l, solver_admm);
        assert_int_equal(solver_layer_zeros(&l, 0, 21, 0, 75), rounded(s * 21 * 75));
    }
    solver_layer_free(&l);
}

static void test_no_and_all_zeros(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 9, 33, 100, 8, -1);
    l.task.sparsity = 0;
    solver_layer_solve(&l, solver_sparsegpt);
    assert_memory_equal(l.w, l.source, 9 * 33 * sizeof(float));
    assert_true(l.result.output_error == 0);
    l.task.scope = PRUNE_MATRIX;
    solver_layer_solve(&l, solver_admm);
    assert_memory_equal(l.w, l.source, 9 * 33 * sizeof(float));
    l.task.sparsity = 1;
    solver_layer_solve(&l, solver_admm);
    assert_int_equal(solver_layer_zeros(&l, 0, 9, 0, 33), 9 * 33);
    l.task.scope = PRUNE_BLOCK;
    struct mdcsr_options lut4 = coding(MDCSR_LUT4, MDCSR_LEARNED, 64);
    l.task.coding = &lut4;
    solver_layer_solve(&l, solver_sparsegpt);
    assert_int_equal(solver_layer_zeros(&l, 0, 9, 0, 33), 9 * 33);
    assert_true(fabs(solver_layer_error(&l) - 1) < 1e-9);
    solver_layer_free(&l);
}

static void test_zeros_of_the_source_stay_and_count(void **state) {
    struct solver_layer l;
    struct mdcsr_options int8 = coding(MDCSR_INT8, MDCSR_LINEAR, 0);
    (void)state;
    solver_layer_make(&l, 16, 48, 150, 9, -1);
    for (int64_t i = 0; i < 16 * 48; i += 3) l.source[i] = 0;
    for (int64_t c = 0; c < 48; c++) l.source[5 * 48 + c] = 0; /* a whole row */
    l.task.sparsity = 0;
    l.task.coding = &int8;
    for (int method = 0; method < 2; method++) {
        l.task.scope = method ? PRUNE_MATRIX : PRUNE_BLOCK;
        solver_layer_solve(&l, method ? solver_admm : solver_sparsegpt);
        for (int64_t i = 0; i < 16 * 48; i++) assert_true(l.source[i] != 0 || l.w[i] == 0);
    }
    l.task.coding = NULL;
    l.task.sparsity = 0.5;
    l.task.scope = PRUNE_BLOCK;
    solver_layer_solve(&l, solver_sparsegpt);
    assert_int_equal(solver_layer_zeros(&l, 0, 16, 0, 48), 16 * 48 / 2);
    for (int64_t i = 0; i < 16 * 48; i++) assert_true(l.source[i] != 0 || l.w[i] == 0);
    solver_layer_free(&l);
}

/* ---- errors ---------------------------------------------------------------------------- */

static void test_better_methods_leave_smaller_errors(void **state) {
    static const double shares[] = {0.5, 0.6, 0.7};
    struct solver_layer l;
    pdvm_error err;
    (void)state;
    solver_layer_make(&l, 64, 160, 1000, 10, -1);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        l.task.sparsity = shares[i];
        l.task.scope = PRUNE_ROW;
        solver_layer_solve(&l, magnitude);
        double by_magnitude = solver_layer_error(&l);
        solver_layer_solve(&l, solver_wanda);
        double by_wanda = solver_layer_error(&l);
        assert_ok(solver_refine(&l.task, l.source, &l.result, &err), &err);
        double refined_wanda = solver_layer_error(&l);
        l.task.scope = PRUNE_BLOCK;
        solver_layer_solve(&l, solver_sparsegpt);
        double by_sparsegpt = solver_layer_error(&l);
        assert_ok(solver_refine(&l.task, l.source, &l.result, &err), &err);
        double refined = solver_layer_error(&l);
        l.task.scope = PRUNE_MATRIX;
        solver_layer_solve(&l, solver_admm);
        double by_admm = solver_layer_error(&l);
        assert_true(by_magnitude > 1.2 * by_wanda);
        assert_true(by_wanda > 1.2 * by_sparsegpt);
        assert_true(by_wanda > 1.2 * refined_wanda);
        assert_true(by_sparsegpt > refined);
        assert_true(refined > by_admm);
    }
    solver_layer_free(&l);
}

static void test_reported_error_is_the_error(void **state) {
    struct mdcsr_options lut4 = coding(MDCSR_LUT4, MDCSR_LEARNED, 32);
    struct solver_layer l;
    pdvm_error err;
    double error;
    (void)state;
    solver_layer_make(&l, 30, 90, 60, 11, 13); /* rank-deficient, with a dead column */
    for (int i = 0; i < 8; i++) {
        l.task.coding = i & 1 ? &lut4 : NULL;
        l.options.act_order = i & 2;
        l.task.scope = i & 4 ? PRUNE_MATRIX : PRUNE_BLOCK;
        solver_layer_solve(&l, i & 4 ? solver_admm : solver_sparsegpt);
        assert_ok(solver_output_error(&l.hessian, l.source, l.w, l.rows, NULL, &error, &err), &err);
        /* SparseGPT's own sum of its corrections is the exact error; ADMM has none. */
        if (l.task.scope == PRUNE_BLOCK)
            assert_true(fabs(l.result.output_error - error) < 1e-7 * error);
        else
            assert_true(isnan(l.result.output_error));
        double squares = 0;
        for (int64_t k = 0; k < 30 * 90; k++)
            squares += l.w[k] == 0 ? (double)l.source[k] * (double)l.source[k] : 0;
        assert_true(fabs(squares - l.result.pruning_squares) < 1e-9 * squares);
        assert_int_equal(l.result.n_dead, 1);
        assert_int_equal(solver_layer_zeros(&l, 0, 30, 13, 14), 30);
        assert_int_equal(l.result.damping_raised, 0);
    }
    solver_layer_free(&l);
}

/* ---- grids ----------------------------------------------------------------------------- */

static void test_rounded_weights_survive_encoding(void **state) {
    static const struct {
        enum mdcsr_values values;
        enum mdcsr_codebook codebook;
    } kinds[] = {{MDCSR_INT8, MDCSR_LINEAR},  {MDCSR_LUT8, MDCSR_LEARNED},
                 {MDCSR_LUT4, MDCSR_LEARNED}, {MDCSR_LUT4, MDCSR_LINEAR},
                 {MDCSR_LUT4, MDCSR_PRIME},   {MDCSR_LUT8, MDCSR_PRIME}};
    static const uint32_t groups[] = {0, 32, 64, 256};
    static const double shares[] = {0, 0.15, 0.6};
    struct solver_layer l;
    float row[101];
    (void)state;
    solver_layer_make(&l, 27, 101, 200, 12, 3);
    for (int i = 0; i < 6 * 4 * 3 * 2; i++) {
        struct mdcsr_options o =
            coding(kinds[i % 6].values, kinds[i % 6].codebook, groups[i / 6 % 4]);
        struct mdcsr m;
        struct mdcsr_report report;
        pdvm_error err;
        l.task.coding = &o;
        l.task.sparsity = shares[i / 24 % 3];
        l.options.act_order = i / 72;
        solver_layer_solve(&l, solver_sparsegpt);
        assert_non_null(l.result.grid.scales);
        o.grid = &l.result.grid;
        assert_ok(mdcsr_encode(l.w, 27, 101, &o, NULL, &m, &report, &err), &err);
        assert_true(report.error_squares == 0);
        for (int64_t r = 0; r < 27; r++) {
            mdcsr_decode_row(&m, r, row);
            for (int64_t c = 0; c < 101; c++) assert_true(row[c] == l.w[r * 101 + c]);
        }
        mdcsr_free(&m);
    }
    solver_layer_free(&l);
}

/* In turn: H + damping I, its inverse, the upper Cholesky factor of that; n is small. */
static void plain_factor(const struct solver_layer *l, double damping, double *u) {
    int64_t n = l->cols;
    double *a = calloc((size_t)(2 * n * n), sizeof *a);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) a[i * 2 * n + j] = l->hessian.h[i * n + j];
        a[i * 2 * n + i] += damping;
        a[i * 2 * n + n + i] = 1;
    }
    for (int64_t p = 0; p < n; p++) { /* Gauss-Jordan; no pivots are needed here */
        double pivot = a[p * 2 * n + p];
        for (int64_t j = 0; j < 2 * n; j++) a[p * 2 * n + j] /= pivot;
        for (int64_t i = 0; i < n; i++) {
            double f = i == p ? 0 : a[i * 2 * n + p];
            for (int64_t j = 0; j < 2 * n; j++) a[i * 2 * n + j] -= f * a[p * 2 * n + j];
        }
    }
    memset(u, 0, (size_t)(n * n) * sizeof *u);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i; j < n; j++) {
            double sum = a[i * 2 * n + n + j];
            for (int64_t k = 0; k < i; k++) sum -= u[k * n + i] * u[k * n + j];
            u[i * n + j] = i == j ? sqrt(sum) : sum / u[i * n + i];
        }
    free(a);
}

/* The point of row r's grid that is nearest to x. */
static float plain_round(const struct mdcsr_grid *g, int64_t scale, double x) {
    float best = 0;
    for (int i = 0; i < 16; i++) {
        float q = g->scales[scale] * g->codebook[i];
        if (i == 0 || fabs(x - (double)q) < fabs(x - (double)best)) best = q;
    }
    return best;
}

static void test_rounding_in_the_loop_is_gptq(void **state) {
    enum { ROWS = 13, COLS = 70, GROUP = 32 };
    struct mdcsr_options lut4 = coding(MDCSR_LUT4, MDCSR_LEARNED, GROUP);
    static double u[COLS * COLS];
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, ROWS, COLS, 300, 14, -1);
    for (int64_t i = 0; i < ROWS * COLS; i += 2) l.source[i] = 0; /* a mask that is given */
    l.task.coding = &lut4;
    l.task.sparsity = 0;
    l.options.block = 16;
    solver_layer_solve(&l, solver_sparsegpt);
    plain_factor(&l, l.result.damping, u);
    for (int64_t r = 0; r < ROWS; r++) {
        double w[COLS];
        for (int64_t c = 0; c < COLS; c++) w[c] = (double)l.source[r * COLS + c];
        for (int64_t c = 0; c < COLS; c++) {
            bool zero = l.source[r * COLS + c] == 0;
            int64_t scale = r * ((COLS + GROUP - 1) / GROUP) + c / GROUP;
            float q = zero ? 0 : plain_round(&l.result.grid, scale, w[c]);
            double e = (w[c] - (double)q) / u[c * COLS + c];
            for (int64_t k = c; k < COLS; k++) w[k] -= e * u[c * COLS + k];
            assert_true(q == l.w[r * COLS + c]);
        }
    }
    solver_layer_free(&l);
}

static void test_rounding_in_the_loop_beats_rounding_after_it(void **state) {
    struct mdcsr_options lut4 = coding(MDCSR_LUT4, MDCSR_LEARNED, 64);
    struct solver_layer l;
    pdvm_error err;
    (void)state;
    solver_layer_make(&l, 64, 160, 1000, 15, -1);
    for (int i = 0; i < 2; i++) {
        l.task.sparsity = i * 0.5;
        l.task.coding = NULL;
        solver_layer_solve(&l, solver_sparsegpt);
        assert_ok(solver_fit_grid(l.w, 64, 160, l.diagonal, &lut4, NULL, &l.result.grid, &err),
                  &err);
        double after = solver_layer_error(&l);
        l.task.coding = &lut4;
        solver_layer_solve(&l, solver_sparsegpt);
        /* Without zeros, rounding is all the error there is. */
        assert_true(solver_layer_error(&l) < (i ? 1 : 0.6) * after);
    }
    solver_layer_free(&l);
}

static void test_weighted_grids_fit_what_matters(void **state) {
    static const enum mdcsr_values values[] = {MDCSR_INT8, MDCSR_LUT8, MDCSR_LUT4};
    struct solver_layer l;
    pdvm_error err;
    (void)state;
    solver_layer_make(&l, 64, 200, 400, 16, -1);
    for (int i = 0; i < 6; i++) {
        struct mdcsr_options o = coding(values[i % 3], MDCSR_LEARNED, i / 3 ? 64 : 0);
        double errors[2] = {0};
        for (int weighted = 0; weighted < 2; weighted++) {
            solver_layer_reset(&l);
            assert_ok(solver_fit_grid(l.w, 64, 200, weighted ? l.diagonal : NULL, &o, NULL,
                                      &l.result.grid, &err),
                      &err);
            for (int64_t k = 0; k < 64 * 200; k++) {
                double d = (double)l.w[k] - (double)l.source[k];
                errors[weighted] += d * d * l.diagonal[k % 200];
            }
        }
        assert_true(errors[1] < errors[0] * (values[i % 3] == MDCSR_LUT4 ? 0.97 : 1));
    }
    solver_layer_free(&l);
}

/* ---- threads --------------------------------------------------------------------------- */

static void test_threads_change_no_bit(void **state) {
    struct mdcsr_options lut4 = coding(MDCSR_LUT4, MDCSR_LEARNED, 64);
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 150, 270, 400, 17, -1);
    float *first = malloc(150 * 270 * sizeof *first);
    for (int i = 0; i < 4; i++) {
        l.task.scope = i & 1 ? PRUNE_MATRIX : PRUNE_BLOCK;
        l.task.coding = i & 2 ? &lut4 : NULL;
        for (int n = 1; n <= 5; n += 2) {
            pdvm_error err;
            assert_ok(pd_threads_create(n, &l.task.threads, &err), &err);
            if (l.hessian.factor) l.hessian.factor_free(l.hessian.factor);
            l.hessian.factor = NULL;
            solver_layer_solve(&l, i & 1 ? solver_admm : solver_sparsegpt);
            if (n == 1) memcpy(first, l.w, 150 * 270 * sizeof *first);
            assert_memory_equal(first, l.w, 150 * 270 * sizeof *first);
            pd_threads_free(l.task.threads);
            l.task.threads = NULL;
        }
    }
    free(first);
    solver_layer_free(&l);
}

/* ---- bad input ------------------------------------------------------------------------- */

static void assert_refused(struct solver_layer *l, pdvm_status expected, const char *text) {
    pdvm_error err;
    l->task.scope = PRUNE_ROW;
    solver_layer_reset(l);
    assert_error(solver_sparsegpt(&l->task, &l->result, &err), expected, &err, text);
    solver_layer_reset(l);
    assert_error(solver_admm(&l->task, &l->result, &err), expected, &err, text);
    assert_memory_equal(l->w, l->source, (size_t)(l->rows * l->cols) * sizeof *l->w);
}

static void test_damaged_hessians_are_refused(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 8, 20, 50, 18, -1);
    double *h = l.hessian.h, good = h[3 * 20 + 7];
    h[3 * 20 + 7] = NAN;
    assert_refused(&l, PDVM_ERR_FORMAT, "row 3");
    h[3 * 20 + 7] = INFINITY;
    assert_refused(&l, PDVM_ERR_FORMAT, "not finite");
    h[3 * 20 + 7] = good;
    h[4 * 20 + 4] = -1;
    assert_refused(&l, PDVM_ERR_FORMAT, "row 4");
    memset(h, 0, 400 * sizeof *h);
    memset(l.diagonal, 0, 20 * sizeof *l.diagonal);
    assert_refused(&l, PDVM_ERR_FORMAT, "zero");
    solver_layer_free(&l);
}

static void test_wrong_requests_are_refused(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 8, 20, 50, 19, -1);
    l.task.sparsity = 1.5;
    assert_refused(&l, PDVM_ERR_ARGUMENT, "sparsity 1.5");
    l.task.sparsity = NAN;
    assert_refused(&l, PDVM_ERR_ARGUMENT, "sparsity");
    l.task.sparsity = 0.5;
    l.options.damping = -1;
    assert_refused(&l, PDVM_ERR_ARGUMENT, "damping -1");
    l.options.damping = 0.01;
    l.task.hessian = NULL;
    assert_refused(&l, PDVM_ERR_ARGUMENT, "Hessian");
    solver_layer_free(&l);
}

static void test_singular_hessian_without_damping_is_damped(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 8, 60, 20, 20, -1); /* rank 20 */
    l.options.damping = 0;
    solver_layer_solve(&l, solver_sparsegpt);
    assert_true(l.result.damping > 0 && l.result.damping_raised > 0);
    assert_true(solver_layer_error(&l) < 0.5);
    for (int64_t i = 0; i < 8 * 60; i++) assert_true(isfinite(l.w[i]));
    solver_layer_free(&l);
}

/* What no inputs can give: far from positive definite. */
static void test_hopeless_hessian_is_an_error(void **state) {
    struct solver_layer l;
    pdvm_error err;
    (void)state;
    solver_layer_make(&l, 8, 20, 50, 21, -1);
    for (int64_t i = 0; i < 400; i++) l.hessian.h[i] = i % 21 == 0 ? 1 : 30;
    assert_error(solver_sparsegpt(&l.task, &l.result, &err), PDVM_ERR_FORMAT, &err, "factored");
    assert_memory_equal(l.w, l.source, 8 * 20 * sizeof(float));
    solver_layer_free(&l);
}

static void test_tiny_and_huge_inputs_are_only_scale(void **state) {
    struct solver_layer l;
    float first[12 * 40];
    (void)state;
    solver_layer_make(&l, 12, 40, 100, 22, -1);
    for (int exponent = 0; exponent < 3; exponent++) {
        double factor = exponent == 0 ? 1 : exponent == 1 ? 0x1p-200 : 0x1p+400;
        for (int64_t i = 0; i < 1600; i++) l.hessian.h[i] *= factor;
        for (int64_t i = 0; i < 40; i++) l.diagonal[i] *= factor;
        if (l.hessian.factor) l.hessian.factor_free(l.hessian.factor);
        l.hessian.factor = NULL;
        solver_layer_solve(&l, solver_sparsegpt);
        if (exponent == 0) memcpy(first, l.w, sizeof first);
        assert_memory_equal(first, l.w, sizeof first);
    }
    solver_layer_free(&l);
}

static bool stop_at_once(void *user, const char *stage, double fraction) {
    (void)user;
    (void)stage;
    (void)fraction;
    return false;
}

static void test_stopping_leaves_the_weights(void **state) {
    struct pd_notify notify = {.progress = stop_at_once};
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 8, 40, 50, 23, -1);
    l.task.notify = &notify;
    assert_refused(&l, PDVM_ERR_CANCELLED, "");
    solver_layer_free(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares_of_zeros_are_exact),
        cmocka_unit_test(test_no_and_all_zeros),
        cmocka_unit_test(test_zeros_of_the_source_stay_and_count),
        cmocka_unit_test(test_better_methods_leave_smaller_errors),
        cmocka_unit_test(test_reported_error_is_the_error),
        cmocka_unit_test(test_rounded_weights_survive_encoding),
        cmocka_unit_test(test_rounding_in_the_loop_is_gptq),
        cmocka_unit_test(test_rounding_in_the_loop_beats_rounding_after_it),
        cmocka_unit_test(test_weighted_grids_fit_what_matters),
        cmocka_unit_test(test_threads_change_no_bit),
        cmocka_unit_test(test_damaged_hessians_are_refused),
        cmocka_unit_test(test_wrong_requests_are_refused),
        cmocka_unit_test(test_singular_hessian_without_damping_is_damped),
        cmocka_unit_test(test_hopeless_hessian_is_an_error),
        cmocka_unit_test(test_tiny_and_huge_inputs_are_only_scale),
        cmocka_unit_test(test_stopping_leaves_the_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
