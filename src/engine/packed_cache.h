/**
 * A file that keeps a model's packed matrices, so that the next opening maps them instead of packing
 * again: MODEL.LAYOUT.packed beside the model (in it, for a directory), or FINGERPRINT.LAYOUT.packed
 * in the user's cache directory where that cannot be written.
 */
#ifndef PDVM_ENGINE_PACKED_CACHE_H
#define PDVM_ENGINE_PACKED_CACHE_H

#include "backend/backend.h"
#include "base/notify.h"

struct safetensors;

/** What a cache belongs to. Strings are borrowed. */
struct packed_cache_key {
    const char *model_path;
    uint64_t fingerprint; /**< of the weights, their coding included */
    const char *layout;   /**< backend_ops.layout */
};

/**
 * Opens the model's cache; *out is NULL if there is none. One that cannot be used, because it is
 * damaged or of another model, is logged and passed over. The matrices in it are yet to be checked.
 */
pdvm_status packed_cache_open(const struct packed_cache_key *key, const struct pd_notify *notify,
                              struct safetensors **out, pdvm_error *err);

/** A matrix and the name to keep it under. */
struct packed_cache_entry {
    const char *name;
    const struct backend_matrix *matrix;
};

/**
 * Writes the cache, atomically. That no place for it can be written is only logged: the model works
 * without. Fails when it is cancelled.
 */
pdvm_status packed_cache_write(const struct packed_cache_key *key, struct backend *backend,
                               const struct packed_cache_entry *entries, size_t n,
                               const struct pd_notify *notify, pdvm_error *err);

#endif
