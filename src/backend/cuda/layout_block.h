/** The tasks of one block: rows cut into pieces, pieces gathered into tasks, tasks into streams. */
#ifndef PDVM_BACKEND_CUDA_LAYOUT_BLOCK_H
#define PDVM_BACKEND_CUDA_LAYOUT_BLOCK_H

#include "backend/cuda/layout.h"
#include "backend/cuda/layout_tile.h"

/** A run of a row's chunks (or, with groups, of its groups) that one lane walks. */
struct block_item {
    uint32_t row;   /**< relative to the block's first */
    uint32_t tile;  /**< whose pace the row has */
    uint32_t begin; /**< first chunk or group */
    uint32_t end;
    uint32_t chunks;
};

/** Items side by side. */
struct block_task {
    uint32_t matrix; /**< whose coding it has */
    uint32_t first;  /**< item */
    uint32_t n;      /**< items: 1..32 */
    uint32_t length; /**< chunks of the longest */
    uint32_t warp;
    uint64_t size;   /**< bytes */
    uint64_t offset; /**< in the block's bytes */
};

struct block_plan {
    struct block_item *items;
    size_t n_items, item_capacity;
    struct block_task *tasks;
    size_t n_tasks, task_capacity;
    struct gpu_tiling tiling[3]; /**< [matrix whose coding the rows have] */
    uint64_t *warp_bytes;        /**< [n_warps] */
    uint32_t fill;               /**< most chunks that a lane lacks of its task's length */
};

/** Plans block b; the same every time. Freed with block_plan_free, also after a failure. */
pdvm_status block_plan_create(const struct gpu_layout *l, uint32_t b, struct block_plan *out,
                              pdvm_error *err);
void block_plan_free(struct block_plan *p);

/** Bytes of a task of `length` chunks, header included. */
uint64_t block_task_bytes(const struct gpu_coding *c, uint32_t length);

/** Chunks of a dense group; the last group of a row has as many. */
static inline uint32_t gpu_group_chunks(const struct gpu_coding *c) {
    return c->group / GPU_CHUNK;
}

/**
 * Where the entries of a group come to lie behind `pos` entries of a chunk that holds the end of the
 * group before (0: a fresh chunk): entries to add so that groups end at multiples of 4 and at most
 * once in a chunk.
 */
static inline uint32_t gpu_group_fill(uint32_t pos, uint32_t entries) {
    uint32_t rounded = (entries + 3) / 4 * 4;
    uint32_t fill = rounded - entries;
    if (pos > 0 && pos + rounded <= GPU_CHUNK) fill += GPU_CHUNK - pos;
    return fill;
}

/** Chunks of groups [begin, end) of a row with gaps. */
uint32_t gpu_groups_chunks(const uint16_t *in_group, uint32_t begin, uint32_t end);

#endif
