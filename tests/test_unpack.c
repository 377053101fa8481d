// Unpacking: the values of the file, exactly; directories and failures.

#include "support/hf_model.h"
#include "support/support.h"

#include "base/half.h"
#include "compress/convert.h"
#include "compress/unpack.h"
#include "model/encoding.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* Converts the golden model `name` to DIR/model.pdvm and returns the path. */
static char *make_pdvm(const char *dir, const char *name, int values) {
    char *goldens = support_source_path("tests/golden");
    char *source = support_path(goldens, name), *file = support_path(dir, "model.pdvm");
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    pdvm_error err = {0};
    o.plan.general.values = values;
    assert_ok(convert_model(source, file, &o, &result, &err), &err);
    convert_result_free(&result);
    free(goldens);
    free(source);
    return file;
}

static struct unpack_options f32_options(void) {
    return (struct unpack_options){.dtype = SAFETENSORS_F32, .n_threads = 2};
}

static void unpack(const char *file, const char *dir, const struct unpack_options *o,
                   struct unpack_result *result) {
    struct unpack_result own;
    pdvm_error err = {0};
    assert_ok(unpack_model(file, dir, o, result ? result : &own, &err), &err);
}

static void assert_unpack_fails(const char *file, const char *dir, const struct unpack_options *o,
                                pdvm_status expected, const char *text) {
    struct unpack_result result;
    pdvm_error err = {0};
    assert_error(unpack_model(file, dir, o, &result, &err), expected, &err, text);
}

static float narrow(float x, enum safetensors_dtype dtype) {
    switch (dtype) {
    case SAFETENSORS_BF16: return pd_bf16_to_float(pd_float_to_bf16(x));
    case SAFETENSORS_F16: return pd_f16_to_float(pd_float_to_f16(x));
    default: return x;
    }
}

/* The directory must open as a model and hold the file's values; returns how many were rounded. */
static int64_t assert_same_values(const char *file, const char *dir, enum safetensors_dtype dtype) {
    struct model_source *from, *to;
    pdvm_error err = {0};
    int64_t rounded = 0;
    assert_ok(source_open(file, &from, &err), &err);
    assert_ok(source_open(dir, &to, &err), &err);
    assert_false(source_is_mdcsr(to));
    assert_int_equal(tensors_count(&from->config), tensors_count(&to->config));
    for (size_t i = 0; i < tensors_count(&from->config); i++) {
        struct tensor_info t;
        float *a, *b;
        tensors_at(&from->config, i, &t);
        assert_ok(encoding_read_floats(from, &t, NULL, &a, &err), &err);
        assert_ok(encoding_read_floats(to, &t, NULL, &b, &err), &err);
        for (int64_t k = 0; k < t.rows * t.cols; k++) {
            if (b[k] != narrow(a[k], dtype))
                support_fail("%s: value %d is %.9g, not %.9g", t.name, (int)k, (double)b[k],
                             (double)a[k]);
            rounded += b[k] != a[k];
        }
        free(a);
        free(b);
    }
    source_close(from);
    source_close(to);
    return rounded;
}

static void every_value_comes_back_exactly(void **state) {
    static const char *const names[] = {"tiny-gqa", "tiny-odd", "tiny-pruned", "tiny-phi3"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int values = 0; values < MDCSR_N_VALUES; values++) {
            char *file = make_pdvm(*state, names[i], values);
            char *dir = support_path(*state, "out");
            struct unpack_options o = f32_options();
            struct unpack_result result;
            o.force = true;
            unpack(file, dir, &o, &result);
            assert_int_equal(assert_same_values(file, dir, SAFETENSORS_F32), 0);
            assert_int_equal(result.n_changed, 0);
            free(file);
            free(dir);
        }
    }
}

static void the_source_comes_back_from_lossless_codings(void **state) {
    char *source = support_path(*state, "source"), *file = support_path(*state, "a.pdvm");
    char *dir = support_path(*state, "out");
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    pdvm_error err = {0};
    assert_int_equal(mkdir(source, 0700), 0);
    hf_model_write(source, &(struct hf_model){.dtype = SAFETENSORS_BF16, .tied = true});
    o.plan.general.values = o.plan.embed = MDCSR_BF16;
    assert_ok(convert_model(source, file, &o, &result, &err), &err);
    convert_result_free(&result);
    struct unpack_options u = f32_options();
    unpack(file, dir, &u, NULL);
    struct model_source *s;
    assert_ok(source_open(dir, &s, &err), &err);
    for (size_t i = 0; i < tensors_count(&s->config); i++) {
        struct tensor_info t;
        float *w;
        tensors_at(&s->config, i, &t);
        assert_ok(encoding_read_floats(s, &t, NULL, &w, &err), &err);
        for (int64_t k = 0; k < t.rows * t.cols; k++)
            assert_true(w[k] == hf_model_value(t.name, k));
        free(w);
    }
    source_close(s);
    free(source);
    free(file);
    free(dir);
}

static float *logits_of(const char *path, size_t *n) {
    pdvm_error err = {0};
    pdvm_model *model;
    pdvm_session *session;
    pdvm_model_options o = pdvm_model_options_default();
    const int32_t tokens[] = {3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 26, 43, 38, 32, 79};
    o.values = "bf16";
    o.n_threads = 2;
    assert_ok(pdvm_model_open(path, &o, &model, &err), &err);
    assert_ok(pdvm_session_create(model, NULL, &session, &err), &err);
    assert_ok(pdvm_session_sync(session, tokens, sizeof tokens / sizeof *tokens, &err), &err);
    const float *logits = pdvm_session_logits(session, n);
    float *copy = malloc(*n * sizeof *copy);
    memcpy(copy, logits, *n * sizeof *copy);
    pdvm_session_free(session);
    pdvm_model_close(model);
    return copy;
}

static struct safetensors *open_weights(const char *dir) {
    struct safetensors *st;
    pdvm_error err = {0};
    char *path = support_path(dir, "model.safetensors");
    assert_ok(safetensors_open(path, &st, &err), &err);
    free(path);
    return st;
}

/* Biases, norms of heads and fused matrices included: transformers can read what is written. */
static void checkpoints_of_every_architecture_come_back_tensor_by_tensor(void **state) {
    static const char *const names[] = {"tiny-llama3", "tiny-linear", "tiny-yarn", "tiny-mistral",
                                        "tiny-qwen2",  "tiny-qwen3",  "tiny-phi3"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *goldens = support_source_path("tests/golden"),
             *source = support_path(goldens, names[i]);
        char *file = support_path(*state, "a.pdvm"), *dir = support_path(*state, "out");
        struct convert_options o = convert_options_default();
        struct convert_result result = {0};
        pdvm_error err = {0};
        o.plan.general.values = o.plan.embed = MDCSR_BF16;
        assert_ok(convert_model(source, file, &o, &result, &err), &err);
        convert_result_free(&result);
        struct unpack_options u = {.dtype = SAFETENSORS_BF16, .n_threads = 2, .force = true};
        unpack(file, dir, &u, NULL);
        struct safetensors *from = open_weights(source), *to = open_weights(dir);
        assert_int_equal(safetensors_count(from), safetensors_count(to));
        for (size_t k = 0; k < safetensors_count(from); k++) {
            const struct safetensors_tensor *a = safetensors_at(from, k);
            const struct safetensors_tensor *b = safetensors_find(to, a->name);
            if (!b) support_fail("%s: no %s", names[i], a->name);
            assert_int_equal(a->dtype, b->dtype);
            assert_int_equal(a->n_dims, b->n_dims);
            for (int d = 0; d < a->n_dims; d++) assert_int_equal(a->dims[d], b->dims[d]);
            assert_int_equal(a->size, b->size);
            assert_memory_equal(a->data, b->data, a->size);
        }
        safetensors_close(from);
        safetensors_close(to);
        size_t n, n_file;
        float *expected = logits_of(source, &n), *logits = logits_of(file, &n_file);
        assert_int_equal(n, n_file);
        assert_memory_equal(logits, expected, n * sizeof *logits);
        free(logits);
        free(expected);
        free(goldens);
        free(source);
        free(file);
        free(dir);
    }
}

static void half_types_count_what_they_round(void **state) {
    static const enum safetensors_dtype dtypes[] = {SAFETENSORS_BF16, SAFETENSORS_F16};
    char *file = make_pdvm(*state, "tiny-gqa", MDCSR_INT8), *dir = support_path(*state, "out");
    for (int i = 0; i < 2; i++) {
        struct unpack_options o = f32_options();
        struct unpack_result result;
        o.dtype = dtypes[i];
        o.force = true;
        unpack(file, dir, &o, &result);
        int64_t rounded = assert_same_values(file, dir, dtypes[i]);
        assert_true(rounded > 0);
        assert_int_equal(result.n_changed, rounded);
    }
    free(file);
    free(dir);
}

static void the_configuration_tells_the_dtype_that_was_written(void **state) {
    static const struct {
        enum safetensors_dtype dtype;
        const char *text;
    } cases[] = {{SAFETENSORS_F32, "\"torch_dtype\": \"float32\""},
                 {SAFETENSORS_BF16, "\"torch_dtype\": \"bfloat16\""},
                 {SAFETENSORS_F16, "\"torch_dtype\": \"float16\""}};
    char *file = make_pdvm(*state, "tiny-gqa", MDCSR_INT8), *dir = support_path(*state, "out");
    char *config = support_path(dir, "config.json");
    for (int i = 0; i < 3; i++) {
        struct unpack_options o = f32_options();
        o.dtype = cases[i].dtype;
        o.force = true;
        unpack(file, dir, &o, NULL);
        char *text = support_read_file(config, NULL);
        assert_non_null(strstr(text, cases[i].text));
        assert_non_null(strstr(text, "\"hidden_size\": 64"));
        free(text);
    }
    char *tokenizer = support_path(dir, "tokenizer.json");
    assert_true(support_exists(tokenizer));
    free(tokenizer);
    free(config);
    free(file);
    free(dir);
}

static void a_directory_with_something_in_it_is_left_alone(void **state) {
    char *file = make_pdvm(*state, "tiny-gqa", MDCSR_INT8), *dir = support_path(*state, "out");
    struct unpack_options o = f32_options();
    assert_int_equal(mkdir(dir, 0700), 0);
    char *note = support_write_text(dir, "note.txt", "keep me");
    assert_unpack_fails(file, dir, &o, PDVM_ERR_ARGUMENT, "--force");
    assert_int_equal(support_count_entries(dir), 1);
    o.force = true;
    unpack(file, dir, &o, NULL);
    assert_true(support_exists(note));
    assert_same_values(file, dir, SAFETENSORS_F32);
    free(note);
    free(file);
    free(dir);
}

static void the_file_itself_is_never_written_over(void **state) {
    char *file = make_pdvm(*state, "tiny-gqa", MDCSR_INT8), *dir = support_path(*state, "out");
    char *inside = support_path(dir, "model.safetensors");
    struct unpack_options o = f32_options();
    o.force = true;
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(rename(file, inside), 0);
    size_t before, after;
    free(support_read_file(inside, &before));
    assert_unpack_fails(inside, dir, &o, PDVM_ERR_ARGUMENT, "is a file of the source");
    free(support_read_file(inside, &after));
    assert_int_equal(before, after);
    assert_int_equal(support_count_entries(dir), 1);
    free(inside);
    free(file);
    free(dir);
}

static bool stop_soon(void *user, const char *stage, double fraction) {
    int *left = user;
    (void)stage;
    (void)fraction;
    return (*left)-- > 0;
}

static void failures_leave_no_directory(void **state) {
    char *file = make_pdvm(*state, "tiny-gqa", MDCSR_INT8), *dir = support_path(*state, "out");
    for (int n = 0; n < 20; n += 6) {
        int left = n;
        struct unpack_options o = f32_options();
        o.notify = (struct pd_notify){.progress = stop_soon, .progress_user = &left};
        assert_unpack_fails(file, dir, &o, PDVM_ERR_CANCELLED, "");
        assert_false(support_exists(dir));
    }
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 50000;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct unpack_options o = f32_options();
    struct unpack_result result;
    pdvm_error err = {0};
    pdvm_status status = unpack_model(file, dir, &o, &result, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_error(status, PDVM_ERR_IO, &err, "model.safetensors");
    assert_false(support_exists(dir));
    free(file);
    free(dir);
}

// One flipped bit of a weight's code makes another valid code.
static void a_flipped_bit_is_noticed(void **state) {
    char *file = make_pdvm(*state, "tiny-gqa", MDCSR_INT8), *dir = support_path(*state, "out");
    size_t size;
    char *data = support_read_file(file, &size);
    data[size - 9] ^= 1;
    free(support_write_file(*state, "flipped.pdvm", data, size));
    free(data);
    char *flipped = support_path(*state, "flipped.pdvm");
    struct unpack_options o = f32_options();
    assert_unpack_fails(flipped, dir, &o, PDVM_ERR_FORMAT, "the file is damaged");
    assert_false(support_exists(dir));
    free(flipped);
    free(file);
    free(dir);
}

static void what_cannot_be_unpacked_is_named(void **state) {
    char *file = support_path(*state, "large.pdvm"), *dir = support_path(*state, "out");
    char *source = support_path(*state, "source");
    struct unpack_options o = f32_options();
    struct convert_options c = convert_options_default();
    struct convert_result result = {0};
    pdvm_error err = {0};
    assert_int_equal(mkdir(source, 0700), 0);
    hf_model_write(source, &(struct hf_model){.offset = 70000});
    assert_unpack_fails(source, dir, &o, PDVM_ERR_ARGUMENT, "needs no unpacking");
    assert_ok(convert_model(source, file, &c, &result, &err), &err);
    convert_result_free(&result);
    o.dtype = SAFETENSORS_F16;
    assert_unpack_fails(file, dir, &o, PDVM_ERR_RANGE, "model.embed_tokens.weight");
    assert_false(support_exists(dir));
    assert_unpack_fails("no-such-file.pdvm", dir, &o, PDVM_ERR_IO, "no-such-file.pdvm");
    char *taken = support_write_text(*state, "taken", "a file");
    assert_unpack_fails(file, taken, &o, PDVM_ERR_IO, "not a directory");
    free(taken);
    free(source);
    free(file);
    free(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_value_comes_back_exactly, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(the_source_comes_back_from_lossless_codings,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(
            checkpoints_of_every_architecture_come_back_tensor_by_tensor, support_make_dir,
            support_remove_dir),
        cmocka_unit_test_setup_teardown(half_types_count_what_they_round, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(the_configuration_tells_the_dtype_that_was_written,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(a_directory_with_something_in_it_is_left_alone,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(the_file_itself_is_never_written_over, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(failures_leave_no_directory, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(a_flipped_bit_is_noticed, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(what_cannot_be_unpacked_is_named, support_make_dir,
                                        support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
