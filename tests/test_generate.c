// pdvm_generate on a tiny model: it is sampling, streaming and stepping, and says why it stopped.

#include "pdvm.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

struct fixture {
    pdvm_model *model;
    pdvm_session *session;
    pdvm_sampler *sampler;
    char text[65536];
    size_t n;
    int calls_left; /* until the callback refuses; negative: never */
};

static bool collect(void *user, const char *text, size_t len) {
    struct fixture *f = user;
    assert_true(f->n + len < sizeof f->text);
    memcpy(f->text + f->n, text, len);
    f->n += len;
    f->text[f->n] = 0;
    return f->calls_left < 0 || --f->calls_left > 0;
}

static const int32_t PROMPT[] = {3, 1, 4, 1, 5};
#define N_PROMPT (sizeof PROMPT / sizeof *PROMPT)

static void sync_prompt(struct fixture *f) {
    pdvm_error err;
    assert_ok(pdvm_session_sync(f->session, PROMPT, N_PROMPT, &err), &err);
    pdvm_sampler_reset(f->sampler);
    f->n = 0;
    f->text[0] = 0;
    f->calls_left = -1;
}

static void open_session(struct fixture *f, uint32_t n_ctx, bool rolling) {
    pdvm_error err;
    pdvm_session_free(f->session);
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = n_ctx;
    options.rolling = rolling;
    options.n_sink = 1;
    assert_ok(pdvm_session_create(f->model, &options, &f->session, &err), &err);
    sync_prompt(f);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    pdvm_error err;
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = 1;
    char *path = support_source_path("tests/golden/tiny-gqa");
    assert_ok(pdvm_model_open(path, &options, &f->model, &err), &err);
    free(path);
    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    sampling.temperature = 1.5f;
    sampling.top_k = 0;
    sampling.top_p = 1;
    sampling.min_p = 0;
    sampling.seed = 7;
    assert_ok(pdvm_sampler_create(&sampling, &f->sampler, &err), &err);
    open_session(f, 0, false);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    pdvm_sampler_free(f->sampler);
    pdvm_session_free(f->session);
    pdvm_model_close(f->model);
    free(f);
    return 0;
}

static pdvm_stop_reason generate(struct fixture *f, const pdvm_generate_options *o, size_t *n) {
    pdvm_error err;
    pdvm_stop_reason reason = (pdvm_stop_reason)-1;
    assert_ok(pdvm_generate(f->session, f->sampler, o, collect, f, n, &reason, &err), &err);
    return reason;
}

static void it_samples_and_steps_like_a_loop_by_hand(void **state) {
    struct fixture *f = *state;
    enum { N = 20 };
    pdvm_error err;
    int32_t expected[N];
    for (int i = 0; i < N; i++) {
        size_t n_vocab;
        const float *logits = pdvm_session_logits(f->session, &n_vocab);
        assert_ok(pdvm_sampler_sample(f->sampler, logits, n_vocab, &expected[i], &err), &err);
        assert_ok(pdvm_session_step(f->session, expected[i], &err), &err);
    }
    sync_prompt(f);
    pdvm_generate_options o = {.n_predict = N - 5, .ignore_end = true};
    size_t n;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, N - 5);
    // Another call goes on where the first one ended.
    o.n_predict = 5;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, 5);
    size_t n_tokens;
    const int32_t *tokens = pdvm_session_tokens(f->session, &n_tokens);
    assert_int_equal(n_tokens, N_PROMPT + N);
    assert_memory_equal(tokens + N_PROMPT, expected, sizeof expected);
}

static void the_text_is_that_of_the_tokens(void **state) {
    struct fixture *f = *state;
    // Without biases a tiny random model makes few valid characters: allow printable ASCII only.
    pdvm_error err;
    pdvm_model_info info;
    pdvm_model_get_info(f->model, &info);
    pdvm_logit_bias *bias = calloc(info.n_vocab, sizeof *bias);
    assert_non_null(bias);
    size_t n_bias = 0;
    for (int32_t t = 0; t < (int32_t)info.n_vocab; t++) {
        char text[64];
        size_t len;
        bool plain = pdvm_detokenize(f->model, &t, 1, text, sizeof text, &len, &err) == PDVM_OK &&
                     len > 0 && !pdvm_model_is_end(f->model, t);
        for (size_t i = 0; plain && i < len; i++) plain = text[i] >= ' ' && text[i] <= '~';
        if (!plain) bias[n_bias++] = (pdvm_logit_bias){t, -1e9f};
    }
    pdvm_sampler_free(f->sampler);
    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    sampling.logit_bias = bias;
    sampling.n_logit_bias = n_bias;
    assert_ok(pdvm_sampler_create(&sampling, &f->sampler, &err), &err);
    free(bias);
    pdvm_generate_options o = {.n_predict = 30};
    size_t n;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, 30);
    size_t n_tokens, len;
    const int32_t *tokens = pdvm_session_tokens(f->session, &n_tokens);
    char text[4096];
    assert_ok(pdvm_detokenize(f->model, tokens + N_PROMPT, n, text, sizeof text, &len, &err), &err);
    assert_int_equal(len, f->n);
    assert_memory_equal(text, f->text, len);

    // A stop string from the middle of that text ends the same text before it.
    char stop[4] = {text[len / 2], text[len / 2 + 1], text[len / 2 + 2], 0};
    const char *const stops[] = {stop};
    const char *found = memmem(text, len, stop, 3);
    assert_non_null(found);
    o.stop = stops;
    o.n_stop = 1;
    sync_prompt(f);
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_STRING);
    assert_true(n < 30);
    assert_int_equal(f->n, (size_t)(found - text));
    assert_memory_equal(f->text, text, f->n);

    // The callback stops it after the token that it refused.
    o.n_stop = 0;
    sync_prompt(f);
    f->calls_left = 3;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_CALLBACK);
    assert_int_equal(n, 3);
}

static void an_end_token_ends_the_text_unless_ignored(void **state) {
    struct fixture *f = *state;
    pdvm_error err;
    pdvm_model_info info;
    pdvm_model_get_info(f->model, &info);
    int32_t end = 0;
    while (end < (int32_t)info.n_vocab && !pdvm_model_is_end(f->model, end)) end++;
    assert_true(end < (int32_t)info.n_vocab);
    pdvm_logit_bias bias = {end, 1000};
    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    sampling.temperature = 0;
    sampling.logit_bias = &bias;
    sampling.n_logit_bias = 1;
    pdvm_sampler_free(f->sampler);
    assert_ok(pdvm_sampler_create(&sampling, &f->sampler, &err), &err);
    pdvm_generate_options o = {.n_predict = 4};
    size_t n;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_END);
    assert_int_equal(n, 0);
    o.ignore_end = true;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, 4);
    // The end token is special: it has no text.
    assert_int_equal(f->n, 0);
}

static void tokens_of_the_caller_end_the_text(void **state) {
    struct fixture *f = *state;
    pdvm_error err;
    pdvm_logit_bias bias = {78, 1000};
    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    sampling.logit_bias = &bias;
    sampling.n_logit_bias = 1;
    pdvm_sampler_free(f->sampler);
    assert_ok(pdvm_sampler_create(&sampling, &f->sampler, &err), &err);
    const int32_t ends[] = {77, 78};
    pdvm_generate_options o = {.n_predict = 4, .end = ends, .n_end = 1};
    size_t n;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, 4);
    o.n_end = 2;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_END);
    assert_int_equal(n, 0);
    o.ignore_end = true;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
}

static void a_full_context_ends_the_text(void **state) {
    struct fixture *f = *state;
    open_session(f, N_PROMPT + 6, false);
    pdvm_generate_options o = {.n_predict = -1, .ignore_end = true};
    size_t n;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_CONTEXT);
    // Six tokens are in the cache; the one after needs no room.
    assert_int_equal(n, 7);
    open_session(f, N_PROMPT + 6, false);
    o.n_predict = 7;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, 7);
    open_session(f, N_PROMPT + 6, true);
    o.n_predict = 40;
    assert_int_equal(generate(f, &o, &n), PDVM_STOP_LENGTH);
    assert_int_equal(n, 40);
}

static void without_logits_it_says_what_to_do(void **state) {
    struct fixture *f = *state;
    pdvm_error err;
    size_t n = 99;
    assert_ok(pdvm_session_rewind(f->session, 2, &err), &err);
    assert_error(pdvm_generate(f->session, f->sampler, NULL, NULL, NULL, &n, NULL, &err),
                 PDVM_ERR_ARGUMENT, &err, "sync");
    assert_int_equal(n, 0);
    const char *const stops[] = {""};
    pdvm_generate_options o = {.n_predict = 1, .stop = stops, .n_stop = 1};
    assert_error(pdvm_generate(f->session, f->sampler, &o, NULL, NULL, NULL, NULL, &err),
                 PDVM_ERR_ARGUMENT, &err, "stop string");
    assert_error(pdvm_generate(NULL, f->sampler, &o, NULL, NULL, NULL, NULL, &err),
                 PDVM_ERR_ARGUMENT, &err, "session");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(it_samples_and_steps_like_a_loop_by_hand),
        TEST(the_text_is_that_of_the_tokens),
        TEST(tokens_of_the_caller_end_the_text),
        TEST(an_end_token_ends_the_text_unless_ignored),
        TEST(a_full_context_ends_the_text),
        TEST(without_logits_it_says_what_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
