/**
 * A team of persistent worker threads. The caller of a run is worker 0; the others spin briefly
 * for the next run and then sleep. Inside a run, pd_threads_barrier separates steps.
 */
#ifndef PDVM_BASE_THREADS_H
#define PDVM_BASE_THREADS_H

#include "base/error.h"

#include <stdint.h>

struct pd_threads;

/** One worker's part of a run: worker is in [0, n_workers). */
typedef void (*pd_worker_fn)(void *arg, int worker, int n_workers);

/** One piece of a parallel loop: items [begin, end). */
typedef void (*pd_range_fn)(void *arg, int64_t begin, int64_t end, int worker);

/** Number of processors this process may run on, at least 1. */
int pd_threads_available(void);

/** Starts a team of n workers (the caller included); n <= 0: pd_threads_available(). */
pdvm_status pd_threads_create(int n, struct pd_threads **out, pdvm_error *err);

/** Stops the workers. No run may be in progress. NULL is allowed. */
void pd_threads_free(struct pd_threads *t);

/** Number of workers; 1 for NULL. */
int pd_threads_count(const struct pd_threads *t);

/**
 * Runs fn(arg, worker, n) on every worker and returns when all are done. Runs of several callers
 * take turns. A NULL team runs fn on the caller alone.
 */
void pd_threads_run(struct pd_threads *t, pd_worker_fn fn, void *arg);

/**
 * Waits until every worker of the current run is here; what they wrote before is visible after.
 * Each worker must make the same number of calls. A NULL team returns at once.
 */
void pd_threads_barrier(struct pd_threads *t);

/**
 * Runs fn over [0, n) in pieces of `grain` items, handed out on demand; for work whose result
 * does not depend on the order. Call it outside of runs.
 */
void pd_threads_for(struct pd_threads *t, int64_t n, int64_t grain, pd_range_fn fn, void *arg);

#endif
