/**
 * Measuring speed: tokens per second of prompts and of generation, for a set of models, numbers of
 * threads and modes. All combinations take turns within every repetition (A B C A B C ...), because
 * a machine's speed drifts, and between them the machine's read bandwidth is measured with the
 * same threads. docs/benchmark.md says what each figure means.
 */
#ifndef PDVM_EVAL_BENCH_H
#define PDVM_EVAL_BENCH_H

#include "backend/backend.h"
#include "base/machine.h"
#include "base/notify.h"
#include "eval/bench_stats.h"
#include "model/source_synthetic.h"

#include <stddef.h>
#include <stdint.h>

/** Kinds of phases, for the times per kind. */
#define BENCH_N_PHASES (PHASE_HEAD + 1)

/** Modes that --modes compares. */
#define BENCH_N_MODES (PDVM_MODE_UNFUSED + 1)

/** Ways to run a generation: the modes, and `graph` and `sync` of bench_options. */
#define BENCH_N_WAYS (BENCH_N_MODES + 2)

/** A model to measure: a path, or a synthetic one where path is NULL. */
struct bench_model {
    const char *path;                   /**< borrowed */
    struct synthetic_options synthetic; /**< its shape is borrowed */
};

/** What one row measures: a prompt of n_prompt tokens, or n_gen tokens one by one. */
struct bench_test {
    uint32_t n_prompt; /**< 0: generation */
    uint32_t n_gen;
    uint32_t depth; /**< tokens that are in the cache before */
};

/** What to measure and how. Lists are borrowed. */
struct bench_options {
    const struct bench_model *models;
    size_t n_models;
    const struct bench_test *tests;
    size_t n_tests;
    const int *threads; /**< 0: one per available processor */
    size_t n_threads;
    bool all_modes; /**< generation in every mode, not only in `mode` */
    pdvm_mode mode;
    /**
     * Devices: wait for every dispatch, or launch the phases as one graph. With all_modes these are
     * further rows, of mode unfused and phase; otherwise they change how `mode` is run.
     */
    bool sync, graph;
    uint32_t per_launch; /**< tokens that a device computes in a launch where it can; 0: 16 */
    bool phases;         /**< time per phase of the generation rows */
    uint32_t repetitions;
    const char *kernels, *backend, *values; /**< as in pdvm_model_options */
    bool cache_packed;                      /**< the same, for models at a path */
    uint32_t n_batch;                       /**< 0: the default */
    uint32_t prompt_activations;            /**< as in pdvm_session_options */
    pdvm_kv_type type_k, type_v;
    uint64_t seed;
    size_t bandwidth_buffer; /**< bytes that the bandwidth test reads; 0: far beyond the cache */
    struct pd_notify notify; /**< stages "loading" and "measuring" */
};

/** Time and bytes of one kind of phase, per token. */
struct bench_phase {
    double seconds; /**< mean over the samples */
    double bytes;   /**< weights and cache rows read */
};

/** One line of the result. */
struct bench_row {
    size_t model;   /**< index in bench_result.models */
    size_t threads; /**< index in bench_result.bandwidth */
    pdvm_mode mode;
    bool sync, graph; /**< as in bench_options */
    bool on_device;   /**< its bandwidth is the device's */
    struct bench_test test;
    char backend[64]; /**< backend, kernels and threads as the backend describes itself */
    double *samples;  /**< [repetitions] tokens per second; owned */
    double *shares;   /**< [repetitions] of generation: see bench_row_share; owned */
    size_t n_samples;
    double dispatches;  /**< per token; less than 1 where a launch computes several */
    double token_bytes; /**< read for a token: weights, and the mean of the cache; 0 for prompts */
    double barrier;     /**< seconds of a barrier, the mean over the samples; 0: not measured */
    bool has_phases;
    struct bench_phase phases[BENCH_N_PHASES];
};

/** Facts about a model that was measured. */
struct bench_model_info {
    char name[160];  /**< "tinyllama-1.1b int8 50 %" or the path's last part */
    char coding[64]; /**< "int8 50 %", or the kind of file: "pdvm file" */
    char architecture[32];
    bool synthetic;
    double load_seconds;
    pdvm_model_info info;   /**< its strings are NULL: the model is closed */
    double bits_per_weight; /**< of the matrices that a token reads, everything counted */
};

/** The read bandwidth with one number of threads. */
struct bench_bandwidth {
    int threads;
    double *samples; /**< bytes per second; owned */
    size_t n_samples;
};

/** What was measured. Freed with bench_free. */
struct bench_result {
    struct pd_machine machine;
    struct bench_model_info *models;
    size_t n_models;
    struct bench_bandwidth *bandwidth; /**< [n_bandwidth], one per number of threads */
    size_t n_bandwidth;
    struct bench_bandwidth device; /**< the same of the GPU, if one was used; threads is 0 */
    char device_name[64];
    struct bench_row *rows;
    size_t n_rows;
    size_t buffer_size; /**< of the bandwidth test */
    char *notes[16];    /**< what has to be known to read the figures; owned */
    size_t n_notes;
};

/**
 * Measures. Synthetic models that cannot fit the memory are PDVM_ERR_MEMORY before anything is
 * allocated; models that fit only one at a time are measured one after the other, and a note says
 * so. *out is valid for bench_free even on failure.
 */
pdvm_status bench_run(const struct bench_options *options, struct bench_result *out,
                      pdvm_error *err);

/** Frees what a result owns. A zeroed result is allowed. */
void bench_free(struct bench_result *r);

/** "pp512", "tg128 @ d4096" into `buf`; returns it. */
const char *bench_test_name(char buf[48], const struct bench_test *t);

/** "token", "layer", "phase", "unfused". */
const char *bench_mode_name(pdvm_mode mode);

/** How a row is dispatched: its mode's name, or "phase+graph", "unfused+sync" and the like. */
const char *bench_way_name(const struct bench_row *row);

/** The bandwidth that a row is compared with. */
const struct bench_bandwidth *bench_row_bandwidth(const struct bench_result *r,
                                                  const struct bench_row *row);

/** "embed", "qkv", "attn", "out", "gate_up", "down", "head". */
const char *bench_phase_name(enum phase_kind kind);

/** Bytes per second that a row of generation reads, from the median; 0 for prompts. */
double bench_row_rate(const struct bench_row *row);

/**
 * The share of the read bandwidth: the median, over the samples, of the bytes per second that a
 * sample has read divided by the bandwidth measured just before it. Memory that is shared with
 * others changes its speed from second to second, and a quotient of two medians would compare
 * different moments. 0 for prompts.
 */
double bench_row_share(const struct bench_row *row);

#endif
