// How well the codings keep values: bounds that follow from theory or from measurement.

#include "base/random.h"
#include "mdcsr/mdcsr.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 256, COLS = 512 };

// Standard normal numbers (Box, Muller 1958), divided for each row by another power of two.
static float *gaussian(double density, uint64_t seed) {
    float *w = malloc(sizeof *w * ROWS * COLS);
    for (int i = 0; i < ROWS * COLS; i++) {
        double u = 1 - pd_random_unit(&seed), v = pd_random_unit(&seed);
        double x = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
        bool stored = pd_random_unit(&seed) < density;
        w[i] = stored ? (float)ldexp(x, -(i / COLS) % 8) : 0;
    }
    return w;
}

// Relative root mean square error of a coding, computed in double from what decodes.
static double error_of(const float *w, struct mdcsr_options o) {
    struct mdcsr m;
    struct mdcsr_report report;
    pdvm_error err;
    double error = 0, squares = 0;
    float row[COLS];
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, &report, &err), &err);
    for (int r = 0; r < ROWS; r++) {
        mdcsr_decode_row(&m, r, row);
        for (int c = 0; c < COLS; c++) {
            double d = (double)w[r * COLS + c] - (double)row[c];
            error += d * d;
            squares += (double)w[r * COLS + c] * (double)w[r * COLS + c];
        }
    }
    mdcsr_free(&m);
    double relative = sqrt(error / squares);
    assert_true(fabs(relative - sqrt(report.error_squares / report.sum_squares)) < 1e-6);
    return relative;
}

static struct mdcsr_options options(enum mdcsr_values v, enum mdcsr_codebook k, uint32_t group) {
    return (struct mdcsr_options){.values = v, .codebook = k, .group = group, .index_auto = true};
}

static void learned_beats_linear_beats_prime(void **state) {
    (void)state;
    static const uint32_t groups[] = {0, 32, 64, 128, 256};
    for (int sparse = 0; sparse < 2; sparse++) {
        float *w = gaussian(sparse ? 0.5 : 1, 7);
        for (int g = 0; g < 5; g++)
            for (int v = MDCSR_LUT8; v <= MDCSR_LUT4; v++) {
                enum mdcsr_values values = (enum mdcsr_values)v;
                double learned = error_of(w, options(values, MDCSR_LEARNED, groups[g]));
                double linear = error_of(w, options(values, MDCSR_LINEAR, groups[g]));
                double prime = error_of(w, options(values, MDCSR_PRIME, groups[g]));
                print_message("%s group %3u: learned %.5f linear %.5f prime %.5f\n",
                              mdcsr_values_name(values), groups[g], learned, linear, prime);
                assert_true(learned <= linear);
                assert_true(linear < prime);
            }
        free(w);
    }
}

// The best 16 levels for a normal distribution have a relative error of .0977 (J. Max, "Quantizing
// for minimum distortion", 1960); small groups do better, because they know their largest value.
static void learned_lut4_reaches_the_theory(void **state) {
    (void)state;
    float *w = gaussian(1, 11);
    assert_true(error_of(w, options(MDCSR_LUT4, MDCSR_LEARNED, 0)) < 0.095);
    assert_true(error_of(w, options(MDCSR_LUT4, MDCSR_LEARNED, 64)) < 0.0825);
    assert_true(error_of(w, options(MDCSR_LUT4, MDCSR_LEARNED, 32)) < 0.075);
    free(w);
}

static void int8_is_good_to_under_one_percent(void **state) {
    (void)state;
    float *w = gaussian(1, 13);
    assert_true(error_of(w, options(MDCSR_INT8, MDCSR_LINEAR, 0)) < 0.0085);
    assert_true(error_of(w, options(MDCSR_INT8, MDCSR_LINEAR, 32)) < 0.0060);
    assert_true(error_of(w, options(MDCSR_BF16, MDCSR_LINEAR, 0)) < 0.0018);
    assert_true(error_of(w, options(MDCSR_F16, MDCSR_LINEAR, 0)) < 0.00023);
    assert_true(error_of(w, options(MDCSR_F32, MDCSR_LINEAR, 0)) == 0);
    free(w);
}

// A book is fitted to what is there: up to 16 distinct ratios are kept as they are.
static void learned_book_finds_few_distinct_values(void **state) {
    (void)state;
    float *w = gaussian(1, 17);
    static const float levels[] = {-127, -80, -33, -12, 3, 19, 41, 64, 100};
    uint64_t seed = 1;
    for (int i = 0; i < ROWS * COLS; i++) w[i] = levels[pd_random(&seed) % 9] / 1024;
    assert_true(error_of(w, options(MDCSR_LUT4, MDCSR_LEARNED, 0)) < 1e-6);
    free(w);
}

// It is the error that counts, not the number of values: rows of small values, many as they may be,
// must not take levels away from the few rows that make the matrix.
static void learned_book_serves_the_large_values(void **state) {
    (void)state;
    float *w = gaussian(1, 29);
    uint64_t seed = 2;
    for (int i = 0; i < ROWS * COLS; i++) {
        int level = 2 + (int)(pd_random(&seed) % 14); // fourteen levels on one side
        if (i / COLS % 8 != 0)
            w[i] = ldexpf(w[i], -12);
        else
            w[i] = (float)(level * 8 + 7) / 127;
    }
    double error = error_of(w, options(MDCSR_LUT4, MDCSR_LEARNED, 0));
    if (error > 0.025) fail_msg("error %g", error);
    free(w);
}

// Whatever the values, codebooks that must hold a zero hold it, and dense zeros stay zero.
static void dense_books_with_zeros_hold_an_exact_zero(void **state) {
    (void)state;
    float *w = gaussian(0.97, 19);
    for (int shift = 0; shift < 2; shift++) {
        for (int i = 0; shift && i < ROWS * COLS; i++)
            w[i] = fabsf(w[i]); // no negative side: the learned book has to make room for zero
        for (int v = MDCSR_LUT8; v <= MDCSR_LUT4; v++)
            for (int k = 0; k < MDCSR_N_CODEBOOKS; k++)
                for (uint32_t group = 0; group <= 64; group += 64) {
                    struct mdcsr_options o =
                        options((enum mdcsr_values)v, (enum mdcsr_codebook)k, group);
                    struct mdcsr m;
                    pdvm_error err;
                    float row[COLS];
                    o.index_auto = false;
                    o.index = MDCSR_DENSE;
                    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
                    int zeros = 0;
                    for (int i = 0; i < (v == MDCSR_LUT4 ? 16 : 256); i++) {
                        zeros += m.codebook[i] == 0;
                        assert_true(i == 0 || m.codebook[i - 1] <= m.codebook[i]);
                    }
                    assert_true(zeros >= 1);
                    for (int r = 0; r < ROWS; r++) {
                        mdcsr_decode_row(&m, r, row);
                        for (int c = 0; c < COLS; c++)
                            assert_true(w[r * COLS + c] != 0 || row[c] == 0);
                    }
                    mdcsr_free(&m);
                }
    }
    free(w);
}

static void fixed_books_are_those_of_the_specification(void **state) {
    (void)state;
    float *w = gaussian(0.5, 23);
    struct mdcsr m;
    pdvm_error err;
    struct mdcsr_options o = {.values = MDCSR_LUT4, .codebook = MDCSR_PRIME, .index = MDCSR_BITMAP};
    static const float prime[] = {-127, -85, -51, -36, -23, -20, -15, -13,
                                  13,   15,  20,  23,  36,  51,  85,  127};
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
    assert_memory_equal(m.codebook, prime, sizeof prime);
    mdcsr_free(&m);
    o.index = MDCSR_DENSE; // zeros: the last negative entry gives way
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
    for (int i = 0; i < 16; i++) assert_true(m.codebook[i] == (i == 7 ? 0 : prime[i]));
    mdcsr_free(&m);
    o.codebook = MDCSR_LINEAR;
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
    for (int i = 0; i < 16; i++) assert_true(m.codebook[i] == (float)(i - 8));
    mdcsr_free(&m);
    o.values = MDCSR_LUT8;
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
    for (int i = 0; i < 256; i++) assert_true(m.codebook[i] == (float)(i - 128) / 128);
    mdcsr_free(&m);
    o.codebook = MDCSR_PRIME;
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
    assert_true(m.codebook[255] == 1 && m.codebook[0] == -1 && m.codebook[127] == 0);
    assert_true(m.codebook[254] == 2.0f / 3 && m.codebook[128] == 2.0f / 719);
    mdcsr_free(&m);
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learned_beats_linear_beats_prime),
        cmocka_unit_test(learned_lut4_reaches_the_theory),
        cmocka_unit_test(int8_is_good_to_under_one_percent),
        cmocka_unit_test(learned_book_finds_few_distinct_values),
        cmocka_unit_test(learned_book_serves_the_large_values),
        cmocka_unit_test(dense_books_with_zeros_hold_an_exact_zero),
        cmocka_unit_test(fixed_books_are_those_of_the_specification),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
