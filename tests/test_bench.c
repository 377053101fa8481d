// Benchmarks: statistics, the bandwidth test, rows, times per phase, teams that change, comparing.
// ctest: labels=threads
#include "base/machine.h"
#include "base/time.h"
#include "engine/engine.h"
#include "eval/bandwidth.h"
#include "eval/bench.h"
#include "eval/bench_json.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHAPE "hidden=128,layers=3,intermediate=320,heads=4,kv-heads=2,head-dim=32,vocab=300"

static void statistics_are_those_of_a_sample(void **state) {
    const double odd[] = {3, 1, 2}, even[] = {4, 1, 1, 10}, one[] = {7};
    (void)state;
    struct bench_stats s = bench_stats_of(odd, 3);
    assert_true(s.mean == 2 && s.median == 2 && s.best == 3 && fabs(s.deviation - 1) < 1e-12);
    s = bench_stats_of(even, 4);
    assert_true(s.mean == 4 && s.median == 2.5 && s.best == 10);
    assert_true(fabs(s.deviation - sqrt(54.0 / 3)) < 1e-12);
    s = bench_stats_of(one, 1);
    assert_true(s.mean == 7 && s.median == 7 && s.deviation == 0);
    s = bench_stats_of(NULL, 0);
    assert_true(s.mean == 0 && s.median == 0);
}

static void the_machine_is_known(void **state) {
    struct pd_machine m;
    (void)state;
    pd_machine_get(&m);
    assert_true(m.n_cpus >= 1);
    assert_true(m.memory > ((uint64_t)1 << 26));
    assert_true(m.cpu[0] != '\0' && m.system[0] != '\0');
    uint64_t available = pd_memory_available();
    assert_true(available == 0 || available <= m.memory);
}

static void bandwidth_reads_what_it_says(void **state) {
    struct bandwidth *b;
    struct pd_threads *threads;
    pdvm_error err;
    (void)state;
    assert_ok(pd_threads_create(2, &threads, &err), &err);
    assert_ok(bandwidth_create(((size_t)3 << 20) + 1, threads, &b, &err), &err);
    assert_in_range(bandwidth_size(b), (3 << 20) + 1, 4 << 20);
    for (int i = 0; i < 3; i++) {
        double start = pd_seconds(), rate = bandwidth_measure(b, i ? threads : NULL);
        double seconds = pd_seconds() - start;
        /* Four halves at no more than the fastest one's rate; no machine reads 100 TB/s. */
        assert_true(rate * seconds >= 2 * (double)bandwidth_size(b) * 0.99);
        assert_true(rate > 1e6 && rate < 1e14);
    }
    bandwidth_free(b);
    pd_threads_free(threads);
    assert_error(bandwidth_create(SIZE_MAX / 2, NULL, &b, &err), PDVM_ERR_MEMORY, &err,
                 "bandwidth");
    size_t size = bandwidth_buffer_size((uint64_t)32 << 20);
    assert_true(size >= (size_t)1 << 20 && size <= (size_t)1 << 30);
}

static pdvm_model *open_model(const char *shape, int n_threads) {
    const struct synthetic_options options = {
        .shape = shape, .sparsity = 0.5, .values = MDCSR_INT8, .seed = 1};
    struct model_source *source;
    pdvm_model *model;
    pdvm_error err;
    pdvm_model_options o = pdvm_model_options_default();
    o.n_threads = n_threads;
    assert_ok(source_open_synthetic(&options, &source, &err), &err);
    assert_ok(model_open_source(source, &o, &model, &err), &err);
    return model;
}

static pdvm_session *open_session(pdvm_model *model, pdvm_mode mode) {
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session *session;
    pdvm_error err;
    o.n_ctx = 1100;
    o.mode = mode;
    assert_ok(pdvm_session_create(model, &o, &session, &err), &err);
    return session;
}

static void another_team_goes_on_with_the_same_bits(void **state) {
    static const int teams[] = {3, 1, 2, 4};
    float *expected = NULL;
    size_t n_vocab;
    pdvm_error err;
    (void)state;
    for (int changing = 0; changing < 2; changing++) {
        pdvm_model *model = open_model(SHAPE, 2);
        pdvm_session *session = open_session(model, PDVM_MODE_TOKEN);
        int32_t tokens[600];
        for (int i = 0; i < 600; i++) tokens[i] = i * 7 % 300;
        for (size_t i = 0; i < 4; i++) {
            if (changing) assert_ok(model_set_threads(model, teams[i], &err), &err);
            /* Beyond 512 positions attention is split. */
            assert_ok(pdvm_session_sync(session, tokens, 150 * (i + 1), &err), &err);
            assert_ok(pdvm_session_step(session, 9, &err), &err);
        }
        const float *logits = pdvm_session_logits(session, &n_vocab);
        if (!changing) {
            expected = calloc(n_vocab, sizeof *expected);
            assert_non_null(expected);
            memcpy(expected, logits, n_vocab * sizeof *expected);
        } else {
            assert_memory_equal(logits, expected, n_vocab * sizeof *expected);
            assert_non_null(strstr(model->backend->ops->describe(model->backend), "4 threads"));
        }
        pdvm_session_free(session);
        pdvm_model_close(model);
    }
    free(expected);
}

static void times_of_phases_add_up_in_every_mode(void **state) {
    pdvm_error err;
    (void)state;
    pdvm_model *model = open_model(SHAPE, 2);
    for (int mode = 0; mode < BENCH_N_MODES; mode++) {
        pdvm_session *session = open_session(model, (pdvm_mode)mode);
        double seconds[2 + 5 * 3] = {0}, sum = 0;
        assert_int_equal(model->plan.n_phases, sizeof seconds / sizeof *seconds);
        session->phase_seconds = seconds;
        double start = pd_seconds();
        for (int i = 0; i < 30; i++) assert_ok(pdvm_session_step(session, i, &err), &err);
        double elapsed = pd_seconds() - start;
        for (size_t i = 0; i < model->plan.n_phases; i++) {
            assert_true(seconds[i] > 0);
            sum += seconds[i];
        }
        /* What is between the passes is bookkeeping of the session. */
        assert_true(sum <= elapsed && sum > 0.5 * elapsed);
        session->phase_seconds = NULL;
        double before = seconds[1];
        assert_ok(pdvm_session_step(session, 1, &err), &err);
        assert_true(seconds[1] == before);
        pdvm_session_free(session);
    }
    pdvm_model_close(model);
}

/* Options of a small benchmark of two synthetic models. */
static struct bench_options small_options(void) {
    static const struct bench_model models[] = {
        {.synthetic = {.shape = SHAPE, .sparsity = 0, .values = MDCSR_INT8}},
        {.synthetic = {.shape = SHAPE,
                       .sparsity = 0.5,
                       .values = MDCSR_LUT4,
                       .codebook = MDCSR_LEARNED,
                       .group = 64}}};
    static const struct bench_test rows[] = {
        {.n_prompt = 20}, {.n_gen = 3}, {.n_gen = 2, .depth = 70}};
    static const int threads[] = {1, 2};
    return (struct bench_options){.models = models,
                                  .n_models = 2,
                                  .tests = rows,
                                  .n_tests = 3,
                                  .threads = threads,
                                  .n_threads = 2,
                                  .repetitions = 2,
                                  .type_k = PDVM_KV_F16,
                                  .type_v = PDVM_KV_F16,
                                  .seed = 1,
                                  .bandwidth_buffer = 1};
}

static void every_combination_is_a_row(void **state) {
    struct bench_options o = small_options();
    struct bench_result r;
    pdvm_error err;
    char name[48];
    (void)state;
    o.phases = true;
    assert_ok(bench_run(&o, &r, &err), &err);
    assert_int_equal(r.n_rows, 2 * 2 * 3);
    assert_int_equal(r.n_bandwidth, 2);
    assert_int_equal(r.bandwidth[1].n_samples, 2 * 2 * 2);
    assert_string_equal(bench_test_name(name, &r.rows[2].test), "tg2 @ d70");
    assert_string_equal(r.models[1].name, SHAPE " lut4/g64 50 %");
    for (size_t i = 0; i < r.n_rows; i++) {
        const struct bench_row *row = &r.rows[i];
        assert_int_equal(row->n_samples, 2);
        assert_true(row->samples[0] > 0 && isfinite(row->samples[1]));
        double bytes = 0;
        for (int k = 0; k < BENCH_N_PHASES; k++) bytes += row->phases[k].bytes;
        if (row->test.n_prompt) {
            assert_false(row->has_phases);
            assert_true(row->token_bytes == 0);
        } else {
            assert_true(row->dispatches == 1);
            /* The phases read what a token reads; one row of the embedding is rounded. */
            assert_true(fabs(bytes - row->token_bytes) < 2);
            /* Two f16 rows of two heads of 32 in three layers for each position. */
            double cache = 2 * 2 * 2 * 32 * 3 * (row->test.depth + 0.5 * (row->test.n_gen + 1));
            assert_true(fabs(row->token_bytes - cache -
                             (double)r.models[row->model].info.token_bytes) < 1e-6);
            assert_true(bench_row_share(row) > 0);
            assert_true(row->shares[0] > 0 && row->shares[1] > 0);
        }
    }
    assert_non_null(strstr(r.rows[3].backend, "2 threads"));
    if (r.machine.cache > (size_t)1 << 20) {
        assert_int_equal(r.n_notes, 3);
        assert_non_null(strstr(r.notes[0], "measured on only"));
        assert_non_null(strstr(r.notes[1], "fit the last-level cache"));
    }
    bench_free(&r);
}

static void modes_differ_in_counted_dispatches(void **state) {
    struct bench_options o = small_options();
    struct bench_result r;
    pdvm_error err;
    (void)state;
    o.n_models = o.n_threads = 1;
    o.all_modes = true;
    o.repetitions = 1;
    assert_ok(bench_run(&o, &r, &err), &err);
    assert_int_equal(r.n_rows, 1 + 2 * 4); /* prompts in one mode */
    for (int mode = 0; mode < BENCH_N_MODES; mode++) {
        static const double dispatches[] = {1, 3, 5 * 3 + 2, 6 * 3 + 2};
        assert_int_equal(r.rows[1 + mode].mode, mode);
        assert_true(r.rows[1 + mode].dispatches == dispatches[mode]);
    }
    bench_free(&r);
}

static void what_cannot_fit_is_refused_before_it_is_made(void **state) {
    const struct bench_model huge = {
        .synthetic = {.shape = "hidden=65536,layers=4000,heads=512", .values = MDCSR_F32}};
    struct bench_options o = small_options();
    struct bench_result r;
    pdvm_error err;
    (void)state;
    if (pd_memory_available() == 0) skip();
    o.models = &huge;
    o.n_models = 1;
    assert_error(bench_run(&o, &r, &err), PDVM_ERR_MEMORY, &err, "GB of memory are free");
    bench_free(&r);
}

static bool stop(void *user, const char *stage, double fraction) {
    int *left = user;
    assert_true(fraction >= 0 && fraction <= 1);
    return strcmp(stage, "measuring") != 0 || --*left > 0;
}

static void progress_can_cancel(void **state) {
    struct bench_options o = small_options();
    struct bench_result r;
    pdvm_error err;
    int left = 3;
    (void)state;
    o.notify = (struct pd_notify){.progress = stop, .progress_user = &left};
    assert_error(bench_run(&o, &r, &err), PDVM_ERR_CANCELLED, &err, "");
    bench_free(&r);
}

/* ---- comparing ------------------------------------------------------------------------- */

static json_t *result(const char *cpu, const char *backend, double bandwidth, double first,
                      double second) {
    json_t *v =
        json_pack("{s:s, s:{s:s, s:i}, s:[{s:i, s:f}], s:[{s:s, s:s, s:s, s:s, s:i, s:f},"
                  "{s:s, s:s, s:s, s:s, s:i, s:f}]}",
                  "format", BENCH_JSON_FORMAT, "machine", "cpu", cpu, "processors", 2, "bandwidth",
                  "threads", 2, "median", bandwidth, "rows", "model", "m", "test", "pp512", "mode",
                  "token", "backend", backend, "threads", 2, "median", first, "model", "m", "test",
                  "tg128", "mode", "token", "backend", backend, "threads", 2, "median", second);
    assert_non_null(v);
    return v;
}

static void a_result_is_compared_row_by_row(void **state) {
    struct bench_comparison c;
    pdvm_error err;
    (void)state;
    json_t *before = result("A", "cpu (x)", 10e9, 100, 20),
           *now = result("A", "cpu (x)", 10.2e9, 150, 10);
    json_array_remove(json_object_get(before, "rows"), 0);
    json_t *other = json_deep_copy(json_array_get(json_object_get(before, "rows"), 0));
    json_object_set_new(other, "threads", json_integer(4));
    json_array_append_new(json_object_get(before, "rows"), other);
    assert_ok(bench_compare(now, "f", before, &c, &err), &err);
    assert_int_equal(c.n_changes, 1);
    assert_string_equal(c.changes[0].test, "tg128");
    assert_true(c.changes[0].before == 20 && c.changes[0].now == 10);
    assert_true(c.n_new == 1 && c.n_missing == 1 && c.n_warnings == 0);
    bench_comparison_free(&c);
    json_decref(before);
    json_decref(now);
}

static void what_makes_figures_incomparable_is_said(void **state) {
    struct bench_comparison c;
    pdvm_error err;
    (void)state;
    json_t *before = result("A", "cpu (x)", 10e9, 100, 20),
           *now = result("B", "cpu (y)", 20e9, 150, 10);
    json_object_set_new(json_object_get(before, "machine"), "processors", json_integer(8));
    assert_ok(bench_compare(now, "f", before, &c, &err), &err);
    assert_int_equal(c.n_warnings, 4); /* each once, though there are two rows */
    assert_non_null(strstr(c.warnings[0], "A before, B now"));
    assert_non_null(strstr(c.warnings[1], "8 before, 2 now"));
    assert_non_null(strstr(c.warnings[2], "cpu (x) before, cpu (y) now"));
    assert_non_null(strstr(c.warnings[3], "100 % faster"));
    bench_comparison_free(&c);
    json_decref(before);
    json_decref(now);
}

static void other_files_are_refused(void **state) {
    static const char *const bad[] = {"{}", "{\"format\": \"x\"}", "{\"format\": 1}"};
    struct bench_comparison c;
    pdvm_error err;
    (void)state;
    json_t *now = result("A", "b", 1, 1, 1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *before = json_loads(bad[i], 0, NULL);
        assert_error(bench_compare(now, "FILE", before, &c, &err), PDVM_ERR_FORMAT, &err, "FILE");
        json_decref(before);
    }
    static const char *const fields[] = {"model", "test", "mode", "backend", "threads", "median"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_t *before = result("A", "b", 1, 1, 1);
        json_t *row = json_array_get(json_object_get(before, "rows"), 1);
        json_object_set_new(row, fields[i], json_object());
        assert_error(bench_compare(now, "FILE", before, &c, &err), PDVM_ERR_FORMAT, &err,
                     fields[i]);
        json_decref(before);
    }
    json_decref(now);
}

static void a_result_survives_json(void **state) {
    struct bench_options o = small_options();
    const struct bench_context context = {
        .version = "1", .commit = "c", .command = "x", .date = "d", .repetitions = 2};
    struct bench_result r;
    struct bench_comparison c;
    pdvm_error err;
    (void)state;
    o.n_threads = 1;
    assert_ok(bench_run(&o, &r, &err), &err);
    json_t *value = bench_to_json(&r, &context);
    assert_non_null(value);
    assert_ok(bench_compare(value, "itself", value, &c, &err), &err);
    assert_int_equal(c.n_changes, r.n_rows);
    assert_true(c.n_new == 0 && c.n_missing == 0 && c.n_warnings == 0);
    for (size_t i = 0; i < c.n_changes; i++) assert_true(c.changes[i].now == c.changes[i].before);
    bench_comparison_free(&c);
    json_decref(value);
    bench_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statistics_are_those_of_a_sample),
        cmocka_unit_test(the_machine_is_known),
        cmocka_unit_test(bandwidth_reads_what_it_says),
        cmocka_unit_test(another_team_goes_on_with_the_same_bits),
        cmocka_unit_test(times_of_phases_add_up_in_every_mode),
        cmocka_unit_test(every_combination_is_a_row),
        cmocka_unit_test(modes_differ_in_counted_dispatches),
        cmocka_unit_test(what_cannot_fit_is_refused_before_it_is_made),
        cmocka_unit_test(progress_can_cancel),
        cmocka_unit_test(a_result_is_compared_row_by_row),
        cmocka_unit_test(what_makes_figures_incomparable_is_said),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(a_result_survives_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
