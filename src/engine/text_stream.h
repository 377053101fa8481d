/**
 * From the bytes of tokens to text for people: whole UTF-8 characters only, and nothing of a stop
 * string. How the bytes are cut into tokens makes no difference to the text.
 */
#ifndef PDVM_ENGINE_TEXT_STREAM_H
#define PDVM_ENGINE_TEXT_STREAM_H

#include "pdvm.h"

#include <stdbool.h>
#include <stddef.h>

struct text_stream;

/**
 * Makes a stream that gives its text to `on_text` (may be NULL). The stop strings are copied;
 * an empty one, or one that is not valid UTF-8, is PDVM_ERR_ARGUMENT.
 */
pdvm_status text_stream_create(const char *const *stop, size_t n_stop, pdvm_text_fn on_text,
                               void *user, struct text_stream **out, pdvm_error *err);

/** Frees it. NULL is allowed. */
void text_stream_free(struct text_stream *t);

/**
 * Takes the next bytes and emits what is decided: not the beginning of a character that is not
 * whole yet, and not what may be the beginning of a stop string. Ill-formed bytes come out as one
 * U+FFFD for each maximal subpart (Unicode 15, section 3.9). Once a stop string is complete, the
 * text before it is emitted and everything after is dropped; of several that end with the same
 * byte the longest counts. Nothing is taken after a stop or once on_text returned false.
 */
pdvm_status text_stream_feed(struct text_stream *t, const char *bytes, size_t n, pdvm_error *err);

/** Emits what was held back, with U+FFFD for an unfinished character. */
pdvm_status text_stream_finish(struct text_stream *t, pdvm_error *err);

/** Whether a stop string was seen. */
bool text_stream_stopped(const struct text_stream *t);

/** Whether on_text returned false. */
bool text_stream_cancelled(const struct text_stream *t);

#endif
