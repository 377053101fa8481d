#include "support/reference.h"

#include "model/encoding.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct reference {
    struct model_source *source;
    struct model_config c;
    float **weights; // in the order of tensors_at
    uint32_t n_ctx;
    uint32_t n_sink;
    uint32_t n_tokens;
    double *keys; // [n_layers][n_tokens][n_kv_heads * head_dim], before RoPE
    double *values;
    uint32_t capacity;
    double *x;
    double *frequencies; // [head_dim / 2]
};

static float *read_tensor(struct reference *r, const struct tensor_info *t,
                          enum mdcsr_values values) {
    pdvm_error err;
    float *w;
    if (!t->is_matrix) {
        assert_ok(encoding_read_floats(r->source, t, NULL, &w, &err), &err);
        return w;
    }
    struct mdcsr m;
    assert_ok(encoding_load(r->source, t, values, NULL, &m, &err), &err);
    w = malloc((size_t)(t->rows * t->cols) * sizeof *w);
    assert_non_null(w);
    for (int64_t i = 0; i < t->rows; i++) mdcsr_decode_row(&m, i, w + i * t->cols);
    mdcsr_free(&m);
    return w;
}

// The frequency of pair i, scaled as the papers and model cards have it: in float64, and not in
// the steps of the product.
static double frequency(const struct model_config *c, uint32_t i) {
    const struct rope_scaling *s = &c->rope_scaling;
    double d = c->head_dim, f = pow(c->rope_theta, -2.0 * i / d), keep = 0;
    double length = s->original_max_position_embeddings, turns = length * f / (2 * M_PI);
    switch (s->kind) {
    case ROPE_SCALING_NONE: return f;
    case ROPE_SCALING_LINEAR: break;
    case ROPE_SCALING_LLAMA3:
        keep = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
        break;
    case ROPE_SCALING_YARN: {
        // The pair whose frequency turns `beta` times over the original length.
        double per_pair = 2 * log(c->rope_theta) / d;
        double low = log(length / (2 * M_PI * s->beta_fast)) / per_pair;
        double high = log(length / (2 * M_PI * s->beta_slow)) / per_pair;
        low = s->truncate ? floor(low) : low;
        high = s->truncate ? ceil(high) : high;
        low = low < 0 ? 0 : low;
        high = high > d - 1 ? d - 1 : high;
        keep = 1 - (i - low) / (high - low);
        break;
    }
    }
    keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
    return f * keep + f / s->factor * (1 - keep);
}

struct reference *reference_open(const char *path, enum mdcsr_values values, uint32_t n_ctx,
                                 uint32_t n_sink) {
    pdvm_error err;
    struct reference *r = calloc(1, sizeof *r);
    assert_non_null(r);
    assert_ok(source_open(path, &r->source, &err), &err);
    r->c = r->source->config;
    r->n_ctx = n_ctx;
    r->n_sink = n_sink;
    size_t n = tensors_count(&r->c);
    r->weights = calloc(n, sizeof *r->weights);
    r->x = calloc(r->c.hidden_size, sizeof *r->x);
    r->frequencies = calloc(r->c.head_dim / 2, sizeof *r->frequencies);
    for (uint32_t i = 0; i < r->c.head_dim / 2; i++) r->frequencies[i] = frequency(&r->c, i);
    for (size_t i = 0; i < n; i++) {
        struct tensor_info t;
        tensors_at(&r->c, i, &t);
        r->weights[i] = read_tensor(r, &t, values);
    }
    return r;
}

void reference_free(struct reference *r) {
    for (size_t i = 0; i < tensors_count(&r->c); i++) free(r->weights[i]);
    free(r->weights);
    free(r->keys);
    free(r->values);
    free(r->x);
    free(r->frequencies);
    source_close(r->source);
    free(r);
}

const struct model_config *reference_config(const struct reference *r) {
    return &r->c;
}
const double *reference_hidden(const struct reference *r) {
    return r->x;
}

static const float *weight(const struct reference *r, enum tensor_role role, uint32_t layer) {
    for (size_t i = 0; i < tensors_count(&r->c); i++) {
        struct tensor_info t;
        tensors_at(&r->c, i, &t);
        if (t.role == role && t.layer == layer) return r->weights[i];
    }
    fail_msg("no tensor of role %d", (int)role);
    return NULL;
}

const float *reference_embedding(const struct reference *r, int32_t token) {
    return weight(r, TENSOR_EMBED, 0) + (size_t)token * r->c.hidden_size;
}

static void product(const float *w, size_t rows, size_t cols, const double *x, double *out) {
    for (size_t i = 0; i < rows; i++) {
        out[i] = 0;
        for (size_t j = 0; j < cols; j++) out[i] += (double)w[i * cols + j] * x[j];
    }
}

static void rms_norm(const double *x, const float *w, size_t n, double eps, double *out) {
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += x[i] * x[i];
    for (size_t i = 0; i < n; i++) out[i] = x[i] / sqrt(squares / (double)n + eps) * w[i];
}

static void rope(const struct reference *r, double position, const double *in, double *out) {
    const struct model_config *c = &r->c;
    uint32_t half = c->head_dim / 2;
    double factor =
        c->rope_scaling.kind == ROPE_SCALING_YARN ? c->rope_scaling.attention_factor : 1;
    for (uint32_t i = 0; i < half; i++) {
        double angle = position * r->frequencies[i];
        out[i] = factor * (in[i] * cos(angle) - in[i + half] * sin(angle));
        out[i + half] = factor * (in[i + half] * cos(angle) + in[i] * sin(angle));
    }
}

// A rolling cache numbers what it still holds from 0: sinks first, then the rest. A sliding window
// counts these numbers.
static bool visible(const struct reference *r, uint32_t layer, uint32_t token, uint32_t now,
                    double *position) {
    uint32_t dropped = r->n_ctx && now + 1 > r->n_ctx ? now + 1 - r->n_ctx : 0;
    uint32_t window = model_config_window(&r->c, layer);
    *position = token < r->n_sink ? token : (double)token - dropped;
    if (window && !(*position > (double)now - dropped - window)) return false;
    return dropped == 0 || token < r->n_sink || token >= r->n_sink + dropped;
}

static void attention(const struct reference *r, uint32_t layer, const double *q, double *out) {
    const struct model_config *c = &r->c;
    uint32_t d = c->head_dim, now = r->n_tokens - 1;
    size_t kv = (size_t)c->n_kv_heads * d;
    double *p = calloc(r->n_tokens, sizeof *p);
    for (uint32_t head = 0; head < c->n_heads; head++) {
        uint32_t kv_head = head / (c->n_heads / c->n_kv_heads);
        double query[512], key[512], position, max = -INFINITY, sum = 0;
        visible(r, layer, now, now, &position);
        rope(r, position, q + (size_t)head * d, query);
        for (uint32_t t = 0; t <= now; t++) {
            p[t] = -INFINITY;
            if (!visible(r, layer, t, now, &position)) continue;
            size_t at = ((size_t)layer * r->capacity + t) * kv + (size_t)kv_head * d;
            rope(r, position, r->keys + at, key);
            p[t] = 0;
            for (uint32_t i = 0; i < d; i++) p[t] += query[i] * key[i];
            p[t] /= sqrt(d);
            max = fmax(max, p[t]);
        }
        for (uint32_t t = 0; t <= now; t++) sum += p[t] = exp(p[t] - max);
        for (uint32_t i = 0; i < d; i++) out[(size_t)head * d + i] = 0;
        for (uint32_t t = 0; t <= now; t++) {
            size_t at = ((size_t)layer * r->capacity + t) * kv + (size_t)kv_head * d;
            for (uint32_t i = 0; i < d; i++)
                out[(size_t)head * d + i] += p[t] / sum * r->values[at + i];
        }
    }
    free(p);
}

static void add_bias(const struct reference *r, enum tensor_role role, uint32_t layer, size_t n,
                     double *out) {
    if (!tensors_has(&r->c, role)) return;
    const float *bias = weight(r, role, layer);
    for (size_t i = 0; i < n; i++) out[i] += bias[i];
}

static void norm_heads(const struct reference *r, enum tensor_role role, uint32_t layer,
                       uint32_t n_heads, double *x) {
    if (!tensors_has(&r->c, role)) return;
    for (uint32_t head = 0; head < n_heads; head++) {
        double *row = x + (size_t)head * r->c.head_dim;
        rms_norm(row, weight(r, role, layer), r->c.head_dim, r->c.rms_norm_eps, row);
    }
}

static void grow(struct reference *r) {
    if (r->n_tokens < r->capacity) return;
    uint32_t capacity = r->capacity ? 2 * r->capacity : 64;
    size_t kv = (size_t)r->c.n_kv_heads * r->c.head_dim;
    double **arrays[2] = {&r->keys, &r->values};
    for (int i = 0; i < 2; i++) {
        double *p = calloc((size_t)r->c.n_layers * capacity * kv, sizeof *p);
        for (uint32_t l = 0; l < r->c.n_layers && r->n_tokens; l++)
            memcpy(p + (size_t)l * capacity * kv, *arrays[i] + (size_t)l * r->capacity * kv,
                   r->n_tokens * kv * sizeof *p);
        free(*arrays[i]);
        *arrays[i] = p;
    }
    r->capacity = capacity;
}

void reference_step(struct reference *r, int32_t token, double *logits) {
    const struct model_config *c = &r->c;
    size_t h = c->hidden_size, m = c->intermediate_size;
    size_t q_rows = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    double *x = r->x;
    double *n = calloc(h, sizeof *n), *q = calloc(q_rows, sizeof *q);
    double *a = calloc(q_rows, sizeof *a), *o = calloc(h, sizeof *o);
    double *gate = calloc(m, sizeof *gate), *up = calloc(m, sizeof *up);
    grow(r);
    for (size_t i = 0; i < h; i++) x[i] = reference_embedding(r, token)[i];
    r->n_tokens++;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        size_t at = ((size_t)l * r->capacity + r->n_tokens - 1) * kv;
        rms_norm(x, weight(r, TENSOR_INPUT_NORM, l), h, c->rms_norm_eps, n);
        product(weight(r, TENSOR_Q, l), q_rows, h, n, q);
        product(weight(r, TENSOR_K, l), kv, h, n, r->keys + at);
        product(weight(r, TENSOR_V, l), kv, h, n, r->values + at);
        add_bias(r, TENSOR_Q_BIAS, l, q_rows, q);
        add_bias(r, TENSOR_K_BIAS, l, kv, r->keys + at);
        add_bias(r, TENSOR_V_BIAS, l, kv, r->values + at);
        norm_heads(r, TENSOR_Q_NORM, l, c->n_heads, q);
        norm_heads(r, TENSOR_K_NORM, l, c->n_kv_heads, r->keys + at);
        attention(r, l, q, a);
        product(weight(r, TENSOR_O, l), h, q_rows, a, o);
        add_bias(r, TENSOR_O_BIAS, l, h, o);
        for (size_t i = 0; i < h; i++) x[i] += o[i];
        rms_norm(x, weight(r, TENSOR_POST_NORM, l), h, c->rms_norm_eps, n);
        product(weight(r, TENSOR_GATE, l), m, h, n, gate);
        product(weight(r, TENSOR_UP, l), m, h, n, up);
        for (size_t i = 0; i < m; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        product(weight(r, TENSOR_DOWN, l), h, m, gate, o);
        for (size_t i = 0; i < h; i++) x[i] += o[i];
    }
    if (logits) {
        rms_norm(x, weight(r, TENSOR_FINAL_NORM, 0), h, c->rms_norm_eps, n);
        enum tensor_role head = c->tie_word_embeddings ? TENSOR_EMBED : TENSOR_HEAD;
        product(weight(r, head, 0), c->n_vocab, h, n, logits);
    }
    free(n);
    free(q);
    free(a);
    free(o);
    free(gate);
    free(up);
}

double reference_error(const float *a, const double *b, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        error += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(error / norm);
}
