/* pdvm_generate: sample, stream the text, step. */
#include "engine/engine.h"
#include "engine/text_stream.h"

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
 * Every token that counts is stepped, the last one too: the session then holds the whole text and
 * has the logits to go on from.
 */
static pdvm_status generate(pdvm_session *session, pdvm_sampler *sampler,
                            const pdvm_generate_options *options, struct text_stream *stream,
                            size_t *n, pdvm_stop_reason *reason, pdvm_error *err) {
    const struct pdvm_model *model = session->model;
    for (*n = 0; options->n_predict < 0 || *n < (uint64_t)options->n_predict;) {
        size_t n_vocab;
        const float *logits = pdvm_session_logits(session, &n_vocab);
        if (!logits)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "the session has no logits to generate from: sync it to a text first");
        int32_t token;
        PD_TRY(pdvm_sampler_sample(sampler, logits, n_vocab, &token, err));
        if (!options->ignore_end && is_end(model, options, token)) {
            *reason = PDVM_STOP_END;
            return PDVM_OK;
        }
        PD_TRY(stream_token(model, stream, token, err));
        ++*n;
        pdvm_status status = pdvm_session_step(session, token, err);
        if (status != PDVM_OK && status != PDVM_ERR_RANGE) return status;
        bool is_last = options->n_predict >= 0 && *n >= (uint64_t)options->n_predict;
        if (text_stream_stopped(stream)) {
            *reason = PDVM_STOP_STRING;
            return PDVM_OK;
        }
        if (text_stream_cancelled(stream)) {
            *reason = PDVM_STOP_CALLBACK;
            return PDVM_OK;
        }
        if (status == PDVM_ERR_RANGE && !is_last) {
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
    pdvm_status status = generate(session, sampler, options, stream, &n, &why, err);
    if (status == PDVM_OK) status = text_stream_finish(stream, err);
    text_stream_free(stream);
    if (n_generated) *n_generated = n;
    if (status == PDVM_OK && reason) *reason = why;
    return status;
}
