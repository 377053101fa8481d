/** Beginnings and ends of strings. */
#ifndef PDVM_BASE_TEXT_H
#define PDVM_BASE_TEXT_H

#include <stdbool.h>
#include <string.h>

static inline bool pd_starts_with(const char *s, const char *start) {
    return strncmp(s, start, strlen(start)) == 0;
}

static inline bool pd_ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

#endif
