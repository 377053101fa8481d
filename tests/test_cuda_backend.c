// The CUDA backend from end to end on the driver's stand-in: modes, caches, sessions that take turns,
// prompts, raw activations, saved sessions, too little memory, devices that lack something.
// ctest: timeout=600

#include "backend/cuda/image.h"
#include "base/time.h"
#include "eval/bench.h"
#include "support/cuda_checks.h"
#include "support/cuda_device.h"
#include "support/support.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY "tests/golden/tiny-gqa"
#define SHAPE "hidden=64,layers=2,intermediate=96,heads=4,kv-heads=2,head-dim=16,vocab=200"

/*
 * Integer products are exact, but a float that is rounded on its way into a product or the cache may
 * go the other way when it differs in its last bit, which shows in models as small as these.
 */
#define FLOAT_CACHE 5e-4
#define SHORT_CACHE 2e-3

static void every_mode_equals_the_cpu(void **state) {
    (void)state;
    struct cuda_pair p;
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++)
        cuda_check_equals_cpu(&p, (pdvm_mode)mode, PDVM_KV_F32, 3, 1, FLOAT_CACHE);
    cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_F16, 5, 1, SHORT_CACHE);
    cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_INT8, 5, 1, SHORT_CACHE);
    cuda_pair_close(&p);
}

static void every_mode_gives_the_same_bits(void **state) {
    (void)state;
    static const struct {
        const char *values;
        double sparsity;
        uint32_t group;
    } codings[] = {{"int8", 0.5, 0}, {"lut4", 0.7, 64}, {"f16", 0, 0}};
    for (size_t i = 0; i < sizeof codings / sizeof *codings; i++) {
        struct cuda_pair p;
        cuda_pair_open(&p, SHAPE, codings[i].values, codings[i].sparsity, codings[i].group);
        cuda_check_modes(&p, PDVM_KV_F16, 2);
        cuda_pair_close(&p);
    }
}

static void greedy_tokens_equal_the_cpus(void **state) {
    (void)state;
    enum { N = 6 };
    struct cuda_pair p;
    int32_t prompt[4], cpu[N], cuda[N];
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    cuda_tokens(p.cpu, prompt, 4, 9);
    pdvm_session *s = cuda_session(p.cpu, PDVM_MODE_TOKEN, PDVM_KV_F32, 32);
    cuda_greedy(s, prompt, 4, cpu, N);
    pdvm_session_free(s);
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        s = cuda_session(p.cuda, (pdvm_mode)mode, PDVM_KV_F32, 32);
        cuda_greedy(s, prompt, 4, cuda, N);
        assert_memory_equal(cuda, cpu, sizeof cpu);
        pdvm_session_free(s);
    }
    cuda_pair_close(&p);
}

static void launches_per_token_are_those_of_the_mode(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_error err;
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    uint32_t layers = p.cuda->config.n_layers;
    const uint64_t expected[] = {1, layers + 2, 5 * layers + 2, 6 * layers + 2};
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        pdvm_session *s = cuda_session(p.cuda, (pdvm_mode)mode, PDVM_KV_F16, 8);
        pdvm_session_stats stats;
        struct standin_counters before = cuda_device_counters();
        assert_ok(pdvm_session_step(s, 1, &err), &err);
        struct standin_counters after = cuda_device_counters();
        pdvm_session_get_stats(s, &stats);
        assert_int_equal(after.launches - before.launches, expected[mode]);
        assert_int_equal(stats.n_dispatches, expected[mode]);
        pdvm_session_free(s);
    }
    cuda_pair_close(&p);
}

static void a_prompt_is_one_launch(void **state) {
    (void)state;
    struct cuda_pair p;
    int32_t tokens[9];
    pdvm_error err;
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    cuda_tokens(p.cuda, tokens, 9, 2);
    pdvm_session *s = cuda_session(p.cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, 9);
    struct standin_counters before = cuda_device_counters();
    assert_ok(pdvm_session_sync(s, tokens, 9, &err), &err);
    assert_int_equal(cuda_device_counters().launches - before.launches, 1);
    pdvm_session_free(s);
    cuda_pair_close(&p);
}

static void steps_allocate_nothing(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_error err;
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    pdvm_session *s = cuda_session(p.cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, 8);
    assert_ok(pdvm_session_step(s, 1, &err), &err);
    struct standin_counters before = cuda_device_counters();
    for (int i = 0; i < 3; i++) assert_ok(pdvm_session_step(s, 1, &err), &err);
    assert_int_equal(cuda_device_counters().allocations, before.allocations);
    pdvm_session_free(s);
    cuda_pair_close(&p);
}

static void sessions_that_take_turns_do_not_disturb_each_other(void **state) {
    (void)state;
    struct cuda_pair p;
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    cuda_check_turns(&p, PDVM_MODE_PHASE, 3);
    cuda_pair_close(&p);
}

static void caches_grow_and_are_saved_and_loaded(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_error err;
    int32_t tokens[4];
    char *dir = support_tmpdir(), *path = support_path(dir, "session");
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    cuda_tokens(p.cuda, tokens, 4, 4);
    for (int type = PDVM_KV_F32; type <= PDVM_KV_INT8; type++) {
        pdvm_session *s = cuda_session(p.cuda, PDVM_MODE_TOKEN, (pdvm_kv_type)type, 2000);
        pdvm_session *loaded = cuda_session(p.cuda, PDVM_MODE_TOKEN, (pdvm_kv_type)type, 2000);
        assert_ok(pdvm_session_sync(s, tokens, 3, &err), &err);
        /* More slots than it has: what is there moves. */
        assert_ok(p.cuda->backend->ops->kv_reserve(p.cuda->backend, s->cache.memory, 1500, &err),
                  &err);
        assert_ok(pdvm_session_save(s, path, &err), &err);
        assert_ok(pdvm_session_load(loaded, path, &err), &err);
        assert_ok(pdvm_session_step(s, tokens[3], &err), &err);
        assert_ok(pdvm_session_step(loaded, tokens[3], &err), &err);
        assert_true(cuda_difference(loaded, s) == 0);
        pdvm_session *fresh = cuda_session(p.cuda, PDVM_MODE_TOKEN, (pdvm_kv_type)type, 2000);
        assert_ok(pdvm_session_sync(fresh, tokens, 4, &err), &err);
        assert_true(cuda_difference(fresh, s) == 0);
        pdvm_session_free(fresh);
        pdvm_session_free(loaded);
        pdvm_session_free(s);
    }
    cuda_pair_close(&p);
    free(path);
    support_tmpdir_remove(dir);
}

static void raw_activations_equal_the_cpus(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_error err;
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    uint32_t n = p.cuda->config.hidden_size;
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        pdvm_session *s[2] = {cuda_session(p.cpu, PDVM_MODE_TOKEN, PDVM_KV_F32, 8),
                              cuda_session(p.cuda, (pdvm_mode)mode, PDVM_KV_F32, 8)};
        float *x[2];
        for (int i = 0; i < 2; i++) {
            x[i] = calloc(n, sizeof **x);
            for (uint32_t k = 0; k < n; k++) x[i][k] = (float)((k * 37 + 5) % 64) / 64 - 0.5f;
            assert_ok(pdvm_execute_layer(s[i], 0, x[i], &err), &err);
            assert_ok(pdvm_execute_layer(s[i], 1, x[i], &err), &err);
            assert_ok(pdvm_execute_model(s[i], x[i], &err), &err);
        }
        double error = 0, norm = 0;
        for (uint32_t k = 0; k < n; k++) {
            error += ((double)x[1][k] - x[0][k]) * ((double)x[1][k] - x[0][k]);
            norm += (double)x[0][k] * x[0][k];
        }
        assert_true(error <= FLOAT_CACHE * FLOAT_CACHE * norm);
        for (int i = 0; i < 2; i++) {
            free(x[i]);
            pdvm_session_free(s[i]);
        }
    }
    cuda_pair_close(&p);
}

/* ---- generating --------------------------------------------------------------------------- */

/* What a generation has left behind. */
struct outcome {
    int32_t tokens[64];
    size_t n_tokens, n_generated;
    pdvm_stop_reason reason;
    char text[512];
    size_t length, most; /* most: bytes after which the callback says no */
    float *logits;
    int32_t next; /* the sampler's next choice: its random numbers stand where they should */
    uint64_t launches;
};

static bool keep_text(void *user, const char *text, size_t n) {
    struct outcome *o = user;
    if (n > sizeof o->text - 1 - o->length) n = sizeof o->text - 1 - o->length;
    memcpy(o->text + o->length, text, n);
    o->length += n;
    return o->length < o->most;
}

/* Generates on the device, or step by step: in the mode of phases, where it cannot choose. */
static void generate_in(pdvm_model *model, pdvm_mode mode, const pdvm_sampler_options *sampling,
                        const pdvm_generate_options *options, uint32_t n_ctx, size_t most,
                        struct outcome *out) {
    const int32_t prompt[3] = {1, 40, 77};
    pdvm_sampler *sampler;
    pdvm_error err;
    *out = (struct outcome){.most = most};
    pdvm_session *s = cuda_session(model, mode, PDVM_KV_F16, n_ctx);
    assert_ok(pdvm_sampler_create(sampling, &sampler, &err), &err);
    assert_ok(pdvm_session_sync(s, prompt, 3, &err), &err);
    uint64_t before = cuda_device_counters().launches;
    assert_ok(pdvm_generate(s, sampler, options, model->tokenizer ? keep_text : NULL, out,
                            &out->n_generated, &out->reason, &err),
              &err);
    out->launches = cuda_device_counters().launches - before;
    const int32_t *tokens = pdvm_session_tokens(s, &out->n_tokens);
    assert_true(out->n_tokens <= 64);
    memcpy(out->tokens, tokens, out->n_tokens * sizeof *tokens);
    size_t n_vocab;
    const float *logits = pdvm_session_logits(s, &n_vocab);
    assert_non_null(logits);
    out->logits = malloc(n_vocab * sizeof *logits);
    memcpy(out->logits, logits, n_vocab * sizeof *logits);
    assert_ok(pdvm_sampler_sample(sampler, logits, n_vocab, &out->next, &err), &err);
    pdvm_sampler_free(sampler);
    pdvm_session_free(s);
}

/* The same either way; returns what came out. */
static struct outcome check_generation(pdvm_model *model, const pdvm_sampler_options *sampling,
                                       const pdvm_generate_options *options, uint32_t n_ctx,
                                       size_t most) {
    struct outcome device, steps;
    generate_in(model, PDVM_MODE_TOKEN, sampling, options, n_ctx, most, &device);
    generate_in(model, PDVM_MODE_LAYER, sampling, options, n_ctx, most, &steps);
    assert_int_equal(device.n_generated, steps.n_generated);
    assert_int_equal(device.n_tokens, steps.n_tokens);
    assert_memory_equal(device.tokens, steps.tokens, steps.n_tokens * sizeof *steps.tokens);
    assert_int_equal(device.reason, steps.reason);
    assert_string_equal(device.text, steps.text);
    assert_int_equal(device.next, steps.next);
    assert_memory_equal(device.logits, steps.logits, model->config.n_vocab * sizeof(float));
    free(device.logits);
    free(steps.logits);
    return device;
}

static const pdvm_sampler_options greedy = {.top_p = 1, .typical_p = 1, .repeat_penalty = 1};

static void tokens_chosen_on_the_device_are_those_of_the_sampler(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    pdvm_generate_options options = {.n_predict = 14, .ignore_end = true};
    cuda_pair_open(&p, SHAPE, "int8", 0.5, 0);
    struct outcome o = check_generation(p.cuda, &greedy, &options, 64, 0);
    assert_int_equal(o.n_generated, 14);
    assert_int_equal(o.reason, PDVM_STOP_LENGTH);
    assert_true(o.launches < 14);
    sampling.temperature = 1.5f;
    for (sampling.seed = 1; sampling.seed < 4; sampling.seed++) {
        o = check_generation(p.cuda, &sampling, &options, 64, 0);
        assert_true(o.launches < 14);
    }
    sampling.top_k = 0; /* needs all logits, and gets them */
    o = check_generation(p.cuda, &sampling, &options, 64, 0);
    assert_int_equal(o.launches, 14);
    sampling.top_k = 40;
    sampling.repeat_penalty = 1.3f; /* the same */
    o = check_generation(p.cuda, &sampling, &options, 64, 0);
    assert_int_equal(o.launches, 14);
    cuda_pair_close(&p);
}

static void a_generation_ends_where_it_should(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_generate_options options = {.n_predict = 12, .ignore_end = true};
    cuda_pair_open(&p, TINY, "int8", 0, 0);
    struct outcome o = check_generation(p.cuda, &greedy, &options, 64, SIZE_MAX);
    /* By a token in the middle of a launch. */
    options = (pdvm_generate_options){.n_predict = 12, .end = &o.tokens[3 + 7], .n_end = 1};
    struct outcome e = check_generation(p.cuda, &greedy, &options, 64, SIZE_MAX);
    assert_int_equal(e.reason, PDVM_STOP_END);
    /* By a string: what was computed behind it is taken back. */
    char stop[8] = "";
    for (size_t i = o.length / 3; !*stop && i + 2 < o.length; i++)
        if (isprint((unsigned char)o.text[i]) && isprint((unsigned char)o.text[i + 1]))
            memcpy(stop, o.text + i, 2);
    assert_true(*stop);
    const char *list[] = {stop};
    options = (pdvm_generate_options){.n_predict = 12, .stop = list, .n_stop = 1};
    e = check_generation(p.cuda, &greedy, &options, 64, SIZE_MAX);
    assert_int_equal(e.reason, PDVM_STOP_STRING);
    /* By the callback, and by a full context. */
    options = (pdvm_generate_options){.n_predict = -1, .ignore_end = true};
    e = check_generation(p.cuda, &greedy, &options, 64, o.length / 2);
    assert_int_equal(e.reason, PDVM_STOP_CALLBACK);
    e = check_generation(p.cuda, &greedy, &options, 3 + 9, SIZE_MAX);
    assert_int_equal(e.reason, PDVM_STOP_CONTEXT);
    cuda_pair_close(&p);
}

/* ---- measuring ---------------------------------------------------------------------------- */

static void benchmarks_count_launches_and_read_the_devices_memory(void **state) {
    (void)state;
    const struct bench_model model = {
        .synthetic = {.shape = SHAPE, .sparsity = 0.5, .values = MDCSR_INT8, .seed = 1}};
    const struct bench_test test = {.n_gen = 4};
    const int threads = 1;
    const struct bench_options options = {.models = &model,
                                          .n_models = 1,
                                          .tests = &test,
                                          .n_tests = 1,
                                          .threads = &threads,
                                          .n_threads = 1,
                                          .all_modes = true,
                                          .sync = true,
                                          .graph = true,
                                          .per_launch = 4,
                                          .repetitions = 1,
                                          .backend = "cuda",
                                          .bandwidth_buffer = 1,
                                          .seed = 1};
    static const struct {
        const char *name;
        double dispatches;
    } rows[] = {{"token", 0.25}, {"layer", 4},       {"phase", 12},
                {"unfused", 14}, {"phase+graph", 1}, {"unfused+sync", 14}};
    struct bench_result r;
    pdvm_error err;
    assert_ok(bench_run(&options, &r, &err), &err);
    assert_int_equal(r.n_rows, 6);
    assert_int_equal(r.device.n_samples, 6);
    for (size_t i = 0; i < r.n_notes; i++) assert_null(strstr(r.notes[i], "not known"));
    for (size_t i = 0; i < 6; i++) {
        assert_string_equal(bench_way_name(&r.rows[i]), rows[i].name);
        assert_true(r.rows[i].dispatches == rows[i].dispatches);
        assert_true(r.rows[i].on_device && bench_row_share(&r.rows[i]) > 0);
        assert_true(r.device.samples[i] > 1e6 && r.device.samples[i] < 1e14);
    }
    bench_free(&r);
}

static void the_time_of_a_fused_token_is_shared_out_among_its_phases(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_error err;
    cuda_pair_open(&p, SHAPE, "int8", 0.5, 0);
    size_t n = p.cuda->plan.n_phases;
    double *seconds = calloc(n, sizeof *seconds);
    pdvm_session *s = cuda_session(p.cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, 8);
    s->phase_seconds = seconds;
    struct standin_counters before = cuda_device_counters();
    double start = pd_seconds(), sum = 0;
    assert_ok(pdvm_session_step(s, 1, &err), &err);
    double took = pd_seconds() - start;
    assert_int_equal(cuda_device_counters().launches - before.launches, 1);
    for (size_t i = 0; i < n; i++) {
        assert_true(seconds[i] > 0);
        sum += seconds[i];
    }
    assert_true(sum > 0 && sum <= took);
    assert_true(s->barrier_seconds > 0 && s->barrier_seconds * (double)n < took);
    pdvm_session_free(s);
    free(seconds);
    cuda_pair_close(&p);
}

/* ---- what is missing ---------------------------------------------------------------------- */

static pdvm_status open_tiny(const char *backend, pdvm_model_options *o, pdvm_model **model,
                             pdvm_error *err) {
    char *path = support_source_path(TINY);
    o->backend = backend;
    pdvm_status status = pdvm_model_open(path, o, model, err);
    free(path);
    return status;
}

static void set_memory(uint64_t bytes) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
    cuda_device_set("PDVM_STANDIN_MEMORY", text);
}

static void too_little_memory_is_an_error_that_says_what_would_help(void **state) {
    (void)state;
    pdvm_model_options o = pdvm_model_options_default();
    pdvm_model *model;
    pdvm_session *session;
    pdvm_error err;
    set_memory(10000);
    assert_error(open_tiny("cuda", &o, &model, &err), PDVM_ERR_MEMORY, &err, "do not fit stand-in");
    cuda_device_set("PDVM_STANDIN_MEMORY", NULL);
    assert_ok(open_tiny("cuda", &o, &model, &err), &err);
    uint64_t needed = cuda_device_counters().bytes;
    pdvm_model_close(model);
    assert_int_equal(cuda_device_counters().bytes, 0);
    set_memory(needed - 1000); /* weights fit, state doesn't */
    assert_error(open_tiny("cuda", &o, &model, &err), PDVM_ERR_MEMORY, &err, "--values lut4");
    assert_int_equal(cuda_device_counters().bytes, 0);
    set_memory(needed + 1000); /* the model fits, a cache doesn't */
    assert_ok(open_tiny("cuda", &o, &model, &err), &err);
    session = cuda_session(model, PDVM_MODE_TOKEN, PDVM_KV_F16, 64);
    assert_error(pdvm_session_step(session, 1, &err), PDVM_ERR_MEMORY, &err, "KV cache");
    /* Not for the 1024 slots that it would like to begin with, but for the ones that it needs. */
    set_memory(needed + gpu_kv_size(&session->cache.shape, 256) + 1000);
    assert_ok(pdvm_session_step(session, 1, &err), &err);
    cuda_device_set("PDVM_STANDIN_MEMORY", NULL);
    assert_ok(pdvm_session_step(session, 1, &err), &err); /* and nothing is broken by it */
    pdvm_session_free(session);
    pdvm_model_close(model);
    assert_int_equal(cuda_device_counters().bytes, 0);
}

/* What was logged last. */
static char logged[512];
static void keep_log(void *user, pdvm_log_level level, const char *message) {
    (void)user;
    (void)level;
    if (strstr(message, "GPU")) snprintf(logged, sizeof logged, "%s", message);
}

static void auto_takes_the_device_or_says_why_not(void **state) {
    (void)state;
    pdvm_model_options o = pdvm_model_options_default();
    pdvm_model_info info;
    pdvm_model *model;
    pdvm_error err;
    o.log = keep_log;
    assert_ok(open_tiny("auto", &o, &model, &err), &err);
    pdvm_model_get_info(model, &info);
    assert_non_null(strstr(info.backend, "cuda (stand-in"));
    pdvm_model_close(model);
    static const char *const lacks[][3] = {
        {"PDVM_STANDIN_MEMORY", "10000", "do not fit stand-in"},
        {"PDVM_STANDIN_CAPABILITY", "70", "compute capability 7.0: 7.5 or newer is needed"},
        {"PDVM_CUDA_KERNELS", "/nonexistent", "/nonexistent"},
    };
    char *kernels = strdup(getenv("PDVM_CUDA_KERNELS"));
    for (size_t i = 0; i < sizeof lacks / sizeof *lacks; i++) {
        cuda_device_set(lacks[i][0], lacks[i][1]);
        *logged = '\0';
        assert_ok(open_tiny("auto", &o, &model, &err), &err);
        pdvm_model_get_info(model, &info);
        assert_non_null(strstr(info.backend, "cpu ("));
        if (!strstr(logged, lacks[i][2])) fail_msg("\"%s\" is not about %s", logged, lacks[i][0]);
        pdvm_model_close(model);
        assert_true(open_tiny("cuda", &o, &model, &err) != PDVM_OK);
        assert_non_null(strstr(err.message, lacks[i][2]));
        cuda_device_set(lacks[i][0], NULL);
        cuda_device_set("PDVM_CUDA_KERNELS", kernels);
    }
    free(kernels);
}

static void without_cooperative_launches_a_token_is_a_graph(void **state) {
    (void)state;
    struct cuda_pair with, without;
    pdvm_error err;
    int32_t tokens[3][4];
    pdvm_session *a[3], *b[3];
    cuda_pair_open(&with, SHAPE, "int8", 0.5, 0);
    cuda_device_set("PDVM_STANDIN_COOPERATIVE", "0");
    cuda_pair_open(&without, SHAPE, "int8", 0.5, 0);
    for (int i = 0; i < 3; i++) {
        cuda_tokens(with.cuda, tokens[i], 4, (uint64_t)i + 1);
        b[i] = cuda_session(without.cuda, PDVM_MODE_TOKEN, i ? PDVM_KV_INT8 : PDVM_KV_F16, 8);
    }
    struct standin_counters before = cuda_device_counters();
    for (int t = 0; t < 4; t++) /* they take turns, and each has its graph */
        for (int i = 0; i < 2; i++) assert_ok(pdvm_session_step(b[i], tokens[i][t], &err), &err);
    assert_ok(pdvm_session_sync(b[2], tokens[2], 4, &err), &err); /* a prompt */
    struct standin_counters after = cuda_device_counters();
    assert_int_equal(after.launches - before.launches, 0);
    assert_int_equal(after.graphs - before.graphs, 12);
    cuda_device_set("PDVM_STANDIN_COOPERATIVE", NULL);
    for (int i = 0; i < 3; i++) {
        a[i] = cuda_session(with.cuda, PDVM_MODE_TOKEN, i ? PDVM_KV_INT8 : PDVM_KV_F16, 8);
        assert_ok(pdvm_session_sync(a[i], tokens[i], 4, &err), &err);
        assert_true(cuda_difference(a[i], b[i]) == 0);
        pdvm_session_free(a[i]);
        pdvm_session_free(b[i]);
    }
    cuda_pair_close(&with);
    cuda_pair_close(&without);
}

static void older_devices_give_the_same_bits(void **state) {
    (void)state;
    struct cuda_pair new, old;
    cuda_pair_open(&new, SHAPE, "int8", 0.5, 0);
    cuda_device_set("PDVM_STANDIN_CAPABILITY", "75");
    cuda_pair_open(&old, SHAPE, "int8", 0.5, 0);
    cuda_check_modes(&old, PDVM_KV_F16, 2);
    pdvm_session *a = cuda_session(old.cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, 4);
    pdvm_error err;
    assert_ok(pdvm_session_step(a, 3, &err), &err);
    cuda_device_set("PDVM_STANDIN_CAPABILITY", NULL);
    pdvm_session *b = cuda_session(new.cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, 4);
    assert_ok(pdvm_session_step(b, 3, &err), &err);
    assert_true(cuda_difference(a, b) == 0);
    pdvm_session_free(a);
    pdvm_session_free(b);
    cuda_pair_close(&old);
    cuda_pair_close(&new);
}

static void a_launch_that_fails_is_an_error_and_the_model_can_be_closed(void **state) {
    (void)state;
    pdvm_model_options o = pdvm_model_options_default();
    pdvm_model *model;
    pdvm_error err;
    assert_ok(open_tiny("cuda", &o, &model, &err), &err);
    pdvm_session *s = cuda_session(model, PDVM_MODE_PHASE, PDVM_KV_F16, 8);
    assert_ok(pdvm_session_step(s, 1, &err), &err);
    cuda_device_set("PDVM_STANDIN_FAIL_LAUNCH", "1");
    assert_error(pdvm_session_step(s, 1, &err), PDVM_ERR_UNSUPPORTED, &err, "launching a kernel");
    cuda_device_set("PDVM_STANDIN_FAIL_LAUNCH", NULL);
    pdvm_session_free(s);
    pdvm_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mode_equals_the_cpu),
        cmocka_unit_test(every_mode_gives_the_same_bits),
        cmocka_unit_test(greedy_tokens_equal_the_cpus),
        cmocka_unit_test(launches_per_token_are_those_of_the_mode),
        cmocka_unit_test(a_prompt_is_one_launch),
        cmocka_unit_test(steps_allocate_nothing),
        cmocka_unit_test(sessions_that_take_turns_do_not_disturb_each_other),
        cmocka_unit_test(caches_grow_and_are_saved_and_loaded),
        cmocka_unit_test(raw_activations_equal_the_cpus),
        cmocka_unit_test(tokens_chosen_on_the_device_are_those_of_the_sampler),
        cmocka_unit_test(a_generation_ends_where_it_should),
        cmocka_unit_test(benchmarks_count_launches_and_read_the_devices_memory),
        cmocka_unit_test(the_time_of_a_fused_token_is_shared_out_among_its_phases),
        cmocka_unit_test(too_little_memory_is_an_error_that_says_what_would_help),
        cmocka_unit_test(auto_takes_the_device_or_says_why_not),
        cmocka_unit_test(without_cooperative_launches_a_token_is_a_graph),
        cmocka_unit_test(older_devices_give_the_same_bits),
        cmocka_unit_test(a_launch_that_fails_is_an_error_and_the_model_can_be_closed),
    };
    cuda_device_standin();
    cmocka_set_test_filter(getenv("PDVM_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
