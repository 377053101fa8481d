/**
 * Planning: which matrices of a model to make how sparse and how coarse, so that it fits a size, is
 * fast enough or stays good enough, at the least damage. docs/planner.md explains the method.
 *
 * 1. Each item of a menu of (sparsity, values) is applied to all matrices at once and measured:
 *    bytes, damage (KL divergence from the uncompressed model on the text) and seconds per phase.
 * 2. The damage of each matrix (or group of matrices) alone: all others stay int8.
 * 3. Damages are added up, which is right to first order (Malinovskii et al. 2024, "Pushing the limits
 *    of large language model quantization via the linearity theorem"); how far the sums are from what
 *    was measured for whole models corrects the prediction.
 * 4. The best choice of items is found by dynamic programming (plan/allocation.h), and measured.
 */
#ifndef PDVM_PLAN_PLAN_H
#define PDVM_PLAN_PLAN_H

#include "compress/convert.h"
#include "eval/speed.h"
#include "plan/baseline.h"

/** What is limited; the two others are made as good as possible. */
enum plan_goal {
    PLAN_BUDGET,  /**< bytes of the file: least loss */
    PLAN_SPEED,   /**< tokens per second: least loss */
    PLAN_MAX_LOSS /**< nats of KL divergence: fewest bytes */
};

/** One item of the menu, and the model with all matrices of the layers so. */
struct plan_item {
    double sparsity;
    enum mdcsr_values values;
    uint64_t file_bytes;
    uint64_t layer_bytes;                              /**< of the matrices of the layers */
    double kl, perplexity, perplexity_ratio, same_top; /**< measured */
    double loss_sum;           /**< sum of the losses of its matrices alone */
    struct speed_result speed; /**< measured */
    uint64_t token_bytes;      /**< read for a token */
};

/** Matrices that are decided on together: one role in some consecutive layers. */
struct plan_group {
    enum tensor_role role;
    uint32_t first_layer, n_layers;
    int64_t n_weights;
    double *loss;    /**< [n_items] nats, with only this group so */
    double *bytes;   /**< [n_items] */
    double *seconds; /**< [n_items] per token */
    bool *measured;  /**< [n_items] false: loss follows from another item's (quick) */
};

/** A choice of an item for every group. */
struct plan_point {
    size_t *choice;  /**< [n_groups] */
    double bytes;    /**< of the file, predicted */
    double seconds;  /**< per token, predicted */
    double loss_sum; /**< of the groups' losses */
    double loss;     /**< predicted: the sum, corrected */
    double measured; /**< KL measured; NAN: not */
};

/** What to do. */
struct plan_options {
    enum plan_goal goal;
    double limit;             /**< bytes, tokens per second or nats */
    const double *sparsities; /**< the menu: all combinations with `values` */
    size_t n_sparsities;
    const enum mdcsr_values *values;
    size_t n_values;
    struct convert_options convert;   /**< method, group, embedding, calibration, threads */
    struct baseline_options baseline; /**< how much of the text, threads, kernels, notify */
    uint32_t layers_per_group;        /**< >= 1 */
    bool quick;                       /**< measure two items per group, derive the others */
    size_t n_front;                   /**< points of the front to measure; 0: none */
    size_t speed_tokens;              /**< decoded to measure the speed, >= 1 */
    const char *apply;                /**< file to convert to; NULL: only plan */
};

/** What applying it gave. */
struct plan_applied {
    uint64_t file_bytes;
    double kl, perplexity, perplexity_ratio, same_top;
    double tokens_per_second;
};

/** Everything that was found. Zero-initialise; freed with plan_result_free. */
struct plan_result {
    struct plan_item *items;
    size_t n_items;
    struct plan_group *groups;
    size_t n_groups;
    double fixed_bytes, fixed_seconds; /**< of what is not decided on */
    double exponent, factor;           /**< loss = factor * loss_sum ^ exponent */
    struct perplexity_result reference;
    struct perplexity_options windows;
    uint64_t reference_bytes;
    double bandwidth; /**< read bandwidth of the machine, bytes per second; 0: not measured */
    struct plan_point *front; /**< rising bytes */
    size_t n_front;
    struct plan_point chosen;
    int uniform;    /**< the item that all groups have in `chosen`, or -1 */
    int best_dense; /**< the best item without zeros that keeps the limit, all matrices so, or -1 */
    char **rules;   /**< settings for pdvm convert --layers, one per line of its file */
    size_t n_rules;
    uint64_t n_evaluations;
    bool has_applied;
    struct plan_applied applied;
};

/** Plans for `source` with the calibration text text[0..size), and applies if asked to. */
pdvm_status plan_run(const char *source, const char *text_name, const char *text, size_t size,
                     const struct plan_options *options, struct plan_result *out, pdvm_error *err);

/** Frees what a result holds. */
void plan_result_free(struct plan_result *r);

/** Zeros among the weights of the layers, as a share, that a point asks for. */
double plan_point_zeros(const struct plan_result *r, const struct plan_point *p);

#endif
