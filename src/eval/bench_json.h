/** Results of benchmarks as JSON, and comparing two of them. */
#ifndef PDVM_EVAL_BENCH_JSON_H
#define PDVM_EVAL_BENCH_JSON_H

#include "eval/bench.h"
#include "io/json.h"

/** What the "format" field says; files of another format are refused. */
#define BENCH_JSON_FORMAT "pdvm-bench-1"

/** What a result does not know of itself. Strings are borrowed and must be UTF-8. */
struct bench_context {
    const char *version;
    const char *commit;
    const char *command;
    const char *date; /**< ISO 8601, UTC */
    uint32_t repetitions;
    uint64_t seed;
};

/** The whole result; docs/benchmark.md describes the fields. NULL: out of memory. */
json_t *bench_to_json(const struct bench_result *r, const struct bench_context *c);

/** One row that both results have. Strings belong to the JSON of the newer result. */
struct bench_change {
    const char *model, *test, *mode;
    int threads;
    double before, now; /**< medians, tokens per second */
};

/** What has changed. Freed with bench_comparison_free. */
struct bench_comparison {
    struct bench_change *changes;
    size_t n_changes;
    size_t n_new;           /**< rows that only the newer result has */
    size_t n_missing;       /**< rows that only the older one has */
    char warnings[16][256]; /**< why the figures may not be comparable */
    size_t n_warnings;
};

/**
 * Compares `now` with the older result `before` (from the file `path`, any contents): rows of the
 * same model, test, mode and number of threads. PDVM_ERR_FORMAT if `before` is no result of bench.
 */
pdvm_status bench_compare(const json_t *now, const char *path, const json_t *before,
                          struct bench_comparison *out, pdvm_error *err);

/** Frees what it owns. */
void bench_comparison_free(struct bench_comparison *c);

#endif
