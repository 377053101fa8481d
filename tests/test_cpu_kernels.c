// Every kernel of every instruction set against a float64 reference, and against each other bit
// for bit: all codings, groups and layouts, odd shapes, empty and full rows.

#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/half.h"
#include "base/random.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__aarch64__) && !defined(__APPLE__)
#include <sys/auxv.h>
#endif

struct shape {
    int64_t rows;
    int64_t cols;
};

#ifdef CROSS_TEST // an emulator runs it: a sample
static const struct shape shapes[] = {{5, 65}, {77, 330}};
static const double densities[] = {0.3, 1.0};
#else
static const struct shape shapes[] = {{1, 1},     {1, 64},    {4, 63},   {5, 65},
                                      {3, 128},   {7, 200},   {16, 257}, {18, 512},
                                      {77, 1000}, {131, 130}, {2, 9000}};

static const double densities[] = {0.0, 0.05, 0.3, 0.5, 0.9, 1.0};
#endif

// Random weights, as many in each row.
static float *even_weights(int64_t rows, int64_t cols, double density, uint64_t *seed) {
    float *w = calloc((size_t)(rows * cols), sizeof *w);
    assert_non_null(w);
    for (int64_t i = 0; i < rows * cols; i++)
        if (pd_random_unit(seed) < density) w[i] = (float)(pd_random_unit(seed) - 0.5);
    return w;
}

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

static void act_create(struct cpu_act *act, int64_t cols) {
    size_t padded = ((size_t)cols + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    void *memory;
    pdvm_error err;
    act->x = calloc(padded + 16, sizeof(float));
    assert_non_null(act->x);
    assert_ok(pd_alloc_aligned(&memory, cpu_act_bytes((size_t)cols), "activations", &err), &err);
    cpu_act_place(act, memory, (size_t)cols);
}

static void act_free(struct cpu_act *act) {
    free(act->x);
    free(act->q);
}

static void make_acts(const struct cpu_kernels *k, struct cpu_act *acts, uint32_t n, int64_t cols,
                      uint64_t seed) {
    for (uint32_t t = 0; t < n; t++) {
        act_create(&acts[t], cols);
        for (int64_t c = 0; c < cols; c++) {
            acts[t].x[c] = (float)(pd_random_unit(&seed) * 4 - 2);
            if (pd_random(&seed) % 50 == 0) acts[t].x[c] *= 20; // outliers, as activations have
        }
        k->quantise(acts[t].x, cols, &acts[t]);
    }
}

static void free_acts(struct cpu_act *acts, uint32_t n) {
    for (uint32_t t = 0; t < n; t++) act_free(&acts[t]);
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

static const int64_t vector_sizes[] = {1, 2, 15, 16, 17, 33, 63, 64, 100, 4096};

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
        for (uint32_t t = 0; t < TOKENS && !first; t++) {
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

static void check_matrix(const struct mdcsr_options *options, struct shape shape, double density,
                         uint64_t *seed) {
    struct mdcsr m;
    pdvm_error err;
    float *w = random_weights(shape.rows, shape.cols, density, seed);
    assert_ok(mdcsr_encode(w, shape.rows, shape.cols, options, NULL, &m, NULL, &err), &err);
    check_products(&m, *seed);
    mdcsr_free(&m);
    free(w);
}

static void check_coding(enum mdcsr_values values, uint32_t group, enum mdcsr_index index) {
    uint64_t seed = 1000 * (uint64_t)values + group + (uint64_t)index;
    struct mdcsr_options options = {
        .values = values, .codebook = MDCSR_LEARNED, .index = index, .group = group};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t d = 0; d < sizeof densities / sizeof *densities; d++)
            check_matrix(&options, shapes[s], densities[d], &seed);
}

#ifdef CROSS_TEST
static const enum mdcsr_index all_indexes[] = {MDCSR_DENSE, MDCSR_BITMAP};
static const uint32_t all_groups[] = {0, 32, 256};
#else
static const enum mdcsr_index all_indexes[] = {MDCSR_DENSE, MDCSR_BITMAP, MDCSR_DELTA8,
                                               MDCSR_DELTA4};
static const uint32_t all_groups[] = {0, 32, 64, 128, 256};
#endif
#define N_GROUPS (sizeof all_groups / sizeof *all_groups)

static void check_values(enum mdcsr_values values, bool grouped) {
    for (size_t i = 0; i < sizeof all_indexes / sizeof *all_indexes; i++)
        for (size_t g = 0; g < (grouped ? N_GROUPS : 1); g++)
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

// Books that kernels may decode by shifting instead of by a table, and some that they may not.
static void products_of_evenly_spaced_lut4_equal_the_reference(void **state) {
    (void)state;
    static const struct {
        int first, step;
        bool linear;
    } books[] = {{-8, 1, true}, {-15, 2, true},  {-120, 16, true}, {-45, 6, true}, {-14, 2, true},
                 {0, 8, true},  {-127, 1, true}, {-25, 3, false},  {7, 7, false},  {-7, 0, false}};
    static const uint32_t groups[] = {0, 32, 128};
    const int64_t rows = 150, cols = 333; // ten tiles: two times four and two more
    uint64_t seed = 12;
    for (size_t b = 0; b < sizeof books / sizeof *books; b++) {
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
            const int64_t n_groups = groups[g] ? (cols + groups[g] - 1) / groups[g] : 1;
            struct mdcsr_grid grid = {.scales = malloc((size_t)(rows * n_groups) * sizeof(float))};
            for (int64_t i = 0; i < rows * n_groups; i++) grid.scales[i] = 0.25f;
            for (int i = 0; i < 16; i++)
                grid.codebook[i] = (float)(books[b].first + i * books[b].step);
            struct mdcsr_options options = {
                .values = MDCSR_LUT4, .index = MDCSR_BITMAP, .group = groups[g], .grid = &grid};
            float *w = random_weights(rows, cols, 0.5, &seed);
            for (int64_t i = 0; i < rows * cols; i++)
                if (w[i] != 0) w[i] = 0.25f * grid.codebook[pd_random(&seed) % 16];
            struct mdcsr m;
            struct cpu_matrix *p;
            pdvm_error err;
            assert_ok(mdcsr_encode(w, rows, cols, &options, NULL, &m, NULL, &err), &err);
            assert_ok(cpu_matrix_pack(&m, NULL, &p, &err), &err);
            assert_int_equal(p->linear4.factor != 0, books[b].linear);
            check_products(&m, seed);
            cpu_matrix_free(p);
            mdcsr_free(&m);
            free(grid.scales);
            free(w);
        }
    }
}

static enum cpu_kind packed_kind(enum mdcsr_values values, uint32_t group, struct shape shape,
                                 double density) {
    uint64_t seed = 3;
    struct mdcsr m;
    struct cpu_matrix *p;
    pdvm_error err;
    struct mdcsr_options options = {
        .values = values, .codebook = MDCSR_LEARNED, .index = MDCSR_BITMAP, .group = group};
    float *w = even_weights(shape.rows, shape.cols, density, &seed);
    assert_ok(mdcsr_encode(w, shape.rows, shape.cols, &options, NULL, &m, NULL, &err), &err);
    assert_ok(cpu_matrix_pack(&m, NULL, &p, &err), &err);
    enum cpu_kind kind = p->kind;
    check_products(&m, seed);
    cpu_matrix_free(p);
    mdcsr_free(&m);
    free(w);
    return kind;
}

static void few_entries_are_packed_as_sell(void **state) {
    (void)state;
    static const uint32_t groups[] = {0, 64, 256};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        for (int64_t rows = 115; rows < 130; rows += 7) { // 8 tiles and 9
            struct shape shape = {rows, 1000};
            assert_int_equal(packed_kind(MDCSR_INT8, groups[i], shape, 0.02), CPU_SELL);
            assert_int_equal(packed_kind(MDCSR_LUT4, groups[i], shape, 0.02), CPU_SELL);
            assert_int_equal(packed_kind(MDCSR_INT8, groups[i], shape, 0.5), CPU_INT8);
        }
    }
    struct shape shape = {64, 1000};
    assert_int_equal(packed_kind(MDCSR_INT8, 32, shape, 0.02), CPU_INT8); // part of a block
    assert_int_equal(packed_kind(MDCSR_F16, 0, shape, 0.02), CPU_F16);
    shape = (struct shape){3, SELL_MAX_COLS};
    assert_int_equal(packed_kind(MDCSR_INT8, 0, shape, 0.001), CPU_SELL);
    shape.cols++; // sums might overflow
    assert_int_equal(packed_kind(MDCSR_INT8, 0, shape, 0.001), CPU_INT8);
}

// Longer than any 32-bit sum of the kernels reaches.
static void products_of_long_rows_equal_the_reference(void **state) {
    (void)state;
    static const enum mdcsr_values kinds[] = {MDCSR_INT8, MDCSR_LUT4, MDCSR_F16};
    uint64_t seed = 77;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct mdcsr_options options = {.values = kinds[i], .codebook = MDCSR_LEARNED};
        check_matrix(&options, (struct shape){5, 70001}, 0.5, &seed);
        options.index = MDCSR_BITMAP;
        check_matrix(&options, (struct shape){5, 70001}, 0.5, &seed);
    }
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
    struct cpu_act act;
    act_create(&act, cols);
    const struct cpu_kernels *k;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        for (int sign = -1; sign <= 1; sign += 2) {
            float out = 0;
            for (int64_t c = 0; c < cols; c++) act.x[c] = (float)sign;
            k->quantise(act.x, cols, &act);
            k->product[CPU_INT8][true](p, 0, 1, &act, 1, &out, 1);
            assert_float_equal(out / (float)cols, (float)sign, 1e-6f);
        }
    }
    act_free(&act);
    cpu_matrix_free(p);
    mdcsr_free(&m);
    free(w);
}

// Codes as they are expanded are those that the matrix was encoded from, from any block on.
static void check_expansion(enum mdcsr_values values, enum mdcsr_index index, int64_t rows,
                            int64_t cols, double density) {
    uint64_t seed = (uint64_t)(rows + cols);
    struct mdcsr m;
    struct cpu_matrix *p;
    pdvm_error err;
    struct mdcsr_options options = {.values = values, .codebook = MDCSR_LEARNED, .index = index};
    float *w = random_weights(rows, cols, density, &seed);
    assert_ok(mdcsr_encode(w, rows, cols, &options, NULL, &m, NULL, &err), &err);
    assert_ok(cpu_matrix_pack(&m, NULL, &p, &err), &err);
    const struct cpu_kernels *k;
    int8_t *out = malloc((size_t)p->n_blocks * TILE_ROWS * BLOCK_COLS);
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        for (int64_t tile = 0; tile < p->n_tiles; tile++) {
            int64_t begin = (int64_t)(pd_random(&seed) % (uint64_t)(p->n_blocks + 1));
            k->expand(p, tile, begin, p->n_blocks, out);
            for (int64_t r = tile * TILE_ROWS; r < (tile + 1) * TILE_ROWS; r++) {
                if (r < rows) mdcsr_decode_row(&m, r, w);
                for (int64_t c = begin * BLOCK_COLS; c < p->n_blocks * BLOCK_COLS; c++) {
                    int64_t at = (c / 4 - begin * BLOCK_COLS / 4) * 64 + r % TILE_ROWS * 4 + c % 4;
                    if (r < rows && c < cols)
                        assert_float_equal((float)out[at] * m.scales[r], w[c], 0);
                    else if (!p->dense)
                        assert_int_equal(out[at], 0);
                }
            }
        }
    }
    free(out);
    free(w);
    cpu_matrix_free(p);
    mdcsr_free(&m);
}

static void expanded_codes_are_the_encoded_ones(void **state) {
    (void)state;
    static const enum mdcsr_values kinds[] = {MDCSR_INT8, MDCSR_LUT4};
    for (int i = 0; i < 2; i++) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            check_expansion(kinds[i], MDCSR_BITMAP, shapes[s].rows, shapes[s].cols, 0.5);
            check_expansion(kinds[i], MDCSR_BITMAP, shapes[s].rows, shapes[s].cols, 0.05);
            check_expansion(kinds[i], MDCSR_DENSE, shapes[s].rows, shapes[s].cols, 0.9);
        }
    }
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
    assert_int_equal(one->streams, 1);
    assert_memory_equal(one->offsets, many->offsets, n_tiles * sizeof *one->offsets);
    assert_memory_equal(one->values, many->values, (size_t)one->bytes[n_tiles]);
    assert_memory_equal(one->masks, many->masks,
                        n_tiles * (size_t)one->n_blocks * BLOCK_MICROS * sizeof *one->masks);
    cpu_matrix_free(one);
    cpu_matrix_free(many);
    pd_threads_free(threads);
    mdcsr_free(&m);
    free(w);
}

static void norms_equal_their_reference(void **state) {
    (void)state;
    uint64_t seed = 5;
    const struct cpu_kernels *k;
    for (size_t s = 0; s < sizeof vector_sizes / sizeof *vector_sizes; s++) {
        int64_t n = vector_sizes[s];
        float x[4096], weight[4096], first[4096];
        double squares = 0;
        for (int64_t i = 0; i < n; i++) {
            x[i] = (float)(pd_random_unit(&seed) * 6 - 3);
            weight[i] = (float)(pd_random_unit(&seed) + 0.5);
            squares += (double)x[i] * x[i];
        }
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            float norm[4096];
            if (!k->supported()) continue;
            k->rms_norm(x, weight, n, 1e-5f, norm);
            for (int64_t c = 0; c < n; c++) {
                double expected = x[c] / sqrt(squares / (double)n + 1e-5) * weight[c];
                assert_float_equal(norm[c], expected, 2e-6 * fabs(expected) + 1e-12);
            }
            if (i == 0) memcpy(first, norm, sizeof norm);
            assert_memory_equal(norm, first, (size_t)n * sizeof *norm);
        }
    }
}

// Integers near the floats, digits and sums that agree with them, zeros behind the end.
static void check_quantised(const struct cpu_act *act, const float *x, int64_t n) {
    int64_t padded = (n + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    float amax = 0;
    for (int64_t i = 0; i < n; i++) amax = fmaxf(amax, fabsf(x[i]));
    for (int64_t i = 0; i < padded; i++) {
        float v = i < n ? x[i] : 0;
        assert_true(fabs((double)act->q[i] * act->scale - v) <= 0.505 * amax / ACT_MAX);
        assert_true(abs(act->q[i]) <= ACT_MAX);
        assert_int_equal(256 * act->high[i] + act->low[i], act->q[i]);
        if (i >= n) assert_int_equal(act->q[i], 0);
    }
    for (int64_t i = 0; i < padded; i += BIAS_COLS) {
        int32_t sum = 0;
        for (int64_t c = i; c < i + BIAS_COLS; c++) sum += act->q[c];
        assert_int_equal(act->bias[i / BIAS_COLS], 128 * sum);
    }
}

static void quantised_activations_are_near_and_the_same_everywhere(void **state) {
    (void)state;
    uint64_t seed = 6;
    const struct cpu_kernels *k;
    for (size_t s = 0; s < sizeof vector_sizes / sizeof *vector_sizes; s++) {
        int64_t n = vector_sizes[s];
        struct cpu_act first = {0}, act;
        for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
            if (!k->supported()) continue;
            act_create(&act, n);
            memset(act.q, 0x55, cpu_act_bytes((size_t)n));
            uint64_t local = seed;
            for (int64_t c = 0; c < n; c++) act.x[c] = (float)(pd_random_unit(&local) * 6 - 3);
            k->quantise(act.x, n, &act);
            check_quantised(&act, act.x, n);
            if (!first.q) {
                first = act;
                continue;
            }
            assert_memory_equal(act.q, first.q, cpu_act_bytes((size_t)n));
            assert_memory_equal(&act.scale, &first.scale, sizeof act.scale);
            act_free(&act);
        }
        act_free(&first);
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
        struct cpu_act act;
        act_create(&act, 40);
        for (int at = 0; at < 40; at += 13) {
            memset(act.x, 0, 40 * sizeof *act.x);
            act.x[3] = 1;
            act.x[at] = at == 13 ? INFINITY : NAN;
            k->quantise(act.x, 40, &act);
            assert_true(isnan(act.scale));
            for (int c = 0; c < 40; c++) assert_int_equal(act.q[c], 0);
        }
        memset(act.x, 0, 40 * sizeof *act.x);
        k->quantise(act.x, 40, &act);
        assert_float_equal(act.scale, 0, 0);
        act_free(&act);
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

static void aarch64_builds_have_neon_kernels(void **state) {
    (void)state;
#if defined(__aarch64__) && !defined(__APPLE__)
    const struct cpu_kernels *k;
    pdvm_error err;
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) {
        assert_ok(cpu_kernels_find("auto", &k, &err), &err);
        assert_string_equal(k->name, "neon");
    }
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_f32_equal_the_reference),
        cmocka_unit_test(products_of_bf16_equal_the_reference),
        cmocka_unit_test(products_of_f16_equal_the_reference),
        cmocka_unit_test(products_of_int8_equal_the_reference),
        cmocka_unit_test(products_of_lut8_equal_the_reference),
        cmocka_unit_test(products_of_lut4_equal_the_reference),
        cmocka_unit_test(products_of_evenly_spaced_lut4_equal_the_reference),
        cmocka_unit_test(few_entries_are_packed_as_sell),
        cmocka_unit_test(products_of_long_rows_equal_the_reference),
        cmocka_unit_test(the_widest_int8_row_does_not_overflow),
        cmocka_unit_test(packing_is_the_same_on_any_number_of_threads),
        cmocka_unit_test(expanded_codes_are_the_encoded_ones),
        cmocka_unit_test(norms_equal_their_reference),
        cmocka_unit_test(quantised_activations_are_near_and_the_same_everywhere),
        cmocka_unit_test(cache_row_kernels_equal_their_references),
        cmocka_unit_test(activations_that_are_not_finite_give_nan),
        cmocka_unit_test(unknown_kernels_are_named),
        cmocka_unit_test(aarch64_builds_have_neon_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
