/**
 * SentencePiece model files (Kudo and Richardson 2018; sentencepiece_model.proto of their program):
 * the few fields that tokenizing with a BPE model takes, read from the wire format of Protocol
 * Buffers (protobuf.dev, "Encoding").
 */
#ifndef PDVM_MODEL_SENTENCEPIECE_H
#define PDVM_MODEL_SENTENCEPIECE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/** ModelProto.SentencePiece.Type, by its numbers. */
enum sentencepiece_type {
    SENTENCEPIECE_NORMAL = 1,
    SENTENCEPIECE_UNKNOWN = 2,
    SENTENCEPIECE_CONTROL = 3,
    SENTENCEPIECE_USER_DEFINED = 4,
    SENTENCEPIECE_BYTE = 6
};

/** One piece; its id is its place in the file. */
struct sentencepiece {
    const char *text; /**< valid UTF-8, not empty, not terminated; in the file's data */
    uint32_t len;
    float score; /**< finite */
    enum sentencepiece_type type;
};

/** What a file holds. */
struct sentencepiece_model {
    struct sentencepiece *pieces; /**< owned */
    uint32_t n_pieces;            /**< at least 1 */
    uint32_t unk_id;              /**< the one piece of type UNKNOWN */
    int64_t bos_id, eos_id;       /**< -1: none; may be outside the pieces */
    bool byte_fallback;           /**< then there are all 256 byte pieces, otherwise none */
    int32_t byte_ids[256];
    bool add_dummy_prefix;
};

/**
 * Reads a file's contents, from which *out borrows until sentencepiece_free. PDVM_ERR_FORMAT for
 * what is damaged or contradicts itself, PDVM_ERR_UNSUPPORTED for what is not known (models that
 * are not BPE, normalisation rules, removed whitespace, whitespace as suffix, unused pieces): both
 * name `path` and the field. Memory stays in proportion to `size`.
 */
pdvm_status sentencepiece_read(const char *path, const char *data, size_t size,
                               struct sentencepiece_model *out, pdvm_error *err);

/** Frees what is inside. A zeroed one is allowed. */
void sentencepiece_free(struct sentencepiece_model *m);

#endif
