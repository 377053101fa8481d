/**
 * Choosing one item of each group so that the sum of the costs stays within a limit and the sum of
 * the losses is least: the multiple-choice knapsack problem. Solved by dynamic programming over the
 * sums that no other sum beats in both cost and loss (Nemhauser, Ullmann 1969).
 */
#ifndef PDVM_PLAN_ALLOCATION_H
#define PDVM_PLAN_ALLOCATION_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

/** The items of a group; costs and losses are finite and not negative. */
struct allocation_group {
    const double *cost; /**< [n_items] */
    const double *loss; /**< [n_items] */
};

/** All best sums up to a limit. */
struct allocation;

/**
 * Computes them for n >= 1 groups of n_items >= 1 each. Exact while there are few of them; where
 * there are more than 16,384, those of nearly equal cost (1/16,384 of the range) are represented by
 * the one with the least loss, with its true sums. Sums above `limit` are left out; INFINITY keeps
 * all. PDVM_ERR_RANGE if even the cheapest items exceed the limit.
 */
pdvm_status allocation_create(const struct allocation_group *groups, size_t n, size_t n_items,
                              double limit, struct allocation **out, pdvm_error *err);

/**
 * The least loss at a cost of at most `limit`: its items choice[n], its cost and its loss. False if
 * there is none.
 */
bool allocation_best(const struct allocation *a, double limit, size_t *choice, double *cost,
                     double *loss);

/** Frees it. NULL is allowed. */
void allocation_free(struct allocation *a);

#endif
