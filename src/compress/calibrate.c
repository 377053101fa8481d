#include "compress/calibrate.h"

#include "backend/cuda/driver.h"
#include "base/alloc.h"
#include "base/checked.h"
#include "base/hash.h"
#include "compress/calibrate_text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * Rows and columns of the pieces that a Hessian is added up in: large ones cost fewer copies for the
 * products.
 */
#define TILE ((int64_t)1024)

/*
 * Small Hessians have few pieces, so windows go in turns to several sums, which fit in this many bytes.
 * Their number must not depend on that of the workers.
 */
#define SUM_BYTES ((int64_t)64 << 20)
#define MOST_SUMS ((int64_t)16)

/* Windows are taken in groups whose normed inputs fit in about this many bytes. */
#define GROUP_BYTES ((int64_t)64 << 20)

/* ---- opening --------------------------------------------------------------------------- */

static int64_t widest(const struct calibration *c) {
    int64_t cols = (int64_t)c->config->n_heads * c->config->head_dim;
    if (cols < c->config->hidden_size) cols = c->config->hidden_size;
    return cols < c->config->intermediate_size ? c->config->intermediate_size : cols;
}

static pdvm_status create_device(struct calibration *c, bool full, pdvm_error *err) {
    int64_t cols = widest(c), loaded = layer_most_loaded(c->config);
    if (full && loaded < cols * cols) loaded = cols * cols; /* the solvers' */
    const struct matmul_device_size size = {.loaded = loaded * (int64_t)sizeof(float) + 1024,
                                            .seq = c->seq,
                                            .widest = cols,
                                            .outputs = layer_most_outputs(c->config),
                                            .gram = full};
    return matmul_cuda_create(&size, pd_threads_count(c->threads), &c->device, err);
}

/* A GPU that was asked for must be there; otherwise one that is there and not used is worth a word. */
static pdvm_status choose_device(struct calibration *c, const char *backend, bool full,
                                 pdvm_error *err) {
    pdvm_error why;
    if (backend && strcmp(backend, "cpu") == 0) return PDVM_OK;
    if (backend && strcmp(backend, "cuda") == 0) return create_device(c, full, err);
    if (backend && strcmp(backend, "auto") != 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown backend \"%s\": auto, cpu or cuda",
                       backend);
    if (create_device(c, full, &why) == PDVM_OK) return PDVM_OK;
    const struct cuda_driver *driver;
    bool has_gpu = cuda_driver_load(&driver, NULL) == PDVM_OK;
    pd_log(&c->notify, has_gpu ? PDVM_LOG_WARN : PDVM_LOG_DEBUG,
           "calibration computes on the CPU, not on the GPU: %s", why.message);
    return PDVM_OK;
}

static pdvm_status allocate(struct calibration *c, const char *beside, pdvm_error *err) {
    int64_t tokens = c->n_windows * c->seq, h = c->config->hidden_size, bytes = 0;
    int n_workers = pd_threads_count(c->threads);
    PD_TRY(layer_pass_create(c->config, c->blas, c->seq, n_workers, c->device, &c->pass, err));
    c->n_group = GROUP_BYTES / (c->seq * h * (int64_t)sizeof(float));
    if (c->n_group < 2 * n_workers) c->n_group = 2 * n_workers;
    if (c->device)
        c->n_group = (c->n_group + MATMUL_DEVICE_WINDOWS - 1) / MATMUL_DEVICE_WINDOWS *
                     MATMUL_DEVICE_WINDOWS;
    if (c->n_group > c->n_windows) c->n_group = c->n_windows;
    if (!pd_mul_i64(tokens, widest(c) * (int64_t)sizeof(float), &bytes))
        return pd_fail_memory(err, SIZE_MAX, "calibration");
    PD_TRY(pd_scratch_open((size_t)(tokens * h) * sizeof(float), beside, "residual streams", &c->x,
                           err));
    PD_TRY(pd_scratch_open((size_t)bytes, beside, "activations", &c->inner, err));
    PD_TRY(pd_alloc_aligned(&c->group, (size_t)(c->n_group * c->seq * h) * sizeof(float),
                            "inputs of a group of windows", err));
    PD_TRY(pd_calloc(&c->squares, (size_t)(c->n_group * widest(c)), sizeof *c->squares,
                     "sums of inputs", err));
    c->tile = widest(c) < TILE ? widest(c) : TILE;
    return pd_alloc_aligned(&c->tiles, (size_t)(n_workers * c->tile * c->tile) * sizeof(float),
                            "pieces of a Hessian", err);
}

pdvm_status calibration_open(struct model_source *source, const struct calibration_options *options,
                             bool full, struct pd_threads *threads, const struct pd_notify *notify,
                             const char *beside, struct calibration *out, pdvm_error *err) {
    struct calibration_text text;
    *out = (struct calibration){.config = &source->config, .threads = threads, .notify = *notify};
    PD_TRY(blas_open(&out->blas, err));
    PD_TRY(calibration_text_read(source, options, notify, &text, err));
    out->ids = text.ids;
    out->n_windows = text.n_windows;
    out->seq = text.seq;
    out->n_distinct = text.n_distinct;
    out->text_hash = pd_hash(PD_HASH_INIT, &text.seq, sizeof text.seq);
    out->text_hash =
        pd_hash(out->text_hash, text.ids, (size_t)(text.n_windows * text.seq) * sizeof *text.ids);
    pdvm_status status = choose_device(out, options->backend, full, err);
    if (status == PDVM_OK) status = allocate(out, beside, err);
    if (status != PDVM_OK) calibration_free(out);
    return status;
}

void calibration_free(struct calibration *c) {
    layer_pass_free(&c->pass);
    if (c->device) c->device->ops->destroy(c->device);
    pd_scratch_close(&c->x);
    pd_scratch_close(&c->inner);
    free(c->ids);
    free(c->group);
    free(c->squares);
    free(c->tiles);
    *c = (struct calibration){0};
}

struct embedding {
    struct calibration *c;
    const struct mdcsr *matrix;
};

static void embed_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const struct embedding *e = arg;
    int64_t h = e->c->config->hidden_size;
    (void)worker;
    for (int64_t t = begin; t < end; t++)
        mdcsr_decode_row(e->matrix, e->c->ids[t], (float *)e->c->x.data + t * h);
}

void calibration_embed(struct calibration *c, const struct mdcsr *embedding) {
    struct embedding e = {c, embedding};
    pd_threads_for(c->threads, c->n_windows * c->seq, 256, embed_tokens, &e);
}

/* ---- work and progress ----------------------------------------------------------------- */

int64_t calibration_cols(const struct calibration *c, enum calibration_stage stage) {
    if (stage == CALIBRATION_OUT) return c->pass.q_cols;
    return stage == CALIBRATION_DOWN ? c->config->intermediate_size : c->config->hidden_size;
}

/* Multiplications per token of a stage's forward pass; CALIBRATION_N_STAGES: of the end. */
static double stage_work(const struct calibration *c, int stage) {
    double h = c->config->hidden_size, m = c->config->intermediate_size;
    double q = (double)c->pass.q_cols, kv = (double)c->pass.kv_cols;
    switch (stage) {
    case CALIBRATION_QKV: return 4 * h;
    case CALIBRATION_OUT: return h * (q + 2 * kv) + (double)c->seq * q;
    case CALIBRATION_GATE_UP: return h * q;
    case CALIBRATION_DOWN: return 2 * h * m;
    default: return h * m;
    }
}

static double moments_work(const struct calibration *c, enum calibration_stage stage, bool full) {
    double cols = (double)calibration_cols(c, stage);
    return full ? cols * (cols + 1) / 2 : cols;
}

double calibration_layer_work(const struct calibration *c, bool full) {
    double work = stage_work(c, CALIBRATION_N_STAGES);
    for (int i = 0; i < CALIBRATION_N_STAGES; i++)
        work += stage_work(c, i) + moments_work(c, (enum calibration_stage)i, full);
    return work * (double)(c->n_windows * c->seq);
}

pdvm_status calibration_progress(struct calibration *c, double work, pdvm_error *err) {
    c->done += work;
    return pd_progress(&c->notify, "calibrating", c->total > 0 ? c->done / c->total : 0, err);
}

/* ---- a stage --------------------------------------------------------------------------- */

/* A stage over one group of windows. */
struct stage_run {
    struct calibration *c;
    const struct layer_weights *w;
    int stage; /* CALIBRATION_N_STAGES: the end of the layer */
    int64_t first, n;
    int64_t cols;
    int64_t tile;
    bool squares; /* add up the inputs' squares window by window */
    double *h;    /* [cols, cols] upper tiles of the first sum; NULL: not asked for */
    double *more; /* [n_sums - 1, cols, cols] the others */
    int64_t n_sums;
};

static float *stream(const struct calibration *c, int64_t window) {
    return (float *)c->x.data + window * c->seq * c->config->hidden_size;
}

static float *inner(const struct calibration *c, int64_t window, int64_t cols) {
    return (float *)c->inner.data + window * c->seq * cols;
}

/* The stage's inputs of window `first + i`, [seq, cols]. */
static float *inputs(const struct stage_run *r, int64_t i) {
    if (r->stage == CALIBRATION_OUT || r->stage == CALIBRATION_DOWN)
        return inner(r->c, r->first + i, r->cols);
    return r->c->group + i * r->c->seq * r->cols;
}

static void sum_squares(const float *x, int64_t seq, int64_t cols, double *sums) {
    memset(sums, 0, (size_t)cols * sizeof *sums);
    for (int64_t t = 0; t < seq; t++) {
        for (int64_t i = 0; i < cols; i++)
            sums[i] += (double)x[t * cols + i] * (double)x[t * cols + i];
    }
}

static void run_window(const struct stage_run *r, int64_t i, int worker) {
    const struct layer_pass *p = &r->c->pass;
    float *x = stream(r->c, r->first + i);
    switch (r->stage) {
    case CALIBRATION_QKV: layer_norm(p, x, r->w->t[TENSOR_INPUT_NORM], inputs(r, i)); break;
    case CALIBRATION_OUT: layer_attention(p, r->w, x, worker, inputs(r, i)); break;
    case CALIBRATION_GATE_UP:
        layer_add_attention(p, r->w, inner(r->c, r->first + i, p->q_cols), worker, x);
        layer_norm(p, x, r->w->t[TENSOR_POST_NORM], inputs(r, i));
        break;
    case CALIBRATION_DOWN: layer_hidden(p, r->w, x, worker, inputs(r, i)); break;
    default:
        layer_add_hidden(p, r->w, inner(r->c, r->first + i, r->c->config->intermediate_size),
                         worker, x);
        return;
    }
    if (r->squares) sum_squares(inputs(r, i), r->c->seq, r->cols, r->c->squares + i * r->cols);
}

static void run_windows(void *arg, int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) run_window(arg, i, worker);
}

/*
 * Adds one tile of the inputs' moments to one of the sums, window after window. A window's products
 * are added up in float32 (at most a few thousand of one sign on the diagonal, which is what damping
 * and masks depend on), the windows in double. The order is that of the windows whatever the threads
 * do.
 */
static void add_tile(const struct stage_run *r, int64_t row, int64_t col, int64_t sum, int worker) {
    const struct calibration *c = r->c;
    int64_t cols = r->cols, stride = c->tile;
    float *tile = c->tiles + (int64_t)worker * stride * stride;
    double *out = sum ? r->more + (sum - 1) * cols * cols : r->h;
    struct matmul_task product = {.m = cols - row < r->tile ? cols - row : r->tile,
                                  .n = cols - col < r->tile ? cols - col : r->tile,
                                  .k = c->seq,
                                  .a_stride = cols,
                                  .b_stride = cols,
                                  .c = tile,
                                  .c_stride = stride,
                                  .transposed = true,
                                  .upper = row == col,
                                  .exact = true};
    for (int64_t i = 0; i < r->n; i++) {
        if ((r->first + i) % r->n_sums != sum) continue;
        product.a = inputs(r, i) + row;
        product.b = inputs(r, i) + col;
        matmul_run(&c->pass.matmul, &product, worker);
        for (int64_t a = 0; a < product.m; a++) {
            double *h = out + (row + a) * cols + col;
            for (int64_t b = row == col ? a : 0; b < product.n; b++)
                h[b] += (double)tile[a * stride + b];
        }
    }
}

static int64_t tiles_across(const struct stage_run *r) {
    return (r->cols + r->tile - 1) / r->tile;
}

static void add_tiles(void *arg, int64_t begin, int64_t end, int worker) {
    const struct stage_run *r = arg;
    int64_t n = tiles_across(r);
    for (int64_t i = begin; i < end; i++) {
        int64_t row = i / n % n, col = i % n;
        if (row <= col) add_tile(r, row * r->tile, col * r->tile, i / (n * n), worker);
    }
}

static const char *const stage_names[] = {"q, k and v", "o", "gate and up", "down"};

/* Finds the first input that is no number; the squares say that there is one in this group. */
static pdvm_status fail_not_finite(const struct stage_run *r, pdvm_error *err) {
    const struct calibration *c = r->c;
    for (int64_t i = 0; i < r->n * c->seq * r->cols; i++) {
        int64_t window = i / (c->seq * r->cols), at = i % (c->seq * r->cols);
        float x = inputs(r, window)[at];
        if (!isfinite(x))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "layer %" PRIu32 ", inputs of %s: %s at token %" PRId64
                           " of calibration window %" PRId64 ", column %" PRId64
                           "; the checkpoint is damaged, or its activations overflow",
                           r->w->layer, stage_names[r->stage], isnan(x) ? "NaN" : "infinity",
                           at / r->cols, r->first + window, at % r->cols);
    }
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "layer %" PRIu32 ", inputs of %s: their squares overflow; the checkpoint is "
                   "damaged",
                   r->w->layer, stage_names[r->stage]);
}

static pdvm_status add_squares(const struct stage_run *r, double *diagonal, pdvm_error *err) {
    for (int64_t i = 0; i < r->n; i++) {
        for (int64_t j = 0; j < r->cols; j++) diagonal[j] += r->c->squares[i * r->cols + j];
    }
    double sum = 0;
    for (int64_t j = 0; j < r->cols; j++) sum += diagonal[j];
    /* A window's float32 products would overflow long before the sum in double does. */
    return sum < 1e36 ? PDVM_OK : fail_not_finite(r, err);
}

/* The matrices whose products a stage begins with. */
static const struct {
    int n;
    enum tensor_role role[3];
} stage_products[CALIBRATION_N_STAGES + 1] = {
    [CALIBRATION_OUT] = {3, {TENSOR_Q, TENSOR_K, TENSOR_V}},
    [CALIBRATION_GATE_UP] = {1, {TENSOR_O}},
    [CALIBRATION_DOWN] = {2, {TENSOR_GATE, TENSOR_UP}},
    [CALIBRATION_N_STAGES] = {1, {TENSOR_DOWN}},
};

static pdvm_status add_moments(struct stage_run *r, pdvm_error *err) {
    struct calibration *c = r->c;
    int64_t n = tiles_across(r);
    /* The windows of a group follow one another. */
    if (c->device)
        return c->device->ops->gram(c->device, inputs(r, 0), r->n, c->seq, r->cols, c->threads,
                                    r->h, err);
    pd_threads_for(c->threads, n * n * r->n_sums, 1, add_tiles, r);
    return PDVM_OK;
}

static pdvm_status run_groups(struct stage_run *r, double *diagonal, double work, pdvm_error *err) {
    struct calibration *c = r->c;
    for (r->first = 0; r->first < c->n_windows; r->first += c->n_group) {
        int64_t left = c->n_windows - r->first;
        r->n = left < c->n_group ? left : c->n_group;
        pd_threads_for(c->threads, r->n, 1, run_windows, r);
        PD_TRY(matmul_status(&c->pass.matmul, err));
        if (diagonal) PD_TRY(add_squares(r, diagonal, err));
        if (r->h) PD_TRY(add_moments(r, err));
        PD_TRY(calibration_progress(c, work * (double)(r->n * c->seq), err));
    }
    return PDVM_OK;
}

static pdvm_status run_stage(struct stage_run *r, double *diagonal, double work, pdvm_error *err) {
    const enum tensor_role *roles = stage_products[r->stage].role;
    int n = stage_products[r->stage].n;
    pdvm_status status = layer_pass_load(&r->c->pass, r->w, roles, n, err);
    if (status == PDVM_OK) status = run_groups(r, diagonal, work, err);
    layer_pass_unload(&r->c->pass, roles, n);
    return status;
}

/* From sums to H = (2 / N) sum of x x^T, both halves. */
static void finish_moments(const struct calibration *c, int64_t cols,
                           struct calibration_moments *m) {
    double factor = 2.0 / (double)(c->n_windows * c->seq), *h = m->hessian.h;
    for (int64_t i = 0; i < cols; i++) m->diagonal[i] *= factor;
    if (!h) return;
    for (int64_t i = 0; i < cols; i++) {
        for (int64_t j = i; j < cols; j++) h[i * cols + j] *= factor;
    }
    for (int64_t i = 0; i < cols; i += 64) {
        for (int64_t j = i; j < cols; j += 64) {
            int64_t i_end = i + 64 < cols ? i + 64 : cols, j_end = j + 64 < cols ? j + 64 : cols;
            for (int64_t a = i; a < i_end; a++)
                for (int64_t b = a > j ? a : j; b < j_end; b++) h[b * cols + a] = h[a * cols + b];
        }
    }
    for (int64_t i = 0; i < cols; i++) m->diagonal[i] = h[i * cols + i];
}

static pdvm_status create_sums(struct stage_run *r, struct calibration_moments *m,
                               pdvm_error *err) {
    int64_t size = r->cols * r->cols, most = SUM_BYTES / (size * (int64_t)sizeof(double));
    PD_TRY(solver_hessian_create(r->cols, &m->hessian, err));
    r->h = m->hessian.h;
    /* Tiles of equal size, whole strips of the products. */
    int64_t across = (r->cols + r->c->tile - 1) / r->c->tile;
    r->tile = ((r->cols + across - 1) / across + 31) / 32 * 32;
    if (r->tile > r->c->tile) r->tile = r->c->tile;
    if (r->c->device) return PDVM_OK;
    r->n_sums = most < 1 ? 1 : most > MOST_SUMS ? MOST_SUMS : most;
    if (r->n_sums > r->c->n_windows) r->n_sums = r->c->n_windows;
    if (r->n_sums == 1) return PDVM_OK;
    return pd_calloc(&r->more, (size_t)((r->n_sums - 1) * size), sizeof *r->more, "sums of moments",
                     err);
}

static void add_sums(void *arg, int64_t begin, int64_t end, int worker) {
    const struct stage_run *r = arg;
    int64_t size = r->cols * r->cols;
    (void)worker;
    for (int64_t sum = 0; sum < r->n_sums - 1; sum++) {
        for (int64_t i = begin * r->cols; i < end * r->cols; i++)
            r->h[i] += r->more[sum * size + i];
    }
}

pdvm_status calibration_stage(struct calibration *c, const struct layer_weights *w,
                              enum calibration_stage stage, bool full,
                              struct calibration_moments *out, pdvm_error *err) {
    struct stage_run r = {.c = c, .w = w, .stage = (int)stage, .squares = true, .n_sums = 1};
    struct calibration_moments m = {0};
    r.cols = calibration_cols(c, stage);
    r.tile = r.cols;
    pdvm_status status = pd_calloc(&m.diagonal, (size_t)r.cols, sizeof *m.diagonal, "norms", err);
    if (status == PDVM_OK && full && out) status = create_sums(&r, &m, err);
    double work = stage_work(c, (int)stage) + moments_work(c, stage, r.h != NULL);
    if (status == PDVM_OK) status = run_stage(&r, m.diagonal, work, err);
    if (status == PDVM_OK && r.more) pd_threads_for(c->threads, r.cols, 16, add_sums, &r);
    if (status == PDVM_OK && out) {
        finish_moments(c, r.cols, &m);
        *out = m;
    } else {
        calibration_moments_free(&m);
    }
    free(r.more);
    return status;
}

pdvm_status calibration_end_layer(struct calibration *c, const struct layer_weights *w,
                                  pdvm_error *err) {
    struct stage_run r = {.c = c, .w = w, .stage = CALIBRATION_N_STAGES, .cols = 1, .tile = 1};
    return run_stage(&r, NULL, stage_work(c, CALIBRATION_N_STAGES), err);
}

void calibration_moments_free(struct calibration_moments *m) {
    free(m->diagonal);
    solver_hessian_free(&m->hessian);
    *m = (struct calibration_moments){0};
}
