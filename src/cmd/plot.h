/** Scatter plots of a few points: with letters for a terminal, and as SVG. */
#ifndef PDVM_CMD_PLOT_H
#define PDVM_CMD_PLOT_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/** Points that belong together. Points that are not finite, or not positive in y, are left out. */
struct plot_series {
    const char *name;
    const char *color; /**< as SVG knows it */
    char mark;         /**< for the terminal; later series cover earlier ones */
    bool line;         /**< SVG: join the points */
    const double *x, *y;
    size_t n;
};

/** One panel; y is logarithmic. */
struct plot {
    const char *title, *x_label, *y_label;
    const struct plot_series *series;
    size_t n_series;
};

/** Prints a panel with `width` columns (at least 40) and 16 lines. Nothing if there are no points. */
void plot_print(FILE *f, const struct plot *p, int width);

/** Writes panels side by side as an SVG file, which appears when it is complete. */
pdvm_status plot_write_svg(const char *path, const struct plot *panels, size_t n, pdvm_error *err);

#endif
