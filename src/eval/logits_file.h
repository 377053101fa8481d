/**
 * Files of saved predictions: what a model thought of every scored token of a text, for measuring
 * other models against it without running it again. docs/evaluation.md has the layout.
 *
 * A safetensors file with the tensors "codes", U16 [n, n_vocab], and "steps", F32 [n]: the log
 * probability of candidate i at token t is -(65535 - codes[t, i]) * steps[t], up to the constant
 * that makes the probabilities' sum 1. The likeliest candidate has the code 65535 and the least
 * likely one 0, so nothing is cut off. The metadata bind the file to the text, its tokens and the
 * windows.
 */
#ifndef PDVM_EVAL_LOGITS_FILE_H
#define PDVM_EVAL_LOGITS_FILE_H

#include "eval/perplexity.h"

/** What predictions belong to. */
struct logits_key {
    struct perplexity_options options; /**< protocol, n_ctx, stride and bos count */
    uint64_t text;                     /**< pd_hash of the text's bytes */
    uint64_t tokens;                   /**< pd_hash of the token ids */
    size_t n_tokens;
    uint32_t n_vocab;
};

/** The key of a text that was cut into tokens[0..n). `text` may be NULL: only tokens then. */
struct logits_key logits_key_of(const char *text, size_t size, const int32_t *tokens, size_t n,
                                uint32_t n_vocab, const struct perplexity_options *options);

/* ---- writing --------------------------------------------------------------------------- */

struct logits_writer;

/**
 * Starts a file for the tokens that perplexity_measure scores. It appears at `path` when it is
 * complete. `model` is kept in the file for people.
 */
pdvm_status logits_writer_open(const char *path, const struct logits_key *key, const char *model,
                               struct logits_writer **out, pdvm_error *err);

/** Appends a token's logits[n_vocab]. PDVM_ERR_RANGE if one is not finite. */
pdvm_status logits_writer_add(struct logits_writer *w, const float *logits, pdvm_error *err);

/** Puts the file in place and frees `w`, also on failure. */
pdvm_status logits_writer_commit(struct logits_writer *w, pdvm_error *err);

/** Drops the unfinished file. NULL is allowed. */
void logits_writer_abort(struct logits_writer *w);

/* ---- reading --------------------------------------------------------------------------- */

struct logits_file;

/** Opens a file and checks its shapes and steps. PDVM_ERR_FORMAT for anything that is none. */
pdvm_status logits_file_open(const char *path, struct logits_file **out, pdvm_error *err);

/** The same from memory, which must outlive the handle; `name` stands for the path in messages. */
pdvm_status logits_file_open_memory(const char *name, const void *data, size_t size,
                                    struct logits_file **out, pdvm_error *err);

/** Closes it. NULL is allowed. */
void logits_file_close(struct logits_file *f);

/** Tokens and candidates. */
uint64_t logits_file_count(const struct logits_file *f);
uint32_t logits_file_vocab(const struct logits_file *f);

/** The name of the model that made it, for people; may be empty. Owned by the file. */
const char *logits_file_model(const struct logits_file *f);

/**
 * PDVM_ERR_ARGUMENT, saying what differs, unless the file was made with the same text, tokenizer,
 * protocol and windows.
 */
pdvm_status logits_file_check(const struct logits_file *f, const struct logits_key *key,
                              pdvm_error *err);

/** Log probabilities of token i < count, up to an additive constant: x[n_vocab], at most 0. */
void logits_file_row(const struct logits_file *f, uint64_t i, double *x);

#endif
