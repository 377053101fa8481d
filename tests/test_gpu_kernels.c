// GPU kernels on the emulator, in plain C and as CUDA C, against the CPU backend: all codings, modes,
// grids and thread orders.
// ctest: labels=threads timeout=600

#include "base/half.h"
#include "base/random.h"
#include "emulator/gpu_model.h"
#include "support/support.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Integer products are exact, but a float that is rounded on its way into a product or the cache may
 * go the other way when it differs in its last bit; in models as small as these that shows, most with
 * 8-bit caches. Anything wrong is far beyond.
 */
static double tolerance(const struct gpu_model *m) {
    return m->kv_shape.type_k == PDVM_KV_F32 && m->kv_shape.type_v == PDVM_KV_F32 ? 2e-4 : 2e-3;
}

static const struct gpu_model_shape small = {.hidden = 96,
                                             .intermediate = 160,
                                             .layers = 2,
                                             .heads = 4,
                                             .kv_heads = 2,
                                             .head_dim = 24,
                                             .vocab = 150,
                                             .values = MDCSR_INT8,
                                             .index = MDCSR_BITMAP,
                                             .density = 0.5,
                                             .embedding = MDCSR_F16};

static double difference(const float *a, const float *b, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(error / norm);
}

static void assert_right(const char *wrong) {
    if (wrong) fail_msg("%s", wrong);
}

static float *logits_of(const struct gpu_model *m) {
    float *p = calloc(m->shape.vocab, sizeof *p);
    assert_non_null(p);
    return p;
}

static int32_t token_at(const struct gpu_model *m, uint32_t position) {
    return (int32_t)((7 * position + 3) % m->shape.vocab);
}

/* n tokens on both sides, `at_once` of them in each launch; n_ctx as in gpu_model_batch. */
static void compare(struct gpu_model *m, uint32_t n, uint32_t at_once, uint32_t n_ctx,
                    pdvm_mode mode, const char *what) {
    float *gpu = logits_of(m), *cpu = logits_of(m);
    while (n > 0) {
        int32_t tokens[64];
        uint32_t now = n < at_once ? n : at_once;
        for (uint32_t i = 0; i < now; i++) tokens[i] = token_at(m, m->position + i);
        struct batch b = gpu_model_batch(m, tokens, now, n_ctx, 2);
        gpu_model_cpu(m, &b, cpu);
        const char *wrong = gpu_model_run(m, &b, mode, gpu);
        if (wrong) fail_msg("%s, %s: %s", what, m->dialect, wrong);
        double d = difference(gpu, cpu, m->shape.vocab);
        if (!(d <= tolerance(m)))
            fail_msg("%s, %s, %u blocks of %u threads, position %u: logits differ by %g", what,
                     m->dialect, m->grid.n_blocks, m->grid.n_threads, m->position - 1, d);
        n -= now;
    }
    free(gpu);
    free(cpu);
}

static void all_dialects_and_caches_equal_the_cpu(void **state) {
    (void)state;
    static const char *const dialects[] = {"c", "cuda", "bulk"};
    static const pdvm_kv_type types[][2] = {{PDVM_KV_F16, PDVM_KV_F16},
                                            {PDVM_KV_INT8, PDVM_KV_INT8},
                                            {PDVM_KV_F32, PDVM_KV_F32},
                                            {PDVM_KV_INT8, PDVM_KV_F16}};
    for (size_t t = 0; t < 4; t++) {
        struct gpu_model *m = gpu_model_create(&small, types[t][0], types[t][1], t);
        for (size_t i = 0; i < 3; i++) {
            gpu_model_pack(m, dialects[i], 3, 2, 16);
            compare(m, 4, 1, 0, PDVM_MODE_TOKEN, "token");
        }
        gpu_model_free(m);
    }
}

static void all_codings_equal_the_cpu(void **state) {
    (void)state;
    static const uint32_t groups[] = {0, 32, 64, 128};
    static const double densities[] = {0.5, 0.3, 0.05};
    for (int values = 0; values < MDCSR_N_VALUES; values++) {
        for (int dense = 0; dense < 2; dense++) {
            for (size_t g = 0; g < 4; g++) {
                bool integer = values == MDCSR_INT8 || values == MDCSR_LUT4;
                if (g > 0 && !integer) continue;
                for (size_t d = 0; d < (dense ? 1 : 3); d++) {
                    struct gpu_model_shape s = small;
                    char what[64];
                    s.layers = 1;
                    s.values = (enum mdcsr_values)values;
                    s.index = dense ? MDCSR_DENSE : MDCSR_BITMAP;
                    s.group = groups[g];
                    s.density = dense ? 1 : densities[d];
                    snprintf(what, sizeof what, "%s, %s, group %u, density %g",
                             mdcsr_values_name(s.values), dense ? "dense" : "sparse", s.group,
                             s.density);
                    struct gpu_model *m = gpu_model_create(&s, PDVM_KV_F32, PDVM_KV_F32, 7);
                    gpu_model_pack(m, d % 2 ? "cuda" : "bulk", 2, 3, 8);
                    compare(m, 2, 1, 0, PDVM_MODE_TOKEN, what);
                    gpu_model_free(m);
                }
            }
        }
    }
}

static void odd_shapes_equal_the_cpu(void **state) {
    (void)state;
    static const struct gpu_model_shape shapes[] = {
        {.hidden = 100,
         .intermediate = 70,
         .layers = 1,
         .heads = 3,
         .kv_heads = 1,
         .head_dim = 10,
         .vocab = 77},
        {.hidden = 33,
         .intermediate = 9,
         .layers = 2,
         .heads = 6,
         .kv_heads = 1,
         .head_dim = 6,
         .vocab = 65},
        {.hidden = 128,
         .intermediate = 600,
         .layers = 1,
         .heads = 2,
         .kv_heads = 2,
         .head_dim = 64,
         .vocab = 700},
        {.hidden = 64,
         .intermediate = 64,
         .layers = 1,
         .heads = 5,
         .kv_heads = 5,
         .head_dim = 128,
         .vocab = 64},
        {.hidden = 40,
         .intermediate = 64,
         .layers = 1,
         .heads = 10,
         .kv_heads = 1,
         .head_dim = 256,
         .vocab = 5},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct gpu_model_shape s = shapes[i];
        char what[32];
        s.values = MDCSR_INT8;
        s.index = MDCSR_BITMAP;
        s.density = 0.4;
        s.embedding = (enum mdcsr_values)(i % 3 == 0   ? MDCSR_INT8
                                          : i % 3 == 1 ? MDCSR_F32
                                                       : MDCSR_BF16);
        s.biases = i % 2;
        s.head_norms = i % 2 == 0;
        snprintf(what, sizeof what, "shape %zu", i);
        for (int type = PDVM_KV_F32; type <= PDVM_KV_F16; type++) {
            struct gpu_model *m = gpu_model_create(&s, (pdvm_kv_type)type, PDVM_KV_F16, i);
            gpu_model_pack(m, "bulk", 3, 2, 8);
            compare(m, 3, 1, 0, PDVM_MODE_TOKEN, what);
            gpu_model_free(m);
        }
    }
}

/* The same tokens in every mode, on the same grid: the same bits. */
static void check_modes(const struct gpu_model_shape *s, uint32_t n_tokens, uint64_t seed) {
    struct gpu_model *m = gpu_model_create(s, PDVM_KV_F16, PDVM_KV_F16, seed);
    float *first = NULL;
    size_t bytes = s->vocab * sizeof *first;
    for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
        float *all = calloc(n_tokens, bytes);
        gpu_model_pack(m, mode == PDVM_MODE_LAYER ? "cuda" : "bulk", 3, 3, n_tokens);
        for (uint32_t t = 0; t < n_tokens; t++) {
            int32_t token = token_at(m, t);
            struct batch b = gpu_model_batch(m, &token, 1, 0, 0);
            assert_right(gpu_model_run(m, &b, (pdvm_mode)mode, all + (size_t)t * s->vocab));
        }
        if (first) {
            assert_memory_equal(all, first, n_tokens * bytes);
            free(all);
        } else {
            first = all;
        }
    }
    free(first);
    gpu_model_free(m);
}

static void modes_give_the_same_bits(void **state) {
    (void)state;
    struct gpu_model_shape s = small;
    check_modes(&s, 3, 1);
    s.biases = s.head_norms = true;
    s.values = MDCSR_LUT4;
    s.group = 32;
    check_modes(&s, 3, 2);
    if (SUPPORT_TSAN) return; /* every launch makes its threads, which takes long there */
    s.group = 0;
    check_modes(&s, 3, 4);
    s.biases = s.head_norms = false;
    check_modes(&s, 3, 4);
    s.values = MDCSR_F16;
    s.group = 0;
    s.index = MDCSR_DENSE;
    check_modes(&s, 2, 3);
}

static void the_order_of_threads_changes_nothing(void **state) {
    (void)state;
    static const uint32_t grids[][2] = {{1, 1}, {2, 4}, {5, 2}};
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_INT8, PDVM_KV_INT8, 5);
    size_t bytes = small.vocab * sizeof(float);
    for (size_t i = 0; i < 3; i++) {
        float *first = logits_of(m), *logits = logits_of(m);
        for (int order = EMU_FORWARD; order <= EMU_RANDOM; order++) {
            for (uint64_t seed = 0; seed < (order == EMU_RANDOM ? 3 : 1); seed++) {
                gpu_model_pack(m, "bulk", grids[i][0], grids[i][1], 8);
                m->grid.order = (enum emu_order)order;
                m->grid.seed = seed;
                int32_t tokens[2] = {5, 9};
                struct batch b = gpu_model_batch(m, tokens, 2, 0, 0);
                assert_right(gpu_model_run(m, &b, PDVM_MODE_TOKEN, logits));
                if (order == EMU_FORWARD)
                    memcpy(first, logits, bytes);
                else
                    assert_memory_equal(first, logits, bytes);
            }
        }
        free(first);
        free(logits);
    }
    gpu_model_free(m);
}

#define LONG_CAPACITY 600 /* slots */

/* Contexts of more than 256 positions are split: single query heads, or all that share a kv head. */
static const struct {
    uint32_t heads, kv_heads, head_dim, n_blocks, n_warps;
    pdvm_kv_type type;
} long_contexts[] = {{3, 3, 40, 4, 2, PDVM_KV_F16},
                     {4, 2, 24, 5, 2, PDVM_KV_F16},
                     {4, 1, 12, 3, 2, PDVM_KV_F16},
                     {3, 1, 24, 3, 1, PDVM_KV_INT8},
                     {2, 2, 128, 7, 3, PDVM_KV_F16}};

static struct gpu_model *long_context(size_t i, bool head_norms) {
    struct gpu_model_shape s = small;
    s.heads = long_contexts[i].heads;
    s.kv_heads = long_contexts[i].kv_heads;
    s.head_dim = long_contexts[i].head_dim;
    s.hidden = s.intermediate = 32;
    s.vocab = 40;
    s.window = 262; /* of the second layer */
    s.head_norms = head_norms;
    struct gpu_model *m = gpu_model_create(&s, long_contexts[i].type, long_contexts[i].type, i);
    gpu_model_pack(m, "bulk", long_contexts[i].n_blocks, long_contexts[i].n_warps, LONG_CAPACITY);
    return m;
}

static void long_contexts_are_split_and_joined(void **state) {
    (void)state;
    for (size_t i = 0; i < (SUPPORT_TSAN ? 2 : 4); i++) {
        struct gpu_model *m = long_context(i, false);
        uint8_t *k = malloc(m->k_size);
        /* The context by one group of one warp, which is emulated soonest. */
        gpu_model_pack(m, "bulk", 1, 1, LONG_CAPACITY);
        compare(m, 258, 43, 0, PDVM_MODE_TOKEN, "before it is split");
        memcpy(k, m->k, m->k_size);
        gpu_model_pack(m, "bulk", long_contexts[i].n_blocks, long_contexts[i].n_warps,
                       LONG_CAPACITY);
        memcpy(m->k, k, m->k_size);
        m->position = 258;
        compare(m, 8, 4, 0, PDVM_MODE_TOKEN, "split");
        free(k);
        gpu_model_free(m);
    }
}

/* One step behind a cache full of random numbers, in every mode. */
static void modes_give_the_same_bits_in_long_contexts(void **state) {
    (void)state;
    static const uint32_t positions[] = {1, 7, 100, 254, 255, 257, 590};
    for (size_t i = 0; i < sizeof long_contexts / sizeof *long_contexts; i++) {
        if (long_contexts[i].type != PDVM_KV_F16) continue;
        struct gpu_model *m = long_context(i, true);
        float *first = logits_of(m), *logits = logits_of(m);
        uint64_t seed = i;
        for (size_t e = 0; e < m->k_size / 2; e++) {
            uint16_t half = pd_float_to_f16((float)(pd_random_unit(&seed) - 0.5));
            memcpy(m->k + 2 * e, &half, 2);
        }
        for (size_t n = 0; n < sizeof positions / sizeof *positions; n++) {
            if (SUPPORT_TSAN && (i + n) % 4 != 3) continue;
            for (int mode = PDVM_MODE_TOKEN; mode <= PDVM_MODE_UNFUSED; mode++) {
                int32_t token = 5;
                m->position = positions[n];
                struct batch b = gpu_model_batch(m, &token, 1, 0, 0);
                assert_right(gpu_model_run(m, &b, (pdvm_mode)mode,
                                           mode == PDVM_MODE_TOKEN ? first : logits));
                if (mode != PDVM_MODE_TOKEN)
                    assert_memory_equal(logits, first, m->shape.vocab * sizeof *logits);
            }
        }
        free(first);
        free(logits);
        gpu_model_free(m);
    }
}

static void a_rolling_cache_equals_the_cpu(void **state) {
    (void)state;
    struct gpu_model_shape s = small;
    for (uint32_t window = 0; window <= 20; window += 10) {
        s.window = window;
        pdvm_kv_type type = window == 10 ? PDVM_KV_F16 : PDVM_KV_F32;
        struct gpu_model *m = gpu_model_create(&s, type, type, 4);
        gpu_model_pack(m, "cuda", 2, 2, 14);
        compare(m, 34, 1, 14, PDVM_MODE_TOKEN, "rolling");
        gpu_model_free(m);
    }
}

/* As on a GPU, where a small model's vectors are shorter than a block is wide. */
static void blocks_wider_than_a_vector_equal_the_cpu(void **state) {
    (void)state;
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_F16, PDVM_KV_F16, 5);
    gpu_model_pack(m, "bulk", 2, GPU_BLOCK_THREADS / GPU_LANES, 8);
    compare(m, 3, 1, 0, PDVM_MODE_TOKEN, "as wide as on a GPU");
    gpu_model_free(m);
}

static void activations_of_the_host_equal_the_cpu(void **state) {
    (void)state;
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_F32, PDVM_KV_F32, 6);
    uint64_t seed = 1;
    float x[96], cpu[96], gpu[96];
    gpu_model_pack(m, "bulk", 3, 2, 8);
    for (int i = 0; i < 96; i++) x[i] = cpu[i] = (float)(pd_random_unit(&seed) - 0.5);
    struct batch b = gpu_model_batch(m, NULL, 1, 0, 0);
    b.x = cpu;
    b.n_logits = 0;
    b.first_phase = plan_phase(1);
    b.end_phase = plan_phase(2);
    gpu_model_cpu(m, &b, NULL);
    memcpy(m->g + m->image.plan.x_in, x, sizeof x);
    struct gpu_launch l = gpu_model_launch(m, &b);
    l.first_phase = 0;
    l.end_phase = 1;
    l.x_phase = 6;
    assert_right(gpu_model_launch_run(m, &l, true));
    l.first_phase = 6;
    l.end_phase = 11;
    assert_right(gpu_model_launch_run(m, &l, false));
    memcpy(gpu, m->g + m->image.plan.x, sizeof gpu);
    assert_true(difference(gpu, cpu, 96) <= tolerance(m));
    gpu_model_free(m);
}

/* ---- candidates and sampling -------------------------------------------------------------- */

static int32_t likeliest(const float *logits, uint32_t n) {
    int32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    return best;
}

static void candidates_are_the_best_logits_in_order(void **state) {
    (void)state;
    static const uint32_t vocabs[] = {5, 150, 700, 1500};
    for (size_t v = 0; v < 4; v++) {
        struct gpu_model_shape s = small;
        s.vocab = vocabs[v];
        struct gpu_model *m = gpu_model_create(&s, PDVM_KV_F16, PDVM_KV_F16, v);
        float *logits = logits_of(m);
        gpu_model_pack(m, v % 2 ? "cuda" : "bulk", 7, 2, 8);
        int32_t token = 1;
        struct batch b = gpu_model_batch(m, &token, 1, 0, 0);
        assert_right(gpu_model_run(m, &b, PDVM_MODE_TOKEN, logits));
        const struct gpu_result *r = gpu_model_result(m);
        double mass = 0;
        for (uint32_t i = 0; i < s.vocab; i++) {
            double largest = logits[likeliest(logits, s.vocab)];
            mass += exp(logits[i] - largest);
        }
        assert_float_equal(r->mass, mass, 1e-4 * mass);
        assert_int_equal(r->n_steps, 1);
        assert_int_equal(r->n_candidates, s.vocab < GPU_CANDIDATES ? s.vocab : GPU_CANDIDATES);
        if (s.vocab <= 7 * GPU_BLOCK_TOP) assert_true(r->complete);
        float *left = logits_of(m);
        memcpy(left, logits, s.vocab * sizeof *left);
        for (uint32_t i = 0; i < r->n_candidates && r->complete; i++) {
            int32_t best = likeliest(left, s.vocab);
            assert_int_equal(r->candidate[i].token, best);
            assert_true(r->candidate[i].logit == logits[best]);
            left[best] = -INFINITY;
        }
        free(left);
        free(logits);
        gpu_model_free(m);
    }
}

static void equal_logits_prefer_the_lower_token(void **state) {
    (void)state;
    struct gpu_model_shape s = small;
    s.vocab = 400;
    struct gpu_model *m = gpu_model_create(&s, PDVM_KV_F16, PDVM_KV_F16, 1);
    float *logits = logits_of(m);
    /* An empty head: every logit is 0. */
    struct mdcsr *head = &m->matrix[m->n_matrices - 2];
    const struct mdcsr_options options = {.values = MDCSR_INT8, .index = MDCSR_BITMAP};
    float *w = calloc((size_t)s.vocab * s.hidden, sizeof *w);
    pdvm_error err;
    mdcsr_free(head);
    assert_ok(mdcsr_encode(w, s.vocab, s.hidden, &options, NULL, head, NULL, &err), &err);
    gpu_model_pack(m, "bulk", 5, 2, 8);
    int32_t token = 1;
    struct batch b = gpu_model_batch(m, &token, 1, 0, 0);
    assert_right(gpu_model_run(m, &b, PDVM_MODE_TOKEN, logits));
    const struct gpu_result *r = gpu_model_result(m);
    assert_int_equal(r->candidate[0].token, 0);
    for (uint32_t i = 1; i < r->n_candidates; i++)
        assert_true(r->candidate[i].token > r->candidate[i - 1].token);
    assert_false(r->complete); /* some of the equal ones were left out by their blocks */
    free(w);
    free(logits);
    gpu_model_free(m);
}

static void many_tokens_in_a_launch_equal_one_at_a_time(void **state) {
    (void)state;
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_F16, PDVM_KV_F16, 8);
    int32_t expected[12] = {3, 50, 7}, *tokens;
    float *logits = logits_of(m);
    gpu_model_pack(m, "bulk", 3, 2, 16);
    for (uint32_t i = 0; i < 11; i++) {
        struct batch b = gpu_model_batch(m, &expected[i], 1, 0, 0);
        assert_right(gpu_model_run(m, &b, PDVM_MODE_TOKEN, logits));
        if (i >= 2) expected[i + 1] = likeliest(logits, small.vocab);
    }
    gpu_model_pack(m, "bulk", 3, 2, 16);
    tokens = (int32_t *)(void *)(m->g + m->image.plan.tokens);
    memcpy(tokens, expected, 3 * sizeof *tokens);
    struct batch b = gpu_model_batch(m, expected, 11, 0, 0);
    struct gpu_launch l = gpu_model_launch(m, &b);
    l.n_given = 3;
    l.first_logits = 2;
    l.flags = GPU_SAMPLING;
    assert_right(gpu_model_launch_run(m, &l, false));
    assert_memory_equal(tokens, expected, sizeof expected);
    assert_int_equal(gpu_model_result(m)->n_steps, 11);
    float *last = (float *)(void *)(m->g + m->image.plan.logits);
    assert_memory_equal(last, logits, small.vocab * sizeof *last);

    /* A stop token ends it; the token before the last one is its first occurrence here. */
    uint32_t stop = 3;
    while (stop < 10) {
        uint32_t i = 3;
        while (expected[i] != expected[stop]) i++;
        if (i == stop && stop > 4) break;
        stop++;
    }
    gpu_model_pack(m, "bulk", 3, 2, 16);
    tokens = (int32_t *)(void *)(m->g + m->image.plan.tokens);
    memcpy(tokens, expected, 3 * sizeof *tokens);
    memcpy(m->g + m->image.plan.stops, &expected[stop], sizeof *tokens);
    l.n_stop = 1;
    assert_right(gpu_model_launch_run(m, &l, false));
    uint32_t first = 3;
    while (expected[first] != expected[stop]) first++;
    assert_int_equal(gpu_model_result(m)->n_steps, first);
    assert_memory_equal(tokens, expected, (first + 1) * sizeof *tokens);
    free(logits);
    gpu_model_free(m);
}

/* Draws as the host's sampler would: top-k, top-p at temperature 1, then the temperature. */
static int32_t host_draw(const struct gpu_result *r, const struct gpu_launch *l, uint32_t step) {
    uint64_t state = l->seed + (uint64_t)step * 0x9e3779b97f4a7c15u;
    double u = (double)(pd_random(&state) >> 40) * 0x1p-24, total = 0, sum = 0;
    uint32_t n = r->n_candidates < l->top_k ? r->n_candidates : l->top_k;
    double largest = r->candidate[0].logit;
    for (uint32_t i = 0; i < n; i++) total += exp(r->candidate[i].logit - largest);
    for (uint32_t i = 0; i < n; i++) {
        sum += exp(r->candidate[i].logit - largest);
        if (sum >= (double)l->top_p * total) n = i + 1;
    }
    while (n > 1 && exp(r->candidate[n - 1].logit - largest) < (double)l->min_p) n--;
    total = sum = 0;
    for (uint32_t i = 0; i < n; i++)
        total += exp((r->candidate[i].logit - largest) / (double)l->temperature);
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((r->candidate[i].logit - largest) / (double)l->temperature);
        if (sum > u * total) return (int32_t)r->candidate[i].token;
    }
    return (int32_t)r->candidate[0].token;
}

static void sampling_draws_from_the_distribution(void **state) {
    (void)state;
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_F16, PDVM_KV_F16, 9);
    static const float settings[][4] = {
        {0.8f, 0.95f, 40, 0.05f}, {1.5f, 1, 256, 0}, {1, 0.5f, 100, 0}, {2, 1, 64, 0.3f}};
    gpu_model_pack(m, "bulk", 3, 2, 64);
    int32_t token = 11, *tokens = (int32_t *)(void *)(m->g + m->image.plan.tokens);
    uint32_t different = 0;
    for (size_t s = 0; s < 4; s++) {
        for (uint32_t i = 0; i < 8; i++) {
            struct batch b = gpu_model_batch(m, &token, 1, 0, 0);
            struct gpu_launch l = gpu_model_launch(m, &b);
            tokens[0] = token;
            l.flags = GPU_SAMPLING;
            l.temperature = settings[s][0];
            l.top_p = settings[s][1];
            l.top_k = (uint32_t)settings[s][2];
            l.min_p = settings[s][3];
            l.seed = 1234 + i;
            assert_right(gpu_model_launch_run(m, &l, false));
            const struct gpu_result *r = gpu_model_result(m);
            assert_true(r->complete);
            assert_int_equal(tokens[1], host_draw(r, &l, 0));
            different += tokens[1] != (int32_t)r->candidate[0].token;
            token = tokens[1];
            m->position++;
        }
    }
    assert_true(different > 5);
    gpu_model_free(m);
}

/* ---- beside the plan ---------------------------------------------------------------------- */

static void a_stored_step_equals_the_launchs_own(void **state) {
    (void)state;
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_F16, PDVM_KV_F16, 12);
    float *first = logits_of(m), *logits = logits_of(m);
    for (int stored = 0; stored < 2; stored++) {
        gpu_model_pack(m, "bulk", 3, 2, 8);
        for (int i = 0; i < 3; i++) {
            int32_t token = 5 * i;
            struct batch b = gpu_model_batch(m, &token, 1, 0, 0);
            struct gpu_launch l = gpu_model_launch(m, &b);
            const struct gpu_step step = {l.position, l.slot, l.n_visible, l.n_dropped};
            memcpy(m->g + m->image.plan.tokens, &token, sizeof token);
            memcpy(m->g + m->image.plan.step, &step, sizeof step);
            if (stored) {
                l.flags = GPU_STEP_STORED;
                l.position = l.slot = l.n_visible = 7; /* not looked at */
            }
            assert_right(gpu_model_launch_run(m, &l, false));
            m->position++;
        }
        memcpy(stored ? logits : first, m->g + m->image.plan.logits, small.vocab * sizeof *logits);
    }
    assert_memory_equal(logits, first, small.vocab * sizeof *logits);
    free(first);
    free(logits);
    gpu_model_free(m);
}

static void the_bandwidths_kernel_reads_every_word(void **state) {
    (void)state;
    static const emu_kernel kernels[] = {pdvm_read_c, pdvm_read_cuda};
    static const uint64_t sizes[] = {16, 16 * 1000, 16 * 5003};
    const struct emu_grid grid = {.n_blocks = 3, .n_threads = 64, .shared_bytes = 16};
    uint64_t seed = 3;
    uint32_t *words = malloc(sizes[2]), sums[3 * 64];
    for (size_t i = 0; i < sizes[2] / 4; i++) words[i] = (uint32_t)pd_random(&seed);
    for (size_t i = 0; i < 6; i++) {
        const struct gpu_launch l = {.read_bytes = sizes[i / 2]};
        uint32_t expected = 0, sum = 0;
        for (size_t k = 0; k < l.read_bytes / 4; k++) expected ^= words[k];
        assert_right(
            emu_launch(kernels[i % 2], (const uint8_t *)words, (uint8_t *)sums, NULL, &l, &grid));
        for (size_t k = 0; k < sizeof sums / sizeof *sums; k++) sum ^= sums[k];
        assert_int_equal(sum, expected);
    }
    free(words);
}

/* ---- seeded faults ------------------------------------------------------------------------ */

/* The third of three tokens, with or without a fault; what the host reads afterwards in `out`. */
struct outcome {
    float logits[150];
    struct gpu_result result;
};

static const char *third_token(struct gpu_model *m, enum emu_order order, uint64_t seed,
                               enum emu_fault fault, uint32_t at, struct outcome *out) {
    int32_t tokens[3] = {5, 9, 2};
    gpu_model_pack(m, "bulk", 3, 2, 8);
    struct batch b = gpu_model_batch(m, tokens, 2, 0, 0);
    assert_right(gpu_model_run(m, &b, PDVM_MODE_TOKEN, out->logits));
    m->grid.order = order;
    m->grid.seed = seed;
    m->grid.fault = fault;
    m->grid.fault_at = at;
    b = gpu_model_batch(m, tokens + 2, 1, 0, 0);
    const char *wrong = gpu_model_run(m, &b, PDVM_MODE_TOKEN, out->logits);
    out->result = *gpu_model_result(m);
    return wrong;
}

/*
 * Whether something broken on purpose shows: as a complaint, as other bits or as a crash, in any
 * of a few orders of the threads. In a process of its own, for what comes of it may be anything.
 */
static bool fault_shows(struct gpu_model *m, enum emu_fault fault, uint32_t at,
                        const struct outcome *right) {
    for (int attempt = 0; attempt < 6; attempt++) {
        enum emu_order order = attempt < EMU_RANDOM ? (enum emu_order)attempt : EMU_RANDOM;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct outcome out = {.logits = {0}};
            alarm(20);
            if (freopen("/dev/null", "w", stderr) == NULL) _exit(1);
            const char *wrong = third_token(m, order, (uint64_t)attempt + 1, fault, at, &out);
            const size_t listed = offsetof(struct gpu_result, candidate) +
                                  right->result.n_candidates * sizeof(struct gpu_candidate);
            _exit(wrong ||
                  memcmp((const void *)out.logits, (const void *)right->logits,
                         sizeof out.logits) != 0 ||
                  memcmp((const void *)&out.result, (const void *)&right->result, listed) != 0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (status != 0) return true;
    }
    return false;
}

static void missing_syncs_and_waits_are_noticed(void **state) {
    (void)state;
    struct gpu_model_shape s = small;
    s.layers = 1;
    struct gpu_model *m = gpu_model_create(&s, PDVM_KV_F16, PDVM_KV_F16, 10);
    struct outcome right = {.logits = {0}};
    assert_right(third_token(m, EMU_FORWARD, 1, EMU_NO_FAULT, 0, &right));
    uint32_t n = emu_syncs(), shown = 0, tried = 0;
    assert_false(fault_shows(m, EMU_SKIP_SYNC, n, &right));
    assert_true(fault_shows(m, EMU_SKIP_WAIT, 0, &right));
    assert_true(fault_shows(m, EMU_EARLY_GRID, 0, &right));
    for (uint32_t i = 0; i < n; i += 5) { /* a sample: each takes three processes */
        bool shows = fault_shows(m, EMU_SKIP_SYNC, i, &right);
        shown += shows;
        tried++;
        if (!shows && getenv("PDVM_SHOW_SYNCS"))
            print_message("not noticed: sync %u of %u\n", i, n);
    }
    assert_true(shown * 10 >= tried * 7); /* some are needed in rare cases only */
    gpu_model_free(m);
}

static void a_wrong_offset_is_noticed(void **state) {
    (void)state;
    struct gpu_model *m = gpu_model_create(&small, PDVM_KV_F16, PDVM_KV_F16, 11);
    float *right = logits_of(m), *logits = logits_of(m);
    const int32_t tokens[] = {5, 9}; /* two: a single one's query has nothing to choose from */
    gpu_model_pack(m, "bulk", 3, 2, 8);
    struct batch b = gpu_model_batch(m, tokens, 2, 0, 0);
    assert_right(gpu_model_run(m, &b, PDVM_MODE_TOKEN, right));
    /* Each product phase's second stream begins 16 bytes late. */
    for (uint32_t i = 0; i < m->image.plan.n_phases; i++) {
        const struct gpu_layout *l = &m->image.layouts[i];
        if (l->n_matrices == 0 || l->streams[1] == l->streams[2]) continue; /* an empty stream */
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            alarm(20);
            if (freopen("/dev/null", "w", stderr) == NULL) _exit(1);
            gpu_model_pack(m, "bulk", 3, 2, 8);
            b = gpu_model_batch(m, tokens, 2, 0, 0);
            ((uint32_t *)(void *)(m->w + m->image.phases[i].streams))[1]++;
            const char *wrong = gpu_model_run(m, &b, PDVM_MODE_TOKEN, logits);
            _exit(wrong || memcmp(logits, right, small.vocab * sizeof *logits) != 0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (status == 0) fail_msg("phase %u: not noticed", i);
    }
    free(right);
    free(logits);
    gpu_model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_dialects_and_caches_equal_the_cpu),
        cmocka_unit_test(all_codings_equal_the_cpu),
        cmocka_unit_test(odd_shapes_equal_the_cpu),
        cmocka_unit_test(modes_give_the_same_bits),
        cmocka_unit_test(the_order_of_threads_changes_nothing),
        cmocka_unit_test(long_contexts_are_split_and_joined),
        cmocka_unit_test(modes_give_the_same_bits_in_long_contexts),
        cmocka_unit_test(a_rolling_cache_equals_the_cpu),
        cmocka_unit_test(blocks_wider_than_a_vector_equal_the_cpu),
        cmocka_unit_test(activations_of_the_host_equal_the_cpu),
        cmocka_unit_test(candidates_are_the_best_logits_in_order),
        cmocka_unit_test(equal_logits_prefer_the_lower_token),
        cmocka_unit_test(many_tokens_in_a_launch_equal_one_at_a_time),
        cmocka_unit_test(sampling_draws_from_the_distribution),
        cmocka_unit_test(a_stored_step_equals_the_launchs_own),
        cmocka_unit_test(the_bandwidths_kernel_reads_every_word),
        cmocka_unit_test(missing_syncs_and_waits_are_noticed),
        cmocka_unit_test(a_wrong_offset_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
