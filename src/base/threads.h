/**
 * A team of persistent worker threads. The caller of a run is worker 0; the others spin briefly
 * for the next run and then sleep. Inside a run, pd_threads_barrier separates steps, and within a
 * step pd_share deals out work so that a slow worker is helped by the others.
 */
#ifndef PDVM_BASE_THREADS_H
#define PDVM_BASE_THREADS_H

#include "base/error.h"

#include <stdint.h>

struct pd_threads;

/** One worker's part of a run: worker is in [0, n_workers), n_workers at most the team's count. */
typedef void (*pd_worker_fn)(void *arg, int worker, int n_workers);

/** One piece of a parallel loop: items [begin, end). */
typedef void (*pd_range_fn)(void *arg, int64_t begin, int64_t end, int worker);

/** Workers that a team has by default: see pd_cpus_look. At least 1. */
int pd_threads_available(void);

/** Starts a team of n workers (the caller included); n <= 0: pd_threads_available(). */
pdvm_status pd_threads_create(int n, struct pd_threads **out, pdvm_error *err);

/** Stops the workers. No run may be in progress. NULL is allowed. */
void pd_threads_free(struct pd_threads *t);

/** Number of workers; 1 for NULL. */
int pd_threads_count(const struct pd_threads *t);

/**
 * Runs fn(arg, worker, n) on every worker that takes part (all, unless pd_threads_adapt says
 * otherwise) and returns when all are done. Runs of several callers take turns. A NULL team runs fn
 * on the caller alone.
 */
void pd_threads_run(struct pd_threads *t, pd_worker_fn fn, void *arg);

/**
 * Waits until every worker of the current run is here; what they wrote before is visible after.
 * Each worker must make the same number of calls. A NULL team returns at once.
 */
void pd_threads_barrier(struct pd_threads *t);

/**
 * To be called now and then between runs: returns how many workers take part in the runs that
 * follow, until the next call. A worker whose processor belongs to somebody else for much of the
 * time stops all others at every barrier; once it costs more than it brings, it sits out, and is
 * given another chance after a while. Whom to leave out is told by the time that others have slept
 * at barriers, so this costs a look at the clock. NULL: 1.
 */
int pd_threads_adapt(struct pd_threads *t);

/**
 * One worker's view of the work of a step. The items are cut into one range per worker, and ranges
 * into a few pieces; each worker takes pieces of its own range, in order, and then of the others'.
 * Between two barriers there may be one such loop:
 *
 *     struct pd_share s = pd_share_items(t, worker, n_workers, n, 1);
 *     for (int64_t begin, end; pd_share_next(&s, &begin, &end);) ...
 */
struct pd_share {
    struct pd_threads *threads;
    const int64_t *split;
    int64_t n;
    int64_t grain;
    int worker;
    int n_workers;
    int helped; /**< distance to the worker whose range is being worked on */
};

/**
 * Items in ranges [split[i], split[i + 1]) for worker i, split[0] == 0; `split` is borrowed. Pieces
 * have at least `grain` items and, seen from the range's beginning, multiples of it.
 */
struct pd_share pd_share_ranges(struct pd_threads *t, int worker, int n_workers,
                                const int64_t *split, int64_t grain);

/** Items [0, n) in ranges of equal length. */
struct pd_share pd_share_items(struct pd_threads *t, int worker, int n_workers, int64_t n,
                               int64_t grain);

/** The next piece for this worker; false: none is left, though others may still be at theirs. */
bool pd_share_next(struct pd_share *s, int64_t *begin, int64_t *end);

/**
 * Runs fn over [0, n) in pieces of `grain` items, handed out on demand; for work whose result
 * does not depend on the order. Call it outside of runs.
 */
void pd_threads_for(struct pd_threads *t, int64_t n, int64_t grain, pd_range_fn fn, void *arg);

#endif
