// Batches of tokens against the same tokens one by one, bit for bit, on every instruction set; and
// the kernels of their attention against plain loops.

#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"
#include "backend/cpu/exp.h"
#include "base/half.h"
#include "base/random.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS 40

struct shape {
    int64_t rows;
    int64_t cols;
};

#ifdef CROSS_TEST // an emulator runs it: a sample
static const struct shape shapes[] = {{33, 130}};
#else
static const struct shape shapes[] = {{1, 1},    {5, 65},    {16, 64},  {33, 130},
                                      {70, 257}, {300, 100}, {20, 1500}};
#endif

// Rows of floats so wide that only the smallest panel has room for them.
static const struct shape wide = {70, 9000};

// Everything that a product of a batch needs, as a worker has it.
struct bench {
    struct cpu_batch_acts acts;
    struct cpu_act scratch;
    void *memory;
    void *panel;
    float *x; // [MAX_TOKENS][padded]
    size_t padded;
};

static void *aligned(size_t bytes) {
    void *p = aligned_alloc(128, (bytes + 255) / 128 * 128);
    assert_non_null(p);
    memset(p, 0x55, (bytes + 255) / 128 * 128); // what is not written must not be used
    return p;
}

static void bench_open(struct bench *b, int64_t cols, int digits, uint64_t seed) {
    int64_t n_blocks = (cols + BLOCK_COLS - 1) / BLOCK_COLS;
    size_t tiles = (MAX_TOKENS + BATCH_TOKENS - 1) / BATCH_TOKENS;
    b->padded = (size_t)n_blocks * BLOCK_COLS;
    b->acts.digits = digits;
    b->acts.tile_bytes = batch_tile_bytes(n_blocks);
    b->acts.packed = aligned(tiles * b->acts.tile_bytes);
    b->acts.scales = aligned(tiles * BATCH_TOKENS * sizeof(float));
    b->acts.x = aligned(tiles * BATCH_TOKENS * sizeof *b->acts.x);
    b->memory = aligned(cpu_act_bytes((size_t)cols));
    cpu_act_place(&b->scratch, b->memory, (size_t)cols);
    b->panel = aligned(batch_panel_bytes(cols));
    b->x = aligned(MAX_TOKENS * b->padded * sizeof(float));
    memset(b->x, 0, MAX_TOKENS * b->padded * sizeof(float));
    for (uint32_t t = 0; t < MAX_TOKENS; t++) {
        for (int64_t c = 0; c < cols; c++) {
            float *v = &b->x[t * b->padded + (size_t)c];
            *v = (float)(pd_random_unit(&seed) * 4 - 2);
            if (pd_random(&seed) % 50 == 0) *v *= 20; // outliers, as activations have
        }
        b->acts.x[t] = b->x + t * b->padded;
    }
}

static void bench_close(struct bench *b) {
    free(b->acts.packed);
    free(b->acts.scales);
    free(b->acts.x);
    free(b->memory);
    free(b->panel);
    free(b->x);
}

// The products of n tokens in two parts of the tiles, as two workers would compute them.
static float *batch_products(const struct cpu_kernels *k, struct bench *b,
                             const struct cpu_matrix *m, int64_t cols, uint32_t n) {
    float *out = malloc(n * (size_t)m->rows * sizeof *out);
    assert_non_null(out);
    for (size_t i = 0; i < n * (size_t)m->rows; i++) out[i] = NAN; // unwritten outputs must show
    if (cpu_kind_is_integer(m->kind))
        for (uint32_t t = 0; t < n; t += BATCH_TOKENS)
            cpu_batch_pack(k, &b->acts, t / BATCH_TOKENS, b->x + t * b->padded, b->padded, cols,
                           n - t < BATCH_TOKENS ? n - t : BATCH_TOKENS, &b->scratch);
    int64_t middle = m->n_tiles / 2;
    cpu_batch_product(k, m, 0, middle, &b->acts, n, b->panel, out, m->rows);
    cpu_batch_product(k, m, middle, m->n_tiles, &b->acts, n, b->panel, out + middle * TILE_ROWS,
                      m->rows);
    return out;
}

static float *single_products(const struct cpu_kernels *k, struct bench *b,
                              const struct cpu_matrix *m, int64_t cols, uint32_t n) {
    float *out = malloc(n * (size_t)m->rows * sizeof *out);
    assert_non_null(out);
    for (uint32_t t = 0; t < n; t++) {
        b->scratch.x = b->x + t * b->padded;
        k->quantise(b->scratch.x, cols, &b->scratch);
        k->product[m->kind][m->dense](m, 0, m->n_tiles, &b->scratch, 1, out + t * m->rows, m->rows);
    }
    return out;
}

static struct cpu_matrix *random_matrix(const struct shape *shape, enum mdcsr_values values,
                                        uint32_t group, double density, uint64_t *seed) {
    size_t n = (size_t)(shape->rows * shape->cols);
    float *w = calloc(n, sizeof *w);
    struct mdcsr m;
    struct cpu_matrix *packed;
    pdvm_error err;
    struct mdcsr_options options = {.values = values,
                                    .codebook = MDCSR_LEARNED,
                                    .index = density < 1 ? MDCSR_BITMAP : MDCSR_DENSE,
                                    .group = group};
    assert_non_null(w);
    for (size_t i = 0; i < n; i++)
        if (pd_random_unit(seed) < density) w[i] = (float)(pd_random_unit(seed) - 0.5);
    assert_ok(mdcsr_encode(w, shape->rows, shape->cols, &options, NULL, &m, NULL, &err), &err);
    assert_ok(cpu_matrix_pack(&m, NULL, &packed, &err), &err);
    mdcsr_free(&m);
    free(w);
    return packed;
}

static void check_matrix(const struct cpu_matrix *m, int64_t cols, uint64_t seed) {
    static const uint32_t counts[] = {1, 3, 16, 17, MAX_TOKENS};
    struct bench b;
    const struct cpu_kernels *k;
    bench_open(&b, cols, 2, seed);
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            uint32_t n = counts[c];
            float *one = single_products(k, &b, m, cols, n);
            float *many = batch_products(k, &b, m, cols, n);
            for (size_t j = 0; j < n * (size_t)m->rows; j++)
                if (one[j] != many[j])
                    fail_msg("%s: %lld x %lld, group %u, %u tokens: token %zu row %zu: %.9g alone, "
                             "%.9g in a batch",
                             k->name, (long long)m->rows, (long long)cols, m->group, n,
                             j / (size_t)m->rows, j % (size_t)m->rows, one[j], many[j]);
            free(one);
            free(many);
        }
    }
    bench_close(&b);
}

static void check_values(enum mdcsr_values values, bool grouped) {
    static const uint32_t groups[] = {0, 32, 64, 128, 256};
    static const double densities[] = {0.3, 1.0};
    uint64_t seed = 100 * (uint64_t)values;
    for (size_t g = 0; g < (grouped ? 5u : 1u); g++)
        for (size_t d = 0; d < 2; d++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
                struct cpu_matrix *m =
                    random_matrix(&shapes[s], values, groups[g], densities[d], &seed);
                check_matrix(m, shapes[s].cols, seed);
                cpu_matrix_free(m);
            }
}

static void batches_of_int8_equal_single_tokens(void **state) {
    (void)state;
    check_values(MDCSR_INT8, true);
}

static void batches_of_lut4_equal_single_tokens(void **state) {
    (void)state;
    check_values(MDCSR_LUT4, true);
}

static void batches_of_lut8_equal_single_tokens(void **state) {
    (void)state;
    check_values(MDCSR_LUT8, true);
}

static void batches_of_wide_rows_equal_single_tokens(void **state) {
    (void)state;
    static const enum mdcsr_values values[] = {MDCSR_INT8, MDCSR_LUT4, MDCSR_BF16};
    uint64_t seed = 77;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        struct cpu_matrix *m = random_matrix(&wide, values[i], i == 1 ? 64 : 0, 0.5, &seed);
        check_matrix(m, wide.cols, seed);
        cpu_matrix_free(m);
    }
}

static void batches_of_floats_equal_single_tokens(void **state) {
    (void)state;
    check_values(MDCSR_F32, false);
    check_values(MDCSR_BF16, false);
    check_values(MDCSR_F16, false);
}

// More columns than 32-bit sums have room for, at full scale: all codes 127, all activations equal.
static void the_widest_row_does_not_overflow(void **state) {
    (void)state;
    const int64_t cols = 140000;
    float *w = malloc((size_t)cols * sizeof *w);
    struct bench b;
    struct mdcsr m;
    struct cpu_matrix *p;
    pdvm_error err;
    struct mdcsr_options options = {.values = MDCSR_INT8, .index = MDCSR_DENSE};
    assert_non_null(w);
    for (int64_t c = 0; c < cols; c++) w[c] = 1.0f;
    assert_ok(mdcsr_encode(w, 1, cols, &options, NULL, &m, NULL, &err), &err);
    assert_ok(cpu_matrix_pack(&m, NULL, &p, &err), &err);
    for (int digits = 1; digits <= 2; digits++) {
        const struct cpu_kernels *k;
        bench_open(&b, cols, digits, 1);
        for (int64_t c = 0; c < cols; c++) b.x[c] = 3.0f;
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            if (!k->supported()) continue;
            float *out = batch_products(k, &b, p, cols, 5);
            assert_float_equal(out[0] / (3.0f * (float)cols), 1.0f, 1e-4f);
            free(out);
        }
        bench_close(&b);
    }
    cpu_matrix_free(p);
    mdcsr_free(&m);
    free(w);
}

// 8 bits: every instruction set gives the same, and the error is that of rounding to 1/127 of the
// largest activation.
static void eight_bit_activations_lose_only_their_low_bits(void **state) {
    (void)state;
    static const uint32_t groups[] = {0, 32, 64};
    uint64_t seed = 3;
    for (size_t g = 0; g < 3; g++) {
        const struct shape shape = {70, 700};
        const uint32_t n = 20;
        struct cpu_matrix *m = random_matrix(&shape, MDCSR_INT8, groups[g], 0.5, &seed);
        struct bench exact, b;
        bench_open(&exact, shape.cols, 2, 17);
        bench_open(&b, shape.cols, 1, 17);
        float *expected = batch_products(&cpu_kernels_scalar, &exact, m, shape.cols, n);
        float *first = batch_products(&cpu_kernels_scalar, &b, m, shape.cols, n);
        double error = 0, norm = 0;
        for (size_t i = 0; i < n * (size_t)m->rows; i++) {
            error += pow((double)first[i] - (double)expected[i], 2);
            norm += pow((double)expected[i], 2);
        }
        assert_true(sqrt(error / norm) > 1e-4); // it is another thing than 16 bits
        assert_true(sqrt(error / norm) < 0.05); // outliers of 20 times the others cost so much
        const struct cpu_kernels *k;
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            if (!k->supported()) continue;
            float *out = batch_products(k, &b, m, shape.cols, n);
            assert_memory_equal(out, first, n * (size_t)m->rows * sizeof *out);
            free(out);
        }
        free(expected);
        free(first);
        bench_close(&exact);
        bench_close(&b);
        cpu_matrix_free(m);
    }
}

static void activations_that_are_not_finite_spoil_only_their_token(void **state) {
    (void)state;
    const struct shape shape = {20, 200};
    uint64_t seed = 5;
    struct cpu_matrix *m = random_matrix(&shape, MDCSR_INT8, 64, 0.5, &seed);
    const struct cpu_kernels *k;
    struct bench b;
    bench_open(&b, shape.cols, 2, 4);
    b.x[3 * b.padded + 7] = INFINITY;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        float *out = batch_products(k, &b, m, shape.cols, 18);
        for (uint32_t t = 0; t < 18; t++)
            for (int64_t r = 0; r < m->rows; r++)
                assert_true(isnan(out[t * m->rows + r]) == (t == 3));
        free(out);
    }
    bench_close(&b);
    cpu_matrix_free(m);
}

// ---- attention ---------------------------------------------------------------------------------

static void the_exponential_is_accurate_over_its_range(void **state) {
    (void)state;
    double worst = 0;
    for (int i = -87300; i < 88300; i++) {
        float v = (float)i * 0.001f;
        double expected = exp((double)v);
        worst = fmax(worst, fabs((double)exp_f32(v) - expected) / expected);
    }
    assert_true(worst < 2.0e-7);
    assert_float_equal(exp_f32(0), 1, 0);
    assert_float_equal(exp_f32(-INFINITY), 0, 0);
    assert_float_equal(exp_f32(-1e30f), 0, 0);
    assert_true(exp_f32(INFINITY) > 1e38f);
    assert_true(isnan(exp_f32(NAN)));
}

static void fill(float *x, size_t n, double scale, uint64_t *seed) {
    for (size_t i = 0; i < n; i++) x[i] = (float)((pd_random_unit(seed) - 0.5) * scale);
}

static void silu_is_the_same_on_every_instruction_set(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 15, 16, 33, 200};
    uint64_t seed = 8;
    const struct cpu_kernels *k;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        float gate[200], up[200], first[200], out[201];
        fill(gate, 200, 300, &seed);
        fill(up, 200, 2, &seed);
        cpu_attention_scalar.silu_mul(gate, up, sizes[s], first);
        for (int64_t i = 0; i < sizes[s]; i++) {
            double expected = (double)gate[i] / (1 + exp(-(double)gate[i])) * (double)up[i];
            assert_float_equal(first[i], expected, 4e-7 * fabs(expected) + 1e-30);
        }
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            if (!k->supported()) continue;
            out[sizes[s]] = 7;
            k->attention->silu_mul(gate, up, sizes[s], out);
            assert_memory_equal(out, first, (size_t)sizes[s] * sizeof *out);
            assert_float_equal(out[sizes[s]], 7, 0);
        }
    }
}

static void softmax_steps_are_the_same_on_every_instruction_set(void **state) {
    (void)state;
    uint64_t seed = 9;
    const struct cpu_kernels *k;
    for (uint32_t n = 1; n <= KV_CHUNK; n += 7) {
        float scores[3][KV_CHUNK], state_of[2] = {-INFINITY, 0};
        double sum = 0, max = -INFINITY;
        fill(scores[0], sizeof scores / sizeof scores[0][0], 40, &seed);
        for (int c = 0; c < 3; c++)
            for (uint32_t i = 0; i < n; i++) max = fmax(max, 0.25 * (double)scores[c][i]);
        for (int c = 0; c < 3; c++)
            for (uint32_t i = 0; i < n; i++) sum += exp(0.25 * (double)scores[c][i] - max);
        float first[3][KV_CHUNK], shrink[3];
        memcpy(first, scores, sizeof first);
        for (int c = 0; c < 3; c++)
            shrink[c] = cpu_attention_scalar.softmax(first[c], n, 0.25f, state_of);
        assert_float_equal(state_of[0], max, 1e-5);
        assert_float_equal(state_of[1], sum, 1e-5 * sum);
        for (size_t j = 0; (k = cpu_kernels_at(j)); j++) {
            if (!k->supported()) continue;
            float again[3][KV_CHUNK], got[2] = {-INFINITY, 0};
            memcpy(again, scores, sizeof again);
            for (int c = 0; c < 3; c++)
                assert_float_equal(k->attention->softmax(again[c], n, 0.25f, got), shrink[c], 0);
            assert_memory_equal(again, first, sizeof again);
            assert_memory_equal(got, state_of, sizeof got);
        }
    }
}

// Scores and weighted values of a chunk, against the kernels for single queries.
static void chunks_of_the_cache_serve_many_queries(void **state) {
    (void)state;
    static const uint32_t sizes[] = {2, 16, 24, 64, 80, 128, 250};
    uint64_t seed = 11;
    const struct cpu_kernels *k;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const uint32_t d = sizes[s], n = 6, rows = 50;
        float *row = aligned(KV_CHUNK * d * sizeof *row), *q = aligned(n * d * sizeof *q);
        uint16_t *half = aligned(KV_CHUNK * d * sizeof *half);
        int8_t *byte = aligned(KV_CHUNK * d);
        for (uint32_t i = 0; i < KV_CHUNK * d; i++) {
            byte[i] = (int8_t)(pd_random(&seed) % 255 - 127);
            row[i] = (float)(pd_random_unit(&seed) - 0.5);
            half[i] = pd_float_to_f16(row[i]);
        }
        fill(q, n * d, 2, &seed);
        const void *data[3] = {[PDVM_KV_F32] = row, [PDVM_KV_F16] = half, [PDVM_KV_INT8] = byte};
        const size_t bytes[3] = {[PDVM_KV_F32] = 4, [PDVM_KV_F16] = 2, [PDVM_KV_INT8] = 1};
        float *keys = aligned(KV_CHUNK * d * sizeof *keys), *values = aligned(KV_CHUNK * d * 4);
        float *p = aligned(n * KV_CHUNK * sizeof *p), *acc = aligned(n * d * sizeof *acc);
        float *expected = aligned(d * sizeof *expected);
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            if (!k->supported()) continue;
            for (int type = 0; type < 3; type++) {
                size_t row_bytes = bytes[type] * d;
                k->attention->keys[type](data[type], row_bytes, rows, d, keys);
                k->attention->values[type](data[type], row_bytes, rows, d, values);
                k->attention->scores(q, n, keys, d, p);
                for (uint32_t j = 0; j < n; j++)
                    for (uint32_t r = 0; r < rows; r++) {
                        const void *at = (const uint8_t *)data[type] + r * row_bytes;
                        float dot = k->dot[type](q + j * d, at, d);
                        assert_memory_equal(&dot, &p[j * KV_CHUNK + r], sizeof dot);
                    }
                memset(acc, 0, n * d * sizeof *acc);
                k->attention->mix(p, n, 3, rows, values, d, acc);
                for (uint32_t j = 0; j < n; j++) {
                    memset(expected, 0, d * sizeof *expected);
                    for (uint32_t r = 3; r < rows; r++)
                        k->add_scaled[type](expected, p[j * KV_CHUNK + r],
                                            (const uint8_t *)data[type] + r * row_bytes, d);
                    assert_memory_equal(expected, acc + j * d, d * sizeof *acc);
                }
            }
        }
        void *all[] = {row, q, half, byte, keys, values, p, acc, expected};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_of_int8_equal_single_tokens),
        cmocka_unit_test(batches_of_lut4_equal_single_tokens),
        cmocka_unit_test(batches_of_lut8_equal_single_tokens),
        cmocka_unit_test(batches_of_wide_rows_equal_single_tokens),
        cmocka_unit_test(batches_of_floats_equal_single_tokens),
        cmocka_unit_test(the_widest_row_does_not_overflow),
        cmocka_unit_test(eight_bit_activations_lose_only_their_low_bits),
        cmocka_unit_test(activations_that_are_not_finite_spoil_only_their_token),
        cmocka_unit_test(the_exponential_is_accurate_over_its_range),
        cmocka_unit_test(silu_is_the_same_on_every_instruction_set),
        cmocka_unit_test(softmax_steps_are_the_same_on_every_instruction_set),
        cmocka_unit_test(chunks_of_the_cache_serve_many_queries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
