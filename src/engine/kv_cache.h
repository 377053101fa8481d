/**
 * The bookkeeping of a KV cache: which slot a position has, what is visible, what was dropped. The
 * rows themselves are the backend's.
 *
 * A rolling cache keeps the first n_sink tokens (attention sinks, Xiao et al. 2023) and the most
 * recent ones; the slots behind the sinks are a ring. Keys keep the rotation of their absolute
 * position; the sinks are made to lie just before the window by rotating the query back by
 * n_dropped positions when it meets them.
 */
#ifndef PDVM_ENGINE_KV_CACHE_H
#define PDVM_ENGINE_KV_CACHE_H

#include "backend/backend.h"

/** One cache. */
struct kv_cache {
    struct backend *backend;
    struct backend_kv *memory;
    struct kv_shape shape;
    uint32_t n_ctx; /**< slots */
    uint32_t n_sink;
    bool rolling;
    uint32_t n_tokens; /**< tokens appended so far, dropped ones included: the next position */
    uint32_t n_placed; /**< positions that rows were written for, at least n_tokens while appending:
                            a pass that failed or pdvm_execute_layer goes beyond n_tokens */
};

/** Makes an empty cache. */
pdvm_status kv_cache_create(struct kv_cache *c, struct backend *backend,
                            const struct kv_shape *shape, uint32_t n_ctx, bool rolling,
                            uint32_t n_sink, pdvm_error *err);

/** Frees its memory. */
void kv_cache_free(struct kv_cache *c);

/** How many of `want` tokens the next pass may append: 0 when the cache is full. */
uint32_t kv_cache_room(const struct kv_cache *c, uint32_t want);

/** Fills the batch's fields for appending batch->n_tokens (<= room) and makes sure of memory. */
pdvm_status kv_cache_place(struct kv_cache *c, struct batch *batch, pdvm_error *err);

/** Positions dropped between the sinks and the window. */
uint32_t kv_cache_dropped(const struct kv_cache *c);

/** Slots that hold rows. */
uint32_t kv_cache_slots(const struct kv_cache *c);

/** Keeps the first n tokens; false if the rows of some of them have been overwritten. */
bool kv_cache_rewind(struct kv_cache *c, uint32_t n);

#endif
