/** What kind of transformer a model is: the numbers of its config.json, checked. */
#ifndef PDVM_MODEL_CONFIG_H
#define PDVM_MODEL_CONFIG_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define MODEL_MAX_EOS 16

/** A Llama-family configuration. Field names are Hugging Face's where they have one. */
struct model_config {
    char architecture[32]; /**< "llama" */
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads; /**< divides n_heads */
    uint32_t head_dim;   /**< even */
    uint32_t n_vocab;
    uint32_t max_position_embeddings;
    float rms_norm_eps;
    float rope_theta;
    bool tie_word_embeddings;
    int32_t bos_token_id; /**< -1: none */
    int32_t eos_token_ids[MODEL_MAX_EOS];
    uint32_t n_eos;
};

/**
 * Reads a Hugging Face config.json (`json`, `size` bytes). `path` is for messages. Missing or
 * absurd fields are PDVM_ERR_FORMAT; anything that would change the results and that the engine
 * does not do (other architectures or activations, biases, rope scaling, ...) is
 * PDVM_ERR_UNSUPPORTED, and the message names the field and its value.
 */
pdvm_status model_config_parse(const char *path, const char *json, size_t size,
                               struct model_config *out, pdvm_error *err);

/**
 * Adds a generation_config.json: its eos_token_id list (the union is kept) and bos_token_id.
 */
pdvm_status model_config_parse_generation(const char *path, const char *json, size_t size,
                                          struct model_config *config, pdvm_error *err);

#endif
