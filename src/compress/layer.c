#include "compress/layer.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "base/half.h"
#include "model/rope.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Queries that attend together. Later keys than the block's last query are never looked at. */
#define QUERIES ((int64_t)128)

/* Positions that are transposed together: their values stay in the first-level cache. */
#define TRANSPOSED ((int64_t)64)

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- memory ---------------------------------------------------------------------------- */

static pdvm_status allocate(float **out, int64_t rows, int64_t cols, pdvm_error *err) {
    size_t size;
    if (!pd_mul_size((size_t)rows, (size_t)cols, &size) || !pd_mul_size(size, sizeof **out, &size))
        return pd_fail_memory(err, SIZE_MAX, "a window");
    return pd_alloc_aligned(out, size, "a window of calibration text", err);
}

static pdvm_status allocate_scratch(const struct layer_pass *p, struct layer_scratch *s,
                                    pdvm_error *err) {
    int64_t h = p->config->hidden_size, m = p->config->intermediate_size, seq = p->seq;
    PD_TRY(allocate(&s->normed, seq, h, err));
    PD_TRY(allocate(&s->q, seq, p->q_cols, err));
    PD_TRY(allocate(&s->k, seq, p->kv_cols, err));
    PD_TRY(allocate(&s->v, seq, p->kv_cols, err));
    PD_TRY(allocate(&s->values, p->config->head_dim, seq, err));
    PD_TRY(allocate(&s->scores, smaller(seq, QUERIES), seq, err));
    return allocate(&s->out, seq, h > m ? h : m, err);
}

/* As the engine has it: angles in double, the rest in float32. */
static pdvm_status make_rope(struct layer_pass *p, pdvm_error *err) {
    int64_t half = p->config->head_dim / 2;
    float factor = rope_attention_factor(p->config), *frequency;
    PD_TRY(allocate(&p->cos, p->seq, half, err));
    PD_TRY(allocate(&p->sin, p->seq, half, err));
    PD_TRY(pd_calloc(&frequency, (size_t)half, sizeof *frequency, "frequencies", err));
    rope_frequencies(p->config, frequency);
    for (int64_t t = 0; t < p->seq; t++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * (double)frequency[i];
            p->cos[t * half + i] = (float)cos(angle) * factor;
            p->sin[t * half + i] = (float)sin(angle) * factor;
        }
    }
    free(frequency);
    return PDVM_OK;
}

pdvm_status layer_pass_create(const struct model_config *config, const struct blas *blas,
                              int64_t seq, int n_workers, struct matmul_device *device,
                              struct layer_pass *out, pdvm_error *err) {
    *out = (struct layer_pass){.config = config, .rows = rows_best(), .seq = seq};
    out->q_cols = (int64_t)config->n_heads * config->head_dim;
    out->kv_cols = (int64_t)config->n_kv_heads * config->head_dim;
    pdvm_status status = pd_calloc(&out->scratch, (size_t)n_workers, sizeof *out->scratch,
                                   "workers of the calibration", err);
    if (status == PDVM_OK) out->n_workers = n_workers;
    if (status == PDVM_OK) status = matmul_create(blas, n_workers, device, &out->matmul, err);
    if (status == PDVM_OK) status = make_rope(out, err);
    for (int i = 0; i < n_workers && status == PDVM_OK; i++)
        status = allocate_scratch(out, &out->scratch[i], err);
    if (status != PDVM_OK) layer_pass_free(out);
    return status;
}

void layer_pass_free(struct layer_pass *p) {
    for (int i = 0; i < p->n_workers; i++) {
        struct layer_scratch *s = &p->scratch[i];
        free(s->normed);
        free(s->q);
        free(s->k);
        free(s->v);
        free(s->values);
        free(s->scores);
        free(s->out);
    }
    free(p->scratch);
    matmul_free(&p->matmul);
    free(p->cos);
    free(p->sin);
    *p = (struct layer_pass){0};
}

/* ---- matrices on the device ------------------------------------------------------------ */

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

int64_t layer_most_outputs(const struct model_config *config) {
    int64_t heads = (int64_t)config->n_heads + 2 * (int64_t)config->n_kv_heads;
    int64_t most = larger(heads * config->head_dim, 2 * (int64_t)config->intermediate_size);
    return larger(most, config->hidden_size);
}

int64_t layer_most_loaded(const struct model_config *config) {
    /* All of a layer's matrices have the hidden size on one side. */
    return layer_most_outputs(config) * config->hidden_size;
}

pdvm_status layer_pass_load(struct layer_pass *p, const struct layer_weights *w,
                            const enum tensor_role *roles, int n, pdvm_error *err) {
    for (int i = 0; i < n && p->matmul.device; i++) {
        struct tensor_info t;
        tensors_describe(p->config, roles[i], w->layer, &t);
        const struct matmul_task task = {
            .m = p->seq, .n = t.rows, .k = t.cols, .b = w->t[roles[i]], .b_stride = t.cols};
        PD_TRY(matmul_prepare(&p->matmul, &task, NULL, &p->ready[roles[i]], err));
    }
    return PDVM_OK;
}

void layer_pass_unload(struct layer_pass *p, const enum tensor_role *roles, int n) {
    while (n > 0) matmul_release(&p->matmul, &p->ready[roles[--n]]);
}

/* ---- elementary steps ------------------------------------------------------------------ */

void layer_norm(const struct layer_pass *p, const float *x, const float *weight, float *out) {
    int64_t h = p->config->hidden_size;
    for (int64_t t = 0; t < p->seq; t++)
        p->rows->norm(x + t * h, weight, h, p->config->rms_norm_eps, out + t * h);
}

/* A matrix of the layer and what its products with the common input become. */
struct projection {
    enum tensor_role matrix, bias; /* TENSOR_N_ROLES: no bias */
    int64_t rows;
    float *out; /* [seq, rows] */
};

#define MOST_PROJECTIONS 3

/* out[seq, rows] = in[seq, cols] W^T + bias, or that added to what out holds. */
static void project(const struct layer_pass *p, const struct layer_weights *w,
                    const struct projection *to, int n, const float *in, int64_t cols, bool add,
                    int worker) {
    struct matmul_task products[MOST_PROJECTIONS];
    for (int i = 0; i < n; i++)
        products[i] = (struct matmul_task){.m = p->seq,
                                           .n = to[i].rows,
                                           .k = cols,
                                           .a = in,
                                           .a_stride = cols,
                                           .b = w->t[to[i].matrix],
                                           .b_stride = cols,
                                           .c = to[i].out,
                                           .c_stride = to[i].rows,
                                           .add = add,
                                           .ready = &p->ready[to[i].matrix]};
    matmul_run_all(&p->matmul, products, n, worker);
    for (int i = 0; i < n; i++) {
        const float *bias = to[i].bias < TENSOR_N_ROLES ? w->t[to[i].bias] : NULL;
        if (!bias) continue;
        for (int64_t t = 0; t < p->seq; t++)
            for (int64_t r = 0; r < to[i].rows; r++) to[i].out[t * to[i].rows + r] += bias[r];
    }
}

/* ---- attention ------------------------------------------------------------------------- */

/* Norm, if the model has one, and RoPE of all heads of x[seq, n_heads * head_dim], in place. */
static void rotate_heads(const struct layer_pass *p, const float *norm, int64_t n_heads, float *x) {
    int64_t d = p->config->head_dim, half = d / 2;
    for (int64_t i = 0; i < p->seq * n_heads; i++) {
        const float *cos = p->cos + i / n_heads * half, *sin = p->sin + i / n_heads * half;
        float *head = x + i * d;
        if (norm) p->rows->norm(head, norm, d, p->config->rms_norm_eps, head);
        for (int64_t j = 0; j < half; j++) {
            float a = head[j], b = head[j + half];
            head[j] = a * cos[j] - b * sin[j];
            head[j + half] = b * cos[j] + a * sin[j];
        }
    }
}

/* Queries [first, last) of one head. */
static void attend(const struct layer_pass *p, const struct layer_scratch *s, uint32_t head,
                   uint32_t window, int64_t first, int64_t last, int worker, float *out) {
    int64_t d = p->config->head_dim, q_cols = p->q_cols, kv_cols = p->kv_cols;
    int64_t kv_head = head / (p->config->n_heads / p->config->n_kv_heads);
    /* Keys that any of the queries sees. */
    int64_t from = window && first + 1 > window ? first + 1 - window : 0, n = last - from;
    const struct matmul_task scores = {.m = last - first,
                                       .n = n,
                                       .k = d,
                                       .a = s->q + first * q_cols + head * d,
                                       .a_stride = q_cols,
                                       .b = s->k + from * kv_cols + kv_head * d,
                                       .b_stride = kv_cols,
                                       .c = s->scores,
                                       .c_stride = n,
                                       .exact = true};
    const struct matmul_task output = {.m = last - first,
                                       .n = d,
                                       .k = n,
                                       .a = s->scores,
                                       .a_stride = n,
                                       .b = s->values + from,
                                       .b_stride = p->seq,
                                       .c = out + first * q_cols + head * d,
                                       .c_stride = q_cols};
    float scale = 1.0f / sqrtf((float)d);
    matmul_run(&p->matmul, &scores, worker);
    for (int64_t t = first; t < last; t++) {
        int64_t begin = window && t + 1 - window > from ? t + 1 - window - from : 0;
        p->rows->softmax(s->scores + (t - first) * n, begin, t + 1 - from, n, scale);
    }
    matmul_run(&p->matmul, &output, worker);
}

/* The values of a kv head, column by column. */
static void transpose_values(const struct layer_pass *p, const struct layer_scratch *s,
                             int64_t kv_head) {
    int64_t d = p->config->head_dim;
    const float *v = s->v + kv_head * d;
    for (int64_t t = 0; t < p->seq; t += TRANSPOSED) {
        int64_t end = smaller(t + TRANSPOSED, p->seq);
        for (int64_t j = 0; j < d; j++)
            for (int64_t i = t; i < end; i++) s->values[j * p->seq + i] = v[i * p->kv_cols + j];
    }
}

/* Whether scores cannot overflow: the softmax does not look for that. */
static bool is_moderate(const float *x, int64_t n) {
    const uint32_t most = 0x58635fa9; /* 1e15f */
    uint32_t larger = 0;
    for (int64_t i = 0; i < n; i++) larger |= (pd_float_bits(x[i]) & 0x7fffffffu) > most;
    return !larger;
}

void layer_attention(const struct layer_pass *p, const struct layer_weights *w, const float *x,
                     int worker, float *out) {
    const struct layer_scratch *s = &p->scratch[worker];
    const struct model_config *c = p->config;
    int64_t h = c->hidden_size;
    layer_norm(p, x, w->t[TENSOR_INPUT_NORM], s->normed);
    const struct projection to[] = {{TENSOR_Q, TENSOR_Q_BIAS, p->q_cols, s->q},
                                    {TENSOR_K, TENSOR_K_BIAS, p->kv_cols, s->k},
                                    {TENSOR_V, TENSOR_V_BIAS, p->kv_cols, s->v}};
    project(p, w, to, 3, s->normed, h, false, worker);
    rotate_heads(p, w->t[TENSOR_Q_NORM], c->n_heads, s->q);
    rotate_heads(p, w->t[TENSOR_K_NORM], c->n_kv_heads, s->k);
    if (!is_moderate(s->q, p->seq * p->q_cols) || !is_moderate(s->k, p->seq * p->kv_cols)) {
        for (int64_t i = 0; i < p->seq * p->q_cols; i++) out[i] = NAN;
        return;
    }
    uint32_t window = model_config_window(c, w->layer);
    for (uint32_t head = 0; head < c->n_heads; head++) {
        uint32_t shared = c->n_heads / c->n_kv_heads;
        if (head % shared == 0) transpose_values(p, s, head / shared);
        for (int64_t first = 0; first < p->seq; first += QUERIES)
            attend(p, s, head, window, first, smaller(first + QUERIES, p->seq), worker, out);
    }
}

void layer_add_attention(const struct layer_pass *p, const struct layer_weights *w, const float *in,
                         int worker, float *x) {
    const struct projection to = {TENSOR_O, TENSOR_O_BIAS, p->config->hidden_size, x};
    project(p, w, &to, 1, in, p->q_cols, true, worker);
}

/* ---- MLP ------------------------------------------------------------------------------- */

void layer_hidden(const struct layer_pass *p, const struct layer_weights *w, const float *x,
                  int worker, float *out) {
    const struct layer_scratch *s = &p->scratch[worker];
    int64_t h = p->config->hidden_size, m = p->config->intermediate_size;
    layer_norm(p, x, w->t[TENSOR_POST_NORM], s->normed);
    const struct projection to[] = {{TENSOR_GATE, TENSOR_N_ROLES, m, out},
                                    {TENSOR_UP, TENSOR_N_ROLES, m, s->out}};
    project(p, w, to, 2, s->normed, h, false, worker);
    p->rows->silu_times(out, s->out, p->seq * m);
}

void layer_add_hidden(const struct layer_pass *p, const struct layer_weights *w, const float *in,
                      int worker, float *x) {
    const struct projection to = {TENSOR_DOWN, TENSOR_N_ROLES, p->config->hidden_size, x};
    project(p, w, &to, 1, in, p->config->intermediate_size, true, worker);
}
