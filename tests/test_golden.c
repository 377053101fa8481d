// Against Hugging Face transformers: logits, greedy texts, log likelihoods and token ids of the
// models in tests/golden and models/tales, recorded by tools/make_golden.py.

#include "engine/engine.h"
#include "io/json.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Two float32 programs that add in different orders.
#define LOGIT_ERROR 1e-4

struct golden {
    const char *name;
    json_t *json;
    pdvm_model *model;
};

static struct golden open_golden(const char *directory, const char *name) {
    struct golden g = {.name = name};
    pdvm_error err;
    char file[64], folder[64];
    size_t size;
    snprintf(file, sizeof file, "tests/golden/%s.json", name);
    snprintf(folder, sizeof folder, "%s/%s", directory, name);
    char *path = support_source_path(file);
    char *text = support_read_file(path, &size);
    assert_ok(pd_json_parse_object(path, text, size, &g.json, &err), &err);
    free(text);
    free(path);
    path = support_source_path(folder);
    pdvm_model_options options = pdvm_model_options_default();
    options.values = "f32";
    assert_ok(pdvm_model_open(path, &options, &g.model, &err), &err);
    free(path);
    return g;
}

static void close_golden(struct golden *g) {
    pdvm_model_close(g->model);
    json_decref(g->json);
}

static pdvm_session *exact_session(const struct golden *g) {
    pdvm_error err;
    pdvm_session *session;
    pdvm_session_options options = pdvm_session_options_default();
    options.type_k = options.type_v = PDVM_KV_F32;
    assert_ok(pdvm_session_create(g->model, &options, &session, &err), &err);
    return session;
}

static int32_t *read_ids(const json_t *array, size_t *n) {
    *n = json_array_size(array);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static double number(const json_t *array, size_t i) {
    return json_number_value(json_array_get(array, i));
}

// Compares a row of logits with the recorded entries of it.
static void check_row(const struct golden *g, const json_t *row, const float *logits) {
    const json_t *index = json_object_get(row, "index"), *values = json_object_get(row, "values");
    double error = 0, norm = 0;
    for (size_t i = 0; i < json_array_size(values); i++) {
        size_t token = index ? (size_t)json_integer_value(json_array_get(index, i)) : i;
        double expected = number(values, i);
        error += (logits[token] - expected) * (logits[token] - expected);
        norm += expected * expected;
    }
    double relative = sqrt(error / norm);
    if (!(relative < LOGIT_ERROR))
        fail_msg("%s: position %d: logits differ by %g", g->name,
                 (int)json_integer_value(json_object_get(row, "position")), relative);
}

static pdvm_status on_logits(void *user, size_t index, const float *logits, pdvm_error *err) {
    const struct golden *g = user;
    const json_t *rows = json_object_get(g->json, "logits");
    (void)err;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        if ((size_t)json_integer_value(json_object_get(row, "position")) == index)
            check_row(g, row, logits);
    }
    return PDVM_OK;
}

static void check_logits(struct golden *g) {
    pdvm_error err;
    size_t n;
    int32_t *ids = read_ids(json_object_get(g->json, "ids"), &n);
    pdvm_session *s = exact_session(g);
    assert_true(json_array_size(json_object_get(g->json, "logits")) > 0);
    assert_ok(session_forward(s, ids, n, on_logits, g, &err), &err);
    pdvm_session_free(s);
    free(ids);
}

static int32_t argmax(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

// Continues greedily as transformers did, as long as its choice was not a toss-up.
static void check_greedy(struct golden *g) {
    pdvm_error err;
    size_t n, n_greedy, n_vocab;
    const json_t *greedy = json_object_get(g->json, "greedy");
    int32_t *ids = read_ids(json_object_get(g->json, "ids"), &n);
    int32_t *expected = read_ids(json_object_get(greedy, "ids"), &n_greedy);
    pdvm_session *s = exact_session(g);
    assert_ok(pdvm_session_sync(s, ids, n, &err), &err);
    assert_true(n_greedy > 0);
    for (size_t i = 0; i < n_greedy; i++) {
        const float *logits = pdvm_session_logits(s, &n_vocab);
        if (number(json_object_get(greedy, "margin"), i) > 0.01)
            assert_int_equal(argmax(logits, n_vocab), expected[i]);
        assert_ok(pdvm_session_step(s, expected[i], &err), &err);
    }
    pdvm_session_free(s);
    free(expected);
    free(ids);
}

static void check_tokens(const struct golden *g, const json_t *row, const char *key,
                         unsigned flags) {
    pdvm_error err;
    int32_t ids[4096];
    size_t n, n_expected;
    const json_t *text = json_object_get(row, "text");
    int32_t *expected = read_ids(json_object_get(row, key), &n_expected);
    assert_ok(pdvm_tokenize(g->model, json_string_value(text), json_string_length(text), flags, ids,
                            4096, &n, &err),
              &err);
    if (n != n_expected || memcmp(ids, expected, n * sizeof *ids) != 0)
        fail_msg("%s: other %s for \"%s\"", g->name, key, json_string_value(text));
    free(expected);
}

static void check_tokenizer(struct golden *g) {
    const json_t *rows = json_object_get(g->json, "tokenizer");
    assert_true(json_array_size(rows) > 10);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        check_tokens(g, row, "ids", PDVM_TOKENIZE_PARSE_SPECIAL);
        check_tokens(g, row, "ids_special",
                     PDVM_TOKENIZE_PARSE_SPECIAL | PDVM_TOKENIZE_ADD_SPECIAL);
    }
}

static const char *const tiny[] = {"tiny-gqa",    "tiny-odd",    "tiny-pruned", "tiny-sharded",
                                   "tiny-llama3", "tiny-linear", "tiny-yarn",   "tiny-mistral",
                                   "tiny-qwen2",  "tiny-qwen3",  "tiny-phi3"};

static void for_all(void (*check)(struct golden *)) {
    for (size_t i = 0; i < sizeof tiny / sizeof *tiny; i++) {
        struct golden g = open_golden("tests/golden", tiny[i]);
        check(&g);
        close_golden(&g);
    }
    struct golden g = open_golden("models", "tales");
    check(&g);
    close_golden(&g);
}

static void logits_equal_transformers(void **state) {
    (void)state;
    for_all(check_logits);
}

static void greedy_texts_equal_transformers(void **state) {
    (void)state;
    for_all(check_greedy);
}

static void token_ids_equal_the_reference_tokenizers(void **state) {
    (void)state;
    for_all(check_tokenizer);
}

struct likelihoods {
    const json_t *values;
    const int32_t *ids;
    size_t n;
    size_t n_vocab;
    double sum;
};

static pdvm_status on_likelihood(void *user, size_t index, const float *logits, pdvm_error *err) {
    struct likelihoods *l = user;
    (void)err;
    if (index + 1 >= l->n) return PDVM_OK;
    double max = logits[argmax(logits, l->n_vocab)], sum = 0;
    for (size_t i = 0; i < l->n_vocab; i++) sum += exp(logits[i] - max);
    double nll = max + log(sum) - logits[l->ids[index + 1]];
    if (!(fabs(nll - number(l->values, index)) < 1e-3))
        fail_msg("token %zu: negative log likelihood %.6f, expected %.6f", index + 1, nll,
                 number(l->values, index));
    l->sum += nll;
    return PDVM_OK;
}

static void log_likelihoods_equal_transformers(void **state) {
    (void)state;
    pdvm_error err;
    struct golden g = open_golden("models", "tales");
    const json_t *nll = json_object_get(g.json, "nll");
    struct likelihoods l = {.values = json_object_get(nll, "values")};
    int32_t *ids = read_ids(json_object_get(nll, "ids"), &l.n);
    pdvm_model_info info;
    pdvm_model_get_info(g.model, &info);
    l.ids = ids;
    l.n_vocab = info.n_vocab;
    assert_true(l.n > 100);
    pdvm_session *s = exact_session(&g);
    assert_ok(session_forward(s, ids, l.n, on_likelihood, &l, &err), &err);
    double mean = json_number_value(json_object_get(nll, "mean"));
    assert_float_equal(l.sum / (double)(l.n - 1), mean, 1e-4);
    pdvm_session_free(s);
    free(ids);
    close_golden(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_transformers),
        cmocka_unit_test(greedy_texts_equal_transformers),
        cmocka_unit_test(token_ids_equal_the_reference_tokenizers),
        cmocka_unit_test(log_likelihoods_equal_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
