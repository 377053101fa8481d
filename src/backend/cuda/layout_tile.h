/**
 * Tiles: rows side by side whose lanes walk along the same columns.
 *
 * The lanes of a task read x from banked memory, and lanes that are at about the same column never
 * wait for each other. Rows drift apart, as their entries come by chance; so a row that is ahead of
 * its tile gets entries of value 0 in its gaps, which cost it time, and one that is behind catches
 * up, as the pace leaves a few percent of room. A tile whose rows keep pace may be cut anywhere.
 */
#ifndef PDVM_BACKEND_CUDA_LAYOUT_TILE_H
#define PDVM_BACKEND_CUDA_LAYOUT_TILE_H

#include "backend/cuda/layout.h"

/** Rows of about the same length in `parallel` stretches, each as long as a lane of the tile. */
struct gpu_tile {
    uint32_t first;    /**< of the rows in gpu_tiling.rows */
    uint32_t n;        /**< rows */
    uint32_t parallel; /**< stretches side by side: at most GPU_LANES / n */
    uint32_t length;   /**< steps of a stretch: chunks or, with groups, groups */
    double step;       /**< chunks of a step: about, where groups meet gaps */
};

/** The tiles of a block. Freed with gpu_tiling_free. */
struct gpu_tiling {
    uint32_t *rows; /**< of the phase, tile after tile */
    uint32_t n_rows;
    struct gpu_tile *tiles;
    uint32_t n_tiles;
    uint32_t *pace; /**< [n_tiles][n_buckets]: see gpu_pace_row */
};

/** Rows keep pace by entries that fill up: not dense ones, and not those that are cut at groups,
 * whose pieces begin side by side. */
static inline bool gpu_is_paced(const struct gpu_coding *c) {
    return c->gap_bits && !c->group;
}

/** Makes tiles of rows [first, end) whose matrices have the coding of matrix `key`. `keys` says
 * which one each matrix has. */
pdvm_status gpu_tiling_create(const struct gpu_layout *l, uint32_t first, uint32_t end,
                              const int keys[3], int key, struct gpu_tiling *out, pdvm_error *err);
void gpu_tiling_free(struct gpu_tiling *t);

/**
 * Entries that fill up in every bucket of a row of in_bucket[k] entries, so that at least pace[k]
 * entries come before the end of bucket k, as far as there are columns for them. Returns the
 * length of the row with them. `fill` may be NULL.
 */
uint32_t gpu_pace_row(const struct gpu_layout *l, const uint8_t *in_bucket, const uint32_t *pace,
                      uint8_t *fill);

#endif
