/** Writes tiny Hugging Face model directories, right ones and ones with a fault. */
#ifndef PDVM_TESTS_HF_MODEL_H
#define PDVM_TESTS_HF_MODEL_H

#include "io/safetensors.h"

#include <stdbool.h>

/** A model of 2 layers, hidden size 16, 4 heads of 4, 2 KV heads, MLP of 24, 32 tokens. */
struct hf_model {
    enum safetensors_dtype dtype; /**< F32 (0 means that too), F16, BF16, F64; others: zeros */
    bool tied;                    /**< tie_word_embeddings, and no lm_head */
    int n_shards;                 /**< 0: model.safetensors; else shards and an index */
    const char *config;           /**< instead of the right config.json; NULL: the right one */
    const char *skip;             /**< name of a tensor to leave out */
    const char *misshape;         /**< name of a tensor to give one row too many */
    const char *flatten;          /**< name of a matrix to write with one dimension */
    const char *extra;            /**< name of one more tensor, F32 [4] */
    float offset;                 /**< added to every weight */
};

/** Writes the model into `dir`, which must exist. Fails the test if it cannot. */
void hf_model_write(const char *dir, const struct hf_model *model);

/** The value that hf_model_write gives element `i` of a tensor, exact in every dtype. */
float hf_model_value(const char *name, int64_t i);

#endif
