/** Large working memory that may be more than the machine's. */
#ifndef PDVM_BASE_SCRATCH_H
#define PDVM_BASE_SCRATCH_H

#include "base/error.h"

#include <stddef.h>

/** A block of memory; zeroed: none. */
struct pd_scratch {
    void *data; /**< page-aligned, zeros at first */
    size_t size;
    bool in_file;
};

/**
 * Allocates `size` bytes: in memory if they are at most half of what the machine has, otherwise in
 * a nameless temporary file in the directory of `beside`, whose room on the disk is reserved.
 * `what` names the purpose for messages. Freed with pd_scratch_close.
 */
pdvm_status pd_scratch_open(size_t size, const char *beside, const char *what,
                            struct pd_scratch *out, pdvm_error *err);

/** Frees it; a zeroed one is allowed. */
void pd_scratch_close(struct pd_scratch *s);

#endif
