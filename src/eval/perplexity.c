/* Perplexity by windows. */
#include "eval/perplexity.h"
#include "base/alloc.h"
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const perplexity_protocol_names[] = {"sliding", "llama.cpp", "papers", NULL};

const char *perplexity_protocol_name(enum perplexity_protocol protocol) {
    return perplexity_protocol_names[protocol];
}

double perplexity_nll(const float *logits, size_t n_vocab, int32_t token) {
    float max = logits[0];
    for (size_t i = 1; i < n_vocab; i++)
        if (logits[i] > max) max = logits[i];
    double sum = exp((double)logits[0] - (double)max);
    for (size_t i = 1; i < n_vocab; i++) sum += exp((double)logits[i] - (double)max);
    /* In this order: logits far from zero must not swallow log(sum). */
    return log(sum) + ((double)max - (double)logits[token]);
}

/* ---- windows --------------------------------------------------------------------------- */

/* Tokens [begin, end) of the text, of which those from `first` on (begin < first) are scored. */
struct window {
    size_t begin, first, end;
};

uint32_t perplexity_usual_window(enum perplexity_protocol protocol) {
    return protocol == PERPLEXITY_PAPERS ? 2048 : 512;
}

void perplexity_complete(struct perplexity_options *o, const pdvm_model *model,
                         const int32_t *tokens, size_t n) {
    uint32_t most = model->config.max_position_embeddings;
    uint32_t usual = perplexity_usual_window(o->protocol);
    if (o->n_ctx == 0) o->n_ctx = most < usual ? most : usual;
    if (o->stride == 0) o->stride = (o->n_ctx + 1) / 2;
    o->bos = n > 0 && tokenizer_begins_text(model->tokenizer, tokens[0]) ? tokens[0] : -1;
}

/* Window i over n tokens; false behind the last one. */
static bool window_at(const struct perplexity_options *o, size_t n, size_t i, struct window *w) {
    bool sliding = o->protocol == PERPLEXITY_SLIDING;
    size_t step = sliding ? o->stride : o->n_ctx;
    size_t seen = i > 0 ? (i - 1) * step + o->n_ctx : 0; /* the end of the window before */
    if (seen >= n) return false;
    w->begin = i * step;
    w->end = n - w->begin < o->n_ctx ? n : w->begin + o->n_ctx;
    if (!sliding && w->end - w->begin < o->n_ctx) return false;
    /* Nothing before a window's first token predicts it. */
    w->first = w->begin + 1;
    if (o->protocol == PERPLEXITY_LLAMA_CPP)
        w->first += o->n_ctx / 2;
    else if (seen > w->begin)
        w->first = seen;
    return true;
}

struct perplexity_extent perplexity_extent(size_t n, const struct perplexity_options *options) {
    struct perplexity_extent e = {0};
    struct window w;
    if (perplexity_check(n, options, NULL) != PDVM_OK) return e;
    for (; window_at(options, n, e.n_windows, &w); e.n_windows++) {
        e.n_computed += w.end - w.begin - 1;
        e.n_scored += w.end - w.first;
    }
    return e;
}

pdvm_status perplexity_check(size_t n, const struct perplexity_options *o, pdvm_error *err) {
    if (n < 2)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a text of %zu token%s: at least 2 are needed, for one to be predicted", n,
                       n == 1 ? "" : "s");
    if (o->n_ctx < 2)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "windows of %u tokens: must be at least 2",
                       o->n_ctx);
    if (o->protocol == PERPLEXITY_SLIDING && (o->stride < 1 || o->stride > o->n_ctx))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a stride of %u tokens: must be from 1 to the window's %u", o->stride,
                       o->n_ctx);
    if (o->protocol == PERPLEXITY_LLAMA_CPP && o->n_ctx < 4)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "windows of %u tokens: the protocol llama.cpp needs at least 4", o->n_ctx);
    if (o->protocol != PERPLEXITY_SLIDING && n < o->n_ctx)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a text of %zu tokens is shorter than a window of %u, and the protocol %s "
                       "only counts whole windows; give more text or a shorter window",
                       n, o->n_ctx, perplexity_protocol_name(o->protocol));
    return PDVM_OK;
}

/* ---- measuring ------------------------------------------------------------------------- */

/* A measurement in progress. */
struct measurement {
    const struct perplexity_options *options;
    const int32_t *tokens; /* of the whole text */
    int32_t *input;        /* [n_ctx] of the window */
    float *reference;      /* [ENGINE_MAX_BATCH, n_vocab] logits of a batch; NULL: not wanted */
    perplexity_fn fn;
    void *user;
    size_t n_vocab;
    size_t base; /* position of the first token of the running pass */
    uint64_t work;
    uint64_t done;
    uint64_t n_scored;
    double mean, squares; /* of the likelihoods: Welford's recurrence (1962) */
};

/* A session_logits_fn: keeps the reference's logits until the other model has its own. */
static pdvm_status keep_reference(void *user, size_t index, const float *logits, pdvm_error *err) {
    const struct measurement *m = user;
    (void)err;
    memcpy(m->reference + index * m->n_vocab, logits, m->n_vocab * sizeof *logits);
    return PDVM_OK;
}

static pdvm_status report(const struct measurement *m, pdvm_error *err) {
    return pd_progress(&m->options->notify, "evaluating", (double)m->done / (double)m->work, err);
}

/* A session_logits_fn: the logits after a token score the one that follows it. */
static pdvm_status score(void *user, size_t index, const float *logits, pdvm_error *err) {
    struct measurement *m = user;
    struct perplexity_token t = {.position = m->base + index + 1,
                                 .logits = logits,
                                 .reference =
                                     m->reference ? m->reference + index * m->n_vocab : NULL,
                                 .n_vocab = m->n_vocab};
    t.token = m->tokens[t.position];
    t.nll = perplexity_nll(logits, m->n_vocab, t.token);
    if (!isfinite(t.nll))
        return pd_fail(err, PDVM_ERR_RANGE,
                       "the likelihood of token %d at position %zu is not finite: the weights or "
                       "their scales are broken",
                       (int)t.token, t.position);
    m->n_scored++;
    double delta = t.nll - m->mean;
    m->mean += delta / (double)m->n_scored;
    m->squares += delta * (t.nll - m->mean);
    m->done++;
    if (m->fn) PD_TRY(m->fn(m->user, &t, err));
    return report(m, err);
}

/* Passes input[from, to) through the models, in batches; with `scored` each token's logits count. */
static pdvm_status run(struct measurement *m, pdvm_session *s, size_t begin, size_t from, size_t to,
                       bool scored, pdvm_error *err) {
    while (from < to) {
        size_t n = to - from < ENGINE_MAX_BATCH ? to - from : ENGINE_MAX_BATCH;
        const int32_t *tokens = m->input + from;
        if (m->reference)
            PD_TRY(session_forward(m->options->reference, tokens, n, scored ? keep_reference : NULL,
                                   m, err));
        m->base = begin + from;
        PD_TRY(session_forward(s, tokens, n, scored ? score : NULL, m, err));
        from += n;
        if (scored) continue;
        m->done += n;
        PD_TRY(report(m, err));
    }
    return PDVM_OK;
}

static pdvm_status measure_window(struct measurement *m, pdvm_session *s, const struct window *w,
                                  pdvm_error *err) {
    const struct perplexity_options *o = m->options;
    size_t n = w->end - w->begin, first = w->first - w->begin;
    if (first >= n) return PDVM_OK;
    memcpy(m->input, m->tokens + w->begin, n * sizeof *m->input);
    if (o->protocol == PERPLEXITY_LLAMA_CPP && o->bos >= 0) m->input[0] = o->bos;
    PD_TRY(pdvm_session_rewind(s, 0, err));
    if (o->reference) PD_TRY(pdvm_session_rewind(o->reference, 0, err));
    /* The last token predicts nothing that this window scores; those before first - 1 only fill
     * the cache. */
    PD_TRY(run(m, s, w->begin, 0, first - 1, false, err));
    return run(m, s, w->begin, first - 1, n - 1, true, err);
}

static pdvm_status check_session(const pdvm_session *s, const int32_t *tokens, size_t n,
                                 const struct perplexity_options *o, pdvm_error *err) {
    uint32_t n_vocab = s->model->config.n_vocab;
    PD_TRY(perplexity_check(n, o, err));
    if (o->n_ctx > s->options.n_ctx)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "windows of %u tokens: must be from 2 to %u",
                       o->n_ctx, s->options.n_ctx);
    if (o->reference && o->reference->model->config.n_vocab != n_vocab)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "the models have vocabularies of %u and %u tokens: they cannot be compared",
                       n_vocab, o->reference->model->config.n_vocab);
    if (o->reference && o->n_ctx > o->reference->options.n_ctx)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "windows of %u tokens: the reference has %u",
                       o->n_ctx, o->reference->options.n_ctx);
    /* All of them now, also those that are only ever predicted. */
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= n_vocab)
            return pd_fail(err, PDVM_ERR_RANGE,
                           "token %d at position %zu is outside the vocabulary of %u",
                           (int)tokens[i], i, n_vocab);
    if (o->protocol == PERPLEXITY_LLAMA_CPP && o->bos >= 0 && (uint32_t)o->bos >= n_vocab)
        return pd_fail(err, PDVM_ERR_RANGE, "token %d is outside the vocabulary of %u", (int)o->bos,
                       n_vocab);
    return PDVM_OK;
}

static void finish(const struct measurement *m, struct perplexity_result *result) {
    result->n_scored = m->n_scored;
    result->n_computed = m->done;
    result->nll = m->mean;
    result->perplexity = exp(m->mean);
    if (m->n_scored > 1) {
        double variance = m->squares / (double)(m->n_scored - 1);
        result->nll_stderr = sqrt(variance / (double)m->n_scored);
    }
    result->perplexity_stderr = result->perplexity * result->nll_stderr;
}

pdvm_status perplexity_measure(pdvm_session *session, const int32_t *tokens, size_t n,
                               const struct perplexity_options *options, perplexity_fn fn,
                               void *user, struct perplexity_result *result, pdvm_error *err) {
    *result = (struct perplexity_result){0};
    PD_TRY(check_session(session, tokens, n, options, err));
    struct measurement m = {.options = options,
                            .tokens = tokens,
                            .fn = fn,
                            .user = user,
                            .n_vocab = session->model->config.n_vocab,
                            .work = perplexity_extent(n, options).n_computed};
    pdvm_status status = pd_calloc(&m.input, options->n_ctx, sizeof *m.input, "a window", err);
    if (status == PDVM_OK && options->reference)
        status = pd_calloc(&m.reference, ENGINE_MAX_BATCH * m.n_vocab, sizeof *m.reference,
                           "logits", err);
    struct window w;
    while (status == PDVM_OK && window_at(options, n, result->n_windows, &w)) {
        status = measure_window(&m, session, &w, err);
        result->n_windows++;
    }
    free(m.input);
    free(m.reference);
    if (status == PDVM_OK) finish(&m, result);
    return status;
}
