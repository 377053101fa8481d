/** A layer in Python, as a reference for speed. */
#ifndef PDVM_EVAL_NUMPY_LAYER_H
#define PDVM_EVAL_NUMPY_LAYER_H

#include "base/error.h"

/**
 * Runs one layer of random weights of that shape and sparsity for one token in NumPy: products with
 * sparse rows of int8 values, norms, RoPE, attention over a short cache, SiLU. *seconds: the fastest of
 * a few runs. PDVM_ERR_UNSUPPORTED: there is no python3 with NumPy.
 */
pdvm_status numpy_layer_seconds(const pdvm_model_info *shape, double sparsity, double *seconds,
                                pdvm_error *err);

#endif
