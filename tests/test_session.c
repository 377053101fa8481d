// Sessions against a float64 reference and against themselves: modes, threads, batches, prefixes,
// long and rolling caches, raw activations, saved files, several sessions at once.
// ctest: timeout=300

#include "base/random.h"
#include "io/json.h"
#include "pdvm.h"
#include "support/reference.h"
#include "support/support.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {
    "tests/golden/tiny-gqa",     "tests/golden/tiny-odd",    "tests/golden/tiny-pruned",
    "tests/golden/tiny-sharded", "tests/golden/tiny-llama3", "tests/golden/tiny-linear",
    "tests/golden/tiny-yarn",    "tests/golden/tiny-qwen2",  "tests/golden/tiny-qwen3",
    "tests/golden/tiny-phi3",    "tests/golden/tiny-mistral"};
#define N_MODELS (sizeof models / sizeof *models)
#define GQA models[0]
#define YARN models[6]
#define QWEN2 models[7]
#define QWEN3 models[8]

static pdvm_model *open_coded(const char *name, int n_threads, const char *kernels,
                              const char *values) {
    pdvm_error err;
    pdvm_model *model;
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = n_threads;
    options.kernels = kernels;
    options.values = values;
    char *path = support_source_path(name);
    assert_ok(pdvm_model_open(path, &options, &model, &err), &err);
    free(path);
    return model;
}

static pdvm_model *open_model(const char *name, int n_threads, const char *kernels) {
    return open_coded(name, n_threads, kernels, NULL);
}

// How far float32 activations and 16-bit integer activations may be from float64.
#define FLOAT_ERROR 1e-5
#define INTEGER_ERROR 1e-3

static pdvm_session *make_session(pdvm_model *model, const pdvm_session_options *options) {
    pdvm_error err;
    pdvm_session *session;
    pdvm_session_options exact = pdvm_session_options_default();
    exact.type_k = exact.type_v = PDVM_KV_F32;
    assert_ok(pdvm_session_create(model, options ? options : &exact, &session, &err), &err);
    return session;
}

static uint32_t vocabulary(const pdvm_model *model) {
    pdvm_model_info info;
    pdvm_model_get_info(model, &info);
    return info.n_vocab;
}

static void random_tokens(int32_t *tokens, size_t n, uint32_t n_vocab, uint64_t seed) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)(pd_random(&seed) % n_vocab);
}

static void sync_ok(pdvm_session *s, const int32_t *tokens, size_t n) {
    pdvm_error err;
    assert_ok(pdvm_session_sync(s, tokens, n, &err), &err);
}

static void step_ok(pdvm_session *s, int32_t token) {
    pdvm_error err;
    assert_ok(pdvm_session_step(s, token, &err), &err);
}

// A copy of the current logits.
static float *logits_of(const pdvm_session *s) {
    size_t n;
    const float *logits = pdvm_session_logits(s, &n);
    assert_non_null(logits);
    float *copy = malloc(n * sizeof *copy);
    memcpy(copy, logits, n * sizeof *copy);
    return copy;
}

static void assert_same_logits(const pdvm_session *s, const float *expected) {
    size_t n;
    const float *logits = pdvm_session_logits(s, &n);
    assert_non_null(logits);
    assert_memory_equal(logits, expected, n * sizeof *expected);
}

// The tiny Mistral with another sliding window in DIR; its path, to be freed.
static char *write_windowed(const char *dir, unsigned window) {
    pdvm_error err;
    json_t *config;
    size_t size;
    char *path = support_source_path("tests/golden/tiny-mistral/config.json");
    char *text = support_read_file(path, &size);
    assert_ok(pd_json_parse_object(path, text, size, &config, &err), &err);
    free(text);
    free(path);
    json_object_set_new(config, "sliding_window", json_integer(window));
    text = json_dumps(config, 0);
    free(support_write_text(dir, "config.json", text));
    free(text);
    json_decref(config);
    path = support_source_path("tests/golden/tiny-mistral/model.safetensors");
    text = support_read_file(path, &size);
    free(support_write_file(dir, "model.safetensors", text, size));
    free(text);
    free(path);
    return strdup(dir);
}

static pdvm_model *open_path(const char *path, int n_threads) {
    pdvm_error err;
    pdvm_model *model;
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = n_threads;
    options.values = "f32";
    assert_ok(pdvm_model_open(path, &options, &model, &err), &err);
    return model;
}

static void check_logits(const char *name, enum mdcsr_values values, double bound) {
    pdvm_model *model = open_coded(name, 2, "auto", mdcsr_values_name(values));
    pdvm_session *s = make_session(model, NULL);
    char *path = support_source_path(name);
    struct reference *r = reference_open(path, values, 0, 0);
    uint32_t n_vocab = vocabulary(model);
    double *expected = calloc(n_vocab, sizeof *expected);
    int32_t tokens[40];
    random_tokens(tokens, 40, n_vocab, 17);
    for (int t = 0; t < 40; t++) {
        step_ok(s, tokens[t]);
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
                         v <= MDCSR_F16 ? FLOAT_ERROR : INTEGER_ERROR);
}

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
            pdvm_model *model = open_model(models[i], cases[c].n_threads, cases[c].kernels);
            random_tokens(tokens, 90, vocabulary(model), 3);
            for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
                pdvm_session_options o = pdvm_session_options_default();
                o.mode = (pdvm_mode)mode;
                pdvm_session *s = make_session(model, &o);
                sync_ok(s, tokens, 86);
                for (int j = 86; j < 90; j++) step_ok(s, tokens[j]);
                if (!first) first = logits_of(s);
                assert_same_logits(s, first);
                pdvm_session_free(s);
            }
            pdvm_model_close(model);
        }
        free(first);
    }
}

static uint64_t dispatches_of_a_token(pdvm_model *model, pdvm_mode mode) {
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session_stats before, after;
    o.mode = mode;
    pdvm_session *s = make_session(model, &o);
    step_ok(s, 1);
    pdvm_session_get_stats(s, &before);
    step_ok(s, 2);
    pdvm_session_get_stats(s, &after);
    pdvm_session_free(s);
    return after.n_dispatches - before.n_dispatches;
}

static void modes_differ_in_dispatches_per_token(void **state) {
    (void)state;
    pdvm_model *model = open_model(GQA, 2, "auto");
    pdvm_model_info info;
    pdvm_model_get_info(model, &info);
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_TOKEN), 1);
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_LAYER), info.n_layers);
    // and the embedding and the head
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_PHASE), 5 * info.n_layers + 2);
    assert_int_equal(dispatches_of_a_token(model, PDVM_MODE_UNFUSED), 6 * info.n_layers + 2);
    pdvm_model_close(model);
}

static void batches_of_any_size_give_identical_bits(void **state) {
    (void)state;
    static const uint32_t batches[] = {1, 2, 5, 31, 64, 150};
    const char *const names[] = {GQA, QWEN2, QWEN3};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        pdvm_model *model = open_model(names[k], 2, "auto");
        int32_t tokens[150];
        random_tokens(tokens, 150, vocabulary(model), 9);
        float *first = NULL;
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
            pdvm_session_options o = pdvm_session_options_default();
            o.n_batch = batches[i];
            pdvm_session *s = make_session(model, &o);
            sync_ok(s, tokens, 150);
            if (!first) first = logits_of(s);
            assert_same_logits(s, first);
            pdvm_session_free(s);
        }
        free(first);
        pdvm_model_close(model);
    }
}

static void sync_computes_only_what_is_not_in_the_cache(void **state) {
    (void)state;
    pdvm_model *model = open_model(GQA, 2, "auto");
    pdvm_session *s = make_session(model, NULL), *fresh = make_session(model, NULL);
    pdvm_session_stats stats;
    int32_t tokens[100];
    random_tokens(tokens, 100, vocabulary(model), 1);
    sync_ok(s, tokens, 50);
    sync_ok(s, tokens, 80); // longer: 30 new
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 80);
    assert_int_equal(stats.n_reused, 50);
    sync_ok(s, tokens, 80); // the same: nothing
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 80);
    tokens[60] = (tokens[60] + 1) % (int32_t)vocabulary(model);
    sync_ok(s, tokens, 70); // differs from 60 on
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 90);
    sync_ok(s, tokens, 65); // a prefix: the last token's logits are needed again
    pdvm_session_get_stats(s, &stats);
    assert_int_equal(stats.n_computed, 91);
    sync_ok(fresh, tokens, 65);
    float *expected = logits_of(fresh);
    assert_same_logits(s, expected);
    free(expected);
    pdvm_session_free(s);
    pdvm_session_free(fresh);
    pdvm_model_close(model);
}

static void rewinding_and_stepping_again_gives_the_same(void **state) {
    (void)state;
    pdvm_error err;
    pdvm_model *model = open_model(GQA, 1, "auto");
    pdvm_session *s = make_session(model, NULL);
    int32_t tokens[40];
    size_t n;
    random_tokens(tokens, 40, vocabulary(model), 2);
    sync_ok(s, tokens, 40);
    float *expected = logits_of(s);
    assert_ok(pdvm_session_rewind(s, 30, &err), &err);
    assert_null(pdvm_session_logits(s, NULL));
    pdvm_session_tokens(s, &n);
    assert_int_equal(n, 30);
    for (int i = 30; i < 40; i++) step_ok(s, tokens[i]);
    assert_same_logits(s, expected);
    assert_error(pdvm_session_rewind(s, 41, &err), PDVM_ERR_RANGE, &err, "41");
    free(expected);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

// Steps through `n` tokens, in batches up to `from` and one by one behind it, and compares the
// logits of every `every`-th of the latter.
static void check_long(const char *path, const pdvm_session_options *options, uint32_t n,
                       uint32_t from, uint32_t every) {
    pdvm_model *model = open_path(path, 3);
    struct reference *r =
        reference_open(path, MDCSR_F32, options->rolling ? options->n_ctx : 0, options->n_sink);
    pdvm_session *s = make_session(model, options);
    uint32_t n_vocab = vocabulary(model);
    int32_t *tokens = calloc(n, sizeof *tokens);
    double *expected = calloc(n_vocab, sizeof *expected);
    random_tokens(tokens, n, n_vocab, 4);
    sync_ok(s, tokens, from);
    for (uint32_t i = 0; i < n; i++) {
        bool check = i + 1 >= from && (n - 1 - i) % every == 0;
        if (i >= from) step_ok(s, tokens[i]);
        reference_step(r, tokens[i], check ? expected : NULL);
        if (!check) continue;
        double error = reference_error(pdvm_session_logits(s, NULL), expected, n_vocab);
        if (!(error < FLOAT_ERROR)) fail_msg("%s: token %u: error %g", path, i, error);
    }
    free(expected);
    free(tokens);
    reference_free(r);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

static pdvm_session_options exact_options(uint32_t n_ctx) {
    pdvm_session_options o = pdvm_session_options_default();
    o.type_k = o.type_v = PDVM_KV_F32;
    o.n_ctx = n_ctx;
    return o;
}

// Long enough that attention is split into several pieces and merged.
static void long_contexts_equal_the_reference(void **state) {
    (void)state;
    const char *const names[] = {GQA, QWEN2, YARN};
    const pdvm_session_options o = exact_options(1100);
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
        char *dir = support_tmpdir(), *path = write_windowed(dir, cases[i].window);
        const pdvm_session_options o = exact_options(cases[i].n);
        check_long(path, &o, cases[i].n, cases[i].from, cases[i].n > 1000 ? 6 : 1);
        free(path);
        support_tmpdir_remove(dir);
    }
}

static void half_and_int8_caches_stay_close_to_float(void **state) {
    (void)state;
    static const struct {
        pdvm_kv_type type;
        double bound;
    } cases[] = {{PDVM_KV_F16, 2e-3}, {PDVM_KV_INT8, 3e-2}};
    pdvm_model *model = open_model(GQA, 2, "auto");
    uint32_t n_vocab = vocabulary(model);
    int32_t tokens[200];
    random_tokens(tokens, 200, n_vocab, 8);
    pdvm_session *exact = make_session(model, NULL);
    sync_ok(exact, tokens, 200);
    double *expected = calloc(n_vocab, sizeof *expected);
    for (uint32_t i = 0; i < n_vocab; i++) expected[i] = pdvm_session_logits(exact, NULL)[i];
    pdvm_session_stats exact_stats, stats;
    pdvm_session_get_stats(exact, &exact_stats);
    for (int i = 0; i < 2; i++) {
        pdvm_session_options o = pdvm_session_options_default();
        o.type_k = o.type_v = cases[i].type;
        pdvm_session *s = make_session(model, &o);
        sync_ok(s, tokens, 200);
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

static void a_rolling_cache_keeps_sinks_and_window(void **state) {
    (void)state;
    enum { CTX = 24, SINK = 4, N = 90 };
    pdvm_error err;
    pdvm_model *model = open_coded(GQA, 2, "auto", "f32");
    char *path = support_source_path(GQA);
    struct reference *r = reference_open(path, MDCSR_F32, CTX, SINK);
    pdvm_session_options o = pdvm_session_options_default();
    o.type_k = o.type_v = PDVM_KV_F32;
    o.n_ctx = CTX;
    o.rolling = true;
    o.n_sink = SINK;
    pdvm_session *s = make_session(model, &o);
    uint32_t n_vocab = vocabulary(model);
    int32_t tokens[N];
    double *expected = calloc(n_vocab, sizeof *expected);
    random_tokens(tokens, N, n_vocab, 12);
    sync_ok(s, tokens, 40); // runs over the end of the cache within one prompt
    for (int i = 0; i < N; i++) {
        if (i >= 40) step_ok(s, tokens[i]);
        reference_step(r, tokens[i], expected);
        if (i < 39) continue;
        double error = reference_error(pdvm_session_logits(s, NULL), expected, n_vocab);
        if (!(error < FLOAT_ERROR)) fail_msg("token %d: error %g", i, error);
    }
    assert_error(pdvm_session_rewind(s, N - 1, &err), PDVM_ERR_RANGE, &err, "dropped");
    // A sync that needs dropped tokens starts over by itself.
    sync_ok(s, tokens, 20);
    pdvm_session *fresh = make_session(model, &o);
    sync_ok(fresh, tokens, 20);
    float *same = logits_of(fresh);
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
    pdvm_session_options o = exact_options(24);
    o.rolling = true;
    o.n_sink = 4;
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        char *dir = support_tmpdir(), *path = write_windowed(dir, windows[i]);
        check_long(path, &o, 90, 20, 1);
        o.n_sink = i % 2 ? 0 : 4;
        free(path);
        support_tmpdir_remove(dir);
    }
    o.n_sink = 4;
    const char *const names[] = {QWEN2, QWEN3, YARN};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = support_source_path(names[i]);
        check_long(path, &o, 90, 40, 1);
        free(path);
    }
    // A ring of several pieces, in which the window wraps around.
    char *dir = support_tmpdir(), *path = write_windowed(dir, 600);
    o.n_ctx = 1100;
    check_long(path, &o, 1250, 1090, 32);
    free(path);
    support_tmpdir_remove(dir);
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
    } cases[] = {{0, N, PDVM_KV_INT8},  {0, N, PDVM_KV_F16},   {100, N, PDVM_KV_F32},
                 {600, N, PDVM_KV_F16}, {0, 700, PDVM_KV_F16}, {600, 1100, PDVM_KV_INT8}};
    static const uint32_t batches[] = {1, 23, 256};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *dir = support_tmpdir();
        char *path =
            cases[i].window ? write_windowed(dir, cases[i].window) : support_source_path(QWEN3);
        pdvm_model *model = open_path(path, 3);
        pdvm_session_options o = exact_options(cases[i].n_ctx);
        o.type_k = o.type_v = cases[i].type;
        o.rolling = cases[i].n_ctx < N;
        int32_t tokens[N];
        random_tokens(tokens, N, vocabulary(model), 21);
        float *first = NULL;
        for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
            o.n_batch = batches[k];
            pdvm_session *s = make_session(model, &o);
            sync_ok(s, tokens, N);
            if (!first) first = logits_of(s);
            assert_same_logits(s, first);
            pdvm_session_free(s);
        }
        free(first);
        pdvm_model_close(model);
        free(path);
        support_tmpdir_remove(dir);
    }
}

// What is dropped then was out of sight already.
static void a_rolling_cache_of_the_windows_length_changes_nothing(void **state) {
    (void)state;
    enum { WINDOW = 20, SINK = 2, N = 120 };
    char *dir = support_tmpdir(), *path = write_windowed(dir, WINDOW);
    pdvm_model *model = open_path(path, 2);
    pdvm_session_options o = exact_options(N), rolling = exact_options(WINDOW + SINK);
    rolling.rolling = true;
    rolling.n_sink = SINK;
    pdvm_session *a = make_session(model, &o), *b = make_session(model, &rolling);
    uint32_t n_vocab = vocabulary(model);
    double *expected = calloc(n_vocab, sizeof *expected);
    int32_t tokens[N];
    random_tokens(tokens, N, n_vocab, 33);
    for (int i = 0; i < N; i++) {
        step_ok(a, tokens[i]);
        step_ok(b, tokens[i]);
        for (uint32_t k = 0; k < n_vocab; k++) expected[k] = pdvm_session_logits(a, NULL)[k];
        double error = reference_error(pdvm_session_logits(b, NULL), expected, n_vocab);
        if (!(error < FLOAT_ERROR)) fail_msg("token %d: error %g", i, error);
    }
    free(expected);
    pdvm_session_free(a);
    pdvm_session_free(b);
    pdvm_model_close(model);
    free(path);
    support_tmpdir_remove(dir);
}

static void execute_layer_and_model_equal_the_reference(void **state) {
    (void)state;
    pdvm_error err;
    for (size_t i = 0; i < N_MODELS; i++) {
        pdvm_model *model = open_coded(models[i], 2, "auto", "f32");
        pdvm_session *layers = make_session(model, NULL), *whole = make_session(model, NULL);
        char *path = support_source_path(models[i]);
        struct reference *r = reference_open(path, MDCSR_F32, 0, 0);
        const struct model_config *c = reference_config(r);
        float *a = calloc(c->hidden_size, sizeof *a), *b = calloc(c->hidden_size, sizeof *b);
        for (int32_t token = 5; token < 15; token++) {
            reference_step(r, token, NULL);
            memcpy(a, reference_embedding(r, token), c->hidden_size * sizeof *a);
            memcpy(b, a, c->hidden_size * sizeof *b);
            assert_ok(pdvm_execute_model(whole, a, &err), &err);
            assert_true(reference_error(a, reference_hidden(r), c->hidden_size) < FLOAT_ERROR);
            for (uint32_t l = 0; l < c->n_layers; l++)
                assert_ok(pdvm_execute_layer(layers, l, b, &err), &err);
            assert_memory_equal(a, b, c->hidden_size * sizeof *a);
            // Only execute_model moves on; here a step of the same token does it.
            step_ok(layers, token);
        }
        assert_error(pdvm_execute_layer(layers, c->n_layers, a, &err), PDVM_ERR_ARGUMENT, &err,
                     "layer");
        // Raw activations never count as a prefix.
        int32_t tokens[2] = {5, 6};
        pdvm_session_stats stats;
        sync_ok(whole, tokens, 2);
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
    pdvm_model *model = open_model(GQA, 1, "auto");
    pdvm_session_options o = pdvm_session_options_default();
    o.n_ctx = 8;
    pdvm_session *s = make_session(model, &o), *other;
    int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    assert_error(pdvm_session_sync(s, tokens, 0, &err), PDVM_ERR_ARGUMENT, &err, "no tokens");
    assert_error(pdvm_session_sync(s, tokens, 9, &err), PDVM_ERR_RANGE, &err, "9 tokens");
    sync_ok(s, tokens, 8);
    assert_error(pdvm_session_step(s, 1, &err), PDVM_ERR_RANGE, &err, "context of 8");
    tokens[3] = (int32_t)vocabulary(model);
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
    pdvm_model *model = open_model(GQA, 1, "auto");
    pdvm_session_options o = pdvm_session_options_default();
    o.n_batch = 16;
    o.progress = stop_halfway;
    pdvm_session *s = make_session(model, &o), *fresh = make_session(model, NULL);
    int32_t tokens[100];
    size_t n;
    random_tokens(tokens, 100, vocabulary(model), 6);
    assert_error(pdvm_session_sync(s, tokens, 100, &err), PDVM_ERR_CANCELLED, &err, "cancelled");
    pdvm_session_tokens(s, &n);
    assert_int_equal(n, 64);
    step_ok(s, tokens[64]);
    pdvm_session_free(fresh);
    o.progress = NULL;
    fresh = make_session(model, &o);
    sync_ok(fresh, tokens, 65);
    float *expected = logits_of(fresh);
    assert_same_logits(s, expected);
    free(expected);
    pdvm_session_free(s);
    pdvm_session_free(fresh);
    pdvm_model_close(model);
}

static void saved_sessions_continue_with_identical_bits(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "s.session");
    pdvm_model *model = open_model(GQA, 2, "auto");
    int32_t tokens[70];
    random_tokens(tokens, 70, vocabulary(model), 21);
    for (int type = 0; type < 3; type++) {
        for (int rolling = 0; rolling < 2; rolling++) {
            pdvm_session_options o = pdvm_session_options_default();
            o.type_k = (pdvm_kv_type)type;
            o.type_v = (pdvm_kv_type)((type + 1) % 3);
            o.rolling = rolling;
            o.n_ctx = rolling ? 32 : 128;
            pdvm_session *a = make_session(model, &o), *b = make_session(model, &o);
            sync_ok(a, tokens, 60);
            assert_ok(pdvm_session_save(a, path, &err), &err);
            step_ok(b, 3); // what was there is replaced
            assert_ok(pdvm_session_load(b, path, &err), &err);
            float *expected = logits_of(a);
            assert_same_logits(b, expected);
            free(expected);
            for (int i = 60; i < 70; i++) {
                step_ok(a, tokens[i]);
                step_ok(b, tokens[i]);
            }
            expected = logits_of(a);
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
    pdvm_model *model = open_model(GQA, 1, "auto"), *other = open_model(models[3], 1, "auto");
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session *s = make_session(model, &o), *foreign = make_session(other, &o);
    int32_t tokens[5] = {1, 2, 3, 4, 5};
    sync_ok(s, tokens, 5);
    assert_ok(pdvm_session_save(s, path, &err), &err);
    assert_error(pdvm_session_load(foreign, path, &err), PDVM_ERR_UNSUPPORTED, &err, "model");
    o.type_v = PDVM_KV_INT8;
    pdvm_session *typed = make_session(model, &o);
    assert_error(pdvm_session_load(typed, path, &err), PDVM_ERR_UNSUPPORTED, &err, "KV cache");
    o = pdvm_session_options_default();
    o.n_ctx = 4;
    pdvm_session *small = make_session(model, &o);
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
    pdvm_model *model = open_model(GQA, 1, "auto");
    pdvm_session *s = make_session(model, NULL);
    int32_t tokens[12];
    random_tokens(tokens, 12, vocabulary(model), 2);
    sync_ok(s, tokens, 12);
    assert_ok(pdvm_session_save(s, path, &err), &err);
    float *expected = logits_of(s);
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
    pdvm_model *model = open_model(GQA, 2, "auto");
    int32_t tokens[N][60];
    pthread_t threads[N];
    struct concurrent c[N];
    for (int i = 0; i < N; i++) {
        random_tokens(tokens[i], 60, vocabulary(model), (uint64_t)i + 50);
        c[i] = (struct concurrent){.model = model, .tokens = tokens[i], .n = 60};
        assert_int_equal(pthread_create(&threads[i], NULL, run_concurrently, &c[i]), 0);
    }
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N; i++) {
        pdvm_session *alone = make_session(
            model, &(pdvm_session_options){.type_k = PDVM_KV_F16, .type_v = PDVM_KV_F16});
        sync_ok(alone, tokens[i], 60);
        assert_non_null(c[i].logits);
        assert_same_logits(alone, c[i].logits);
        free(c[i].logits);
        pdvm_session_free(alone);
    }
    pdvm_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_the_float64_reference),
        cmocka_unit_test(modes_threads_and_kernels_give_identical_bits),
        cmocka_unit_test(modes_differ_in_dispatches_per_token),
        cmocka_unit_test(batches_of_any_size_give_identical_bits),
        cmocka_unit_test(sync_computes_only_what_is_not_in_the_cache),
        cmocka_unit_test(rewinding_and_stepping_again_gives_the_same),
        cmocka_unit_test(long_contexts_equal_the_reference),
        cmocka_unit_test(sliding_windows_over_long_contexts_equal_the_reference),
        cmocka_unit_test(half_and_int8_caches_stay_close_to_float),
        cmocka_unit_test(a_rolling_cache_keeps_sinks_and_window),
        cmocka_unit_test(sliding_windows_in_a_rolling_cache_equal_the_reference),
        cmocka_unit_test(long_prompts_in_batches_give_identical_bits),
        cmocka_unit_test(a_rolling_cache_of_the_windows_length_changes_nothing),
        cmocka_unit_test(execute_layer_and_model_equal_the_reference),
        cmocka_unit_test(bad_tokens_and_lengths_are_refused),
        cmocka_unit_test(a_cancelled_prompt_leaves_a_valid_prefix),
        cmocka_unit_test(saved_sessions_continue_with_identical_bits),
        cmocka_unit_test(foreign_sessions_are_refused),
        cmocka_unit_test(damaged_session_files_leave_the_session_alone),
        cmocka_unit_test(several_sessions_on_several_threads_do_not_disturb_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
