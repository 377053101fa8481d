/** The matrices and vectors of a Llama-like model: names and shapes, in the order of a token. */
#ifndef PDVM_MODEL_TENSORS_H
#define PDVM_MODEL_TENSORS_H

#include "model/config.h"

/** What a tensor is for. */
enum tensor_role {
    TENSOR_EMBED,      /**< model.embed_tokens.weight [n_vocab, hidden_size] */
    TENSOR_INPUT_NORM, /**< input_layernorm.weight [hidden_size] */
    TENSOR_Q,          /**< self_attn.q_proj.weight [n_heads * head_dim, hidden_size] */
    TENSOR_K,          /**< self_attn.k_proj.weight [n_kv_heads * head_dim, hidden_size] */
    TENSOR_V,          /**< self_attn.v_proj.weight, as k */
    TENSOR_Q_BIAS,     /**< self_attn.q_proj.bias [n_heads * head_dim]; with qkv_bias */
    TENSOR_K_BIAS,     /**< self_attn.k_proj.bias [n_kv_heads * head_dim]; with qkv_bias */
    TENSOR_V_BIAS,     /**< self_attn.v_proj.bias, as k's */
    TENSOR_Q_NORM,     /**< self_attn.q_norm.weight [head_dim]; with qk_norm */
    TENSOR_K_NORM,     /**< self_attn.k_norm.weight, as q's */
    TENSOR_O,          /**< self_attn.o_proj.weight [hidden_size, n_heads * head_dim] */
    TENSOR_O_BIAS,     /**< self_attn.o_proj.bias [hidden_size]; with o_bias */
    TENSOR_POST_NORM,  /**< post_attention_layernorm.weight [hidden_size] */
    TENSOR_GATE,       /**< mlp.gate_proj.weight [intermediate_size, hidden_size] */
    TENSOR_UP,         /**< mlp.up_proj.weight, as gate */
    TENSOR_DOWN,       /**< mlp.down_proj.weight [hidden_size, intermediate_size] */
    TENSOR_FINAL_NORM, /**< model.norm.weight [hidden_size] */
    TENSOR_HEAD,       /**< lm_head.weight, as embed; absent when tied */
    TENSOR_N_ROLES
};

/** The matrices of a layer, in the order of a token. */
#define TENSOR_N_LAYER_MATRICES 7
extern const enum tensor_role tensor_layer_matrices[TENSOR_N_LAYER_MATRICES];

/**
 * Whether this is the embedding or the head, which are the vocabulary's: they are never pruned, and
 * have settings of their own.
 */
static inline bool tensor_is_vocabulary(enum tensor_role role) {
    return role == TENSOR_EMBED || role == TENSOR_HEAD;
}

/** One tensor that a model of a given configuration has. */
struct tensor_info {
    enum tensor_role role;
    uint32_t layer; /**< 0 for tensors outside the layers */
    char name[96];  /**< Hugging Face name */
    int64_t rows;   /**< 1 for vectors: norms and biases */
    int64_t cols;
    bool is_matrix;
};

/** Whether a model of this configuration has tensors of the role. */
bool tensors_has(const struct model_config *config, enum tensor_role role);

/** Number of tensors of a model (tied head left out). */
size_t tensors_count(const struct model_config *config);

/** Elements of all these tensors together. */
double tensors_elements(const struct model_config *config);

/** The i-th tensor in the order embed, layers 0..n-1 (roles in enum order), final norm, head. */
void tensors_at(const struct model_config *config, size_t i, struct tensor_info *out);

/**
 * The i with which tensors_at gives this tensor; a tied head has the embedding's. The model must
 * have the role.
 */
size_t tensors_index(const struct model_config *config, enum tensor_role role, uint32_t layer);

/** Name and shape of one tensor. `layer` is ignored outside the layers. */
void tensors_describe(const struct model_config *config, enum tensor_role role, uint32_t layer,
                      struct tensor_info *out);

/**
 * Phi-3 checkpoints hold q, k and v in one matrix and gate and up in another. Describes the matrix
 * that holds this one (with `role` of its first part) and the row at which this one begins. False
 * for other architectures and roles.
 */
bool tensors_fused(const struct model_config *config, enum tensor_role role, uint32_t layer,
                   struct tensor_info *whole, int64_t *first_row);

/** Short name for tables: "q", "down", "embed". */
const char *tensor_role_name(enum tensor_role role);

#endif
