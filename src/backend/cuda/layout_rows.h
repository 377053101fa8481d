/** One row at a time: its entries as a lane walks them, and the coding that suits a matrix. */
#ifndef PDVM_BACKEND_CUDA_LAYOUT_ROWS_H
#define PDVM_BACKEND_CUDA_LAYOUT_ROWS_H

#include "backend/cuda/layout.h"

#define GPU_NO_ENTRY (-1)

/** Buffers for one row, `cols` long each. */
struct row_buffer {
    uint32_t *cols; /**< of the stored entries */
    uint8_t *raw;   /**< entries as mdcsr_row_entries_raw gives them, 4 bytes each at most */
    uint32_t *col;  /**< the sequence: columns, rising */
    int32_t *src;   /**< index of the stored entry, or GPU_NO_ENTRY */
    uint32_t n;     /**< length of the sequence */
};

pdvm_status row_buffer_create(struct row_buffer *b, int64_t cols, pdvm_error *err);
void row_buffer_free(struct row_buffer *b);

/**
 * The sequence of entries that a lane walks for a row: the stored ones, and between them what
 * bridges gaps that the code cannot express; dense: every column.
 */
void row_sequence(const struct mdcsr *m, const struct gpu_coding *c, int64_t row,
                  struct row_buffer *b);

/** Writes the value of entry `src` (or of none) to its place in the planes of a chunk. */
void row_put_value(const struct mdcsr *m, const struct gpu_coding *c, const uint8_t *raw,
                   int32_t src, float scale, uint8_t *chunk, uint32_t lane, uint32_t slot);

/** Chooses how a matrix is stored: the smallest of what the kernels have. */
void row_choose_coding(const struct mdcsr *m, struct row_buffer *b, struct gpu_coding *out);

/** Bytes per lane of the values of a chunk. */
uint32_t gpu_value_bytes(enum gpu_values v);

/** Bytes per lane of the gaps of a chunk. */
uint32_t gpu_gap_bytes(uint32_t gap_bits);

#endif
