/**
 * Weights of the tests in the forms of compressed-tensors, written from the format's description
 * and not with the product's code.
 */
#ifndef PDVM_TESTS_COMPRESSED_WEIGHT_H
#define PDVM_TESTS_COMPRESSED_WEIGHT_H

#include "io/safetensors.h"
#include "model/tensors.h"

#include <stdbool.h>

/** The forms of compressed-tensors; PLAIN: float32. */
enum compressed_form { PLAIN, BITMASK, BITMASK_24, PACKED, QUANTISED };
/** How many scales. */
enum compressed_scales { PER_TENSOR, PER_ROW, PER_ROW_COLUMN, GROUPS_OF_8 };

/** How to write a weight. */
struct compressed_spec {
    /** The forms of compressed-tensors; PLAIN: float32. */
    enum compressed_form form;
    enum safetensors_dtype dtype; /**< of the values */
    bool infix;                   /**< "X.weight.compressed" */
    int bits;
    enum compressed_scales scales;
    enum safetensors_dtype scale_dtype;
    bool scaled; /**< a bitmask over quantised values */
    bool zero_points;
    bool g_idx;
    bool everything; /**< embedding and norms too */
};

/** One tensor of the file. */
struct compressed_file_part {
    char name[160];
    enum safetensors_dtype dtype;
    int n_dims;
    int64_t dims[2];
    uint8_t *data;
    size_t size;
};

/** A weight as its tensors, and the floats that they stand for. */
struct compressed_weight {
    struct tensor_info info;
    float *expected;
    struct compressed_file_part parts[8];
    int n_parts;
};

/**
 * Makes a weight; compressed_free releases it. Values are drawn from its name. Matrices other than
 * embedding and head are compressed, the rest only with `everything`. The values come first among
 * the parts, in bitmask forms then bitmask, row_offsets and shape.
 */
struct compressed_weight compressed_encode(const struct compressed_spec *s,
                                           const struct tensor_info *info);
void compressed_free(struct compressed_weight *w);

/** Adds a zeroed part called "X" + suffix, or with `infix` "X.weight" + suffix. */
struct compressed_file_part *compressed_add_part(struct compressed_weight *w, bool infix,
                                                 const char *suffix, enum safetensors_dtype dtype,
                                                 int n_dims, int64_t first, int64_t second);

/** Appends the part to a file; fails the test if it cannot. */
void compressed_write_part(struct safetensors_writer *out, const struct compressed_file_part *p);

/** Writes element i of an I64 part. */
void compressed_put_i64(struct compressed_file_part *p, int64_t i, int64_t value);

/** Writes a value that the float type, or I8, holds exactly. */
void compressed_put_value(enum safetensors_dtype dtype, float value, uint8_t *out);

/** The value of an F8_E4M3 or F8_E5M2 code by the OCP definition, in real numbers. */
float compressed_fp8_value(enum safetensors_dtype dtype, uint8_t code);

#endif
