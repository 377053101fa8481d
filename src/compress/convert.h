/**
 * Conversion: reads a model tensor by tensor, prunes and encodes each matrix with all threads, and
 * writes a .pdvm file. At most one matrix is in memory at a time, as floats and as codes; methods
 * that need calibration hold one layer and the activations of the text (see calibrate.h).
 */
#ifndef PDVM_COMPRESS_CONVERT_H
#define PDVM_COMPRESS_CONVERT_H

#include "base/notify.h"
#include "compress/calibrate.h"
#include "compress/layer_sparsity.h"
#include "compress/prune.h"
#include "compress/report.h"
#include "compress/settings.h"

/** What methods that need calibration need. */
struct convert_calibration {
    struct calibration_options text; /**< text.path NULL: no calibration */
    struct solver_options solver;
    struct layer_sparsity_options layers;
    /** Fit the weights that are left to the outputs, with the mask of the method; then every method
     * but keep calibrates. */
    bool refine;
    bool resume; /**< go on with the finished layers of an interrupted run */
};

/** What calibration did. */
struct convert_calibration_facts {
    int64_t n_windows; /**< 0: there was none */
    int64_t seq;
    int64_t n_distinct; /**< different tokens */
    uint32_t n_resumed; /**< layers that were there already */
    uint64_t memory;    /**< bytes of activations */
    bool in_file;       /**< they were in a temporary file */
    char products[160]; /**< who computed the large products: a GPU, "amx" or OpenBLAS's kernels */
};

/** What convert_model should do. Zero-initialise, then fill `plan.general` with settings_none(). */
struct convert_options {
    const struct prune_method *method; /**< NULL: the first of the table, keep */
    enum prune_scope scope;            /**< PRUNE_SCOPE_DEFAULT: the method's */
    struct convert_calibration calibration;
    struct settings_plan plan; /**< plan.general.sparsity is the method's target */
    int n_threads;             /**< 0: all processors */
    struct pd_notify notify;   /**< stages: "calibrating", "converting"; may cancel */
};

/** What came out. Zero-initialise before use. */
struct convert_result {
    struct report report;
    uint64_t source_bytes; /**< the weights and side files of the source that were used */
    uint64_t file_bytes;   /**< of the file written */
    struct convert_calibration_facts calibration;
    bool has_tokenizer; /**< the source has a tokenizer.json or tokenizer.model */
};

/** All options unset: keep the zeros, int8, all threads, the method's scope. */
struct convert_options convert_options_default(void);

/**
 * Converts `source` (a directory or file that source_open knows) to a .pdvm file at `output`,
 * which appears only when it is complete. On failure or cancellation what was there before is
 * untouched. PDVM_ERR_ARGUMENT for options that make no sense together, and for an output that is
 * a file of the source.
 */
pdvm_status convert_model(const char *source, const char *output,
                          const struct convert_options *options, struct convert_result *out,
                          pdvm_error *err);

/** Frees what a result holds. */
void convert_result_free(struct convert_result *r);

/**
 * PDVM_ERR_ARGUMENT if writing `output` would replace `source`, or a weights or JSON file of a
 * source that is a directory, under whatever name.
 */
pdvm_status convert_check_output(const char *source, const char *output, pdvm_error *err);

#endif
