// Encoding and decoding of MdCSR matrices: every index, value and codebook coding in every group
// size, over shapes and patterns at the edges of the codings.

#include "base/half.h"
#include "base/random.h"
#include "mdcsr/layout.h"
#include "mdcsr/mdcsr.h"
#include "support/same_matrix.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Standard normal numbers, from twelve uniform ones.
static float normal(uint64_t *seed) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += pd_random_unit(seed);
    return (float)sum;
}

enum pattern { RANDOM_ROWS, ALL_ZERO, ALL_FULL, LAST_ONLY, WIDE_GAPS, N_PATTERNS };

static void fill(float *w, int64_t rows, int64_t cols, enum pattern pattern, uint64_t seed) {
    static const double densities[] = {0, 1, 0.5, 0.1, 0.02, 0.9};
    static const int64_t gaps[] = {14, 15, 16, 254, 255, 256, 510, 0, 30, 1};
    memset(w, 0, (size_t)(rows * cols) * sizeof *w);
    int64_t gap = 0;
    for (int64_t r = 0; r < rows; r++) {
        double density = densities[pd_random(&seed) % 6];
        for (int64_t c = 0; c < cols; c++) {
            bool stored =
                pattern == ALL_FULL || (pattern == LAST_ONLY && r == rows - 1 && c == cols - 1);
            if (pattern == RANDOM_ROWS) stored = pd_random_unit(&seed) < density;
            float v = normal(&seed);
            if (stored) w[r * cols + c] = v != 0 ? v : 1;
        }
        for (int64_t c = -1; pattern == WIDE_GAPS;) {
            c += gaps[gap++ % 10] + 1;
            if (c >= cols) break;
            w[r * cols + c] = normal(&seed) + 10;
        }
    }
    if (rows * cols > 2) w[1] = w[1] == 0 ? -0.0f : w[1];
}

// The largest error that the best code could have, in the matrix's own terms.
static double nearest_error(const struct mdcsr *m, double scale, double w) {
    if (m->value_coding == MDCSR_INT8) return fabs(scale) * 0.5;
    double best = INFINITY;
    for (int i = 0; i < mdcsr_codebook_size(m->value_coding); i++)
        best = fmin(best, fabs(w - scale * (double)m->codebook[i]));
    return best;
}

static void check_value(const struct mdcsr *m, int64_t r, int64_t c, float w, float decoded) {
    switch (m->value_coding) {
    case MDCSR_F32: assert_true(pd_float_bits(decoded) == pd_float_bits(w + 0.0f)); return;
    case MDCSR_BF16: assert_true(decoded == pd_bf16_to_float(pd_float_to_bf16(w))); return;
    case MDCSR_F16: assert_true(decoded == pd_f16_to_float(pd_float_to_f16(w))); return;
    default: break;
    }
    double scale = (double)m->scales[r * m->n_groups + (m->group ? c / m->group : 0)];
    if (w == 0) assert_true(decoded == 0);
    if (m->value_coding == MDCSR_INT8) // nothing is clipped, by a rounded scale neither
        assert_true(127 * scale * (1 + 1e-6) >= fabs((double)w));
    double error = fabs((double)w - (double)decoded);
    double bound = nearest_error(m, scale, (double)w);
    if (error > bound * (1 + 1e-5) + 1e-6 * fabs((double)w))
        fail_msg("row %d, column %d: %g became %g, scale %g, bound %g", (int)r, (int)c, (double)w,
                 (double)decoded, scale, bound);
}

// Decodes from the arrays alone, in the plainest way, as docs/format.md puts it.
static void check_row(const struct mdcsr *m, int64_t r, const float *w) {
    bool dense = m->index_coding == MDCSR_DENSE;
    int64_t n = mdcsr_row_entries(m, r);
    uint32_t *cols = malloc((size_t)m->cols * sizeof *cols);
    uint8_t *raw = malloc((size_t)m->cols * 4);
    float *row = malloc((size_t)m->cols * sizeof *row);
    assert_int_equal(mdcsr_row_columns(m, r, cols), n);
    assert_int_equal(mdcsr_row_entries_raw(m, r, raw), n);
    mdcsr_decode_row(m, r, row);
    int64_t next = 0;
    for (int64_t c = 0; c < m->cols; c++) {
        if (!dense && w[c] == 0) {
            assert_true(row[c] == 0);
            continue;
        }
        assert_true(next < n);
        assert_int_equal(cols[next], c);
        check_value(m, r, c, w[c], row[c]);
        uint16_t h;
        float f, scale = m->scales ? m->scales[r * m->n_groups + (m->group ? c / m->group : 0)] : 1;
        memcpy(&h, raw + 2 * next, 2 * (size_t)(mdcsr_entry_size(m->value_coding) == 2));
        switch (m->value_coding) {
        case MDCSR_F32: memcpy(&f, raw + 4 * next, sizeof f); break;
        case MDCSR_BF16: f = pd_bf16_to_float(h); break;
        case MDCSR_F16: f = pd_f16_to_float(h); break;
        case MDCSR_INT8: f = scale * (float)(int8_t)raw[next]; break;
        default: f = scale * m->codebook[raw[next]];
        }
        assert_true(f == row[c]);
        next++;
    }
    assert_int_equal(next, n);
    free(cols);
    free(raw);
    free(row);
}

static size_t file_bytes(const struct mdcsr *m) {
    size_t bytes = m->values_size + m->index_size, rows = (size_t)m->rows;
    if (m->row_offsets) bytes += 4 * (rows + 1);
    if (m->index_offsets) bytes += 4 * (rows + 1);
    if (m->scales) bytes += rows * (size_t)m->n_groups * (m->group ? 2 : 4);
    if (m->value_coding == MDCSR_LUT4) bytes += 16;
    if (m->value_coding == MDCSR_LUT8) bytes += 1024;
    return bytes;
}

// Encodes, checks and decodes w under one set of options; everything that must hold, holds.
static void round_trip(const float *w, int64_t rows, int64_t cols,
                       const struct mdcsr_options *options) {
    struct mdcsr m, again;
    struct mdcsr_report report;
    pdvm_error err;
    assert_ok(mdcsr_encode(w, rows, cols, options, NULL, &m, &report, &err), &err);
    assert_ok(mdcsr_check(&m, &err), &err);
    int64_t zeros = 0;
    double squares = 0, error = 0;
    float *decoded = malloc((size_t)(rows * cols) * sizeof *decoded);
    for (int64_t r = 0; r < rows; r++) {
        check_row(&m, r, w + r * cols);
        mdcsr_decode_row(&m, r, decoded + r * cols);
    }
    for (int64_t i = 0; i < rows * cols; i++) {
        zeros += w[i] == 0;
        squares += (double)w[i] * (double)w[i];
        error += pow((double)w[i] - (double)decoded[i], 2);
    }
    assert_int_equal(report.n_weights, rows * cols);
    assert_int_equal(report.n_zeros, zeros);
    assert_int_equal(report.stored_bytes, file_bytes(&m));
    assert_true(fabs(report.sum_squares - squares) <= 1e-9 * squares);
    assert_true(fabs(report.error_squares - error) <= 1e-6 * error + 1e-12 * squares);
    if (!mdcsr_has_scales(options->values) && options->index == MDCSR_DENSE) {
        // What a float coding has rounded once stays as it is.
        assert_ok(mdcsr_encode(decoded, rows, cols, options, NULL, &again, NULL, &err), &err);
        assert_same_matrix(&m, &again);
        mdcsr_free(&again);
    }
    free(decoded);
    mdcsr_free(&m);
}

static void each_coding(const float *w, int64_t rows, int64_t cols) {
    static const uint32_t groups[] = {0, 32, 64, 128, 256};
    for (int v = 0; v < MDCSR_N_VALUES; v++)
        for (int i = 0; i < MDCSR_N_INDEX; i++)
            for (int k = 0; k < (mdcsr_codebook_size((enum mdcsr_values)v) ? MDCSR_N_CODEBOOKS : 1);
                 k++)
                for (int g = 0; g < (mdcsr_has_scales((enum mdcsr_values)v) ? 5 : 1); g++) {
                    struct mdcsr_options o = {.values = (enum mdcsr_values)v,
                                              .index = (enum mdcsr_index)i,
                                              .codebook = (enum mdcsr_codebook)k,
                                              .group = groups[g]};
                    round_trip(w, rows, cols, &o);
                }
}

static void each_shape(enum pattern pattern) {
    static const int64_t shapes[][2] = {{1, 1},  {1, 600}, {7, 1},   {3, 7},   {5, 63},  {4, 64},
                                        {4, 65}, {3, 255}, {3, 256}, {2, 257}, {4, 600}, {1, 1100}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int64_t rows = shapes[s][0], cols = shapes[s][1];
        float *w = malloc((size_t)(rows * cols) * sizeof *w);
        fill(w, rows, cols, pattern, 17 * s + (uint64_t)pattern);
        each_coding(w, rows, cols);
        free(w);
    }
}

static void every_coding_round_trips_random_rows(void **state) {
    (void)state;
    each_shape(RANDOM_ROWS);
}

static void every_coding_round_trips_all_zero(void **state) {
    (void)state;
    each_shape(ALL_ZERO);
}

static void every_coding_round_trips_full_rows(void **state) {
    (void)state;
    each_shape(ALL_FULL);
}

static void every_coding_round_trips_a_single_last_entry(void **state) {
    (void)state;
    each_shape(LAST_ONLY);
}

static void every_coding_round_trips_gaps_at_the_escapes(void **state) {
    (void)state;
    each_shape(WIDE_GAPS);
}

static void assert_index(const float *w, int64_t cols, enum mdcsr_index index, const uint8_t *bytes,
                         size_t n) {
    struct mdcsr_options o = {.values = MDCSR_F32, .index = index};
    struct mdcsr m;
    pdvm_error err;
    assert_ok(mdcsr_encode(w, 1, cols, &o, NULL, &m, NULL, &err), &err);
    assert_int_equal(m.index_size, n);
    assert_memory_equal(m.index, bytes, n);
    mdcsr_free(&m);
}

// The bytes of docs/format.md: files written today must be read by every later version.
static void index_bytes_are_those_of_the_specification(void **state) {
    (void)state;
    float w[800] = {0};
    static const int at[] = {3, 18, 34, 51}; // gaps 3, 14, 15, 16
    for (int i = 0; i < 4; i++) w[at[i]] = 1;
    assert_index(w, 60, MDCSR_DELTA8, (const uint8_t[]){3, 14, 15, 16}, 4);
    assert_index(w, 60, MDCSR_DELTA4, (const uint8_t[]){0xe3, 0x0f, 0x1f}, 3);
    assert_index(w, 60, MDCSR_BITMAP, (const uint8_t[]){8, 0, 4, 0, 4, 0, 8, 0}, 8);
    memset(w, 0, sizeof w);
    w[255] = w[511] = 1; // gaps 255, 255
    assert_index(w, 800, MDCSR_DELTA8, (const uint8_t[]){255, 0, 255, 0}, 4);
    memset(w, 0, sizeof w);
    w[254] = w[765] = 1; // gaps 254, 510
    assert_index(w, 800, MDCSR_DELTA8, (const uint8_t[]){254, 255, 255, 0}, 4);
    memset(w, 0, sizeof w);
    w[30] = 1; // gap 30 = 15, 15, 0 and a padding nibble
    assert_index(w, 800, MDCSR_DELTA4, (const uint8_t[]){0xff, 0xf0}, 2);
}

static void example_of_the_specification_has_its_bytes(void **state) {
    (void)state;
    float w[20] = {0, 64, 0, 0, -127, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254};
    static const uint8_t index[3][4] = {{0x12, 2, 0, 2}, {1, 2, 4, 9}, {0x21, 0xf4, 0xf9}};
    for (int i = MDCSR_BITMAP; i <= MDCSR_DELTA4; i++) {
        struct mdcsr_options o = {.values = MDCSR_INT8, .index = (enum mdcsr_index)i};
        struct mdcsr m;
        pdvm_error err;
        assert_ok(mdcsr_encode(w, 2, 10, &o, NULL, &m, NULL, &err), &err);
        assert_memory_equal(m.values, ((uint8_t[]){0x40, 0x81, 0x20, 0x7f}), 4);
        assert_int_equal(m.index_size, i == MDCSR_DELTA4 ? 3 : 4);
        assert_memory_equal(m.index, index[i - MDCSR_BITMAP], m.index_size);
        assert_memory_equal(m.row_offsets, ((int64_t[]){0, 3, 4}), 24);
        if (m.index_offsets) assert_int_equal(m.index_offsets[1], i == MDCSR_DELTA4 ? 2 : 3);
        assert_true(m.scales[0] == 1 && m.scales[1] == 2);
        mdcsr_free(&m);
    }
}

static void nibbles_run_on_across_rows(void **state) {
    (void)state;
    // Three entries a row: rows 1 and 3 start in the middle of a byte.
    float w[4 * 3];
    for (int i = 0; i < 12; i++) w[i] = (float)(i % 3 == 0 ? -8 : i % 8); // -8 fixes the scale at 1
    struct mdcsr_options o = {.values = MDCSR_LUT4, .index = MDCSR_DENSE};
    w[1] = 0; // a zero calls for the grid -8..7
    struct mdcsr m;
    pdvm_error err;
    assert_ok(mdcsr_encode(w, 4, 3, &o, NULL, &m, NULL, &err), &err);
    assert_int_equal(m.values_size, 6);
    for (int i = 0; i < 12; i++) {
        assert_true(m.scales[i / 3] == 1);
        assert_int_equal(m.values[i / 2] >> (i % 2 * 4) & 15, (int)w[i] + 8);
    }
    mdcsr_free(&m);
}

static enum mdcsr_index auto_index(const float *w, int64_t rows, int64_t cols,
                                   enum mdcsr_values values) {
    struct mdcsr_options o = {.values = values, .codebook = MDCSR_LEARNED, .index_auto = true};
    struct mdcsr m;
    struct mdcsr_report best, other;
    pdvm_error err;
    assert_ok(mdcsr_encode(w, rows, cols, &o, NULL, &m, &best, &err), &err);
    enum mdcsr_index chosen = m.index_coding;
    mdcsr_free(&m);
    o.index_auto = false;
    for (int i = 0; i < MDCSR_N_INDEX; i++) {
        o.index = (enum mdcsr_index)i;
        assert_ok(mdcsr_encode(w, rows, cols, &o, NULL, &m, &other, &err), &err);
        mdcsr_free(&m);
        assert_true(best.stored_bytes <= other.stored_bytes);
        // Ties go to dense, then bitmap.
        assert_true(best.stored_bytes < other.stored_bytes || (int)chosen <= i);
    }
    return chosen;
}

static void automatic_index_is_the_smallest(void **state) {
    (void)state;
    static const double densities[] = {1, 0.9, 0.7, 0.5, 0.3, 0.15, 0.1, 0.05, 0.01, 0};
    int64_t rows = 40, cols = 512;
    float *w = malloc((size_t)(rows * cols) * sizeof *w);
    uint64_t seed = 3;
    bool seen[MDCSR_N_INDEX] = {false};
    for (int d = 0; d < 10; d++) {
        for (int64_t i = 0; i < rows * cols; i++)
            w[i] = pd_random_unit(&seed) < densities[d] ? normal(&seed) : 0;
        seen[auto_index(w, rows, cols, MDCSR_INT8)] = true;
        seen[auto_index(w, rows, cols, MDCSR_LUT4)] = true;
        seen[auto_index(w, rows, cols, MDCSR_F16)] = true;
    }
    for (int i = 0; i < MDCSR_N_INDEX; i++) assert_true(seen[i]);
    free(w);
}

static void values_that_cannot_be_stored_are_named(void **state) {
    (void)state;
    static const struct {
        float value;
        enum mdcsr_values values;
        bool good;
    } cases[] = {
        {NAN, MDCSR_F32, false},
        {INFINITY, MDCSR_INT8, false},
        {-INFINITY, MDCSR_LUT4, false},
        {65519.0f, MDCSR_F16, true},
        {65520.0f, MDCSR_F16, false},
        {-1e6f, MDCSR_F16, false},
        {0x1.fefffep127f, MDCSR_BF16, true},
        {0x1.ffp127f, MDCSR_BF16, false},
        {3.4028234e38f, MDCSR_F32, true},
        {3.4028234e38f, MDCSR_INT8, true},
        {3.4028234e38f, MDCSR_LUT4, true},
        {-3.4028234e38f, MDCSR_LUT8, true},
        {1e-45f, MDCSR_INT8, true},
        {1e-45f, MDCSR_LUT8, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (uint32_t group = 0; group <= 32; group += 32) {
            float w[6 * 5] = {0};
            w[4 * 5 + 3] = cases[i].value;
            struct mdcsr_options o = {.values = cases[i].values,
                                      .codebook = MDCSR_LEARNED,
                                      .index = MDCSR_BITMAP,
                                      .group = group};
            struct mdcsr m;
            pdvm_error err;
            pdvm_status status = mdcsr_encode(w, 6, 5, &o, NULL, &m, NULL, &err);
            if (cases[i].good) {
                assert_ok(status, &err);
                assert_ok(mdcsr_check(&m, &err), &err);
                mdcsr_free(&m);
            } else {
                assert_int_equal(status, PDVM_ERR_FORMAT);
                assert_non_null(strstr(err.message, "row 4, column 3"));
            }
        }
}

static void impossible_options_are_refused(void **state) {
    (void)state;
    float w[4] = {1, 2, 3, 4};
    struct mdcsr m;
    pdvm_error err;
    struct mdcsr_options o = {.values = MDCSR_INT8, .group = 48};
    assert_int_equal(mdcsr_encode(w, 2, 2, &o, NULL, &m, NULL, &err), PDVM_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "48"));
    o.group = 0;
    assert_int_equal(mdcsr_encode(w, 0, 2, &o, NULL, &m, NULL, &err), PDVM_ERR_ARGUMENT);
    assert_int_equal(mdcsr_encode(w, 2, -1, &o, NULL, &m, NULL, &err), PDVM_ERR_ARGUMENT);
    assert_int_equal(mdcsr_encode(w, 2, MDCSR_MAX_DIM + 1, &o, NULL, &m, NULL, &err),
                     PDVM_ERR_ARGUMENT);
    o.values = MDCSR_N_VALUES;
    assert_int_equal(mdcsr_encode(w, 2, 2, &o, NULL, &m, NULL, &err), PDVM_ERR_ARGUMENT);
}

static void names_parse_back(void **state) {
    (void)state;
    for (int i = 0; i < MDCSR_N_INDEX; i++) {
        enum mdcsr_index x;
        assert_true(mdcsr_index_parse(mdcsr_index_name((enum mdcsr_index)i), &x) && (int)x == i);
    }
    for (int i = 0; i < MDCSR_N_VALUES; i++) {
        enum mdcsr_values x;
        assert_true(mdcsr_values_parse(mdcsr_values_name((enum mdcsr_values)i), &x) && (int)x == i);
    }
    for (int i = 0; i < MDCSR_N_CODEBOOKS; i++) {
        enum mdcsr_codebook x;
        const char *name = mdcsr_codebook_name((enum mdcsr_codebook)i);
        assert_true(mdcsr_codebook_parse(name, &x) && (int)x == i);
    }
    enum mdcsr_values v;
    assert_false(mdcsr_values_parse("int9", &v));
    assert_false(mdcsr_values_parse("", &v));
    assert_null(mdcsr_index_name(MDCSR_N_INDEX));
    assert_null(mdcsr_codebook_name((enum mdcsr_codebook) - 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_coding_round_trips_random_rows),
        cmocka_unit_test(every_coding_round_trips_all_zero),
        cmocka_unit_test(every_coding_round_trips_full_rows),
        cmocka_unit_test(every_coding_round_trips_a_single_last_entry),
        cmocka_unit_test(every_coding_round_trips_gaps_at_the_escapes),
        cmocka_unit_test(index_bytes_are_those_of_the_specification),
        cmocka_unit_test(example_of_the_specification_has_its_bytes),
        cmocka_unit_test(nibbles_run_on_across_rows),
        cmocka_unit_test(automatic_index_is_the_smallest),
        cmocka_unit_test(values_that_cannot_be_stored_are_named),
        cmocka_unit_test(impossible_options_are_refused),
        cmocka_unit_test(names_parse_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
