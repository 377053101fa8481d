#include "emulator/emulator.h"

#include "base/random.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#endif

#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef WITH_TSAN
#include <sanitizer/tsan_interface.h>
#define NO_TSAN __attribute__((no_sanitize("thread")))
#define RELEASE(tag) __tsan_release(tag)
#define ACQUIRE(tag) __tsan_acquire(tag)
#else
#define NO_TSAN
#define RELEASE(tag) ((void)(tag))
#define ACQUIRE(tag) ((void)(tag))
#endif

#define LANES 32
#define STACK ((size_t)256 << 10)

/* ---- switching stacks --------------------------------------------------------------------- */

#if defined(__x86_64__)
typedef void *context;
/* Saves what a call preserves, and goes on where `load` was saved. */
void emu_switch(context *save, context load);
__asm__(".text\n"
        ".globl emu_switch\n"
        ".hidden emu_switch\n"
        ".type emu_switch, @function\n"
        "emu_switch:\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, (%rdi)\n"
        "  mov %rsi, %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
        "  ret\n"
        ".size emu_switch, .-emu_switch\n");
static void context_make(context *c, char *stack, size_t size, void (*fn)(void)) {
    void **sp = (void **)(void *)(stack + size - 64);
    *--sp = NULL; /* keeps the stack aligned as after a call */
    *--sp = (void *)(uintptr_t)fn;
    for (int i = 0; i < 6; i++) *--sp = NULL;
    *c = sp;
}
static void context_switch(context *from, context *to) {
    emu_switch(from, *to);
}
#else
#include <ucontext.h>
typedef ucontext_t context;
static void context_make(context *c, char *stack, size_t size, void (*fn)(void)) {
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = size;
    c->uc_link = NULL;
    makecontext(c, fn, 0);
}
static void context_switch(context *from, context *to) {
    swapcontext(from, to);
}
#endif

/* ---- threads and groups ------------------------------------------------------------------- */

enum state { READY, AT_SYNC, AT_LANES, DONE };

struct thread {
    struct emu_self self;
    struct group *group;
    context at;
    char *stack;
    enum state state;
    enum emu_lane_op op;
    uint32_t value, arg;
    uint32_t syncs;
    uint32_t turn; /* lane exchanges so far: results alternate between two places */
#ifdef WITH_ASAN
    void *fake_stack;
#endif
#ifdef WITH_TSAN
    void *tsan;
#endif
};

struct copy {
    uint8_t *dst;
    const uint8_t *src;
    uint32_t bytes;
    uint64_t *barrier;
};

#define MAX_COPIES 256

struct group {
    struct launch *launch;
    uint32_t block;
    struct thread *threads;
    struct thread *running;
    context scheduler;
    uint32_t *results; /* [2][n_threads] of lane exchanges */
    uint8_t *shared;
    uint64_t random;
    struct copy copies[MAX_COPIES];
    uint32_t n_copies;
    char sync_tag;   /* what TSan is told about */
    char *lane_tags; /* [warps] */
#ifdef WITH_ASAN
    void *fake_stack;
    const void *stack_bottom;
    size_t stack_size;
#endif
#ifdef WITH_TSAN
    void *tsan;
#endif
};

struct launch {
    emu_kernel kernel;
    const uint8_t *w;
    uint8_t *g;
    uint8_t *k;
    const struct gpu_launch *p;
    const struct emu_grid *grid;
    atomic_int failed;
    char message[256];
    atomic_uint syncs;
};

/* At a fixed place: ThreadSanitizer takes the dynamic one for written by whoever finds it first. */
static _Thread_local __attribute__((tls_model("initial-exec"))) struct group *current;
static char last_message[256];
static uint32_t last_syncs;

NO_TSAN static void fail(struct launch *l, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

NO_TSAN static void fail(struct launch *l, const char *fmt, ...) {
    if (atomic_exchange(&l->failed, 1)) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(l->message, sizeof l->message, fmt, args);
    va_end(args);
}

/* The group's next random number. A copy of the state, since pd_random is not left out of TSan. */
NO_TSAN static uint64_t chance(struct group *g) {
    uint64_t state = g->random, number = pd_random(&state);
    g->random = state;
    return number;
}

NO_TSAN static void to_scheduler(bool for_ever) {
    struct group *g = current;
    struct thread *t = g->running;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(for_ever ? NULL : &t->fake_stack, g->stack_bottom,
                                   g->stack_size);
#endif
#ifdef WITH_TSAN
    __tsan_switch_to_fiber(g->tsan, __tsan_switch_to_fiber_no_sync);
#endif
    (void)for_ever;
    context_switch(&t->at, &g->scheduler);
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(t->fake_stack, &g->stack_bottom, &g->stack_size);
#endif
}

NO_TSAN static void to_thread(struct group *g, struct thread *t) {
    g->running = t;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(&g->fake_stack, t->stack, STACK);
#endif
#ifdef WITH_TSAN
    __tsan_switch_to_fiber(t->tsan, __tsan_switch_to_fiber_no_sync);
#endif
    context_switch(&g->scheduler, &t->at);
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(g->fake_stack, NULL, NULL);
#endif
}

NO_TSAN static void thread_main(void) {
    struct group *g = current;
    struct launch *l = g->launch;
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(NULL, &g->stack_bottom, &g->stack_size);
#endif
    l->kernel(l->w, l->g, l->k, *l->p);
    g->running->state = DONE;
    RELEASE(l); /* what comes after the launch */
    to_scheduler(true);
    abort();
}

NO_TSAN const struct emu_self *emu_self(void) {
    return &current->running->self;
}

NO_TSAN _Noreturn void emu_give_up(const char *message) {
    fail(current->launch, "%s (block %u, thread %u)", message, current->block,
         current->running->self.thread);
    for (;;) to_scheduler(false);
}

/* ---- meeting ------------------------------------------------------------------------------- */

NO_TSAN void emu_sync(void) {
    struct thread *t = current->running;
    const struct emu_grid *grid = current->launch->grid;
    if (t->syncs++ == grid->fault_at && grid->fault == EMU_SKIP_SYNC) return;
    RELEASE(&current->sync_tag);
    t->state = AT_SYNC;
    to_scheduler(false);
    ACQUIRE(&current->sync_tag);
}

NO_TSAN static void finish_lanes(struct group *g, uint32_t warp) {
    struct thread *lanes = g->threads + (size_t)warp * LANES;
    uint32_t *results = g->results + (lanes[0].turn & 1) * g->launch->grid->n_threads;
    uint32_t ballot = 0;
    for (uint32_t i = 0; i < LANES; i++) {
        if (lanes[i].state != AT_LANES) return;
        ballot |= (lanes[i].value ? 1u : 0u) << i;
    }
    for (uint32_t i = 0; i < LANES; i++) {
        enum emu_lane_op op = lanes[i].op;
        if (op != lanes[0].op || (op == EMU_LANE_XOR && lanes[i].arg != lanes[0].arg))
            fail(g->launch, "the lanes of warp %u of block %u don't do the same", warp, g->block);
        uint32_t from = op == EMU_LANE_XOR ? i ^ lanes[i].arg : lanes[i].arg;
        results[warp * LANES + i] = op == EMU_LANE_BALLOT ? ballot : lanes[from % LANES].value;
        lanes[i].state = READY;
    }
}

NO_TSAN uint32_t emu_lanes(enum emu_lane_op op, uint32_t v, uint32_t arg) {
    struct group *g = current;
    struct thread *t = g->running;
    uint32_t warp = t->self.thread / LANES;
    if (op == EMU_LANE_SYNC) RELEASE(&g->lane_tags[warp]);
    t->op = op;
    t->value = v;
    t->arg = arg;
    t->state = AT_LANES;
    finish_lanes(g, warp);
    uint32_t *results = g->results + (t->turn & 1) * t->self.n_threads;
    to_scheduler(false);
    t->turn++;
    if (op == EMU_LANE_SYNC) ACQUIRE(&g->lane_tags[warp]);
    return results[t->self.thread];
}

NO_TSAN static void yield(void) {
    if (atomic_load(&current->launch->failed))
        for (;;) to_scheduler(false);
    to_scheduler(false);
}

/* To other threads of the group; to other groups not for every thread that waits: it is a system call. */
NO_TSAN static void poll_yield(void) {
    if (current->running->self.thread % 8 == 0) sched_yield();
    yield();
}

NO_TSAN static bool passes_early(void) {
    return current->launch->grid->fault == EMU_EARLY_GRID;
}

void emu_get(const uint32_t *part, uint32_t wanted, uint32_t out[3]) {
    bool early = passes_early();
    uint32_t epoch = __atomic_load_n(&part[2], __ATOMIC_ACQUIRE);
    if (epoch != wanted && !early) {
        poll_yield();
        epoch = __atomic_load_n(&part[2], __ATOMIC_ACQUIRE);
    }
    for (int i = 0; i < 2; i++) out[i] = __atomic_load_n(&part[i], __ATOMIC_RELAXED);
    out[2] = early ? wanted : epoch;
}

/* Groups don't keep step on a device; where something is broken, the difference should show. */
NO_TSAN static void dawdle(void) {
    struct group *g = current;
    if (g->launch->grid->fault != EMU_NO_FAULT) usleep((useconds_t)(chance(g) % 1000));
}

void emu_put(uint32_t *part, uint32_t a, uint32_t b, uint32_t epoch) {
    dawdle();
    __atomic_store_n(&part[0], a, __ATOMIC_RELAXED);
    __atomic_store_n(&part[1], b, __ATOMIC_RELAXED);
    __atomic_store_n(&part[2], epoch, __ATOMIC_RELEASE);
    dawdle();
}

/* ---- copies -------------------------------------------------------------------------------- */

/* A barrier: bit 63 is the phase, bit 62 that bytes are expected, then the bytes still to come. */
#define BARRIER_PHASE ((uint64_t)1 << 63)
#define BARRIER_ARMED ((uint64_t)1 << 62)

NO_TSAN static void barrier_settle(uint64_t *b) {
    if (!(*b & BARRIER_ARMED) || *b & (BARRIER_ARMED - 1)) return;
    *b = (*b & BARRIER_PHASE) ^ BARRIER_PHASE;
    RELEASE(b);
}

NO_TSAN void emu_expect(uint64_t *b, uint32_t bytes) {
    if (*b & BARRIER_ARMED) emu_give_up("two copies at once into one page");
    *b = ((*b & BARRIER_PHASE) | BARRIER_ARMED) + bytes;
}

NO_TSAN void emu_copy(uint8_t *dst, const uint8_t *src, uint32_t bytes, uint64_t *barrier) {
    struct group *g = current;
    if (g->n_copies == MAX_COPIES) emu_give_up("too many copies under way");
    if ((uintptr_t)dst % 16 || (uintptr_t)src % 16 || bytes % 16)
        emu_give_up("a copy that is not aligned to 16 bytes");
    RELEASE(dst);
    g->copies[g->n_copies++] = (struct copy){dst, src, bytes, barrier};
}

/* Copies complete in any order. */
NO_TSAN static void copy_one(struct group *g) {
    if (g->n_copies == 0) return;
    uint32_t i = (uint32_t)(chance(g) % g->n_copies);
    struct copy c = g->copies[i];
    g->copies[i] = g->copies[--g->n_copies];
    ACQUIRE(c.dst);
    memcpy(c.dst, c.src, c.bytes);
    RELEASE(c.barrier);
    *c.barrier -= c.bytes;
    barrier_settle(c.barrier);
}

NO_TSAN void emu_wait(uint64_t *barrier, uint32_t parity) {
    struct group *g = current;
    if (g->launch->grid->fault == EMU_SKIP_WAIT) return;
    while ((*barrier >> 63) == (parity & 1)) {
        if (chance(g) % 4 == 0) copy_one(g);
        yield();
    }
    ACQUIRE(barrier);
}

/* ---- a group ------------------------------------------------------------------------------- */

NO_TSAN static uint32_t gcd(uint32_t a, uint32_t b) {
    return b ? gcd(b, a % b) : a;
}

/* Runs every ready thread once; false if there was none. */
NO_TSAN static bool run_round(struct group *g) {
    const struct emu_grid *grid = g->launch->grid;
    uint32_t n = grid->n_threads, step = 1, first = 0;
    bool any = false;
    if (grid->order == EMU_REVERSE) {
        step = n - 1;
        first = n - 1;
    } else if (grid->order == EMU_RANDOM) {
        first = (uint32_t)(chance(g) % n);
        do step = 1 + (uint32_t)(chance(g) % (n - 1));
        while (gcd(step, n) != 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct thread *t = &g->threads[(first + (uint64_t)i * step) % n];
        if (t->state != READY) continue;
        to_thread(g, t);
        any = true;
    }
    return any;
}

/* Nobody can go on: all at a sync, all done, or something is wrong. */
NO_TSAN static bool release_sync(struct group *g) {
    uint32_t n = g->launch->grid->n_threads, at[4] = {0};
    for (uint32_t i = 0; i < n; i++) at[g->threads[i].state]++;
    if (at[DONE] == n) return false;
    if (at[AT_SYNC] < n) {
        fail(g->launch, "block %u: %u threads at a sync, %u at a lane exchange, %u have ended",
             g->block, at[AT_SYNC], at[AT_LANES], at[DONE]);
        return false;
    }
    for (uint32_t i = 0; i < n; i++) g->threads[i].state = READY;
    return true;
}

NO_TSAN static void run_group(struct group *g) {
    struct launch *l = g->launch;
    current = g;
#ifdef WITH_TSAN
    g->tsan = __tsan_get_current_fiber();
#endif
    for (;;) {
        if (atomic_load(&l->failed)) break;
        if (run_round(g)) continue;
        if (!release_sync(g)) break;
    }
    uint32_t syncs = 0;
    for (uint32_t i = 0; i < l->grid->n_threads; i++)
        if (g->threads[i].syncs > syncs) syncs = g->threads[i].syncs;
    uint32_t before = atomic_load(&l->syncs);
    while (before < syncs && !atomic_compare_exchange_weak(&l->syncs, &before, syncs)) {
    }
    if (g->n_copies && !atomic_load(&l->failed))
        fail(l, "block %u ended with %u copies under way", g->block, g->n_copies);
    current = NULL;
}

static void group_create(struct group *g, struct launch *l, uint32_t block) {
    const struct emu_grid *grid = l->grid;
    uint32_t n = grid->n_threads;
    size_t shared = (grid->shared_bytes + 127) / 128 * 128;
    *g = (struct group){.launch = l, .block = block, .random = grid->seed * 1000 + block};
    g->threads = calloc(n, sizeof *g->threads);
    g->results = calloc(2 * (size_t)n, sizeof *g->results);
    g->lane_tags = calloc(n / LANES, 1);
    g->shared = aligned_alloc(128, shared);
    memset(g->shared, 0xa5, shared); /* what happens to be there */
    char *stacks =
        mmap(NULL, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!g->threads || !g->results || !g->lane_tags || !g->shared || stacks == MAP_FAILED) abort();
#ifdef WITH_ASAN
    __asan_poison_memory_region(g->shared + grid->shared_bytes, shared - grid->shared_bytes);
#endif
    for (uint32_t i = 0; i < n; i++) {
        struct thread *t = &g->threads[i];
        t->self = (struct emu_self){block, grid->n_blocks, i, n, g->shared};
        t->group = g;
        t->stack = stacks + i * STACK;
        context_make(&t->at, t->stack, STACK, thread_main);
#ifdef WITH_TSAN
        t->tsan = __tsan_create_fiber(0);
#endif
    }
}

static void group_free(struct group *g) {
    uint32_t n = g->launch->grid->n_threads;
#ifdef WITH_TSAN
    for (uint32_t i = 0; i < n; i++) __tsan_destroy_fiber(g->threads[i].tsan);
#endif
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(g->threads[0].stack, n * STACK);
    __asan_unpoison_memory_region(g->shared, (g->launch->grid->shared_bytes + 127) / 128 * 128);
#endif
    munmap(g->threads[0].stack, n * STACK);
    free(g->shared);
    free(g->threads);
    free(g->results);
    free(g->lane_tags);
}

static void *group_main(void *arg) {
    run_group(arg);
    return NULL;
}

const char *emu_launch(emu_kernel kernel, const uint8_t *w, uint8_t *g, uint8_t *k,
                       const struct gpu_launch *p, const struct emu_grid *grid) {
    struct launch l = {.kernel = kernel, .w = w, .g = g, .k = k, .p = p, .grid = grid};
    struct group *groups = calloc(grid->n_blocks, sizeof *groups);
    pthread_t *threads = calloc(grid->n_blocks, sizeof *threads);
    if (!groups || !threads) abort();
    for (uint32_t b = 0; b < grid->n_blocks; b++) group_create(&groups[b], &l, b);
    for (uint32_t b = 0; b < grid->n_blocks; b++)
        if (pthread_create(&threads[b], NULL, group_main, &groups[b])) abort();
    for (uint32_t b = 0; b < grid->n_blocks; b++) pthread_join(threads[b], NULL);
    ACQUIRE(&l);
    for (uint32_t b = 0; b < grid->n_blocks; b++) group_free(&groups[b]);
    free(groups);
    free(threads);
    last_syncs = atomic_load(&l.syncs);
    memcpy(last_message, l.message, sizeof last_message);
    return atomic_load(&l.failed) ? last_message : NULL;
}

uint32_t emu_syncs(void) {
    return last_syncs;
}

uint32_t emu_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}
