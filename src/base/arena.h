/**
 * Memory for many large arrays that are freed together, in huge pages where the system has them:
 * a matrix of a few megabytes by itself would hardly fill one.
 */
#ifndef PDVM_BASE_ARENA_H
#define PDVM_BASE_ARENA_H

#include "base/error.h"

#include <stddef.h>

struct pd_arena_chunk;

/** Zero-initialise before use. Not for several threads at once. */
struct pd_arena {
    struct pd_arena_chunk *chunks; /**< the one that is being filled first */
};

/**
 * Takes `size` zeroed bytes, aligned to 128, into *out (a pointer's address). At least 64 bytes
 * more are readable behind them. What is never touched takes no memory, but for the rest of a huge
 * page. `what` names the purpose for the error message.
 */
pdvm_status pd_arena_alloc(struct pd_arena *arena, size_t size, void *out, const char *what,
                           pdvm_error *err);

/** Frees everything. */
void pd_arena_free(struct pd_arena *arena);

#endif
