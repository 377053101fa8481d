#include "model/tensors.h"

#include <stdio.h>

#define LAYER_ROLES ((size_t)(TENSOR_DOWN - TENSOR_INPUT_NORM + 1))

static const struct {
    const char *short_name;
    const char *name; /* with the layer's number as %u inside the layers */
} roles[TENSOR_N_ROLES] = {
    [TENSOR_EMBED] = {"embed", "model.embed_tokens.weight"},
    [TENSOR_INPUT_NORM] = {"input_norm", "input_layernorm.weight"},
    [TENSOR_Q] = {"q", "self_attn.q_proj.weight"},
    [TENSOR_K] = {"k", "self_attn.k_proj.weight"},
    [TENSOR_V] = {"v", "self_attn.v_proj.weight"},
    [TENSOR_O] = {"o", "self_attn.o_proj.weight"},
    [TENSOR_POST_NORM] = {"post_norm", "post_attention_layernorm.weight"},
    [TENSOR_GATE] = {"gate", "mlp.gate_proj.weight"},
    [TENSOR_UP] = {"up", "mlp.up_proj.weight"},
    [TENSOR_DOWN] = {"down", "mlp.down_proj.weight"},
    [TENSOR_FINAL_NORM] = {"final_norm", "model.norm.weight"},
    [TENSOR_HEAD] = {"head", "lm_head.weight"},
};

static bool in_layer(enum tensor_role role) {
    return role >= TENSOR_INPUT_NORM && role <= TENSOR_DOWN;
}

size_t tensors_count(const struct model_config *config) {
    return 2 + LAYER_ROLES * config->n_layers + (config->tie_word_embeddings ? 0 : 1);
}

size_t tensors_index(const struct model_config *config, enum tensor_role role, uint32_t layer) {
    size_t after_layers = 1 + LAYER_ROLES * config->n_layers;
    if (role == TENSOR_EMBED) return 0;
    if (role == TENSOR_FINAL_NORM) return after_layers;
    if (role == TENSOR_HEAD) return config->tie_word_embeddings ? 0 : after_layers + 1;
    return 1 + LAYER_ROLES * layer + (size_t)(role - TENSOR_INPUT_NORM);
}

void tensors_at(const struct model_config *config, size_t i, struct tensor_info *out) {
    size_t after_layers = 1 + LAYER_ROLES * config->n_layers;
    enum tensor_role role = TENSOR_EMBED;
    uint32_t layer = 0;
    if (i == after_layers) {
        role = TENSOR_FINAL_NORM;
    } else if (i > after_layers) {
        role = TENSOR_HEAD;
    } else if (i > 0) {
        role = (enum tensor_role)(TENSOR_INPUT_NORM + (i - 1) % LAYER_ROLES);
        layer = (uint32_t)((i - 1) / LAYER_ROLES);
    }
    tensors_describe(config, role, layer, out);
}

void tensors_describe(const struct model_config *config, enum tensor_role role, uint32_t layer,
                      struct tensor_info *out) {
    int64_t hidden = config->hidden_size;
    int64_t q_size = (int64_t)config->n_heads * config->head_dim;
    int64_t kv_size = (int64_t)config->n_kv_heads * config->head_dim;
    out->role = role;
    out->layer = in_layer(role) ? layer : 0;
    out->is_matrix = true;
    out->cols = hidden;
    if (in_layer(role))
        snprintf(out->name, sizeof out->name, "model.layers.%u.%s", layer, roles[role].name);
    else
        snprintf(out->name, sizeof out->name, "%s", roles[role].name);
    switch (role) {
    case TENSOR_EMBED:
    case TENSOR_HEAD: out->rows = config->n_vocab; break;
    case TENSOR_Q: out->rows = q_size; break;
    case TENSOR_K:
    case TENSOR_V: out->rows = kv_size; break;
    case TENSOR_O:
        out->rows = hidden;
        out->cols = q_size;
        break;
    case TENSOR_GATE:
    case TENSOR_UP: out->rows = config->intermediate_size; break;
    case TENSOR_DOWN:
        out->rows = hidden;
        out->cols = config->intermediate_size;
        break;
    case TENSOR_INPUT_NORM:
    case TENSOR_POST_NORM:
    case TENSOR_FINAL_NORM:
    case TENSOR_N_ROLES:
        out->rows = 1;
        out->is_matrix = false;
        break;
    }
}

const char *tensor_role_name(enum tensor_role role) {
    return (unsigned)role < TENSOR_N_ROLES ? roles[role].short_name : NULL;
}
