#include "support/cuda_checks.h"

#include "base/random.h"
#include "model/source_synthetic.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pdvm_model *open_on(const char *backend, const char *shape, const char *values,
                           double sparsity, uint32_t group) {
    pdvm_model_options o = pdvm_model_options_default();
    pdvm_model *model;
    pdvm_error err;
    o.backend = backend;
    o.values = values;
    if (strncmp(shape, "models/", 7) == 0 || strncmp(shape, "tests/", 6) == 0) {
        char *path = support_source_path(shape);
        assert_ok(pdvm_model_open(path, &o, &model, &err), &err);
        free(path);
        return model;
    }
    struct synthetic_options s = {.shape = shape, .sparsity = sparsity, .group = group, .seed = 7};
    struct model_source *source;
    assert_true(mdcsr_values_parse(values, &s.values));
    o.values = NULL;
    assert_ok(source_open_synthetic(&s, &source, &err), &err);
    assert_ok(model_open_source(source, &o, &model, &err), &err);
    return model;
}

void cuda_pair_open(struct cuda_pair *p, const char *shape, const char *values, double sparsity,
                    uint32_t group) {
    p->cpu = open_on("cpu", shape, values, sparsity, group);
    p->cuda = open_on("cuda", shape, values, sparsity, group);
    snprintf(p->name, sizeof p->name, "%.40s, %s, sparsity %g, group %u", shape, values, sparsity,
             group);
}

void cuda_pair_close(struct cuda_pair *p) {
    pdvm_model_close(p->cpu);
    pdvm_model_close(p->cuda);
}

pdvm_session *cuda_session(pdvm_model *model, pdvm_mode mode, pdvm_kv_type type, uint32_t n_ctx) {
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session *s;
    pdvm_error err;
    o.mode = mode;
    o.type_k = o.type_v = type;
    o.n_ctx = n_ctx;
    assert_ok(pdvm_session_create(model, &o, &s, &err), &err);
    return s;
}

void cuda_tokens(const pdvm_model *model, int32_t *tokens, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)(pd_random(&seed) % model->config.n_vocab);
}

double cuda_difference(const pdvm_session *a, const pdvm_session *b) {
    size_t n;
    const float *x = pdvm_session_logits(a, &n), *y = pdvm_session_logits(b, NULL);
    double error = 0, norm = 0;
    assert_true(x && y);
    for (size_t i = 0; i < n; i++) {
        error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        norm += (double)y[i] * y[i];
    }
    return sqrt(error / norm);
}

double cuda_check_equals_cpu(const struct cuda_pair *p, pdvm_mode mode, pdvm_kv_type type,
                             uint32_t n_prompt, uint32_t n, double tolerance) {
    pdvm_session *cpu = cuda_session(p->cpu, PDVM_MODE_TOKEN, type, n_prompt + n);
    pdvm_session *cuda = cuda_session(p->cuda, mode, type, n_prompt + n);
    int32_t *tokens = calloc(n_prompt + n, sizeof *tokens);
    pdvm_error err;
    double worst = 0;
    cuda_tokens(p->cpu, tokens, n_prompt + n, 3);
    for (uint32_t i = n_prompt; i <= n_prompt + n; i++) {
        assert_ok(pdvm_session_sync(cpu, tokens, i, &err), &err);
        assert_ok(pdvm_session_sync(cuda, tokens, i, &err), &err);
        double d = cuda_difference(cuda, cpu);
        if (!(d <= tolerance))
            support_fail("%s, mode %d: logits differ by %g after %u tokens", p->name, (int)mode, d,
                         i);
        if (d > worst) worst = d;
    }
    pdvm_session_free(cpu);
    pdvm_session_free(cuda);
    free(tokens);
    return worst;
}

void cuda_check_modes(const struct cuda_pair *p, pdvm_kv_type type, uint32_t n) {
    size_t row = p->cuda->config.n_vocab * sizeof(float);
    int32_t *tokens = calloc(n, sizeof *tokens);
    uint8_t *first = calloc(n, row);
    pdvm_error err;
    cuda_tokens(p->cuda, tokens, n, 5);
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        pdvm_session *s = cuda_session(p->cuda, (pdvm_mode)mode, type, n);
        for (uint32_t i = 0; i < n; i++) {
            assert_ok(pdvm_session_step(s, tokens[i], &err), &err);
            const float *logits = pdvm_session_logits(s, NULL);
            if (mode == PDVM_MODE_TOKEN)
                memcpy(first + i * row, (const void *)logits, row);
            else if (memcmp(first + i * row, (const void *)logits, row) != 0)
                support_fail("%s: mode %d gives other bits than mode token at position %u", p->name,
                             mode, i);
        }
        pdvm_session_free(s);
    }
    free(first);
    free(tokens);
}

void cuda_check_turns(const struct cuda_pair *p, pdvm_mode mode, uint32_t n) {
    int32_t *tokens[2];
    pdvm_session *alone[2], *turns[2];
    pdvm_error err;
    for (int i = 0; i < 2; i++) {
        tokens[i] = calloc(n, sizeof *tokens[i]);
        cuda_tokens(p->cuda, tokens[i], n, (uint64_t)i + 20);
        alone[i] = cuda_session(p->cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, n);
        turns[i] = cuda_session(p->cuda, i ? mode : PDVM_MODE_TOKEN, PDVM_KV_F16, n);
        assert_ok(pdvm_session_sync(alone[i], tokens[i], n, &err), &err);
    }
    for (uint32_t t = 0; t < n; t++)
        for (int i = 0; i < 2; i++)
            assert_ok(pdvm_session_step(turns[i], tokens[i][t], &err), &err);
    for (int i = 0; i < 2; i++) {
        assert_true(cuda_difference(turns[i], alone[i]) == 0);
        pdvm_session_free(alone[i]);
        pdvm_session_free(turns[i]);
        free(tokens[i]);
    }
}

void cuda_greedy(pdvm_session *s, const int32_t *prompt, size_t n_prompt, int32_t *tokens,
                 size_t n) {
    pdvm_error err;
    assert_ok(pdvm_session_sync(s, prompt, n_prompt, &err), &err);
    for (size_t i = 0; i < n; i++) {
        size_t n_vocab, best = 0;
        const float *logits = pdvm_session_logits(s, &n_vocab);
        for (size_t t = 1; t < n_vocab; t++)
            if (logits[t] > logits[best]) best = t;
        tokens[i] = (int32_t)best;
        assert_ok(pdvm_session_step(s, tokens[i], &err), &err);
    }
}
