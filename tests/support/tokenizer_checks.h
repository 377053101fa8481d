/** Checks of tokenizers against the files of tests/golden/tokenizer-small and against the clock. */
#ifndef PDVM_TESTS_TOKENIZER_CHECKS_H
#define PDVM_TESTS_TOKENIZER_CHECKS_H

#include "model/tokenizer.h"

#include <jansson.h>

/** Time that a text of 1 MB may take: a hundred times what it takes, for slow machines. */
#define GENEROUS_SECONDS 20.0

/** Time of the processor that the program has taken: what others do on the machine is not in it. */
double tokenizer_seconds(void);

/** A file of the golden directory, freed with free(), and the same as JSON. */
char *tokenizer_read_golden(const char *name, size_t *size);
json_t *tokenizer_load_golden(const char *name);

/** Opens a tokenizer.json that was made; fails the test with `name` if that is impossible. */
struct tokenizer *tokenizer_open_made(const json_t *root, const char *name);

/** Calls `fn` with each of the variants that the cases make of a tokenizer.json. */
void tokenizer_each_variant(const char *base_name, const char *cases_name,
                            void (*fn)(struct tokenizer *t, const json_t *variant,
                                       const json_t *texts));

/** Fails the test, telling both, unless a text's ids are these. */
void tokenizer_check_ids(const struct tokenizer *t, const char *name, const json_t *text,
                         unsigned flags, const json_t *ids);

/** Encodes `unit` repeated to 1 MB, with `tail`, within the time. */
void tokenizer_check_speed(const struct tokenizer *t, const char *unit, const char *tail);

#endif
