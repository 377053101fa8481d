/* What calibration does to rows, on every instruction set of this machine: right, and the same bits. */
#include "base/random.h"
#include "compress/rows.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST 300

static void fill(float *x, int64_t n, double size, uint64_t *seed) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)((pd_random_unit(seed) - 0.5) * size);
}

static void norms_are_right(void **state) {
    uint64_t seed = 1;
    (void)state;
    for (int64_t n = 1; n < MOST; n += 7) {
        float x[MOST], weight[MOST], first[MOST], out[MOST];
        const struct rows *r;
        double sum = 0;
        fill(x, n, 8, &seed);
        fill(weight, n, 2, &seed);
        for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
        for (int k = 0; (r = rows_at(k)) != NULL; k++) {
            r->norm(x, weight, n, 1e-5f, out);
            if (k == 0) memcpy(first, out, sizeof out);
            assert_memory_equal(out, first, (size_t)n * sizeof *out);
        }
        for (int64_t i = 0; i < n; i++) {
            double right = (double)x[i] / sqrt(sum / (double)n + 1e-5) * (double)weight[i];
            assert_true(fabs((double)first[i] - right) <= 1e-5 * fabs(right));
        }
    }
}

static void softmax_is_right_and_zero_outside(void **state) {
    uint64_t seed = 2;
    (void)state;
    for (int64_t n = 1; n < MOST; n += 5) {
        /* Differences of hundreds: most of a row underflows. */
        double size = n % 3 ? 40 : 2000;
        int64_t begin = (int64_t)(pd_random(&seed) % (uint64_t)n);
        int64_t end = begin + 1 + (int64_t)(pd_random(&seed) % (uint64_t)(n - begin));
        float x[MOST], first[MOST], out[MOST];
        const struct rows *r;
        double sum = 0, most = -INFINITY;
        fill(x, n, size, &seed);
        for (int64_t i = begin; i < end; i++) most = fmax(most, 0.25 * (double)x[i]);
        for (int64_t i = begin; i < end; i++) sum += exp(0.25 * (double)x[i] - most);
        for (int k = 0; (r = rows_at(k)) != NULL; k++) {
            memcpy(out, x, sizeof out);
            r->softmax(out, begin, end, n, 0.25f);
            if (k == 0) memcpy(first, out, sizeof out);
            assert_memory_equal(out, first, (size_t)n * sizeof *out);
        }
        for (int64_t i = 0; i < n; i++) {
            double right = i >= begin && i < end ? exp(0.25 * (double)x[i] - most) / sum : 0;
            assert_true(fabs((double)first[i] - right) <= 2e-5 * right + 1e-20);
        }
    }
}

static void silu_is_right(void **state) {
    uint64_t seed = 3;
    (void)state;
    for (int64_t n = 1; n < MOST; n += 11) {
        float x[MOST], y[MOST], first[MOST], out[MOST];
        const struct rows *r;
        fill(x, n, n % 2 ? 20 : 1000, &seed);
        fill(y, n, 4, &seed);
        for (int k = 0; (r = rows_at(k)) != NULL; k++) {
            memcpy(out, x, sizeof out);
            r->silu_times(out, y, n);
            if (k == 0) memcpy(first, out, sizeof out);
            assert_memory_equal(out, first, (size_t)n * sizeof *out);
        }
        for (int64_t i = 0; i < n; i++) {
            double right = (double)x[i] / (1 + exp(-(double)x[i])) * (double)y[i];
            assert_true(fabs((double)first[i] - right) <= 2e-6 * fabs(right) + 1e-30);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_are_right),
        cmocka_unit_test(softmax_is_right_and_zero_outside),
        cmocka_unit_test(silu_is_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
