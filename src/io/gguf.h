/**
 * Reader of GGUF files, versions 2 and 3, little endian (the GGUF specification of the ggml
 * project, docs/gguf.md). The file is mapped, and every length, offset and type in it is checked
 * when it is opened; what the functions below return can be used without another check.
 */
#ifndef PDVM_IO_GGUF_H
#define PDVM_IO_GGUF_H

#include "base/error.h"
#include "io/gguf_types.h"

#include <stddef.h>
#include <stdint.h>

/** Most dimensions of a tensor. */
#define GGUF_MAX_DIMS 4
/** Longest name of a key or tensor, bytes. */
#define GGUF_MAX_NAME 65535
/** Largest alignment of the tensors' data that is accepted, bytes. */
#define GGUF_MAX_ALIGNMENT ((uint64_t)1 << 20)

/** Types of metadata values, by their numbers in the file. */
enum gguf_value_type {
    GGUF_VALUE_U8,
    GGUF_VALUE_I8,
    GGUF_VALUE_U16,
    GGUF_VALUE_I16,
    GGUF_VALUE_U32,
    GGUF_VALUE_I32,
    GGUF_VALUE_F32,
    GGUF_VALUE_BOOL,
    GGUF_VALUE_STRING,
    GGUF_VALUE_ARRAY,
    GGUF_VALUE_U64,
    GGUF_VALUE_I64,
    GGUF_VALUE_F64,
    GGUF_N_VALUE_TYPES
};

/** One metadata entry. */
struct gguf_value {
    const char *key;           /**< UTF-8, zero-terminated; borrowed from the file's handle */
    enum gguf_value_type type; /**< of the value, or of an array's elements */
    bool is_array;
    uint64_t n;          /**< elements of an array; 1 otherwise */
    const uint8_t *data; /**< in the file, unaligned; strings: 8 bytes of length, bytes */
    size_t size;         /**< bytes of data */
};

/** One tensor. */
struct gguf_tensor {
    const char *name;            /**< UTF-8, zero-terminated; borrowed from the file's handle */
    uint32_t type;               /**< a number that gguf_type_info knows */
    int n_dims;                  /**< 1 to GGUF_MAX_DIMS */
    int64_t dims[GGUF_MAX_DIMS]; /**< in the file's order: dims[0] is the length of a row */
    const uint8_t *data;         /**< in the file, unaligned */
    size_t size;                 /**< bytes of data: whole blocks in rows of dims[0] elements */
};

/** An open file. */
struct gguf;

/**
 * Opens and checks a file. Version 1, big-endian files and tensors of an unknown type are
 * PDVM_ERR_UNSUPPORTED; everything that does not hold together is PDVM_ERR_FORMAT, and the message
 * names the file and the key or tensor. Memory stays in proportion to the file.
 */
pdvm_status gguf_open(const char *path, struct gguf **out, pdvm_error *err);

/** The same for a file in memory that stays there until gguf_close; `name` is for messages. */
pdvm_status gguf_open_memory(const char *name, const void *data, size_t size, struct gguf **out,
                             pdvm_error *err);

/** Closes it. NULL is allowed. */
void gguf_close(struct gguf *g);

/** The path or name given to gguf_open. */
const char *gguf_path(const struct gguf *g);

/** Hash of everything before the tensors' data. */
uint64_t gguf_header_hash(const struct gguf *g);

/** Number of metadata entries, and the i-th in the file's order. */
size_t gguf_value_count(const struct gguf *g);
const struct gguf_value *gguf_value_at(const struct gguf *g, size_t i);

/** The entry of a key, or NULL. */
const struct gguf_value *gguf_value_find(const struct gguf *g, const char *key);

/** Number of tensors, and the i-th in the order of their data. */
size_t gguf_tensor_count(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i);

/** The tensor of a name, or NULL. */
const struct gguf_tensor *gguf_tensor_find(const struct gguf *g, const char *name);

/** "uint32", "array of string", ...: what a value is, for messages; static. */
const char *gguf_value_kind(const struct gguf_value *v);

/**
 * Reads a whole number of any integer type in [min, max] into *out. An absent key leaves *out
 * alone, or is PDVM_ERR_FORMAT if `required`; so is a wrong type or a number out of range.
 */
pdvm_status gguf_get_int(const struct gguf *g, const char *key, bool required, int64_t min,
                         int64_t max, int64_t *out, pdvm_error *err);

/** Reads a float32 or float64 in the same way; it must be finite. */
pdvm_status gguf_get_float(const struct gguf *g, const char *key, bool required, double *out,
                           pdvm_error *err);

/** Reads a truth value in the same way. */
pdvm_status gguf_get_bool(const struct gguf *g, const char *key, bool required, bool *out,
                          pdvm_error *err);

/** Reads a string in the same way: *out points to *len bytes of UTF-8, not zero-terminated. */
pdvm_status gguf_get_string(const struct gguf *g, const char *key, bool required, const char **out,
                            size_t *len, pdvm_error *err);

/**
 * Finds an array with elements of `type`: *out is NULL if the key is absent and not `required`.
 * Another type is PDVM_ERR_FORMAT.
 */
pdvm_status gguf_get_array(const struct gguf *g, const char *key, bool required,
                           enum gguf_value_type type, const struct gguf_value **out,
                           pdvm_error *err);

/**
 * Walks an array of strings: *at is where the next one begins (0 at first) and moves behind it.
 * Must be called at most v->n times. The string need not be UTF-8.
 */
const char *gguf_next_string(const struct gguf_value *v, size_t *at, size_t *len);

/** Element i of an array of int32 or float32. */
int32_t gguf_i32_at(const struct gguf_value *v, uint64_t i);
float gguf_f32_at(const struct gguf_value *v, uint64_t i);

#endif
