// Calibration's products on the stand-ins for driver and cuBLAS: products and moments, the model's hidden
// states, whole conversions, too little memory, a device that fails.
// ctest: labels=threads timeout=300

#include "compress/convert.h"
#include "support/cuda_device.h"
#include "support/cuda_products.h"
#include "support/solver_layer.h"
#include "support/support.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static standin_cublas_counters_fn get_counters;

static struct standin_cublas_counters counters(void) {
    struct standin_cublas_counters c;
    get_counters(&c);
    return c;
}

static int use_standins(void) {
    const char *library = getenv("PDVM_STANDIN_CUBLAS");
    cuda_device_standin();
    if (!library) return 77;
    setenv("PDVM_LIBCUBLAS", library, 1);
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    void *symbol = handle ? dlsym(handle, STANDIN_CUBLAS_COUNTERS) : NULL;
    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    memcpy(&get_counters, &symbol, sizeof symbol);
    return 0;
}

/* ---- products -------------------------------------------------------------------------- */

static void products_are_the_sums(void **state) {
    static const int64_t shapes[][4] = {
        {1, 1, 1, 1}, {33, 47, 65, 2}, {5, 100, 31, 3}, {64, 32, 100, 1}, {100, 3, 7, 3}};
    (void)state;
    solver_layer_blas();
    struct matmul_device *d = cuda_products_open(40, 110, 3);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        cuda_products_check(d, shapes[i][0], shapes[i][1], shapes[i][2], (int)shapes[i][3], i);
    assert_true(counters().products >= 3 * sizeof shapes / sizeof *shapes);
    d->ops->destroy(d);
    assert_int_equal(counters().handles, 0);
    assert_int_equal(cuda_device_counters().bytes, 0);
}

/* More rows than go through a lane at once, on fewer lanes than workers. */
static void long_products_come_in_pieces(void **state) {
    (void)state;
    solver_layer_blas();
    struct matmul_device *d = cuda_products_open(2, 60, 1);
    cuda_products_check(d, 700, 50, 60, 3, 5);
    d->ops->destroy(d);
}

static void moments_are_the_sums_on_any_number_of_threads(void **state) {
    (void)state;
    solver_layer_blas();
    struct matmul_device *d = cuda_products_open(40, 70, 3);
    cuda_products_check_gram(d, 1, 40, 70, 1e-6, 1);
    cuda_products_check_gram(d, 37, 9, 33, 1e-6, 2);
    cuda_products_check_gram(d, 64, 3, 1, 1e-6, 3);
    d->ops->destroy(d);
    /* One worker's device has one lane: the same bits (above) from it, too. */
    d = cuda_products_open(9, 33, 1);
    cuda_products_check_gram(d, 37, 9, 33, 1e-6, 2);
    d->ops->destroy(d);
}

/* ---- conversions ----------------------------------------------------------------------- */

static struct convert_options calibrated(const char *method, const char *text,
                                         const char *backend) {
    struct convert_options o = convert_options_default();
    o.method = prune_method_find(method);
    assert_non_null(o.method);
    o.plan.general.sparsity = 0.5;
    o.plan.general.values = MDCSR_F32;
    o.calibration.text =
        (struct calibration_options){.path = text, .n_tokens = 512, .seq = 24, .backend = backend};
    o.n_threads = 2;
    return o;
}

static void convert(const char *source, const char *output, const struct convert_options *o,
                    struct convert_result *out) {
    pdvm_error err = {0};
    *out = (struct convert_result){0};
    assert_ok(convert_model(source, output, o, out, &err), &err);
}

/* What pruning did to the outputs, matrix by matrix. */
static void expect_alike(const struct report *a, const struct report *b, const char *method) {
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        const struct report_tensor *x = &a->tensors[i], *y = &b->tensors[i];
        if (!strstr(x->tensor.name, "_proj.weight")) continue;
        assert_int_equal(x->n_zeros, y->n_zeros);
        if (!(fabs(x->output_error - y->output_error) <= 0.02 * y->output_error + 1e-6))
            fail_msg("%s, %s: output error %g on the device, %g on the CPU", method, x->tensor.name,
                     x->output_error, y->output_error);
    }
}

static void conversions_agree_with_the_cpus_and_do_not_depend_on_threads(void **state) {
    static const struct {
        const char *model, *method;
    } runs[] = {{"tiny-odd", "wanda"},
                {"tiny-gqa", "sparsegpt"},
                {"tiny-odd", "admm"},
                {"tiny-qwen2", "sparsegpt"}};
    char *text = support_write_words(*state, 8000), *cpu = support_path(*state, "cpu.pdvm");
    char *one = support_path(*state, "one.pdvm"), *four = support_path(*state, "four.pdvm");
    solver_layer_blas();
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char *source = support_golden_path(runs[i].model);
        struct convert_options o = calibrated(runs[i].method, text, "cpu");
        struct standin_cublas_counters before = counters(), after;
        struct convert_result on_cpu, on_device, again;
        convert(source, cpu, &o, &on_cpu);
        after = counters();
        assert_int_equal(before.products, after.products);
        o.calibration.text.backend = i % 2 ? "cuda" : "auto";
        o.n_threads = 1;
        convert(source, one, &o, &on_device);
        after = counters();
        assert_true(after.products > before.products);
        assert_true((after.moments > before.moments) == (strcmp(runs[i].method, "wanda") != 0));
        assert_string_equal(on_device.calibration.products, "cuBLAS 120000 on stand-in");
        o.n_threads = 4;
        convert(source, four, &o, &again);
        support_same_file(one, four);
        expect_alike(&on_device.report, &on_cpu.report, runs[i].method);
        convert_result_free(&on_cpu);
        convert_result_free(&on_device);
        convert_result_free(&again);
        free(source);
    }
    assert_int_equal(counters().handles, 0);
    free(text);
    free(cpu);
    free(one);
    free(four);
}

/* ---- what is not there ----------------------------------------------------------------- */

struct heard {
    int n;
    char last[512];
};

static void hear(void *user, pdvm_log_level level, const char *message) {
    struct heard *h = user;
    if (level < PDVM_LOG_WARN || !strstr(message, "GPU")) return;
    h->n++;
    snprintf(h->last, sizeof h->last, "%s", message);
}

static void too_little_memory_leaves_the_work_to_the_cpu(void **state) {
    char *source = support_golden_path("tiny-odd"), *text = support_write_words(*state, 8000);
    char *cpu = support_path(*state, "cpu.pdvm"), *other = support_path(*state, "other.pdvm");
    static const char *const sizes[] = {"100", "17500000"};
    struct convert_options o = calibrated("sparsegpt", text, "cpu");
    struct convert_result result = {0};
    pdvm_error err = {0};
    solver_layer_blas();
    convert(source, cpu, &o, &result);
    convert_result_free(&result);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct heard heard = {0};
        cuda_device_set("PDVM_STANDIN_MEMORY", sizes[i]);
        o.notify = (struct pd_notify){.log = hear, .log_user = &heard};
        o.calibration.text.backend = "auto";
        convert(source, other, &o, &result);
        convert_result_free(&result);
        support_same_file(cpu, other);
        assert_int_equal(heard.n, 1);
        assert_non_null(strstr(heard.last, "on the CPU, not on the GPU: calibration needs"));
        o.calibration.text.backend = "cuda";
        assert_error(convert_model(source, other, &o, &result, &err), PDVM_ERR_MEMORY, &err,
                     "use --backend cpu");
        convert_result_free(&result);
        assert_int_equal(cuda_device_counters().bytes, 0);
        assert_int_equal(counters().handles, 0);
    }
    cuda_device_set("PDVM_STANDIN_MEMORY", NULL);
    o.calibration.text.backend = "gpu";
    assert_error(convert_model(source, other, &o, &result, &err), PDVM_ERR_ARGUMENT, &err,
                 "unknown backend \"gpu\"");
    convert_result_free(&result);
    free(source);
    free(text);
    free(cpu);
    free(other);
}

/* Whichever product fails: an error that says so, and nothing is left of it. */
static void a_device_that_fails_ends_the_conversion(void **state) {
    static const char *const methods[] = {"sparsegpt", "admm"};
    char *source = support_golden_path("tiny-odd"), *text = support_write_words(*state, 8000);
    char *file = support_path(*state, "failed.pdvm");
    pdvm_error err = {0};
    solver_layer_blas();
    for (size_t i = 0; i < 2; i++) {
        struct convert_options o = calibrated(methods[i], text, "cuda");
        for (uint64_t more = 1; more < 200; more = 4 * more + 3) {
            struct standin_cublas_counters c = counters();
            struct convert_result result = {0};
            char number[32];
            snprintf(number, sizeof number, "%llu",
                     (unsigned long long)(c.products + c.moments + more));
            cuda_device_set("PDVM_STANDIN_FAIL_CUBLAS", number);
            assert_error(convert_model(source, file, &o, &result, &err), PDVM_ERR_UNSUPPORTED, &err,
                         "cuBLAS: ");
            assert_non_null(strstr(err.message, "the device failed (status 13)"));
            convert_result_free(&result);
            assert_int_equal(cuda_device_counters().bytes, 0);
        }
    }
    cuda_device_set("PDVM_STANDIN_FAIL_CUBLAS", NULL);
    free(source);
    free(text);
    free(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_sums),
        cmocka_unit_test(long_products_come_in_pieces),
        cmocka_unit_test(moments_are_the_sums_on_any_number_of_threads),
        cmocka_unit_test_setup_teardown(
            conversions_agree_with_the_cpus_and_do_not_depend_on_threads, support_make_dir,
            support_remove_dir),
        cmocka_unit_test_setup_teardown(too_little_memory_leaves_the_work_to_the_cpu,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(a_device_that_fails_ends_the_conversion, support_make_dir,
                                        support_remove_dir),
    };
    int code = use_standins();
    return code ? code : cmocka_run_group_tests(tests, NULL, NULL);
}
