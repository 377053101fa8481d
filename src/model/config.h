/** What kind of transformer a model is: the numbers of its config.json, checked. */
#ifndef PDVM_MODEL_CONFIG_H
#define PDVM_MODEL_CONFIG_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define MODEL_MAX_EOS 16
/** Models with a sliding window may have this many layers. */
#define MODEL_MAX_WINDOW_LAYERS 1024

/** How the frequencies of RoPE are scaled for contexts longer than the training's. */
enum rope_scaling_kind {
    ROPE_SCALING_NONE,
    ROPE_SCALING_LINEAR, /**< all divided by the factor (Chen et al. 2023) */
    ROPE_SCALING_LLAMA3, /**< low ones divided, high ones kept, a ramp between (Llama 3.1) */
    ROPE_SCALING_YARN    /**< the same with a ramp over dimensions (Peng et al. 2023) */
};

/** Parameters of the scaling; all finite and positive, and 0 where the kind has no use for them. */
struct rope_scaling {
    enum rope_scaling_kind kind;
    double factor;                             /**< all kinds but NONE */
    uint32_t original_max_position_embeddings; /**< LLAMA3, YARN */
    double low_freq_factor;                    /**< LLAMA3 */
    double high_freq_factor;                   /**< LLAMA3; above low_freq_factor */
    double beta_fast;                          /**< YARN, normally 32 */
    double beta_slow;                          /**< YARN, normally 1 */
    bool truncate;                             /**< YARN: whole dimensions; normally true */
    double attention_factor; /**< YARN: multiplies cos and sin; what config.json leaves out is
                                  filled in (0.1 ln factor + 1) */
};

/**
 * A Llama-family configuration. Field names are Hugging Face's where they have one. Zeroed fields
 * from rope_scaling on mean a plain Llama.
 */
struct model_config {
    char architecture[32]; /**< "llama", "mistral", "qwen2", "qwen3" or "phi3" */
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
    struct rope_scaling rope_scaling;
    bool qkv_bias; /**< the q, k and v projections have biases */
    bool o_bias;   /**< the output projection of the attention has one */
    bool qk_norm;  /**< RMSNorm of every head of q and k, before RoPE (Qwen3) */
    /** 0: none. W: a token sees itself and the W - 1 before it, in the layers of the bitmap. */
    uint32_t sliding_window;
    uint64_t window_layers[MODEL_MAX_WINDOW_LAYERS / 64]; /**< bit l % 64 of element l / 64 */
};

/** Sliding window of a layer, 0 if the layer sees everything. */
static inline uint32_t model_config_window(const struct model_config *c, uint32_t layer) {
    if (c->sliding_window == 0 || layer >= MODEL_MAX_WINDOW_LAYERS) return 0;
    return c->window_layers[layer / 64] >> layer % 64 & 1 ? c->sliding_window : 0;
}

/**
 * Reads a Hugging Face config.json (`json`, `size` bytes). `path` is for messages. Missing or
 * absurd fields are PDVM_ERR_FORMAT; anything that would change the results and that the engine
 * does not do (other architectures or activations, experts, dynamic RoPE, ...) is
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
