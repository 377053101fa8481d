/**
 * Files of results that grow line by line, so that a long series of measurements can be stopped and
 * taken up again: each line is a JSON object with a "key" that says what was measured.
 */
#ifndef PDVM_PLAN_RESULTS_FILE_H
#define PDVM_PLAN_RESULTS_FILE_H

#include "io/json.h"

struct results_file;

/**
 * Opens a file for reading and appending; it is created if it does not exist. Lines that are no
 * JSON object with a key (such as one that was cut off by a crash) are passed over.
 */
pdvm_status results_file_open(const char *path, struct results_file **out, pdvm_error *err);

/** The last object with this key, or NULL. Borrowed. */
const json_t *results_file_find(const struct results_file *f, const char *key);

/** Appends an object under a key, and flushes it. Takes the reference, also on failure. */
pdvm_status results_file_append(struct results_file *f, const char *key, json_t *object,
                                pdvm_error *err);

/** Closes it. NULL is allowed. */
void results_file_close(struct results_file *f);

#endif
