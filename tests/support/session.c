#include "support/session.h"

#include "base/random.h"
#include "io/json.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

pdvm_model *session_model_coded(const char *name, int n_threads, const char *kernels,
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

pdvm_model *session_model(const char *name, int n_threads, const char *kernels) {
    return session_model_coded(name, n_threads, kernels, NULL);
}

pdvm_model *session_model_at(const char *path, int n_threads) {
    pdvm_error err;
    pdvm_model *model;
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = n_threads;
    options.values = "f32";
    assert_ok(pdvm_model_open(path, &options, &model, &err), &err);
    return model;
}

pdvm_session *session_make(pdvm_model *model, const pdvm_session_options *options) {
    pdvm_error err;
    pdvm_session *session;
    pdvm_session_options exact = pdvm_session_options_default();
    exact.type_k = exact.type_v = PDVM_KV_F32;
    assert_ok(pdvm_session_create(model, options ? options : &exact, &session, &err), &err);
    return session;
}

pdvm_session_options session_exact_options(uint32_t n_ctx) {
    pdvm_session_options o = pdvm_session_options_default();
    o.type_k = o.type_v = PDVM_KV_F32;
    o.n_ctx = n_ctx;
    return o;
}

uint32_t session_vocabulary(const pdvm_model *model) {
    pdvm_model_info info;
    pdvm_model_get_info(model, &info);
    return info.n_vocab;
}

void session_random_tokens(int32_t *tokens, size_t n, uint32_t n_vocab, uint64_t seed) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)(pd_random(&seed) % n_vocab);
}

void session_sync(pdvm_session *s, const int32_t *tokens, size_t n) {
    pdvm_error err;
    assert_ok(pdvm_session_sync(s, tokens, n, &err), &err);
}

void session_step(pdvm_session *s, int32_t token) {
    pdvm_error err;
    assert_ok(pdvm_session_step(s, token, &err), &err);
}

float *session_logits(const pdvm_session *s) {
    size_t n;
    const float *logits = pdvm_session_logits(s, &n);
    assert_non_null(logits);
    float *copy = malloc(n * sizeof *copy);
    memcpy(copy, logits, n * sizeof *copy);
    return copy;
}

void assert_same_logits(const pdvm_session *s, const float *expected) {
    size_t n;
    const float *logits = pdvm_session_logits(s, &n);
    assert_non_null(logits);
    assert_memory_equal(logits, expected, n * sizeof *expected);
}

char *session_write_windowed(const char *dir, unsigned window) {
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
