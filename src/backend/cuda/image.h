/**
 * A model as GPU kernels read it (src/kernels/abi.h): where everything lies in the arenas W and G,
 * and the bytes of W. Plain C that calls no driver, so it is the same for every GPU backend, and for
 * the emulator of the tests.
 */
#ifndef PDVM_BACKEND_CUDA_IMAGE_H
#define PDVM_BACKEND_CUDA_IMAGE_H

#include "backend/backend.h"
#include "backend/cuda/layout.h"

/** The matrix i of a phase, in its canonical form; NULL if the phase has none. */
typedef const struct mdcsr *(*gpu_matrix_fn)(void *user, const struct phase *phase, int i);

/** Receives a piece of W. */
typedef pdvm_status (*gpu_sink_fn)(void *user, uint64_t offset, const void *data, uint64_t size,
                                   pdvm_error *err);

/** What the image is made for. */
struct gpu_image_options {
    uint32_t n_blocks;
    uint32_t n_warps;    /**< of a block */
    uint32_t max_steps;  /**< most steps of a launch */
    uint32_t max_logits; /**< most rows of logits of a launch */
    uint32_t max_splits; /**< most pieces of a head's positions; 0: a sensible number */
};

/** Freed with gpu_image_free. */
struct gpu_image {
    struct gpu_plan plan;
    struct gpu_phase *phases;   /**< [plan.n_phases] */
    struct gpu_layout *layouts; /**< [plan.n_phases]; all zero for phases without products */
    const struct plan *source;
    const struct mdcsr *embedding;
    uint64_t plan_offset;   /**< of the plan in W: gpu_launch.plan */
    uint64_t w_size;        /**< bytes of W */
    uint64_t g_size;        /**< bytes of G; zeroed before the first launch */
    uint64_t product_bytes; /**< of W: what one token's products read */
};

/**
 * Decides the layout. The plan and its matrices must stay as they are until the last
 * gpu_image_write; matrices that are too wide are PDVM_ERR_UNSUPPORTED.
 */
pdvm_status gpu_image_create(const struct plan *plan, gpu_matrix_fn matrix, void *user,
                             const struct gpu_image_options *options, struct pd_threads *threads,
                             struct gpu_image *out, pdvm_error *err);

void gpu_image_free(struct gpu_image *image);

/**
 * Hands all of W to the sink, piece by piece: no more than one phase is in memory at a time. Gaps
 * between pieces are never read.
 */
pdvm_status gpu_image_write(const struct gpu_image *image, struct pd_threads *threads,
                            gpu_sink_fn sink, void *user, pdvm_error *err);

/** Offsets and pitches of a cache of `capacity` slots, from the start of K. */
void gpu_kv_layout(const struct kv_shape *shape, uint32_t capacity, struct gpu_kv *out);

/** Bytes of such a cache; zeroed before its first use. */
uint64_t gpu_kv_size(const struct kv_shape *shape, uint32_t capacity);

#endif
