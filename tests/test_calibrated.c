// Conversion with calibration: the file does not depend on threads or interruptions, shares of
// zeros are exact, methods differ as they should, and damaged models are named.
// ctest: labels=threads timeout=180

#include "support/solver_layer.h"
#include "support/support.h"

#include "compress/blas.h"
#include "compress/convert.h"
#include "io/safetensors.h"
#include "mdcsr/container.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Options for a small calibration on `text`. */
static struct convert_options calibrated(const char *method, double sparsity, const char *text) {
    struct convert_options o = convert_options_default();
    o.method = prune_method_find(method);
    assert_non_null(o.method);
    o.plan.general.sparsity = sparsity;
    o.calibration.text = (struct calibration_options){.path = text, .n_tokens = 512, .seq = 64};
    o.n_threads = 2;
    return o;
}

static void convert(const char *source, const char *output, const struct convert_options *o,
                    struct convert_result *result) {
    struct convert_result own = {0};
    pdvm_error err = {0};
    assert_ok(convert_model(source, output, o, result ? result : &own, &err), &err);
    convert_result_free(&own);
}

static const char *const methods[] = {"wanda", "sparsegpt", "admm"};
#define N_METHODS (sizeof methods / sizeof *methods)

static void the_file_does_not_depend_on_the_number_of_threads(void **state) {
    char *source = support_golden_path("tiny-odd"), *text = support_write_words(*state, 8000);
    char *one = support_path(*state, "one.pdvm"), *four = support_path(*state, "four.pdvm");
    solver_layer_blas();
    for (size_t i = 0; i < N_METHODS; i++) {
        struct convert_options o = calibrated(methods[i], 0.6, text);
        o.plan.general.values = i == 1 ? MDCSR_LUT4 : MDCSR_INT8;
        if (i == 0) o.calibration.layers.rule = LAYER_SPARSITY_OWL;
        if (i == 1) o.calibration.layers.rule = LAYER_SPARSITY_DAMAGE;
        o.n_threads = 1;
        convert(source, one, &o, NULL);
        o.n_threads = 4;
        convert(source, four, &o, NULL);
        support_same_file(one, four);
    }
    // The work directories are gone.
    assert_int_equal(support_count_entries(*state), 3);
    free(source);
    free(text);
    free(one);
    free(four);
}

/* ---- shares of zeros ------------------------------------------------------------------- */

static int64_t zeros_of_row(const struct mdcsr *m, int64_t r, float *row) {
    int64_t zeros = 0;
    mdcsr_decode_row(m, r, row);
    for (int64_t c = 0; c < m->cols; c++) zeros += row[c] == 0;
    return zeros;
}

/* Every row of every pruned matrix has exactly the target's zeros, floats being exact. */
static void rows_reach_their_exact_share(void **state) {
    char *source = support_golden_path("tiny-gqa"), *text = support_write_words(*state, 8000);
    char *file = support_path(*state, "rows.pdvm");
    struct container *c;
    pdvm_error err = {0};
    solver_layer_blas();
    for (size_t i = 0; i < N_METHODS; i++) {
        struct convert_options o = calibrated(methods[i], 0.37, text);
        o.scope = PRUNE_ROW;
        o.plan.general.values = MDCSR_F32;
        assert_ok(settings_add_rule(&o.plan, "down=sparsity=0.61", &err), &err);
        convert(source, file, &o, NULL);
        settings_free(&o.plan);
        assert_ok(container_open(file, &c, &err), &err);
        for (size_t k = 0; k < container_matrix_count(c); k++) {
            const struct container_matrix *info = container_matrix_at(c, k);
            double sparsity = strstr(info->name, "down") ? 0.61 : 0.37;
            struct mdcsr m;
            if (!strstr(info->name, "layers")) continue;
            assert_ok(container_read_matrix(c, info->name, &m, &err), &err);
            float *row = malloc((size_t)m.cols * sizeof *row);
            for (int64_t r = 0; r < m.rows; r++)
                assert_int_equal(zeros_of_row(&m, r, row), prune_target(sparsity, m.cols));
            free(row);
            mdcsr_free(&m);
        }
        container_close(c);
    }
    free(source);
    free(text);
    free(file);
}

static void layers_that_differ_reach_the_target_together(void **state) {
    char *source = support_golden_path("tiny-gqa"), *text = support_write_words(*state, 8000);
    char *file = support_path(*state, "owl.pdvm");
    solver_layer_blas();
    for (int rule = LAYER_SPARSITY_OWL; rule < LAYER_SPARSITY_N_RULES; rule++) {
        struct convert_options o = calibrated("wanda", 0.5, text);
        struct convert_result result = {0};
        int64_t zeros[3] = {0}, weights[3] = {0};
        o.calibration.layers =
            (struct layer_sparsity_options){(enum layer_sparsity_rule)rule, 2, 0.2};
        convert(source, file, &o, &result);
        for (size_t i = 0; i < result.report.n; i++) {
            const struct report_tensor *t = &result.report.tensors[i];
            if (!strstr(t->tensor.name, "proj")) continue;
            zeros[t->tensor.layer] += t->n_zeros;
            weights[t->tensor.layer] += t->tensor.rows * t->tensor.cols;
        }
        double total = (double)(zeros[0] + zeros[1] + zeros[2]) /
                       (double)(weights[0] + weights[1] + weights[2]);
        // Targets of rows are whole numbers.
        assert_true(fabs(total - 0.5) < 0.005);
        if (rule == LAYER_SPARSITY_OWL) assert_true(zeros[0] != zeros[1] || zeros[1] != zeros[2]);
        convert_result_free(&result);
    }
    free(source);
    free(text);
    free(file);
}

/* Mean over the matrices of what their outputs lost. */
static double mean_output_error(const char *source, const char *file,
                                const struct convert_options *o) {
    struct convert_result result = {0};
    double sum = 0;
    int n = 0;
    convert(source, file, o, &result);
    for (size_t i = 0; i < result.report.n; i++) {
        if (!strstr(result.report.tensors[i].tensor.name, "proj")) continue;
        assert_true(isfinite(result.report.tensors[i].output_error));
        sum += result.report.tensors[i].output_error;
        n++;
    }
    convert_result_free(&result);
    return sum / n;
}

static void better_methods_lose_less_of_the_outputs(void **state) {
    char *source = support_golden_path("tiny-gqa"), *text = support_write_words(*state, 8000);
    char *file = support_path(*state, "m.pdvm");
    solver_layer_blas();
    struct convert_options o = calibrated("magnitude", 0.6, text);
    o.calibration.refine = true;
    double refined_magnitude = mean_output_error(source, file, &o);
    o = calibrated("wanda", 0.6, text);
    double wanda = mean_output_error(source, file, &o);
    o.calibration.refine = true;
    double refined = mean_output_error(source, file, &o);
    o = calibrated("sparsegpt", 0.6, text);
    double sparsegpt = mean_output_error(source, file, &o);
    o = calibrated("admm", 0.6, text);
    double admm = mean_output_error(source, file, &o);
    if (!(refined < 0.8 * wanda && refined_magnitude < wanda && sparsegpt < 0.95 * wanda &&
          admm < 1.02 * sparsegpt))
        support_fail("errors: wanda %g, refined %g, magnitude refined %g, sparsegpt %g, admm %g",
                     wanda, refined, refined_magnitude, sparsegpt, admm);
    free(source);
    free(text);
    free(file);
}

/* ---- interruptions --------------------------------------------------------------------- */

struct stop {
    const char *layer; /* stops once this file is there */
};

static bool stop_when_there(void *user, const char *stage, double fraction) {
    const struct stop *s = user;
    (void)stage;
    assert_true(fraction >= 0 && fraction < 1.05);
    return !support_exists(s->layer);
}

static void an_interrupted_run_goes_on_to_the_same_bytes(void **state) {
    char *source = support_golden_path("tiny-gqa"), *text = support_write_words(*state, 8000);
    char *whole = support_path(*state, "whole.pdvm"), *parts = support_path(*state, "parts.pdvm");
    char *work = support_path(*state, "parts.pdvm.work");
    char *layer = support_path(work, "layer-0001.pdvm");
    struct stop stop = {layer};
    pdvm_error err = {0};
    solver_layer_blas();
    for (int rule = 0; rule < LAYER_SPARSITY_N_RULES; rule++) {
        struct convert_options o = calibrated("sparsegpt", 0.5, text);
        struct convert_result result = {0};
        o.calibration.layers.rule = (enum layer_sparsity_rule)rule;
        convert(source, whole, &o, NULL);
        o.notify = (struct pd_notify){.progress = stop_when_there, .progress_user = &stop};
        assert_int_equal(convert_model(source, parts, &o, &result, &err), PDVM_ERR_CANCELLED);
        convert_result_free(&result);
        assert_true(support_exists(layer));
        assert_false(support_exists(parts));

        // Other settings do not go on with these layers.
        struct convert_options other = o;
        other.notify = (struct pd_notify){0};
        other.calibration.resume = true;
        other.plan.general.sparsity = 0.6;
        result = (struct convert_result){0};
        assert_error(convert_model(source, parts, &other, &result, &err), PDVM_ERR_ARGUMENT, &err,
                     "leave out --resume");
        convert_result_free(&result);
        assert_true(support_exists(layer));

        o.notify = (struct pd_notify){0};
        o.calibration.resume = true;
        o.n_threads = 1;
        result = (struct convert_result){0};
        convert(source, parts, &o, &result);
        assert_int_equal(result.calibration.n_resumed, 2);
        convert_result_free(&result);
        support_same_file(whole, parts);
        assert_false(support_exists(work));
        unlink(parts);
    }
    free(source);
    free(text);
    free(whole);
    free(parts);
    free(work);
    free(layer);
}

static void without_resume_the_work_begins_anew(void **state) {
    char *source = support_golden_path("tiny-gqa"), *text = support_write_words(*state, 8000);
    char *file = support_path(*state, "a.pdvm"), *work = support_path(*state, "a.pdvm.work");
    char *layer = support_path(work, "layer-0000.pdvm");
    struct stop stop = {layer};
    struct convert_result result = {0};
    pdvm_error err = {0};
    solver_layer_blas();
    struct convert_options o = calibrated("wanda", 0.5, text);
    o.notify = (struct pd_notify){.progress = stop_when_there, .progress_user = &stop};
    assert_int_equal(convert_model(source, file, &o, &result, &err), PDVM_ERR_CANCELLED);
    convert_result_free(&result);
    // A damaged layer is only looked at by --resume.
    free(support_write_text(work, "layer-0000.pdvm", "no layer"));
    o.notify = (struct pd_notify){0};
    o.calibration.resume = true;
    result = (struct convert_result){0};
    assert_error(convert_model(source, file, &o, &result, &err), PDVM_ERR_FORMAT, &err,
                 "layer-0000.pdvm");
    convert_result_free(&result);
    o.calibration.resume = false;
    result = (struct convert_result){0};
    convert(source, file, &o, &result);
    assert_int_equal(result.calibration.n_resumed, 0);
    convert_result_free(&result);
    assert_false(support_exists(work));
    free(source);
    free(text);
    free(file);
    free(work);
    free(layer);
}

/* ---- requests and models that make no sense -------------------------------------------- */

static void assert_refused(const char *source, const char *dir, const struct convert_options *o,
                           pdvm_status status, const char *text) {
    char *file = support_path(dir, "refused.pdvm"), *work = support_path(dir, "refused.pdvm.work");
    struct convert_result result = {0};
    pdvm_error err = {0};
    assert_error(convert_model(source, file, o, &result, &err), status, &err, text);
    convert_result_free(&result);
    assert_false(support_exists(file));
    assert_false(support_exists(work));
    free(file);
    free(work);
}

static void requests_that_make_no_sense_are_refused(void **state) {
    char *source = support_golden_path("tiny-gqa"), *text = support_write_words(*state, 8000);
    solver_layer_blas();
    struct convert_options o = calibrated("wanda", 0.5, NULL);
    o.calibration.text = (struct calibration_options){0};
    assert_refused(source, *state, &o, PDVM_ERR_ARGUMENT, "add --calib FILE");
    o = calibrated("magnitude", 0.5, text);
    assert_refused(source, *state, &o, PDVM_ERR_ARGUMENT, "does without");
    o = calibrated("wanda", 0.5, text);
    o.scope = PRUNE_MATRIX;
    assert_refused(source, *state, &o, PDVM_ERR_ARGUMENT, "scope matrix");
    o = calibrated("wanda", -1, text);
    assert_refused(source, *state, &o, PDVM_ERR_ARGUMENT, "add --sparsity");
    o = calibrated("sparsegpt", 0, text);
    o.calibration.layers.rule = LAYER_SPARSITY_OWL;
    assert_refused(source, *state, &o, PDVM_ERR_ARGUMENT, "shares out");
    o = calibrated("keep", -1, NULL);
    o.calibration.text = (struct calibration_options){0};
    o.calibration.resume = true;
    assert_refused(source, *state, &o, PDVM_ERR_ARGUMENT, "--resume");
    free(source);
    free(text);
}

/* A copy of tiny-gqa in which weight `at` of a tensor is NaN. */
static char *write_damaged(const char *dir, const char *tensor, int64_t at) {
    static const char *const files[] = {"config.json", "tokenizer.json", "tokenizer_config.json"};
    char *source = support_golden_path("tiny-gqa"), *copy = support_path(dir, "model");
    struct safetensors *st;
    pdvm_error err = {0};
    size_t size;
    assert_int_equal(mkdir(copy, 0777), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = support_path(source, files[i]), *data = support_read_file(path, &size);
        free(support_write_file(copy, files[i], data, size));
        free(data);
        free(path);
    }
    char *path = support_path(source, "model.safetensors"), *data = support_read_file(path, &size);
    assert_ok(safetensors_open_memory(path, data, size, &st, &err), &err);
    const struct safetensors_tensor *t = safetensors_find(st, tensor);
    assert_non_null(t);
    size_t element = safetensors_dtype_size(t->dtype);
    memset(data + (t->data - (uint8_t *)data) + (size_t)at * element, 0xff, element);
    safetensors_close(st);
    free(support_write_file(copy, "model.safetensors", data, size));
    free(data);
    free(path);
    free(source);
    return copy;
}

static void weights_that_are_not_finite_are_named(void **state) {
    char *text = support_write_words(*state, 8000);
    char *dir = write_damaged(*state, "model.layers.1.mlp.up_proj.weight", 3 * 64 + 9);
    solver_layer_blas();
    struct convert_options o = calibrated("wanda", 0.5, text);
    struct convert_result result = {0};
    char *file = support_path(*state, "nan.pdvm");
    pdvm_error err = {0};
    assert_error(convert_model(dir, file, &o, &result, &err), PDVM_ERR_FORMAT, &err,
                 "model.layers.1.mlp.up_proj.weight: row 3, column 9: the weight is NaN");
    convert_result_free(&result);
    free(file);
    free(text);
    free(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_file_does_not_depend_on_the_number_of_threads,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(rows_reach_their_exact_share, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(layers_that_differ_reach_the_target_together,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(better_methods_lose_less_of_the_outputs, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(an_interrupted_run_goes_on_to_the_same_bytes,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(without_resume_the_work_begins_anew, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(requests_that_make_no_sense_are_refused, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(weights_that_are_not_finite_are_named, support_make_dir,
                                        support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
