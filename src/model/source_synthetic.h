/**
 * Models of a given shape, sparsity and coding with random weights, for measuring speed without a
 * file: decoding takes as long as with real weights of that shape and coding, and the text is
 * nonsense.
 */
#ifndef PDVM_MODEL_SOURCE_SYNTHETIC_H
#define PDVM_MODEL_SOURCE_SYNTHETIC_H

#include "model/source.h"

/** What to make. */
struct synthetic_options {
    const char *shape;            /**< as shape_config takes it */
    double sparsity;              /**< share of zeros in the layers' matrices, 0..1; 0: dense */
    enum mdcsr_values values;     /**< coding of the layers' matrices */
    enum mdcsr_codebook codebook; /**< of LUT4: MDCSR_LINEAR or MDCSR_LEARNED */
    uint32_t group;               /**< columns per scale; 0: one scale per row */
    uint64_t seed;                /**< the same options and seed give the same model */
};

/**
 * Opens a source whose matrices are made when they are read, straight in MdCSR, by threads of its
 * own, each time the same. As in converted models, embedding and head are dense, and int8 where the
 * layers are int8, lut8 or lut4. Every row has its share of nonzeros to within a few per cent, at
 * random columns; each matrix has the asked-for sparsity to within a row's rounding. Scales are such
 * that activations stay of normal size. There is no tokenizer. PDVM_ERR_ARGUMENT for options out
 * of range and for unknown shapes.
 */
pdvm_status source_open_synthetic(const struct synthetic_options *options,
                                  struct model_source **out, pdvm_error *err);

#endif
