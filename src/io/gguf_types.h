/**
 * The number formats of GGUF tensors: their names, block sizes, and conversion to floats. The
 * formats are those of ggml's tensor types (ggml-common.h describes the blocks; the GGUF
 * specification gives the numbers of the types).
 */
#ifndef PDVM_IO_GGUF_TYPES_H
#define PDVM_IO_GGUF_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Types that files use by number; the ones that gguf_dequantize knows have a name here. */
enum gguf_type {
    GGUF_F32 = 0,
    GGUF_F16 = 1,
    GGUF_Q4_0 = 2,
    GGUF_Q4_1 = 3,
    GGUF_Q5_0 = 6,
    GGUF_Q5_1 = 7,
    GGUF_Q8_0 = 8,
    GGUF_Q4_K = 12,
    GGUF_Q5_K = 13,
    GGUF_Q6_K = 14,
    GGUF_F64 = 28,
    GGUF_BF16 = 30
};

/** Elements in the largest block of any type. */
#define GGUF_MAX_BLOCK 256

/** A type of elements: every `block` elements of a row take `bytes` bytes. */
struct gguf_type_info {
    const char *name; /**< "Q4_K" */
    uint32_t block;   /**< elements of a block; rows are a whole number of blocks */
    uint32_t bytes;   /**< bytes of a block */
    bool readable;    /**< gguf_dequantize can read it */
};

/** What is known of type number `type`; NULL if the number means nothing (any more). */
const struct gguf_type_info *gguf_type_info(uint32_t type);

/**
 * Converts n_blocks blocks of a readable type, in float32 arithmetic and in the order of operations
 * that defines the type: q times the scale, then the minimum. `data` needs no alignment; `out`
 * takes n_blocks * block floats. False if the type is not readable.
 */
bool gguf_dequantize(uint32_t type, const uint8_t *data, size_t n_blocks, float *out);

#endif
