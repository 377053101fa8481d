// Conversion: what is in the file, against a direct computation; failures leave the old file.
// ctest: labels=threads

#include "support/hf_model.h"
#include "support/support.h"

#include "compress/convert.h"
#include "compress/scan.h"
#include "model/encoding.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Converts, and expects it to work. The options' rules are freed. */
static void convert(const char *source, const char *output, struct convert_options *o,
                    struct convert_result *result) {
    struct convert_result own = {0};
    pdvm_error err = {0};
    assert_ok(convert_model(source, output, o, result ? result : &own, &err), &err);
    settings_free(&o->plan);
    convert_result_free(&own);
}

static void assert_convert_fails(const char *source, const char *output, struct convert_options *o,
                                 pdvm_status expected, const char *text) {
    struct convert_result result = {0};
    pdvm_error err = {0};
    assert_error(convert_model(source, output, o, &result, &err), expected, &err, text);
    settings_free(&o->plan);
    convert_result_free(&result);
}

static struct model_source *open_source(const char *path) {
    struct model_source *s;
    pdvm_error err = {0};
    assert_ok(source_open(path, &s, &err), &err);
    return s;
}

static float *read_floats(struct model_source *s, const struct tensor_info *t) {
    float *w;
    pdvm_error err = {0};
    assert_ok(encoding_read_floats(s, t, NULL, &w, &err), &err);
    return w;
}

static struct prune_method magnitude(void) {
    return *prune_method_find("magnitude");
}

/*
 * The values that a matrix must have after conversion, computed without the code under test but
 * with the encoder, which has tests of its own.
 */
static void expect_matrix(float *w, const struct tensor_info *t, const struct settings_matrix *m,
                          enum prune_scope scope) {
    struct mdcsr matrix;
    struct prune_result pruned;
    pdvm_error err = {0};
    if (m->sparsity > 0) {
        if (scope == PRUNE_SCOPE_DEFAULT) scope = magnitude().scope;
        struct prune_task task = {w, t->rows, t->cols, m->sparsity, scope, NULL};
        assert_ok(magnitude().prune(&task, &pruned, &err), &err);
    }
    assert_ok(mdcsr_encode(w, t->rows, t->cols, &m->coding, NULL, &matrix, NULL, &err), &err);
    for (int64_t r = 0; r < t->rows; r++) mdcsr_decode_row(&matrix, r, w + r * t->cols);
    mdcsr_free(&matrix);
}

/* Every tensor of the converted file against what it must be. */
static void assert_file_holds(const char *file, const char *source,
                              const struct convert_options *o) {
    struct model_source *from = open_source(source), *to = open_source(file);
    assert_true(source_is_mdcsr(to));
    for (size_t i = 0; i < tensors_count(&from->config); i++) {
        struct tensor_info t;
        struct settings_matrix m;
        tensors_at(&from->config, i, &t);
        float *expected = read_floats(from, &t), *w = read_floats(to, &t);
        settings_for(&o->plan, &t, &m);
        if (t.is_matrix) expect_matrix(expected, &t, &m, o->scope);
        for (int64_t k = 0; k < t.rows * t.cols; k++) {
            if (w[k] != expected[k])
                support_fail("%s: %s: value %d is %g, not %g", file, t.name, (int)k, (double)w[k],
                             (double)expected[k]);
        }
        free(expected);
        free(w);
    }
    source_close(from);
    source_close(to);
}

static const char *const models[] = {"tiny-gqa", "tiny-odd", "tiny-pruned", "tiny-sharded"};
#define N_MODELS (sizeof models / sizeof *models)

static void every_coding_stores_what_the_encoder_gives(void **state) {
    char *file = support_path(*state, "a.pdvm");
    for (size_t i = 0; i < N_MODELS; i++) {
        char *source = support_golden_path(models[i]);
        for (int values = 0; values < MDCSR_N_VALUES; values++) {
            struct convert_options o = convert_options_default();
            o.plan.general.values = values;
            o.plan.general.index = (values + (int)i) % (MDCSR_N_INDEX + 1);
            o.plan.general.codebook = values >= MDCSR_LUT8 ? values % MDCSR_N_CODEBOOKS : -1;
            o.plan.general.group = values >= MDCSR_INT8 && i % 2 ? 32 : SETTING_UNSET;
            o.plan.embed = values % MDCSR_LUT8;
            o.n_threads = 1 + (int)i % 3;
            convert(source, file, &o, NULL);
            assert_file_holds(file, source, &o);
        }
        free(source);
    }
    free(file);
}

static void pruned_matrices_hold_what_pruning_leaves(void **state) {
    char *file = support_path(*state, "a.pdvm");
    struct prune_method method = magnitude();
    for (size_t i = 0; i < N_MODELS; i++) {
        char *source = support_golden_path(models[i]);
        struct convert_options o = convert_options_default();
        o.method = &method;
        o.scope = i % 2 ? PRUNE_MATRIX : PRUNE_ROW;
        o.plan.general.sparsity = 0.55;
        convert(source, file, &o, NULL);
        assert_file_holds(file, source, &o);
        free(source);
    }
    free(file);
}

static void rules_reach_the_file(void **state) {
    char *file = support_path(*state, "a.pdvm"), *source = support_golden_path("tiny-gqa");
    struct prune_method method = magnitude();
    struct convert_options o = convert_options_default();
    pdvm_error err = {0};
    o.method = &method;
    assert_ok(settings_add_rule(&o.plan, "down=values=lut4,index=delta4,sparsity=0.8", &err), &err);
    assert_ok(settings_add_rule(&o.plan, "model.layers.1.*=values=f16", &err), &err);
    struct convert_result result = {0};
    assert_ok(convert_model(source, file, &o, &result, &err), &err);
    assert_file_holds(file, source, &o);

    struct container *c;
    assert_ok(container_open(file, &c, &err), &err);
    const struct container_matrix *m =
        container_matrix_find(c, "model.layers.0.mlp.down_proj.weight");
    assert_int_equal(m->value_coding, MDCSR_LUT4);
    assert_int_equal(m->index_coding, MDCSR_DELTA4);
    assert_true(m->n_zeros >= m->rows * m->cols * 8 / 10 - m->rows);
    m = container_matrix_find(c, "model.layers.1.mlp.down_proj.weight");
    assert_int_equal(m->value_coding, MDCSR_F16);
    assert_int_equal(m->index_coding, MDCSR_DELTA4);
    m = container_matrix_find(c, "model.layers.0.mlp.up_proj.weight");
    assert_int_equal(m->value_coding, MDCSR_INT8);
    assert_int_equal(m->n_zeros, 0);
    container_close(c);
    convert_result_free(&result);
    settings_free(&o.plan);
    free(file);
    free(source);
}

static void side_files_travel_with_the_weights(void **state) {
    static const char *const names[] = {SOURCE_CONFIG, SOURCE_TOKENIZER, SOURCE_TOKENIZER_CONFIG,
                                        SOURCE_GENERATION_CONFIG};
    char *file = support_path(*state, "a.pdvm"), *source = support_golden_path("tiny-pruned");
    struct convert_options o = convert_options_default();
    convert(source, file, &o, NULL);
    struct model_source *from = open_source(source), *to = open_source(file);
    for (int i = 0; i < 4; i++) {
        const char *a, *b;
        size_t n, m;
        source_file(from, names[i], &a, &n);
        source_file(to, names[i], &b, &m);
        assert_true((a == NULL) == (b == NULL));
        if (a) assert_true(n == m && memcmp(a, b, n) == 0);
    }
    source_close(from);
    source_close(to);
    free(file);
    free(source);
}

static void the_file_does_not_depend_on_the_number_of_threads(void **state) {
    static const char *const names[] = {"one.pdvm", "three.pdvm"};
    static const int threads[] = {1, 3};
    struct prune_method method = magnitude();
    char *source = support_golden_path("tiny-odd"), *data[2];
    size_t size[2];
    for (int scope = 0; scope <= PRUNE_MATRIX; scope++) {
        for (int i = 0; i < 2; i++) {
            char *file = support_path(*state, names[i]);
            struct convert_options o = convert_options_default();
            o.n_threads = threads[i];
            o.method = &method;
            o.scope = (enum prune_scope)scope;
            o.plan.general.sparsity = 0.37;
            o.plan.general.values = scope ? MDCSR_LUT8 : MDCSR_LUT4;
            convert(source, file, &o, NULL);
            data[i] = support_read_file(file, &size[i]);
            free(file);
        }
        assert_int_equal(size[0], size[1]);
        assert_memory_equal(data[0], data[1], size[0]);
        free(data[0]);
        free(data[1]);
    }
    free(source);
}

static void a_pdvm_file_can_be_coded_anew(void **state) {
    char *source = support_golden_path("tiny-odd"), *first = support_path(*state, "first.pdvm");
    char *second = support_path(*state, "second.pdvm");
    struct convert_options o = convert_options_default();
    o.plan.general.values = MDCSR_LUT4;
    convert(source, first, &o, NULL);
    o = convert_options_default();
    o.plan.general.values = MDCSR_F32;
    o.plan.embed = MDCSR_F32;
    o.n_threads = 2;
    struct convert_result result = {0};
    convert(first, second, &o, &result);
    assert_file_holds(second, first, &o);
    struct report_sum total;
    report_sum(&result.report, REPORT_TOTAL, &total);
    assert_true(total.error == 0);
    convert_result_free(&result);
    free(source);
    free(first);
    free(second);
}

/* ---- the summary ----------------------------------------------------------------------- */

static void the_report_agrees_with_the_weights(void **state) {
    char *file = support_path(*state, "a.pdvm"), *source = support_golden_path("tiny-pruned");
    struct prune_method method = magnitude();
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    o.method = &method;
    o.plan.general.sparsity = 0.75;
    convert(source, file, &o, &result);
    struct model_source *from = open_source(source), *to = open_source(file);
    double squares[REPORT_N_LINES] = {0}, errors[REPORT_N_LINES] = {0};
    int64_t zeros[REPORT_N_LINES] = {0}, before[REPORT_N_LINES] = {0}, n[REPORT_N_LINES] = {0};
    for (size_t i = 0; i < tensors_count(&from->config); i++) {
        struct tensor_info t;
        tensors_at(&from->config, i, &t);
        float *w = read_floats(from, &t), *v = read_floats(to, &t);
        for (int64_t k = 0; k < t.rows * t.cols; k++) {
            int line = (int)report_line_of(t.role);
            n[line]++;
            zeros[line] += v[k] == 0;
            before[line] += w[k] == 0;
            if (!t.is_matrix) continue;
            squares[line] += (double)w[k] * w[k];
            errors[line] += ((double)w[k] - v[k]) * ((double)w[k] - v[k]);
        }
        free(w);
        free(v);
    }
    for (int i = 0; i < REPORT_TOTAL; i++) {
        n[REPORT_TOTAL] += n[i];
        before[REPORT_TOTAL] += before[i];
        squares[REPORT_TOTAL] += squares[i];
        errors[REPORT_TOTAL] += errors[i];
    }
    for (int i = 0; i < REPORT_N_LINES; i++) {
        struct report_sum s;
        report_sum(&result.report, (enum report_line)i, &s);
        assert_int_equal(s.n_weights, n[i]);
        assert_int_equal(s.source_zeros, before[i]);
        double error = errors[i] > 0 ? sqrt(errors[i] / squares[i]) : 0;
        assert_true(fabs(s.error - error) <= 1e-6 * error);
        assert_true(fabs(s.pruning_error * s.pruning_error + s.rounding_error * s.rounding_error -
                         s.error * s.error) < 1e-12);
        /* A small weight may round to zero, so there can only be more. */
        if (i != REPORT_TOTAL) assert_true(s.n_zeros <= zeros[i] && s.n_zeros >= before[i]);
    }
    struct report_sum up;
    report_sum(&result.report, REPORT_UP, &up);
    /* Rows that had more zeros before keep them. */
    assert_true(up.n_zeros >= 3 * up.n_weights / 4 && up.n_zeros < 76 * up.n_weights / 100);
    assert_string_equal(up.coding, "bitmap int8");
    source_close(from);
    source_close(to);
    convert_result_free(&result);
    free(file);
    free(source);
}

static void inspecting_a_file_gives_the_report_of_its_conversion(void **state) {
    char *file = support_path(*state, "a.pdvm"), *source = support_golden_path("tiny-gqa");
    struct prune_method method = magnitude();
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    struct report read = {0};
    struct container *c;
    json_t *metadata;
    pdvm_error err = {0};
    o.method = &method;
    o.plan.general.sparsity = 0.5;
    o.plan.general.values = MDCSR_LUT4;
    convert(source, file, &o, &result);
    struct model_source *to = open_source(file);
    assert_ok(container_open(file, &c, &err), &err);
    const char *text = safetensors_metadata(container_safetensors(c), REPORT_METADATA);
    assert_non_null(text);
    assert_ok(pd_json_parse_object(file, text, strlen(text), &metadata, &err), &err);
    assert_ok(report_from_container(c, &to->config, file, metadata, &read, &err), &err);
    assert_true(read.pruned);
    assert_int_equal(read.n, result.report.n);
    for (int i = 0; i < REPORT_N_LINES; i++) {
        struct report_sum a, b;
        report_sum(&result.report, (enum report_line)i, &a);
        report_sum(&read, (enum report_line)i, &b);
        assert_int_equal(a.n_tensors, b.n_tensors);
        assert_int_equal(a.n_weights, b.n_weights);
        assert_int_equal(a.n_zeros, b.n_zeros);
        assert_int_equal(a.source_zeros, b.source_zeros);
        assert_int_equal(a.bytes, b.bytes);
        assert_string_equal(a.coding, b.coding);
        assert_true(fabs(a.error - b.error) <= 1e-7 * a.error);
        assert_true(fabs(a.rounding_error - b.rounding_error) <= 1e-7 * a.rounding_error);
    }
    report_free(&read);

    /* Without it, and with a malformed one. */
    assert_ok(report_from_container(c, &to->config, file, NULL, &read, &err), &err);
    struct report_sum total;
    report_sum(&read, REPORT_TOTAL, &total);
    assert_true(isnan(total.error));
    report_free(&read);
    json_object_set_new(metadata, "matrices", json_array());
    assert_error(report_from_container(c, &to->config, file, metadata, &read, &err),
                 PDVM_ERR_FORMAT, &err, "matrices");
    report_free(&read);
    json_decref(metadata);
    assert_ok(scan_check(c, NULL, &err), &err);
    container_close(c);
    source_close(to);
    convert_result_free(&result);
    free(file);
    free(source);
}

static void scanning_a_directory_counts_its_zeros_and_forecasts_the_conversion(void **state) {
    struct hf_model model = {.dtype = SAFETENSORS_BF16};
    struct report report = {0}, converted = {0};
    pdvm_error err = {0};
    hf_model_write(*state, &model);
    struct model_source *s = open_source(*state);
    assert_ok(scan_source(s, NULL, NULL, &report, &converted, &err), &err);
    assert_int_equal(report.n, tensors_count(&s->config));
    for (size_t i = 0; i < report.n; i++) {
        const struct report_tensor *t = &report.tensors[i];
        int64_t zeros = 0, n = t->tensor.rows * t->tensor.cols;
        for (int64_t k = 0; k < n; k++) zeros += hf_model_value(t->tensor.name, k) == 0;
        assert_int_equal(t->n_zeros, zeros);
        assert_int_equal(t->bytes, 2 * n);
        assert_string_equal(t->coding, "BF16");
    }
    source_close(s);

    /* The forecast is what convert then does. */
    struct convert_options options = convert_options_default();
    struct convert_result result = {0};
    char *file = support_path(*state, "forecast.pdvm");
    assert_ok(convert_model(*state, file, &options, &result, &err), &err);
    assert_int_equal(converted.n, result.report.n);
    for (size_t i = 0; i < converted.n; i++) {
        const struct report_tensor *a = &converted.tensors[i], *b = &result.report.tensors[i];
        assert_string_equal(a->coding, b->coding);
        assert_int_equal(a->bytes, b->bytes);
        assert_int_equal(a->n_zeros, b->n_zeros);
        if (a->tensor.is_matrix) assert_float_equal(a->rounding_squares, b->rounding_squares, 0);
    }
    free(file);
    convert_result_free(&result);
    report_free(&converted);
    report_free(&report);
}

/* ---- failures -------------------------------------------------------------------------- */

struct countdown {
    int left;
};

static bool stop_after(void *user, const char *stage, double fraction) {
    struct countdown *c = user;
    assert_non_null(stage);
    assert_true(fraction >= 0 && fraction <= 1);
    return c->left-- > 0;
}

static void an_interrupt_leaves_the_old_file(void **state) {
    char *source = support_golden_path("tiny-gqa");
    char *old = support_write_text(*state, "old.pdvm", "what was there");
    char *none = support_path(*state, "new.pdvm");
    int calls = 0;
    for (int n = 0; n < 200; n += n < 8 ? 1 : 29) {
        for (int i = 0; i < 2; i++) {
            struct countdown c = {n};
            struct convert_options o = convert_options_default();
            o.notify = (struct pd_notify){.progress = stop_after, .progress_user = &c};
            struct convert_result result = {0};
            pdvm_error err = {0};
            pdvm_status status = convert_model(source, i ? none : old, &o, &result, &err);
            convert_result_free(&result);
            if (status == PDVM_OK) break;
            assert_error(status, PDVM_ERR_CANCELLED, &err, "");
            char *text = support_read_file(old, NULL);
            assert_string_equal(text, "what was there");
            free(text);
            assert_int_equal(support_count_entries(*state), 1);
            calls++;
        }
    }
    assert_true(calls >= 20);
    free(source);
    free(old);
    free(none);
}

static bool only_forward(void *user, const char *stage, double fraction) {
    double *last = user;
    assert_string_equal(stage, "converting");
    assert_true(fraction >= *last);
    *last = fraction;
    return true;
}

static void progress_never_goes_back_and_ends_at_one(void **state) {
    char *source = support_golden_path("tiny-sharded"), *file = support_path(*state, "a.pdvm");
    double last = 0;
    struct convert_options o = convert_options_default();
    o.notify = (struct pd_notify){.progress = only_forward, .progress_user = &last};
    convert(source, file, &o, NULL);
    assert_true(last == 1);
    free(source);
    free(file);
}

static void a_full_disk_leaves_the_old_file(void **state) {
    char *source = support_golden_path("tiny-gqa");
    char *old = support_write_text(*state, "old.pdvm", "what was there");
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    signal(SIGXFSZ, SIG_IGN);
    static const rlim_t sizes[] = {0, 1000, 100000, 250000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct convert_options o = convert_options_default();
        struct convert_result result = {0};
        pdvm_error err = {0};
        limit.rlim_cur = sizes[i];
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        pdvm_status status = convert_model(source, old, &o, &result, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_error(status, PDVM_ERR_IO, &err, "old.pdvm");
        convert_result_free(&result);
        char *text = support_read_file(old, NULL);
        assert_string_equal(text, "what was there");
        free(text);
        assert_int_equal(support_count_entries(*state), 1);
    }
    signal(SIGXFSZ, SIG_DFL);
    free(source);
    free(old);
}

static void the_source_is_never_written_over(void **state) {
    char *file = support_path(*state, "a.pdvm"), *again = support_path(*state, "link.pdvm");
    hf_model_write(*state, &(struct hf_model){.dtype = SAFETENSORS_F32});
    struct convert_options o = convert_options_default();
    convert(*state, file, &o, NULL);
    assert_int_equal(symlink(file, again), 0);
    assert_convert_fails(file, file, &o, PDVM_ERR_ARGUMENT, "is a file of the source");
    assert_convert_fails(file, again, &o, PDVM_ERR_ARGUMENT, "is a file of the source");
    assert_convert_fails(again, file, &o, PDVM_ERR_ARGUMENT, "is a file of the source");

    static const char *const own[] = {"model.safetensors", "config.json"};
    for (int i = 0; i < 2; i++) {
        char *path = support_path(*state, own[i]);
        assert_convert_fails(*state, path, &o, PDVM_ERR_ARGUMENT, own[i]);
        free(path);
    }
    /* A file that only lies beside them may be replaced. */
    convert(*state, file, &o, NULL);
    free(file);
    free(again);
}

static void every_part_of_a_split_source_is_safe(void **state) {
    static const char *const parts[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                        "m-00003-of-00003.gguf"};
    char *paths[3], *link = support_path(*state, "link.pdvm");
    pdvm_error err;
    for (int i = 0; i < 3; i++) paths[i] = support_write_text(*state, parts[i], "x");
    assert_int_equal(symlink(paths[2], link), 0);
    for (int i = 0; i < 3; i++)
        assert_error(convert_check_output(paths[0], paths[i], &err), PDVM_ERR_ARGUMENT, &err,
                     "is a file of the source");
    assert_error(convert_check_output(paths[0], link, &err), PDVM_ERR_ARGUMENT, &err, "link.pdvm");
    char *other = support_write_text(*state, "m-00004-of-00004.gguf", "x");
    assert_ok(convert_check_output(paths[0], other, &err), &err);
    assert_ok(convert_check_output(other, paths[0], &err), &err);
    for (int i = 0; i < 3; i++) free(paths[i]);
    free(other);
    free(link);
}

static void weights_that_are_no_numbers_are_named(void **state) {
    char *path = support_path(*state, "model.safetensors"), *out = support_path(*state, "a.pdvm");
    struct safetensors *st;
    pdvm_error err = {0};
    size_t size;
    hf_model_write(*state, &(struct hf_model){.dtype = SAFETENSORS_BF16});
    char *data = support_read_file(path, &size);
    assert_ok(safetensors_open_memory("model", data, size, &st, &err), &err);
    const struct safetensors_tensor *t =
        safetensors_find(st, "model.layers.1.mlp.gate_proj.weight");
    uint16_t nan = 0x7fc0;
    memcpy(data + ((const char *)t->data - data) + 2 * (3 * t->dims[1] + 5), &nan, sizeof nan);
    safetensors_close(st);
    free(support_write_file(*state, "model.safetensors", data, size));
    struct convert_options o = convert_options_default();
    assert_convert_fails(*state, out, &o, PDVM_ERR_FORMAT,
                         "model.layers.1.mlp.gate_proj.weight: row 3, column 5: the weight is NaN");
    assert_false(support_exists(out));
    free(data);
    free(path);
    free(out);
}

static void weights_too_large_for_f16_are_named(void **state) {
    char *out = support_path(*state, "a.pdvm");
    hf_model_write(*state, &(struct hf_model){.offset = 70000});
    struct convert_options o = convert_options_default();
    o.plan.general.values = MDCSR_F16;
    assert_convert_fails(*state, out, &o, PDVM_ERR_FORMAT, "model.layers.0.self_attn.q_proj");
    assert_false(support_exists(out));
    free(out);
}

static void options_that_contradict_each_other_are_explained(void **state) {
    char *source = support_golden_path("tiny-gqa"), *out = support_path(*state, "a.pdvm");
    struct prune_method method = magnitude();
    pdvm_error err = {0};
    struct convert_options o = convert_options_default();
    o.plan.general.sparsity = 0.5;
    assert_convert_fails(source, out, &o, PDVM_ERR_ARGUMENT, "add --method magnitude");
    o = convert_options_default();
    assert_ok(settings_add_rule(&o.plan, "q=sparsity=0.5", &err), &err);
    assert_convert_fails(source, out, &o, PDVM_ERR_ARGUMENT, "add --method magnitude");
    o = convert_options_default();
    o.method = &method;
    assert_convert_fails(source, out, &o, PDVM_ERR_ARGUMENT, "add --sparsity 0.5");
    assert_int_equal(support_count_entries(*state), 0);
    free(source);
    free(out);
}

static void sources_and_outputs_that_are_none_are_named(void **state) {
    char *source = support_golden_path("tiny-gqa"), *out = support_path(*state, "a.pdvm");
    char *missing = support_path(*state, "no/such/directory.pdvm");
    struct convert_options o = convert_options_default();
    assert_convert_fails("no-such-model", out, &o, PDVM_ERR_IO, "no-such-model");
    assert_convert_fails(source, missing, &o, PDVM_ERR_IO, "no/such/directory.pdvm");
    assert_convert_fails(source, *state, &o, PDVM_ERR_IO, *state);
    assert_int_equal(support_count_entries(*state), 0);
    free(source);
    free(out);
    free(missing);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_coding_stores_what_the_encoder_gives,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(pruned_matrices_hold_what_pruning_leaves, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(rules_reach_the_file, support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(side_files_travel_with_the_weights, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(the_file_does_not_depend_on_the_number_of_threads,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(a_pdvm_file_can_be_coded_anew, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(the_report_agrees_with_the_weights, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(inspecting_a_file_gives_the_report_of_its_conversion,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(
            scanning_a_directory_counts_its_zeros_and_forecasts_the_conversion, support_make_dir,
            support_remove_dir),
        cmocka_unit_test_setup_teardown(an_interrupt_leaves_the_old_file, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(progress_never_goes_back_and_ends_at_one, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(a_full_disk_leaves_the_old_file, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(the_source_is_never_written_over, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(every_part_of_a_split_source_is_safe, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(weights_that_are_no_numbers_are_named, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(weights_too_large_for_f16_are_named, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(options_that_contradict_each_other_are_explained,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(sources_and_outputs_that_are_none_are_named,
                                        support_make_dir, support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
