/**
 * Perplexity of a text: exp of the mean negative log likelihood of its tokens (Jelinek et al.
 * 1977), by windows that are each computed from an empty cache. Protocols differ in where windows
 * begin and which tokens they score; values of different protocols cannot be compared.
 */
#ifndef PDVM_EVAL_PERPLEXITY_H
#define PDVM_EVAL_PERPLEXITY_H

#include "base/notify.h"

#include <stddef.h>
#include <stdint.h>

/** How a text is cut into windows, and which tokens are scored. */
enum perplexity_protocol {
    /**
     * Sliding windows, as in the Hugging Face guide "Perplexity of fixed-length models". Window i
     * covers the tokens [i * stride, i * stride + n_ctx), and the last one ends with the text. Each
     * scores the tokens that no window before it has scored: the first window all but its own first
     * token, the others their last `stride` tokens. So every token but the first of the text is
     * scored exactly once, and every token after the first window with at least n_ctx - stride
     * tokens before it. stride = n_ctx, the cheapest, cuts the text into pieces without overlap,
     * where the first token of each piece is not scored.
     */
    PERPLEXITY_SLIDING,
    /**
     * llama.cpp's perplexity tool: whole windows of n_ctx tokens without overlap, of which the
     * tokens from n_ctx / 2 + 1 on are scored; the token that begins a text, if there is one, takes
     * the place of each window's first.
     */
    PERPLEXITY_LLAMA_CPP,
    /**
     * Papers on pruning and quantisation (GPTQ, SparseGPT, Wanda, ...): whole windows of n_ctx
     * tokens, 2,048 there, without overlap, of which all tokens but the first are scored.
     */
    PERPLEXITY_PAPERS,
    PERPLEXITY_N_PROTOCOLS
};

/** "sliding", "llama.cpp", "papers", and NULL behind them. */
extern const char *const perplexity_protocol_names[PERPLEXITY_N_PROTOCOLS + 1];

/** One of them. */
const char *perplexity_protocol_name(enum perplexity_protocol protocol);

/** Tokens of a protocol's usual window: 512, and 2048 for that of the papers. */
uint32_t perplexity_usual_window(enum perplexity_protocol protocol);

/** How to measure. */
struct perplexity_options {
    enum perplexity_protocol protocol;
    uint32_t n_ctx;  /**< tokens of a window, >= 2, at most the session's context */
    uint32_t stride; /**< SLIDING: tokens between the starts of windows, 1..n_ctx */
    int32_t bos;     /**< LLAMA_CPP: the first token of each window; -1: the text's own */
    /**
     * A session of a second model with the same vocabulary that computes the same tokens; its
     * logits are handed out beside those measured. May be NULL.
     */
    pdvm_session *reference;
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

/** One scored token. */
struct perplexity_token {
    size_t position; /**< in the text; rises from token to token */
    int32_t token;
    double nll;             /**< negative log likelihood, in nats */
    const float *logits;    /**< [n_vocab] that it was scored with */
    const float *reference; /**< [n_vocab] of the second model; NULL without one */
    size_t n_vocab;
};

/** Receives one scored token. A status other than PDVM_OK ends the measurement with that status. */
typedef pdvm_status (*perplexity_fn)(void *user, const struct perplexity_token *t, pdvm_error *err);

/**
 * Negative log likelihood of `token` under logits[n_vocab], n_vocab >= 1, by a stable log-softmax
 * in double precision. Not finite if the logits are not.
 */
double perplexity_nll(const float *logits, size_t n_vocab, int32_t token);

/**
 * Completes options of which the protocol is set, for a model and a text of n tokens: n_ctx 0 becomes
 * the usual window, or the model's context if that is shorter; stride 0 half of the window; and bos
 * the text's first token if that is the one that begins texts.
 */
void perplexity_complete(struct perplexity_options *o, const pdvm_model *model,
                         const int32_t *tokens, size_t n);

/** Windows over a text of n tokens, for forecasts and for the sizes of files. */
struct perplexity_extent {
    uint64_t n_windows;
    uint64_t n_computed; /**< tokens that they pass through the model */
    uint64_t n_scored;
};

/** Counts what perplexity_measure would do. All zero for options that it would refuse. */
struct perplexity_extent perplexity_extent(size_t n, const struct perplexity_options *options);

/**
 * PDVM_ERR_ARGUMENT for a bad n_ctx or stride, and for a text of n tokens that is too short: two
 * tokens, or for the protocols with whole windows one window.
 */
pdvm_status perplexity_check(size_t n, const struct perplexity_options *o, pdvm_error *err);

/**
 * Measures tokens[0..n) with `session`, whose contents are replaced. `fn` may be NULL. Errors are
 * those of perplexity_check, and PDVM_ERR_RANGE for tokens outside the vocabulary and for a
 * likelihood that is not finite, with its position.
 */
pdvm_status perplexity_measure(pdvm_session *session, const int32_t *tokens, size_t n,
                               const struct perplexity_options *options, perplexity_fn fn,
                               void *user, struct perplexity_result *result, pdvm_error *err);

#endif
