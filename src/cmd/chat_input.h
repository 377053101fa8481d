/** Lines from a person at a terminal (with editing and history, by libedit), or from a pipe. */
#ifndef PDVM_CMD_CHAT_INPUT_H
#define PDVM_CMD_CHAT_INPUT_H

#include "base/error.h"

#include <stdbool.h>

struct chat_input;

/** What chat_input_line found. */
enum chat_line { CHAT_LINE, CHAT_LINE_END, CHAT_LINE_INTERRUPTED };

/** Starts reading standard input. Editing needs a terminal on both sides. */
pdvm_status chat_input_open(struct chat_input **out, pdvm_error *err);

/** Frees it. NULL is allowed. */
void chat_input_close(struct chat_input *in);

/** Whether a person sits there: prompts and hints make sense. */
bool chat_input_is_terminal(const struct chat_input *in);

/**
 * Waits for a line. *line has no newline at its end and is valid until the next call.
 * CHAT_LINE_INTERRUPTED: a signal came (terminal_interrupted()); *had_text tells whether the line
 * that it stopped had text.
 */
enum chat_line chat_input_line(struct chat_input *in, const char **line, bool *had_text);

#endif
