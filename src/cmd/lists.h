/** Values of options that are lists: "0,0.5,0.7". */
#ifndef PDVM_CMD_LISTS_H
#define PDVM_CMD_LISTS_H

#include "mdcsr/mdcsr.h"

/** Most items of a list. */
#define LISTS_MOST 32

/** Whole numbers. */
struct number_list {
    int64_t items[LISTS_MOST];
    size_t n;
};

/** Shares of zeros. */
struct share_list {
    double items[LISTS_MOST];
    size_t n;
};

/** Value codings. */
struct coding_list {
    enum mdcsr_values items[LISTS_MOST];
    size_t n;
};

/**
 * Calls `take` for each item of "a,b,c". PDVM_ERR_ARGUMENT for empty items, naming the flag; what
 * `take` returns otherwise.
 */
pdvm_status lists_each(const char *flag, const char *list,
                       pdvm_status (*take)(void *user, const char *flag, const char *item,
                                           pdvm_error *err),
                       void *user, pdvm_error *err);

/** PDVM_ERR_ARGUMENT: more than LISTS_MOST items. */
pdvm_status lists_too_many(const char *flag, pdvm_error *err);

/** Whole numbers from 0 to `max`. */
pdvm_status lists_numbers(const char *flag, const char *list, int64_t max, struct number_list *out,
                          pdvm_error *err);

/** Shares of zeros, from 0 to 1. */
pdvm_status lists_shares(const char *flag, const char *list, struct share_list *out,
                         pdvm_error *err);

/** Value codings, by name. */
pdvm_status lists_codings(const char *flag, const char *list, struct coding_list *out,
                          pdvm_error *err);

#endif
