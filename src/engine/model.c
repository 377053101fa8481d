/* Opening a model: source, tokenizer, backend, weights, plan. */
#include "base/alloc.h"
#include "base/hash.h"
#include "engine/engine.h"
#include "engine/packed_cache.h"
#include "io/safetensors.h"
#include "model/encoding.h"

#include <stdlib.h>
#include <string.h>

pdvm_model_options pdvm_model_options_default(void) {
    return (pdvm_model_options){.backend = "auto", .kernels = "auto"};
}

const char *const engine_mode_names[] = {[PDVM_MODE_TOKEN] = "token",
                                         [PDVM_MODE_LAYER] = "layer",
                                         [PDVM_MODE_PHASE] = "phase",
                                         [PDVM_MODE_UNFUSED] = "unfused",
                                         [PDVM_MODE_UNFUSED + 1] = NULL};

pdvm_model_options model_options_with(const struct pd_notify *notify) {
    pdvm_model_options o = pdvm_model_options_default();
    o.progress = notify->progress;
    o.progress_user = notify->progress_user;
    o.log = notify->log;
    o.log_user = notify->log_user;
    return o;
}

static pdvm_status open_tokenizer(pdvm_model *m, pdvm_error *err) {
    PD_TRY(source_open_tokenizer(m->source, &m->tokenizer, err));
    if (!m->tokenizer)
        pd_log(&m->notify, PDVM_LOG_WARN, "%s: no %s or %s, only token ids can be used",
               m->source->path, SOURCE_TOKENIZER, SOURCE_TOKENIZER_MODEL);
    return PDVM_OK;
}

static pdvm_status load_vector(pdvm_model *m, size_t i, const struct tensor_info *t,
                               pdvm_error *err) {
    PD_TRY(pd_calloc(&m->vectors[i], (size_t)t->cols, sizeof *m->vectors[i], t->name, err));
    return source_read_rows(m->source, t, 0, 1, m->vectors[i], err);
}

/* Adds a matrix's weights to the model's totals. */
static void count(pdvm_model *m, const struct mdcsr *w) {
    m->info.n_weights += (uint64_t)w->rows * (uint64_t)w->cols;
    m->info.n_nonzeros += (uint64_t)w->n_entries;
}

static void add_product(pdvm_model *m, struct backend_matrix *matrix) {
    m->matrices[m->n_matrices++] = matrix;
}

static pdvm_status load_product(pdvm_model *m, const struct mdcsr *w, pdvm_error *err) {
    struct backend_matrix *matrix;
    PD_TRY(m->backend->ops->load_matrix(m->backend, w, MATRIX_PRODUCT, &matrix, err));
    add_product(m, matrix);
    return PDVM_OK;
}

/* ---- packed weights that were kept ------------------------------------------------------- */

/* The coding counts, too: it is chosen here where the source holds floats. */
static uint64_t fingerprint(const pdvm_model *m) {
    if (source_is_mdcsr(m->source)) return m->source->fingerprint;
    const char *values = mdcsr_values_name(m->values);
    return pd_hash(m->source->fingerprint, values, strlen(values));
}

static struct packed_cache_key cache_key(const pdvm_model *m) {
    return (struct packed_cache_key){.model_path = m->source->path,
                                     .fingerprint = fingerprint(m),
                                     .layout = m->backend->ops->layout(m->backend)};
}

static pdvm_status open_cache(pdvm_model *m, pdvm_error *err) {
    if (m->cache_packed && !m->backend->ops->layout) {
        m->cache_packed = false;
        pd_log(&m->notify, PDVM_LOG_INFO, "%s keeps no packed weights",
               m->backend->ops->describe(m->backend));
    }
    if (!m->cache_packed) return PDVM_OK;
    struct packed_cache_key key = cache_key(m);
    return packed_cache_open(&key, &m->notify, &m->packed, err);
}

/* Whether a product's matrix could be taken from the cache. If not, the cache is written anew. */
static bool map_product(pdvm_model *m, const struct tensor_info *t) {
    struct backend_matrix *matrix;
    int64_t n_entries;
    pdvm_error why;
    if (!m->packed || m->packed_stale) return false;
    pdvm_status status = m->backend->ops->map_matrix(m->backend, m->packed, t->name, t->rows,
                                                     t->cols, &matrix, &n_entries, &why);
    if (status == PDVM_ERR_UNSUPPORTED) return false; /* packed anew by choice */
    if (status != PDVM_OK) {
        pd_log(&m->notify, PDVM_LOG_WARN, "%s; made again", why.message);
        m->packed_stale = true;
        return false;
    }
    add_product(m, matrix);
    if (t->role == TENSOR_EMBED) return true; /* tied: counted as the embedding */
    m->info.n_weights += (uint64_t)t->rows * (uint64_t)t->cols;
    m->info.n_nonzeros += (uint64_t)n_entries;
    return true;
}

static pdvm_status save_cache(pdvm_model *m, pdvm_error *err) {
    struct packed_cache_entry *entries;
    struct tensor_info *infos;
    if (!m->cache_packed || (m->packed && !m->packed_stale)) return PDVM_OK;
    size_t n = 0;
    PD_TRY(pd_calloc(&entries, m->n_matrices, sizeof *entries, "the packed weights", err));
    pdvm_status status = pd_calloc(&infos, m->n_matrices, sizeof *infos, "the packed weights", err);
    for (size_t i = 0; status == PDVM_OK && n < m->n_matrices; i++) {
        struct tensor_info *t = &infos[n];
        bool tied = i == tensors_count(&m->config);
        tensors_at(&m->config, tied ? 0 : i, t);
        if (!t->is_matrix || (t->role == TENSOR_EMBED && !tied)) continue;
        entries[n] = (struct packed_cache_entry){t->name, m->matrices[n]};
        n++;
    }
    struct packed_cache_key key = cache_key(m);
    if (status == PDVM_OK)
        status = packed_cache_write(&key, m->backend, entries, n, &m->notify, err);
    free(infos);
    free(entries);
    return status;
}

/* ---- loading --------------------------------------------------------------------------- */

/* Reads a matrix and hands it to the backend, which packs it now or, all at once, later. */
static pdvm_status load_matrix(pdvm_model *m, const struct tensor_info *t, pdvm_error *err) {
    bool keep = m->backend->ops->keeps_matrices;
    struct mdcsr now = {0}, *w = keep ? &m->canonical[m->n_matrices] : &now;
    PD_TRY(encoding_load(m->source, t, m->values, m->threads, w, err));
    pdvm_status status = load_product(m, w, err);
    if (status == PDVM_OK) count(m, w);
    if (keep) return status;
    mdcsr_free(w);
    source_release(m->source, t); /* the packed copy is the one that stays */
    return status;
}

/* What was kept for the backend to pack. */
static void free_canonical(pdvm_model *m) {
    for (size_t i = 0; m->canonical && i < m->n_canonical; i++) mdcsr_free(&m->canonical[i]);
    free(m->canonical);
    m->canonical = NULL;
}

static void count_bytes(pdvm_model *m) {
    const struct backend_ops *ops = m->backend->ops;
    size_t bytes = ops->matrix_bytes(m->lookup);
    m->info.stored_bytes = bytes;
    m->info.token_bytes = bytes / (m->config.n_vocab ? m->config.n_vocab : 1);
    for (size_t i = 0; i < m->n_matrices; i++) {
        m->info.stored_bytes += ops->matrix_bytes(m->matrices[i]);
        m->info.token_bytes += ops->matrix_bytes(m->matrices[i]);
    }
}

static pdvm_status load_embedding(pdvm_model *m, const struct tensor_info *t, pdvm_error *err) {
    PD_TRY(encoding_load(m->source, t, m->values, m->threads, &m->embedding, err));
    PD_TRY(m->backend->ops->load_matrix(m->backend, &m->embedding, MATRIX_LOOKUP, &m->lookup, err));
    count(m, &m->embedding);
    return PDVM_OK;
}

static pdvm_status load_weights(pdvm_model *m, pdvm_error *err) {
    const struct model_config *c = &m->config;
    size_t n_tensors = tensors_count(c);
    PD_TRY(
        pd_calloc(&m->matrices, 7 * (size_t)c->n_layers + 1, sizeof *m->matrices, "weights", err));
    PD_TRY(pd_calloc(&m->vectors, n_tensors, sizeof *m->vectors, "weights", err));
    if (m->backend->ops->keeps_matrices) {
        m->n_canonical = 7 * (size_t)c->n_layers + 1;
        PD_TRY(pd_calloc(&m->canonical, m->n_canonical, sizeof *m->canonical, "weights", err));
    }
    struct tensor_info t;
    double total = tensors_elements(c), done = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        PD_TRY(pd_progress(&m->notify, "loading", done / total, err));
        tensors_at(c, i, &t);
        done += (double)t.rows * (double)t.cols;
        if (!t.is_matrix) {
            PD_TRY(load_vector(m, i, &t, err));
        } else if (t.role == TENSOR_EMBED) {
            PD_TRY(load_embedding(m, &t, err));
        } else if (!map_product(m, &t)) {
            PD_TRY(load_matrix(m, &t, err));
        }
    }
    tensors_at(c, 0, &t);
    if (c->tie_word_embeddings && !map_product(m, &t)) PD_TRY(load_product(m, &m->embedding, err));
    return pd_progress(&m->notify, "loading", 1, err);
}

/* Says which layouts the backend chose, and for how much of the model. */
static void log_layouts(pdvm_model *m) {
    const struct backend_ops *ops = m->backend->ops;
    for (size_t i = 0; ops->matrix_layout && i < m->n_matrices; i++) {
        const char *name = ops->matrix_layout(m->matrices[i]);
        size_t first = 0, n = 0;
        double bytes = 0;
        while (strcmp(ops->matrix_layout(m->matrices[first]), name) != 0) first++;
        if (first < i) continue;
        for (size_t j = i; j < m->n_matrices; j++) {
            if (strcmp(ops->matrix_layout(m->matrices[j]), name) != 0) continue;
            bytes += (double)ops->matrix_bytes(m->matrices[j]);
            n++;
        }
        pd_log(&m->notify, PDVM_LOG_INFO, "packed as %s: %zu of %zu matrices, %.1f MiB", name, n,
               m->n_matrices, bytes / 1048576);
    }
}

static void fill_info(pdvm_model *m) {
    const struct model_config *c = &m->config;
    pdvm_model_info *i = &m->info;
    i->architecture = c->architecture;
    i->backend = m->backend->ops->describe(m->backend);
    i->n_layers = c->n_layers;
    i->hidden_size = c->hidden_size;
    i->intermediate_size = c->intermediate_size;
    i->n_heads = c->n_heads;
    i->n_kv_heads = c->n_kv_heads;
    i->head_dim = c->head_dim;
    i->n_vocab = c->n_vocab;
    i->max_context = c->max_position_embeddings;
    i->fingerprint = fingerprint(m);
}

static bool wants_source_values(const pdvm_model_options *o) {
    return o->values && strcmp(o->values, "source") == 0;
}

/* The coding that keeps all of a source's matrices as they are. */
static enum mdcsr_values source_values(struct model_source *source) {
    bool bf16 = true, f16 = true;
    for (size_t i = 0; i < tensors_count(&source->config); i++) {
        struct tensor_info t;
        const char *coding;
        uint64_t bytes;
        tensors_at(&source->config, i, &t);
        if (!t.is_matrix) continue;
        source_stored(source, &t, &coding, &bytes);
        bf16 &= strcmp(coding, "BF16") == 0;
        f16 &= strcmp(coding, "F16") == 0;
    }
    return bf16 ? MDCSR_BF16 : f16 ? MDCSR_F16 : MDCSR_F32;
}

/* With the source's weights; `o` has been checked. */
static pdvm_status open_into(pdvm_model *m, const pdvm_model_options *o, pdvm_error *err) {
    if (wants_source_values(o)) m->values = source_values(m->source);
    m->config = m->source->config;
    PD_TRY(open_tokenizer(m, err));
    PD_TRY(pd_threads_create(o->n_threads, &m->threads, err));
    struct backend_options options = {.kernels = o->kernels,
                                      .threads = m->threads,
                                      .model_bytes = encoding_bytes(m->source, m->values),
                                      .notify = &m->notify};
    PD_TRY(backend_create(o->backend, &options, &m->backend, err));
    m->cache_packed = o->cache_packed;
    PD_TRY(open_cache(m, err));
    PD_TRY(load_weights(m, err));
    PD_TRY(save_cache(m, err));
    PD_TRY(plan_build(m, err));
    free_canonical(m);
    count_bytes(m);
    fill_info(m);
    log_layouts(m);
    return PDVM_OK;
}

static pdvm_status check_options(const pdvm_model_options *o, enum mdcsr_values *values,
                                 pdvm_error *err) {
    if (o->n_threads < 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%d threads: give a positive number, or 0 for all",
                       o->n_threads);
    *values = MDCSR_INT8;
    if (o->values && !wants_source_values(o) && !mdcsr_values_parse(o->values, values))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "unknown values \"%s\": f32, bf16, f16, int8, lut8, lut4 or source",
                       o->values);
    return PDVM_OK;
}

pdvm_status model_open_source(struct model_source *source, const pdvm_model_options *options,
                              pdvm_model **out, pdvm_error *err) {
    pdvm_model_options o = options ? *options : pdvm_model_options_default();
    pdvm_model *m;
    *out = NULL;
    pdvm_status status = pd_calloc(&m, 1, sizeof *m, "a model", err);
    if (status != PDVM_OK) {
        source_close(source);
        return status;
    }
    m->source = source;
    m->notify = (struct pd_notify){o.progress, o.progress_user, o.log, o.log_user};
    pthread_mutex_init(&m->pass, NULL);
    status = check_options(&o, &m->values, err);
    if (status == PDVM_OK) status = open_into(m, &o, err);
    if (status != PDVM_OK) {
        pdvm_model_close(m);
        return status;
    }
    *out = m;
    return PDVM_OK;
}

pdvm_status pdvm_model_open(const char *path, const pdvm_model_options *options, pdvm_model **out,
                            pdvm_error *err) {
    pdvm_model_options o = options ? *options : pdvm_model_options_default();
    enum mdcsr_values values;
    struct model_source *source;
    if (!out) return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_model_open: out is NULL");
    *out = NULL;
    if (!path) return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_model_open: path is NULL");
    PD_TRY(check_options(&o, &values, err)); /* before a large file is looked through */
    PD_TRY(source_open(path, &source, err));
    return model_open_source(source, &o, out, err);
}

pdvm_status model_set_threads(pdvm_model *m, int n, pdvm_error *err) {
    struct pd_threads *threads;
    if (!m->backend->ops->set_threads)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: the number of threads cannot be changed",
                       m->info.backend);
    PD_TRY(pd_threads_create(n, &threads, err));
    pdvm_status status = m->backend->ops->set_threads(m->backend, threads, err);
    pd_threads_free(m->threads);
    m->threads = threads;
    return status;
}

void pdvm_model_close(pdvm_model *m) {
    if (!m) return;
    if (m->backend) {
        for (size_t i = 0; i < m->n_matrices; i++)
            m->backend->ops->free_matrix(m->backend, m->matrices[i]);
        m->backend->ops->free_matrix(m->backend, m->lookup);
        m->backend->ops->destroy(m->backend);
    }
    safetensors_close(m->packed);
    free_canonical(m);
    plan_free(&m->plan);
    free(m->matrices);
    for (size_t i = 0; m->vectors && i < tensors_count(&m->config); i++) free(m->vectors[i]);
    free(m->vectors);
    free(m->inv_freq);
    mdcsr_free(&m->embedding);
    pd_threads_free(m->threads);
    tokenizer_free(m->tokenizer);
    source_close(m->source);
    pthread_mutex_destroy(&m->pass);
    free(m);
}

void pdvm_model_get_info(const pdvm_model *model, pdvm_model_info *info) {
    *info = model->info;
}

bool pdvm_model_is_end(const pdvm_model *model, int32_t token) {
    for (uint32_t i = 0; i < model->config.n_eos; i++)
        if (model->config.eos_token_ids[i] == token) return true;
    return false;
}

pdvm_status model_need_tokenizer(const pdvm_model *m, pdvm_error *err) {
    if (m->tokenizer) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: the model has no %s", m->source->path,
                   SOURCE_TOKENIZER);
}

pdvm_status pdvm_tokenize(const pdvm_model *model, const char *text, size_t len, unsigned flags,
                          int32_t *tokens, size_t capacity, size_t *n, pdvm_error *err) {
    struct token_list list = {0};
    if (!model || !n || (!text && len > 0) || (!tokens && capacity > 0))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_tokenize: an argument is NULL");
    *n = 0;
    PD_TRY(model_need_tokenizer(model, err));
    pdvm_status status = tokenizer_encode(model->tokenizer, text, len, flags, &list, err);
    if (status == PDVM_OK) {
        *n = list.n;
        size_t copied = list.n < capacity ? list.n : capacity;
        if (copied) memcpy(tokens, list.ids, copied * sizeof *tokens);
        if (list.n > capacity)
            status = pd_fail(err, PDVM_ERR_RANGE, "the text has %zu tokens, there is room for %zu",
                             list.n, capacity);
    }
    free(list.ids);
    return status;
}

pdvm_status pdvm_detokenize(const pdvm_model *model, const int32_t *tokens, size_t n, char *text,
                            size_t capacity, size_t *len, pdvm_error *err) {
    if (!model || !len || (!tokens && n > 0) || (!text && capacity > 0))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_detokenize: an argument is NULL");
    *len = 0;
    PD_TRY(model_need_tokenizer(model, err));
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= model->config.n_vocab)
            return pd_fail(err, PDVM_ERR_RANGE, "token %d is outside the vocabulary of %u",
                           (int)tokens[i], model->config.n_vocab);
    }
    /* One piece after the other, as they are generated, must give the text of all. */
    unsigned flags =
        n > 0 && tokenizer_begins_text(model->tokenizer, tokens[0]) ? TOKENIZER_DECODE_START : 0;
    char *whole;
    PD_TRY(tokenizer_decode(model->tokenizer, tokens, n, flags, &whole, len, err));
    size_t copied = *len < capacity ? *len : capacity;
    if (text && copied) memcpy(text, whole, copied);
    free(whole);
    if (*len > capacity)
        return pd_fail(err, PDVM_ERR_RANGE, "the text has %zu bytes, there is room for %zu", *len,
                       capacity);
    return PDVM_OK;
}
