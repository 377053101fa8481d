/**
 * MdCSR: one sparse, quantised matrix in its canonical form, the one that files hold.
 * docs/format.md specifies the byte layout; backends repack it for their kernels.
 *
 * W[rows, cols] is stored row by row. An index coding says where the stored entries are, a value
 * coding what they are:
 *
 *     W[r, c] = value                                     (F32, BF16, F16)
 *     W[r, c] = scale[r, c / group] * codebook[code]      (LUT8, LUT4)
 *     W[r, c] = scale[r, c / group] * code                (INT8, code in -127..127)
 *
 * All products are taken in float32, so decoding is exact and the same everywhere.
 */
#ifndef PDVM_MDCSR_MDCSR_H
#define PDVM_MDCSR_MDCSR_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/** Most rows or columns of a matrix: keeps every product of sizes far inside 64 bits. */
#define MDCSR_MAX_DIM ((int64_t)1 << 28)

/** Where the stored entries are. */
enum mdcsr_index {
    MDCSR_DENSE,  /**< every position is stored */
    MDCSR_BITMAP, /**< one bit per position, each row padded to whole bytes, low bit first */
    MDCSR_DELTA8, /**< a byte per entry: positions skipped since the last; 255: skip 255, no entry */
    MDCSR_DELTA4, /**< a nibble per entry, low first, rows byte-aligned; 15: skip 15, no entry */
    MDCSR_N_INDEX
};

/** What the stored entries are. */
enum mdcsr_values {
    MDCSR_F32,
    MDCSR_BF16,
    MDCSR_F16,
    MDCSR_INT8, /**< signed bytes times a scale */
    MDCSR_LUT8, /**< bytes that index a codebook of 256 floats, times a scale */
    MDCSR_LUT4, /**< nibbles that index a codebook of 16 signed bytes, times a scale */
    MDCSR_N_VALUES
};

/** How the codebook of LUT8 and LUT4 was made; readers only need its entries. */
enum mdcsr_codebook {
    MDCSR_LINEAR,  /**< evenly spaced */
    MDCSR_PRIME,   /**< signed reciprocals of primes */
    MDCSR_LEARNED, /**< Lloyd's algorithm on the matrix's own values */
    MDCSR_N_CODEBOOKS
};

/**
 * One matrix. The big arrays are borrowed (from a mapped file) or owned, see `owned`. Offsets and
 * scales are always owned, widened to one type. Zero-initialise before use.
 */
struct mdcsr {
    int64_t rows;
    int64_t cols;
    int64_t n_entries; /**< stored entries; rows * cols when dense */
    enum mdcsr_index index_coding;
    enum mdcsr_values value_coding;
    enum mdcsr_codebook codebook_kind;
    uint32_t group;   /**< columns per scale; 0: one scale per row */
    int64_t n_groups; /**< scales per row: 1 or ceil(cols / group); 0 without scales */

    const uint8_t *values; /**< entries in row order; LUT4: entry k is nibble k, low first */
    size_t values_size;    /**< bytes; the values may be unaligned in memory */
    const uint8_t *index;  /**< bitmap or gaps; NULL when dense */
    size_t index_size;
    int64_t *row_offsets;   /**< [rows + 1] first entry of each row; NULL when dense */
    int64_t *index_offsets; /**< [rows + 1] first index byte of each row; NULL unless delta */
    float *scales;          /**< [rows, n_groups]; NULL for F32, BF16, F16 */
    float codebook[256];    /**< 16 or 256 entries in use; LUT4: whole numbers in -127..127 */
    bool owned;             /**< values and index are freed by mdcsr_free */
};

/**
 * Scales and codebook that a matrix's values were rounded to before encoding: the encoder takes
 * them as they are, so that every value that is scale * entry is stored exactly.
 */
struct mdcsr_grid {
    float *scales;       /**< [rows, groups per row]; with groups they are bfloat16 numbers */
    float codebook[256]; /**< ascending; 256 entries of LUT8, or 16 whole ones of LUT4 */
};

/** How mdcsr_encode should store a matrix. */
struct mdcsr_options {
    enum mdcsr_values values;
    enum mdcsr_codebook codebook;
    bool index_auto; /**< choose the smallest index coding; `index` is ignored then */
    enum mdcsr_index index;
    uint32_t group; /**< 0, 32, 64, 128 or 256 */
    /** For INT8, LUT8 and LUT4: use these scales and this codebook; NULL: fit them to the values.
     * The index is never dense then if the matrix has zeros and the codebook does not. */
    const struct mdcsr_grid *grid;
};

/** What encoding did to the values. Sums are over all positions, in double. */
struct mdcsr_report {
    int64_t n_weights;    /**< rows * cols */
    int64_t n_zeros;      /**< exact zeros in the source */
    double sum_squares;   /**< of the source values */
    double error_squares; /**< of source minus decoded */
    size_t stored_bytes;  /**< values, index, offsets, scales and codebook as the file holds them */
};

struct pd_threads;

/**
 * Encodes row-major w[rows, cols] into *out (freed with mdcsr_free). Exact zeros stay exact zeros;
 * any other value is stored unless the index is dense (-0.0 counts as zero). NaN and infinity are
 * PDVM_ERR_FORMAT with their position, as are values that overflow F16. The result does not depend
 * on the number of threads. `threads` and `report` may be NULL.
 */
pdvm_status mdcsr_encode(const float *w, int64_t rows, int64_t cols,
                         const struct mdcsr_options *options, struct pd_threads *threads,
                         struct mdcsr *out, struct mdcsr_report *report, pdvm_error *err);

/**
 * Checks a matrix from an untrusted source completely: sizes against each other, offsets rising
 * and inside the arrays, bitmap counts against row_offsets, padding bits zero, gaps inside the row,
 * codes inside the codebook, finite scales. Every function below may rely on a checked matrix.
 */
pdvm_status mdcsr_check(const struct mdcsr *m, pdvm_error *err);

/** Frees what the matrix owns and zeroes it. */
void mdcsr_free(struct mdcsr *m);

/** Stored entries of row r. */
int64_t mdcsr_row_entries(const struct mdcsr *m, int64_t r);

/** Writes the columns of row r's entries, ascending, to cols[row_entries]; returns their number. */
int64_t mdcsr_row_columns(const struct mdcsr *m, int64_t r, uint32_t *cols);

/**
 * Sets bit c % 64 of mask[c / 64] for the columns c of row r's entries, and clears all others up to
 * the next multiple of 64. One word behind these must be there, and is left as it is.
 */
void mdcsr_row_mask(const struct mdcsr *m, int64_t r, uint64_t *mask);

/**
 * Writes row r's raw entries to out, one element each: float for F32, uint16_t bits for BF16 and
 * F16, int8_t for INT8, uint8_t codes for LUT8 and LUT4 (nibbles unpacked). Returns their number.
 */
int64_t mdcsr_row_entries_raw(const struct mdcsr *m, int64_t r, void *out);

/** Bytes of one element that mdcsr_row_entries_raw writes: 4, 2 or 1. */
size_t mdcsr_entry_size(enum mdcsr_values values);

/** Decodes row r into out[cols]: exactly the values that the matrix stands for. */
void mdcsr_decode_row(const struct mdcsr *m, int64_t r, float *out);

/** The whole matrix, out[rows, cols], by all threads (NULL: none). */
void mdcsr_decode(const struct mdcsr *m, struct pd_threads *threads, float *out);

/** Names as on the command line and in files: "bitmap", "lut4", "learned"; NULL out of range. */
const char *mdcsr_index_name(enum mdcsr_index i);
const char *mdcsr_values_name(enum mdcsr_values v);
const char *mdcsr_codebook_name(enum mdcsr_codebook c);

/** The reverse: false if `name` is none of them. */
bool mdcsr_index_parse(const char *name, enum mdcsr_index *out);
bool mdcsr_values_parse(const char *name, enum mdcsr_values *out);
bool mdcsr_codebook_parse(const char *name, enum mdcsr_codebook *out);

#endif
