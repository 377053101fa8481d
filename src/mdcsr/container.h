/**
 * The .pdvm file: a safetensors file that holds MdCSR matrices as a few plain tensors each,
 * vectors, and the JSON files of the model. docs/format.md specifies it.
 *
 * Needs src/io (one level down) and knows nothing of models: which matrices a model must have is
 * the business of src/model/source_pdvm.c.
 */
#ifndef PDVM_MDCSR_CONTAINER_H
#define PDVM_MDCSR_CONTAINER_H

#include "mdcsr/mdcsr.h"

/** The version that is written, and the only one that is read. */
#define CONTAINER_VERSION "1"

/** Longest name of a matrix, vector or side file. */
#define CONTAINER_MAX_NAME 255

/** What a file's metadata says of one matrix. */
struct container_matrix {
    const char *name; /**< owned by the container */
    int64_t rows;
    int64_t cols;
    enum mdcsr_index index_coding;
    enum mdcsr_values value_coding;
    enum mdcsr_codebook codebook_kind; /**< MDCSR_LINEAR for codings without a codebook */
    uint32_t group;
    int64_t n_entries;
    int64_t n_zeros;       /**< exact zeros of the source */
    double error;          /**< root of the squared error over the squared source values */
    uint64_t stored_bytes; /**< of all its parts */
};

/* ---- writing --------------------------------------------------------------------------- */

struct container_writer;

/**
 * Bytes to reserve for the header of a file with n matrices, vectors and side files whose names
 * have at most `longest` bytes: enough whatever the codings, and for 1 KB of metadata of the
 * caller's. (Control characters in names would need more; the commit fails then.)
 */
size_t container_header_reserve(size_t n, size_t longest);

/** Starts a file. It appears at `path` only when container_writer_commit succeeds. */
pdvm_status container_writer_open(const char *path, size_t reserve, struct container_writer **out,
                                  pdvm_error *err);

/** Appends a matrix that mdcsr_encode made, and what it reported. Names must differ. */
pdvm_status container_write_matrix(struct container_writer *w, const char *name,
                                   const struct mdcsr *m, const struct mdcsr_report *report,
                                   pdvm_error *err);

/** Appends x[n] as a vector of float32. */
pdvm_status container_write_vector(struct container_writer *w, const char *name, const float *x,
                                   int64_t n, pdvm_error *err);

/** Appends a side file ("config.json"), which readers find with container_file. */
pdvm_status container_write_file(struct container_writer *w, const char *name, const void *data,
                                 size_t size, pdvm_error *err);

/**
 * Adds a metadata string of the caller's ("pdvm.source", ...). The keys that the format defines
 * are PDVM_ERR_ARGUMENT.
 */
pdvm_status container_write_metadata(struct container_writer *w, const char *key, const char *value,
                                     pdvm_error *err);

/** Writes the metadata and puts the file in place. Frees `w`, also on failure. */
pdvm_status container_writer_commit(struct container_writer *w, pdvm_error *err);

/** Drops the unfinished file. NULL is allowed. */
void container_writer_abort(struct container_writer *w);

/* ---- reading --------------------------------------------------------------------------- */

struct container;
struct safetensors;

/** Whether a safetensors file calls itself a .pdvm file, of whatever version. */
bool container_is_pdvm(const struct safetensors *st);

/**
 * Opens a file and checks everything but the data of the tensors: version, codings, shapes,
 * counts, and that the parts of each matrix are there with the dtypes and shapes that follow from
 * the metadata. Every other tensor must be a side file or a vector. PDVM_ERR_UNSUPPORTED for
 * other versions and codings, PDVM_ERR_FORMAT for the rest; both name file, matrix and part.
 */
pdvm_status container_open(const char *path, struct container **out, pdvm_error *err);

/** The same from memory, which must outlive the handle; `name` stands for the path in messages. */
pdvm_status container_open_memory(const char *name, const void *data, size_t size,
                                  struct container **out, pdvm_error *err);

/** Closes it. What was read from it must not be used any more. NULL is allowed. */
void container_close(struct container *c);

/** The safetensors file below: its path, header hash and metadata. */
const struct safetensors *container_safetensors(const struct container *c);

/** The matrices, in the order of the file's metadata, and by name (NULL: none). */
size_t container_matrix_count(const struct container *c);
const struct container_matrix *container_matrix_at(const struct container *c, size_t i);
const struct container_matrix *container_matrix_find(const struct container *c, const char *name);

/**
 * Reads a matrix and checks it with mdcsr_check. The big arrays borrow from the container, the
 * small ones are freed by mdcsr_free. PDVM_ERR_ARGUMENT if there is none of that name.
 */
pdvm_status container_read_matrix(const struct container *c, const char *name, struct mdcsr *out,
                                  pdvm_error *err);

/** The vectors, in file order. `*n` is the length. */
size_t container_vector_count(const struct container *c);
const char *container_vector_at(const struct container *c, size_t i, int64_t *n);

/** Length of a vector, or -1 if there is none of that name. */
int64_t container_vector_size(const struct container *c, const char *name);

/** Copies a vector to out[n]; n must be its length. Values that are not finite: _FORMAT. */
pdvm_status container_read_vector(const struct container *c, const char *name, float *out,
                                  int64_t n, pdvm_error *err);

/** A side file's bytes (borrowed), or *data NULL if there is none of that name. */
void container_file(const struct container *c, const char *name, const char **data, size_t *size);

/** Computes the hash of all tensor data and compares it with the one in the metadata. */
pdvm_status container_verify_hash(const struct container *c, pdvm_error *err);

#endif
