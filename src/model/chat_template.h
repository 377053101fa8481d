/**
 * Chat templates: how a conversation becomes one text for a model. Checkpoints bring theirs as a
 * Jinja program; it is never run. Instead it is recognised as one of a few families by strings that
 * are characteristic of them, and the family's text is written by a table. What this gives is what
 * the Jinja templates of these families give (Hugging Face transformers, apply_chat_template with
 * add_generation_prompt), without tools.
 *
 * Families without a system role (gemma, mistral-v0.1, mistral-v0.2) get the system text before
 * the first user turn. Where a template would write today's date (llama-3.1), the date that the
 * template itself falls back to is written, so that equal conversations give equal texts.
 */
#ifndef PDVM_MODEL_CHAT_TEMPLATE_H
#define PDVM_MODEL_CHAT_TEMPLATE_H

#include "base/error.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

/** Longest default system text that a chatml template may bring. */
#define CHAT_MAX_SYSTEM 2048

/** Who says something. */
enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };

/** One message: UTF-8, zero-terminated, borrowed. */
struct chat_message {
    enum chat_role role;
    const char *content;
};

/** A recognised or named template. Plain data; nothing to free. */
struct chat_template {
    size_t family; /**< index of the family's table */
    bool writes_bos;
    bool has_default_system;
    char default_system[CHAT_MAX_SYSTEM]; /**< written where the conversation has no system text */
};

/** Names of the tokens that templates refer to by variables; NULL stands for "</s>" and none. */
struct chat_tokens {
    const char *bos;
    const char *eos;
};

/** A stretch of a rendered text: written by the template, or by somebody in the conversation. */
struct chat_segment {
    size_t offset, size;
    bool is_template;
};

/** A rendered text with its segments, which cover it in order. Freed with chat_text_free. */
struct chat_text {
    char *text; /**< not zero-terminated */
    size_t size, capacity;
    struct chat_segment *segments;
    size_t n_segments, segment_capacity;
};

/** The name of family number i, as --chat-template takes it; NULL past the last. */
const char *chat_template_name_at(size_t i);

/** Name of a template's family. */
const char *chat_template_name(const struct chat_template *t);

/** Sets *out to the family of that name; false if there is none. */
bool chat_template_find(const char *name, struct chat_template *out);

/**
 * Recognises the Jinja text of a template; `path` is for the message. PDVM_ERR_UNSUPPORTED, listing
 * the names and --chat-template, if it is of no known family. Time and memory are linear.
 */
pdvm_status chat_template_recognise(const char *path, const char *jinja, size_t size,
                                    struct chat_template *out, pdvm_error *err);

/**
 * Finds a model's template: `jinja` (the contents of chat_template.jinja, NULL: none), or else the
 * field "chat_template" of tokenizer_config.json in `config` (NULL: none), which is a string or a
 * list of {name, template} with a "default". PDVM_ERR_UNSUPPORTED as above, also if there is none.
 */
pdvm_status chat_template_of_model(const char *path, const char *jinja, size_t jinja_size,
                                   const char *config, size_t config_size,
                                   struct chat_template *out, pdvm_error *err);

/** PDVM_ERR_UNSUPPORTED: "PATH: WHAT; choose one with --chat-template NAME" and all names. */
pdvm_status chat_template_refuse(const char *path, const char *what, pdvm_error *err);

/** The token that ends a turn ("<|im_end|>"); NULL where that is the model's end of sequence. */
const char *chat_template_end(const struct chat_template *t);

/**
 * Writes messages[0..n): optionally a system message first, then user and assistant in turns, a
 * user's last; anything else is PDVM_ERR_ARGUMENT. The generation prompt follows. Special tokens
 * are written out by name, BOS among them if the family's template writes it: encode the text
 * without PDVM_TOKENIZE_ADD_SPECIAL. `out` must be zeroed or is overwritten from its start.
 */
pdvm_status chat_template_render_segments(const struct chat_template *t,
                                          const struct chat_tokens *tokens,
                                          const struct chat_message *messages, size_t n,
                                          struct chat_text *out, pdvm_error *err);

/** Frees the arrays. A zeroed struct is allowed. */
void chat_text_free(struct chat_text *text);

/**
 * Appends the ids of a rendered text: those that the whole text has, special tokens included, as
 * long as these are exactly the template's. Where a message holds the name of a special token, the
 * segments are encoded each by itself and the name stays letters.
 */
pdvm_status chat_text_encode(const struct chat_text *text, const struct tokenizer *tokenizer,
                             struct token_list *out, pdvm_error *err);

#endif
