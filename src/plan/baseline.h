/**
 * What compressed forms of a model are compared with: a text cut into windows, and the uncompressed
 * model's predictions of it, computed once and kept in a temporary file.
 */
#ifndef PDVM_PLAN_BASELINE_H
#define PDVM_PLAN_BASELINE_H

#include "engine/engine.h"
#include "eval/evaluation.h"
#include "eval/speed.h"

/** Which part of a text is used, and how. */
struct baseline_options {
    enum perplexity_protocol protocol;
    uint32_t n_ctx;      /**< 0: 512, for PERPLEXITY_PAPERS 2048, or the model's context */
    uint32_t stride;     /**< SLIDING; 0: half of n_ctx */
    size_t max_tokens;   /**< of the text's beginning; 0: all */
    size_t n_windows;    /**< > 0: only so many windows, spread over the text's second half */
    const char *kernels; /**< as pdvm_model_options.kernels */
    int n_threads;
    struct pd_notify notify; /**< stages "loading", "evaluating"; may cancel */
};

/** Zero-initialise; released with baseline_close also after a failure. */
struct baseline {
    struct baseline_options options;
    char *dir;  /**< temporary, also for the caller's files */
    char *path; /**< of the source; owned */
    struct token_list tokens;
    struct perplexity_options windows;
    pdvm_model *model; /**< the uncompressed model; see baseline_drop_model */
    struct logits_file *logits;
    struct perplexity_result perplexity; /**< of the uncompressed model */
    uint64_t text_hash;
};

/**
 * Opens the source with its own precision, cuts text[0..size) into tokens and windows and saves the
 * predictions. `name` stands for the text in messages.
 */
pdvm_status baseline_open(struct baseline *b, const char *source, const char *name,
                          const char *text, size_t size, const struct baseline_options *options,
                          pdvm_error *err);

/** Closes the uncompressed model, where it is no longer needed. */
void baseline_drop_model(struct baseline *b);

/** Opens another model of the same family, with the baseline's threads and kernels. */
pdvm_status baseline_open_model(const struct baseline *b, const char *path, pdvm_model **out,
                                pdvm_error *err);

/** Measures a model against the uncompressed model's predictions. */
pdvm_status baseline_measure(const struct baseline *b, pdvm_model *model,
                             const struct pd_notify *notify, struct evaluation_result *out,
                             pdvm_error *err);

/**
 * Saves another model's predictions as file `name` of the temporary directory, and opens them;
 * released with logits_file_close.
 */
pdvm_status baseline_predict(const struct baseline *b, pdvm_model *model, const char *name,
                             const struct pd_notify *notify, struct logits_file **out,
                             struct perplexity_result *perplexity, pdvm_error *err);

/** Measures a model against predictions that baseline_predict saved. */
pdvm_status baseline_compare(const struct baseline *b, pdvm_model *model,
                             const struct logits_file *predictions, const struct pd_notify *notify,
                             struct evaluation_result *out, pdvm_error *err);

/** Times a model decoding the text's first n tokens, or all where it has fewer; see speed_measure. */
pdvm_status baseline_speed(const struct baseline *b, pdvm_model *model, size_t n,
                           struct speed_result *out, pdvm_error *err);

/** Releases everything and removes the temporary directory with all files in it. */
void baseline_close(struct baseline *b);

#endif
