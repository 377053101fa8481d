/**
 * Sweeps: one model compressed in many ways, each measured against the uncompressed model on the
 * same text. The table of a model card.
 */
#ifndef PDVM_PLAN_SWEEP_H
#define PDVM_PLAN_SWEEP_H

#include "compress/convert.h"
#include "io/json.h"
#include "plan/baseline.h"

/** One way of compressing. */
struct sweep_cell {
    const struct prune_method *method;
    double sparsity; /**< asked for, in the matrices of the layers */
    enum mdcsr_values values;
};

/** What came of it. */
struct sweep_row {
    struct sweep_cell cell;
    double zeros;   /**< share of zeros in the layers' matrices */
    double bits;    /**< stored per weight of the layers' matrices */
    uint64_t bytes; /**< of the file */
    double perplexity, perplexity_stderr;
    double kl, kl_stderr, kl_median, kl_99;
    double same_top;
    double perplexity_ratio, perplexity_ratio_stderr;
    double tokens_per_second; /**< decoding; NAN: not measured */
    double convert_seconds;
    bool reused; /**< from the file of results */
};

/** What to sweep over. Cells are the products of the three lists, in their order. */
struct sweep_options {
    const struct prune_method *const *methods;
    size_t n_methods;
    const double *sparsities;
    size_t n_sparsities;
    const enum mdcsr_values *values;
    size_t n_values;
    struct convert_options convert; /**< everything else: group, embedding, calibration, threads */
    uint64_t convert_key;           /**< hash of what of it changes the result */
    const char *results; /**< JSON lines: done cells are read, new ones appended; or NULL */
    struct baseline_options baseline;
    size_t speed_tokens; /**< decoded to measure the speed; 0: not measured */
};

/** The table. Zero-initialise; freed with sweep_free. */
struct sweep_result {
    struct sweep_row *rows;
    size_t n, capacity;
    struct perplexity_result reference;
    double reference_tokens_per_second; /**< NAN: not measured */
    uint64_t reference_bytes;           /**< of the uncompressed weights and side files */
    double reference_bits;
    struct perplexity_options windows; /**< those that were used */
};

/**
 * Runs the sweep on text[0..size). Cells that make no difference are left out: without zeros to
 * reach, methods that need no calibration are all one. Progress stages name the cell.
 * Interrupted, what is in `results` stays and is not done again.
 */
pdvm_status sweep_run(const char *source, const char *text_name, const char *text, size_t size,
                      const struct sweep_options *options, struct sweep_result *out,
                      pdvm_error *err);

/** A row as a JSON object; new reference, NULL if memory runs out. */
json_t *sweep_row_json(const struct sweep_row *row);

/** Frees the rows. */
void sweep_free(struct sweep_result *r);

#endif
