/** What is done to each matrix of a model: the general settings and the exceptions from them. */
#ifndef PDVM_COMPRESS_SETTINGS_H
#define PDVM_COMPRESS_SETTINGS_H

#include "mdcsr/mdcsr.h"
#include "model/tensors.h"

/** Marks a setting that was not given. */
#define SETTING_UNSET (-1)

/** Settings as given: each may be unset. */
struct settings {
    int values;      /**< enum mdcsr_values */
    int codebook;    /**< enum mdcsr_codebook */
    int index;       /**< enum mdcsr_index, or SETTING_INDEX_AUTO */
    int group;       /**< columns per scale; 0: one scale per row */
    double sparsity; /**< negative: unset */
};

/** The value of settings.index that chooses the smallest. */
#define SETTING_INDEX_AUTO ((int)MDCSR_N_INDEX)

/** Columns per scale of LUT4 where nothing else was asked for. */
#define SETTING_LUT4_GROUP 64

/** All unset. */
struct settings settings_none(void);

/** Settings for the tensors that a pattern names. */
struct settings_rule {
    const char *text; /**< as given, for messages; borrowed */
    char *pattern;    /**< shell pattern for tensor names, or a role's short name */
    struct settings set;
};

/** Everything that was asked for. */
struct settings_plan {
    struct settings general;
    int embed; /**< enum mdcsr_values of embedding and head, or SETTING_UNSET: int8 */
    struct settings_rule *rules; /**< the last that matches wins, setting by setting */
    size_t n_rules;
    char *file; /**< text of settings_add_file, which its rules borrow */
};

/** What becomes of one matrix. */
struct settings_matrix {
    struct mdcsr_options coding;
    double sparsity; /**< to prune to; 0: leave it as it is */
};

/**
 * Adds a rule "PATTERN=SETTING,..." with settings values=, codebook=, index=, group=, sparsity=.
 * PDVM_ERR_ARGUMENT with an example if it makes no sense. `text` is borrowed by the plan.
 */
pdvm_status settings_add_rule(struct settings_plan *plan, const char *text, pdvm_error *err);

/**
 * Adds the rules of a text file, one a line; empty lines and lines that begin with # are passed over.
 * PDVM_ERR_ARGUMENT with file and line if one makes no sense, and for a second file.
 */
pdvm_status settings_add_file(struct settings_plan *plan, const char *path, pdvm_error *err);

/** Frees the rules. */
void settings_free(struct settings_plan *plan);

/**
 * Checks the plan against a model: every rule must match a matrix, and nothing may be asked for
 * that could have no effect (a codebook for int8, pruning of the embedding, ...).
 */
pdvm_status settings_check(const struct settings_plan *plan, const struct model_config *config,
                           pdvm_error *err);

/**
 * What to do with a matrix. Embedding and head take `embed` instead of the general settings, and
 * are never pruned; rules may change their coding.
 */
void settings_for(const struct settings_plan *plan, const struct tensor_info *tensor,
                  struct settings_matrix *out);

#endif
