/**
 * Regular expressions in Oniguruma's syntax, which tokenizer.json files use, rewritten for PCRE2.
 */
#ifndef PDVM_MODEL_TOKENIZER_PATTERN_H
#define PDVM_MODEL_TOKENIZER_PATTERN_H

#include "model/tokenizer_internal.h"

/**
 * Appends to *out what PCRE2 needs to match the same (Oniguruma's doc/RE, "Ruby" syntax;
 * pcre2pattern(3)). Where a construct means the same in both it is copied; \s, \w, \h, \v, \u,
 * \p of a script, {,n} and {n,m}+ are rewritten; what is left (back references, named groups,
 * nested classes, conditionals, verbs, ...) is PDVM_ERR_UNSUPPORTED, quoting it after `where`.
 * A callout is put before each repeated character and into each repeated group: what happens
 * between two callouts is at most one walk over the text, so that whoever counts them bounds the
 * time within one match, which PCRE2's own limits do not.
 */
pdvm_status tokenizer_pattern_translate(const char *where, const char *pattern, size_t len,
                                        struct tokenizer_buffer *out, pdvm_error *err);

#endif
