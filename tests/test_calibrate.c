// Calibration: the streamed hidden states against the engine's, the Hessians against their
// definition, and what a text must be.
// ctest: labels=threads

#include "support/hf_model.h"
#include "support/solver_layer.h"
#include "support/support.h"

#include "compress/calibrate.h"
#include "compress/convert.h"
#include "model/encoding.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEQ 150

static struct model_source *open_source(const char *path) {
    struct model_source *s;
    pdvm_error err = {0};
    assert_ok(source_open(path, &s, &err), &err);
    return s;
}

static void read_layer(struct model_source *s, uint32_t layer, struct layer_weights *w) {
    pdvm_error err = {0};
    *w = (struct layer_weights){.layer = layer};
    for (int role = TENSOR_INPUT_NORM; role < TENSOR_FINAL_NORM; role++) {
        struct tensor_info t;
        if (!tensors_has(&s->config, (enum tensor_role)role)) continue;
        tensors_describe(&s->config, (enum tensor_role)role, layer, &t);
        assert_ok(encoding_read_floats(s, &t, NULL, &w->t[role], &err), &err);
    }
}

static void free_layer(struct layer_weights *w) {
    for (int role = 0; role < TENSOR_N_ROLES; role++) free(w->t[role]);
}

static void open_calibration(struct model_source *s, const char *dir, struct pd_threads *threads,
                             struct calibration *c) {
    char *path = support_write_words(dir, 12000);
    struct calibration_options o = {.path = path, .n_tokens = 6 * SEQ, .seq = SEQ};
    struct pd_notify notify = {0};
    pdvm_error err = {0};
    assert_ok(calibration_open(s, &o, true, threads, &notify, path, c, &err), &err);
    assert_int_equal(c->n_windows, 6);
    free(path);
}

/* ---- hidden states --------------------------------------------------------------------- */

/* The residual streams of the windows from the engine, token by token. */
static void expect_engine_states(const char *model, const struct calibration *c,
                                 const float *embedded, const char *name) {
    pdvm_model *m;
    pdvm_session *session;
    pdvm_error err = {0};
    int64_t h = c->config->hidden_size;
    float *x = malloc((size_t)h * sizeof *x);
    pdvm_session_options options = pdvm_session_options_default();
    options.type_k = options.type_v = PDVM_KV_F32;
    assert_ok(pdvm_model_open(model, NULL, &m, &err), &err);
    for (int64_t w = 0; w < 2; w++) {
        double error = 0, norm = 0;
        assert_ok(pdvm_session_create(m, &options, &session, &err), &err);
        for (int64_t t = w * SEQ; t < (w + 1) * SEQ; t++) {
            memcpy(x, embedded + t * h, (size_t)h * sizeof *x);
            assert_ok(pdvm_execute_model(session, x, &err), &err);
            for (int64_t i = 0; i < h; i++) {
                double d = (double)((float *)c->x.data)[t * h + i] - (double)x[i];
                error += d * d;
                norm += (double)x[i] * (double)x[i];
            }
        }
        if (!(sqrt(error / norm) < 1e-4))
            support_fail("%s, window %d: relative error %g", name, (int)w, sqrt(error / norm));
        pdvm_session_free(session);
    }
    pdvm_model_close(m);
    free(x);
}

static void check_states(const char *dir, const char *name) {
    char *path = support_golden_path(name), *file = support_path(dir, "f32.pdvm");
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    struct calibration c;
    struct mdcsr embedding;
    struct tensor_info t;
    struct pd_threads *threads;
    pdvm_error err = {0};
    o.plan.general.values = o.plan.embed = MDCSR_F32;
    assert_ok(convert_model(path, file, &o, &result, &err), &err);
    convert_result_free(&result);
    assert_ok(pd_threads_create(2, &threads, &err), &err);
    struct model_source *s = open_source(file);
    open_calibration(s, dir, threads, &c);
    tensors_describe(&s->config, TENSOR_EMBED, 0, &t);
    assert_ok(source_read_mdcsr(s, &t, &embedding, &err), &err);
    calibration_embed(&c, &embedding);
    mdcsr_free(&embedding);
    size_t size = (size_t)(c.n_windows * c.seq * s->config.hidden_size) * sizeof(float);
    float *embedded = malloc(size);
    memcpy(embedded, c.x.data, size);
    for (uint32_t l = 0; l < s->config.n_layers; l++) {
        struct layer_weights w;
        read_layer(s, l, &w);
        for (int stage = 0; stage < CALIBRATION_N_STAGES; stage++)
            assert_ok(calibration_stage(&c, &w, (enum calibration_stage)stage, false, NULL, &err),
                      &err);
        assert_ok(calibration_end_layer(&c, &w, &err), &err);
        free_layer(&w);
    }
    expect_engine_states(file, &c, embedded, name);
    calibration_free(&c);
    source_close(s);
    pd_threads_free(threads);
    free(embedded);
    free(path);
    free(file);
}

static void hidden_states_are_the_engines(void **state) {
    static const char *const models[] = {"tiny-gqa",    "tiny-odd",   "tiny-llama3", "tiny-yarn",
                                         "tiny-linear", "tiny-qwen2", "tiny-qwen3",  "tiny-mistral",
                                         "tiny-phi3",   "tiny-pruned"};
    solver_layer_blas();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) check_states(*state, models[i]);
}

/* ---- moments --------------------------------------------------------------------------- */

/* H = (2 / N) sum of x x^T in double, from the inputs x[n, cols]. */
static void expect_moments(const struct calibration_moments *m, const float *x, int64_t n,
                           int64_t cols) {
    for (int64_t i = 0; i < cols; i++) {
        for (int64_t j = i; j < cols; j++) {
            double sum = 0, a = 0, b = 0;
            for (int64_t t = 0; t < n; t++) {
                sum += (double)x[t * cols + i] * (double)x[t * cols + j];
                a += (double)x[t * cols + i] * (double)x[t * cols + i];
                b += (double)x[t * cols + j] * (double)x[t * cols + j];
            }
            double difference = m->hessian.h[i * cols + j] - 2 * sum / (double)n;
            assert_true(fabs(difference) <= 1e-6 * 2 * sqrt(a * b) / (double)n);
            assert_true(m->hessian.h[j * cols + i] == m->hessian.h[i * cols + j]);
        }
        assert_true(m->diagonal[i] == m->hessian.h[i * cols + i]);
    }
}

static void hessians_are_the_mean_of_the_inputs_squares(void **state) {
    char *path = support_golden_path("tiny-odd");
    struct model_source *s = open_source(path);
    struct calibration c;
    struct calibration_moments m = {0}, norms = {0};
    struct layer_weights w;
    struct mdcsr embedding;
    struct tensor_info t;
    pdvm_error err = {0};
    solver_layer_blas();
    open_calibration(s, *state, NULL, &c);
    int64_t h = s->config.hidden_size, n = c.n_windows * c.seq;
    tensors_describe(&s->config, TENSOR_EMBED, 0, &t);
    assert_ok(encoding_load(s, &t, MDCSR_BF16, NULL, &embedding, &err), &err);
    calibration_embed(&c, &embedding);
    mdcsr_free(&embedding);
    read_layer(s, 0, &w);

    float *normed = malloc((size_t)(n * h) * sizeof *normed);
    for (int64_t i = 0; i < n; i++) {
        const float *x = (float *)c.x.data + i * h;
        double squares = 0;
        for (int64_t j = 0; j < h; j++) squares += (double)x[j] * (double)x[j];
        for (int64_t j = 0; j < h; j++)
            normed[i * h + j] =
                (float)((double)x[j] / sqrt(squares / (double)h + s->config.rms_norm_eps) *
                        (double)w.t[TENSOR_INPUT_NORM][j]);
    }
    assert_ok(calibration_stage(&c, &w, CALIBRATION_QKV, true, &m, &err), &err);
    expect_moments(&m, normed, n, h);
    assert_ok(calibration_stage(&c, &w, CALIBRATION_QKV, false, &norms, &err), &err);
    assert_null(norms.hessian.h);
    for (int64_t j = 0; j < h; j++)
        assert_true(fabs(norms.diagonal[j] - m.diagonal[j]) <= 1e-5 * m.diagonal[j]);
    calibration_moments_free(&m);
    calibration_moments_free(&norms);

    assert_ok(calibration_stage(&c, &w, CALIBRATION_OUT, true, &m, &err), &err);
    expect_moments(&m, c.inner.data, n, calibration_cols(&c, CALIBRATION_OUT));
    calibration_moments_free(&m);
    assert_ok(calibration_stage(&c, &w, CALIBRATION_GATE_UP, true, &m, &err), &err);
    calibration_moments_free(&m);
    assert_ok(calibration_stage(&c, &w, CALIBRATION_DOWN, true, &m, &err), &err);
    expect_moments(&m, c.inner.data, n, calibration_cols(&c, CALIBRATION_DOWN));
    calibration_moments_free(&m);
    free_layer(&w);
    free(normed);
    calibration_free(&c);
    source_close(s);
    free(path);
}

static void infinite_activations_name_their_place(void **state) {
    char *path = support_golden_path("tiny-gqa");
    struct model_source *s = open_source(path);
    struct calibration c;
    struct layer_weights w;
    pdvm_error err = {0};
    solver_layer_blas();
    open_calibration(s, *state, NULL, &c);
    int64_t h = s->config.hidden_size;
    for (int64_t i = 0; i < c.n_windows * c.seq * h; i++) ((float *)c.x.data)[i] = 0.5f;
    ((float *)c.x.data)[(2 * SEQ + 7) * h + 5] = INFINITY;
    read_layer(s, 1, &w);
    assert_error(calibration_stage(&c, &w, CALIBRATION_QKV, true, NULL, &err), PDVM_ERR_FORMAT,
                 &err, "layer 1, inputs of q, k and v: ");
    assert_non_null(strstr(err.message, "at token 7 of calibration window 2, column 5"));
    // Finite inputs whose scores overflow.
    ((float *)c.x.data)[(2 * SEQ + 7) * h + 5] = 0.5f;
    for (int64_t i = 0; i < w.layer + 2; i++) w.t[TENSOR_Q][i] = 3e38f;
    assert_ok(calibration_stage(&c, &w, CALIBRATION_QKV, true, NULL, &err), &err);
    assert_error(calibration_stage(&c, &w, CALIBRATION_OUT, true, NULL, &err), PDVM_ERR_FORMAT,
                 &err, "inputs of o: NaN at token 0");
    free_layer(&w);
    calibration_free(&c);
    source_close(s);
    free(path);
}

/* ---- texts ----------------------------------------------------------------------------- */

static void texts_that_cannot_calibrate_are_refused(void **state) {
    char *model = support_golden_path("tiny-gqa"), *few = support_path(*state, "few.txt");
    struct model_source *s = open_source(model);
    char *words = support_write_words(*state, 12000);
    struct pd_notify notify = {0};
    struct calibration c;
    char text[4096];
    pdvm_error err = {0};
    solver_layer_blas();
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    free(support_write_text(*state, "few.txt", text));
    struct calibration_options o = {.path = few, .n_tokens = 128, .seq = 64};
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_ARGUMENT,
                 &err, "different tokens");
    free(support_write_text(*state, "few.txt", "Once upon a time."));
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_ARGUMENT,
                 &err, "fewer than one window of 64");
    free(support_write_text(*state, "few.txt", ""));
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_ARGUMENT,
                 &err, "fewer than one window of 64");
    free(support_write_text(*state, "few.txt", "caf\xe9"));
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_ARGUMENT,
                 &err, "few.txt");
    o.path = words;
    o.n_tokens = 63;
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_ARGUMENT,
                 &err, "63 calibration tokens are less than one window of 64");
    o.seq = 257;
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_ARGUMENT,
                 &err, "the model's context is 256");
    o = (struct calibration_options){.path = "no-such.txt"};
    assert_error(calibration_open(s, &o, true, NULL, &notify, few, &c, &err), PDVM_ERR_IO, &err,
                 "no-such.txt");
    source_close(s);
    free(model);
    free(few);
    free(words);
}

// Windows cover the text from its beginning to its end, without overlap.
static void windows_are_spread_over_the_text(void **state) {
    char *path = support_golden_path("tiny-gqa"), *words = support_write_words(*state, 12000);
    struct model_source *s = open_source(path);
    struct pd_notify notify = {0};
    struct calibration few, all;
    pdvm_error err = {0};
    solver_layer_blas();
    struct calibration_options o = {.path = words, .n_tokens = 1 << 20, .seq = 16};
    assert_ok(calibration_open(s, &o, true, NULL, &notify, words, &all, &err), &err);
    o.n_tokens = 5 * 16 + 3;
    assert_ok(calibration_open(s, &o, true, NULL, &notify, words, &few, &err), &err);
    assert_int_equal(few.n_windows, 5);
    assert_true(all.n_windows > 50);
    assert_memory_equal(few.ids, all.ids, 16 * sizeof *few.ids);
    assert_memory_equal(few.ids + 4 * 16, all.ids + (all.n_windows - 1) * 16, 16 * sizeof *few.ids);
    calibration_free(&few);
    calibration_free(&all);
    source_close(s);
    free(path);
    free(words);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(hidden_states_are_the_engines, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(hessians_are_the_mean_of_the_inputs_squares,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(infinite_activations_name_their_place, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(texts_that_cannot_calibrate_are_refused, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(windows_are_spread_over_the_text, support_make_dir,
                                        support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
