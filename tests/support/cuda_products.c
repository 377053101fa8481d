#include "support/cuda_products.h"

#include "base/alloc.h"
#include "base/random.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS 3
#define MOST 3

struct matmul_device *cuda_products_open(int64_t seq, int64_t widest, int n_workers) {
    const struct matmul_device_size size = {.loaded = 4 * widest * widest * 4 + 1024,
                                            .seq = seq,
                                            .widest = widest,
                                            .outputs = 3 * widest,
                                            .gram = true};
    struct matmul_device *d;
    pdvm_error err;
    assert_ok(matmul_cuda_create(&size, n_workers, &d, &err), &err);
    return d;
}

static float *random_floats(int64_t n, uint64_t *seed) {
    float *x;
    pdvm_error err;
    assert_ok(pd_alloc_aligned(&x, (size_t)n * sizeof *x, "numbers", &err), &err);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((pd_random_unit(seed) - 0.5) * exp2((double)(pd_random(seed) % 6)));
    return x;
}

/* ---- products -------------------------------------------------------------------------- */

struct product_run {
    const struct matmul *matmul;
    const struct matmul_task *tasks; /* [WORKERS, n] */
    int n;
};

static void run_products(void *arg, int64_t begin, int64_t end, int worker) {
    const struct product_run *r = arg;
    for (int64_t i = begin; i < end; i++)
        matmul_run_all(r->matmul, r->tasks + i * r->n, r->n, worker);
}

static void expect_product(const struct matmul_task *t, const float *before) {
    for (int64_t i = 0; i < t->m; i++) {
        for (int64_t j = 0; j < t->c_stride; j++) {
            float got = t->c[i * t->c_stride + j], was = before[i * t->c_stride + j];
            if (j >= t->n) {
                assert_memory_equal(&got, &was, sizeof got);
                continue;
            }
            double sum = t->add ? (double)was : 0, size = fabs(sum);
            for (int64_t k = 0; k < t->k; k++) {
                double p = (double)t->a[i * t->a_stride + k] * (double)t->b[j * t->b_stride + k];
                sum += p;
                size += fabs(p);
            }
            if (!(fabs((double)got - sum) <= 0x1p-20 * size))
                fail_msg("%lld x %lld x %lld at %lld, %lld: %.9g, should be %.9g", (long long)t->m,
                         (long long)t->n, (long long)t->k, (long long)i, (long long)j, (double)got,
                         sum);
        }
    }
}

void cuda_products_check(struct matmul_device *d, int64_t m, int64_t outputs, int64_t k, int n,
                         uint64_t seed) {
    struct matmul_task tasks[WORKERS * MOST] = {0};
    struct matmul_ready ready[MOST];
    float *before[WORKERS * MOST];
    struct matmul matmul;
    struct pd_threads *threads;
    const struct blas *blas;
    pdvm_error err;
    assert_ok(blas_open(&blas, &err), &err);
    assert_ok(matmul_create(blas, WORKERS, d, &matmul, &err), &err);
    assert_ok(pd_threads_create(WORKERS, &threads, &err), &err);
    for (int w = 0; w < WORKERS; w++) {
        float *a = random_floats(m * (k + w), &seed);
        for (int i = 0; i < n; i++) {
            struct matmul_task *t = &tasks[w * n + i];
            *t = (struct matmul_task){.m = m,
                                      .n = outputs + 3 * i,
                                      .k = k,
                                      .a = a,
                                      .a_stride = k + w,
                                      .b = w ? tasks[i].b
                                             : random_floats((outputs + 3 * i) * (k + i), &seed),
                                      .b_stride = k + i,
                                      .c_stride = outputs + 3 * i + (w + i) % 2,
                                      .add = (w + i) % 2,
                                      .ready = &ready[i]};
            t->c = random_floats(m * t->c_stride, &seed);
            before[w * n + i] = malloc((size_t)(m * t->c_stride) * sizeof(float));
            memcpy(before[w * n + i], t->c, (size_t)(m * t->c_stride) * sizeof(float));
        }
    }
    for (int i = 0; i < n; i++) {
        assert_ok(matmul_prepare(&matmul, &tasks[i], NULL, &ready[i], &err), &err);
        assert_true(ready[i].on_device);
    }
    struct product_run r = {&matmul, tasks, n};
    pd_threads_for(threads, WORKERS, 1, run_products, &r);
    assert_ok(matmul_status(&matmul, &err), &err);
    for (int i = 0; i < WORKERS * n; i++) {
        expect_product(&tasks[i], before[i]);
        free(before[i]);
        free(tasks[i].c);
    }
    for (int i = n - 1; i >= 0; i--) matmul_release(&matmul, &ready[i]);
    for (int w = 0; w < WORKERS; w++) free((void *)(uintptr_t)tasks[w * n].a);
    for (int i = 0; i < n; i++) free((void *)(uintptr_t)tasks[i].b);
    pd_threads_free(threads);
    matmul_free(&matmul);
}

/* ---- moments --------------------------------------------------------------------------- */

static void expect_gram(const double *h, const float *x, int64_t rows, int64_t cols,
                        double tolerance) {
    double *sums, *norms, worst = 0;
    pdvm_error err;
    assert_ok(pd_calloc(&sums, (size_t)(cols * cols), sizeof *sums, "sums", &err), &err);
    assert_ok(pd_calloc(&norms, (size_t)cols, sizeof *norms, "sums", &err), &err);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = i; j < cols; j++)
                sums[i * cols + j] += (double)x[t * cols + i] * (double)x[t * cols + j];
    for (int64_t i = 0; i < cols; i++) norms[i] = sqrt(sums[i * (cols + 1)]);
    for (int64_t i = 0; i < cols; i++) {
        for (int64_t j = 0; j < i; j++) assert_true(h[i * cols + j] == -1);
        for (int64_t j = i; j < cols; j++)
            worst =
                fmax(worst, fabs(h[i * cols + j] - 1 - sums[i * cols + j]) / norms[i] / norms[j]);
    }
    if (!(worst <= tolerance)) fail_msg("moments: an error of %.3g", worst);
    print_message("  %lld rows x %lld: largest error %.2g\n", (long long)rows, (long long)cols,
                  worst);
    free(sums);
    free(norms);
}

void cuda_products_check_gram(struct matmul_device *d, int64_t windows, int64_t seq, int64_t cols,
                              double tolerance, uint64_t seed) {
    size_t size = (size_t)(cols * cols) * sizeof(double);
    float *x = random_floats(windows * seq * cols, &seed);
    double *h = malloc(size), *again = malloc(size);
    struct pd_threads *threads;
    pdvm_error err;
    assert_non_null(h);
    assert_non_null(again);
    /* What is there before must be added to; below the diagonal nothing is touched. */
    for (int64_t i = 0; i < cols * cols; i++) h[i] = again[i] = i % cols < i / cols ? -1 : 1;
    assert_ok(d->ops->gram(d, x, windows, seq, cols, NULL, h, &err), &err);
    expect_gram(h, x, windows * seq, cols, tolerance);
    assert_ok(pd_threads_create(4, &threads, &err), &err);
    int64_t step = 2 * MATMUL_DEVICE_WINDOWS;
    for (int64_t first = 0; first < windows; first += step) {
        int64_t n = windows - first < step ? windows - first : step;
        assert_ok(d->ops->gram(d, x + first * seq * cols, n, seq, cols, threads, again, &err),
                  &err);
    }
    assert_memory_equal(h, again, size);
    pd_threads_free(threads);
    free(x);
    free(h);
    free(again);
}
