// Sessions with long contexts, sliding windows and rolling caches, against a float64 reference.
// ctest: timeout=300

#include "support/reference.h"
#include "support/session.h"
#include "support/support.h"

#include <stdlib.h>

// Steps through `n` tokens, in batches up to `from` and one by one behind it, and compares the
// logits of every `every`-th of the latter.
static void check_long(const char *path, const pdvm_session_options *options, uint32_t n,
                       uint32_t from, uint32_t every) {
    pdvm_model *model = session_model_at(path, 3);
    struct reference *r =
        reference_open(path, MDCSR_F32, options->rolling ? options->n_ctx : 0, options->n_sink);
    pdvm_session *s = session_make(model, options);
    uint32_t n_vocab = session_vocabulary(model);
    int32_t *tokens = calloc(n, sizeof *tokens);
    double *expected = calloc(n_vocab, sizeof *expected);
    session_random_tokens(tokens, n, n_vocab, 4);
    session_sync(s, tokens, from);
    for (uint32_t i = 0; i < n; i++) {
        bool check = i + 1 >= from && (n - 1 - i) % every == 0;
        if (i >= from) session_step(s, tokens[i]);
        reference_step(r, tokens[i], check ? expected : NULL);
        if (!check) continue;
        double error = reference_error(pdvm_session_logits(s, NULL), expected, n_vocab);
        if (!(error < SESSION_FLOAT_ERROR)) fail_msg("%s: token %u: error %g", path, i, error);
    }
    free(expected);
    free(tokens);
    reference_free(r);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

// Long enough that attention is split into several pieces and merged.
static void long_contexts_equal_the_reference(void **state) {
    (void)state;
    const char *const names[] = {SESSION_GQA, SESSION_QWEN2, SESSION_YARN};
    const pdvm_session_options o = session_exact_options(1100);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = support_source_path(names[i]);
        check_long(path, &o, 1100, 1100, 1);
        free(path);
    }
}

// Windows that lie in one piece of the cache, reach into another, and span a whole one.
static void sliding_windows_over_long_contexts_equal_the_reference(void **state) {
    (void)state;
    static const struct {
        unsigned window;
        uint32_t n, from;
    } cases[] = {
        {1, 100, 50}, {64, 200, 60}, {100, 700, 510}, {513, 1100, 1020}, {600, 1130, 1100}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *dir = support_tmpdir(), *path = session_write_windowed(dir, cases[i].window);
        const pdvm_session_options o = session_exact_options(cases[i].n);
        check_long(path, &o, cases[i].n, cases[i].from, cases[i].n > 1000 ? 6 : 1);
        free(path);
        support_tmpdir_remove(dir);
    }
}

static void a_rolling_cache_keeps_sinks_and_window(void **state) {
    (void)state;
    enum { CTX = 24, SINK = 4, N = 90 };
    pdvm_error err;
    pdvm_model *model = session_model_coded(SESSION_GQA, 2, "auto", "f32");
    char *path = support_source_path(SESSION_GQA);
    struct reference *r = reference_open(path, MDCSR_F32, CTX, SINK);
    pdvm_session_options o = pdvm_session_options_default();
    o.type_k = o.type_v = PDVM_KV_F32;
    o.n_ctx = CTX;
    o.rolling = true;
    o.n_sink = SINK;
    pdvm_session *s = session_make(model, &o);
    uint32_t n_vocab = session_vocabulary(model);
    int32_t tokens[N];
    double *expected = calloc(n_vocab, sizeof *expected);
    session_random_tokens(tokens, N, n_vocab, 12);
    session_sync(s, tokens, 40); // runs over the end of the cache within one prompt
    for (int i = 0; i < N; i++) {
        if (i >= 40) session_step(s, tokens[i]);
        reference_step(r, tokens[i], expected);
        if (i < 39) continue;
        double error = reference_error(pdvm_session_logits(s, NULL), expected, n_vocab);
        if (!(error < SESSION_FLOAT_ERROR)) fail_msg("token %d: error %g", i, error);
    }
    assert_error(pdvm_session_rewind(s, N - 1, &err), PDVM_ERR_RANGE, &err, "dropped");
    // A sync that needs dropped tokens starts over by itself.
    session_sync(s, tokens, 20);
    pdvm_session *fresh = session_make(model, &o);
    session_sync(fresh, tokens, 20);
    float *same = session_logits(fresh);
    assert_same_logits(s, same);
    free(same);
    free(expected);
    reference_free(r);
    free(path);
    pdvm_session_free(fresh);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

// The window counts what the cache has kept: it may lie inside the ring and wrap around, reach
// into the sinks, or hold everything.
static void sliding_windows_in_a_rolling_cache_equal_the_reference(void **state) {
    (void)state;
    static const unsigned windows[] = {1, 7, 19, 20, 21, 22, 23, 24, 25, 40};
    pdvm_session_options o = session_exact_options(24);
    o.rolling = true;
    o.n_sink = 4;
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        char *dir = support_tmpdir(), *path = session_write_windowed(dir, windows[i]);
        check_long(path, &o, 90, 20, 1);
        o.n_sink = i % 2 ? 0 : 4;
        free(path);
        support_tmpdir_remove(dir);
    }
    o.n_sink = 4;
    const char *const names[] = {SESSION_QWEN2, SESSION_QWEN3, SESSION_YARN};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = support_source_path(names[i]);
        check_long(path, &o, 90, 40, 1);
        free(path);
    }
    // A ring of several pieces, in which the window wraps around.
    char *dir = support_tmpdir(), *path = session_write_windowed(dir, 600);
    o.n_ctx = 1100;
    check_long(path, &o, 1250, 1090, 32);
    free(path);
    support_tmpdir_remove(dir);
}

// What is dropped then was out of sight already.
static void a_rolling_cache_of_the_windows_length_changes_nothing(void **state) {
    (void)state;
    enum { WINDOW = 20, SINK = 2, N = 120 };
    char *dir = support_tmpdir(), *path = session_write_windowed(dir, WINDOW);
    pdvm_model *model = session_model_at(path, 2);
    pdvm_session_options o = session_exact_options(N),
                         rolling = session_exact_options(WINDOW + SINK);
    rolling.rolling = true;
    rolling.n_sink = SINK;
    pdvm_session *a = session_make(model, &o), *b = session_make(model, &rolling);
    uint32_t n_vocab = session_vocabulary(model);
    double *expected = calloc(n_vocab, sizeof *expected);
    int32_t tokens[N];
    session_random_tokens(tokens, N, n_vocab, 33);
    for (int i = 0; i < N; i++) {
        session_step(a, tokens[i]);
        session_step(b, tokens[i]);
        for (uint32_t k = 0; k < n_vocab; k++) expected[k] = pdvm_session_logits(a, NULL)[k];
        double error = reference_error(pdvm_session_logits(b, NULL), expected, n_vocab);
        if (!(error < SESSION_FLOAT_ERROR)) fail_msg("token %d: error %g", i, error);
    }
    free(expected);
    pdvm_session_free(a);
    pdvm_session_free(b);
    pdvm_model_close(model);
    free(path);
    support_tmpdir_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_contexts_equal_the_reference),
        cmocka_unit_test(sliding_windows_over_long_contexts_equal_the_reference),
        cmocka_unit_test(a_rolling_cache_keeps_sinks_and_window),
        cmocka_unit_test(sliding_windows_in_a_rolling_cache_equal_the_reference),
        cmocka_unit_test(a_rolling_cache_of_the_windows_length_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
