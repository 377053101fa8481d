// The base: half floats, sizes, files that are replaced atomically, worker threads.
// ctest: labels=threads

#include "base/alloc.h"
#include "base/arena.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/half.h"
#include "base/notify.h"
#include "base/tempdir.h"
#include "base/threads.h"
#include "base/time.h"
#include "support/support.h"

#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void every_f16_survives_the_round_trip(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = pd_f16_to_float((uint16_t)h);
        uint16_t back = pd_float_to_f16(f);
        if (isnan(f))
            assert_true((back & 0x7fff) > 0x7c00);
        else
            assert_int_equal(back, h);
    }
    assert_float_equal(pd_f16_to_float(0x3c00), 1.0f, 0);
    assert_float_equal(pd_f16_to_float(0x0001), 0x1p-24f, 0);
    assert_float_equal(pd_f16_to_float(0x7bff), 65504.0f, 0);
}

static void every_bf16_survives_the_round_trip(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = pd_bf16_to_float((uint16_t)h);
        uint16_t back = pd_float_to_bf16(f);
        if (isnan(f))
            assert_true((back & 0x7fff) > 0x7f80);
        else
            assert_int_equal(back, h);
    }
}

// Between two neighbours the nearer one is taken, and the even one from the middle.
static void halves_round_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        double a = pd_f16_to_float((uint16_t)h), b = pd_f16_to_float((uint16_t)(h + 1));
        double middle = (a + b) / 2;
        uint16_t even = (uint16_t)(h % 2 ? h + 1 : h);
        assert_int_equal(pd_float_to_f16((float)middle), even);
        assert_int_equal(pd_float_to_f16(nextafterf((float)middle, 0)), h);
        assert_int_equal(pd_float_to_f16(nextafterf((float)middle, INFINITY)), h + 1);
    }
    assert_int_equal(pd_float_to_f16(65520.0f), 0x7c00); // overflow is infinity
    assert_int_equal(pd_float_to_f16(65519.0f), 0x7bff);
    assert_int_equal(pd_float_to_bf16(1.00390625f), 0x3f80); // a tie goes to even
    assert_int_equal(pd_float_to_bf16(1.01171875f), 0x3f82);
}

static void overflowing_sizes_are_noticed(void **state) {
    (void)state;
    size_t out;
    int64_t wide;
    assert_false(pd_mul_size(SIZE_MAX, 2, &out));
    assert_false(pd_add_size(SIZE_MAX, 1, &out));
    assert_false(pd_mul_i64(INT64_MAX, 2, &wide));
    assert_false(pd_mul_i64(-1, 2, &wide));
    assert_true(pd_mul_i64(3, 4, &wide));
    assert_int_equal(wide, 12);
}

static void absurd_allocations_are_errors(void **state) {
    (void)state;
    pdvm_error err;
    void *p = NULL;
    size_t capacity = 0;
    assert_error(pd_alloc_aligned(&p, SIZE_MAX - 5, "a test", &err), PDVM_ERR_MEMORY, &err,
                 "a test");
    assert_null(p);
    assert_error(pd_grow(&p, &capacity, SIZE_MAX / 4, 8, "a list", &err), PDVM_ERR_MEMORY, &err,
                 "a list");
    assert_int_equal(capacity, 0);
}

static void a_written_file_appears_only_when_committed(void **state) {
    (void)state;
    pdvm_error err;
    struct pd_writer *w;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "f", "old");
    assert_ok(pd_writer_open(path, &w, &err), &err);
    for (int i = 0; i < 100000; i++) assert_ok(pd_writer_append(w, "0123456789", 10, &err), &err);
    assert_ok(pd_writer_patch(w, 5, "abc", 3, &err), &err);
    assert_ok(pd_writer_patch(w, 999997, "xyz", 3, &err), &err);
    assert_error(pd_writer_patch(w, 999998, "xyz", 3, &err), PDVM_ERR_ARGUMENT, &err, "past");
    size_t size;
    char *text = support_read_file(path, &size);
    assert_string_equal(text, "old");
    free(text);
    assert_ok(pd_writer_commit(w, &err), &err);
    text = support_read_file(path, &size);
    assert_int_equal(size, 1000000);
    assert_memory_equal(text, "01234abc89", 10);
    assert_memory_equal(text + 999990, "0123456xyz", 10);
    free(text);
    assert_int_equal(support_count_entries(dir), 1);
    free(path);
    support_tmpdir_remove(dir);
}

static void two_writers_of_one_file_do_not_mix(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "out");
    struct pd_writer *a, *b;
    assert_ok(pd_writer_open(path, &a, &err), &err);
    assert_ok(pd_writer_open(path, &b, &err), &err);
    assert_ok(pd_writer_append(a, "first", 5, &err), &err);
    assert_ok(pd_writer_append(b, "second", 6, &err), &err);
    assert_ok(pd_writer_commit(a, &err), &err);
    char *text = support_read_file(path, NULL);
    assert_string_equal(text, "first");
    free(text);
    assert_ok(pd_writer_commit(b, &err), &err);
    text = support_read_file(path, NULL);
    assert_string_equal(text, "second");
    free(text);
    assert_int_equal(support_count_entries(dir), 1);
    assert_error(pd_writer_open("", &a, &err), PDVM_ERR_ARGUMENT, &err, "empty");
    free(path);
    support_tmpdir_remove(dir);
}

static void a_link_is_followed_and_not_replaced(void **state) {
    (void)state;
    pdvm_error err;
    struct pd_writer *w;
    struct stat st;
    char *dir = support_tmpdir();
    char *target = support_write_text(dir, "target", "old");
    char *link = support_path(dir, "link");
    assert_int_equal(symlink("target", link), 0);
    assert_ok(pd_writer_open(link, &w, &err), &err);
    assert_ok(pd_writer_append(w, "new", 3, &err), &err);
    assert_ok(pd_writer_commit(w, &err), &err);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    char *text = support_read_file(target, NULL);
    assert_string_equal(text, "new");
    free(text);
    assert_int_equal(support_count_entries(dir), 2);
    free(link);
    free(target);
    support_tmpdir_remove(dir);
}

static void zeroed_memory_is_zero_to_the_last_byte(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 5000, (1 << 20) - 1, (1 << 20) + 1, (3 << 20) + 12345};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i], wrong = 0;
        uint8_t *data = malloc(n + 2);
        memset(data, 0xaa, n + 2);
        pd_zero(data + 1, n);
        for (size_t k = 1; k <= n; k++) wrong += data[k] != 0;
        assert_int_equal(wrong, 0);
        assert_int_equal(data[0], 0xaa);
        assert_int_equal(data[n + 1], 0xaa);
        free(data);
    }
}

static void an_aborted_file_leaves_the_old_one(void **state) {
    (void)state;
    pdvm_error err;
    struct pd_writer *w;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "f", "old");
    assert_ok(pd_writer_open(path, &w, &err), &err);
    assert_ok(pd_writer_append(w, "new", 3, &err), &err);
    pd_writer_abort(w);
    char *text = support_read_file(path, NULL);
    assert_string_equal(text, "old");
    free(text);
    assert_int_equal(support_count_entries(dir), 1);
    free(path);
    support_tmpdir_remove(dir);
}

// A limit on the size of files stands for a full disk.
static void a_full_disk_leaves_the_old_file(void **state) {
    (void)state;
    pdvm_error err;
    struct pd_writer *w;
    struct rlimit old, small;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "f", "old");
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 300000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    assert_ok(pd_writer_open(path, &w, &err), &err);
    pdvm_status status = PDVM_OK;
    for (int i = 0; i < 100000 && status == PDVM_OK; i++)
        status = pd_writer_append(w, "0123456789", 10, &err);
    assert_error(status, PDVM_ERR_IO, &err, "cannot write");
    pd_writer_abort(w);
    setrlimit(RLIMIT_FSIZE, &old);
    char *text = support_read_file(path, NULL);
    assert_string_equal(text, "old");
    free(text);
    assert_int_equal(support_count_entries(dir), 1);
    free(path);
    support_tmpdir_remove(dir);
}

static void only_regular_files_are_read(void **state) {
    (void)state;
    pdvm_error err;
    struct pd_map map;
    char *data;
    size_t size;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "big", "0123456789");
    assert_error(pd_map_open(dir, &map, &err), PDVM_ERR_IO, &err, "not a regular file");
    assert_error(pd_map_open("/dev/zero", &map, &err), PDVM_ERR_IO, &err, "not a regular file");
    assert_error(pd_map_open("/no/such/file", &map, &err), PDVM_ERR_IO, &err, "/no/such/file");
    assert_error(pd_read_file(path, 9, &data, &size, &err), PDVM_ERR_FORMAT, &err, "10 bytes");
    assert_ok(pd_read_file(path, 10, &data, &size, &err), &err);
    assert_string_equal(data, "0123456789");
    free(data);
    free(path);
    support_tmpdir_remove(dir);
}

#define WORKERS 5
#define ROUNDS 200

struct rounds {
    struct pd_threads *threads;
    int slots[WORKERS];
    atomic_int wrong;
};

// Every worker writes its slot, and after the barrier reads all of them.
static void count_rounds(void *arg, int worker, int n_workers) {
    struct rounds *r = arg;
    for (int round = 1; round <= ROUNDS; round++) {
        r->slots[worker] = round;
        pd_threads_barrier(r->threads);
        for (int i = 0; i < n_workers; i++)
            if (r->slots[i] != round) atomic_fetch_add(&r->wrong, 1);
        pd_threads_barrier(r->threads);
    }
}

static void barriers_make_writes_visible(void **state) {
    (void)state;
    pdvm_error err;
    for (int n = 1; n <= WORKERS; n++) {
        struct rounds r = {.wrong = 0};
        assert_ok(pd_threads_create(n, &r.threads, &err), &err);
        assert_int_equal(pd_threads_count(r.threads), n);
        for (int i = 0; i < 3; i++) pd_threads_run(r.threads, count_rounds, &r);
        assert_int_equal(r.wrong, 0);
        pd_threads_free(r.threads);
    }
}

static void mark(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    for (int64_t i = begin; i < end; i++) ((uint8_t *)arg)[i]++;
}

static void parallel_loops_visit_every_item_once(void **state) {
    (void)state;
    static const int64_t sizes[] = {0, 1, 7, 100, 1001};
    pdvm_error err;
    struct pd_threads *threads;
    assert_ok(pd_threads_create(3, &threads, &err), &err);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int64_t grain = 1; grain < 200; grain *= 3) {
            uint8_t seen[1001] = {0};
            pd_threads_for(grain % 2 ? threads : NULL, sizes[s], grain, mark, seen);
            for (int64_t i = 0; i < 1001; i++) assert_int_equal(seen[i], i < sizes[s]);
        }
    }
    pd_threads_free(threads);
    assert_error(pd_threads_create(5000, &threads, &err), PDVM_ERR_ARGUMENT, &err, "5000");
}

struct sharing {
    struct pd_threads *threads;
    const int64_t *split; // NULL: equal ranges
    int64_t n, grain;
    atomic_int seen[3000];
    atomic_int done[WORKERS];
    atomic_int wrong;
    int slow; // this worker takes long over each piece
};

static void share_items(void *arg, int worker, int n_workers) {
    struct sharing *s = arg;
    for (int round = 0; round < 3; round++) {
        struct pd_share share =
            s->split ? pd_share_ranges(s->threads, worker, n_workers, s->split, s->grain)
                     : pd_share_items(s->threads, worker, n_workers, s->n, s->grain);
        for (int64_t begin, end; pd_share_next(&share, &begin, &end);) {
            if (begin >= end || end > s->n) atomic_fetch_add(&s->wrong, 1);
            for (int64_t i = begin; i < end; i++) atomic_fetch_add(&s->seen[i], 1);
            atomic_fetch_add(&s->done[worker], (int)(end - begin));
            if (worker == s->slow) usleep(1000);
        }
        pd_threads_barrier(s->threads);
    }
}

static void shared_work_is_done_once_for_any_ranges(void **state) {
    (void)state;
    static const int64_t uneven[WORKERS + 1] = {0, 0, 1, 900, 901, 2999};
    pdvm_error err;
    for (int n = 1; n <= WORKERS; n++) {
        for (int64_t grain = 1; grain < 500; grain *= 7) {
            for (int64_t size = 0; size < 3000; size = size * 5 + 1) {
                struct sharing s = {.n = size, .grain = grain, .slow = -1};
                if (n == WORKERS && size > 1000) s.split = uneven, s.n = 2999;
                assert_ok(pd_threads_create(n, &s.threads, &err), &err);
                for (int i = 0; i < 2; i++) pd_threads_run(s.threads, share_items, &s);
                assert_int_equal(s.wrong, 0);
                for (int64_t i = 0; i < 3000; i++) assert_int_equal(s.seen[i], i < s.n ? 6 : 0);
                pd_threads_free(s.threads);
            }
        }
    }
}

static void others_help_a_slow_worker(void **state) {
    (void)state;
    pdvm_error err;
    struct sharing s = {.n = 3000, .grain = 1, .slow = 1};
    assert_ok(pd_threads_create(3, &s.threads, &err), &err);
    pd_threads_run(s.threads, share_items, &s);
    for (int64_t i = 0; i < 3000; i++) assert_int_equal(s.seen[i], 3);
    assert_true(s.done[1] < s.done[0]);
    assert_true(s.done[0] > 3300 || s.done[2] > 3300); // without help: 3000 each
    pd_threads_free(s.threads);
}

struct stalling {
    struct pd_threads *threads;
    atomic_int workers; // that have run
    atomic_int wrong;
    atomic_bool stalls; // the last worker keeps the others waiting
};

static void stall(void *arg, int worker, int n_workers) {
    struct stalling *s = arg;
    if (worker >= n_workers) atomic_fetch_add(&s->wrong, 1);
    atomic_fetch_add(&s->workers, 1);
    if (worker == 2 && s->stalls) usleep(3000);
    pd_threads_barrier(s->threads);
    if (atomic_load(&s->workers) != n_workers) atomic_fetch_add(&s->wrong, 1);
}

/* Runs until that many workers take part, for at most 20 seconds. */
static int run_until(struct stalling *s, int n) {
    int active = 0;
    double start = pd_seconds();
    while (pd_seconds() - start < 20) {
        active = pd_threads_adapt(s->threads);
        if (active == n) break;
        atomic_store(&s->workers, 0);
        pd_threads_run(s->threads, stall, s);
        if (atomic_load(&s->workers) != active) atomic_fetch_add(&s->wrong, 1);
    }
    return active;
}

static void a_worker_that_stalls_the_others_sits_out_for_a_while(void **state) {
    (void)state;
    pdvm_error err;
    struct stalling s = {.stalls = true};
    assert_ok(pd_threads_create(3, &s.threads, &err), &err);
    assert_int_equal(pd_threads_adapt(s.threads), 3);
    assert_int_equal(run_until(&s, 2), 2);
    s.stalls = false;
    assert_int_equal(run_until(&s, 3), 3);
    s.stalls = true;
    assert_int_equal(run_until(&s, 2), 2);
    assert_int_equal(s.wrong, 0);
    assert_int_equal(pd_threads_count(s.threads), 3);
    pd_threads_free(s.threads); // with one that sits out
    assert_int_equal(pd_threads_adapt(NULL), 1);
}

static void an_arena_gives_zeroed_memory_that_does_not_overlap(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 0, 127, 128, 4097, (size_t)3 << 20, (size_t)70 << 20, 5};
    enum { N = sizeof sizes / sizeof *sizes };
    struct pd_arena arena = {0};
    uint8_t *p[N];
    pdvm_error err;
    for (int i = 0; i < N; i++) {
        assert_ok(pd_arena_alloc(&arena, sizes[i], &p[i], "a test", &err), &err);
        assert_int_equal((uintptr_t)p[i] % 128, 0);
        for (size_t k = 0; k < sizes[i] + 64; k += 4096) assert_int_equal(p[i][k], 0);
        memset(p[i], i + 1, sizes[i]);
    }
    for (int i = 0; i < N; i++) {
        if (sizes[i] == 0) continue;
        assert_int_equal(p[i][0], i + 1);
        assert_int_equal(p[i][sizes[i] - 1], i + 1);
    }
    assert_error(pd_arena_alloc(&arena, SIZE_MAX - 100, &p[0], "a test", &err), PDVM_ERR_MEMORY,
                 &err, "a test");
    assert_error(pd_arena_alloc(&arena, SIZE_MAX / 2, &p[0], "a test", &err), PDVM_ERR_MEMORY, &err,
                 "a test");
    assert_null(p[0]);
    pd_arena_free(&arena);
    pd_arena_free(&arena);
}

static void messages_cannot_carry_terminal_escapes(void **state) {
    (void)state;
    pdvm_error err;
    pd_fail(&err, PDVM_ERR_FORMAT, "tensor %s", "\x1b[31mred\n");
    assert_string_equal(err.message, "tensor ?[31mred?");
    pd_prefix(&err, err.status, "%s", "f\x07");
    assert_string_equal(err.message, "f?: tensor ?[31mred?");
    pd_fail(&err, PDVM_ERR_FORMAT, "tensor %s",
            "\xc2\x9b"
            "31m \xc3\x9b");
    assert_string_equal(err.message, "tensor ??31m \xc3\x9b");
}

static void keep_line(void *user, pdvm_log_level level, const char *line) {
    (void)level;
    snprintf(user, 64, "%s", line);
}

static void log_lines_cannot_carry_terminal_escapes(void **state) {
    (void)state;
    char line[64];
    const struct pd_notify n = {.log = keep_line, .log_user = line};
    pd_log(&n, PDVM_LOG_WARN, "%s: bad", "\x1b[2Jmodel");
    assert_string_equal(line, "?[2Jmodel: bad");
}

static void temporary_directories_vanish_with_their_contents(void **state) {
    (void)state;
    pdvm_error err;
    char *kept = support_tmpdir(), *dir;
    char *outside = support_write_text(kept, "outside", "stays");
    assert_ok(pd_tempdir_create(&dir, &err), &err);
    char *name = strdup(dir), *inner = support_path(dir, "inner"),
         *link = support_path(dir, "link");
    assert_true(support_exists(dir));
    assert_int_equal(mkdir(inner, 0700), 0);
    free(support_write_text(inner, "file", "goes"));
    assert_int_equal(symlink(kept, link), 0);
    pd_tempdir_remove(dir);
    assert_false(support_exists(name));
    assert_true(support_exists(outside));
    pd_tempdir_remove(NULL);
    free(link);
    free(inner);
    free(name);
    free(outside);
    support_tmpdir_remove(kept);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_survives_the_round_trip),
        cmocka_unit_test(every_bf16_survives_the_round_trip),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(overflowing_sizes_are_noticed),
        cmocka_unit_test(absurd_allocations_are_errors),
        cmocka_unit_test(a_written_file_appears_only_when_committed),
        cmocka_unit_test(two_writers_of_one_file_do_not_mix),
        cmocka_unit_test(a_link_is_followed_and_not_replaced),
        cmocka_unit_test(zeroed_memory_is_zero_to_the_last_byte),
        cmocka_unit_test(an_aborted_file_leaves_the_old_one),
        cmocka_unit_test(a_full_disk_leaves_the_old_file),
        cmocka_unit_test(only_regular_files_are_read),
        cmocka_unit_test(barriers_make_writes_visible),
        cmocka_unit_test(parallel_loops_visit_every_item_once),
        cmocka_unit_test(shared_work_is_done_once_for_any_ranges),
        cmocka_unit_test(others_help_a_slow_worker),
        cmocka_unit_test(a_worker_that_stalls_the_others_sits_out_for_a_while),
        cmocka_unit_test(an_arena_gives_zeroed_memory_that_does_not_overlap),
        cmocka_unit_test(messages_cannot_carry_terminal_escapes),
        cmocka_unit_test(log_lines_cannot_carry_terminal_escapes),
        cmocka_unit_test(temporary_directories_vanish_with_their_contents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
