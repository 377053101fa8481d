/** Writes GGUF files, right ones and ones with a fault, from the GGUF specification alone. */
#ifndef PDVM_TESTS_GGUF_WRITER_H
#define PDVM_TESTS_GGUF_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** A growing piece of a file. */
struct gguf_bytes {
    uint8_t *data;
    size_t n;
    size_t capacity;
};

/** A file in the making; zeroed: version 3, alignment 32, nothing in it. */
struct gguf_writer {
    uint32_t version;   /**< 0: 3 */
    uint32_t alignment; /**< 0: 32, and no key says so */
    uint64_t n_keys;
    uint64_t n_tensors;
    struct gguf_bytes keys;
    struct gguf_bytes tensors; /**< their entries */
    struct gguf_bytes data;
};

/** Adds an entry whose type and value are these bytes. */
void gguf_write_raw(struct gguf_writer *w, const char *key, const void *bytes, size_t size);

/** Adds a number, a truth value or a text. */
void gguf_write_u16(struct gguf_writer *w, const char *key, uint16_t value);
void gguf_write_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_write_i32(struct gguf_writer *w, const char *key, int32_t value);
void gguf_write_f32(struct gguf_writer *w, const char *key, float value);
void gguf_write_bool(struct gguf_writer *w, const char *key, bool value);
void gguf_write_string(struct gguf_writer *w, const char *key, const char *value);

/** Adds an array. */
void gguf_write_strings(struct gguf_writer *w, const char *key, const char *const *values,
                        size_t n);
void gguf_write_i32s(struct gguf_writer *w, const char *key, const int32_t *values, size_t n);
void gguf_write_f32s(struct gguf_writer *w, const char *key, const float *values, size_t n);

/** Adds a tensor with dims as in the file, the length of a row first. */
void gguf_write_tensor(struct gguf_writer *w, const char *name, uint32_t type, int n_dims,
                       const uint64_t *dims, const void *data, size_t size);

/** Adds a tensor's entry with any offset, and no data. */
void gguf_write_entry(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                      const uint64_t *dims, uint64_t offset);

/** Puts the file together, and empties the writer; *size bytes, freed with free(). */
uint8_t *gguf_writer_finish(struct gguf_writer *w, size_t *size);

/** The same into dir/name; returns its path, freed with free(). */
char *gguf_writer_save(struct gguf_writer *w, const char *dir, const char *name);

/** How gguf_from_hf writes a model. */
struct gguf_options {
    uint32_t type;    /**< of matrices: a type that gguf_encode knows */
    const char *pre;  /**< tokenizer.ggml.pre, and the keys of tokenizer.json; NULL: none */
    unsigned n_files; /**< 0 or 1: one file; more: a split model */
    const char *skip; /**< name of a GGUF tensor to leave out */
};

/**
 * Writes the Hugging Face model in directory `from` as dir/NAME.gguf, or as the files of a split
 * model; the rows of q and k are permuted as convert_hf_to_gguf.py does it for "llama". Returns the
 * path to open, freed with free().
 */
char *gguf_from_hf(const char *from, const char *dir, const char *name,
                   const struct gguf_options *options);

/** Adds a matrix [rows, cols] or, with rows 0, a vector of F32, encoded with gguf_encode. */
void gguf_write_floats(struct gguf_writer *w, const char *name, uint32_t type, uint64_t rows,
                       uint64_t cols, const float *x);

/**
 * Encodes n elements (whole blocks) as F32, F16, BF16, F64, Q8_0, Q4_0 or Q6_K: the nearest
 * multiples of a block's largest absolute value by 127, 7 or 31. Returns the bytes, at most 8 each.
 */
size_t gguf_encode(uint32_t type, const float *x, size_t n, uint8_t *out);

#endif
