#include "model/tensors.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *short_name;
    const char *name; /* with the layer's number as %u inside the layers */
} roles[TENSOR_N_ROLES] = {
    [TENSOR_EMBED] = {"embed", "model.embed_tokens.weight"},
    [TENSOR_INPUT_NORM] = {"input_norm", "input_layernorm.weight"},
    [TENSOR_Q] = {"q", "self_attn.q_proj.weight"},
    [TENSOR_K] = {"k", "self_attn.k_proj.weight"},
    [TENSOR_V] = {"v", "self_attn.v_proj.weight"},
    [TENSOR_Q_BIAS] = {"q_bias", "self_attn.q_proj.bias"},
    [TENSOR_K_BIAS] = {"k_bias", "self_attn.k_proj.bias"},
    [TENSOR_V_BIAS] = {"v_bias", "self_attn.v_proj.bias"},
    [TENSOR_Q_NORM] = {"q_norm", "self_attn.q_norm.weight"},
    [TENSOR_K_NORM] = {"k_norm", "self_attn.k_norm.weight"},
    [TENSOR_O] = {"o", "self_attn.o_proj.weight"},
    [TENSOR_O_BIAS] = {"o_bias", "self_attn.o_proj.bias"},
    [TENSOR_POST_NORM] = {"post_norm", "post_attention_layernorm.weight"},
    [TENSOR_GATE] = {"gate", "mlp.gate_proj.weight"},
    [TENSOR_UP] = {"up", "mlp.up_proj.weight"},
    [TENSOR_DOWN] = {"down", "mlp.down_proj.weight"},
    [TENSOR_FINAL_NORM] = {"final_norm", "model.norm.weight"},
    [TENSOR_HEAD] = {"head", "lm_head.weight"},
};

const enum tensor_role tensor_layer_matrices[TENSOR_N_LAYER_MATRICES] = {
    TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_O, TENSOR_GATE, TENSOR_UP, TENSOR_DOWN};

static bool in_layer(enum tensor_role role) {
    return role >= TENSOR_INPUT_NORM && role <= TENSOR_DOWN;
}

bool tensors_has(const struct model_config *config, enum tensor_role role) {
    switch (role) {
    case TENSOR_Q_BIAS:
    case TENSOR_K_BIAS:
    case TENSOR_V_BIAS: return config->qkv_bias;
    case TENSOR_O_BIAS: return config->o_bias;
    case TENSOR_Q_NORM:
    case TENSOR_K_NORM: return config->qk_norm;
    case TENSOR_HEAD: return !config->tie_word_embeddings;
    default: return (unsigned)role < TENSOR_N_ROLES;
    }
}

double tensors_elements(const struct model_config *config) {
    double n = 0;
    for (size_t i = 0; i < tensors_count(config); i++) {
        struct tensor_info t;
        tensors_at(config, i, &t);
        n += (double)t.rows * (double)t.cols;
    }
    return n;
}

/* Tensors of a layer before `role`; with the one after TENSOR_DOWN, all of them. */
static size_t layer_roles_before(const struct model_config *config, int role) {
    size_t n = 0;
    for (int r = TENSOR_INPUT_NORM; r < role; r++) n += tensors_has(config, (enum tensor_role)r);
    return n;
}

static size_t layer_roles(const struct model_config *config) {
    return layer_roles_before(config, TENSOR_DOWN + 1);
}

size_t tensors_count(const struct model_config *config) {
    return 2 + layer_roles(config) * config->n_layers + (config->tie_word_embeddings ? 0 : 1);
}

size_t tensors_index(const struct model_config *config, enum tensor_role role, uint32_t layer) {
    size_t per_layer = layer_roles(config);
    size_t after_layers = 1 + per_layer * config->n_layers;
    if (role == TENSOR_EMBED) return 0;
    if (role == TENSOR_FINAL_NORM) return after_layers;
    if (role == TENSOR_HEAD) return config->tie_word_embeddings ? 0 : after_layers + 1;
    return 1 + per_layer * layer + layer_roles_before(config, (int)role);
}

void tensors_at(const struct model_config *config, size_t i, struct tensor_info *out) {
    size_t per_layer = layer_roles(config);
    size_t after_layers = 1 + per_layer * config->n_layers;
    int role = TENSOR_EMBED;
    uint32_t layer = 0;
    if (i == after_layers) {
        role = TENSOR_FINAL_NORM;
    } else if (i > after_layers) {
        role = TENSOR_HEAD;
    } else if (i > 0) {
        size_t left = (i - 1) % per_layer;
        layer = (uint32_t)((i - 1) / per_layer);
        for (role = TENSOR_INPUT_NORM; role < TENSOR_DOWN; role++)
            if (tensors_has(config, (enum tensor_role)role) && left-- == 0) break;
    }
    tensors_describe(config, (enum tensor_role)role, layer, out);
}

void tensors_describe(const struct model_config *config, enum tensor_role role, uint32_t layer,
                      struct tensor_info *out) {
    int64_t hidden = config->hidden_size;
    int64_t q_size = (int64_t)config->n_heads * config->head_dim;
    int64_t kv_size = (int64_t)config->n_kv_heads * config->head_dim;
    out->role = role;
    out->layer = in_layer(role) ? layer : 0;
    out->is_matrix = true;
    out->rows = 1;
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
    case TENSOR_Q_BIAS:
        out->cols = q_size;
        out->is_matrix = false;
        break;
    case TENSOR_K_BIAS:
    case TENSOR_V_BIAS:
        out->cols = kv_size;
        out->is_matrix = false;
        break;
    case TENSOR_Q_NORM:
    case TENSOR_K_NORM:
        out->cols = config->head_dim;
        out->is_matrix = false;
        break;
    case TENSOR_O_BIAS:
    case TENSOR_INPUT_NORM:
    case TENSOR_POST_NORM:
    case TENSOR_FINAL_NORM:
    case TENSOR_N_ROLES: out->is_matrix = false; break;
    }
}

bool tensors_fused(const struct model_config *config, enum tensor_role role, uint32_t layer,
                   struct tensor_info *whole, int64_t *first_row) {
    if (strcmp(config->architecture, "phi3") != 0) return false;
    static const struct {
        enum tensor_role first, last;
        const char *name;
    } fused[] = {{TENSOR_Q, TENSOR_V, "self_attn.qkv_proj.weight"},
                 {TENSOR_GATE, TENSOR_UP, "mlp.gate_up_proj.weight"}};
    for (size_t i = 0; i < sizeof fused / sizeof *fused; i++) {
        if (role < fused[i].first || role > fused[i].last) continue;
        int64_t rows = 0;
        for (int r = fused[i].first; r <= (int)fused[i].last; r++) {
            if (r == (int)role) *first_row = rows;
            tensors_describe(config, (enum tensor_role)r, layer, whole);
            rows += whole->rows;
        }
        whole->role = fused[i].first;
        whole->rows = rows;
        snprintf(whole->name, sizeof whole->name, "model.layers.%u.%s", layer, fused[i].name);
        return true;
    }
    return false;
}

const char *tensor_role_name(enum tensor_role role) {
    return (unsigned)role < TENSOR_N_ROLES ? roles[role].short_name : NULL;
}
