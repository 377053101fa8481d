/** Sizes of the parts of an MdCSR matrix, as docs/format.md lays them out. */
#ifndef PDVM_MDCSR_LAYOUT_H
#define PDVM_MDCSR_LAYOUT_H

#include "mdcsr/mdcsr.h"

/** The gap codes that skip their own value of positions and store no entry. */
#define MDCSR_DELTA8_SKIP 255u
#define MDCSR_DELTA4_SKIP 15u

/** Whether a value coding has scales: INT8, LUT8, LUT4. */
static inline bool mdcsr_has_scales(enum mdcsr_values v) {
    return v == MDCSR_INT8 || v == MDCSR_LUT8 || v == MDCSR_LUT4;
}

/** Entries of a value coding's codebook: 0, 16 or 256. */
static inline int mdcsr_codebook_size(enum mdcsr_values v) {
    return v == MDCSR_LUT8 ? 256 : v == MDCSR_LUT4 ? 16 : 0;
}

/** Whether an index coding has byte offsets of its own: DELTA8, DELTA4. */
static inline bool mdcsr_is_delta(enum mdcsr_index i) {
    return i == MDCSR_DELTA8 || i == MDCSR_DELTA4;
}

/** Whether `group` is a size that the format knows: 0, 32, 64, 128 or 256. */
static inline bool mdcsr_group_valid(uint32_t group) {
    return group == 0 || group == 32 || group == 64 || group == 128 || group == 256;
}

/** Scales per row: 0 for float codings, 1 for group 0, else ceil(cols / group). */
static inline int64_t mdcsr_groups(enum mdcsr_values v, int64_t cols, uint32_t group) {
    if (!mdcsr_has_scales(v)) return 0;
    return group == 0 ? 1 : (cols + group - 1) / group;
}

/** Bytes of one row of a bitmap. */
static inline size_t mdcsr_bitmap_stride(int64_t cols) {
    return ((size_t)cols + 7) / 8;
}

/** Bytes of n packed entries. n is at most MDCSR_MAX_DIM squared, so nothing overflows. */
static inline size_t mdcsr_values_bytes(enum mdcsr_values v, int64_t n) {
    switch (v) {
    case MDCSR_F32: return (size_t)n * 4;
    case MDCSR_BF16:
    case MDCSR_F16: return (size_t)n * 2;
    case MDCSR_LUT4: return ((size_t)n + 1) / 2;
    default: return (size_t)n;
    }
}

/** Bytes of the rows + 1 offsets whose last is `last`: I32 when all fit, else I64. */
static inline size_t mdcsr_offsets_bytes(int64_t rows, int64_t last) {
    return ((size_t)rows + 1) * (last <= INT32_MAX ? 4 : 8);
}

/** Bytes that a file needs for the scales: F32 per row, BF16 per group. */
static inline size_t mdcsr_scales_bytes(enum mdcsr_values v, int64_t rows, int64_t n_groups,
                                        uint32_t group) {
    if (!mdcsr_has_scales(v)) return 0;
    return (size_t)rows * (size_t)n_groups * (group == 0 ? 4 : 2);
}

/** Bytes that a file needs for the codebook: I8[16] or F32[256]. */
static inline size_t mdcsr_codebook_bytes(enum mdcsr_values v) {
    return v == MDCSR_LUT8 ? 1024 : v == MDCSR_LUT4 ? 16 : 0;
}

#endif
