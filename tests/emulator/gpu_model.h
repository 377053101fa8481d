/**
 * A small random model, once for the CPU backend, which is the reference, and once as the image that
 * GPU kernels read, run by the emulator.
 */
#ifndef PDVM_TESTS_GPU_MODEL_H
#define PDVM_TESTS_GPU_MODEL_H

#include "backend/cuda/image.h"
#include "emulator/emulator.h"

/** What a model is like. */
struct gpu_model_shape {
    uint32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab;
    enum mdcsr_values values;
    enum mdcsr_index index;
    uint32_t group;
    double density;
    enum mdcsr_values embedding; /**< dense */
    bool biases, head_norms;
    uint32_t window; /**< of odd layers */
};

struct gpu_model {
    struct gpu_model_shape shape;
    struct plan plan;     /**< phases' matrices are the CPU backend's */
    struct mdcsr *matrix; /**< q, k, v, o, gate, up, down of each layer, head, embedding */
    size_t n_matrices;
    float **vectors;
    size_t n_vectors;
    float *inv_freq;
    struct pd_threads *threads;
    struct backend *cpu;
    struct backend_matrix **packed;
    struct backend_kv *cpu_kv;
    /* The emulated device. */
    struct gpu_image image;
    struct kv_shape kv_shape;
    uint8_t *w, *g, *k;
    size_t k_size;
    struct gpu_kv kv;
    struct emu_grid grid;
    const char *dialect; /**< "c", "cuda" or "bulk" */
    uint32_t position;   /**< next */
    uint32_t n_launches;
};

/** Makes the weights and the CPU's side. Fails the test if it cannot. */
struct gpu_model *gpu_model_create(const struct gpu_model_shape *s, pdvm_kv_type type_k,
                                   pdvm_kv_type type_v, uint64_t seed);
void gpu_model_free(struct gpu_model *m);

/** Makes (anew) the device's side for a grid; the cache is empty then. */
void gpu_model_pack(struct gpu_model *m, const char *dialect, uint32_t n_blocks, uint32_t n_warps,
                    uint32_t capacity);

/** A batch for the next n tokens of a cache of n_ctx slots; n_ctx 0: endless. */
struct batch gpu_model_batch(const struct gpu_model *m, const int32_t *tokens, uint32_t n,
                             uint32_t n_ctx, uint32_t n_sink);

/** Runs it on the CPU: logits of the last token in logits[vocab]. */
void gpu_model_cpu(struct gpu_model *m, const struct batch *batch, float *logits);

/**
 * Runs it on the emulator in a mode; logits[vocab] of the last token. Returns NULL, or what the
 * emulator found wrong. Moves on by batch->n_tokens positions.
 */
const char *gpu_model_run(struct gpu_model *m, const struct batch *b, pdvm_mode mode,
                          float *logits);

/** The launch that runs the batch as a whole. */
struct gpu_launch gpu_model_launch(const struct gpu_model *m, const struct batch *b);

/** One launch. */
const char *gpu_model_launch_run(struct gpu_model *m, const struct gpu_launch *launch, bool single);

/** What the last launch left for the host. */
const struct gpu_result *gpu_model_result(const struct gpu_model *m);

#endif
