/** The shapes of well-known models, without their weights. */
#ifndef PDVM_MODEL_SHAPES_H
#define PDVM_MODEL_SHAPES_H

#include "base/error.h"

#include <stddef.h>

/** Name of the i-th known shape ("tinyllama-1.1b"); NULL past the end. */
const char *shape_name(size_t i);

/**
 * Writes the config.json of a shape into *json (freed with free()). `text` is a known name, or a
 * list like "hidden=1024,layers=8" of the fields hidden, layers (both needed), intermediate, heads,
 * kv-heads, head-dim, vocab, tied (0 or 1) and arch; the others follow from these two.
 * PDVM_ERR_ARGUMENT for anything else, listing what is known. Sizes are not judged here:
 * model_config_parse does that.
 */
pdvm_status shape_config(const char *text, char **json, pdvm_error *err);

#endif
