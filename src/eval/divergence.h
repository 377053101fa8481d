/**
 * How far a model's predictions are from another's: the Kullback-Leibler divergence
 * D(P || Q) = sum_i P(i) log(P(i) / Q(i)) of the next token's distribution, P of the reference (the
 * uncompressed model) and Q of the model that is measured, for every scored token of a text; and
 * how often and how far the two disagree on the tokens that matter. The figures are those of
 * llama.cpp's perplexity --kl-divergence.
 */
#ifndef PDVM_EVAL_DIVERGENCE_H
#define PDVM_EVAL_DIVERGENCE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/** A mean over tokens, and its standard error, taking them as independent. */
struct divergence_mean {
    double value;
    double error; /**< 0 for fewer than two tokens */
};

/** Shares for which quantiles are given: 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999. */
#define DIVERGENCE_N_QUANTILES 8
extern const double divergence_quantiles[DIVERGENCE_N_QUANTILES];

/** What was measured; all logarithms are natural. */
struct divergence_result {
    uint64_t n;                               /**< tokens */
    struct divergence_mean kl;                /**< mean of D(P || Q), in nats */
    double quantiles[DIVERGENCE_N_QUANTILES]; /**< of D(P || Q) */
    double max;
    struct divergence_mean same_top; /**< share of tokens whose likeliest candidate is the same */
    struct divergence_mean dp;       /**< of Q(token) - P(token), the right token's probability */
    struct divergence_mean dp_rms;   /**< root mean square of the same */
    struct divergence_mean reference_nll; /**< of the reference on the same tokens */
    struct divergence_mean nll_change;    /**< nll of the model - nll of the reference */
    double reference_perplexity;
    struct divergence_mean perplexity_ratio; /**< exp of nll_change: model / reference */
};

/** A measurement in progress. Zero-initialise, then divergence_free. */
struct divergence {
    double *kl; /* [n] */
    size_t n, capacity;
    /* Means and sums of squared deviations: Welford's recurrence (1962). */
    double same, dp[2], dp2[2], nll[2], change[2];
};

/**
 * Adds one token: the reference's log probabilities x[n_vocab], up to an additive constant, and the
 * model's logits[n_vocab] with the nll of the token that perplexity_nll made of them.
 * PDVM_ERR_RANGE if a prediction is not finite.
 */
pdvm_status divergence_add(struct divergence *d, const double *x, const float *logits,
                           size_t n_vocab, int32_t token, double nll, pdvm_error *err);

/** The figures over all tokens added; all zero without any. */
pdvm_status divergence_finish(const struct divergence *d, struct divergence_result *out,
                              pdvm_error *err);

/** Frees what a measurement holds. */
void divergence_free(struct divergence *d);

#endif
