/** Orders for qsort and bsearch. */
#ifndef PDVM_BASE_SORT_H
#define PDVM_BASE_SORT_H

/** Two doubles, ascending; they must not be NaN. */
static inline int pd_compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#endif
