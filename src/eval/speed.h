/** How fast an open model decodes, phase by phase: what plans and tables of models need of it. */
#ifndef PDVM_EVAL_SPEED_H
#define PDVM_EVAL_SPEED_H

#include "backend/backend.h"

/** Number of kinds of phases. */
#define SPEED_N_PHASES (PHASE_HEAD + 1)

/** What was measured, in seconds per token: medians over the tokens. */
struct speed_result {
    double token;                  /**< a whole step */
    double phases[SPEED_N_PHASES]; /**< by enum phase_kind, summed over the layers */
    double rest;                   /**< of a step, outside of phases */
};

/**
 * Decodes tokens[0..n) one by one, n >= 1, after the same tokens as a prompt, for which the model's
 * context must have room (2 n). The prompt also serves to warm up.
 */
pdvm_status speed_measure(pdvm_model *model, const int32_t *tokens, size_t n,
                          struct speed_result *out, pdvm_error *err);

#endif
