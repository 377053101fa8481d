// Sessions at their edges: empty ones on disk, raw activations in a full rolling cache, NULL.

#include "support/session.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void a_session_without_tokens_can_be_saved_and_loaded(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "empty.session");
    pdvm_model *model = session_model(SESSION_GQA, 0, NULL);
    pdvm_session *s = session_make(model, NULL);
    const int32_t tokens[] = {1, 2, 3};
    size_t n;
    assert_ok(pdvm_session_save(s, path, &err), &err);
    assert_ok(pdvm_session_sync(s, tokens, 3, &err), &err);
    assert_ok(pdvm_session_load(s, path, &err), &err);
    pdvm_session_tokens(s, &n);
    assert_int_equal(n, 0);
    assert_null(pdvm_session_logits(s, NULL));
    assert_ok(pdvm_session_step(s, 1, &err), &err);
    pdvm_session_free(s);
    pdvm_model_close(model);
    free(path);
    support_tmpdir_remove(dir);
}

// A layer that runs at the next position takes the slot of the oldest token in a full ring, so
// texts that need that token have to be computed anew.
static void a_layer_run_in_a_full_rolling_cache_spoils_no_prefix(void **state) {
    (void)state;
    pdvm_error err;
    pdvm_model *model = session_model(SESSION_GQA, 0, NULL);
    pdvm_model_info info;
    pdvm_model_get_info(model, &info);
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = 8;
    options.rolling = true;
    options.n_sink = 2;
    pdvm_session *s = session_make(model, &options);
    const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8};
    size_t n;
    assert_ok(pdvm_session_sync(s, tokens, 8, &err), &err);
    float *expected = malloc(info.n_vocab * sizeof *expected);
    memcpy(expected, pdvm_session_logits(s, &n), info.n_vocab * sizeof *expected);
    float *x = calloc(info.hidden_size, sizeof *x);
    for (uint32_t i = 0; i < info.hidden_size; i++) x[i] = sinf((float)i);
    assert_ok(pdvm_execute_layer(s, 0, x, &err), &err);
    assert_error(pdvm_session_rewind(s, 6, &err), PDVM_ERR_RANGE, &err, "rolling");
    assert_ok(pdvm_session_sync(s, tokens, 7, &err), &err);
    assert_ok(pdvm_session_step(s, 8, &err), &err);
    assert_memory_equal(pdvm_session_logits(s, &n), expected, info.n_vocab * sizeof *expected);
    // Rewinding is allowed again: all eight rows are there.
    assert_ok(pdvm_session_rewind(s, 6, &err), &err);
    free(x);
    free(expected);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

static void null_arguments_are_errors(void **state) {
    (void)state;
    pdvm_error err;
    pdvm_model *model = session_model(SESSION_GQA, 0, NULL);
    pdvm_session *s = session_make(model, NULL), *out;
    float x[4096] = {0};
    int32_t tokens[4] = {1, 2, 3, 4};
    char text[8];
    size_t n;
    const pdvm_status bad = PDVM_ERR_ARGUMENT;
    assert_error(pdvm_session_create(NULL, NULL, &out, &err), bad, &err, "model");
    assert_error(pdvm_session_create(model, NULL, NULL, &err), bad, &err, "out");
    assert_error(pdvm_session_sync(NULL, tokens, 4, &err), bad, &err, "session");
    assert_error(pdvm_session_sync(s, NULL, 4, &err), bad, &err, "tokens");
    assert_error(pdvm_session_step(NULL, 1, &err), bad, &err, "session");
    assert_error(pdvm_session_rewind(NULL, 0, &err), bad, &err, "session");
    assert_error(pdvm_session_save(NULL, "x", &err), bad, &err, "session");
    assert_error(pdvm_session_save(s, NULL, &err), bad, &err, "path");
    assert_error(pdvm_session_load(NULL, "x", &err), bad, &err, "session");
    assert_error(pdvm_session_load(s, NULL, &err), bad, &err, "path");
    assert_error(pdvm_execute_layer(NULL, 0, x, &err), bad, &err, "session");
    assert_error(pdvm_execute_layer(s, 0, NULL, &err), bad, &err, "activation");
    assert_error(pdvm_execute_model(NULL, x, &err), bad, &err, "session");
    assert_error(pdvm_execute_model(s, NULL, &err), bad, &err, "activation");
    assert_error(pdvm_tokenize(model, NULL, 3, 0, tokens, 4, &n, &err), bad, &err, "NULL");
    assert_error(pdvm_tokenize(model, "a", 1, 0, NULL, 4, &n, &err), bad, &err, "NULL");
    assert_error(pdvm_tokenize(model, "a", 1, 0, tokens, 4, NULL, &err), bad, &err, "NULL");
    assert_error(pdvm_detokenize(model, NULL, 3, text, 8, &n, &err), bad, &err, "NULL");
    assert_error(pdvm_detokenize(model, tokens, 1, NULL, 8, &n, &err), bad, &err, "NULL");
    assert_error(pdvm_detokenize(model, tokens, 1, text, 8, NULL, &err), bad, &err, "NULL");
    // Asking only for the length is no mistake.
    assert_error(pdvm_detokenize(model, tokens, 4, NULL, 0, &n, &err), PDVM_ERR_RANGE, &err,
                 "room");
    assert_error(pdvm_tokenize(model, "a b", 3, 0, NULL, 0, &n, &err), PDVM_ERR_RANGE, &err,
                 "room");
    assert_true(n > 0);
    // The session is as it was.
    pdvm_session_tokens(s, &n);
    assert_int_equal(n, 0);
    assert_ok(pdvm_session_sync(s, tokens, 4, &err), &err);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_session_without_tokens_can_be_saved_and_loaded),
        cmocka_unit_test(a_layer_run_in_a_full_rolling_cache_spoils_no_prefix),
        cmocka_unit_test(null_arguments_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
