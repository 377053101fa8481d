/** What the files that run passes share. */
#ifndef PDVM_BACKEND_CUDA_PASS_H
#define PDVM_BACKEND_CUDA_PASS_H

#include "backend/cuda/cuda.h"

/** A pass under way. */
struct pass {
    struct cuda_backend *b;
    const struct batch *batch;
    struct gpu_launch launch; /**< what the next one takes */
    bool capturing;           /**< launches go into a graph */
    pdvm_error *err;
};

/** In pinned memory, one for each step of a pass. */
struct cuda_step {
    int32_t token;
    struct gpu_step step;
};

/** A launch of one step at the place of a batch's first token. */
struct gpu_launch cuda_launch_of(const struct cuda_backend *b, const struct batch *batch);

/** Launches p->launch: the kernel of single phases, or the cooperative one. */
pdvm_status cuda_launch(struct pass *p, bool single);

/** Makes sure of n timers, at most one more than there are phases. */
pdvm_status cuda_need_events(struct cuda_backend *b, size_t n, pdvm_error *err);

/** Launches one step of phases [0, end) cooperatively and books where its time went. */
pdvm_status cuda_launch_timed(struct pass *p, uint32_t end);

/** Uploads to G, by way of the beginning of the pinned memory; size <= b->staging_size. */
pdvm_status cuda_copy_up(struct cuda_backend *b, uint64_t offset, const void *data, size_t size,
                         pdvm_error *err);

#endif
