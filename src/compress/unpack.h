/** Unpacking: a .pdvm file back to a plain Hugging Face directory, for other programs. */
#ifndef PDVM_COMPRESS_UNPACK_H
#define PDVM_COMPRESS_UNPACK_H

#include "base/notify.h"
#include "io/safetensors.h"

/** How to unpack. */
struct unpack_options {
    enum safetensors_dtype dtype; /**< F32, BF16 or F16; only F32 is exact for every coding */
    bool force;                   /**< write into a directory that is not empty */
    int n_threads;                /**< 0: all processors */
    struct pd_notify notify;      /**< stage: "unpacking"; may cancel */
};

/** What was written. */
struct unpack_result {
    uint64_t bytes; /**< of model.safetensors */
    int64_t n_weights;
    int64_t n_changed; /**< weights that the dtype could not hold exactly */
};

/**
 * Writes model.safetensors (every weight as scale times code), config.json (its dtype set to what
 * was written) and the tokenizer's files to `directory`, which is created; each appears only when
 * complete, config.json last. A directory that exists and is not empty is PDVM_ERR_ARGUMENT
 * without `force`; so is a source that is no .pdvm file. PDVM_ERR_RANGE for a weight that is too
 * large for F16. One tensor is in memory at a time.
 */
pdvm_status unpack_model(const char *source, const char *directory,
                         const struct unpack_options *options, struct unpack_result *out,
                         pdvm_error *err);

#endif
