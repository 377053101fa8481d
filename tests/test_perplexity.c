/* Perplexity: windows, likelihoods, statistics, errors. */
#include "engine/engine.h"
#include "eval/perplexity.h"
#include "support/reference.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

#define N_TOKENS 40

/* The model and a text that the tests share. */
struct fixture {
    char *path;
    pdvm_model *model;
    int32_t tokens[N_TOKENS];
};

static int set_up(void **state) {
    static struct fixture f;
    pdvm_error err;
    f.path = support_source_path("tests/golden/tiny-gqa");
    assert_ok(pdvm_model_open(f.path, NULL, &f.model, &err), &err);
    for (int i = 0; i < N_TOKENS; i++) f.tokens[i] = (i * 97 + i * i * 31 + 5) % 512;
    *state = &f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    pdvm_model_close(f->model);
    free(f->path);
    return 0;
}

static pdvm_session *new_session(const struct fixture *f, uint32_t n_ctx) {
    pdvm_error err;
    pdvm_session *session;
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = n_ctx;
    options.type_k = options.type_v = PDVM_KV_F32;
    assert_ok(pdvm_session_create(f->model, &options, &session, &err), &err);
    return session;
}

/* What was scored. */
struct scores {
    double nll[N_TOKENS]; /* NAN: not scored */
    int n;
    size_t last;
    int stop_after; /* scores; 0: never */
};

static pdvm_status keep(void *user, const struct perplexity_token *t, pdvm_error *err) {
    struct scores *s = user;
    assert_true(t->position < N_TOKENS);
    assert_true(s->n == 0 || t->position > s->last);
    assert_true(isnan(s->nll[t->position]));
    assert_int_equal(t->n_vocab, 512);
    assert_true(t->nll == perplexity_nll(t->logits, t->n_vocab, t->token));
    s->nll[t->position] = t->nll;
    s->last = t->position;
    s->n++;
    if (s->n == s->stop_after) return pd_fail(err, PDVM_ERR_IO, "the disk is full");
    return PDVM_OK;
}

static struct scores measure_by(const struct fixture *f, size_t n,
                                const struct perplexity_options *options,
                                struct perplexity_result *result) {
    pdvm_error err;
    struct scores scores = {0};
    for (int i = 0; i < N_TOKENS; i++) scores.nll[i] = NAN;
    pdvm_session *session = new_session(f, options->n_ctx);
    assert_ok(perplexity_measure(session, f->tokens, n, options, keep, &scores, result, &err),
              &err);
    pdvm_session_free(session);
    struct perplexity_extent extent = perplexity_extent(n, options);
    assert_int_equal(result->n_scored, scores.n);
    assert_int_equal(result->n_scored, extent.n_scored);
    assert_int_equal(result->n_computed, extent.n_computed);
    assert_int_equal(result->n_windows, extent.n_windows);
    return scores;
}

static struct scores measure(const struct fixture *f, size_t n, uint32_t n_ctx, uint32_t stride,
                             struct perplexity_result *result) {
    const struct perplexity_options options = {.n_ctx = n_ctx, .stride = stride};
    return measure_by(f, n, &options, result);
}

/* In float64: the likelihood of tokens[position] after tokens[begin..position), of which the first is
 * `bos` unless that is -1. */
static double reference_nll(const struct fixture *f, size_t begin, size_t position, int32_t bos) {
    double logits[512], max = -INFINITY, sum = 0;
    struct reference *r = reference_open(f->path, MDCSR_INT8, 0, 0);
    for (size_t i = begin; i < position; i++)
        reference_step(r, i == begin && bos >= 0 ? bos : f->tokens[i], logits);
    reference_free(r);
    for (int i = 0; i < 512; i++) max = fmax(max, logits[i]);
    for (int i = 0; i < 512; i++) sum += exp(logits[i] - max);
    return log(sum) + max - logits[f->tokens[position]];
}

static void every_token_is_scored_once_with_the_context_of_its_window(void **state) {
    const struct fixture *f = *state;
    struct perplexity_result result;
    struct scores scores = measure(f, N_TOKENS, 16, 6, &result);
    assert_int_equal(result.n_windows, 5); /* at 0, 6, 12, 18, 24 */
    assert_int_equal(scores.n, N_TOKENS - 1);
    assert_true(isnan(scores.nll[0]));
    for (size_t position = 1; position < N_TOKENS; position += 3) {
        size_t begin = 0;
        while (position >= begin + 16) begin += 6;
        double expected = reference_nll(f, begin, position, -1);
        if (fabs(scores.nll[position] - expected) > 1e-3 * expected)
            support_fail("token %zu: %g instead of %g", position, scores.nll[position], expected);
    }
}

static void without_overlap_the_first_token_of_each_piece_is_not_scored(void **state) {
    struct perplexity_result result;
    struct scores scores = measure(*state, 33, 16, 16, &result);
    assert_int_equal(result.n_windows, 3);
    assert_int_equal(scores.n, 30);
    assert_true(isnan(scores.nll[0]) && isnan(scores.nll[16]) && isnan(scores.nll[32]));
}

static void check_against_reference(const struct fixture *f, const struct scores *scores,
                                    size_t n_ctx, int32_t bos) {
    for (size_t position = 1; position < N_TOKENS; position += 5) {
        if (isnan(scores->nll[position])) continue;
        double expected = reference_nll(f, position / n_ctx * n_ctx, position, bos);
        if (fabs(scores->nll[position] - expected) > 1e-3 * expected)
            support_fail("token %zu: %g instead of %g", position, scores->nll[position], expected);
    }
}

static void the_papers_count_all_but_the_first_of_whole_windows(void **state) {
    struct perplexity_result result;
    const struct perplexity_options o = {.protocol = PERPLEXITY_PAPERS, .n_ctx = 12};
    struct scores scores = measure_by(*state, N_TOKENS, &o, &result);
    assert_int_equal(result.n_windows, 3);
    for (size_t i = 0; i < N_TOKENS; i++)
        assert_int_equal(isnan(scores.nll[i]), i % 12 == 0 || i >= 36);
    check_against_reference(*state, &scores, 12, -1);
}

static void llama_cpp_counts_the_second_half_of_whole_windows(void **state) {
    struct perplexity_result result;
    const struct perplexity_options o = {.protocol = PERPLEXITY_LLAMA_CPP, .n_ctx = 12, .bos = 7};
    struct scores scores = measure_by(*state, N_TOKENS, &o, &result);
    assert_int_equal(result.n_windows, 3);
    for (size_t i = 0; i < N_TOKENS; i++)
        assert_int_equal(isnan(scores.nll[i]), i % 12 < 7 || i >= 36);
    check_against_reference(*state, &scores, 12, 7);
}

/* A perplexity_fn: the second model's logits are there and are those of the first. */
static pdvm_status compare(void *user, const struct perplexity_token *t, pdvm_error *err) {
    (void)err;
    assert_non_null(t->reference);
    assert_memory_equal(t->reference, t->logits, t->n_vocab * sizeof *t->logits);
    ++*(int *)user;
    return PDVM_OK;
}

static void a_second_model_is_run_over_the_same_windows(void **state) {
    const struct fixture *f = *state;
    pdvm_error err;
    int n = 0;
    struct perplexity_result result;
    pdvm_session *session = new_session(f, 16), *second = new_session(f, 16);
    const struct perplexity_options o = {.n_ctx = 16, .stride = 10, .reference = second};
    assert_ok(perplexity_measure(session, f->tokens, N_TOKENS, &o, compare, &n, &result, &err),
              &err);
    assert_int_equal(n, N_TOKENS - 1);
    pdvm_session_free(session);
    pdvm_session_free(second);
}

static void the_window_before_the_last_may_end_with_the_text(void **state) {
    struct perplexity_result result;
    measure(*state, 16, 16, 8, &result);
    assert_int_equal(result.n_windows, 1);
    measure(*state, 17, 16, 8, &result);
    assert_int_equal(result.n_windows, 2);
    measure(*state, 2, 2, 1, &result);
    assert_int_equal(result.n_scored, 1);
    assert_true(result.nll_stderr == 0);
}

static void mean_and_standard_error_are_those_of_the_likelihoods(void **state) {
    struct perplexity_result result;
    struct scores scores = measure(*state, N_TOKENS, 16, 8, &result);
    double sum = 0, squares = 0;
    for (int i = 1; i < N_TOKENS; i++) sum += scores.nll[i];
    double mean = sum / scores.n;
    for (int i = 1; i < N_TOKENS; i++) squares += pow(scores.nll[i] - mean, 2);
    double error = sqrt(squares / (scores.n - 1) / scores.n);
    assert_true(fabs(result.nll - mean) < 1e-12 * mean);
    assert_true(fabs(result.nll_stderr - error) < 1e-12 * mean);
    assert_true(fabs(result.perplexity - exp(mean)) < 1e-9 * exp(mean));
    assert_true(fabs(result.perplexity_stderr - error * exp(mean)) < 1e-9 * exp(mean));
}

static void likelihoods_are_stable_for_large_logits(void **state) {
    (void)state;
    const float even[4] = {1e30f, 1e30f, 1e30f, 1e30f};
    const float far[3] = {-1000, 1000, 0};
    const float broken[2] = {NAN, 0};
    assert_true(fabs(perplexity_nll(even, 4, 2) - log(4)) < 1e-12);
    assert_true(perplexity_nll(far, 3, 1) == 0);
    assert_true(perplexity_nll(far, 3, 0) == 2000);
    assert_false(isfinite(perplexity_nll(broken, 2, 1)));
}

static pdvm_status measure_badly(const struct fixture *f, const int32_t *tokens, size_t n,
                                 uint32_t n_ctx, uint32_t stride, pdvm_error *err) {
    struct perplexity_result result;
    pdvm_session *session = new_session(f, 16);
    const struct perplexity_options options = {.n_ctx = n_ctx, .stride = stride};
    pdvm_status status = perplexity_measure(session, tokens, n, &options, NULL, NULL, &result, err);
    pdvm_session_free(session);
    return status;
}

static void bad_options_and_tokens_are_refused_before_computing(void **state) {
    const struct fixture *f = *state;
    pdvm_error err;
    int32_t tokens[4] = {1, 2, 3, 512};
    assert_error(measure_badly(f, tokens, 1, 16, 8, &err), PDVM_ERR_ARGUMENT, &err, "1 token");
    assert_error(measure_badly(f, tokens, 0, 16, 8, &err), PDVM_ERR_ARGUMENT, &err, "0 tokens");
    assert_error(measure_badly(f, tokens, 3, 17, 8, &err), PDVM_ERR_ARGUMENT, &err, "17");
    assert_error(measure_badly(f, tokens, 3, 1, 1, &err), PDVM_ERR_ARGUMENT, &err, "1 tokens");
    assert_error(measure_badly(f, tokens, 3, 16, 0, &err), PDVM_ERR_ARGUMENT, &err, "stride");
    assert_error(measure_badly(f, tokens, 3, 16, 17, &err), PDVM_ERR_ARGUMENT, &err, "stride");
    /* The last token is never passed through the model, only predicted. */
    assert_error(measure_badly(f, tokens, 4, 16, 8, &err), PDVM_ERR_RANGE, &err, "position 3");
    const struct perplexity_options papers = {.protocol = PERPLEXITY_PAPERS, .n_ctx = 5};
    assert_error(perplexity_check(4, &papers, &err), PDVM_ERR_ARGUMENT, &err,
                 "a text of 4 tokens is shorter than a window of 5");
    assert_ok(perplexity_check(5, &papers, &err), &err);
    tokens[1] = -1;
    assert_error(measure_badly(f, tokens, 3, 16, 8, &err), PDVM_ERR_RANGE, &err, "position 1");
}

static void a_failing_receiver_ends_the_measurement(void **state) {
    const struct fixture *f = *state;
    pdvm_error err;
    struct perplexity_result result;
    struct scores scores = {.stop_after = 11};
    for (int i = 0; i < N_TOKENS; i++) scores.nll[i] = NAN;
    pdvm_session *session = new_session(f, 16);
    const struct perplexity_options options = {.n_ctx = 16, .stride = 8};
    assert_error(
        perplexity_measure(session, f->tokens, N_TOKENS, &options, keep, &scores, &result, &err),
        PDVM_ERR_IO, &err, "the disk is full");
    assert_int_equal(scores.n, 11);
    pdvm_session_free(session);
}

static bool stop_in_the_middle(void *user, const char *stage, double fraction) {
    double *last = user;
    assert_string_equal(stage, "evaluating");
    assert_true(fraction > *last && fraction <= 1);
    *last = fraction;
    return fraction < 0.5;
}

static void progress_rises_and_can_cancel(void **state) {
    const struct fixture *f = *state;
    pdvm_error err;
    double last = 0;
    struct perplexity_result result;
    pdvm_session *session = new_session(f, 16);
    const struct perplexity_options options = {
        .n_ctx = 16,
        .stride = 8,
        .notify = {.progress = stop_in_the_middle, .progress_user = &last}};
    assert_error(
        perplexity_measure(session, f->tokens, N_TOKENS, &options, NULL, NULL, &result, &err),
        PDVM_ERR_CANCELLED, &err, "");
    assert_true(last >= 0.5 && last < 0.6);
    pdvm_session_free(session);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_is_scored_once_with_the_context_of_its_window),
        cmocka_unit_test(without_overlap_the_first_token_of_each_piece_is_not_scored),
        cmocka_unit_test(the_papers_count_all_but_the_first_of_whole_windows),
        cmocka_unit_test(llama_cpp_counts_the_second_half_of_whole_windows),
        cmocka_unit_test(a_second_model_is_run_over_the_same_windows),
        cmocka_unit_test(the_window_before_the_last_may_end_with_the_text),
        cmocka_unit_test(mean_and_standard_error_are_those_of_the_likelihoods),
        cmocka_unit_test(likelihoods_are_stable_for_large_logits),
        cmocka_unit_test(bad_options_and_tokens_are_refused_before_computing),
        cmocka_unit_test(a_failing_receiver_ends_the_measurement),
        cmocka_unit_test(progress_rises_and_can_cancel),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
