/** How the tensors of a model are stored by default, and reading them whole. */
#ifndef PDVM_MODEL_ENCODING_H
#define PDVM_MODEL_ENCODING_H

#include "base/threads.h"
#include "mdcsr/mdcsr.h"
#include "model/source.h"

/**
 * The default coding of a tensor for a choice of values (int8 where nothing is chosen): the
 * smallest index; one scale per row, but groups of 64 columns for LUT4, and a learned codebook. The
 * embedding and the head are int8 unless the values are floats.
 */
struct mdcsr_options encoding_default(enum tensor_role role, enum mdcsr_values values);

/**
 * Reads a whole tensor as row-major floats [rows, cols] with all threads; freed with free().
 */
pdvm_status encoding_read_floats(struct model_source *source, const struct tensor_info *tensor,
                                 struct pd_threads *threads, float **out, pdvm_error *err);

/**
 * The tensor as an MdCSR matrix: the stored one, or encoded now with the default coding for
 * `values`. Freed with mdcsr_free; it may borrow from the source.
 */
pdvm_status encoding_load(struct model_source *source, const struct tensor_info *tensor,
                          enum mdcsr_values values, struct pd_threads *threads, struct mdcsr *out,
                          pdvm_error *err);

/**
 * About the bytes of all matrices as encoding_load makes them: zeros are not known before, nor are
 * scales and indices counted then. A tied embedding counts twice, as it is packed as the head, too.
 */
uint64_t encoding_bytes(struct model_source *source, enum mdcsr_values values);

#endif
