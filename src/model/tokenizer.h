/**
 * BPE tokenizer (Sennrich et al. 2016), byte-level (Radford et al. 2019) or SentencePiece-like
 * (Kudo and Richardson 2018), read from a Hugging Face tokenizer.json or a SentencePiece
 * tokenizer.model. Gives exactly the reference implementation's ids (Hugging Face tokenizers), for
 * all characters that are as old as the Unicode tables of PCRE2 and utf8proc on one side and of the
 * reference on the other.
 */
#ifndef PDVM_MODEL_TOKENIZER_H
#define PDVM_MODEL_TOKENIZER_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/** Reads a tokenizer.json; `path` is for messages. Freed with tokenizer_free. */
pdvm_status tokenizer_open(const char *path, const char *json, size_t size, struct tokenizer **out,
                           pdvm_error *err);

/**
 * Reads a SentencePiece tokenizer.model of type BPE; `path` is for messages. `config` is the
 * tokenizer_config.json beside it, or NULL: from there come further added tokens and what
 * PDVM_TOKENIZE_ADD_SPECIAL adds (without it, or if it does not say: BOS before the text and
 * nothing after it). PDVM_ERR_UNSUPPORTED names what such a file may contain but is not known.
 */
pdvm_status tokenizer_open_sentencepiece(const char *path, const char *data, size_t size,
                                         const char *config, size_t config_size,
                                         struct tokenizer **out, pdvm_error *err);

/** Frees it. NULL is allowed. */
void tokenizer_free(struct tokenizer *t);

/** Number of ids: one more than the largest id that has a piece. */
uint32_t tokenizer_size(const struct tokenizer *t);

/** Growing array of ids. */
struct token_list {
    int32_t *ids; /**< freed with free() */
    size_t n;
    size_t capacity;
};

/**
 * Appends the ids of `text` (UTF-8, checked: PDVM_ERR_ARGUMENT names the offset of the first bad
 * byte). `flags` are PDVM_TOKENIZE_*. Safe from several threads at once on one tokenizer.
 */
pdvm_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                             unsigned flags, struct token_list *out, pdvm_error *err);

/**
 * The bytes that token `id` stands for in running text (special tokens: none unless
 * `with_special`, then their name). Returns a pointer owned by the tokenizer and sets *len;
 * NULL for an id without a piece. Bytes of one token need not be whole UTF-8 characters.
 */
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, bool with_special, size_t *len);

/** Flags of tokenizer_decode. */
enum {
    TOKENIZER_DECODE_SPECIAL = 1, /**< special tokens become their names */
    TOKENIZER_DECODE_START = 2    /**< the tokens begin a text */
};

/**
 * The text of n tokens in a new string, freed with free(); a zero byte follows it. It is what
 * tokenizer_bytes gives, joined (nothing for ids without a piece), except that with
 * TOKENIZER_DECODE_START the space is left out that SentencePiece-like tokenizers put before a
 * text. Bytes need not be valid UTF-8.
 */
pdvm_status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                             unsigned flags, char **text, size_t *len, pdvm_error *err);

/** Whether `id` is the token that PDVM_TOKENIZE_ADD_SPECIAL begins every text with. */
bool tokenizer_begins_text(const struct tokenizer *t, int32_t id);

/** The id of a piece given by its exact content, added tokens included ("</s>"); -1 if none. */
int32_t tokenizer_find(const struct tokenizer *t, const char *content, size_t len);

/** Whether `id` is a special (control) token. */
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

#endif
