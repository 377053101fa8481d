/**
 * What the tests of sessions share. The functions fail the test when something goes wrong; names of
 * models are paths in the source tree.
 */
#ifndef PDVM_TESTS_SESSION_H
#define PDVM_TESTS_SESSION_H

#include "pdvm.h"

#define SESSION_GQA "tests/golden/tiny-gqa"
#define SESSION_YARN "tests/golden/tiny-yarn"
#define SESSION_QWEN2 "tests/golden/tiny-qwen2"
#define SESSION_QWEN3 "tests/golden/tiny-qwen3"

/** Models of all architectures and oddities, by name. */
#define SESSION_MODELS                                                                             \
    SESSION_GQA, "tests/golden/tiny-odd", "tests/golden/tiny-pruned", "tests/golden/tiny-sharded", \
        "tests/golden/tiny-llama3", "tests/golden/tiny-linear", SESSION_YARN, SESSION_QWEN2,       \
        SESSION_QWEN3, "tests/golden/tiny-phi3", "tests/golden/tiny-mistral"

/** How far float32 activations and 16-bit integer activations may be from float64. */
#define SESSION_FLOAT_ERROR 1e-5
#define SESSION_INTEGER_ERROR 1e-3

/** Open a model: with a coding of its weights, with the usual one, or at a path in floats. */
pdvm_model *session_model_coded(const char *name, int n_threads, const char *kernels,
                                const char *values);
pdvm_model *session_model(const char *name, int n_threads, const char *kernels);
pdvm_model *session_model_at(const char *path, int n_threads);

/** A session; NULL options: the default ones with a cache of floats. */
pdvm_session *session_make(pdvm_model *model, const pdvm_session_options *options);

/** The default options with a cache of floats and this context. */
pdvm_session_options session_exact_options(uint32_t n_ctx);

/** Tokens in a model's vocabulary. */
uint32_t session_vocabulary(const pdvm_model *model);

/** Fills tokens[n] by a seed. */
void session_random_tokens(int32_t *tokens, size_t n, uint32_t n_vocab, uint64_t seed);

void session_sync(pdvm_session *s, const int32_t *tokens, size_t n);
void session_step(pdvm_session *s, int32_t token);

/** A copy of the current logits, freed with free(). */
float *session_logits(const pdvm_session *s);

/** The current logits are these, bit for bit. */
void assert_same_logits(const pdvm_session *s, const float *expected);

/** The tiny Mistral with another sliding window in DIR; its path, freed with free(). */
char *session_write_windowed(const char *dir, unsigned window);

#endif
