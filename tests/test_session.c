// Sessions against a float64 reference and against themselves: modes, prefixes, kinds of caches, raw
// activations, refusals.
// ctest: timeout=300

#include "support/reference.h"
#include "support/session.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

static const char *const models[] = {SESSION_MODELS};
#define N_MODELS (sizeof models / sizeof *models)

static void check_logits(const char *name, enum mdcsr_values values, double bound) {
    pdvm_model *model = session_model_coded(name, 2, "auto", mdcsr_values_name(values));
    pdvm_session *s = session_make(model, NULL);
    char *path = support_source_path(name);
    struct reference *r = reference_open(path, values, 0, 0);
    uint32_t n_vocab = session_vocabulary(model);
    double *expected = calloc(n_vocab, sizeof *expected);
    int32_t tokens[40];
    session_random_tokens(tokens, 40, n_vocab, 17);
    for (int t = 0; t < 40; t++) {
        session_step(s, tokens[t]);
        reference_step(r, tokens[t], expected);
        double error = reference_error(pdvm_session_logits(s, NULL), expected, n_vocab);
        if (!(error < bound)) fail_msg("%s: token %d: error %g", name, t, error);
    }
    free(expected);
    reference_free(r);
    free(path);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

static void logits_equal_the_float64_reference(void **state) {
    (void)state;
    for (size_t i = 0; i < N_MODELS; i++)
        for (int v = 0; v < MDCSR_N_VALUES; v++)
            check_logits(models[i], (enum mdcsr_values)v,
                         v <= MDCSR_F16 ? SESSION_FLOAT_ERROR : SESSION_INTEGER_ERROR);
}

static uint64_t dispatches_of_a_token(pdvm_model *model, pdvm_mode mode) {
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session_stats before, after;
    o.mode = mode;
    pdvm_session *s = session_make(model, &o);
    session_step(s, 1);
    pdvm_session_get_stats(s, &before);
    session_step(s, 2);
    pdvm_session_get_stats(s, &after);
    pdvm_session_free(s);
    return after.n_dispatches - before.n_dispatches;
}

static void modes_differ_in_dispatches_per_token(void **state) {
    (void)state;
    pdvm_model *model = session_model(SESSION_GQA, 2, "auto");
    pdvm_model_info info;
    pdvm_model_get_info(model, &info);
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_TOKEN), 1);
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_LAYER), info.n_layers);
    // and the embedding and the head
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_PHASE), 5 * info.n_layers + 2);
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_UNFUSED), 6 * info.n_layers + 2);
    pdvm_model_close(model);
}

static void sync_computes_only_what_is_not_in_the_cache(void **state) {
    (void)state;
    pdvm_model *model = session_model(SESSION_GQA, 2, "auto");
    pdvm_session *s = session_make(model, NULL), *fresh = session_make(model, NULL);
    pdvm_session_stats stats;
    int32_t tokens[100];
    session_random_tokens(tokens, 100, session_vocabulary(model), 1);
    session_sync(s, tokens, 50);
    session_sync(s, tokens, 80); // longer: 30 new
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 80);
    assert_int_equal(stats.n_reused, 50);
    session_sync(s, tokens, 80); // the same: nothing
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 80);
    tokens[60] = (tokens[60] + 1) % (int32_t)session_vocabulary(model);
    session_sync(s, tokens, 70); // differs from 60 on
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 90);
    session_sync(s, tokens, 65); // a prefix: the last token's logits are needed again
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 91);
    session_sync(fresh, tokens, 65);
    float *expected = session_logits(fresh);
    assert_same_logits(s, expected);
    free(expected);
    pdvm_session_free(s);
    pdvm_session_free(fresh);
    pdvm_model_close(model);
}

static void rewinding_and_stepping_again_gives_the_same(void **state) {
    (void)state;
    pdvm_error err;
    pdvm_model *model = session_model(SESSION_GQA, 1, "auto");
    pdvm_session *s = session_make(model, NULL);
    int32_t tokens[40];
    size_t n;
    session_random_tokens(tokens, 40, session_vocabulary(model), 2);
    session_sync(s, tokens, 40);
    float *expected = session_logits(s);
    assert_ok(pdvm_session_rewind(s, 30, &err), &err);
    assert_null(pdvm_session_logits(s, NULL));
    pdvm_session_tokens(s, &n);
    assert_int_equal(n, 30);
    for (int i = 30; i < 40; i++) session_step(s, tokens[i]);
    assert_same_logits(s, expected);
    assert_error(pdvm_session_rewind(s, 41, &err), PDVM_ERR_RANGE, &err, "41");
    free(expected);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

static void half_and_int8_caches_stay_close_to_float(void **state) {
    (void)state;
    static const struct {
        pdvm_kv_type type;
        double bound;
    } cases[] = {{PDVM_KV_F16, 2e-3}, {PDVM_KV_INT8, 3e-2}};
    pdvm_model *model = session_model(SESSION_GQA, 2, "auto");
    uint32_t n_vocab = session_vocabulary(model);
    int32_t tokens[200];
    session_random_tokens(tokens, 200, n_vocab, 8);
    pdvm_session *exact = session_make(model, NULL);
    session_sync(exact, tokens, 200);
    double *expected = calloc(n_vocab, sizeof *expected);
    for (uint32_t i = 0; i < n_vocab; i++) expected[i] = pdvm_session_logits(exact, NULL)[i];
    pdvm_session_stats exact_stats, stats;
    pdvm_session_get_stats(exact, &exact_stats);
    for (int i = 0; i < 2; i++) {
        pdvm_session_options o = pdvm_session_options_default();
        o.type_k = o.type_v = cases[i].type;
        pdvm_session *s = session_make(model, &o);
        session_sync(s, tokens, 200);
        double error = reference_error(pdvm_session_logits(s, NULL), expected, n_vocab);
        if (!(error > 0 && error < cases[i].bound)) fail_msg("type %d: error %g", i, error);
        pdvm_session_get_stats(s, &stats);
        assert_true(stats.kv_bytes < exact_stats.kv_bytes);
        pdvm_session_free(s);
    }
    free(expected);
    pdvm_session_free(exact);
    pdvm_model_close(model);
}

static void execute_layer_and_model_equal_the_reference(void **state) {
    (void)state;
    pdvm_error err;
    for (size_t i = 0; i < N_MODELS; i++) {
        pdvm_model *model = session_model_coded(models[i], 2, "auto", "f32");
        pdvm_session *layers = session_make(model, NULL), *whole = session_make(model, NULL);
        char *path = support_source_path(models[i]);
        struct reference *r = reference_open(path, MDCSR_F32, 0, 0);
        const struct model_config *c = reference_config(r);
        float *a = calloc(c->hidden_size, sizeof *a), *b = calloc(c->hidden_size, sizeof *b);
        for (int32_t token = 5; token < 15; token++) {
            reference_step(r, token, NULL);
            memcpy(a, reference_embedding(r, token), c->hidden_size * sizeof *a);
            memcpy(b, a, c->hidden_size * sizeof *b);
            assert_ok(pdvm_execute_model(whole, a, &err), &err);
            assert_true(reference_error(a, reference_hidden(r), c->hidden_size) <
                        SESSION_FLOAT_ERROR);
            for (uint32_t l = 0; l < c->n_layers; l++)
                assert_ok(pdvm_execute_layer(layers, l, b, &err), &err);
            assert_memory_equal(a, b, c->hidden_size * sizeof *a);
            // Only execute_model moves on; here a step of the same token does it.
            session_step(layers, token);
        }
        assert_error(pdvm_execute_layer(layers, c->n_layers, a, &err), PDVM_ERR_ARGUMENT, &err,
                     "layer");
        // Raw activations never count as a prefix.
        int32_t tokens[2] = {5, 6};
        pdvm_session_stats stats;
        session_sync(whole, tokens, 2);
        pdvm_session_get_stats(whole, &stats);
        assert_int_equal(stats.n_reused, 0);
        free(a);
        free(b);
        reference_free(r);
        free(path);
        pdvm_session_free(layers);
        pdvm_session_free(whole);
        pdvm_model_close(model);
    }
}

static void bad_tokens_and_lengths_are_refused(void **state) {
    (void)state;
    pdvm_error err;
    pdvm_model *model = session_model(SESSION_GQA, 1, "auto");
    pdvm_session_options o = pdvm_session_options_default();
    o.n_ctx = 8;
    pdvm_session *s = session_make(model, &o), *other;
    int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    assert_error(pdvm_session_sync(s, tokens, 0, &err), PDVM_ERR_ARGUMENT, &err, "no tokens");
    assert_error(pdvm_session_sync(s, tokens, 9, &err), PDVM_ERR_RANGE, &err, "9 tokens");
    session_sync(s, tokens, 8);
    assert_error(pdvm_session_step(s, 1, &err), PDVM_ERR_RANGE, &err, "context of 8");
    tokens[3] = (int32_t)session_vocabulary(model);
    assert_error(pdvm_session_sync(s, tokens, 8, &err), PDVM_ERR_RANGE, &err, "vocabulary");
    tokens[3] = -1;
    assert_error(pdvm_session_sync(s, tokens, 8, &err), PDVM_ERR_RANGE, &err, "token -1");
    o.n_ctx = UINT32_MAX;
    assert_error(pdvm_session_create(model, &o, &other, &err), PDVM_ERR_ARGUMENT, &err, "context");
    o.n_ctx = 8;
    o.rolling = true;
    o.n_sink = 8;
    assert_error(pdvm_session_create(model, &o, &other, &err), PDVM_ERR_ARGUMENT, &err, "sinks");
    o.mode = (pdvm_mode)9;
    assert_error(pdvm_session_create(model, &o, &other, &err), PDVM_ERR_ARGUMENT, &err, "mode");
    pdvm_session_free(s);
    pdvm_model_close(model);
}

static bool stop_halfway(void *user, const char *stage, double fraction) {
    (void)user;
    assert_string_equal(stage, "prompt");
    return fraction < 0.5;
}

static void a_cancelled_prompt_leaves_a_valid_prefix(void **state) {
    (void)state;
    pdvm_error err;
    pdvm_model *model = session_model(SESSION_GQA, 1, "auto");
    pdvm_session_options o = pdvm_session_options_default();
    o.n_batch = 16;
    o.progress = stop_halfway;
    pdvm_session *s = session_make(model, &o), *fresh = session_make(model, NULL);
    int32_t tokens[100];
    size_t n;
    session_random_tokens(tokens, 100, session_vocabulary(model), 6);
    assert_error(pdvm_session_sync(s, tokens, 100, &err), PDVM_ERR_CANCELLED, &err, "cancelled");
    pdvm_session_tokens(s, &n);
    assert_int_equal(n, 64);
    session_step(s, tokens[64]);
    pdvm_session_free(fresh);
    o.progress = NULL;
    fresh = session_make(model, &o);
    session_sync(fresh, tokens, 65);
    float *expected = session_logits(fresh);
    assert_same_logits(s, expected);
    free(expected);
    pdvm_session_free(s);
    pdvm_session_free(fresh);
    pdvm_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_the_float64_reference),
        cmocka_unit_test(modes_differ_in_dispatches_per_token),
        cmocka_unit_test(sync_computes_only_what_is_not_in_the_cache),
        cmocka_unit_test(rewinding_and_stepping_again_gives_the_same),
        cmocka_unit_test(half_and_int8_caches_stay_close_to_float),
        cmocka_unit_test(execute_layer_and_model_equal_the_reference),
        cmocka_unit_test(bad_tokens_and_lengths_are_refused),
        cmocka_unit_test(a_cancelled_prompt_leaves_a_valid_prefix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
