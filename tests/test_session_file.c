// Saved sessions: they go on with the same bits, and neither others nor damaged ones are taken.

#include "base/random.h"
#include "support/session.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

static void saved_sessions_continue_with_identical_bits(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "s.session");
    pdvm_model *model = session_model(SESSION_GQA, 2, "auto");
    int32_t tokens[70];
    session_random_tokens(tokens, 70, session_vocabulary(model), 21);
    for (int type = 0; type < 3; type++) {
        for (int rolling = 0; rolling < 2; rolling++) {
            pdvm_session_options o = pdvm_session_options_default();
            o.type_k = (pdvm_kv_type)type;
            o.type_v = (pdvm_kv_type)((type + 1) % 3);
            o.rolling = rolling;
            o.n_ctx = rolling ? 32 : 128;
            pdvm_session *a = session_make(model, &o), *b = session_make(model, &o);
            session_sync(a, tokens, 60);
            assert_ok(pdvm_session_save(a, path, &err), &err);
            session_step(b, 3); // what was there is replaced
            assert_ok(pdvm_session_load(b, path, &err), &err);
            float *expected = session_logits(a);
            assert_same_logits(b, expected);
            free(expected);
            for (int i = 60; i < 70; i++) {
                session_step(a, tokens[i]);
                session_step(b, tokens[i]);
            }
            expected = session_logits(a);
            assert_same_logits(b, expected);
            free(expected);
            pdvm_session_free(a);
            pdvm_session_free(b);
        }
    }
    pdvm_model_close(model);
    free(path);
    support_tmpdir_remove(dir);
}

static void foreign_sessions_are_refused(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "s.session");
    pdvm_model *model = session_model(SESSION_GQA, 1, "auto"),
               *other = session_model("tests/golden/tiny-sharded", 1, "auto");
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session *s = session_make(model, &o), *foreign = session_make(other, &o);
    int32_t tokens[5] = {1, 2, 3, 4, 5};
    session_sync(s, tokens, 5);
    assert_ok(pdvm_session_save(s, path, &err), &err);
    assert_error(pdvm_session_load(foreign, path, &err), PDVM_ERR_UNSUPPORTED, &err, "model");
    o.type_v = PDVM_KV_INT8;
    pdvm_session *typed = session_make(model, &o);
    assert_error(pdvm_session_load(typed, path, &err), PDVM_ERR_UNSUPPORTED, &err, "KV cache");
    o = pdvm_session_options_default();
    o.n_ctx = 4;
    pdvm_session *small = session_make(model, &o);
    assert_error(pdvm_session_load(small, path, &err), PDVM_ERR_UNSUPPORTED, &err, "context");
    char *weights = support_source_path("tests/golden/tiny-gqa/model.safetensors");
    assert_error(pdvm_session_load(s, weights, &err), PDVM_ERR_FORMAT, &err, "format");
    free(weights);
    pdvm_session_free(small);
    pdvm_session_free(typed);
    pdvm_session_free(foreign);
    pdvm_session_free(s);
    pdvm_model_close(other);
    pdvm_model_close(model);
    free(path);
    support_tmpdir_remove(dir);
}

static void damaged_session_files_leave_the_session_alone(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "s.session");
    pdvm_model *model = session_model(SESSION_GQA, 1, "auto");
    pdvm_session *s = session_make(model, NULL);
    int32_t tokens[12];
    session_random_tokens(tokens, 12, session_vocabulary(model), 2);
    session_sync(s, tokens, 12);
    assert_ok(pdvm_session_save(s, path, &err), &err);
    float *expected = session_logits(s);
    size_t size;
    char *good = support_read_file(path, &size);
    uint64_t seed = 77;
    for (int i = 0; i < 400; i++) {
        char *bad = malloc(size);
        size_t bad_size = size;
        memcpy(bad, good, size);
        if (i % 4 == 0)
            bad_size = pd_random(&seed) % size; // cut
        else {
            size_t at = i % 4 == 1 ? pd_random(&seed) % 2048 : pd_random(&seed) % size;
            bad[at % size] = (char)(bad[at % size] ^ 1 << pd_random(&seed) % 8);
        }
        free(support_write_file(dir, "bad.session", bad, bad_size));
        char *bad_path = support_path(dir, "bad.session");
        pdvm_status status = pdvm_session_load(s, bad_path, &err);
        // A flip in the header's padding or between equal spellings changes nothing.
        if (status != PDVM_OK) assert_non_null(strstr(err.message, "bad.session"));
        assert_same_logits(s, expected);
        free(bad_path);
        free(bad);
    }
    free(good);
    free(expected);
    pdvm_session_free(s);
    pdvm_model_close(model);
    free(path);
    support_tmpdir_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saved_sessions_continue_with_identical_bits),
        cmocka_unit_test(foreign_sessions_are_refused),
        cmocka_unit_test(damaged_session_files_leave_the_session_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
