#include "base/threads.h"

#include "base/alloc.h"
#include "base/checked.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/*
 * How long a waiter spins before it sleeps. A phase of a small model lasts some 10 us, so a waiter
 * that sleeps at once would pay more for waking than for working. Sleeping beats sched_yield when
 * other programs want the cores: yielding hands them a whole time slice, a wake-up does not.
 */
#define SPIN_RUN 20000
#define SPIN_BARRIER 4000

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
    pd_worker_fn fn;
    void *arg;
    bool stop;
    int n;
    int started;
    pthread_t *threads;
};

struct worker_start {
    struct pd_threads *t;
    int worker;
};

int pd_threads_available(void) {
    int n = 0;
#ifdef __linux__
    cpu_set_t set; /* fewer than online in a container or under taskset */
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
    if (n < 1) n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n;
}

/* Waits until the counter is no longer `value`. */
static void wait_for_change(struct pd_threads *t, struct line *counter, unsigned value, int spins) {
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&counter->value, memory_order_acquire) != value) return;
        spin_pause();
    }
    pthread_mutex_lock(&t->sleep_lock);
    /* Sequentially consistent, like the change and the look at `sleepers` in notify: at least one
     * side sees the other. */
    atomic_fetch_add(&t->sleepers.value, 1);
    while (atomic_load(&counter->value) == value) pthread_cond_wait(&t->wake, &t->sleep_lock);
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

static void *worker_main(void *p) {
    struct worker_start *start = p;
    struct pd_threads *t = start->t;
    int worker = start->worker;
    free(start);
    for (unsigned seen = 0;; seen++) {
        wait_for_change(t, &t->epoch, seen, SPIN_RUN);
        if (t->stop) return NULL;
        t->fn(t->arg, worker, t->n);
        atomic_fetch_sub(&t->running.value, 1);
        notify(t);
    }
}

static void start_epoch(struct pd_threads *t) {
    atomic_fetch_add(&t->epoch.value, 1);
    notify(t);
}

pdvm_status pd_threads_create(int n, struct pd_threads **out, pdvm_error *err) {
    struct pd_threads *t;
    *out = NULL;
    if (n <= 0) n = pd_threads_available();
    if (n > 1024) return pd_fail(err, PDVM_ERR_ARGUMENT, "%d threads: at most 1024", n);
    PD_TRY(pd_alloc_aligned(&t, pd_round_up(sizeof *t, 128), "a thread team", err));
    *t = (struct pd_threads){.n = n};
    pdvm_status status = pd_calloc(&t->threads, (size_t)n, sizeof *t->threads, "threads", err);
    if (status != PDVM_OK) {
        free(t);
        return status;
    }
    pthread_mutex_init(&t->turn, NULL);
    pthread_mutex_init(&t->sleep_lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    t->started = 1;
    for (int i = 1; i < n; i++) {
        struct worker_start *start = malloc(sizeof *start);
        if (start) *start = (struct worker_start){t, i};
        if (!start || pthread_create(&t->threads[i], NULL, worker_main, start) != 0) {
            free(start);
            t->n = t->started;
            pd_threads_free(t);
            return pd_fail(err, PDVM_ERR_MEMORY, "cannot start thread %d of %d", i + 1, n);
        }
        t->started++;
    }
    *out = t;
    return PDVM_OK;
}

void pd_threads_free(struct pd_threads *t) {
    if (!t) return;
    t->stop = true;
    start_epoch(t);
    for (int i = 1; i < t->started; i++) pthread_join(t->threads[i], NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->sleep_lock);
    pthread_mutex_destroy(&t->turn);
    free(t->threads);
    free(t);
}

int pd_threads_count(const struct pd_threads *t) {
    return t ? t->n : 1;
}

static void run_locked(struct pd_threads *t, pd_worker_fn fn, void *arg) {
    if (t->n == 1) {
        fn(arg, 0, 1);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    atomic_store_explicit(&t->running.value, (unsigned)t->n - 1, memory_order_relaxed);
    start_epoch(t);
    fn(arg, 0, t->n);
    for (unsigned left; (left = atomic_load(&t->running.value)) != 0;)
        wait_for_change(t, &t->running, left, SPIN_BARRIER);
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
    if (!t || t->n == 1) return;
    unsigned epoch = atomic_load_explicit(&t->barriers.value, memory_order_relaxed);
    unsigned arrived = atomic_fetch_add_explicit(&t->arrived.value, 1, memory_order_acq_rel) + 1;
    if (arrived == (unsigned)t->n) {
        atomic_store_explicit(&t->arrived.value, 0, memory_order_relaxed);
        atomic_store(&t->barriers.value, epoch + 1);
        notify(t);
        return;
    }
    wait_for_change(t, &t->barriers, epoch, SPIN_BARRIER);
}

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
