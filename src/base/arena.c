#include "base/arena.h"

#include "base/checked.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define CHUNK ((size_t)64 << 20)
#define ALIGNMENT 128

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* At the start of what was mapped; the memory that is given out begins at a huge page behind it. */
struct pd_arena_chunk {
    struct pd_arena_chunk *next;
    size_t mapped;
    uint8_t *data;
    size_t size;
    size_t used;
};

static struct pd_arena_chunk *new_chunk(size_t need) {
    size_t size = need > CHUNK ? need : CHUNK, mapped;
    if (size > SIZE_MAX - 2 * HUGE_PAGE) return NULL;
    size = pd_round_up(size, HUGE_PAGE);
    mapped = size + HUGE_PAGE;
    uint8_t *p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if ((void *)p == MAP_FAILED) return NULL;
    struct pd_arena_chunk *chunk = (struct pd_arena_chunk *)(void *)p;
    size_t skip = HUGE_PAGE - (uintptr_t)p % HUGE_PAGE; /* a page at least: for the chunk itself */
    *chunk = (struct pd_arena_chunk){.mapped = mapped, .data = p + skip, .size = size};
#ifdef MADV_HUGEPAGE
    madvise(chunk->data, size, MADV_HUGEPAGE); /* without it works, too */
#endif
    return chunk;
}

pdvm_status pd_arena_alloc(struct pd_arena *arena, size_t size, void *out, const char *what,
                           pdvm_error *err) {
    void *none = NULL;
    size_t need;
    memcpy(out, &none, sizeof none);
    if (!pd_add_size(size, 64 + ALIGNMENT, &need)) return pd_fail_memory(err, size, what);
    need = need / ALIGNMENT * ALIGNMENT;
    struct pd_arena_chunk *chunk = arena->chunks;
    if (!chunk || chunk->size - chunk->used < need) {
        chunk = new_chunk(need);
        if (!chunk) return pd_fail_memory(err, size, what);
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    uint8_t *p = chunk->data + chunk->used;
    chunk->used += need;
    memcpy(out, &p, sizeof p);
    return PDVM_OK;
}

void pd_arena_free(struct pd_arena *arena) {
    while (arena->chunks) {
        struct pd_arena_chunk *chunk = arena->chunks;
        arena->chunks = chunk->next;
        munmap(chunk, chunk->mapped);
    }
}
