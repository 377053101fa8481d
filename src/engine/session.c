/* Sessions: syncing to a token prefix, stepping, rewinding, raw activations. */
#include "base/alloc.h"
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

/* Longest context: positions are 32-bit and the token count must fit. */
#define MAX_CONTEXT (1u << 24)

pdvm_session_options pdvm_session_options_default(void) {
    return (pdvm_session_options){
        .type_k = PDVM_KV_F16, .type_v = PDVM_KV_F16, .mode = PDVM_MODE_TOKEN, .n_sink = 4};
}

static pdvm_status check_options(const pdvm_session_options *o, pdvm_error *err) {
    if ((unsigned)o->type_k > PDVM_KV_INT8 || (unsigned)o->type_v > PDVM_KV_INT8)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown KV cache type");
    if ((unsigned)o->mode > PDVM_MODE_UNFUSED)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown execution mode %d", (int)o->mode);
    if (o->prompt_activations != 0 && o->prompt_activations != 8 && o->prompt_activations != 16)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "activations of %u bits: possible are 8 and 16",
                       o->prompt_activations);
    if (o->n_ctx > MAX_CONTEXT)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "a context of %u tokens: at most %u", o->n_ctx,
                       MAX_CONTEXT);
    return PDVM_OK;
}

pdvm_status pdvm_session_create(pdvm_model *model, const pdvm_session_options *options,
                                pdvm_session **out, pdvm_error *err) {
    pdvm_session_options o = options ? *options : pdvm_session_options_default();
    if (!out) return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_session_create: out is NULL");
    *out = NULL;
    if (!model) return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_session_create: model is NULL");
    PD_TRY(check_options(&o, err));
    if (o.n_ctx == 0) o.n_ctx = model->config.max_position_embeddings;
    if (o.n_ctx > MAX_CONTEXT) o.n_ctx = MAX_CONTEXT;
    if (o.n_batch == 0 || o.n_batch > model->plan.max_batch) o.n_batch = model->plan.max_batch;
    if (o.n_ctx > model->config.max_position_embeddings)
        pd_log(&model->notify, PDVM_LOG_WARN,
               "a context of %u tokens: the model was made for %u, expect worse text beyond",
               o.n_ctx, model->config.max_position_embeddings);
    pdvm_session *s;
    PD_TRY(pd_calloc(&s, 1, sizeof *s, "a session", err));
    s->model = model;
    s->options = o;
    const struct kv_shape shape = {.n_layers = model->config.n_layers,
                                   .n_kv_heads = model->config.n_kv_heads,
                                   .head_dim = model->config.head_dim,
                                   .type_k = o.type_k,
                                   .type_v = o.type_v};
    pdvm_status status =
        kv_cache_create(&s->cache, model->backend, &shape, o.n_ctx, o.rolling, o.n_sink, err);
    if (status == PDVM_OK)
        status = pd_calloc(&s->logits, model->config.n_vocab, sizeof *s->logits, "logits", err);
    /* Room for a whole context, of which only touched pages cost memory: steps allocate nothing. */
    if (status == PDVM_OK)
        status = pd_grow(&s->tokens, &s->token_capacity, o.n_ctx, sizeof *s->tokens, "tokens", err);
    s->n_logit_rows = 1;
    if (status != PDVM_OK) {
        pdvm_session_free(s);
        return status;
    }
    *out = s;
    return PDVM_OK;
}

void pdvm_session_free(pdvm_session *s) {
    if (!s) return;
    kv_cache_free(&s->cache);
    free(s->tokens);
    free(s->logits);
    free(s);
}

static pdvm_status check_tokens(const pdvm_session *s, const int32_t *tokens, size_t n,
                                size_t position, pdvm_error *err) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->model->config.n_vocab)
            return pd_fail(err, PDVM_ERR_RANGE,
                           "token %d at position %zu is outside the vocabulary of %u",
                           (int)tokens[i], position + i, s->model->config.n_vocab);
    return PDVM_OK;
}

static pdvm_status check_room(const pdvm_session *s, size_t n_total, pdvm_error *err) {
    if (n_total > INT32_MAX)
        return pd_fail(err, PDVM_ERR_RANGE, "%zu tokens: a session holds at most %d", n_total,
                       INT32_MAX);
    if (s->options.rolling || n_total <= s->options.n_ctx) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_RANGE,
                   "%zu tokens do not fit the context of %u: shorten the text, raise the context "
                   "length or use a rolling cache",
                   n_total, s->options.n_ctx);
}

static pdvm_status append_tokens(pdvm_session *s, const int32_t *tokens, size_t n,
                                 pdvm_error *err) {
    PD_TRY(
        pd_grow(&s->tokens, &s->token_capacity, s->n_tokens + n, sizeof *s->tokens, "tokens", err));
    memcpy(s->tokens + s->n_tokens, tokens, n * sizeof *tokens);
    s->n_tokens += n;
    return PDVM_OK;
}

/* Places a pass in the cache; its phases, tokens or activations and logits are set. */
static pdvm_status place_pass(pdvm_session *s, struct batch *batch, pdvm_error *err) {
    PD_TRY(kv_cache_place(&s->cache, batch, err));
    batch->mode = s->options.mode;
    batch->short_activations = s->options.prompt_activations == 8;
    batch->n_dispatches = &s->stats.n_dispatches;
    batch->phase_seconds = s->phase_seconds;
    batch->barrier_seconds = &s->barrier_seconds;
    batch->sync = s->sync;
    batch->graph = s->graph;
    return PDVM_OK;
}

static pdvm_status run_pass(pdvm_session *s, struct batch *batch, pdvm_error *err) {
    struct pdvm_model *m = s->model;
    PD_TRY(place_pass(s, batch, err));
    pthread_mutex_lock(&m->pass);
    pdvm_status status = m->backend->ops->run(m->backend, batch, err);
    pthread_mutex_unlock(&m->pass);
    return status;
}

/* Tokens of a pass with logits for all of them, which shall not take more than 32 MB. */
static uint32_t logits_batch(const pdvm_session *s) {
    size_t fit = ((size_t)32 << 20) / (s->model->config.n_vocab * sizeof *s->logits);
    size_t least = fit < 16 ? 16 : fit;
    return least < s->options.n_batch ? (uint32_t)least : s->options.n_batch;
}

pdvm_status session_forward(pdvm_session *s, const int32_t *tokens, size_t n, session_logits_fn fn,
                            void *user, pdvm_error *err) {
    struct pdvm_model *m = s->model;
    const struct pd_notify notify = {.progress = s->options.progress,
                                     .progress_user = s->options.progress_user};
    size_t n_vocab = m->config.n_vocab;
    PD_TRY(check_tokens(s, tokens, n, s->n_tokens, err));
    PD_TRY(check_room(s, s->n_tokens + n, err));
    uint32_t n_batch = fn ? logits_batch(s) : s->options.n_batch;
    if (fn && s->n_logit_rows < n_batch) {
        float *logits;
        PD_TRY(pd_calloc(&logits, n_batch * n_vocab, sizeof *logits, "logits", err));
        free(s->logits);
        s->logits = logits;
        s->n_logit_rows = n_batch;
    }
    s->logits_valid = false;
    if (n > 1) PD_TRY(pd_progress(&notify, "prompt", 0, err)); /* the time starts here */
    for (size_t done = 0; done < n;) {
        size_t left = n - done;
        struct batch batch = {.tokens = tokens + done};
        batch.n_tokens = kv_cache_room(&s->cache, left < n_batch ? (uint32_t)left : n_batch);
        if (batch.n_tokens == 0) return pd_fail(err, PDVM_ERR_RANGE, "the context is full");
        bool last = batch.n_tokens == left;
        batch.n_logits = fn ? batch.n_tokens : last ? 1 : 0;
        batch.logits = s->logits;
        /* Without logits the head is left out altogether. */
        batch.end_phase = m->plan.n_phases - (batch.n_logits ? 0 : 1);
        PD_TRY(append_tokens(s, batch.tokens, batch.n_tokens, err));
        pdvm_status status = run_pass(s, &batch, err);
        if (status != PDVM_OK) {
            s->n_tokens -= batch.n_tokens;
            return status;
        }
        s->cache.n_tokens += batch.n_tokens;
        s->stats.n_computed += batch.n_tokens;
        for (uint32_t i = 0; fn && i < batch.n_tokens; i++)
            PD_TRY(fn(user, done + i, s->logits + i * n_vocab, err));
        done += batch.n_tokens;
        if (last && batch.n_logits > 1)
            memmove(s->logits, s->logits + (batch.n_logits - 1) * n_vocab,
                    n_vocab * sizeof *s->logits);
        s->logits_valid = last;
        if (n > 1) PD_TRY(pd_progress(&notify, "prompt", (double)done / (double)n, err));
    }
    return PDVM_OK;
}

bool session_can_generate(const pdvm_session *s) {
    const struct backend *b = s->model->backend;
    return b->ops->can_generate && b->ops->can_generate(b, s->options.mode);
}

pdvm_status session_generate(pdvm_session *s, int32_t token, uint32_t n,
                             const struct backend_sampling *sampling, int32_t *chosen,
                             uint32_t *done, pdvm_error *err) {
    struct pdvm_model *m = s->model;
    *done = 0;
    PD_TRY(check_tokens(s, &token, 1, s->n_tokens, err));
    PD_TRY(check_room(s, s->n_tokens + 1, err));
    if (n > s->options.n_batch) n = s->options.n_batch;
    struct batch batch = {.tokens = &token,
                          .n_tokens = kv_cache_room(&s->cache, n),
                          .n_logits = 1,
                          .logits = s->logits,
                          .end_phase = m->plan.n_phases};
    if (batch.n_tokens == 0) return pd_fail(err, PDVM_ERR_RANGE, "the context is full");
    PD_TRY(pd_grow(&s->tokens, &s->token_capacity, s->n_tokens + batch.n_tokens, sizeof *s->tokens,
                   "tokens", err));
    s->logits_valid = false;
    PD_TRY(place_pass(s, &batch, err));
    pthread_mutex_lock(&m->pass);
    pdvm_status status = m->backend->ops->generate(m->backend, &batch, sampling, chosen, done, err);
    pthread_mutex_unlock(&m->pass);
    PD_TRY(status);
    s->tokens[s->n_tokens] = token;
    memcpy(s->tokens + s->n_tokens + 1, chosen, (*done - 1) * sizeof *chosen);
    s->n_tokens += *done;
    s->cache.n_tokens += *done;
    s->stats.n_computed += *done;
    s->logits_valid = true;
    return PDVM_OK;
}

static pdvm_status need(const void *argument, const char *name, pdvm_error *err) {
    return argument ? PDVM_OK : pd_fail(err, PDVM_ERR_ARGUMENT, "the %s is NULL", name);
}

pdvm_status pdvm_session_sync(pdvm_session *s, const int32_t *tokens, size_t n, pdvm_error *err) {
    PD_TRY(need(s, "session", err));
    if (n == 0) return pd_fail(err, PDVM_ERR_ARGUMENT, "no tokens: a session needs at least one");
    PD_TRY(need(tokens, "list of tokens", err));
    PD_TRY(check_tokens(s, tokens, n, 0, err));
    PD_TRY(check_room(s, n, err));
    size_t common = 0;
    while (common < n && common < s->n_tokens && tokens[common] == s->tokens[common]) common++;
    if (common == n && s->n_tokens == n && s->logits_valid) {
        s->stats.n_reused += n;
        return PDVM_OK;
    }
    if (common == n) common--; /* the logits after the last token are needed again */
    if (pdvm_session_rewind(s, common, NULL) != PDVM_OK) {
        common = 0;
        PD_TRY(pdvm_session_rewind(s, 0, err));
    }
    s->stats.n_reused += common;
    return session_forward(s, tokens + common, n - common, NULL, NULL, err);
}

pdvm_status pdvm_session_step(pdvm_session *s, int32_t token, pdvm_error *err) {
    PD_TRY(need(s, "session", err));
    return session_forward(s, &token, 1, NULL, NULL, err);
}

const float *pdvm_session_logits(const pdvm_session *s, size_t *n_vocab) {
    if (n_vocab) *n_vocab = s->model->config.n_vocab;
    return s->logits_valid ? s->logits : NULL;
}

pdvm_status pdvm_session_rewind(pdvm_session *s, size_t n, pdvm_error *err) {
    PD_TRY(need(s, "session", err));
    if (n > s->n_tokens)
        return pd_fail(err, PDVM_ERR_RANGE, "cannot rewind to %zu of %zu tokens", n, s->n_tokens);
    if (n == s->n_tokens) return PDVM_OK;
    if (!kv_cache_rewind(&s->cache, (uint32_t)n))
        return pd_fail(err, PDVM_ERR_RANGE,
                       "cannot rewind to %zu tokens: the rolling cache has dropped some of them",
                       n);
    s->n_tokens = n;
    s->logits_valid = false;
    return PDVM_OK;
}

const int32_t *pdvm_session_tokens(const pdvm_session *s, size_t *n) {
    if (n) *n = s->n_tokens;
    return s->tokens;
}

void pdvm_session_get_stats(const pdvm_session *s, pdvm_session_stats *stats) {
    *stats = s->stats;
    stats->kv_bytes = s->model->backend->ops->kv_bytes(s->cache.memory);
}

/* Runs layers [first, end) on one raw activation at the next position. */
static pdvm_status execute(pdvm_session *s, uint32_t first, uint32_t end, float *x,
                           pdvm_error *err) {
    PD_TRY(check_room(s, s->n_tokens + 1, err));
    if (kv_cache_room(&s->cache, 1) == 0)
        return pd_fail(err, PDVM_ERR_RANGE, "the context is full");
    struct batch batch = {
        .n_tokens = 1, .x = x, .first_phase = plan_phase(first), .end_phase = plan_phase(end)};
    return run_pass(s, &batch, err);
}

pdvm_status pdvm_execute_layer(pdvm_session *s, uint32_t layer, float *x, pdvm_error *err) {
    PD_TRY(need(s, "session", err));
    PD_TRY(need(x, "activation", err));
    if (layer >= s->model->config.n_layers)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "layer %u of a model with %u layers", layer,
                       s->model->config.n_layers);
    return execute(s, layer, layer + 1, x, err);
}

pdvm_status pdvm_execute_model(pdvm_session *s, float *x, pdvm_error *err) {
    const int32_t unknown = -1;
    PD_TRY(need(s, "session", err));
    PD_TRY(need(x, "activation", err));
    PD_TRY(
        pd_grow(&s->tokens, &s->token_capacity, s->n_tokens + 1, sizeof *s->tokens, "tokens", err));
    PD_TRY(execute(s, 0, s->model->config.n_layers, x, err));
    s->cache.n_tokens++;
    s->stats.n_computed++;
    s->logits_valid = false;
    return append_tokens(s, &unknown, 1, err);
}
