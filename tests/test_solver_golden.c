/* The solvers against plain references in double precision: tests/golden/solvers/make.py. */
#include "compress/solver.h"
#include "io/safetensors.h"
#include "support/solver_layer.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct safetensors *expected;

static int open_expected(void **state) {
    pdvm_error err;
    char *path = support_source_path("tests/golden/solvers/expected.safetensors");
    (void)state;
    assert_ok(safetensors_open(path, &expected, &err), &err);
    free(path);
    return 0;
}

static int close_expected(void **state) {
    (void)state;
    safetensors_close(expected);
    return 0;
}

/* The same zeros, and weights that agree to 1e-5 of the largest. */
static void assert_expected(const struct solver_layer *l, const char *name) {
    const struct safetensors_tensor *t = safetensors_find(expected, name);
    if (!t) support_fail("no %s among the results", name);
    assert_int_equal(t->n_elements, l->rows * l->cols);
    double max = 0;
    for (int64_t i = 0; i < t->n_elements; i++) {
        float e;
        memcpy(&e, t->data + 4 * i, sizeof e);
        max = fmax(max, fabs((double)e));
    }
    for (int64_t i = 0; i < t->n_elements; i++) {
        float e;
        memcpy(&e, t->data + 4 * i, sizeof e);
        long long r = i / l->cols, c = i % l->cols;
        if ((e == 0) != (l->w[i] == 0))
            support_fail("%s, row %lld, column %lld: %g, the reference has %g", name, r, c,
                         (double)l->w[i], (double)e);
        if (!(fabs((double)(e - l->w[i])) <= 1e-5 * max))
            support_fail("%s, row %lld, column %lld: %.8g, the reference has %.8g", name, r, c,
                         (double)l->w[i], (double)e);
    }
}

static void sparsegpt(struct solver_layer *l, double sparsity, enum prune_scope scope,
                      int64_t block, bool act_order) {
    l->task.sparsity = sparsity;
    l->task.scope = scope;
    l->options.block = block;
    l->options.act_order = act_order;
    solver_layer_solve(l, solver_sparsegpt);
}

static void admm(struct solver_layer *l, double sparsity, enum prune_scope scope) {
    l->task.sparsity = sparsity;
    l->task.scope = scope;
    solver_layer_solve(l, solver_admm);
}

/* SparseGPT's mask, refined until nothing moves. */
static void refine(struct solver_layer *l, double sparsity, int64_t block) {
    pdvm_error err;
    sparsegpt(l, sparsity, PRUNE_BLOCK, block, false);
    solver_result_free(&l->result);
    l->options.cg_iterations = 500;
    assert_ok(solver_refine(&l->task, l->source, &l->result, &err), &err);
}

static void test_small_layer(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 24, 40, 160, 1, -1);
    sparsegpt(&l, 0.5, PRUNE_BLOCK, 128, false);
    assert_expected(&l, "sparsegpt.small");
    admm(&l, 0.6, PRUNE_MATRIX);
    assert_expected(&l, "admm.small");
    refine(&l, 0.5, 128);
    assert_expected(&l, "refine.small");
    solver_layer_free(&l);
}

static void test_odd_layer_with_a_dead_column(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 33, 67, 300, 2, 5);
    sparsegpt(&l, 0.7, PRUNE_BLOCK, 16, false);
    assert_expected(&l, "sparsegpt.odd");
    assert_int_equal(l.result.n_dead, 1);
    sparsegpt(&l, 0.6, PRUNE_ROW, 16, false);
    assert_expected(&l, "sparsegpt.odd.row");
    sparsegpt(&l, 0.5, PRUNE_BLOCK, 32, true);
    assert_expected(&l, "sparsegpt.odd.order");
    admm(&l, 0.7, PRUNE_MATRIX);
    assert_expected(&l, "admm.odd");
    admm(&l, 0.5, PRUNE_ROW);
    assert_expected(&l, "admm.odd.row");
    l.options.act_order = false;
    refine(&l, 0.7, 16);
    assert_expected(&l, "refine.odd");
    solver_layer_free(&l);
}

static void test_more_columns_than_tokens(void **state) {
    struct solver_layer l;
    (void)state;
    solver_layer_make(&l, 19, 290, 200, 3, -1);
    sparsegpt(&l, 0.6, PRUNE_BLOCK, 128, false);
    assert_expected(&l, "sparsegpt.wide");
    admm(&l, 0.6, PRUNE_MATRIX);
    assert_expected(&l, "admm.wide");
    solver_layer_free(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_layer),
        cmocka_unit_test(test_odd_layer_with_a_dead_column),
        cmocka_unit_test(test_more_columns_than_tokens),
    };
    return cmocka_run_group_tests(tests, open_expected, close_expected);
}
