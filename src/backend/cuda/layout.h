/**
 * From MdCSR matrices to the streams that GPU kernels read (src/kernels/abi.h describes them): the
 * layout of one phase is decided first, with all its sizes, and written block by block afterwards,
 * so that device memory can be allocated once and a phase need not fit host memory twice.
 */
#ifndef PDVM_BACKEND_CUDA_LAYOUT_H
#define PDVM_BACKEND_CUDA_LAYOUT_H

#include "base/threads.h"
#include "kernels/abi.h"
#include "mdcsr/mdcsr.h"

#define GPU_BUCKET 64u /**< columns after which rows that are ahead wait for others */

/** How the rows of one matrix are stored. */
struct gpu_coding {
    enum gpu_values values;
    uint32_t gap_bits; /**< 0: dense */
    uint32_t group;    /**< columns per scale inside the streams; 0: none */
    bool skip;         /**< GPU_TASK_SKIP: no code stands for 0 */
    bool has_zero;     /**< `zero` is the code of the value 0, for entries that fill up */
    uint8_t zero;
};

/** The layout of one phase's matrices. Freed with gpu_layout_free. */
struct gpu_layout {
    const struct mdcsr *matrix[3]; /**< borrowed, until the last gpu_layout_write */
    int n_matrices;
    bool alternate; /**< rows of the two matrices take turns (gate and up) */
    struct gpu_coding coding[3];
    float bound[3]; /**< float values: largest sum of |w| over a row */
    uint32_t n_blocks;
    uint32_t n_warps;
    uint32_t rows;   /**< of all matrices */
    uint32_t n_in;   /**< columns */
    uint32_t x_cols; /**< columns that streams may name, n_in and what entries that fill up need */
    uint32_t act;    /**< GPU_ACT_... */
    uint32_t *block_rows; /**< [n_blocks + 1] */
    uint32_t *streams;    /**< [n_blocks * n_warps + 1] in units of 16 bytes */
    float *units;         /**< [rows] */
    uint64_t size;        /**< bytes of all streams */
    uint64_t n_slots;     /**< entries with everything that bridges and fills up */
    uint32_t *chunks;     /**< [rows] chunks of each row, uncut */
    uint16_t *in_group;   /**< [rows][n_groups] entries, where groups meet gaps; or NULL */
    uint32_t n_groups;
    uint8_t
        *in_bucket; /**< [rows][n_buckets] entries, where there are gaps without groups; or NULL */
    uint32_t n_buckets; /**< of GPU_BUCKET columns */
};

/**
 * Decides the layout of `n` checked matrices of equal width for a grid of n_blocks * n_warps warps.
 * `alternate`: two matrices of equal height whose rows take turns. PDVM_ERR_UNSUPPORTED for more
 * columns than kernels can address. The result does not depend on the number of threads.
 */
pdvm_status gpu_layout_create(const struct mdcsr *const *matrix, int n, bool alternate,
                              uint32_t n_blocks, uint32_t n_warps, struct pd_threads *threads,
                              struct gpu_layout *out, pdvm_error *err);

/** Frees what a layout holds; the matrices are the caller's. */
void gpu_layout_free(struct gpu_layout *l);

/** Writes all streams to data[l->size] with all threads. */
pdvm_status gpu_layout_write(const struct gpu_layout *l, struct pd_threads *threads, uint8_t *data,
                             pdvm_error *err);

/** Frees what only gpu_layout_write needs, a byte for every 64 weights or so. */
void gpu_layout_trim(struct gpu_layout *l);

/** Matrix and row in it of a phase's row. */
static inline int gpu_layout_row(const struct gpu_layout *l, uint32_t row, int64_t *r) {
    if (l->alternate) {
        *r = row / 2;
        return (int)(row % 2);
    }
    int i = 0;
    int64_t left = row;
    while (left >= l->matrix[i]->rows) left -= l->matrix[i++]->rows;
    *r = left;
    return i;
}

/** Bytes per lane of the planes of one chunk: values, gaps, scales (with gaps). */
uint32_t gpu_coding_chunk_bytes(const struct gpu_coding *c);

#endif
