/* Exchanging single matrices of an open model, and timing its steps: what planning stands on. */
#include "compress/convert.h"
#include "engine/engine.h"
#include "eval/speed.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKENS 20

static const int32_t *tokens(void) {
    static int32_t ids[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++) ids[i] = (i * 37 + 11) % 512;
    return ids;
}

static pdvm_model *open_model(const char *path) {
    pdvm_error err;
    pdvm_model *model;
    assert_ok(pdvm_model_open(path, NULL, &model, &err), &err);
    return model;
}

/* The logits after some tokens; freed with free(). */
static float *logits_of(pdvm_model *model) {
    pdvm_error err;
    pdvm_session *session;
    size_t n;
    assert_ok(pdvm_session_create(model, NULL, &session, &err), &err);
    assert_ok(pdvm_session_sync(session, tokens(), N_TOKENS, &err), &err);
    const float *logits = pdvm_session_logits(session, &n);
    float *copy = malloc(n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, logits, n * sizeof *copy);
    pdvm_session_free(session);
    return copy;
}

/* A file in which one matrix is coded as lut4, the others as int8. */
static void convert_one(const char *source, const char *path, const char *name) {
    pdvm_error err;
    char rule[160];
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    snprintf(rule, sizeof rule, "%s=values=lut4", name);
    assert_ok(settings_add_rule(&o.plan, rule, &err), &err);
    assert_ok(convert_model(source, path, &o, &result, &err), &err);
    convert_result_free(&result);
    settings_free(&o.plan);
}

static struct backend_matrix *load(pdvm_model *into, struct model_source *from,
                                   const struct tensor_info *t) {
    pdvm_error err;
    struct mdcsr m = {0};
    struct backend_matrix *out;
    assert_ok(source_read_mdcsr(from, t, &m, &err), &err);
    assert_ok(into->backend->ops->load_matrix(into->backend, &m, MATRIX_PRODUCT, &out, &err), &err);
    mdcsr_free(&m);
    return out;
}

static void an_exchanged_matrix_counts_as_if_it_had_been_loaded(void **state) {
    static const enum tensor_role roles[] = {TENSOR_Q,    TENSOR_K,  TENSOR_V,   TENSOR_O,
                                             TENSOR_GATE, TENSOR_UP, TENSOR_DOWN};
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir(), *path = support_path(dir, "one.pdvm");
    char *source = support_source_path("tests/golden/tiny-gqa");
    pdvm_model *model = open_model(source);
    float *before = logits_of(model);
    size_t size = model->config.n_vocab * sizeof *before;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        uint32_t layer = (uint32_t)i % model->config.n_layers;
        struct tensor_info t;
        tensors_describe(&model->config, roles[i], layer, &t);
        convert_one(source, path, t.name);
        pdvm_model *whole = open_model(path);
        float *expected = logits_of(whole);
        struct backend_matrix *matrix = load(model, whole->source, &t);
        assert_memory_not_equal(expected, before, size);

        assert_ok(model_exchange_matrix(model, roles[i], layer, &matrix, &err), &err);
        float *exchanged = logits_of(model);
        assert_memory_equal(exchanged, expected, size);
        assert_ok(model_exchange_matrix(model, roles[i], layer, &matrix, &err), &err);
        float *back = logits_of(model);
        assert_memory_equal(back, before, size);

        model->backend->ops->free_matrix(model->backend, matrix);
        free(expected);
        free(exchanged);
        free(back);
        pdvm_model_close(whole);
    }
    struct backend_matrix *none = NULL;
    assert_error(model_exchange_matrix(model, TENSOR_EMBED, 0, &none, &err), PDVM_ERR_ARGUMENT,
                 &err, "no matrix of the layers");
    assert_error(model_exchange_matrix(model, TENSOR_Q, model->config.n_layers, &none, &err),
                 PDVM_ERR_ARGUMENT, &err, "no matrix of the layers");
    free(before);
    pdvm_model_close(model);
    free(source);
    free(path);
    support_tmpdir_remove(dir);
}

static void phases_make_up_a_step(void **state) {
    (void)state;
    pdvm_error err;
    struct speed_result speed;
    char *source = support_source_path("tests/golden/tiny-gqa");
    pdvm_model *model = open_model(source);
    assert_ok(speed_measure(model, tokens(), N_TOKENS, &speed, &err), &err);
    double sum = speed.rest;
    for (int k = 0; k < SPEED_N_PHASES; k++) {
        assert_true(speed.phases[k] > 0);
        sum += speed.phases[k];
    }
    /* Medians of parts need not add up to the median of the whole, but nearly. */
    assert_true(speed.token > 0 && sum >= speed.token && sum < 2 * speed.token);
    pdvm_model_close(model);
    free(source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_exchanged_matrix_counts_as_if_it_had_been_loaded),
        cmocka_unit_test(phases_make_up_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
