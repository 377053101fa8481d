// Sessions give the same bits for any number of threads, in every mode and batch, and several at once.
// ctest: labels=threads timeout=300

#include "support/session.h"
#include "support/support.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// ThreadSanitizer sees the same threads at work in two models and two long prompts as in all.
#if SUPPORT_TSAN
static const char *const models[] = {SESSION_GQA, SESSION_QWEN3};
#define N_LONG_PROMPTS 2
#else
static const char *const models[] = {SESSION_MODELS};
#define N_LONG_PROMPTS 6
#endif
#define N_MODELS (sizeof models / sizeof *models)

static void modes_threads_and_kernels_give_identical_bits(void **state) {
    (void)state;
    static const struct {
        const char *kernels;
        int n_threads;
    } cases[] = {{"scalar", 1}, {"scalar", 2}, {"auto", 1}, {"auto", 2}, {"auto", 5}};
    for (size_t i = 0; i < N_MODELS; i++) {
        float *first = NULL;
        int32_t tokens[90];
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            pdvm_model *model = session_model(models[i], cases[c].n_threads, cases[c].kernels);
            session_random_tokens(tokens, 90, session_vocabulary(model), 3);
            for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
                pdvm_session_options o = pdvm_session_options_default();
                o.mode = (pdvm_mode)mode;
                pdvm_session *s = session_make(model, &o);
                session_sync(s, tokens, 86);
                for (int j = 86; j < 90; j++) session_step(s, tokens[j]);
                if (!first) first = session_logits(s);
                assert_same_logits(s, first);
                pdvm_session_free(s);
            }
            pdvm_model_close(model);
        }
        free(first);
    }
}

static void batches_of_any_size_give_identical_bits(void **state) {
    (void)state;
    static const uint32_t batches[] = {1, 2, 5, 31, 64, 150};
    const char *const names[] = {SESSION_GQA, SESSION_QWEN2, SESSION_QWEN3};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        pdvm_model *model = session_model(names[k], 2, "auto");
        int32_t tokens[150];
        session_random_tokens(tokens, 150, session_vocabulary(model), 9);
        float *first = NULL;
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
            pdvm_session_options o = pdvm_session_options_default();
            o.n_batch = batches[i];
            pdvm_session *s = session_make(model, &o);
            session_sync(s, tokens, 150);
            if (!first) first = session_logits(s);
            assert_same_logits(s, first);
            pdvm_session_free(s);
        }
        free(first);
        pdvm_model_close(model);
    }
}

// Over several pieces of the cache, in batches that end anywhere: every query goes through the same
// steps as alone.
static void long_prompts_in_batches_give_identical_bits(void **state) {
    (void)state;
    enum { N = 1150 };
    static const struct {
        unsigned window;
        uint32_t n_ctx; // less than N: rolling
        pdvm_kv_type type;
    } cases[6] = {{0, N, PDVM_KV_INT8},  {600, 1100, PDVM_KV_INT8}, {0, N, PDVM_KV_F16},
                  {100, N, PDVM_KV_F32}, {600, N, PDVM_KV_F16},     {0, 700, PDVM_KV_F16}};
    static const uint32_t batches[] = {1, 23, 256};
    for (size_t i = 0; i < N_LONG_PROMPTS; i++) {
        char *dir = support_tmpdir();
        char *path = cases[i].window ? session_write_windowed(dir, cases[i].window)
                                     : support_source_path(SESSION_QWEN3);
        pdvm_model *model = session_model_at(path, 3);
        pdvm_session_options o = session_exact_options(cases[i].n_ctx);
        o.type_k = o.type_v = cases[i].type;
        o.rolling = cases[i].n_ctx < N;
        int32_t tokens[N];
        session_random_tokens(tokens, N, session_vocabulary(model), 21);
        float *first = NULL;
        for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
            o.n_batch = batches[k];
            pdvm_session *s = session_make(model, &o);
            session_sync(s, tokens, N);
            if (!first) first = session_logits(s);
            assert_same_logits(s, first);
            pdvm_session_free(s);
        }
        free(first);
        pdvm_model_close(model);
        free(path);
        support_tmpdir_remove(dir);
    }
}

struct concurrent {
    pdvm_model *model;
    const int32_t *tokens;
    size_t n;
    float *logits;
};

static void *run_concurrently(void *arg) {
    struct concurrent *c = arg;
    pdvm_session *s;
    if (pdvm_session_create(c->model, NULL, &s, NULL) != PDVM_OK) return NULL;
    size_t half = c->n / 2;
    if (pdvm_session_sync(s, c->tokens, half, NULL) == PDVM_OK)
        for (size_t i = half; i < c->n; i++)
            if (pdvm_session_step(s, c->tokens[i], NULL) != PDVM_OK) break;
    size_t n_vocab;
    const float *logits = pdvm_session_logits(s, &n_vocab);
    if (logits) {
        c->logits = malloc(n_vocab * sizeof *logits);
        memcpy(c->logits, logits, n_vocab * sizeof *logits);
    }
    pdvm_session_free(s);
    return arg;
}

static void several_sessions_on_several_threads_do_not_disturb_each_other(void **state) {
    (void)state;
    enum { N = 4 };
    pdvm_model *model = session_model(SESSION_GQA, 2, "auto");
    int32_t tokens[N][60];
    pthread_t threads[N];
    struct concurrent c[N];
    for (int i = 0; i < N; i++) {
        session_random_tokens(tokens[i], 60, session_vocabulary(model), (uint64_t)i + 50);
        c[i] = (struct concurrent){.model = model, .tokens = tokens[i], .n = 60};
        assert_int_equal(pthread_create(&threads[i], NULL, run_concurrently, &c[i]), 0);
    }
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N; i++) {
        pdvm_session *alone = session_make(
            model, &(pdvm_session_options){.type_k = PDVM_KV_F16, .type_v = PDVM_KV_F16});
        session_sync(alone, tokens[i], 60);
        assert_non_null(c[i].logits);
        assert_same_logits(alone, c[i].logits);
        free(c[i].logits);
        pdvm_session_free(alone);
    }
    pdvm_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(modes_threads_and_kernels_give_identical_bits),
        cmocka_unit_test(batches_of_any_size_give_identical_bits),
        cmocka_unit_test(long_prompts_in_batches_give_identical_bits),
        cmocka_unit_test(several_sessions_on_several_threads_do_not_disturb_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
