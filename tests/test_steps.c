// What generating a token must not cost: once a session is warm, steps allocate nothing, and ask the
// system for nothing but to wait for another thread.

#include "pdvm.h"
#include "support/support.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif

#if defined(__linux__) && defined(__GLIBC__) && !defined(SANITIZED)
#define MEASURABLE
#endif

#ifdef MEASURABLE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WARM 4
#define STEPS 40 // with the warm ones less than a chunk of the cache, which grows by 64 slots

struct run {
    pdvm_model *model;
    pdvm_session *session;
};

static void open_session(struct run *run, int n_threads, pdvm_mode mode) {
    pdvm_error err;
    char *path = support_source_path("tests/golden/tiny-gqa");
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = n_threads;
    options.backend = "cpu";
    assert_ok(pdvm_model_open(path, &options, &run->model, &err), &err);
    free(path);
    pdvm_session_options how = pdvm_session_options_default();
    how.mode = mode;
    how.n_ctx = 64;
    assert_ok(pdvm_session_create(run->model, &how, &run->session, &err), &err);
}

static void close_session(struct run *run) {
    pdvm_session_free(run->session);
    pdvm_model_close(run->model);
}

static bool steps(struct run *run, int n) {
    pdvm_error err;
    for (int i = 0; i < n; i++)
        if (pdvm_session_step(run->session, 1 + i % 7, &err) != PDVM_OK) return false;
    return true;
}

/* ---- allocations ------------------------------------------------------------------------- */

// The C library's own, under the names that it keeps for those who put theirs in front.
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static atomic_bool counting;
static atomic_int allocations;

// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name): the system's have underscores
static void count(void) {
    if (atomic_load(&counting)) atomic_fetch_add(&allocations, 1);
}

void *malloc(size_t size) {
    count();
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
    count();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size) {
    count();
    return __libc_realloc(p, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

static int allocations_of_steps(int n_threads, pdvm_mode mode) {
    struct run run;
    open_session(&run, n_threads, mode);
    assert_true(steps(&run, WARM));
    atomic_store(&allocations, 0);
    atomic_store(&counting, true);
    bool good = steps(&run, STEPS);
    atomic_store(&counting, false);
    assert_true(good);
    close_session(&run);
    return atomic_load(&allocations);
}

static void steps_allocate_nothing(void **state) {
    (void)state;
    // The counter counts.
    atomic_store(&counting, true);
    free(malloc(10));
    atomic_store(&counting, false);
    assert_true(atomic_load(&allocations) > 0);
    for (int n = 1; n <= 2; n++)
        for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++)
            assert_int_equal(allocations_of_steps(n, (pdvm_mode)mode), 0);
}

/* ---- system calls ------------------------------------------------------------------------ */

enum outcome { GOOD, FAILED, TRAPPED, NO_FILTER };

static volatile int *trapped; // shared with the parent: the system call that was made

static void on_trap(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    *trapped = info->si_syscall;
    _exit(TRAPPED);
}

// From here on all threads of the process may only end it, and wait if `may_wait`. What the time is
// costs a system call only where the kernel has no faster way; that is not the program's fault.
static bool forbid_system_calls(bool may_wait) {
#define ALLOW(CALL)                                                                                \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALL, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_exit_group),
        ALLOW(SYS_clock_gettime),
        ALLOW(may_wait ? SYS_futex : SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    return sigaction(SIGSYS, &action, NULL) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

// Steps in a process of its own, in which a system call ends it.
static enum outcome steps_in_a_cage(int n_threads, pdvm_mode mode, bool misbehave) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct run run;
        open_session(&run, n_threads, mode);
        if (!steps(&run, WARM)) _exit(FAILED);
        if (!forbid_system_calls(n_threads > 1)) _exit(NO_FILTER);
        if (misbehave) (void)!write(-1, "", 1);
        _exit(steps(&run, STEPS) ? GOOD : FAILED);
    }
    int status;
    while (waitpid(child, &status, 0) < 0) assert_int_equal(errno, EINTR);
    assert_true(WIFEXITED(status));
    return (enum outcome)WEXITSTATUS(status);
}

static void steps_make_no_system_call(void **state) {
    (void)state;
    void *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
    trapped = shared;
    enum outcome outcome = steps_in_a_cage(1, PDVM_MODE_TOKEN, true);
    if (outcome == NO_FILTER) {
        munmap(shared, 4096);
        print_message("system calls cannot be forbidden here\n");
        skip();
    }
    assert_int_equal(outcome, TRAPPED); // the cage works
    assert_int_equal(*trapped, SYS_write);
    for (int n = 1; n <= 2; n++) {
        for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
            outcome = steps_in_a_cage(n, (pdvm_mode)mode, false);
            if (outcome == TRAPPED)
                fail_msg("system call %d in mode %d with %d threads", *trapped, mode, n);
            assert_int_equal(outcome, GOOD);
        }
    }
    munmap(shared, 4096);
}
#else
// Sanitizers allocate and ask the system for things themselves.
static void steps_allocate_nothing(void **state) {
    (void)state;
    skip();
}

static void steps_make_no_system_call(void **state) {
    (void)state;
    skip();
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_allocate_nothing),
        cmocka_unit_test(steps_make_no_system_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
