/**
 * Perplexity of a text: exp of the mean negative log likelihood of its tokens (Jelinek et al.
 * 1977), by sliding windows, as in the Hugging Face guide "Perplexity of fixed-length models".
 *
 * Window i covers the tokens [i * stride, i * stride + n_ctx), and the last one ends with the text.
 * Each window is computed from an empty cache and scores the tokens that no window before it
 * has scored: the first window all but its own first token, the others their last `stride` tokens.
 * So every token but the first of the text is scored exactly once, and every token after the first
 * window with at least n_ctx - stride tokens before it; stride = 1 gives every token the longest
 * context. stride = n_ctx, the cheapest, cuts the text into pieces without overlap, where the first
 * token of each piece has nothing before it and is not scored.
 */
#ifndef PDVM_EVAL_PERPLEXITY_H
#define PDVM_EVAL_PERPLEXITY_H

#include "base/notify.h"

#include <stddef.h>
#include <stdint.h>

/** How to measure. */
struct perplexity_options {
    uint32_t n_ctx;          /**< tokens of a window, >= 2, at most the session's context */
    uint32_t stride;         /**< tokens between the starts of windows, 1..n_ctx */
    struct pd_notify notify; /**< progress stage "evaluating" */
};

/** What was measured. */
struct perplexity_result {
    uint64_t n_scored;
    uint64_t n_computed; /**< tokens passed through the model, those of overlaps included */
    uint64_t n_windows;
    double nll;               /**< mean negative log likelihood, in nats a token */
    double nll_stderr;        /**< its standard error, taking tokens as independent */
    double perplexity;        /**< exp(nll) */
    double perplexity_stderr; /**< to first order: perplexity * nll_stderr */
};

/**
 * Receives one scored token: its position in the text (rising), its id, its negative
 * log likelihood, and the logits[n_vocab] that it was scored with. A status other than PDVM_OK ends
 * the measurement with that status.
 */
typedef pdvm_status (*perplexity_fn)(void *user, size_t position, int32_t token, double nll,
                                     const float *logits, size_t n_vocab, pdvm_error *err);

/**
 * Negative log likelihood of `token` under logits[n_vocab], n_vocab >= 1, by a stable log-softmax
 * in double precision. Not finite if the logits are not.
 */
double perplexity_nll(const float *logits, size_t n_vocab, int32_t token);

/** Tokens that the windows over n tokens pass through the model, for rates and forecasts. */
uint64_t perplexity_work(size_t n, uint32_t n_ctx, uint32_t stride);

/**
 * Measures tokens[0..n), n >= 2, with `session`, whose contents are replaced. `fn` may be NULL.
 * PDVM_ERR_ARGUMENT for a bad n_ctx or stride or too few tokens; PDVM_ERR_RANGE for tokens outside
 * the vocabulary and for a likelihood that is not finite, with its position.
 */
pdvm_status perplexity_measure(pdvm_session *session, const int32_t *tokens, size_t n,
                               const struct perplexity_options *options, perplexity_fn fn,
                               void *user, struct perplexity_result *result, pdvm_error *err);

#endif
