/** Memory: zeroed, counted, aligned. All fail with PDVM_ERR_MEMORY naming what it was for. */
#ifndef PDVM_BASE_ALLOC_H
#define PDVM_BASE_ALLOC_H

#include "base/error.h"

#include <stddef.h>

/**
 * Allocates n * size zeroed bytes into *out (a pointer's address); free() releases them.
 * n == 0 gives a valid pointer. `what` names the purpose for the error message.
 */
pdvm_status pd_calloc(void *out, size_t n, size_t size, const char *what, pdvm_error *err);

/**
 * Allocates `size` bytes aligned to 128 into *out, not zeroed; free() releases them. At least
 * 64 bytes more than asked for are readable behind them, so vector loads may run over the end.
 */
pdvm_status pd_alloc_aligned(void *out, size_t size, const char *what, pdvm_error *err);

/**
 * Zeroes data[0, size). Where the system allows it, whole pages are given back and come as zeros
 * when they are touched: what stays zero takes no memory.
 */
void pd_zero(void *data, size_t size);

/**
 * Grows *data (elements of `size` bytes) so that at least `need` fit, at least doubling;
 * *capacity counts elements. On failure nothing changes.
 */
pdvm_status pd_grow(void *data, size_t *capacity, size_t need, size_t size, const char *what,
                    pdvm_error *err);

#endif
