/**
 * The forward pass of one layer over whole windows of text, in float32 on matrix products: what
 * calibration streams its text through. The formulas are those of the engine's phases; weights are
 * plain floats, so a layer can be run while its matrices are being pruned one after the other.
 *
 * A window is `seq` tokens that see each other and nothing else, at positions 0 to seq - 1. Every
 * function computes one window with one worker's memory, so the results do not depend on how
 * windows are given to workers.
 */
#ifndef PDVM_COMPRESS_LAYER_H
#define PDVM_COMPRESS_LAYER_H

#include "compress/matmul.h"
#include "compress/rows.h"
#include "model/tensors.h"

/** One layer's tensors, by role; NULL where the model has none. */
struct layer_weights {
    uint32_t layer;
    float *t[TENSOR_N_ROLES];
};

/** A worker's memory. */
struct layer_scratch {
    float *normed; /* [seq, hidden_size] */
    float *q;      /* [seq, n_heads * head_dim] */
    float *k;      /* [seq, n_kv_heads * head_dim] */
    float *v;      /* likewise */
    float *values; /* [head_dim, seq] one head of v, transposed */
    float *scores; /* [queries of a block, seq] */
    float *out;    /* [seq, max(hidden_size, intermediate_size)] */
};

/** What all windows of all layers share. */
struct layer_pass {
    const struct model_config *config;
    const struct rows *rows;
    struct matmul matmul;
    struct matmul_ready ready[TENSOR_N_ROLES]; /* by layer_pass_load */
    int64_t seq;
    int64_t q_cols;  /**< n_heads * head_dim */
    int64_t kv_cols; /**< n_kv_heads * head_dim */
    float *cos;      /* [seq, head_dim / 2] */
    float *sin;
    int n_workers;
    struct layer_scratch *scratch; /* [n_workers] */
};

/**
 * Allocates for windows of `seq` tokens and n workers. `device` computes the products with loaded
 * matrices; it is borrowed and may be NULL. Freed with layer_pass_free.
 */
pdvm_status layer_pass_create(const struct model_config *config, const struct blas *blas,
                              int64_t seq, int n_workers, struct matmul_device *device,
                              struct layer_pass *out, pdvm_error *err);

/** Frees it; a zeroed one is allowed. */
void layer_pass_free(struct layer_pass *p);

/** Most columns that the products with one input have, of all of a layer's. */
int64_t layer_most_outputs(const struct model_config *config);

/** Most weights of the matrices that are loaded at a time. */
int64_t layer_most_loaded(const struct model_config *config);

/**
 * Brings the matrices with n roles to the device, if there is one: their products are computed there
 * until layer_pass_unload, which comes after failures, too. What they are worth says matmul_status.
 */
pdvm_status layer_pass_load(struct layer_pass *p, const struct layer_weights *w,
                            const enum tensor_role *roles, int n, pdvm_error *err);

/** Forgets the n matrices loaded last. */
void layer_pass_unload(struct layer_pass *p, const enum tensor_role *roles, int n);

/** out[seq, hidden_size] = rms_norm of each row of x, times `weight`. */
void layer_norm(const struct layer_pass *p, const float *x, const float *weight, float *out);

/**
 * out[seq, q_cols] = the attention's output before its projection, for the residual stream
 * x[seq, hidden_size].
 */
void layer_attention(const struct layer_pass *p, const struct layer_weights *w, const float *x,
                     int worker, float *out);

/** x += W_o in + bias, in[seq, q_cols]. */
void layer_add_attention(const struct layer_pass *p, const struct layer_weights *w, const float *in,
                         int worker, float *x);

/** out[seq, intermediate_size] = silu(W_gate n) * (W_up n), n = rms_norm(x). */
void layer_hidden(const struct layer_pass *p, const struct layer_weights *w, const float *x,
                  int worker, float *out);

/** x += W_down in, in[seq, intermediate_size]. */
void layer_add_hidden(const struct layer_pass *p, const struct layer_weights *w, const float *in,
                      int worker, float *x);

#endif
