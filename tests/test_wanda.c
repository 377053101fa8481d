// Wanda against a plain sort, and how layers share a sparsity.

#include "support/support.h"

#include "base/random.h"
#include "compress/layer_sparsity.h"
#include "compress/solver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *allocate(size_t size) {
    void *p = calloc(1, size ? size : 1);
    assert_non_null(p);
    return p;
}

/* ---- Wanda ----------------------------------------------------------------------------- */

struct scored {
    double score;
    int64_t col;
};

static int by_score(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? -1 : 1;
    return x->col < y->col ? -1 : 1;
}

// |W_ij| * ||x_j||, the lowest of each row become zero, ties from the left; zeros count first.
static void reference(float *w, int64_t rows, int64_t cols, const double *diagonal, int64_t n) {
    struct scored *order = allocate((size_t)cols * sizeof *order);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) {
            double x = fabs((double)w[r * cols + c]);
            order[c] = (struct scored){x == 0 ? -1 : x * x * diagonal[c], c};
        }
        qsort(order, (size_t)cols, sizeof *order, by_score);
        for (int64_t i = 0; i < n; i++) w[r * cols + order[i].col] = 0;
    }
    free(order);
}

static void check_wanda(int64_t rows, int64_t cols, double sparsity, bool ties,
                        struct pd_threads *threads, uint64_t seed) {
    size_t n = (size_t)(rows * cols);
    float *w = allocate(n * sizeof *w), *before = allocate(n * sizeof *w);
    float *expected = allocate(n * sizeof *w);
    double *diagonal = allocate((size_t)cols * sizeof *diagonal), lost = 0, pruned = 0;
    for (int64_t c = 0; c < cols; c++)
        diagonal[c] = c % 5 == 3 ? 0 : ties ? 2 : 3 * pd_random_unit(&seed);
    for (size_t i = 0; i < n; i++) {
        double x = pd_random_unit(&seed) - 0.5;
        before[i] = (float)(ties ? rint(8 * x) : x);
        if (i / (size_t)cols == 1) before[i] = 0; // a row of zeros
    }
    memcpy(w, before, n * sizeof *w);
    memcpy(expected, before, n * sizeof *w);
    reference(expected, rows, cols, diagonal, prune_target(sparsity, cols));
    struct solver_task task = {.w = w,
                               .rows = rows,
                               .cols = cols,
                               .diagonal = diagonal,
                               .sparsity = sparsity,
                               .scope = PRUNE_ROW,
                               .threads = threads};
    struct solver_result result = {0};
    pdvm_error err = {0};
    assert_ok(solver_wanda(&task, &result, &err), &err);
    for (size_t i = 0; i < n; i++) {
        double x = (double)before[i];
        if (w[i] != expected[i])
            support_fail("[%d, %d], sparsity %g: weight %zu is %g, not %g", (int)rows, (int)cols,
                         sparsity, i, (double)w[i], (double)expected[i]);
        if (w[i] != 0) continue;
        lost += diagonal[i % (size_t)cols] * x * x;
        pruned += x * x;
    }
    assert_true(fabs(result.output_error - lost) <= 1e-12 * lost);
    assert_true(fabs(result.pruning_squares - pruned) <= 1e-12 * pruned);
    solver_result_free(&result);
    free(w);
    free(before);
    free(expected);
    free(diagonal);
}

static void wanda_zeroes_exactly_what_a_sort_would(void **state) {
    static const double sparsities[] = {0, 0.01, 0.5, 0.73, 0.99, 1};
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {5, 64}, {33, 129}, {200, 257}};
    struct pd_threads *threads;
    pdvm_error err = {0};
    (void)state;
    assert_ok(pd_threads_create(3, &threads, &err), &err);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t i = 0; i < sizeof sparsities / sizeof *sparsities; i++) {
            check_wanda(shapes[s][0], shapes[s][1], sparsities[i], false, threads, 10 * s + i);
            check_wanda(shapes[s][0], shapes[s][1], sparsities[i], true, threads, 10 * s + i);
        }
    }
    pd_threads_free(threads);
}

static void wanda_refuses_what_it_cannot_do(void **state) {
    static const double bad[] = {-0.1, 1.001, (double)NAN};
    float w[2] = {1, 2};
    double diagonal[2] = {1, 1};
    struct solver_task task = {.w = w, .rows = 1, .cols = 2, .diagonal = diagonal};
    struct solver_result result = {0};
    pdvm_error err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        task.sparsity = bad[i];
        assert_error(solver_wanda(&task, &result, &err), PDVM_ERR_ARGUMENT, &err, "sparsity");
    }
    task.sparsity = 0.5;
    task.scope = PRUNE_MATRIX;
    assert_error(solver_wanda(&task, &result, &err), PDVM_ERR_ARGUMENT, &err, "row by row");
    assert_true(w[0] == 1 && w[1] == 2);
}

/* ---- layers ---------------------------------------------------------------------------- */

#define LAYERS 7

// Layers with curves that rise faster and faster, the later ones more.
static void make_measures(struct layer_sparsity_measure *m, double target, double range) {
    for (int l = 0; l < LAYERS; l++) {
        m[l].outliers = 0.001 * ((l * 5) % LAYERS);
        for (int i = 0; i < LAYER_SPARSITY_POINTS; i++) {
            double s = target + range * (2.0 * i / (LAYER_SPARSITY_POINTS - 1) - 1);
            m[l].damage[i] = (l + 1) * s * s * s;
        }
    }
}

static double mean(const double *x) {
    double sum = 0;
    for (int i = 0; i < LAYERS; i++) sum += x[i];
    return sum / LAYERS;
}

static void the_mean_of_the_layers_is_the_target(void **state) {
    static const double targets[] = {0.03, 0.5, 0.8, 0.97, 0.999};
    struct layer_sparsity_measure m[LAYERS];
    double s[LAYERS];
    pdvm_error err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        for (int rule = 0; rule < LAYER_SPARSITY_N_RULES; rule++) {
            struct layer_sparsity_options o = {.rule = (enum layer_sparsity_rule)rule};
            make_measures(m, targets[i], 0.08);
            assert_ok(layer_sparsity_share(&o, targets[i], m, LAYERS, s, &err), &err);
            assert_true(fabs(mean(s) - targets[i]) < 1e-9);
            for (int l = 0; l < LAYERS; l++) assert_true(s[l] >= 0 && s[l] < 1);
        }
    }
}

static void owl_leaves_more_where_outliers_are(void **state) {
    struct layer_sparsity_options o = {.rule = LAYER_SPARSITY_OWL, .range = 0.1};
    struct layer_sparsity_measure m[LAYERS];
    double s[LAYERS], least = 1, most = 0;
    pdvm_error err = {0};
    (void)state;
    make_measures(m, 0.6, 0.1);
    assert_ok(layer_sparsity_share(&o, 0.6, m, LAYERS, s, &err), &err);
    for (int a = 0; a < LAYERS; a++) {
        for (int b = 0; b < LAYERS; b++)
            if (m[a].outliers > m[b].outliers) assert_true(s[a] < s[b]);
        least = fmin(least, s[a]);
        most = fmax(most, s[a]);
    }
    assert_true(fabs(most - least - 0.2) < 1e-9);
}

// All ways to give three layers points of their curves whose mean is the target.
static void the_shares_of_least_damage_are_found(void **state) {
    struct layer_sparsity_options o = {.rule = LAYER_SPARSITY_DAMAGE, .range = 0.2};
    struct layer_sparsity_measure m[LAYERS];
    const int n = 3, points = LAYER_SPARSITY_POINTS, middle = (points - 1) / 2;
    double s[LAYERS], best = INFINITY, found = 0;
    pdvm_error err = {0};
    (void)state;
    make_measures(m, 0.5, 0.2);
    assert_ok(layer_sparsity_share(&o, 0.5, m, (uint32_t)n, s, &err), &err);
    for (int l = 0; l < n; l++) {
        double at = (s[l] - 0.3) / 0.4 * (points - 1);
        assert_true(fabs(at - rint(at)) < 1e-6);
        found += m[l].damage[(int)rint(at)];
    }
    for (int a = 0; a < points; a++) {
        for (int b = 0; b < points; b++) {
            int c = n * middle - a - b;
            if (c < 0 || c >= points) continue;
            best = fmin(best, m[0].damage[a] + m[1].damage[b] + m[2].damage[c]);
        }
    }
    assert_true(fabs(found - best) < 1e-12);
}

// Scores 1 .. 10 but for one of 100: mean 14.5, above five times of which there is one.
static void outliers_and_damage_are_measured(void **state) {
    float w[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 50};
    double diagonal[10] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 4};
    struct layer_sparsity_matrix matrix = {w, 1, 10, diagonal};
    struct layer_sparsity_options o = {.rule = LAYER_SPARSITY_OWL, .outlier = 5, .range = 0.4};
    struct layer_sparsity_measure m;
    double total = 10000 + 285;
    pdvm_error err = {0};
    (void)state;
    assert_ok(layer_sparsity_measure(&o, 0.5, &matrix, 1, NULL, &m, &err), &err);
    assert_true(fabs(m.outliers - 0.1) < 1e-12);
    // From 10 % to 90 %: the smallest squares.
    for (int i = 0, lost = 0; i < LAYER_SPARSITY_POINTS; i++) {
        lost += (i + 1) * (i + 1);
        assert_true(fabs(m.damage[i] - lost / total) < 1e-12);
    }
}

static void rules_are_read(void **state) {
    static const char *const bad[] = {"",         "own",         "owl:",  "owl:x",
                                      "owl:5,",   "owl:5,1",     "owl5",  "uniform:1",
                                      "damage:0", "owl:5,0.1,2", "owl:-3"};
    struct layer_sparsity_options o;
    pdvm_error err = {0};
    (void)state;
    assert_ok(layer_sparsity_parse("owl:7,0.12", &o, &err), &err);
    assert_int_equal(o.rule, LAYER_SPARSITY_OWL);
    assert_true(o.outlier == 7 && o.range == 0.12);
    assert_ok(layer_sparsity_parse("damage:0.05", &o, &err), &err);
    assert_true(o.rule == LAYER_SPARSITY_DAMAGE && o.range == 0.05);
    assert_ok(layer_sparsity_parse("uniform", &o, &err), &err);
    assert_int_equal(o.rule, LAYER_SPARSITY_UNIFORM);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_error(layer_sparsity_parse(bad[i], &o, &err), PDVM_ERR_ARGUMENT, &err,
                     "for example owl:5,0.08");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wanda_zeroes_exactly_what_a_sort_would),
        cmocka_unit_test(wanda_refuses_what_it_cannot_do),
        cmocka_unit_test(the_mean_of_the_layers_is_the_target),
        cmocka_unit_test(owl_leaves_more_where_outliers_are),
        cmocka_unit_test(the_shares_of_least_damage_are_found),
        cmocka_unit_test(outliers_and_damage_are_measured),
        cmocka_unit_test(rules_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
