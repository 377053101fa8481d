/**
 * Comparisons of the CUDA backend with the CPU backend and with itself, for whatever device there is:
 * tests of the stand-in use them on small models, tests of GPUs on larger ones.
 */
#ifndef PDVM_TESTS_CUDA_CHECKS_H
#define PDVM_TESTS_CUDA_CHECKS_H

#include "engine/engine.h"

/** A model for both backends. */
struct cuda_pair {
    pdvm_model *cpu, *cuda;
    char name[96]; /**< for messages */
};

/**
 * Opens a synthetic model of a shape, or one of the source tree if `shape` begins with "models/" or
 * "tests/". Group and sparsity are those of synthetic ones.
 */
void cuda_pair_open(struct cuda_pair *p, const char *shape, const char *values, double sparsity,
                    uint32_t group);
void cuda_pair_close(struct cuda_pair *p);

/** A session in a mode with caches of one type, for n_ctx tokens. */
pdvm_session *cuda_session(pdvm_model *model, pdvm_mode mode, pdvm_kv_type type, uint32_t n_ctx);

/** Tokens of the model's vocabulary that depend on the seed. */
void cuda_tokens(const pdvm_model *model, int32_t *tokens, size_t n, uint64_t seed);

/** |a - b| / |b| of the logits after the last token. */
double cuda_difference(const pdvm_session *a, const pdvm_session *b);

/**
 * A prompt of n_prompt tokens and n steps on both backends: no logits may differ by more than the
 * tolerance. Returns the largest difference.
 */
double cuda_check_equals_cpu(const struct cuda_pair *p, pdvm_mode mode, pdvm_kv_type type,
                             uint32_t n_prompt, uint32_t n, double tolerance);

/** The same tokens, one by one, in every mode: the same bits. */
void cuda_check_modes(const struct cuda_pair *p, pdvm_kv_type type, uint32_t n);

/** A session in mode token and one in `mode` that take turns for n tokens: the logits they have alone. */
void cuda_check_turns(const struct cuda_pair *p, pdvm_mode mode, uint32_t n);

/**
 * Greedy tokens after a prompt, by stepping, into tokens[n]: the session then holds them all. Equal
 * logits: the lower token.
 */
void cuda_greedy(pdvm_session *s, const int32_t *prompt, size_t n_prompt, int32_t *tokens,
                 size_t n);

#endif
