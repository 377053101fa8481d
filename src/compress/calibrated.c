#include "compress/calibrated.h"

#include "base/alloc.h"
#include "base/hash.h"
#include "model/encoding.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Matrices of each stage, in the order in which they are solved. */
static const struct {
    int n;
    enum tensor_role role[3];
} stages[CALIBRATION_N_STAGES] = {
    [CALIBRATION_QKV] = {3, {TENSOR_Q, TENSOR_K, TENSOR_V}},
    [CALIBRATION_OUT] = {1, {TENSOR_O}},
    [CALIBRATION_GATE_UP] = {2, {TENSOR_GATE, TENSOR_UP}},
    [CALIBRATION_DOWN] = {1, {TENSOR_DOWN}},
};

struct run {
    struct model_source *source;
    const struct convert_options *options;
    const struct prune_method *method;
    enum prune_scope scope;
    struct pd_threads *threads;
    struct calibration calibration;
    struct work *work;
    double *sparsity; /* [n_layers]; NULL: as the settings say */
    bool full;        /* whole Hessians */
};

/* ---- work, for the progress ------------------------------------------------------------ */

/* Multiplications in float32 that solving a matrix takes, roughly. */
static double solve_work(const struct run *r, int64_t rows, int64_t cols) {
    double n = (double)cols, m = (double)rows;
    /* A Hessian's factorisation and the check of the outputs in double, the method's own part. */
    return r->full ? (2 * n + (4 + r->method->products) * m) * n * n : 200 * m * n;
}

static double layer_solve_work(const struct run *r) {
    double work = 0;
    for (int stage = 0; stage < CALIBRATION_N_STAGES; stage++) {
        for (int i = 0; i < stages[stage].n; i++) {
            struct tensor_info t;
            tensors_describe(&r->source->config, stages[stage].role[i], 0, &t);
            work += solve_work(r, t.rows, t.cols);
        }
    }
    return work;
}

/* Passes a solver's progress on as a part of the whole. */
struct part {
    struct calibration *c;
    double work;
};

static bool part_progress(void *user, const char *stage, double fraction) {
    const struct part *p = user;
    const struct pd_notify *n = &p->c->notify;
    (void)stage;
    if (!n->progress) return true;
    return n->progress(n->progress_user, "calibrating",
                       (p->c->done + p->work * fraction) / p->c->total);
}

/* ---- a layer's tensors ----------------------------------------------------------------- */

static void free_layer(struct layer_weights *w) {
    for (int i = 0; i < TENSOR_N_ROLES; i++) free(w->t[i]);
    *w = (struct layer_weights){0};
}

static pdvm_status read_tensor(struct run *r, const struct tensor_info *t, float **out,
                               struct prune_count *count, pdvm_error *err) {
    PD_TRY(encoding_read_floats(r->source, t, r->threads, out, err));
    source_release(r->source, t);
    pdvm_status status = prune_count(*out, t->rows, t->cols, r->threads, count, err);
    return status == PDVM_OK ? status : pd_prefix(err, status, "%s: %s", r->source->path, t->name);
}

static bool is_layer_role(const struct model_config *config, int role) {
    return role > TENSOR_EMBED && role < TENSOR_FINAL_NORM &&
           tensors_has(config, (enum tensor_role)role);
}

/* Reads a layer; with `vectors` only its norms and biases. */
static pdvm_status read_layer(struct run *r, uint32_t layer, bool vectors, struct layer_weights *w,
                              struct prune_count *counts, pdvm_error *err) {
    const struct model_config *config = &r->source->config;
    w->layer = layer;
    for (int role = 0; role < TENSOR_N_ROLES; role++) {
        struct tensor_info t;
        if (!is_layer_role(config, role)) continue;
        tensors_describe(config, (enum tensor_role)role, layer, &t);
        if (vectors && t.is_matrix) continue;
        PD_TRY(read_tensor(r, &t, &w->t[role], &counts[role], err));
    }
    return PDVM_OK;
}

/* ---- one matrix ------------------------------------------------------------------------ */

struct comparison {
    const float *before, *after;
    int64_t cols;
    const double *diagonal;
    double *sums; /* [rows, 4]: pruned, changed, output, its error */
};

static void compare_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct comparison *c = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float *a = c->before + r * c->cols, *b = c->after + r * c->cols;
        double *sums = c->sums + 4 * r;
        for (int64_t j = 0; j < c->cols; j++) {
            double w = (double)a[j], d = w - (double)b[j];
            sums[b[j] != 0] += d * d;
            sums[2] += c->diagonal[j] * w * w;
            sums[3] += c->diagonal[j] * d * d;
        }
    }
}

/* Fills in what a matrix lost. */
static pdvm_status compare(struct run *r, const float *before, const float *after,
                           const struct calibration_moments *moments, struct report_tensor *t,
                           pdvm_error *err) {
    int64_t rows = t->tensor.rows, cols = t->tensor.cols;
    struct comparison c = {
        .before = before, .after = after, .cols = cols, .diagonal = moments->diagonal};
    double output = 0, error = 0;
    PD_TRY(pd_calloc(&c.sums, (size_t)rows * 4, sizeof *c.sums, "sums of rows", err));
    pd_threads_for(r->threads, rows, 16, compare_rows, &c);
    for (int64_t i = 0; i < rows; i++) {
        t->pruning_squares += c.sums[4 * i];
        t->rounding_squares += c.sums[4 * i + 1];
        output += c.sums[4 * i + 2];
        error += c.sums[4 * i + 3];
    }
    free(c.sums);
    if (moments->hessian.h) {
        PD_TRY(
            solver_output_error(&moments->hessian, before, NULL, rows, r->threads, &output, err));
        PD_TRY(
            solver_output_error(&moments->hessian, before, after, rows, r->threads, &error, err));
    }
    t->output_error = error <= 0 ? 0 : output > 0 ? sqrt(error / output) : NAN;
    return PDVM_OK;
}

/* Prunes, refines if asked to, and rounds to a grid; `before` is what task->w holds at first. */
static pdvm_status solve(const struct run *r, struct solver_task *task, const float *before,
                         struct solver_result *result, pdvm_error *err) {
    const struct mdcsr_options *coding = task->coding;
    bool refine = r->options->calibration.refine;
    if (refine) task->coding = NULL; /* the grid is for the refined weights */
    if (r->method->solve) {
        PD_TRY(r->method->solve(task, result, err));
    } else {
        struct prune_task prune = {.w = task->w,
                                   .rows = task->rows,
                                   .cols = task->cols,
                                   .sparsity = task->sparsity,
                                   .scope = task->scope,
                                   .threads = task->threads};
        struct prune_result pruned;
        PD_TRY(r->method->prune(&prune, &pruned, err));
    }
    task->coding = coding;
    if (refine) {
        solver_result_free(result);
        PD_TRY(solver_refine(task, before, result, err));
    }
    if (result->grid.scales) return PDVM_OK;
    return solver_fit_grid(task->w, task->rows, task->cols, task->diagonal, coding, task->threads,
                           &result->grid, err);
}

/* Solves w, at first a copy of `before`, and encodes it. */
static pdvm_status solve_and_encode(struct run *r, float *w, const float *before,
                                    const struct settings_matrix *set,
                                    struct calibration_moments *moments, double work,
                                    struct report_tensor *t, struct mdcsr *m, pdvm_error *err) {
    struct part part = {&r->calibration, work};
    struct pd_notify notify = r->options->notify;
    struct mdcsr_options coding = set->coding;
    struct solver_result result = {0};
    struct mdcsr_report report;
    notify.progress = part_progress;
    notify.progress_user = &part;
    struct solver_task task = {.w = w,
                               .rows = t->tensor.rows,
                               .cols = t->tensor.cols,
                               .diagonal = moments->diagonal,
                               .hessian = moments->hessian.h ? &moments->hessian : NULL,
                               .sparsity = set->sparsity,
                               .scope = r->scope,
                               .coding = &coding,
                               .options = &r->options->calibration.solver,
                               .threads = r->threads,
                               .device = r->calibration.device,
                               .notify = &notify};
    pdvm_status status = solve(r, &task, before, &result, err);
    if (status == PDVM_OK && result.grid.scales) coding.grid = &result.grid;
    if (status == PDVM_OK)
        status =
            mdcsr_encode(w, t->tensor.rows, t->tensor.cols, &coding, r->threads, m, &report, err);
    if (status == PDVM_OK) {
        if (result.damping_raised > 0)
            pd_log(&r->options->notify, PDVM_LOG_WARN,
                   "%s: the Hessian of its inputs could be factored only with a damping of %.3g",
                   t->tensor.name, result.damping);
        report_set_encoded(t, m, &report);
    }
    solver_result_free(&result);
    return status;
}

static void settings_of(const struct run *r, const struct tensor_info *t,
                        struct settings_matrix *out) {
    struct settings_plan plan = r->options->plan;
    if (r->sparsity && plan.general.sparsity >= 0) plan.general.sparsity = r->sparsity[t->layer];
    settings_for(&plan, t, out);
}

static pdvm_status do_matrix(struct run *r, enum tensor_role role, struct layer_weights *w,
                             struct calibration_moments *moments, const struct prune_count *count,
                             struct work_writer *file, pdvm_error *err) {
    struct report_tensor t = {.source_zeros = count->n_zeros, .sum_squares = count->sum_squares};
    struct settings_matrix set;
    struct mdcsr m = {0};
    float *after;
    tensors_describe(&r->source->config, role, w->layer, &t.tensor);
    settings_of(r, &t.tensor, &set);
    size_t size = (size_t)(t.tensor.rows * t.tensor.cols) * sizeof *after;
    double work = solve_work(r, t.tensor.rows, t.tensor.cols);
    PD_TRY(pd_alloc_aligned(&after, size, t.tensor.name, err));
    memcpy(after, w->t[role], size);
    pdvm_status status = solve_and_encode(r, after, w->t[role], &set, moments, work, &t, &m, err);
    if (status == PDVM_OK) {
        mdcsr_decode(&m, r->threads, after);
        status = compare(r, w->t[role], after, moments, &t, err);
    }
    if (status == PDVM_OK) status = work_write_matrix(file, &m, &t, err);
    mdcsr_free(&m);
    if (status == PDVM_ERR_FORMAT || status == PDVM_ERR_ARGUMENT)
        pd_prefix(err, status, "%s: %s", r->source->path, t.tensor.name);
    free(w->t[role]);
    w->t[role] = after;
    return status == PDVM_OK ? calibration_progress(&r->calibration, work, err) : status;
}

/* ---- layers ---------------------------------------------------------------------------- */

/* Nothing looks at what comes out of the last layer. */
static pdvm_status end_layer(struct run *r, const struct layer_weights *w, pdvm_error *err) {
    if (w->layer + 1 == r->source->config.n_layers) return PDVM_OK;
    return calibration_end_layer(&r->calibration, w, err);
}

static pdvm_status solve_stages(struct run *r, struct layer_weights *w,
                                const struct prune_count *counts, struct work_writer *file,
                                pdvm_error *err) {
    for (int stage = 0; stage < CALIBRATION_N_STAGES; stage++) {
        struct calibration_moments moments = {0};
        pdvm_status status = calibration_stage(&r->calibration, w, (enum calibration_stage)stage,
                                               r->full, &moments, err);
        for (int i = 0; i < stages[stage].n && status == PDVM_OK; i++) {
            enum tensor_role role = stages[stage].role[i];
            status = do_matrix(r, role, w, &moments, &counts[role], file, err);
        }
        calibration_moments_free(&moments);
        PD_TRY(status);
    }
    return end_layer(r, w, err);
}

static json_t *shared_of(const struct run *r) {
    if (!r->sparsity) return NULL;
    json_t *list = json_array();
    for (uint32_t i = 0; i < r->source->config.n_layers; i++)
        json_array_append_new(list, json_real(r->sparsity[i]));
    return json_pack("{s:o}", "sparsity", list);
}

static pdvm_status solve_layer(struct run *r, uint32_t layer, pdvm_error *err) {
    struct layer_weights w = {0};
    struct prune_count counts[TENSOR_N_ROLES];
    struct work_writer file = {0};
    pdvm_status status = read_layer(r, layer, false, &w, counts, err);
    if (status == PDVM_OK) status = work_begin_layer(r->work, layer, &file, err);
    if (status == PDVM_OK) status = solve_stages(r, &w, counts, &file, err);
    if (status == PDVM_OK) {
        json_t *shared = shared_of(r);
        status = work_end_layer(r->work, &file, shared, err);
        json_decref(shared);
    }
    work_abort_layer(&file);
    free_layer(&w);
    return status;
}

/* Runs the layer as it stands over the text. */
static pdvm_status run_layer(struct run *r, const struct layer_weights *w, pdvm_error *err) {
    for (int stage = 0; stage < CALIBRATION_N_STAGES; stage++)
        PD_TRY(
            calibration_stage(&r->calibration, w, (enum calibration_stage)stage, false, NULL, err));
    return end_layer(r, w, err);
}

/* A layer that an earlier run has solved. */
static pdvm_status repeat_layer(struct run *r, uint32_t layer, pdvm_error *err) {
    struct layer_weights w = {0};
    struct prune_count counts[TENSOR_N_ROLES];
    pdvm_status status = read_layer(r, layer, true, &w, counts, err);
    for (int role = 0; role < TENSOR_N_ROLES && status == PDVM_OK; role++) {
        struct report_tensor t = {0};
        struct mdcsr m = {0};
        if (!is_layer_role(&r->source->config, role)) continue;
        tensors_describe(&r->source->config, (enum tensor_role)role, layer, &t.tensor);
        if (!t.tensor.is_matrix) continue;
        size_t size = (size_t)(t.tensor.rows * t.tensor.cols) * sizeof(float);
        status = pd_alloc_aligned(&w.t[role], size, t.tensor.name, err);
        if (status == PDVM_OK) status = work_read_matrix(r->work, &t, &m, err);
        if (status == PDVM_OK) mdcsr_decode(&m, r->threads, w.t[role]);
        mdcsr_free(&m);
    }
    if (status == PDVM_OK) status = run_layer(r, &w, err);
    free_layer(&w);
    return status;
}

/* The embedding as it will be stored: its rows are what the first layer sees. */
static pdvm_status embed(struct run *r, pdvm_error *err) {
    struct tensor_info t;
    struct settings_matrix set;
    struct prune_count count;
    struct mdcsr m;
    float *w = NULL;
    tensors_describe(&r->source->config, TENSOR_EMBED, 0, &t);
    settings_for(&r->options->plan, &t, &set);
    pdvm_status status = read_tensor(r, &t, &w, &count, err);
    if (status == PDVM_OK)
        status = mdcsr_encode(w, t.rows, t.cols, &set.coding, r->threads, &m, NULL, err);
    free(w);
    PD_TRY(status);
    calibration_embed(&r->calibration, &m);
    mdcsr_free(&m);
    return PDVM_OK;
}

/* ---- sparsity of the layers ------------------------------------------------------------ */

static bool is_uniform(const struct run *r) {
    return r->options->calibration.layers.rule == LAYER_SPARSITY_UNIFORM ||
           !(r->options->plan.general.sparsity > 0);
}

/* Runs the dense layer and measures what pruning would do to it. */
static pdvm_status measure_layer(struct run *r, uint32_t layer, struct layer_sparsity_measure *out,
                                 pdvm_error *err) {
    struct layer_weights w = {0};
    struct prune_count counts[TENSOR_N_ROLES];
    struct calibration_moments moments[CALIBRATION_N_STAGES] = {0};
    struct layer_sparsity_matrix matrices[CALIBRATION_N_STAGES * 3];
    int n = 0;
    pdvm_status status = read_layer(r, layer, false, &w, counts, err);
    for (int stage = 0; stage < CALIBRATION_N_STAGES && status == PDVM_OK; stage++) {
        status = calibration_stage(&r->calibration, &w, (enum calibration_stage)stage, false,
                                   &moments[stage], err);
        for (int i = 0; i < stages[stage].n && status == PDVM_OK; i++) {
            struct tensor_info t;
            tensors_describe(&r->source->config, stages[stage].role[i], layer, &t);
            matrices[n++] = (struct layer_sparsity_matrix){w.t[t.role], t.rows, t.cols,
                                                           moments[stage].diagonal};
        }
    }
    if (status == PDVM_OK)
        status = layer_sparsity_measure(&r->options->calibration.layers,
                                        r->options->plan.general.sparsity, matrices, n, r->threads,
                                        out, err);
    if (status == PDVM_OK) status = end_layer(r, &w, err);
    for (int i = 0; i < CALIBRATION_N_STAGES; i++) calibration_moments_free(&moments[i]);
    free_layer(&w);
    return status;
}

/* The sparsities that the run found which left the finished layers. */
static pdvm_status read_sparsity(struct run *r, uint32_t n, pdvm_error *err) {
    json_t *list = json_object_get(r->work->shared, "sparsity");
    bool good = json_array_size(list) == n;
    for (uint32_t i = 0; i < n && good; i++) {
        json_t *value = json_array_get(list, i);
        r->sparsity[i] = json_number_value(value);
        good = json_is_number(value) && r->sparsity[i] >= 0 && r->sparsity[i] < 1;
    }
    if (good) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: the sparsities of the layers are missing; leave out --resume to start from "
                   "the beginning",
                   r->work->dir);
}

static pdvm_status share_sparsity(struct run *r, pdvm_error *err) {
    uint32_t n = r->source->config.n_layers;
    struct layer_sparsity_measure *measures;
    if (is_uniform(r)) return PDVM_OK;
    PD_TRY(pd_calloc(&r->sparsity, n, sizeof *r->sparsity, "sparsities of layers", err));
    if (r->work->n_done > 0) return read_sparsity(r, n, err);
    PD_TRY(pd_calloc(&measures, n, sizeof *measures, "measures of layers", err));
    pdvm_status status = embed(r, err);
    for (uint32_t i = 0; i < n && status == PDVM_OK; i++)
        status = measure_layer(r, i, &measures[i], err);
    if (status == PDVM_OK)
        status =
            layer_sparsity_share(&r->options->calibration.layers, r->options->plan.general.sparsity,
                                 measures, n, r->sparsity, err);
    free(measures);
    return status;
}

/* ---- the whole run --------------------------------------------------------------------- */

static uint64_t hash_text(uint64_t hash, const char *text) {
    return pd_hash(hash, text, strlen(text) + 1);
}

#define HASH(hash, value) pd_hash(hash, &(value), sizeof(value))

static uint64_t hash_settings(uint64_t hash, const struct settings *s) {
    hash = HASH(hash, s->values);
    hash = HASH(hash, s->codebook);
    hash = HASH(hash, s->index);
    hash = HASH(hash, s->group);
    return HASH(hash, s->sparsity);
}

/* Of all that the finished layers depend on. The threads are not among it. */
static uint64_t run_key(const struct run *r) {
    const struct convert_options *o = r->options;
    const struct solver_options *s = &o->calibration.solver;
    const struct layer_sparsity_options *l = &o->calibration.layers;
    uint64_t hash = hash_text(PD_HASH_INIT, "pdvm " PDVM_VERSION);
    hash = HASH(hash, r->source->fingerprint);
    hash = HASH(hash, r->calibration.text_hash);
    hash = hash_text(hash, r->calibration.blas->config());
    hash = hash_text(hash, r->calibration.blas->core());
    hash = hash_text(hash, r->calibration.pass.matmul.name);
    hash = hash_text(hash, r->method->name);
    hash = HASH(hash, r->scope);
    hash = HASH(hash, s->damping);
    hash = HASH(hash, s->block);
    hash = HASH(hash, s->act_order);
    hash = HASH(hash, s->iterations);
    hash = HASH(hash, s->cg_iterations);
    hash = HASH(hash, o->calibration.refine);
    hash = HASH(hash, l->rule);
    hash = HASH(hash, l->outlier);
    hash = HASH(hash, l->range);
    hash = hash_settings(hash, &o->plan.general);
    hash = HASH(hash, o->plan.embed);
    for (size_t i = 0; i < o->plan.n_rules; i++) hash = hash_text(hash, o->plan.rules[i].text);
    return hash;
}

static pdvm_status run_all(struct run *r, pdvm_error *err) {
    uint32_t n = r->source->config.n_layers, n_done = r->work->n_done;
    struct calibration *c = &r->calibration;
    double forward = calibration_layer_work(c, false);
    c->total = forward * n_done +
               (calibration_layer_work(c, r->full) + layer_solve_work(r)) * (n - n_done);
    if (!is_uniform(r) && n_done == 0) c->total += forward * n;
    PD_TRY(share_sparsity(r, err));
    PD_TRY(embed(r, err));
    for (uint32_t i = 0; i < n_done && n_done < n; i++) PD_TRY(repeat_layer(r, i, err));
    for (uint32_t i = n_done; i < n; i++) PD_TRY(solve_layer(r, i, err));
    return PDVM_OK;
}

pdvm_status calibrated_run(struct model_source *source, const char *output,
                           const struct convert_options *options, const struct prune_method *method,
                           enum prune_scope scope, struct pd_threads *threads,
                           struct calibrated *out, pdvm_error *err) {
    struct run r = {.source = source,
                    .options = options,
                    .method = method,
                    .scope = scope,
                    .threads = threads,
                    .work = &out->work,
                    .full =
                        method->calibration == PRUNE_NEEDS_HESSIAN || options->calibration.refine};
    struct calibration *c = &r.calibration;
    PD_TRY(calibration_open(source, &options->calibration.text, r.full, threads, &options->notify,
                            output, c, err));
    pdvm_status status = work_open(output, run_key(&r), source->config.n_layers,
                                   options->calibration.resume, &options->notify, &out->work, err);
    if (status == PDVM_OK) {
        out->facts =
            (struct convert_calibration_facts){.n_windows = c->n_windows,
                                               .seq = c->seq,
                                               .n_distinct = c->n_distinct,
                                               .n_resumed = out->work.n_done,
                                               .memory = c->x.size + c->inner.size,
                                               .in_file = c->x.in_file || c->inner.in_file};
        snprintf(out->facts.products, sizeof out->facts.products, "%s", c->pass.matmul.name);
        status = run_all(&r, err);
    }
    if (status != PDVM_OK && out->work.n_done > 0)
        pd_log(&options->notify, PDVM_LOG_WARN,
               "stopped after %" PRIu32 " of %" PRIu32
               " layers, which are kept in %s: the same command with --resume goes on from there",
               out->work.n_done, out->work.n_layers, out->work.dir);
    free(r.sparsity);
    calibration_free(c);
    return status;
}

void calibrated_free(struct calibrated *c, bool done) {
    if (done) work_remove(&c->work);
    work_free(&c->work);
}
