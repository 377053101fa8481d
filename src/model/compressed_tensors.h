/**
 * Weights in the formats of the compressed-tensors library
 * (https://github.com/vllm-project/compressed-tensors): sparse-bitmask, sparse-24-bitmask,
 * pack-quantized (int4, int8), int-, float- and naive-quantized (int8, FP8). A weight "X.weight"
 * is then several tensors, which may lie in several shards:
 *
 *   bitmask    X.shape [2]; X.compressed, the values that are kept, row after row: [n], or
 *              [rows, cols / 2] when two of every four are; X.bitmask U8 [rows, ceil(cols / 8)],
 *              low bits first; X.row_offsets [rows], where each row's values begin (not with
 *              two of four). "X.weight.compressed" and so on mean the same.
 *   packed     X.weight_packed I32 [rows, ceil(cols * bits / 32)], low bits first, each value plus
 *              2^(bits - 1); X.weight_shape [2]; the scales below.
 *   quantised  X.weight, I8 or F8; the scales below.
 *   scales     X.weight_scale: one, [rows] or [rows, groups]; X.weight_zero_point, of the scale's
 *              shape, or with packed weights I32, packed along the rows; X.weight_g_idx I32
 *              [cols], the group of each column, otherwise groups of equal width.
 *
 * The value is (stored - zero point) * scale, in float32. What holds is decided by the tensors that
 * are there, not by the configuration's lists of targets.
 */
#ifndef PDVM_MODEL_COMPRESSED_TENSORS_H
#define PDVM_MODEL_COMPRESSED_TENSORS_H

#include "io/json.h"
#include "io/safetensors.h"
#include "model/tensors.h"

/** Its name as a quant_method in config.json. */
#define COMPRESSED_TENSORS "compressed-tensors"

/** One of the tensors that make up a weight; both NULL if it is absent. Borrowed. */
struct compressed_part {
    const struct safetensors *file;
    const struct safetensors_tensor *tensor;
};

/** How the stored values are laid out. */
enum compressed_layout {
    COMPRESSED_BITMASK,    /**< sparse-bitmask */
    COMPRESSED_BITMASK_24, /**< sparse-24-bitmask */
    COMPRESSED_PACKED,     /**< pack-quantized */
    COMPRESSED_PLAIN       /**< int-, float-, naive-quantized */
};

/** A weight whose parts' types, shapes, offsets and group indices have been checked. */
struct compressed_tensor {
    char name[96]; /**< of the weight, for messages */
    int64_t rows, cols;
    enum compressed_layout layout;
    int bits;         /**< of a packed value: 4 or 8 */
    int64_t n_groups; /**< scales of a row; 0: no scales */
    char coding[40];  /**< "sparse-bitmask BF16", "pack-quantized int4" */
    struct compressed_part values, bitmask, row_offsets, scale, zero_point, g_idx;
};

/**
 * Checks a "quantization_config" or "compression_config" of config.json, called `field`, whose
 * quant_method is compressed-tensors. PDVM_ERR_UNSUPPORTED, naming it, for a format that is not
 * read (marlin-24, nvfp4-pack-quantized, ...) and for transforms of the activations;
 * PDVM_ERR_FORMAT for fields of the wrong type.
 */
pdvm_status compressed_tensors_check_config(const char *path, const char *field,
                                            const json_t *config, pdvm_error *err);

/** Whether one of the files holds the values of the weight `name` in a form of this module. */
bool compressed_tensors_has(struct safetensors *const *files, size_t n_files, const char *name);

/**
 * Whether `name` is a tensor that may stand beside the weight `weight` ("....weight") in such a
 * checkpoint: a part of it, or a scale for the activations, which are not quantised here.
 */
bool compressed_tensors_is_part(const char *name, const char *weight);

/** Whether `name` is a scale or zero point for the KV cache ("....self_attn.k_scale"). */
bool compressed_tensors_is_cache_scale(const char *name);

/**
 * Finds the weight `info` among the files and checks its parts. *out is allocated (free() releases
 * it; it borrows from the files), or NULL if the weight is not stored in one of these forms. Takes
 * time in proportion to rows + cols: what stands in the bitmask and the scales is checked as it is
 * read. PDVM_ERR_FORMAT, naming file and tensor, for parts that are missing, there twice or of the
 * wrong type or shape, for offsets that fall or pass the end, and group indices out of range.
 */
pdvm_status compressed_tensor_open(struct safetensors *const *files, size_t n_files,
                                   const struct tensor_info *info, struct compressed_tensor **out,
                                   pdvm_error *err);

/**
 * Float32 values of rows [begin, begin + n), which must be rows of the tensor; places without a
 * bit in the bitmask are exactly zero. PDVM_ERR_FORMAT for a row whose bits disagree with its
 * offsets, and for scales that are zero or not finite.
 */
pdvm_status compressed_tensor_read_rows(const struct compressed_tensor *t, int64_t begin, int64_t n,
                                        float *out, pdvm_error *err);

/** Bytes of all parts. */
uint64_t compressed_tensor_bytes(const struct compressed_tensor *t);

/** Gives back the memory that reading the parts brought in (see pd_map_release). */
void compressed_tensor_release(const struct compressed_tensor *t);

#endif
