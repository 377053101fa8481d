/* pdvm_generate: sample, stream the text, step. */
#include "base/time.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/text_stream.h"

/* Tokens that a backend computes without being asked in between, at first and at most. */
#define FIRST_AHEAD 4u
#define MOST_AHEAD 32u
#define PIECE_SECONDS 0.05
#define MOST_STOPS 32u

static pdvm_status stream_token(const struct pdvm_model *model, struct text_stream *stream,
                                int32_t token, pdvm_error *err) {
    if (!model->tokenizer) return PDVM_OK;
    size_t len;
    const char *bytes = tokenizer_bytes(model->tokenizer, token, false, &len);
    return text_stream_feed(stream, bytes, bytes ? len : 0, err);
}

static bool is_end(const struct pdvm_model *model, const pdvm_generate_options *options,
                   int32_t token) {
    for (size_t i = 0; i < options->n_end; i++)
        if (options->end[i] == token) return true;
    return pdvm_model_is_end(model, token);
}

/*
 * Where tokens come from: the sampler takes them from the session's logits, or the backend chooses
 * several at once and they are handed out one by one. All but the last of those are in the session
 * already.
 */
struct supply {
    pdvm_session *session;
    pdvm_sampler *sampler;
    bool on_device;
    struct backend_sampling sampling;
    int32_t stops[MOST_STOPS];
    int32_t chosen[MOST_AHEAD];
    uint32_t n_chosen, taken;
    uint32_t ahead; /* tokens of the next launch */
};

static void supply_open(struct supply *s, pdvm_session *session, pdvm_sampler *sampler,
                        const pdvm_generate_options *options) {
    const struct model_config *c = &session->model->config;
    const struct backend_ops *ops = session->model->backend->ops;
    *s = (struct supply){.session = session, .sampler = sampler, .ahead = FIRST_AHEAD};
    if (!session_can_generate(session) ||
        !sampler_for_device(sampler, ops->max_top_k, &s->sampling))
        return;
    size_t n = options->ignore_end ? 0 : c->n_eos + options->n_end;
    if (n > MOST_STOPS || n > ops->max_stops) return;
    for (size_t i = 0; i < n; i++)
        s->stops[i] = i < c->n_eos ? c->eos_token_ids[i] : options->end[i - c->n_eos];
    s->sampling.stops = s->stops;
    s->sampling.n_stops = (uint32_t)n;
    s->on_device = true;
}

static pdvm_status supply_next(struct supply *s, int32_t *token, pdvm_error *err) {
    if (s->taken < s->n_chosen) {
        *token = s->chosen[s->taken++];
        return sampler_chose(s->sampler, *token, err);
    }
    size_t n_vocab;
    const float *logits = pdvm_session_logits(s->session, &n_vocab);
    if (!logits)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "the session has no logits to generate from: sync it to a text first");
    return pdvm_sampler_sample(s->sampler, logits, n_vocab, token, err);
}

/* Has the session hold the token that supply_next gave; `more` may follow it. */
static pdvm_status supply_step(struct supply *s, int32_t token, uint64_t more, pdvm_error *err) {
    if (s->taken < s->n_chosen) return PDVM_OK;
    if (!s->on_device) return pdvm_session_step(s->session, token, err);
    struct backend_sampling sampling;
    sampler_for_device(s->sampler, UINT32_MAX, &sampling);
    s->sampling.random = sampling.random;
    uint32_t n = more < s->ahead ? (uint32_t)more + 1 : s->ahead;
    s->taken = s->n_chosen = 0;
    double start = pd_seconds();
    PD_TRY(session_generate(s->session, token, n, &s->sampling, s->chosen, &s->n_chosen, err));
    /* Text should come in pieces that nobody notices. */
    double seconds = pd_seconds() - start;
    if (seconds < 0.5 * PIECE_SECONDS && n == s->ahead && s->ahead < MOST_AHEAD) s->ahead *= 2;
    if (seconds > PIECE_SECONDS && s->ahead > 1) s->ahead /= 2;
    return PDVM_OK;
}

/* Takes back what was computed ahead: the last token is computed again, for its logits. */
static pdvm_status supply_close(struct supply *s, pdvm_error *err) {
    if (s->n_chosen - s->taken < 2) return PDVM_OK;
    size_t n = s->session->n_tokens - (s->n_chosen - s->taken - 1);
    int32_t last = s->session->tokens[n - 1];
    PD_TRY(pdvm_session_rewind(s->session, n - 1, err));
    return pdvm_session_step(s->session, last, err);
}

/*
 * Every token that counts is stepped, the last one too: the session then holds the whole text and
 * has the logits to go on from.
 */
static pdvm_status generate(struct supply *supply, const pdvm_generate_options *options,
                            struct text_stream *stream, size_t *n, pdvm_stop_reason *reason,
                            pdvm_error *err) {
    const struct pdvm_model *model = supply->session->model;
    for (*n = 0; options->n_predict < 0 || *n < (uint64_t)options->n_predict;) {
        int32_t token;
        PD_TRY(supply_next(supply, &token, err));
        if (!options->ignore_end && is_end(model, options, token)) {
            *reason = PDVM_STOP_END;
            return PDVM_OK;
        }
        PD_TRY(stream_token(model, stream, token, err));
        ++*n;
        uint64_t more = options->n_predict < 0 ? UINT64_MAX : (uint64_t)options->n_predict - *n;
        bool stopped = text_stream_stopped(stream) || text_stream_cancelled(stream);
        pdvm_status status = supply_step(supply, token, stopped ? 0 : more, err);
        if (status != PDVM_OK && status != PDVM_ERR_RANGE) return status;
        if (stopped) {
            *reason = text_stream_stopped(stream) ? PDVM_STOP_STRING : PDVM_STOP_CALLBACK;
            return PDVM_OK;
        }
        if (status == PDVM_ERR_RANGE && more > 0) {
            *reason = PDVM_STOP_CONTEXT;
            return PDVM_OK;
        }
    }
    *reason = PDVM_STOP_LENGTH;
    return PDVM_OK;
}

pdvm_status pdvm_generate(pdvm_session *session, pdvm_sampler *sampler,
                          const pdvm_generate_options *options, pdvm_text_fn on_text, void *user,
                          size_t *n_generated, pdvm_stop_reason *reason, pdvm_error *err) {
    static const pdvm_generate_options ENDLESS = {.n_predict = -1};
    if (n_generated) *n_generated = 0;
    if (!session || !sampler)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "generating needs a session and a sampler");
    if (!options) options = &ENDLESS;
    if (!session->model->tokenizer && (on_text || options->n_stop > 0))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: the model has no %s, so its tokens have no text",
                       session->model->source->path, SOURCE_TOKENIZER);
    struct text_stream *stream;
    PD_TRY(text_stream_create(options->stop, options->n_stop, on_text, user, &stream, err));
    size_t n;
    pdvm_stop_reason why = PDVM_STOP_LENGTH;
    struct supply supply;
    supply_open(&supply, session, sampler, options);
    pdvm_status status = generate(&supply, options, stream, &n, &why, err);
    if (status == PDVM_OK) status = supply_close(&supply, err);
    if (status == PDVM_OK) status = text_stream_finish(stream, err);
    text_stream_free(stream);
    if (n_generated) *n_generated = n;
    if (status == PDVM_OK && reason) *reason = why;
    return status;
}
