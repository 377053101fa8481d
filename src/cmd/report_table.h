/** The tables and the picture that convert and inspect print of a report. */
#ifndef PDVM_CMD_REPORT_TABLE_H
#define PDVM_CMD_REPORT_TABLE_H

#include "compress/report.h"

#include <stdio.h>

/** Prints one line per kind of layer and the total: weights, zeros, size, errors and codings. */
void print_report_table(FILE *f, const struct report *r);

/** How to draw the picture. */
struct picture_style {
    bool ascii;  /**< no block characters */
    bool colors; /**< ANSI colours */
};

/**
 * Draws the share of zeros of each matrix: a line per layer, a column per kind of layer, darker
 * where more is zero.
 */
void print_sparsity_picture(FILE *f, const struct report *r, uint32_t n_layers,
                            const struct picture_style *style);

#endif
