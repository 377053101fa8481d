/* Running a benchmark. */
#include "eval/bench.h"

#include "base/alloc.h"
#include "base/random.h"
#include "base/time.h"
#include "base/utf8.h"
#include "engine/engine.h"
#include "eval/bandwidth.h"
#include "model/encoding.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the available memory, models may take this share; the rest is for caches and buffers. */
#define MEMORY_SHARE 0.9

/* Tokens of a launch where the device chooses them. */
#define PER_LAUNCH 16u
#define MOST_PER_LAUNCH 256u

static const char *const phase_names[BENCH_N_PHASES] = {"embed",   "qkv",  "attn", "out",
                                                        "gate_up", "down", "head"};

const char *bench_mode_name(pdvm_mode mode) {
    return (unsigned)mode < BENCH_N_MODES ? engine_mode_names[mode] : "?";
}

const char *bench_way_name(const struct bench_row *row) {
    static const char *const sync[BENCH_N_MODES] = {"token+sync", "layer+sync", "phase+sync",
                                                    "unfused+sync"};
    if ((unsigned)row->mode >= BENCH_N_MODES) return "?";
    return row->graph ? "phase+graph" : row->sync ? sync[row->mode] : engine_mode_names[row->mode];
}

const struct bench_bandwidth *bench_row_bandwidth(const struct bench_result *r,
                                                  const struct bench_row *row) {
    return row->on_device ? &r->device : &r->bandwidth[row->threads];
}

const char *bench_phase_name(enum phase_kind kind) {
    return (unsigned)kind < BENCH_N_PHASES ? phase_names[kind] : "?";
}

const char *bench_test_name(char buf[48], const struct bench_test *t) {
    int n =
        t->n_prompt ? snprintf(buf, 48, "pp%u", t->n_prompt) : snprintf(buf, 48, "tg%u", t->n_gen);
    if (t->depth) snprintf(buf + n, 48 - (size_t)n, " @ d%u", t->depth);
    return buf;
}

double bench_row_rate(const struct bench_row *row) {
    return row->token_bytes * bench_stats_of(row->samples, row->n_samples).median;
}

double bench_row_share(const struct bench_row *row) {
    return row->test.n_prompt ? 0 : bench_stats_of(row->shares, row->n_samples).median;
}

void bench_free(struct bench_result *r) {
    for (size_t i = 0; i < r->n_rows; i++) {
        free(r->rows[i].samples);
        free(r->rows[i].shares);
    }
    for (size_t i = 0; i < r->n_bandwidth; i++) free(r->bandwidth[i].samples);
    free(r->device.samples);
    for (size_t i = 0; i < r->n_notes; i++) free(r->notes[i]);
    free(r->rows);
    free(r->bandwidth);
    free(r->models);
    *r = (struct bench_result){0};
}

/* A session at one depth. */
struct open_session {
    pdvm_session *session;
    uint32_t depth;
};

/* A model while it is loaded. */
struct open_model {
    pdvm_model *model;
    struct open_session *sessions; /* [n_tests at most] one per depth */
    size_t n_sessions;
};

struct bench {
    const struct bench_options *o;
    struct bench_result *r;
    struct bandwidth *bandwidth;
    struct open_model *models; /* [n_models] */
    int32_t *tokens;           /* [longest] for prompts, by seed */
    size_t longest;
    uint32_t n_vocab;      /* the smallest: all models get the same tokens */
    double *phase_seconds; /* [n_phases] of the model that has most */
    size_t n_phases;
    double total, done; /* samples */
    double last_progress;
};

static void note(struct bench *b, const char *fmt, ...) PD_PRINTF(2, 3);

static void note(struct bench *b, const char *fmt, ...) {
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    for (size_t i = 0; i < b->r->n_notes; i++)
        if (strcmp(b->r->notes[i], text) == 0) return;
    if (b->r->n_notes == sizeof b->r->notes / sizeof *b->r->notes) return;
    char *copy = strdup(text);
    if (copy) b->r->notes[b->r->n_notes++] = copy;
}

static pdvm_status progress(struct bench *b, pdvm_error *err) {
    return pd_progress(&b->o->notify, "measuring", b->total > 0 ? b->done / b->total : 0, err);
}

/* Progress from inside a measurement: seldom, so that it costs nothing. */
static pdvm_status progress_seldom(struct bench *b, pdvm_error *err) {
    double now = pd_seconds();
    if (now - b->last_progress < 0.2) return PDVM_OK;
    b->last_progress = now;
    return progress(b, err);
}

/* A pdvm_progress_fn of the sessions: prompts must not hide how far the whole has come. */
static bool prompt_progress(void *user, const char *stage, double fraction) {
    (void)stage;
    (void)fraction;
    return progress_seldom(user, NULL) == PDVM_OK;
}

/* ---- models ---------------------------------------------------------------------------- */

static void name_model(struct bench *b, size_t i, const struct model_source *source) {
    const struct bench_model *spec = &b->o->models[i];
    struct bench_model_info *out = &b->r->models[i];
    if (spec->path) {
        size_t length = strlen(spec->path);
        while (length > 1 && spec->path[length - 1] == '/') length--;
        size_t begin = length;
        while (begin > 0 && spec->path[begin - 1] != '/') begin--;
        if (begin == length) begin = 0;
        snprintf(out->name, sizeof out->name, "%.*s", (int)(length - begin), spec->path + begin);
        pd_defuse(out->name);
        for (size_t bad; (bad = pd_utf8_check(out->name, strlen(out->name))), out->name[bad];)
            out->name[bad] = '?';
        snprintf(out->coding, sizeof out->coding, "%s", source->kind);
        return;
    }
    const struct synthetic_options *s = &spec->synthetic;
    char group[16] = "", zeros[24] = " dense";
    const bool linear = s->values == MDCSR_LUT4 && s->codebook == MDCSR_LINEAR;
    if (s->group) snprintf(group, sizeof group, "/g%u", s->group);
    if (s->sparsity > 0) snprintf(zeros, sizeof zeros, " %.3g %%", 100 * s->sparsity);
    snprintf(out->coding, sizeof out->coding, "%s%s%s%s", mdcsr_values_name(s->values),
             linear ? " linear" : "", group, zeros);
    snprintf(out->name, sizeof out->name, "%.80s %s", s->shape, out->coding);
    out->synthetic = true;
}

static pdvm_status open_source(struct bench *b, size_t i, struct model_source **out,
                               pdvm_error *err) {
    const struct bench_model *m = &b->o->models[i];
    return m->path ? source_open(m->path, out, err)
                   : source_open_synthetic(&m->synthetic, out, err);
}

/* Bytes of the KV caches of all sessions of a model. */
static uint64_t cache_bytes(const struct bench *b, const struct model_config *c) {
    uint64_t row =
        kv_head_row_bytes(b->o->type_k, c->head_dim) + kv_head_row_bytes(b->o->type_v, c->head_dim);
    uint64_t tokens = 0;
    for (size_t i = 0; i < b->o->n_tests; i++) {
        const struct bench_test *t = &b->o->tests[i];
        tokens += t->depth + t->n_prompt + t->n_gen;
    }
    return tokens * row * c->n_kv_heads * c->n_layers;
}

static double gigabytes(uint64_t bytes) {
    return (double)bytes / 1e9;
}

/* Looks at every model before any is loaded: names, and whether they fit. */
static pdvm_status look_at_models(struct bench *b, bool *together, pdvm_error *err) {
    uint64_t available = pd_memory_available(), sum = 0;
    enum mdcsr_values values = MDCSR_INT8;
    if (b->o->values) mdcsr_values_parse(b->o->values, &values);
    for (size_t i = 0; i < b->o->n_models; i++) {
        struct model_source *source;
        PD_TRY(open_source(b, i, &source, err));
        name_model(b, i, source);
        uint64_t weights = encoding_bytes(source, values);
        uint64_t cache = cache_bytes(b, &source->config);
        if (i == 0 || source->config.n_vocab < b->n_vocab) b->n_vocab = source->config.n_vocab;
        snprintf(b->r->models[i].architecture, sizeof b->r->models[i].architecture, "%s",
                 source->config.architecture);
        source_close(source);
        sum += weights + cache;
        if (b->o->models[i].path || available == 0) continue;
        if ((double)(weights + cache) > MEMORY_SHARE * (double)available)
            return pd_fail(err, PDVM_ERR_MEMORY,
                           "%s: needs %.1f GB for the weights and %.1f GB for the KV cache, but "
                           "only %.1f GB of memory are free; take a smaller shape, more sparsity, "
                           "--values lut4 or a smaller depth",
                           b->r->models[i].name, gigabytes(weights), gigabytes(cache),
                           gigabytes(available));
    }
    *together = available == 0 || (double)sum <= MEMORY_SHARE * (double)available;
    if (!*together)
        note(
            b,
            "the models do not fit memory together (%.1f GB, %.1f GB free): they were measured one "
            "after the other and not interleaved",
            gigabytes(sum), gigabytes(available));
    return PDVM_OK;
}

static int most_threads(const struct bench_options *o) {
    int most = 1;
    for (size_t i = 0; i < o->n_threads; i++) {
        int n = o->threads[i] ? o->threads[i] : pd_threads_available();
        if (n > most) most = n;
    }
    return most;
}

static void check_cache(struct bench *b, const struct bench_model_info *m) {
    double cache = (double)b->r->machine.cache, bytes = (double)m->info.token_bytes;
    if (cache <= 0 || bytes >= 4 * cache) return;
    if (bytes <= cache)
        note(b,
             "%s: its %.1f MB of weights fit the last-level cache of %.1f MB, so these figures say "
             "nothing about a model that is read from memory",
             m->name, bytes / 1e6, cache / 1e6);
    else
        note(b,
             "%s: its %.0f MB of weights are only %.1f times the last-level cache, which may serve "
             "a part of them: the share of the bandwidth may come out too high",
             m->name, bytes / 1e6, bytes / cache);
}

/* Random weights need no tokenizer, and this is no place to warn of a missing one. */
static void log_synthetic(void *user, pdvm_log_level level, const char *message) {
    const struct pd_notify *notify = user;
    if (level < PDVM_LOG_WARN) notify->log(notify->log_user, level, message);
}

static pdvm_status load_model(struct bench *b, size_t i, pdvm_error *err) {
    const struct bench_options *o = b->o;
    struct bench_model_info *info = &b->r->models[i];
    struct model_source *source;
    pdvm_model_options options = model_options_with(&o->notify);
    options.n_threads = most_threads(o);
    options.kernels = o->kernels;
    options.backend = o->backend;
    options.values = o->values;
    if (!o->models[i].path && o->notify.log) {
        options.log = log_synthetic;
        options.log_user = (void *)(uintptr_t)&o->notify;
    }
    options.cache_packed = o->cache_packed && o->models[i].path;
    PD_TRY(open_source(b, i, &source, err));
    double start = pd_seconds();
    PD_TRY(model_open_source(source, &options, &b->models[i].model, err));
    info->load_seconds = pd_seconds() - start;
    pdvm_model_get_info(b->models[i].model, &info->info);
    const struct model_config *c = &b->models[i].model->config;
    double weights = (double)info->info.n_weights;
    if (!c->tie_word_embeddings) weights -= (double)c->n_vocab * c->hidden_size;
    info->bits_per_weight = 8 * (double)info->info.token_bytes / weights;
    if (!b->models[i].model->backend->ops->read_bandwidth) check_cache(b, info);
    if (b->models[i].model->plan.n_phases > b->n_phases) {
        free(b->phase_seconds);
        b->phase_seconds = NULL;
        b->n_phases = b->models[i].model->plan.n_phases;
        PD_TRY(pd_calloc(&b->phase_seconds, b->n_phases, sizeof *b->phase_seconds, "times", err));
    }
    return PDVM_OK;
}

static void close_model(struct bench *b, size_t i) {
    struct open_model *m = &b->models[i];
    for (size_t s = 0; s < m->n_sessions; s++) pdvm_session_free(m->sessions[s].session);
    free(m->sessions);
    pdvm_model_close(m->model);
    *m = (struct open_model){0};
    if (b->r->models) /* strings of the model */
        b->r->models[i].info.architecture = b->r->models[i].info.backend = NULL;
}

/* ---- sessions -------------------------------------------------------------------------- */

/* The session of a depth, filled up to it when it is first asked for. */
static pdvm_status session_at(struct bench *b, struct open_model *m, uint32_t depth,
                              pdvm_session **out, pdvm_error *err) {
    for (size_t i = 0; i < m->n_sessions; i++) {
        *out = m->sessions[i].session;
        if (m->sessions[i].depth == depth) return PDVM_OK;
    }
    if (!m->sessions)
        PD_TRY(pd_calloc(&m->sessions, b->o->n_tests, sizeof *m->sessions, "sessions", err));
    pdvm_session_options options = pdvm_session_options_default();
    for (size_t i = 0; i < b->o->n_tests; i++) {
        const struct bench_test *t = &b->o->tests[i];
        uint32_t end = t->depth + t->n_prompt + t->n_gen + 1;
        if (t->depth == depth && end > options.n_ctx) options.n_ctx = end;
    }
    options.n_batch = b->o->n_batch;
    options.prompt_activations = b->o->prompt_activations;
    options.type_k = b->o->type_k;
    options.type_v = b->o->type_v;
    options.progress = prompt_progress;
    options.progress_user = b;
    PD_TRY(pdvm_session_create(m->model, &options, out, err));
    m->sessions[m->n_sessions++] = (struct open_session){*out, depth};
    return depth ? pdvm_session_sync(*out, b->tokens, depth, err) : PDVM_OK;
}

/* The KV cache's bytes that one token reads on average over a generation. */
static double cache_read(const struct bench *b, const struct pdvm_model *m,
                         const struct bench_test *t) {
    const struct model_config *c = &m->config;
    double row = (double)(kv_head_row_bytes(b->o->type_k, c->head_dim) +
                          kv_head_row_bytes(b->o->type_v, c->head_dim));
    double bytes = 0, positions = t->depth + 0.5 * (t->n_gen + 1.0);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        double window = model_config_window(c, l);
        bytes += (window > 0 && window < positions ? window : positions) * row * c->n_kv_heads;
    }
    return bytes;
}

static void phase_bytes(const struct bench *b, const struct pdvm_model *m, struct bench_row *row) {
    const struct backend_ops *ops = m->backend->ops;
    for (size_t i = 0; i < m->plan.n_phases; i++) {
        const struct phase *p = &m->plan.phases[i];
        for (int w = 0; w < 3 && p->w[w]; w++) {
            double bytes = (double)ops->matrix_bytes(p->w[w]);
            if (p->kind == PHASE_EMBED) bytes /= m->config.n_vocab;
            row->phases[p->kind].bytes += bytes;
        }
    }
    row->phases[PHASE_ATTN].bytes += cache_read(b, m, &row->test);
}

/* ---- samples --------------------------------------------------------------------------- */

/* What one sample measures. */
struct measured {
    double seconds;
    double dispatches; /* per token */
    double barrier;    /* seconds */
};

static pdvm_status time_prompt(struct bench *b, pdvm_session *s, const struct bench_test *t,
                               struct measured *out, pdvm_error *err) {
    PD_TRY(pdvm_session_rewind(s, t->depth, err));
    uint64_t before = s->stats.n_dispatches;
    double start = pd_seconds();
    pdvm_status status = pdvm_session_sync(s, b->tokens, (size_t)t->depth + t->n_prompt, err);
    out->seconds = pd_seconds() - start;
    out->dispatches = (double)(s->stats.n_dispatches - before) / t->n_prompt;
    return status;
}

/* One token after the other, as the host gives them. */
static pdvm_status step_tokens(struct bench *b, pdvm_session *s, const struct bench_test *t,
                               pdvm_error *err) {
    for (uint32_t i = 0; i < t->n_gen; i++) {
        PD_TRY(pdvm_session_step(s, b->tokens[t->depth + i], err));
        PD_TRY(progress_seldom(b, err));
    }
    return PDVM_OK;
}

/* As the device chooses them, several in a launch. */
static pdvm_status generate_tokens(struct bench *b, pdvm_session *s, const struct bench_test *t,
                                   pdvm_error *err) {
    const struct backend_sampling greedy = {.top_k = 1, .top_p = 1};
    int32_t token = b->tokens[t->depth], chosen[MOST_PER_LAUNCH];
    uint32_t most = b->o->per_launch ? b->o->per_launch : PER_LAUNCH, done = 0;
    if (most > MOST_PER_LAUNCH) most = MOST_PER_LAUNCH;
    for (uint32_t left = t->n_gen; left > 0; left -= done) {
        PD_TRY(session_generate(s, token, left < most ? left : most, &greedy, chosen, &done, err));
        token = chosen[done - 1];
        PD_TRY(progress_seldom(b, err));
    }
    return PDVM_OK;
}

static pdvm_status time_generation(struct bench *b, pdvm_session *s, const struct bench_test *t,
                                   struct measured *out, pdvm_error *err) {
    PD_TRY(pdvm_session_rewind(s, t->depth, err));
    /* Wakes the threads and brings page tables back that other models have pushed out. */
    PD_TRY(pdvm_session_step(s, b->tokens[t->depth], err));
    PD_TRY(pdvm_session_rewind(s, t->depth, err));
    memset(b->phase_seconds, 0, b->n_phases * sizeof *b->phase_seconds);
    s->phase_seconds = b->o->phases ? b->phase_seconds : NULL;
    s->barrier_seconds = 0;
    bool chooses = session_can_generate(s) && !s->phase_seconds && !s->sync && !s->graph;
    uint64_t before = s->stats.n_dispatches;
    double start = pd_seconds();
    pdvm_status status = chooses ? generate_tokens(b, s, t, err) : step_tokens(b, s, t, err);
    out->seconds = pd_seconds() - start;
    out->dispatches = (double)(s->stats.n_dispatches - before) / t->n_gen;
    out->barrier = s->barrier_seconds / t->n_gen;
    s->phase_seconds = NULL;
    return status;
}

/* The read bandwidth at this moment, of the memory that the row's weights are in; 0: unknown. */
static double measure_bandwidth(struct bench *b, const struct open_model *m,
                                struct bench_row *row) {
    struct backend *backend = m->model->backend;
    struct bench_bandwidth *w = &b->r->bandwidth[row->threads];
    double rate = 0;
    pdvm_error err;
    if (!backend->ops->read_bandwidth) {
        rate = bandwidth_measure(b->bandwidth, m->model->threads);
    } else if (backend->ops->read_bandwidth(backend, &rate, &err) == PDVM_OK) {
        row->on_device = true;
        w = &b->r->device;
        snprintf(b->r->device_name, sizeof b->r->device_name, "%s",
                 backend->ops->describe(backend));
    } else {
        note(b, "the bandwidth of the device is not known: %s", err.message);
        return 0;
    }
    w->samples[w->n_samples++] = rate;
    return rate;
}

static pdvm_status sample(struct bench *b, struct open_model *m, struct bench_row *row,
                          pdvm_error *err) {
    const struct bench_test *t = &row->test;
    uint32_t n = t->n_prompt ? t->n_prompt : t->n_gen;
    pdvm_session *s;
    struct measured measured = {0};
    double bandwidth = 0;
    PD_TRY(session_at(b, m, t->depth, &s, err));
    s->options.mode = row->mode;
    s->sync = row->sync;
    s->graph = row->graph;
    if (!t->n_prompt) bandwidth = measure_bandwidth(b, m, row);
    PD_TRY(t->n_prompt ? time_prompt(b, s, t, &measured, err)
                       : time_generation(b, s, t, &measured, err));
    row->dispatches = measured.dispatches;
    row->barrier += measured.barrier / b->o->repetitions;
    double rate = measured.seconds > 0 ? n / measured.seconds : 0;
    if (bandwidth > 0) row->shares[row->n_samples] = rate * row->token_bytes / bandwidth;
    row->samples[row->n_samples++] = rate;
    if (row->has_phases)
        for (size_t i = 0; i < m->model->plan.n_phases; i++)
            row->phases[m->model->plan.phases[i].kind].seconds +=
                b->phase_seconds[i] / n / b->o->repetitions;
    b->done++;
    return progress(b, err);
}

/* One untimed round of every test on a model: memory is touched, caches of sessions are filled. */
static pdvm_status warm_up(struct bench *b, struct open_model *m, pdvm_error *err) {
    for (size_t i = 0; i < b->o->n_tests; i++) {
        struct bench_test t = b->o->tests[i];
        pdvm_session *s;
        struct measured measured;
        PD_TRY(session_at(b, m, t.depth, &s, err));
        if (t.n_prompt > ENGINE_MAX_BATCH) t.n_prompt = ENGINE_MAX_BATCH;
        if (t.n_gen > 1) t.n_gen = 1;
        PD_TRY(t.n_prompt ? time_prompt(b, s, &t, &measured, err)
                          : time_generation(b, s, &t, &measured, err));
    }
    return PDVM_OK;
}

/* All rows of a model with a number of threads, once. */
static pdvm_status measure_threads(struct bench *b, size_t model, size_t threads, pdvm_error *err) {
    struct open_model *m = &b->models[model];
    int n = b->r->bandwidth[threads].threads;
    if (pd_threads_count(m->model->threads) != n) PD_TRY(model_set_threads(m->model, n, err));
    for (size_t i = 0; i < b->r->n_rows; i++) {
        struct bench_row *row = &b->r->rows[i];
        if (row->model != model || row->threads != threads) continue;
        if (!row->backend[0])
            snprintf(row->backend, sizeof row->backend, "%s",
                     m->model->backend->ops->describe(m->model->backend));
        PD_TRY(sample(b, m, row, err));
    }
    return PDVM_OK;
}

static pdvm_status measure_models(struct bench *b, size_t begin, size_t end, pdvm_error *err) {
    for (size_t i = begin; i < end; i++) {
        PD_TRY(load_model(b, i, err));
        for (size_t r = 0; r < b->r->n_rows; r++) {
            struct bench_row *row = &b->r->rows[r];
            if (row->model != i || row->test.n_prompt) continue;
            row->has_phases = b->o->phases;
            row->token_bytes = (double)b->r->models[i].info.token_bytes +
                               cache_read(b, b->models[i].model, &row->test);
            phase_bytes(b, b->models[i].model, row);
        }
        PD_TRY(warm_up(b, &b->models[i], err));
    }
    for (uint32_t rep = 0; rep < b->o->repetitions; rep++)
        for (size_t i = begin; i < end; i++)
            for (size_t t = 0; t < b->o->n_threads; t++) PD_TRY(measure_threads(b, i, t, err));
    return PDVM_OK;
}

/* ---- the whole ------------------------------------------------------------------------- */

static pdvm_status add_row(struct bench *b, size_t model, size_t threads,
                           const struct bench_test *test, const struct bench_row *way,
                           pdvm_error *err) {
    struct bench_row *row = &b->r->rows[b->r->n_rows++];
    uint32_t n = b->o->repetitions;
    *row = *way;
    row->model = model;
    row->threads = threads;
    row->test = *test;
    PD_TRY(pd_calloc(&row->samples, n, sizeof *row->samples, "results", err));
    return pd_calloc(&row->shares, n, sizeof *row->shares, "results", err);
}

/* The ways in which a test is run; returns their number. */
static size_t list_ways(const struct bench_options *o, const struct bench_test *t,
                        struct bench_row out[BENCH_N_WAYS]) {
    size_t n = 0;
    memset(out, 0, BENCH_N_WAYS * sizeof *out);
    if (!o->all_modes || t->n_prompt) {
        out[0].mode = o->graph ? PDVM_MODE_PHASE : o->mode;
        out[0].graph = o->graph;
        out[0].sync = o->sync;
        return 1;
    }
    while (n < BENCH_N_MODES) {
        out[n].mode = (pdvm_mode)n;
        n++;
    }
    if (o->graph) {
        out[n].mode = PDVM_MODE_PHASE;
        out[n++].graph = true;
    }
    if (o->sync) {
        out[n].mode = PDVM_MODE_UNFUSED;
        out[n++].sync = true;
    }
    return n;
}

static pdvm_status make_rows(struct bench *b, pdvm_error *err) {
    const struct bench_options *o = b->o;
    struct bench_result *r = b->r;
    struct bench_row ways[BENCH_N_WAYS];
    size_t most = o->n_models * o->n_threads * o->n_tests * BENCH_N_WAYS;
    PD_TRY(pd_calloc(&r->rows, most, sizeof *r->rows, "results", err));
    for (size_t m = 0; m < o->n_models; m++)
        for (size_t t = 0; t < o->n_threads; t++)
            for (size_t i = 0; i < o->n_tests; i++) {
                size_t n = list_ways(o, &o->tests[i], ways);
                for (size_t w = 0; w < n; w++)
                    PD_TRY(add_row(b, m, t, &o->tests[i], &ways[w], err));
            }
    b->total = (double)r->n_rows * o->repetitions;
    return pd_calloc(&r->device.samples, r->n_rows * o->repetitions, sizeof(double), "results",
                     err);
}

static pdvm_status make_bandwidth(struct bench *b, pdvm_error *err) {
    const struct bench_options *o = b->o;
    struct bench_result *r = b->r;
    PD_TRY(pd_calloc(&r->bandwidth, o->n_threads, sizeof *r->bandwidth, "results", err));
    r->n_bandwidth = o->n_threads;
    for (size_t i = 0; i < o->n_threads; i++) {
        r->bandwidth[i].threads = o->threads[i] ? o->threads[i] : pd_threads_available();
        /* At most one for each sample of a row. */
        PD_TRY(pd_calloc(&r->bandwidth[i].samples, r->n_rows * o->repetitions, sizeof(double),
                         "results", err));
    }
    size_t size =
        o->bandwidth_buffer ? o->bandwidth_buffer : bandwidth_buffer_size(r->machine.cache);
    struct pd_threads *threads;
    PD_TRY(pd_threads_create(most_threads(o), &threads, err));
    pdvm_status status = bandwidth_create(size, threads, &b->bandwidth, err);
    pd_threads_free(threads);
    PD_TRY(status);
    r->buffer_size = bandwidth_size(b->bandwidth);
    if (r->machine.cache > 0 && (double)r->buffer_size < 4 * (double)r->machine.cache)
        note(b,
             "the bandwidth was measured on only %.0f MB: the last-level cache has %.0f MB and may "
             "have served a part",
             (double)r->buffer_size / 1e6, (double)r->machine.cache / 1e6);
    return PDVM_OK;
}

static pdvm_status make_tokens(struct bench *b, pdvm_error *err) {
    for (size_t i = 0; i < b->o->n_tests; i++) {
        const struct bench_test *t = &b->o->tests[i];
        size_t n = (size_t)t->depth + t->n_prompt + t->n_gen + 1;
        if (n > b->longest) b->longest = n;
    }
    PD_TRY(pd_calloc(&b->tokens, b->longest, sizeof *b->tokens, "tokens", err));
    uint64_t state = b->o->seed;
    for (size_t i = 0; i < b->longest; i++)
        b->tokens[i] = (int32_t)(pd_random_unit(&state) * b->n_vocab);
    return PDVM_OK;
}

static pdvm_status run(struct bench *b, pdvm_error *err) {
    const struct bench_options *o = b->o;
    bool together = false;
    pd_machine_get(&b->r->machine);
    PD_TRY(pd_calloc(&b->models, o->n_models, sizeof *b->models, "models", err));
    PD_TRY(pd_calloc(&b->r->models, o->n_models, sizeof *b->r->models, "models", err));
    b->r->n_models = o->n_models;
    PD_TRY(look_at_models(b, &together, err));
    PD_TRY(make_rows(b, err));
    PD_TRY(make_tokens(b, err));
    PD_TRY(make_bandwidth(b, err));
    for (size_t i = 0; i < o->n_models; i = together ? o->n_models : i + 1) {
        size_t end = together ? o->n_models : i + 1;
        PD_TRY(measure_models(b, i, end, err));
        for (size_t k = i; !together && k < end; k++) close_model(b, k);
    }
    return PDVM_OK;
}

static pdvm_status check_options(const struct bench_options *o, pdvm_error *err) {
    if (o->n_models == 0 || o->n_tests == 0 || o->n_threads == 0 || o->repetitions == 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "nothing to measure");
    for (size_t i = 0; i < o->n_tests; i++) {
        const struct bench_test *t = &o->tests[i];
        if ((t->n_prompt == 0) == (t->n_gen == 0))
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "a test has either prompt tokens or tokens to generate");
        if (t->n_prompt > INT32_MAX / 4 || t->n_gen > INT32_MAX / 4 || t->depth > INT32_MAX / 4)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "a test of more tokens than any context");
    }
    return PDVM_OK;
}

pdvm_status bench_run(const struct bench_options *options, struct bench_result *out,
                      pdvm_error *err) {
    struct bench b = {.o = options, .r = out};
    *out = (struct bench_result){0};
    PD_TRY(check_options(options, err));
    pdvm_status status = run(&b, err);
    for (size_t i = 0; b.models && i < options->n_models; i++) close_model(&b, i);
    free(b.models);
    free(b.tokens);
    free(b.phase_seconds);
    bandwidth_free(b.bandwidth);
    return status;
}
