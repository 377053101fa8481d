/** UTF-8 (RFC 3629): decoding one character at a time, checking, writing. */
#ifndef PDVM_BASE_UTF8_H
#define PDVM_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/**
 * Looks at the character that starts at s[0..n), n >= 1. Returns
 * - its length 1..4, and the character in *c;
 * - 0 if the n bytes are the beginning of a character that more bytes could complete;
 * - -k if the first k bytes (1..3) are ill-formed: a "maximal subpart" (Unicode 15, section 3.9,
 *   U+FFFD substitution), which stands for one U+FFFD; *c is then U+FFFD.
 */
int pd_utf8_decode(const char *s, size_t n, uint32_t *c);

/** Offset of the first byte that is not part of a whole, valid character; n if all are valid. */
size_t pd_utf8_check(const char *s, size_t n);

/** Writes character c (at most U+10FFFF, no surrogate) to s[0..4) and returns its length. */
int pd_utf8_encode(uint32_t c, char *s);

#endif
