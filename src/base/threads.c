#include "base/threads.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "base/cpus.h"
#include "base/time.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

/*
 * How long a waiter spins before it sleeps, in microseconds. A phase of a small model lasts some
 * 10 us, so a waiter that sleeps at once would pay more for waking than for working; between two
 * runs there is the sampler. Sleeping beats sched_yield when other programs want the cores: yielding
 * hands them a whole time slice, a wake-up does not.
 */
#define SPIN_RUN_US 1500
#define SPIN_BARRIER_US 200

/*
 * pd_threads_adapt, in seconds: how long stalls are added up before they are judged, after which
 * pause the sum is stale, and how long a worker sits out, the first time and at most.
 */
#define ADAPT_WINDOW 0.05
#define ADAPT_PAUSE 0.25
#define ADAPT_REST 0.5
#define ADAPT_REST_MAX 8.0

#if defined(__x86_64__) || defined(__i386__)
#define spin_pause() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define spin_pause() __asm__ volatile("yield")
#else
#define spin_pause() ((void)0)
#endif

/* Counters that different workers write live on lines of their own: 128 bytes, because adjacent
 * 64-byte lines are fetched in pairs. */
struct line {
    _Alignas(128) atomic_uint value;
};

/* One thread of a team. */
struct worker {
    /* Pieces that are claimed of the range of the worker with this *number*: the step's tag in the
     * high half, so that nobody has to set it back. */
    _Alignas(128) _Atomic uint64_t claimed;
    _Alignas(128) atomic_uint reached; /* tag of the last step that it has done its part of */
    atomic_uint joined;                /* it takes part in runs after this epoch */
    atomic_int number;                 /* in runs; -1: it sits out */
    bool late;                         /* others sleep waiting for it; under sleep_lock */
    double delay;                      /* seconds that they did; under sleep_lock */
};

struct pd_threads {
    struct line epoch;     /* number of the current run; bumped to start one */
    struct line running;   /* workers that have not finished the current run */
    struct line arrived;   /* workers at the current barrier */
    struct line barriers;  /* barriers passed: waiters watch it change */
    struct line next_item; /* next piece of a pd_threads_for */
    struct line sleepers;  /* waiters that have given up spinning */
    pthread_mutex_t turn;  /* held by the caller of a run */
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    pthread_cond_t recall; /* of those who sit out */
    pd_worker_fn fn;
    void *arg;
    atomic_bool stop;
    bool measuring; /* somebody measures a stall; under sleep_lock */
    double stalled; /* seconds of all stalls; under sleep_lock */
    int n;
    int n_active; /* workers that take part in runs */
    int started;
    int spin_run; /* pauses */
    int spin_barrier;
    double adapted; /* pd_threads_adapt was last called */
    double window;  /* stalls are counted since */
    double retry;   /* everybody is called back */
    double rest;    /* seconds to sit out the next time */
    pthread_t *threads;
    struct worker *workers; /* [n] */
};

/* Which of its team's threads this is. */
static _Thread_local int thread_index;

struct worker_start {
    struct pd_threads *t;
    int index;
};

int pd_threads_available(void) {
    struct pd_cpus cpus;
    pd_cpus_look("", NULL, &cpus);
    return cpus.workers;
}

/* ---- waiting --------------------------------------------------------------------------- */

static int pauses_per_us = 1;

/* A pause takes 10 to 150 cycles, depending on the processor. */
static void measure_pause(void) {
    double best = 1e-6;
    for (int i = 0; i < 3; i++) { /* the shortest: others may be interrupted */
        double start = pd_seconds();
        for (int k = 0; k < 256; k++) spin_pause();
        double seconds = (pd_seconds() - start) / 256;
        if (seconds < best) best = seconds;
    }
    pauses_per_us = best > 1e-9 ? (int)(1e-6 / best) : 1000;
}

/* Names a step of a run: what lies between two barriers, a run's start or its end. No other step
 * of the team has the same, and it stays the same until all workers have reached the step's end. */
static unsigned step_tag(const struct pd_threads *t) {
    return atomic_load_explicit(&t->epoch.value, memory_order_relaxed) +
           atomic_load_explicit(&t->barriers.value, memory_order_relaxed);
}

static void reach_end_of_step(struct pd_threads *t) {
    atomic_store_explicit(&t->workers[thread_index].reached, step_tag(t), memory_order_relaxed);
}

/* Marks the workers that have not reached the end of the step, or books what they have cost. */
static void note_late(struct pd_threads *t, unsigned tag) {
    for (int i = 0; i < t->n; i++) {
        struct worker *w = &t->workers[i];
        w->late = atomic_load_explicit(&w->number, memory_order_relaxed) >= 0 &&
                  atomic_load_explicit(&w->reached, memory_order_relaxed) != tag;
    }
}

static void book_late(struct pd_threads *t, double seconds) {
    t->stalled += seconds;
    for (int i = 0; i < t->n; i++)
        if (t->workers[i].late) t->workers[i].delay += seconds;
}

static void forget_stalls(struct pd_threads *t) {
    t->stalled = 0;
    for (int i = 0; i < t->n; i++) t->workers[i].delay = 0;
}

/*
 * Waits until the counter is no longer `value`. In a step, the first that falls asleep measures
 * how long the late ones let it wait.
 */
static void wait_for_change(struct pd_threads *t, struct line *counter, unsigned value, int spins,
                            bool in_step) {
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&counter->value, memory_order_acquire) != value) return;
        spin_pause();
    }
    pthread_mutex_lock(&t->sleep_lock);
    /* Sequentially consistent, like the change and the look at `sleepers` in notify: at least one
     * side sees the other. */
    atomic_fetch_add(&t->sleepers.value, 1);
    bool measures = in_step && !t->measuring && atomic_load(&counter->value) == value;
    double start = 0;
    if (measures) {
        t->measuring = true;
        note_late(t, step_tag(t));
        start = pd_seconds();
    }
    while (atomic_load(&counter->value) == value) pthread_cond_wait(&t->wake, &t->sleep_lock);
    if (measures) {
        t->measuring = false;
        book_late(t, pd_seconds() - start + 1e-6 * spins / pauses_per_us);
    }
    atomic_fetch_sub(&t->sleepers.value, 1);
    pthread_mutex_unlock(&t->sleep_lock);
}

/* Wakes the sleepers after a counter has changed. */
static void notify(struct pd_threads *t) {
    if (atomic_load(&t->sleepers.value) == 0) return;
    pthread_mutex_lock(&t->sleep_lock);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->sleep_lock);
}

/* ---- the team -------------------------------------------------------------------------- */

static void sit_out(struct pd_threads *t, struct worker *w) {
    pthread_mutex_lock(&t->sleep_lock);
    while (atomic_load(&w->number) < 0 && !atomic_load(&t->stop))
        pthread_cond_wait(&t->recall, &t->sleep_lock);
    pthread_mutex_unlock(&t->sleep_lock);
}

static void *worker_main(void *p) {
    struct worker_start *start = p;
    struct pd_threads *t = start->t;
    thread_index = start->index;
    free(start);
    struct worker *w = &t->workers[thread_index];
    for (unsigned seen = 0;;) {
        wait_for_change(t, &t->epoch, seen, t->spin_run, false);
        if (atomic_load(&t->stop)) return NULL;
        seen = atomic_load_explicit(&t->epoch.value, memory_order_acquire);
        int number = atomic_load_explicit(&w->number, memory_order_relaxed);
        if (number < 0) {
            sit_out(t, w);
            continue;
        }
        /* It may see late that it sat out and is called back: then what it sees is an old run. */
        if ((int)(seen - atomic_load_explicit(&w->joined, memory_order_relaxed)) <= 0) continue;
        t->fn(t->arg, number, t->n_active);
        reach_end_of_step(t);
        atomic_fetch_sub(&t->running.value, 1);
        notify(t);
    }
}

static void start_epoch(struct pd_threads *t) {
    atomic_fetch_add(&t->epoch.value, 1);
    notify(t);
}

static pdvm_status start_workers(struct pd_threads *t, pdvm_error *err) {
    for (int i = 1; i < t->n; i++) {
        struct worker_start *start;
        PD_TRY(pd_calloc(&start, 1, sizeof *start, "a thread", err));
        *start = (struct worker_start){t, i};
        if (pthread_create(&t->threads[i], NULL, worker_main, start) != 0) {
            free(start);
            return pd_fail(err, PDVM_ERR_MEMORY, "cannot start thread %d of %d", i + 1, t->n);
        }
        t->started++;
    }
    return PDVM_OK;
}

pdvm_status pd_threads_create(int n, struct pd_threads **out, pdvm_error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct pd_threads *t;
    *out = NULL;
    struct pd_cpus cpus;
    pd_cpus_look("", NULL, &cpus);
    if (n <= 0) n = cpus.workers;
    if (n > 1024) return pd_fail(err, PDVM_ERR_ARGUMENT, "%d threads: at most 1024", n);
    PD_TRY(pd_alloc_aligned(&t, pd_round_up(sizeof *t, 128), "a thread team", err));
    *t = (struct pd_threads){.n = n, .n_active = n, .started = 1, .rest = ADAPT_REST};
    pthread_mutex_init(&t->turn, NULL);
    pthread_mutex_init(&t->sleep_lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    pthread_cond_init(&t->recall, NULL);
    pthread_once(&once, measure_pause);
    /* With more threads than processors, whom a spinner waits for may wait for its processor. */
    bool crowded = n > cpus.allowed || (cpus.quota > 0 && n > cpus.quota);
    t->spin_run = pauses_per_us * (crowded ? 1 : SPIN_RUN_US);
    t->spin_barrier = pauses_per_us * (crowded ? 1 : SPIN_BARRIER_US);
    pdvm_status status = pd_calloc(&t->threads, (size_t)n, sizeof *t->threads, "threads", err);
    if (status == PDVM_OK)
        status = pd_alloc_aligned(&t->workers, (size_t)n * sizeof *t->workers, "threads", err);
    for (int i = 0; status == PDVM_OK && i < n; i++) t->workers[i] = (struct worker){.number = i};
    if (status == PDVM_OK) status = start_workers(t, err);
    if (status != PDVM_OK) {
        pd_threads_free(t);
        return status;
    }
    *out = t;
    return PDVM_OK;
}

void pd_threads_free(struct pd_threads *t) {
    if (!t) return;
    atomic_store(&t->stop, true);
    start_epoch(t);
    pthread_mutex_lock(&t->sleep_lock);
    pthread_cond_broadcast(&t->recall);
    pthread_mutex_unlock(&t->sleep_lock);
    for (int i = 1; i < t->started; i++) pthread_join(t->threads[i], NULL);
    pthread_cond_destroy(&t->recall);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->sleep_lock);
    pthread_mutex_destroy(&t->turn);
    free(t->workers);
    free(t->threads);
    free(t);
}

int pd_threads_count(const struct pd_threads *t) {
    return t ? t->n : 1;
}

static void run_locked(struct pd_threads *t, pd_worker_fn fn, void *arg) {
    if (t->n_active == 1) {
        fn(arg, 0, 1);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    atomic_store_explicit(&t->running.value, (unsigned)t->n_active - 1, memory_order_relaxed);
    start_epoch(t);
    fn(arg, 0, t->n_active);
    reach_end_of_step(t);
    for (unsigned left; (left = atomic_load(&t->running.value)) != 0;)
        wait_for_change(t, &t->running, left, t->spin_barrier, true);
}

void pd_threads_run(struct pd_threads *t, pd_worker_fn fn, void *arg) {
    if (!t) {
        fn(arg, 0, 1);
        return;
    }
    pthread_mutex_lock(&t->turn);
    run_locked(t, fn, arg);
    pthread_mutex_unlock(&t->turn);
}

void pd_threads_barrier(struct pd_threads *t) {
    if (!t || t->n_active == 1) return;
    unsigned epoch = atomic_load_explicit(&t->barriers.value, memory_order_relaxed);
    reach_end_of_step(t);
    unsigned arrived = atomic_fetch_add_explicit(&t->arrived.value, 1, memory_order_acq_rel) + 1;
    if (arrived == (unsigned)t->n_active) {
        atomic_store_explicit(&t->arrived.value, 0, memory_order_relaxed);
        atomic_store(&t->barriers.value, epoch + 1);
        notify(t);
        return;
    }
    wait_for_change(t, &t->barriers, epoch, t->spin_barrier, true);
}

/* ---- who takes part -------------------------------------------------------------------- */

/* Numbers the workers anew, without that thread; a negative index calls everybody back. */
static void choose_workers(struct pd_threads *t, int without) {
    unsigned epoch = atomic_load(&t->epoch.value);
    t->n_active = 0;
    for (int i = 0; i < t->n; i++) {
        struct worker *w = &t->workers[i];
        bool out = atomic_load(&w->number) < 0;
        if (i == without || (out && without >= 0)) {
            atomic_store(&w->number, -1);
            continue;
        }
        if (out) atomic_store(&w->joined, epoch);
        atomic_store(&w->number, t->n_active++);
    }
    pthread_cond_broadcast(&t->recall);
}

/* The thread that has let the others wait longest. The caller's cannot sit out, but another one can
 * leave it its processor. */
static int slowest(const struct pd_threads *t) {
    int worst = -1;
    for (int i = t->n - 1; i > 0; i--)
        if (atomic_load(&t->workers[i].number) > 0 &&
            (worst < 0 || t->workers[i].delay > t->workers[worst].delay))
            worst = i;
    return worst;
}

static void adapt(struct pd_threads *t, double now) {
    bool stale = now - t->adapted > ADAPT_PAUSE;
    bool full = now - t->window >= ADAPT_WINDOW;
    /* What a worker brings is 1/n at most, and less where memory is the limit. */
    double limit = 0.8 / t->n_active > 0.1 ? 0.8 / t->n_active : 0.1;
    t->adapted = now;
    if (t->n_active < t->n && now >= t->retry) {
        choose_workers(t, -1);
    } else if (stale) {
        /* Loading, or waiting for people: nothing to judge by. */
    } else if (!full) {
        return;
    } else if (t->n_active > 1 && t->stalled > limit * (now - t->window)) {
        t->rest = now - t->retry < 2 * ADAPT_WINDOW + 0.5 ? 2 * t->rest : ADAPT_REST;
        if (t->rest > ADAPT_REST_MAX) t->rest = ADAPT_REST_MAX;
        t->retry = now + t->rest;
        choose_workers(t, slowest(t));
    }
    forget_stalls(t);
    t->window = now;
}

int pd_threads_adapt(struct pd_threads *t) {
    if (!t || t->n == 1) return 1;
    pthread_mutex_lock(&t->turn);
    pthread_mutex_lock(&t->sleep_lock);
    adapt(t, pd_seconds());
    int n = t->n_active;
    pthread_mutex_unlock(&t->sleep_lock);
    pthread_mutex_unlock(&t->turn);
    return n;
}

/* ---- sharing work ---------------------------------------------------------------------- */

/* Where a range is cut, in 64ths: long pieces first, so that there are few; short ones at the end,
 * because the last one to be done is what the others wait for. */
static const uint8_t cuts[] = {0, 8, 16, 24, 32, 40, 46, 52, 56, 60, 62, 63, 64};
#define N_PIECES ((unsigned)(sizeof cuts / sizeof *cuts - 1))

/* The number of a piece of that worker's range that nobody has taken; N_PIECES: there is none. */
static unsigned claim(struct pd_threads *t, int number, unsigned tag) {
    _Atomic uint64_t *claimed = &t->workers[number].claimed;
    uint64_t seen = atomic_load_explicit(claimed, memory_order_relaxed);
    while ((unsigned)(seen >> 32) != tag)
        if (atomic_compare_exchange_weak_explicit(claimed, &seen, (uint64_t)tag << 32 | 1,
                                                  memory_order_relaxed, memory_order_relaxed))
            return 0;
    if ((unsigned)seen >= N_PIECES) return N_PIECES;
    return (unsigned)atomic_fetch_add_explicit(claimed, 1, memory_order_relaxed);
}

struct pd_share pd_share_ranges(struct pd_threads *t, int worker, int n_workers,
                                const int64_t *split, int64_t grain) {
    return (struct pd_share){.threads = t,
                             .split = split,
                             .n = split[n_workers],
                             .grain = grain < 1 ? 1 : grain,
                             .worker = worker,
                             .n_workers = n_workers};
}

struct pd_share pd_share_items(struct pd_threads *t, int worker, int n_workers, int64_t n,
                               int64_t grain) {
    return (struct pd_share){.threads = t,
                             .n = n,
                             .grain = grain < 1 ? 1 : grain,
                             .worker = worker,
                             .n_workers = n_workers};
}

static int64_t range_begin(const struct pd_share *s, int number) {
    return s->split ? s->split[number] : s->n * number / s->n_workers;
}

bool pd_share_next(struct pd_share *s, int64_t *begin, int64_t *end) {
    if (s->n_workers == 1) {
        *begin = s->helped++ == 0 ? 0 : s->n;
        *end = s->n;
        return *begin < *end;
    }
    unsigned tag = step_tag(s->threads);
    while (s->helped < s->n_workers) {
        int number = (s->worker + s->helped) % s->n_workers;
        int64_t first = range_begin(s, number), n = range_begin(s, number + 1) - first;
        unsigned piece;
        while ((piece = claim(s->threads, number, tag)) < N_PIECES) {
            *begin = first + n * cuts[piece] / 64 / s->grain * s->grain;
            *end = first +
                   (piece + 1 == N_PIECES ? n : n * cuts[piece + 1] / 64 / s->grain * s->grain);
            if (*begin < *end) return true;
        }
        /* In large teams looking at everybody would take longer than it brings: neighbours at
         * distances that are powers of two. */
        s->helped += s->n_workers <= 8 || s->helped == 0 ? 1 : s->helped;
    }
    return false;
}

/* ---- loops ----------------------------------------------------------------------------- */

struct loop {
    struct pd_threads *t;
    int64_t n;
    int64_t grain;
    pd_range_fn fn;
    void *arg;
};

static void loop_worker(void *p, int worker, int n_workers) {
    struct loop *loop = p;
    (void)n_workers;
    for (;;) {
        int64_t piece =
            atomic_fetch_add_explicit(&loop->t->next_item.value, 1, memory_order_relaxed);
        int64_t begin = piece * loop->grain;
        if (begin >= loop->n) return;
        int64_t end = begin + loop->grain;
        loop->fn(loop->arg, begin, end < loop->n ? end : loop->n, worker);
    }
}

void pd_threads_for(struct pd_threads *t, int64_t n, int64_t grain, pd_range_fn fn, void *arg) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    if (!t || t->n == 1 || n <= grain) {
        for (int64_t i = 0; i < n; i += grain) fn(arg, i, i + grain < n ? i + grain : n, 0);
        return;
    }
    /* The piece counter is 32 bits wide. */
    while (n / grain >= INT32_MAX) grain *= 2;
    struct loop loop = {t, n, grain, fn, arg};
    pthread_mutex_lock(&t->turn);
    atomic_store_explicit(&t->next_item.value, 0, memory_order_relaxed);
    run_locked(t, loop_worker, &loop);
    pthread_mutex_unlock(&t->turn);
}
