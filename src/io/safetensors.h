/**
 * The safetensors container: reading with every check, and streaming, atomic writing.
 * Format: 8 bytes little-endian header size, a JSON header, then the tensors' bytes without gaps
 * (https://huggingface.co/docs/safetensors).
 */
#ifndef PDVM_IO_SAFETENSORS_H
#define PDVM_IO_SAFETENSORS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_MAX_DIMS 8
/** Longest header accepted: the reference implementation's limit. */
#define SAFETENSORS_MAX_HEADER ((size_t)100000000)

/** Element types. */
enum safetensors_dtype {
    SAFETENSORS_BOOL,
    SAFETENSORS_U8,
    SAFETENSORS_I8,
    SAFETENSORS_U16,
    SAFETENSORS_I16,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_U32,
    SAFETENSORS_I32,
    SAFETENSORS_F32,
    SAFETENSORS_U64,
    SAFETENSORS_I64,
    SAFETENSORS_F64,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_N_DTYPES
};

/** One tensor of an open file. Data may be unaligned; read it with memcpy. */
struct safetensors_tensor {
    const char *name;
    enum safetensors_dtype dtype;
    int n_dims; /**< 0 for a scalar */
    int64_t dims[SAFETENSORS_MAX_DIMS];
    int64_t n_elements;
    const uint8_t *data; /**< points into the file's map */
    size_t size;         /**< bytes: n_elements times the element's size, checked */
};

/** An open file. */
struct safetensors;

/**
 * Opens a file by mapping it. PDVM_ERR_FORMAT, naming file and tensor, for anything that the
 * reference implementation rejects: header too long or not an object, unknown dtypes, dims whose
 * product overflows or disagrees with the offsets, overlapping, falling or gapped offsets, data
 * past the end or left over, duplicate names, metadata that is not strings.
 */
pdvm_status safetensors_open(const char *path, struct safetensors **out, pdvm_error *err);

/** The same from memory, which must outlive the handle; `name` stands for the path in messages. */
pdvm_status safetensors_open_memory(const char *name, const void *data, size_t size,
                                    struct safetensors **out, pdvm_error *err);

/** Closes it; its tensors become invalid. NULL is allowed. */
void safetensors_close(struct safetensors *st);

/** The path it was opened by. */
const char *safetensors_path(const struct safetensors *st);

/** Number of tensors; they are indexed in file (offset) order. */
size_t safetensors_count(const struct safetensors *st);
const struct safetensors_tensor *safetensors_at(const struct safetensors *st, size_t i);

/** The tensor of that name or NULL; O(log n). */
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);

/** A string of `__metadata__` or NULL. Owned by the handle. */
const char *safetensors_metadata(const struct safetensors *st, const char *key);

/** Calls fn for every metadata pair, in the file's order. */
void safetensors_metadata_each(const struct safetensors *st,
                               void (*fn)(void *user, const char *key, const char *value),
                               void *user);

/** Hash of the header's bytes: a fingerprint of names, shapes, offsets and metadata. */
uint64_t safetensors_header_hash(const struct safetensors *st);

/** Bytes per element, and the name as in the header ("BF16"). */
size_t safetensors_dtype_size(enum safetensors_dtype dtype);
const char *safetensors_dtype_name(enum safetensors_dtype dtype);

/**
 * Converts elements [begin, begin + n) of an F32, F16, BF16 or F64 tensor to out[n].
 * PDVM_ERR_UNSUPPORTED for other types, naming file and tensor.
 */
pdvm_status safetensors_to_float(const struct safetensors *st, const struct safetensors_tensor *t,
                                 int64_t begin, int64_t n, float *out, pdvm_error *err);

/**
 * Writes a file tensor by tensor, in one pass: room for the header is reserved at the start and
 * the header (padded with spaces) is put there by safetensors_writer_commit. The final path
 * appears only then.
 */
struct safetensors_writer;

/** Starts a file with room for a header of `reserve` bytes. */
pdvm_status safetensors_writer_open(const char *path, size_t reserve,
                                    struct safetensors_writer **out, pdvm_error *err);

/** Adds or replaces a metadata string (UTF-8, copied). */
pdvm_status safetensors_writer_metadata(struct safetensors_writer *w, const char *key,
                                        const char *value, pdvm_error *err);

/** Appends a tensor. `size` must match dtype and dims; duplicate names are PDVM_ERR_ARGUMENT. */
pdvm_status safetensors_writer_tensor(struct safetensors_writer *w, const char *name,
                                      enum safetensors_dtype dtype, const int64_t *dims, int n_dims,
                                      const void *data, size_t size, pdvm_error *err);

/**
 * Begins a tensor whose data come in pieces, and sets *size to their bytes in all: they are given
 * to safetensors_writer_append, completely, before the next tensor or the end.
 */
pdvm_status safetensors_writer_begin(struct safetensors_writer *w, const char *name,
                                     enum safetensors_dtype dtype, const int64_t *dims, int n_dims,
                                     size_t *size, pdvm_error *err);

/** Appends a piece of the tensor that was begun last. */
pdvm_status safetensors_writer_append(struct safetensors_writer *w, const void *data, size_t size,
                                      pdvm_error *err);

/** Writes the header, flushes, renames into place and frees `w`, also on failure. */
pdvm_status safetensors_writer_commit(struct safetensors_writer *w, pdvm_error *err);

/** Drops the unfinished file. NULL is allowed. */
void safetensors_writer_abort(struct safetensors_writer *w);

#endif
