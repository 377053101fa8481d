/** The tensors that a matrix is made of in a file: names, dtypes and shapes. */
#ifndef PDVM_MDCSR_PARTS_H
#define PDVM_MDCSR_PARTS_H

#include "io/safetensors.h"
#include "mdcsr/container.h"

enum container_part {
    PART_VALUES,
    PART_INDEX,
    PART_ROW_OFFSETS,
    PART_INDEX_OFFSETS,
    PART_SCALES,
    PART_CODEBOOK,
    N_PARTS
};

/** What one part must be. */
struct container_part_type {
    bool there;
    bool offsets;  /**< I32 or I64 */
    bool any_size; /**< a delta index: its length is in its own shape only */
    enum safetensors_dtype dtype;
    int n_dims;
    int64_t dims[2];
};

/** Metadata keys and values of the format. */
#define CONTAINER_KEY_FORMAT "format"
#define CONTAINER_FORMAT "pdvm"
#define CONTAINER_KEY_VERSION "pdvm.version"
#define CONTAINER_KEY_PRODUCER "pdvm.producer"
#define CONTAINER_KEY_MATRICES "pdvm.matrices"
#define CONTAINER_KEY_HASH "pdvm.hash"

/** Side files are tensors of this name and theirs. */
#define CONTAINER_FILES "files/"

/** "values", "index", ...: a part is the tensor NAME.values. */
const char *container_part_name(enum container_part part);

/** What the parts of a matrix must be; rows, cols, codings, group and n_entries are read. */
void container_part_types(const struct container_matrix *info,
                          struct container_part_type out[N_PARTS]);

#endif
