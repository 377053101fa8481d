/** How the tensors of a model are stored by default, and reading them whole. */
#ifndef PDVM_MODEL_ENCODING_H
#define PDVM_MODEL_ENCODING_H

#include "base/threads.h"
#include "mdcsr/mdcsr.h"
#include "model/source.h"

/** The default coding: int8 with a scale per row and the smallest index; embedding and head too. */
struct mdcsr_options encoding_default(enum tensor_role role);

/**
 * Reads a whole tensor as row-major floats [rows, cols] with all threads; freed with free().
 */
pdvm_status encoding_read_floats(struct model_source *source, const struct tensor_info *tensor,
                                 struct pd_threads *threads, float **out, pdvm_error *err);

/**
 * The tensor as an MdCSR matrix: the stored one, or encoded now with encoding_default. Freed with
 * mdcsr_free; it may borrow from the source.
 */
pdvm_status encoding_load(struct model_source *source, const struct tensor_info *tensor,
                          struct pd_threads *threads, struct mdcsr *out, pdvm_error *err);

#endif
