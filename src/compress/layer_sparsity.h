/**
 * How much of the sparsity each layer takes. The mean over the layers is always the target.
 */
#ifndef PDVM_COMPRESS_LAYER_SPARSITY_H
#define PDVM_COMPRESS_LAYER_SPARSITY_H

#include "compress/calibrate.h"

/** Rules for it. */
enum layer_sparsity_rule {
    LAYER_SPARSITY_UNIFORM, /**< all layers alike */
    LAYER_SPARSITY_OWL,     /**< fewer zeros where there are more outliers (Yin et al. 2023) */
    LAYER_SPARSITY_DAMAGE,  /**< zeros where they change the outputs least */
    LAYER_SPARSITY_N_RULES
};

/** The rule and its parameters. */
struct layer_sparsity_options {
    enum layer_sparsity_rule rule;
    double outlier; /**< OWL: an outlier is above this many times the mean score; 0: 5 */
    double range;   /**< most that a layer's sparsity differs from the target; 0: 0.08 */
};

/**
 * Reads "uniform", "owl[:M[,RANGE]]" or "damage[:RANGE]". PDVM_ERR_ARGUMENT with the forms.
 */
pdvm_status layer_sparsity_parse(const char *text, struct layer_sparsity_options *out,
                                 pdvm_error *err);

/** Points of a layer's damage curve, evenly spaced from target - range to target + range. */
#define LAYER_SPARSITY_POINTS 9

/** What is measured of one layer, summed over its matrices. */
struct layer_sparsity_measure {
    double outliers; /**< share of scores above `outlier` times the layer's mean score */
    /** Mean over the matrices of ||(W - W') X||^2 / ||W X||^2 (diagonal of the Hessian only) with
     * the least important weights of each row gone. */
    double damage[LAYER_SPARSITY_POINTS];
};

/** One matrix of a layer for layer_sparsity_measure. */
struct layer_sparsity_matrix {
    const float *w; /**< [rows, cols] */
    int64_t rows, cols;
    const double *diagonal; /**< [cols] */
};

/** Measures a layer of n matrices with the scores of Wanda. */
pdvm_status layer_sparsity_measure(const struct layer_sparsity_options *options, double target,
                                   const struct layer_sparsity_matrix *matrices, int n,
                                   struct pd_threads *threads, struct layer_sparsity_measure *out,
                                   pdvm_error *err);

/** Shares the target out: sparsity[n], each in [0, 1), whose mean is the target. */
pdvm_status layer_sparsity_share(const struct layer_sparsity_options *options, double target,
                                 const struct layer_sparsity_measure *measures, uint32_t n,
                                 double *sparsity, pdvm_error *err);

/** Name of a rule. */
const char *layer_sparsity_name(enum layer_sparsity_rule rule);

#endif
