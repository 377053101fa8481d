// The CUDA backend on a real GPU: codings, modes, architectures, long contexts and long texts against the
// CPU backend; thousands of tokens in every mode; sessions, processes and memory. Skipped without a GPU.
// PDVM_GPU_TOKENS shortens the long run (10000), PDVM_TEST_FILTER picks tests by their names.
// ctest: labels=gpu timeout=1200

#include "base/time.h"
#include "support/cuda_checks.h"
#include "support/cuda_device.h"
#include "support/support.h"

#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHAPE "hidden=512,layers=3,intermediate=1408,heads=8,kv-heads=4,head-dim=64,vocab=4096"
#define ODD "hidden=328,layers=2,intermediate=904,heads=6,kv-heads=2,head-dim=72,vocab=1003"
#define TALES "models/tales"

/* Weights of any kind, and caches of fewer bits. */
#define EXACT 1e-4
#define ROUNDED 3e-3

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 10) : otherwise;
}

static void check_coding(const char *shape, const char *values, double sparsity, uint32_t group) {
    struct cuda_pair p;
    cuda_pair_open(&p, shape, values, sparsity, group);
    cuda_check_modes(&p, PDVM_KV_F16, 6);
    double worst = cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_F32, 33, 4, EXACT);
    print_message("  %s: largest difference %.2g\n", p.name, worst);
    cuda_pair_close(&p);
}

static void all_codings_in_all_modes_equal_the_cpu(void **state) {
    (void)state;
    static const double sparsities[] = {0, 0.5, 0.7, 0.9};
    for (size_t i = 0; i < 4; i++) {
        check_coding(SHAPE, "int8", sparsities[i], 0);
        check_coding(SHAPE, "int8", sparsities[i], 64);
        check_coding(SHAPE, "lut4", sparsities[i], 0);
        check_coding(SHAPE, "lut4", sparsities[i], 64);
        check_coding(SHAPE, "f16", sparsities[i], 0);
        check_coding(ODD, "int8", sparsities[i], 0);
    }
    check_coding(ODD, "bf16", 0.5, 0);
    check_coding(ODD, "f32", 0, 0);
    check_coding(ODD, "lut8", 0.5, 0);
}

static void all_architectures_equal_the_cpu(void **state) {
    (void)state;
    static const char *const models[] = {
        "tests/golden/tiny-gqa",     "tests/golden/tiny-odd",    "tests/golden/tiny-pruned",
        "tests/golden/tiny-sharded", "tests/golden/tiny-llama3", "tests/golden/tiny-linear",
        "tests/golden/tiny-yarn",    "tests/golden/tiny-qwen2",  "tests/golden/tiny-qwen3",
        "tests/golden/tiny-phi3",    "tests/golden/tiny-mistral"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct cuda_pair p;
        cuda_pair_open(&p, models[i], "f32", 0, 0);
        double worst = 0;
        for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
            double d = cuda_check_equals_cpu(&p, (pdvm_mode)mode, PDVM_KV_F32, 40, 4, EXACT);
            if (d > worst) worst = d;
        }
        print_message("  %s: largest difference %.2g\n", p.name, worst);
        cuda_pair_close(&p);
    }
}

static void short_caches_stay_close_to_the_cpu(void **state) {
    (void)state;
    struct cuda_pair p;
    cuda_pair_open(&p, SHAPE, "int8", 0.5, 0);
    cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_F16, 200, 4, ROUNDED);
    cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_INT8, 200, 4, ROUNDED);
    cuda_pair_close(&p);
}

static void long_contexts_equal_the_cpu(void **state) {
    (void)state;
    struct cuda_pair p;
    cuda_pair_open(&p, SHAPE, "int8", 0.7, 0);
    double worst = cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_F32, 6000, 2, EXACT);
    print_message("  6000 tokens: largest difference %.2g\n", worst);
    cuda_pair_close(&p);
}

static void long_greedy_texts_equal_the_cpus(void **state) {
    (void)state;
    enum { N = 500 };
    struct cuda_pair p;
    static int32_t cpu[N], cuda[N];
    const int32_t prompt[] = {0, 441, 278, 266}; /* the beginning of a text, and some words */
    cuda_pair_open(&p, TALES, "int8", 0, 0);
    pdvm_session *s = cuda_session(p.cpu, PDVM_MODE_TOKEN, PDVM_KV_F32, N + 4);
    cuda_greedy(s, prompt, 4, cpu, N);
    pdvm_session_free(s);
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        s = cuda_session(p.cuda, (pdvm_mode)mode, PDVM_KV_F32, N + 4);
        cuda_greedy(s, prompt, 4, cuda, N);
        for (int i = 0; i < N; i++)
            if (cuda[i] != cpu[i]) fail_msg("mode %d: token %d is another one", mode, i);
        pdvm_session_free(s);
    }
    /* And chosen on the device, many in a launch. */
    const pdvm_sampler_options greedy = {.top_p = 1, .typical_p = 1, .repeat_penalty = 1};
    const pdvm_generate_options options = {.n_predict = N, .ignore_end = true};
    pdvm_sampler *sampler;
    pdvm_error err;
    size_t n;
    s = cuda_session(p.cuda, PDVM_MODE_TOKEN, PDVM_KV_F32, N + 4);
    assert_ok(pdvm_session_sync(s, prompt, 4, &err), &err);
    assert_ok(pdvm_sampler_create(&greedy, &sampler, &err), &err);
    assert_ok(pdvm_generate(s, sampler, &options, NULL, NULL, &n, NULL, &err), &err);
    assert_int_equal(n, N);
    assert_memory_equal(pdvm_session_tokens(s, &n) + 4, cpu, sizeof cpu);
    pdvm_sampler_free(sampler);
    pdvm_session_free(s);
    cuda_pair_close(&p);
}

static void sampled_texts_are_the_same_step_by_step_and_many_at_once(void **state) {
    (void)state;
    enum { N = 300 };
    struct cuda_pair p;
    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    const pdvm_generate_options options = {.n_predict = N, .ignore_end = true};
    const int32_t prompt[] = {0, 441, 278, 266};
    int32_t *texts[2];
    size_t n;
    cuda_pair_open(&p, TALES, "int8", 0, 0);
    sampling.seed = 5;
    for (int i = 0; i < 2; i++) {
        pdvm_session *s =
            cuda_session(p.cuda, i ? PDVM_MODE_LAYER : PDVM_MODE_TOKEN, PDVM_KV_F16, N + 4);
        pdvm_sampler *sampler;
        pdvm_error err;
        assert_ok(pdvm_session_sync(s, prompt, 4, &err), &err);
        assert_ok(pdvm_sampler_create(&sampling, &sampler, &err), &err);
        assert_ok(pdvm_generate(s, sampler, &options, NULL, NULL, NULL, NULL, &err), &err);
        const int32_t *tokens = pdvm_session_tokens(s, &n);
        assert_int_equal(n, N + 4);
        texts[i] = malloc(n * sizeof *tokens);
        memcpy(texts[i], tokens, n * sizeof *tokens);
        pdvm_sampler_free(sampler);
        pdvm_session_free(s);
    }
    assert_memory_equal(texts[0], texts[1], n * sizeof **texts);
    free(texts[0]);
    free(texts[1]);
    cuda_pair_close(&p);
}

static void sessions_that_take_turns_do_not_disturb_each_other(void **state) {
    (void)state;
    struct cuda_pair p;
    cuda_pair_open(&p, SHAPE, "int8", 0.5, 0);
    cuda_check_turns(&p, PDVM_MODE_UNFUSED, 120);
    cuda_pair_close(&p);
}

static void out_of_memory_is_an_error_and_nothing_more(void **state) {
    (void)state;
    struct cuda_pair p;
    pdvm_error err;
    cuda_pair_open(&p, "hidden=256,layers=40,intermediate=256,heads=8,head-dim=128,vocab=300",
                   "int8", 0.5, 0);
    struct backend *b = p.cuda->backend;
    pdvm_session *s = cuda_session(p.cuda, PDVM_MODE_TOKEN, PDVM_KV_F32, 64);
    /* 40 layers * 8 heads * 128 * 4 bytes * 2 * 2^24: more than five terabytes. */
    assert_error(b->ops->kv_reserve(b, s->cache.memory, 1u << 24, &err), PDVM_ERR_MEMORY, &err,
                 "the KV cache needs");
    assert_ok(pdvm_session_step(s, 1, &err), &err);
    pdvm_session_free(s);
    cuda_pair_close(&p);
}

static void thousands_of_tokens_in_every_mode_without_a_hang(void **state) {
    (void)state;
    long n = setting("PDVM_GPU_TOKENS", 10000);
    struct cuda_pair p;
    pdvm_session_options o = pdvm_session_options_default();
    pdvm_session *s;
    pdvm_error err;
    cuda_pair_open(&p, SHAPE, "int8", 0.7, 0);
    o.n_ctx = 300;
    o.rolling = true;
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        double start = pd_seconds();
        o.mode = (pdvm_mode)mode;
        assert_ok(pdvm_session_create(p.cuda, &o, &s, &err), &err);
        for (long i = 0; i < n; i++)
            assert_ok(pdvm_session_step(s, (int32_t)(i * 7 % 4096), &err), &err);
        print_message("  mode %d: %ld tokens in %.1f s\n", mode, n, pd_seconds() - start);
        pdvm_session_free(s);
    }
    /* And as many chosen by the device. */
    const pdvm_sampler_options greedy = {.top_p = 1, .typical_p = 1, .repeat_penalty = 1};
    const pdvm_generate_options options = {.n_predict = n, .ignore_end = true};
    pdvm_sampler *sampler;
    size_t done;
    s = cuda_session(p.cuda, PDVM_MODE_TOKEN, PDVM_KV_F16, (uint32_t)n + 1);
    double start = pd_seconds();
    assert_ok(pdvm_session_step(s, 1, &err), &err);
    assert_ok(pdvm_sampler_create(&greedy, &sampler, &err), &err);
    assert_ok(pdvm_generate(s, sampler, &options, NULL, NULL, &done, NULL, &err), &err);
    assert_int_equal(done, n);
    print_message("  many at once: %ld tokens in %.1f s\n", n, pd_seconds() - start);
    pdvm_sampler_free(sampler);
    pdvm_session_free(s);
    cuda_pair_close(&p);
}

/* What a process does that shares the GPU with others. */
static int share(void) {
    struct cuda_pair p;
    cuda_pair_open(&p, SHAPE, "int8", 0.5, 0);
    for (int i = 0; i < 20; i++)
        cuda_check_equals_cpu(&p, PDVM_MODE_TOKEN, PDVM_KV_F32, 20, 10, EXACT);
    cuda_pair_close(&p);
    return 0;
}

static void run_share(void **state) {
    (void)state;
    share();
}

static void processes_share_the_gpu(void **state) {
    (void)state;
    char *arguments[] = {(char *)(uintptr_t) "/proc/self/exe", (char *)(uintptr_t) "share", NULL};
    pid_t children[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(posix_spawn(&children[i], arguments[0], NULL, NULL, arguments, environ),
                         0);
    share();
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest shared[] = {cmocka_unit_test(run_share)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_codings_in_all_modes_equal_the_cpu),
        cmocka_unit_test(all_architectures_equal_the_cpu),
        cmocka_unit_test(short_caches_stay_close_to_the_cpu),
        cmocka_unit_test(long_contexts_equal_the_cpu),
        cmocka_unit_test(long_greedy_texts_equal_the_cpus),
        cmocka_unit_test(sampled_texts_are_the_same_step_by_step_and_many_at_once),
        cmocka_unit_test(sessions_that_take_turns_do_not_disturb_each_other),
        cmocka_unit_test(out_of_memory_is_an_error_and_nothing_more),
        cmocka_unit_test(thousands_of_tokens_in_every_mode_without_a_hang),
        cmocka_unit_test(processes_share_the_gpu),
    };
    if (!cuda_device_present()) return 77;
    if (argc > 1 && strcmp(argv[1], "share") == 0)
        return cmocka_run_group_tests(shared, NULL, NULL);
    cmocka_set_test_filter(getenv("PDVM_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
