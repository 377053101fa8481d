/* Perplexity by sliding windows. */
#include "eval/perplexity.h"
#include "engine/engine.h"

#include <math.h>

/* A measurement in progress. */
struct measurement {
    const struct perplexity_options *options;
    const int32_t *tokens;
    perplexity_fn fn;
    void *user;
    size_t n_vocab;
    size_t base; /* position of the first token of the running pass */
    uint64_t work;
    uint64_t done;
    uint64_t n_scored;
    double mean, squares; /* of the likelihoods: Welford's recurrence (1962) */
};

double perplexity_nll(const float *logits, size_t n_vocab, int32_t token) {
    float max = logits[0];
    for (size_t i = 1; i < n_vocab; i++)
        if (logits[i] > max) max = logits[i];
    double sum = exp((double)logits[0] - (double)max);
    for (size_t i = 1; i < n_vocab; i++) sum += exp((double)logits[i] - (double)max);
    /* In this order: logits far from zero must not swallow log(sum). */
    return log(sum) + ((double)max - (double)logits[token]);
}

uint64_t perplexity_work(size_t n, uint32_t n_ctx, uint32_t stride) {
    uint64_t work = 0;
    for (size_t begin = 0; n >= 2 && stride > 0; begin += stride) {
        size_t left = n - begin;
        work += (left < n_ctx ? left : n_ctx) - 1;
        if (left <= n_ctx) break;
    }
    return work;
}

/* A session_logits_fn: the logits after a token score the one that follows it. */
static pdvm_status score(void *user, size_t index, const float *logits, pdvm_error *err) {
    struct measurement *m = user;
    size_t position = m->base + index + 1;
    int32_t token = m->tokens[position];
    double nll = perplexity_nll(logits, m->n_vocab, token);
    if (!isfinite(nll))
        return pd_fail(err, PDVM_ERR_RANGE,
                       "the likelihood of token %d at position %zu is not finite: the weights or "
                       "their scales are broken",
                       (int)token, position);
    m->n_scored++;
    double delta = nll - m->mean;
    m->mean += delta / (double)m->n_scored;
    m->squares += delta * (nll - m->mean);
    m->done++;
    if (m->fn) PD_TRY(m->fn(m->user, position, token, nll, logits, m->n_vocab, err));
    return pd_progress(&m->options->notify, "evaluating", (double)m->done / (double)m->work, err);
}

/* One window: tokens [begin, end), of which those from `first` on (begin < first) are scored. */
static pdvm_status measure_window(struct measurement *m, pdvm_session *s, size_t begin,
                                  size_t first, size_t end, pdvm_error *err) {
    PD_TRY(pdvm_session_rewind(s, 0, err));
    /* The last token predicts nothing that this window scores; those before first - 1 only fill
     * the cache. */
    size_t context = first - 1 - begin;
    for (size_t done = 0; done < context;) {
        size_t n = context - done < ENGINE_MAX_BATCH ? context - done : ENGINE_MAX_BATCH;
        PD_TRY(session_forward(s, m->tokens + begin + done, n, NULL, NULL, err));
        done += n;
        m->done += n;
        PD_TRY(
            pd_progress(&m->options->notify, "evaluating", (double)m->done / (double)m->work, err));
    }
    m->base = first - 1;
    return session_forward(s, m->tokens + first - 1, end - first, score, m, err);
}

static pdvm_status check(const pdvm_session *s, const int32_t *tokens, size_t n,
                         const struct perplexity_options *o, pdvm_error *err) {
    uint32_t n_vocab = s->model->config.n_vocab;
    if (n < 2)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a text of %zu token%s: at least 2 are needed, for one to be predicted", n,
                       n == 1 ? "" : "s");
    if (o->n_ctx < 2 || o->n_ctx > s->options.n_ctx)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "windows of %u tokens: must be from 2 to %u",
                       o->n_ctx, s->options.n_ctx);
    if (o->stride < 1 || o->stride > o->n_ctx)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a stride of %u tokens: must be from 1 to the window's %u", o->stride,
                       o->n_ctx);
    /* All of them now, also those that are only ever predicted. */
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= n_vocab)
            return pd_fail(err, PDVM_ERR_RANGE,
                           "token %d at position %zu is outside the vocabulary of %u",
                           (int)tokens[i], i, n_vocab);
    return PDVM_OK;
}

pdvm_status perplexity_measure(pdvm_session *session, const int32_t *tokens, size_t n,
                               const struct perplexity_options *options, perplexity_fn fn,
                               void *user, struct perplexity_result *result, pdvm_error *err) {
    *result = (struct perplexity_result){0};
    PD_TRY(check(session, tokens, n, options, err));
    struct measurement m = {.options = options,
                            .tokens = tokens,
                            .fn = fn,
                            .user = user,
                            .n_vocab = session->model->config.n_vocab,
                            .work = perplexity_work(n, options->n_ctx, options->stride)};
    size_t seen = 0; /* tokens in the windows so far */
    for (size_t begin = 0; seen < n; begin += options->stride) {
        size_t end = n - begin < options->n_ctx ? n : begin + options->n_ctx;
        /* Nothing before a window's first token predicts it. */
        size_t first = seen > begin ? seen : begin + 1;
        if (first < end) PD_TRY(measure_window(&m, session, begin, first, end, err));
        seen = end;
        result->n_windows++;
    }
    result->n_scored = m.n_scored;
    result->n_computed = m.done;
    result->nll = m.mean;
    result->perplexity = exp(m.mean);
    if (m.n_scored > 1) {
        double variance = m.squares / (double)(m.n_scored - 1);
        result->nll_stderr = sqrt(variance / (double)m.n_scored);
    }
    result->perplexity_stderr = result->perplexity * result->nll_stderr;
    return PDVM_OK;
}
