/**
 * What pdvm plan and pdvm sweep have in common: they convert a model in many ways and measure what
 * comes out.
 */
#ifndef PDVM_CMD_MEASURING_H
#define PDVM_CMD_MEASURING_H

#include "cmd/lists.h"
#include "compress/convert.h"
#include "plan/baseline.h"

/** Values of the options that both have. */
struct measuring {
    const char *source, *text, *calib, *sparsity, *values, *kernels, *backend;
    int64_t calib_tokens, calib_seq, window, speed_tokens, threads;
    int embed, group;
    bool json, quiet, verbose;
    struct share_list sparsities; /**< by measuring_read_lists, as is the next */
    struct coding_list codings;
};

/** The defaults. */
struct measuring measuring_default(void);

/** Reads --sparsity and --values. PDVM_ERR_ARGUMENT for a model without weights, too. */
pdvm_status measuring_read_lists(struct measuring *m, pdvm_error *err);

/** How to convert; with `calibrates` on the text of --calib. */
struct convert_options measuring_convert(const struct measuring *m, bool calibrates);

/** How to measure: kernels, threads and windows; the rest is as zeroed. */
struct baseline_options measuring_baseline(const struct measuring *m,
                                           enum perplexity_protocol protocol,
                                           const struct pd_notify *notify);

#endif
