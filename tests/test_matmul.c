/* Products of large matrices against sums in double precision, both ways of computing them. */
#include "base/alloc.h"
#include "base/random.h"
#include "compress/matmul.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct matmul by_default, by_blas;

static int create(void **state) {
    const struct blas *blas;
    pdvm_error err;
    (void)state;
    if (blas_open(&blas, &err) != PDVM_OK) return 0;
    assert_ok(matmul_create(blas, 2, NULL, &by_default, &err), &err);
    by_blas = by_default;
    by_blas.split = NULL; /* shares no memory then */
    return 0;
}

static int destroy(void **state) {
    (void)state;
    matmul_free(&by_default);
    return 0;
}

static float *random_matrix(int64_t rows, int64_t stride, int64_t cols, uint64_t *seed) {
    float *x;
    pdvm_error err;
    assert_ok(pd_alloc_aligned(&x, (size_t)(rows * stride) * sizeof *x, "a matrix", &err), &err);
    /* What lies between the rows must not be looked at. */
    for (int64_t i = 0; i < rows * stride; i++)
        x[i] = i % stride < cols
                   ? (float)((pd_random_unit(seed) - 0.5) * exp2((double)(pd_random(seed) % 12)))
                   : NAN;
    return x;
}

/* The largest error, as a share of |a| |b|: 2^-23 is float32's rounding, 2^-15 what splitting may leave. */
static void check(const struct matmul *m, struct matmul_task *t, float *c, double limit) {
    int64_t a_step = t->transposed ? t->a_stride : 1, b_step = t->transposed ? t->b_stride : 1;
    int64_t a_row = t->transposed ? 1 : t->a_stride, b_row = t->transposed ? 1 : t->b_stride;
    float *before = malloc((size_t)(t->m * t->c_stride) * sizeof *before);
    memcpy(before, c, (size_t)(t->m * t->c_stride) * sizeof *before);
    t->c = c;
    matmul_run(m, t, 1);
    for (int64_t i = 0; i < t->m; i++) {
        for (int64_t j = 0; j < t->c_stride; j++) {
            float got = c[i * t->c_stride + j], was = before[i * t->c_stride + j];
            if (j >= t->n) {
                assert_memory_equal(&got, &was, sizeof got);
                continue;
            }
            if (t->upper && j < i) continue;
            double sum = t->add ? (double)was : 0, size = fabs(sum);
            for (int64_t k = 0; k < t->k; k++) {
                double p =
                    (double)t->a[i * a_row + k * a_step] * (double)t->b[j * b_row + k * b_step];
                sum += p;
                size += fabs(p);
            }
            if (!(fabs((double)got - sum) <= limit * size))
                fail_msg("%lld x %lld x %lld at %lld, %lld: %.9g, should be %.9g", (long long)t->m,
                         (long long)t->n, (long long)t->k, (long long)i, (long long)j, (double)got,
                         sum);
        }
    }
    free(before);
}

/* Preparing an operand changes nothing. */
static void check_prepared(struct matmul_task *t, uint64_t *seed) {
    size_t size = (size_t)(t->m * t->c_stride) * sizeof(float);
    float *now = random_matrix(t->m, t->c_stride, t->c_stride, seed), *later = malloc(size);
    struct matmul_ready ready;
    pdvm_error err;
    memcpy(later, now, size);
    t->c = now;
    matmul_run(&by_default, t, 0);
    assert_ok(matmul_prepare(&by_default, t, NULL, &ready, &err), &err);
    t->ready = &ready;
    t->c = later;
    matmul_run(&by_default, t, 1);
    assert_memory_equal(now, later, size);
    free(now);
    free(later);
    matmul_release(&by_default, &ready);
}

static void check_shape(int64_t m, int64_t n, int64_t k, uint64_t *seed) {
    for (int kind = 0; kind < 8; kind++) {
        bool transposed = kind & 1, add = kind & 2, square = (kind & 4) && m == n;
        int64_t a_rows = transposed ? k : m, a_cols = transposed ? m : k;
        int64_t b_rows = transposed ? k : n, b_cols = transposed ? n : k;
        struct matmul_task t = {.m = m,
                                .n = n,
                                .k = k,
                                .a_stride = a_cols + 3,
                                .b_stride = b_cols + (square ? 3 : 5),
                                .c_stride = n + 2,
                                .transposed = transposed,
                                .add = add,
                                .upper = square,
                                .exact = square};
        float *a = random_matrix(a_rows, t.a_stride, a_cols, seed);
        float *b = square ? a : random_matrix(b_rows, t.b_stride, b_cols, seed);
        float *c = random_matrix(m, t.c_stride, n, seed),
              *d = random_matrix(m, t.c_stride, n, seed);
        t.a = a;
        t.b = b;
        check(&by_default, &t, c, by_default.split && !t.exact ? 0x1p-15 : 0x1p-19);
        check(&by_blas, &t, d, 0x1p-19);
        check_prepared(&t, seed);
        if (b != a) free(b);
        free(a);
        free(c);
        free(d);
    }
}

static void products_are_the_sums(void **state) {
    static const int64_t shapes[][3] = {{1, 1, 1},      {32, 32, 32},  {33, 47, 65},
                                        {64, 64, 1025}, {97, 97, 40},  {31, 200, 130},
                                        {160, 33, 95},  {257, 300, 64}};
    uint64_t seed = 7;
    (void)state;
    if (!by_default.blas) skip();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(shapes[i][0], shapes[i][1], shapes[i][2], &seed);
    for (int i = 0; i < 12; i++)
        check_shape(1 + (int64_t)(pd_random(&seed) % 150), 1 + (int64_t)(pd_random(&seed) % 150),
                    1 + (int64_t)(pd_random(&seed) % 300), &seed);
}

/* More rows than are packed at once: sums over part of the terms must meet the right rows. */
static void large_products_are_put_together(void **state) {
    uint64_t seed = 8;
    (void)state;
    if (!by_default.blas) skip();
    check_shape(1100, 40, 36, &seed);
    check_shape(40, 530, 1090, &seed);
}

/* What is left out must not always have the same sign, or diagonals shrink. */
static void sums_of_squares_are_not_biased(void **state) {
    const int64_t n = 64, k = 2000;
    uint64_t seed = 9;
    (void)state;
    if (!by_default.blas) skip();
    float *x = random_matrix(k, n, n, &seed), *c = random_matrix(n, n, n, &seed);
    struct matmul_task t = {.m = n,
                            .n = n,
                            .k = k,
                            .a = x,
                            .b = x,
                            .a_stride = n,
                            .b_stride = n,
                            .c = c,
                            .c_stride = n,
                            .transposed = true,
                            .upper = true,
                            .exact = true};
    matmul_run(&by_default, &t, 0);
    double mean = 0;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t r = 0; r < k; r++) sum += (double)x[r * n + i] * (double)x[r * n + i];
        assert_true(fabs((double)c[i * n + i] / sum - 1) < 1e-6);
        mean += ((double)c[i * n + i] / sum - 1) / (double)n;
    }
    assert_true(fabs(mean) < 2e-7);
    free(x);
    free(c);
}

static void factors_of_every_size_come_through(void **state) {
    uint64_t seed = 10;
    (void)state;
    if (!by_default.blas) skip();
    float *a = random_matrix(64, 64, 64, &seed), *b = random_matrix(64, 64, 64, &seed);
    float *c = random_matrix(64, 64, 64, &seed);
    for (int64_t i = 0; i < 64 * 64; i++) {
        a[i] *= i / 64 % 2 ? 1e-12f : 1e12f;
        b[i] *= i / 64 % 3 ? 1e-9f : 1e9f;
    }
    struct matmul_task t = {
        .m = 64, .n = 64, .k = 64, .a = a, .b = b, .a_stride = 64, .b_stride = 64, .c_stride = 64};
    check(&by_default, &t, c, 0x1p-15);
    free(a);
    free(b);
    free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_sums),
        cmocka_unit_test(large_products_are_put_together),
        cmocka_unit_test(sums_of_squares_are_not_biased),
        cmocka_unit_test(factors_of_every_size_come_through),
    };
    return cmocka_run_group_tests(tests, create, destroy);
}
