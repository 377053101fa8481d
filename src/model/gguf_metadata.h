/**
 * What a GGUF file's metadata says, as the JSON files that travel with a Hugging Face model: so a
 * model that came as GGUF converts and opens like any other.
 */
#ifndef PDVM_MODEL_GGUF_METADATA_H
#define PDVM_MODEL_GGUF_METADATA_H

#include "io/gguf_set.h"

/** Texts made from the metadata, all freed with free(); NULL where there is nothing to say. */
struct gguf_texts {
    char *config;            /**< config.json */
    char *generation_config; /**< generation_config.json: bos_token_id, all eos_token_ids */
    char *tokenizer_config;  /**< tokenizer_config.json: names of special tokens, chat_template */
    char *chat_template;     /**< chat_template.jinja */
    char *tokenizer;         /**< tokenizer.json */
};

/** Frees the texts. */
void gguf_texts_clear(struct gguf_texts *t);

/**
 * Makes config.json from the keys of general.architecture (llama, qwen2, qwen3 or phi3). What
 * would change the results and has no field there is PDVM_ERR_UNSUPPORTED; wrong or missing keys
 * are PDVM_ERR_FORMAT. The frequency factors of rope_freqs.weight become the "llama3" scaling that
 * they were computed from.
 */
pdvm_status gguf_make_config(const struct gguf_set *set, char **out, pdvm_error *err);

/** Makes the generation_config, the tokenizer_config and the chat template. */
pdvm_status gguf_make_side_files(const struct gguf_set *set, struct gguf_texts *out,
                                 pdvm_error *err);

/**
 * Makes the tokenizer.json from the tokenizer.ggml keys; *out is NULL if there is no tokenizer.
 * PDVM_ERR_UNSUPPORTED names unknown kinds (tokenizer.ggml.model) and ways of splitting
 * (tokenizer.ggml.pre) and lists the known ones.
 */
pdvm_status gguf_make_tokenizer(const struct gguf_set *set, char **out, pdvm_error *err);

#endif
