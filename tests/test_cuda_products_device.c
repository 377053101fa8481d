// Calibration's products on a real GPU by cuBLAS: against sums in double precision, and a whole conversion
// against the CPU's. Skipped without a GPU or cuBLAS.
// ctest: labels=gpu timeout=600

#include "base/time.h"
#include "compress/convert.h"
#include "support/cuda_products.h"
#include "support/solver_layer.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void products_are_the_sums(void **state) {
    (void)state;
    solver_layer_blas();
    struct matmul_device *d = cuda_products_open(256, 1100, 3);
    cuda_products_check(d, 1, 1, 1, 1, 1);
    cuda_products_check(d, 33, 47, 65, 2, 2);
    cuda_products_check(d, 256, 1000, 1100, 3, 3);
    cuda_products_check(d, 5000, 130, 257, 1, 4); /* in pieces */
    d->ops->destroy(d);
}

static void moments_are_the_sums_on_any_number_of_threads(void **state) {
    (void)state;
    solver_layer_blas();
    struct matmul_device *d = cuda_products_open(2048, 400, 4);
    cuda_products_check_gram(d, 37, 99, 333, 2e-6, 1);
    cuda_products_check_gram(d, 20, 2048, 256, 2e-6, 2);
    cuda_products_check_gram(d, 3, 1, 400, 2e-6, 3);
    d->ops->destroy(d);
}

static double convert_tales(const char *dir, const char *method, const char *backend, int n_threads,
                            struct convert_result *out, char **file) {
    struct convert_options o = convert_options_default();
    char name[64], *text = support_write_words(dir, 300000);
    pdvm_error err;
    snprintf(name, sizeof name, "%s-%d.pdvm", backend, n_threads);
    *file = support_path(dir, name);
    o.method = prune_method_find(method);
    o.plan.general.sparsity = 0.6;
    o.n_threads = n_threads;
    o.calibration.text = (struct calibration_options){
        .path = text, .n_tokens = 1 << 15, .seq = 512, .backend = backend};
    double start = pd_seconds();
    assert_ok(convert_model("models/tales", *file, &o, out, &err), &err);
    free(text);
    return pd_seconds() - start;
}

static void conversions_agree_with_the_cpus_and_do_not_depend_on_threads(void **state) {
    static const char *const methods[] = {"wanda", "sparsegpt", "admm"};
    solver_layer_blas();
    for (size_t m = 0; m < 3; m++) {
        struct convert_result cpu = {0}, one = {0}, all = {0};
        char *files[3];
        size_t sizes[2];
        double host = convert_tales(*state, methods[m], "cpu", 0, &cpu, &files[0]);
        double device = convert_tales(*state, methods[m], "cuda", 0, &all, &files[1]);
        convert_tales(*state, methods[m], "cuda", 1, &one, &files[2]);
        print_message("  %s: %.1f s, on the CPU %.1f s; %s\n", methods[m], device, host,
                      all.calibration.products);
        char *a = support_read_file(files[1], &sizes[0]),
             *b = support_read_file(files[2], &sizes[1]);
        assert_int_equal(sizes[0], sizes[1]);
        assert_memory_equal(a, b, sizes[0]);
        for (size_t i = 0; i < cpu.report.n; i++) {
            const struct report_tensor *x = &all.report.tensors[i], *y = &cpu.report.tensors[i];
            if (!strstr(x->tensor.name, "_proj.weight")) continue;
            /* Rounding makes some zeros more, not always the same ones. */
            assert_true(llabs(x->n_zeros - y->n_zeros) <= y->n_zeros / 1000);
            if (!(fabs(x->output_error - y->output_error) <= 0.1 * y->output_error))
                fail_msg("%s, %s: output error %g on the GPU, %g on the CPU", methods[m],
                         x->tensor.name, x->output_error, y->output_error);
        }
        free(a);
        free(b);
        for (int i = 0; i < 3; i++) free(files[i]);
        convert_result_free(&cpu);
        convert_result_free(&one);
        convert_result_free(&all);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_sums),
        cmocka_unit_test(moments_are_the_sums_on_any_number_of_threads),
        cmocka_unit_test_setup_teardown(
            conversions_agree_with_the_cpus_and_do_not_depend_on_threads, support_make_dir,
            support_remove_dir),
    };
    const struct matmul_device_size size = {.loaded = 64, .seq = 1, .widest = 1, .outputs = 1};
    struct matmul_device *d;
    pdvm_error err;
    if (matmul_cuda_create(&size, 1, &d, &err) != PDVM_OK) {
        fprintf(stderr, "skipped: %s\n", err.message);
        return 77;
    }
    fprintf(stderr, "%s\n", d->name);
    d->ops->destroy(d);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
