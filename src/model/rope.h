/** Rotary position embeddings: how config.json describes them, and the frequencies that follow. */
#ifndef PDVM_MODEL_ROPE_H
#define PDVM_MODEL_ROPE_H

#include "io/json.h"
#include "model/config.h"

/**
 * Reads rope_theta, rope_scaling (older transformers) and rope_parameters (newer) of a config.json
 * into config->rope_theta and config->rope_scaling; the architecture and max_position_embeddings
 * are set. PDVM_ERR_UNSUPPORTED for kinds of scaling that are not known, PDVM_ERR_FORMAT for
 * missing or absurd parameters; both name the field. `path` is for messages.
 */
pdvm_status rope_parse(const char *path, const json_t *root, struct model_config *config,
                       pdvm_error *err);

/**
 * The frequencies inv_freq[head_dim / 2] in radians per position, scaled as the configuration
 * says, computed in float32 in the order that transformers (modeling_rope_utils.py) has.
 */
void rope_frequencies(const struct model_config *config, float *inv_freq);

/** What cosines and sines are multiplied by: 1 but for YaRN. */
float rope_attention_factor(const struct model_config *config);

#endif
