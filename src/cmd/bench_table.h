/** The tables that bench prints. */
#ifndef PDVM_CMD_BENCH_TABLE_H
#define PDVM_CMD_BENCH_TABLE_H

#include "eval/bench.h"
#include "eval/bench_json.h"
#include "eval/pdvm_table.h"

#include <stdio.h>

/**
 * Prints the result as Markdown: llama-bench's columns and ours, then the read bandwidth, the times
 * per phase where they were measured, and the notes.
 */
void print_bench_markdown(FILE *f, const struct bench_result *r, const struct bench_context *c);

/** Prints the comparison of the PDVM document as Markdown. */
void print_pdvm_table(FILE *f, const struct pdvm_table *t, const struct bench_context *c);

/** Prints one line of comma-separated values per row, with a header. */
void print_bench_csv(FILE *f, const struct bench_result *r, const struct bench_context *c);

/** Prints what has changed since an older result, as Markdown. */
void print_bench_comparison(FILE *f, const struct bench_comparison *c, const char *path);

#endif
