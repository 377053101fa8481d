#include "engine/kv_cache.h"

#include <string.h>

pdvm_status kv_cache_create(struct kv_cache *c, struct backend *backend,
                            const struct kv_shape *shape, uint32_t n_ctx, bool rolling,
                            uint32_t n_sink, pdvm_error *err) {
    *c = (struct kv_cache){.backend = backend,
                           .shape = *shape,
                           .n_ctx = n_ctx,
                           .n_sink = rolling ? n_sink : 0,
                           .rolling = rolling};
    if (rolling && (n_sink >= n_ctx || n_ctx - n_sink < 2))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "rolling cache: %u sinks leave no window in a context of %u", n_sink, n_ctx);
    return backend->ops->kv_create(backend, shape, &c->memory, err);
}

void kv_cache_free(struct kv_cache *c) {
    if (c->memory) c->backend->ops->kv_free(c->backend, c->memory);
    memset(c, 0, sizeof *c);
}

uint32_t kv_cache_room(const struct kv_cache *c, uint32_t want) {
    if (c->n_tokens < c->n_ctx) {
        uint32_t room = c->n_ctx - c->n_tokens;
        return want < room ? want : room;
    }
    /* One at a time once the ring is full: a token must not overwrite what the one before it in
     * the same pass still has to see. */
    return c->rolling && c->n_tokens < INT32_MAX ? 1 : 0;
}

pdvm_status kv_cache_place(struct kv_cache *c, struct batch *batch, pdvm_error *err) {
    uint32_t window = c->n_ctx - c->n_sink;
    uint32_t p = c->n_tokens;
    batch->kv = c->memory;
    batch->position = p;
    batch->n_sink = c->n_sink;
    if (p < c->n_ctx) {
        batch->slot = p;
        batch->n_visible = p + 1;
        batch->n_dropped = 0;
    } else {
        batch->slot = c->n_sink + (p - c->n_sink) % window;
        batch->n_visible = c->n_ctx;
        batch->n_dropped = p + 1 - c->n_ctx;
    }
    if (c->n_placed < p + batch->n_tokens) c->n_placed = p + batch->n_tokens;
    uint32_t slots = batch->slot + batch->n_tokens;
    return c->backend->ops->kv_reserve(c->backend, c->memory, slots, err);
}

uint32_t kv_cache_dropped(const struct kv_cache *c) {
    return c->n_tokens > c->n_ctx ? c->n_tokens - c->n_ctx : 0;
}

uint32_t kv_cache_slots(const struct kv_cache *c) {
    return c->n_tokens < c->n_ctx ? c->n_tokens : c->n_ctx;
}

bool kv_cache_rewind(struct kv_cache *c, uint32_t n) {
    bool overwritten = c->n_placed > c->n_ctx || kv_cache_dropped(c) > 0;
    if (n >= c->n_tokens) return true;
    if (n > c->n_sink && overwritten) return false;
    c->n_tokens = c->n_placed = n;
    return true;
}
