// Encoding on several threads: the same bytes for any number of them, and no races (this test also
// runs under the thread sanitizer).

#include "base/random.h"
#include "base/threads.h"
#include "mdcsr/mdcsr.h"
#include "support/same_matrix.h"
#include "support/support.h"

#include <stdlib.h>

static void result_does_not_depend_on_threads(void **state) {
    (void)state;
    int64_t rows = 611, cols = 1023;
    float *w = malloc((size_t)(rows * cols) * sizeof *w);
    uint64_t seed = 5;
    for (int64_t i = 0; i < rows * cols; i++) { // rows from empty to full
        int64_t row = i / cols;
        w[i] = pd_random_unit(&seed) * (double)rows < (double)row
                   ? (float)pd_random_unit(&seed) - 0.5f
                   : 0;
    }
    static const enum mdcsr_values values[] = {MDCSR_F32, MDCSR_INT8, MDCSR_LUT8, MDCSR_LUT4};
    static const int counts[] = {1, 2, 5};
    for (int v = 0; v < 4; v++) {
        struct mdcsr_options o = {.values = values[v],
                                  .codebook = MDCSR_LEARNED,
                                  .index = v == 3 ? MDCSR_DELTA4 : MDCSR_BITMAP,
                                  .group = v == 2 ? 64 : 0};
        struct mdcsr first;
        struct mdcsr_report a, b;
        pdvm_error err;
        assert_ok(mdcsr_encode(w, rows, cols, &o, NULL, &first, &a, &err), &err);
        for (int i = 0; i < 3; i++) {
            struct pd_threads *threads;
            struct mdcsr m;
            assert_ok(pd_threads_create(counts[i], &threads, &err), &err);
            assert_ok(mdcsr_encode(w, rows, cols, &o, threads, &m, &b, &err), &err);
            assert_same_matrix(&first, &m);
            assert_true(a.error_squares == b.error_squares && a.sum_squares == b.sum_squares);
            mdcsr_free(&m);
            pd_threads_free(threads);
        }
        mdcsr_free(&first);
    }
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(result_does_not_depend_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
