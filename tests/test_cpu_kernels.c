// Every kernel of every instruction set against a float64 reference, and against each other bit
// for bit: all codings, groups and layouts, odd shapes, empty and full rows.

#include "backend/cpu/cpu.h"
#include "base/half.h"
#include "base/random.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int64_t rows;
    int64_t cols;
};

static const struct shape shapes[] = {{1, 1},   {1, 64},   {4, 63},   {5, 65},    {3, 128},
                                      {7, 200}, {16, 257}, {18, 512}, {33, 1000}, {2, 9000}};

static const double densities[] = {0.0, 0.05, 0.3, 0.5, 0.9, 1.0};

// Random weights: each row has a density of its own, so that empty and full rows occur.
static float *random_weights(int64_t rows, int64_t cols, double density, uint64_t *seed) {
    float *w = calloc((size_t)(rows * cols), sizeof *w);
    assert_non_null(w);
    for (int64_t r = 0; r < rows; r++) {
        double d = pd_random(seed) % 8 == 0 ? (double)(pd_random(seed) % 2) : density;
        for (int64_t c = 0; c < cols; c++)
            if (pd_random_unit(seed) < d) w[r * cols + c] = (float)(pd_random_unit(seed) - 0.5);
    }
    return w;
}

static void make_acts(const struct cpu_kernels *k, struct cpu_act *acts, uint32_t n, int64_t cols,
                      uint64_t seed) {
    size_t padded = ((size_t)cols + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    for (uint32_t t = 0; t < n; t++) {
        acts[t].x = calloc(padded + 16, sizeof(float));
        acts[t].q = calloc(padded + 32, sizeof(int16_t));
        assert_non_null(acts[t].x);
        assert_non_null(acts[t].q);
        for (int64_t c = 0; c < cols; c++) {
            acts[t].x[c] = (float)(pd_random_unit(&seed) * 4 - 2);
            if (pd_random(&seed) % 50 == 0) acts[t].x[c] *= 20; // outliers, as activations have
        }
        acts[t].scale = k->quantise(acts[t].x, cols, acts[t].q);
    }
}

static void free_acts(struct cpu_act *acts, uint32_t n) {
    for (uint32_t t = 0; t < n; t++) {
        free(acts[t].x);
        free(acts[t].q);
    }
}

// Product in double, and the sum of magnitudes that bounds its rounding errors.
static double reference(const struct mdcsr *m, int64_t row, const struct cpu_act *act, bool integer,
                        float *w, double *magnitude) {
    double sum = 0;
    *magnitude = 0;
    mdcsr_decode_row(m, row, w);
    for (int64_t c = 0; c < m->cols; c++) {
        double x = integer ? (double)act->q[c] * act->scale : act->x[c];
        sum += w[c] * x;
        *magnitude += fabs(w[c] * x);
    }
    return sum;
}

#define TOKENS 6

// Checks a matrix on every kernel table; the first supported table's results are the yardstick.
static void check_products(const struct mdcsr *m, uint64_t seed) {
    struct cpu_matrix *p;
    struct cpu_act acts[TOKENS];
    pdvm_error err;
    assert_ok(cpu_matrix_pack(m, NULL, &p, &err), &err);
    bool integer = cpu_kind_is_integer(p->kind);
    float *w = malloc((size_t)m->cols * sizeof *w);
    size_t size = TOKENS * (size_t)m->rows;
    float *first = NULL;
    const struct cpu_kernels *k;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        float *out = malloc(size * sizeof *out);
        for (size_t j = 0; j < size; j++) out[j] = NAN; // unwritten outputs must show
        make_acts(k, acts, TOKENS, m->cols, seed);
        // In two parts, as two workers would; a part of no tiles is allowed.
        int64_t middle = p->n_tiles / 2;
        cpu_product_fn product = k->product[p->kind][p->dense];
        product(p, 0, middle, acts, TOKENS, out, m->rows);
        product(p, middle, p->n_tiles, acts, TOKENS, out + middle * TILE_ROWS, m->rows);
        for (uint32_t t = 0; t < TOKENS; t++) {
            for (int64_t r = 0; r < m->rows; r++) {
                double magnitude;
                double expected = reference(m, r, &acts[t], integer, w, &magnitude);
                double got = out[t * m->rows + r];
                if (!(fabs(got - expected) <= 1e-6 * magnitude + 1e-30))
                    fail_msg("%s: row %lld token %u: %.9g, expected %.9g (magnitude %g)", k->name,
                             (long long)r, t, got, expected, magnitude);
            }
        }
        free_acts(acts, TOKENS);
        if (first) {
            assert_memory_equal(first, out, size * sizeof *out);
            free(out);
        } else {
            first = out;
        }
    }
    free(first);
    free(w);
    cpu_matrix_free(p);
}

static void check_coding(enum mdcsr_values values, uint32_t group, enum mdcsr_index index) {
    uint64_t seed = 1000 * (uint64_t)values + group + (uint64_t)index;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t d = 0; d < sizeof densities / sizeof *densities; d++) {
            struct mdcsr m;
            pdvm_error err;
            struct mdcsr_options options = {
                .values = values, .codebook = MDCSR_LEARNED, .index = index, .group = group};
            float *w = random_weights(shapes[s].rows, shapes[s].cols, densities[d], &seed);
            assert_ok(
                mdcsr_encode(w, shapes[s].rows, shapes[s].cols, &options, NULL, &m, NULL, &err),
                &err);
            check_products(&m, seed);
            mdcsr_free(&m);
            free(w);
        }
    }
}

static const enum mdcsr_index all_indexes[] = {MDCSR_DENSE, MDCSR_BITMAP, MDCSR_DELTA8,
                                               MDCSR_DELTA4};
static const uint32_t all_groups[] = {0, 32, 64, 128, 256};

static void check_values(enum mdcsr_values values, bool grouped) {
    for (size_t i = 0; i < sizeof all_indexes / sizeof *all_indexes; i++)
        for (size_t g = 0; g < (grouped ? 5u : 1u); g++)
            check_coding(values, all_groups[g], all_indexes[i]);
}

static void products_of_f32_equal_the_reference(void **state) {
    (void)state;
    check_values(MDCSR_F32, false);
}

static void products_of_bf16_equal_the_reference(void **state) {
    (void)state;
    check_values(MDCSR_BF16, false);
}

static void products_of_f16_equal_the_reference(void **state) {
    (void)state;
    check_values(MDCSR_F16, false);
}

static void products_of_int8_equal_the_reference(void **state) {
    (void)state;
    check_values(MDCSR_INT8, true);
}

static void products_of_lut8_equal_the_reference(void **state) {
    (void)state;
    check_values(MDCSR_LUT8, true);
}

static void products_of_lut4_equal_the_reference(void **state) {
    (void)state;
    check_values(MDCSR_LUT4, true);
}

// The largest sum that can occur: all codes 127, all activations at full scale, many columns.
static void the_widest_int8_row_does_not_overflow(void **state) {
    (void)state;
    const int64_t cols = 70000;
    float *w = malloc((size_t)cols * sizeof *w);
    for (int64_t c = 0; c < cols; c++) w[c] = 1.0f;
    struct mdcsr m;
    pdvm_error err;
    struct mdcsr_options options = {.values = MDCSR_INT8, .index = MDCSR_DENSE};
    assert_ok(mdcsr_encode(w, 1, cols, &options, NULL, &m, NULL, &err), &err);
    struct cpu_matrix *p;
    assert_ok(cpu_matrix_pack(&m, NULL, &p, &err), &err);
    struct cpu_act act = {.scale = 1.0f};
    act.q = calloc((size_t)p->n_blocks * BLOCK_COLS, sizeof *act.q);
    for (int64_t c = 0; c < cols; c++) act.q[c] = 32767;
    const struct cpu_kernels *k;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        float out = 0;
        k->product[CPU_INT8][true](p, 0, 1, &act, 1, &out, 1);
        assert_float_equal(out / (32767.0f * (float)cols), 1.0f, 1e-6f);
    }
    free(act.q);
    cpu_matrix_free(p);
    mdcsr_free(&m);
    free(w);
}

static void packing_is_the_same_on_any_number_of_threads(void **state) {
    (void)state;
    uint64_t seed = 7;
    pdvm_error err;
    struct mdcsr m;
    struct mdcsr_options options = {
        .values = MDCSR_LUT4, .codebook = MDCSR_LEARNED, .index = MDCSR_BITMAP, .group = 64};
    float *w = random_weights(700, 300, 0.5, &seed);
    assert_ok(mdcsr_encode(w, 700, 300, &options, NULL, &m, NULL, &err), &err);
    struct cpu_matrix *one, *many;
    struct pd_threads *threads;
    assert_ok(pd_threads_create(3, &threads, &err), &err);
    assert_ok(cpu_matrix_pack(&m, NULL, &one, &err), &err);
    assert_ok(cpu_matrix_pack(&m, threads, &many, &err), &err);
    size_t n_tiles = (size_t)one->n_tiles;
    assert_memory_equal(one->offsets, many->offsets, (n_tiles + 1) * sizeof *one->offsets);
    assert_memory_equal(one->values, many->values, (size_t)one->offsets[n_tiles]);
    assert_memory_equal(one->masks, many->masks,
                        n_tiles * (size_t)one->n_blocks * TILE_ROWS * sizeof *one->masks);
    cpu_matrix_free(one);
    cpu_matrix_free(many);
    pd_threads_free(threads);
    mdcsr_free(&m);
    free(w);
}

static void vector_kernels_equal_their_references(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 15, 16, 17, 63, 64, 100, 4096};
    uint64_t seed = 5;
    const struct cpu_kernels *k;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s];
        float x[4096], weight[4096], first_norm[4096];
        int16_t first_q[4096];
        float first_scale = 0;
        double squares = 0;
        float amax = 0;
        for (int64_t i = 0; i < n; i++) {
            x[i] = (float)(pd_random_unit(&seed) * 6 - 3);
            weight[i] = (float)(pd_random_unit(&seed) + 0.5);
            squares += (double)x[i] * x[i];
            amax = fmaxf(amax, fabsf(x[i]));
        }
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            float norm[4096];
            int16_t q[4096];
            if (!k->supported()) continue;
            k->rms_norm(x, weight, n, 1e-5f, norm);
            float scale = k->quantise(x, n, q);
            for (int64_t c = 0; c < n; c++) {
                double expected = x[c] / sqrt(squares / (double)n + 1e-5) * weight[c];
                assert_float_equal(norm[c], expected, 2e-6 * fabs(expected) + 1e-12);
                assert_true(fabs((double)q[c] * scale - x[c]) <= 0.505 * amax / 32767);
            }
            if (i == 0) {
                memcpy(first_norm, norm, sizeof norm);
                memcpy(first_q, q, sizeof q);
                first_scale = scale;
            }
            assert_memory_equal(norm, first_norm, (size_t)n * sizeof *norm);
            assert_memory_equal(q, first_q, (size_t)n * sizeof *q);
            assert_memory_equal(&scale, &first_scale, sizeof scale);
        }
    }
}

static void cache_row_kernels_equal_their_references(void **state) {
    (void)state;
    static const uint32_t sizes[] = {2, 16, 24, 64, 80, 128, 250};
    uint64_t seed = 11;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint32_t n = sizes[s];
        float a[256], row[256];
        uint16_t half[256];
        int8_t byte[256];
        for (uint32_t i = 0; i < n; i++) {
            a[i] = (float)(pd_random_unit(&seed) * 2 - 1);
            byte[i] = (int8_t)(pd_random(&seed) % 255 - 127);
            half[i] = pd_float_to_f16((float)byte[i]);
            row[i] = (float)byte[i];
        }
        const void *rows[3] = {row, half, byte};
        float first_dot[3], first_add[3][256];
        const struct cpu_kernels *k;
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            if (!k->supported()) continue;
            for (int type = 0; type < 3; type++) {
                double expected = 0, magnitude = 0;
                float acc[256];
                for (uint32_t c = 0; c < n; c++) {
                    expected += (double)a[c] * row[c];
                    magnitude += fabs((double)a[c] * row[c]);
                    acc[c] = a[c];
                }
                float dot = k->dot[type](a, rows[type], n);
                assert_float_equal(dot, expected, 1e-6 * magnitude);
                k->add_scaled[type](acc, 0.37f, rows[type], n);
                for (uint32_t c = 0; c < n; c++)
                    assert_float_equal(acc[c], a[c] + 0.37f * row[c], 1e-5);
                if (i == 0) {
                    first_dot[type] = dot;
                    memcpy(first_add[type], acc, sizeof acc);
                }
                assert_memory_equal(&dot, &first_dot[type], sizeof dot);
                assert_memory_equal(acc, first_add[type], n * sizeof *acc);
            }
        }
    }
}

static void activations_that_are_not_finite_give_nan(void **state) {
    (void)state;
    const struct cpu_kernels *k;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        for (int at = 0; at < 40; at += 13) {
            float x[40] = {0};
            int16_t q[40];
            x[3] = 1;
            x[at] = at == 13 ? INFINITY : NAN;
            assert_true(isnan(k->quantise(x, 40, q)));
            for (int c = 0; c < 40; c++) assert_int_equal(q[c], 0);
        }
        float zeros[20] = {0};
        int16_t q[20];
        assert_float_equal(k->quantise(zeros, 20, q), 0, 0);
    }
}

static void unknown_kernels_are_named(void **state) {
    (void)state;
    const struct cpu_kernels *k;
    pdvm_error err;
    assert_error(cpu_kernels_find("sse9", &k, &err), PDVM_ERR_ARGUMENT, &err, "sse9");
    assert_ok(cpu_kernels_find("auto", &k, &err), &err);
    assert_ok(cpu_kernels_find("scalar", &k, &err), &err);
    assert_string_equal(k->name, "scalar");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_f32_equal_the_reference),
        cmocka_unit_test(products_of_bf16_equal_the_reference),
        cmocka_unit_test(products_of_f16_equal_the_reference),
        cmocka_unit_test(products_of_int8_equal_the_reference),
        cmocka_unit_test(products_of_lut8_equal_the_reference),
        cmocka_unit_test(products_of_lut4_equal_the_reference),
        cmocka_unit_test(the_widest_int8_row_does_not_overflow),
        cmocka_unit_test(packing_is_the_same_on_any_number_of_threads),
        cmocka_unit_test(vector_kernels_equal_their_references),
        cmocka_unit_test(cache_row_kernels_equal_their_references),
        cmocka_unit_test(activations_that_are_not_finite_give_nan),
        cmocka_unit_test(unknown_kernels_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
