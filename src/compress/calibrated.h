/**
 * Conversion with calibration: layer by layer, the text's activations are collected, the layer's
 * matrices are pruned and coded, and what they then give feeds the next layer. Finished layers
 * stand in a work directory (work.h), from which the final file is put together.
 */
#ifndef PDVM_COMPRESS_CALIBRATED_H
#define PDVM_COMPRESS_CALIBRATED_H

#include "compress/convert.h"
#include "compress/work.h"
#include "model/source.h"

/** What was done, and the finished layers. Zero-initialise, free with calibrated_free. */
struct calibrated {
    struct work work;
    struct convert_calibration_facts facts;
};

/**
 * Solves all layers of `source`, or with options->calibration.resume those that are not there yet.
 * On failure and cancellation finished layers stay, and a log line says so.
 */
pdvm_status calibrated_run(struct model_source *source, const char *output,
                           const struct convert_options *options, const struct prune_method *method,
                           enum prune_scope scope, struct pd_threads *threads,
                           struct calibrated *out, pdvm_error *err);

/** Frees the handle; with `done` the work directory goes, too. */
void calibrated_free(struct calibrated *c, bool done);

#endif
