/**
 * A forward pass in float64, written for clarity and nothing else: what the engine's results
 * are compared with. Keeps all keys and values of a text.
 */
#ifndef PDVM_TESTS_REFERENCE_H
#define PDVM_TESTS_REFERENCE_H

#include "model/source.h"

struct reference;

/**
 * Reads a model (a directory or a .pdvm file). Directories' weights pass through the
 * default coding for `values` first, as pdvm_model_open has it.
 * `n_ctx` and `n_sink` describe a rolling cache; n_ctx 0: everything stays visible.
 */
struct reference *reference_open(const char *path, enum mdcsr_values values, uint32_t n_ctx,
                                 uint32_t n_sink);
void reference_free(struct reference *r);

const struct model_config *reference_config(const struct reference *r);

/** Appends a token and writes its logits[n_vocab] (may be NULL). */
void reference_step(struct reference *r, int32_t token, double *logits);

/** The residual stream after the last layer for the last token, [hidden_size]. */
const double *reference_hidden(const struct reference *r);

/** The embedding row of a token, [hidden_size]. */
const float *reference_embedding(const struct reference *r, int32_t token);

/** ||a - b|| / ||b|| over n values. */
double reference_error(const float *a, const double *b, size_t n);

#endif
