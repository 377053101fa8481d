/**
 * Choosing the next token: the pdvm_sampler_* functions of pdvm.h. The steps mean what they mean
 * in llama.cpp; all arithmetic is in double, and wherever two tokens are equal the lower id comes
 * first, so that a seed gives the same choices on every machine.
 */
#ifndef PDVM_ENGINE_SAMPLER_H
#define PDVM_ENGINE_SAMPLER_H

#include "backend/backend.h"

#include <stddef.h>
#include <stdint.h>

/**
 * What a device needs to choose tokens as the sampler would, but for stop tokens; false if it needs
 * more than that: penalties, biases, the typical ones, more than max_top_k candidates.
 */
bool sampler_for_device(const pdvm_sampler *sampler, uint32_t max_top_k,
                        struct backend_sampling *out);

/** Takes note of a token that a device chose for the sampler, which then goes on behind it. */
pdvm_status sampler_chose(pdvm_sampler *sampler, int32_t token, pdvm_error *err);

/** A token that may still be chosen. */
struct sampler_candidate {
    double key;   /**< what candidates are sorted by, the largest first */
    double logit; /**< after bias and penalties */
    int32_t token;
    uint32_t count; /**< of the token among those that the penalties look back on */
};

/** Candidates; the first n_sorted of them are the first in sorted order, the others come after. */
struct sampler_candidates {
    struct sampler_candidate *items;
    size_t n;
    size_t n_sorted;
};

/** Sorts on until at least `want` (or all) candidates are in order; O(n log want). */
void sampler_sort(struct sampler_candidates *c, size_t want);

/** Keeps the k with the largest logits. */
void sampler_top_k(struct sampler_candidates *c, size_t k);

/**
 * Keeps those whose surprise is nearest to the entropy, up to a mass above p (Meister, Pimentel,
 * Wiher, Cotterell 2022, Locally Typical Sampling).
 */
void sampler_typical(struct sampler_candidates *c, double p);

/** Keeps the likeliest up to a mass of at least p (Holtzman et al. 2019). */
void sampler_top_p(struct sampler_candidates *c, double p);

/** Keeps those of at least p times the probability of the likeliest (Nguyen et al. 2024). */
void sampler_min_p(struct sampler_candidates *c, double p);

/** The token at u in [0, 1) of the distribution softmax(logit / temperature), likeliest first. */
int32_t sampler_draw(struct sampler_candidates *c, double temperature, double u);

#endif
