// Pruning: exact counts, against a naive reference with ties; bad weights are named.
// ctest: labels=threads

#include "support/support.h"

#include "base/random.h"
#include "compress/prune.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *allocate(size_t size) {
    void *p = calloc(size ? size : 1, 1);
    if (!p) support_fail("out of memory");
    return p;
}

static struct pd_threads *team(int n) {
    struct pd_threads *t;
    pdvm_error err = {0};
    assert_ok(pd_threads_create(n, &t, &err), &err);
    return t;
}

/* What the reference sorts: magnitude first, then position. */
struct entry {
    float magnitude;
    int64_t at;
};

static int compare(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->magnitude != y->magnitude) return x->magnitude < y->magnitude ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

/* Zeroes the `target` least of w[n], the earlier first among equals. */
static double reference(float *w, int64_t n, int64_t target) {
    struct entry *entries = allocate((size_t)n * sizeof *entries);
    double removed = 0;
    for (int64_t i = 0; i < n; i++) entries[i] = (struct entry){fabsf(w[i]), i};
    qsort(entries, (size_t)n, sizeof *entries, compare);
    for (int64_t i = 0; i < target; i++) {
        removed += (double)w[entries[i].at] * w[entries[i].at];
        w[entries[i].at] = 0;
    }
    free(entries);
    return removed;
}

enum kind { SMOOTH, TIES, HALF_ZERO, ALL_EQUAL, WIDE_RANGE, N_KINDS };

static float weight(enum kind kind, uint64_t *seed) {
    double u = pd_random_unit(seed) * 2 - 1;
    switch (kind) {
    case TIES: return (float)(int)(u * 4) * 0.25f;
    case HALF_ZERO: return pd_random(seed) % 2 ? (pd_random(seed) % 2 ? 0.0f : -0.0f) : (float)u;
    case ALL_EQUAL: return u < 0 ? -0.5f : 0.5f;
    case WIDE_RANGE: return (float)ldexp(u, (int)(pd_random(seed) % 250) - 140);
    default: return (float)u;
    }
}

static void check_case(enum kind kind, enum prune_scope scope, int64_t rows, int64_t cols,
                       double sparsity, struct pd_threads *threads, uint64_t seed) {
    size_t n = (size_t)(rows * cols);
    float *w = allocate(n * sizeof *w), *expected = allocate(n * sizeof *expected);
    for (size_t i = 0; i < n; i++) w[i] = weight(kind, &seed);
    memcpy(expected, w, n * sizeof *w);
    double removed = 0;
    if (scope == PRUNE_MATRIX)
        removed = reference(expected, rows * cols, prune_target(sparsity, rows * cols));
    for (int64_t r = 0; scope == PRUNE_ROW && r < rows; r++)
        removed += reference(expected + r * cols, cols, prune_target(sparsity, cols));

    struct prune_task task = {w, rows, cols, sparsity, scope, threads};
    struct prune_result result;
    pdvm_error err = {0};
    assert_ok(prune_method_find("magnitude")->prune(&task, &result, &err), &err);
    for (size_t i = 0; i < n; i++) {
        if (w[i] != expected[i])
            support_fail("kind %d, scope %s, [%d, %d], sparsity %g: weight %zu is %g, not %g",
                         (int)kind, prune_scope_name(scope), (int)rows, (int)cols, sparsity, i,
                         (double)w[i], (double)expected[i]);
    }
    assert_true(fabs(result.error_squares - removed) <= 1e-12 * removed);
    free(w);
    free(expected);
}

static void magnitude_zeroes_exactly_what_a_sort_would(void **state) {
    static const double sparsities[] = {0, 0.01, 0.3, 0.5, 0.7, 0.95, 0.9999};
    static const int64_t shapes[][2] = {{1, 1}, {1, 7}, {13, 1}, {5, 64}, {33, 129}, {300, 257}};
    struct pd_threads *threads = team(3);
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int scope = 0; scope <= PRUNE_MATRIX; scope++) {
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
                for (size_t i = 0; i < sizeof sparsities / sizeof *sparsities; i++)
                    check_case((enum kind)kind, (enum prune_scope)scope, shapes[s][0], shapes[s][1],
                               sparsities[i], threads, s * 100 + i);
            }
        }
    }
    pd_threads_free(threads);
}

static void each_row_reaches_its_exact_count(void **state) {
    int64_t rows = 40, cols = 1000;
    float *w = allocate((size_t)(rows * cols) * sizeof *w);
    uint64_t seed = 7;
    struct prune_result result;
    pdvm_error err = {0};
    (void)state;
    for (int64_t i = 0; i < rows * cols; i++) w[i] = weight(TIES, &seed) + 0.25f;
    struct prune_task task = {w, rows, cols, 0.613, PRUNE_ROW, NULL};
    assert_ok(prune_method_find("magnitude")->prune(&task, &result, &err), &err);
    for (int64_t r = 0; r < rows; r++) {
        int64_t zeros = 0;
        for (int64_t i = 0; i < cols; i++) zeros += w[r * cols + i] == 0;
        assert_int_equal(zeros, 613);
    }
    free(w);
}

static void more_zeros_than_asked_for_stay(void **state) {
    float w[] = {0, 0, 0, 1, -0.0f, 0.001f};
    struct prune_task task = {w, 1, 6, 0.5, PRUNE_ROW, NULL};
    struct prune_result result;
    pdvm_error err = {0};
    (void)state;
    assert_ok(prune_method_find("magnitude")->prune(&task, &result, &err), &err);
    assert_true(w[3] == 1 && w[5] == 0.001f);
    assert_true(result.error_squares == 0);
}

static void keep_changes_nothing(void **state) {
    float w[] = {0, 1e-30f, -2, 3};
    struct prune_task task = {w, 2, 2, 0, PRUNE_ROW, NULL};
    struct prune_result result;
    pdvm_error err = {0};
    (void)state;
    assert_string_equal(prune_method_at(0)->name, "keep");
    assert_ok(prune_method_at(0)->prune(&task, &result, &err), &err);
    assert_true(w[0] == 0 && w[1] == 1e-30f && w[2] == -2 && w[3] == 3);
    assert_true(result.error_squares == 0);
}

static void a_sparsity_out_of_range_is_refused(void **state) {
    static const double bad[] = {-0.1, 1.001, 1.5, (double)NAN};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        float w[] = {1, 2};
        struct prune_task task = {w, 1, 2, bad[i], PRUNE_ROW, NULL};
        struct prune_result result;
        pdvm_error err = {0};
        assert_error(prune_method_find("magnitude")->prune(&task, &result, &err), PDVM_ERR_ARGUMENT,
                     &err, "sparsity");
        assert_true(w[0] == 1 && w[1] == 2);
    }
}

static void targets_are_rounded_to_the_nearest(void **state) {
    (void)state;
    assert_int_equal(prune_target(0.7, 10), 7);
    assert_int_equal(prune_target(0.5, 5), 3);
    assert_int_equal(prune_target(0.1, 4), 0);
    assert_int_equal(prune_target(0.6, (int64_t)5120 * 13824), 42467328);
}

static void methods_are_found_by_name(void **state) {
    (void)state;
    for (size_t i = 0; prune_method_at(i); i++) {
        assert_ptr_equal(prune_method_find(prune_method_at(i)->name), prune_method_at(i));
        assert_non_null(prune_method_at(i)->help);
    }
    assert_null(prune_method_find("wanda2"));
    assert_null(prune_method_find(""));
}

static void counting_does_not_depend_on_threads(void **state) {
    int64_t rows = 501, cols = 333;
    float *w = allocate((size_t)(rows * cols) * sizeof *w);
    struct pd_threads *threads = team(3);
    struct prune_count one, three;
    uint64_t seed = 3;
    int64_t zeros = 0;
    pdvm_error err = {0};
    (void)state;
    for (int64_t i = 0; i < rows * cols; i++) {
        w[i] = weight(HALF_ZERO, &seed);
        zeros += w[i] == 0;
    }
    assert_ok(prune_count(w, rows, cols, NULL, &one, &err), &err);
    assert_ok(prune_count(w, rows, cols, threads, &three, &err), &err);
    assert_int_equal(one.n_zeros, zeros);
    assert_int_equal(three.n_zeros, zeros);
    assert_memory_equal(&one.sum_squares, &three.sum_squares, sizeof one.sum_squares);
    pd_threads_free(threads);
    free(w);
}

static void bad_weights_are_named(void **state) {
    static const struct {
        float value;
        const char *text;
    } bad[] = {{NAN, "row 2, column 3: the weight is NaN"},
               {INFINITY, "row 2, column 3: the weight is infinite"},
               {-INFINITY, "row 2, column 3: the weight is infinite"}};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        float w[4 * 5] = {0};
        struct prune_count count;
        pdvm_error err = {0};
        w[0] = 3e38f; /* finite, and so is its square */
        w[2 * 5 + 3] = bad[i].value;
        w[3 * 5] = NAN; /* the first one counts */
        assert_error(prune_count(w, 4, 5, NULL, &count, &err), PDVM_ERR_FORMAT, &err, bad[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(magnitude_zeroes_exactly_what_a_sort_would),
        cmocka_unit_test(each_row_reaches_its_exact_count),
        cmocka_unit_test(more_zeros_than_asked_for_stay),
        cmocka_unit_test(keep_changes_nothing),
        cmocka_unit_test(a_sparsity_out_of_range_is_refused),
        cmocka_unit_test(targets_are_rounded_to_the_nearest),
        cmocka_unit_test(methods_are_found_by_name),
        cmocka_unit_test(counting_does_not_depend_on_threads),
        cmocka_unit_test(bad_weights_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
