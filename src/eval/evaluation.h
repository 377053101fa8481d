/**
 * One model on one text: its perplexity and, against saved or simultaneous predictions of another
 * model, its divergence from that.
 */
#ifndef PDVM_EVAL_EVALUATION_H
#define PDVM_EVAL_EVALUATION_H

#include "eval/divergence.h"
#include "eval/logits_file.h"
#include "eval/perplexity.h"

/** What to do with the scored tokens. Zero-initialise: the last three may be NULL. */
struct evaluation_task {
    pdvm_session *session; /**< its contents are replaced */
    const int32_t *tokens; /**< [n] */
    size_t n;
    /** With options.reference, what is measured is compared with that. */
    const struct perplexity_options *options;
    const struct logits_file *base; /**< compared with, in place of options.reference */
    struct logits_writer *save;     /**< gets the logits */
    double *nll;                    /**< [n] out: likelihoods by position, NAN where not scored */
};

/** What came out. */
struct evaluation_result {
    struct perplexity_result perplexity;
    bool compared;
    struct divergence_result divergence; /**< if compared */
    double seconds;
};

/**
 * Runs the evaluation. `base` must have been checked against the same text, tokens and options
 * (logits_file_check). Errors are perplexity_measure's, logits_writer_add's and divergence_add's.
 */
pdvm_status evaluation_run(const struct evaluation_task *task, struct evaluation_result *out,
                           pdvm_error *err);

#endif
