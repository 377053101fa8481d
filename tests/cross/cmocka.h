/**
 * As much of cmocka as the tests of the kernels use, for builds for another processor, where there is
 * no library but the compiler's. Include this through support.h, as cmocka's own header.
 */
#ifndef PDVM_TESTS_CROSS_CMOCKA_H
#define PDVM_TESTS_CROSS_CMOCKA_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define print_message(...) printf(__VA_ARGS__)
#define print_error(...) printf(__VA_ARGS__)
#define vprint_error(fmt, args) vprintf(fmt, args)
#define skip() exit(77)
#define _fail(file, line)                                                                          \
    do {                                                                                           \
        printf("%s:%d: failed\n", (file), (line));                                                 \
        exit(1);                                                                                   \
    } while (0)

#define fail_msg(...)                                                                              \
    do {                                                                                           \
        printf("%s:%d: ", __FILE__, __LINE__);                                                     \
        printf(__VA_ARGS__);                                                                       \
        printf("\n");                                                                              \
        exit(1);                                                                                   \
    } while (0)
#define assert_true(x)                                                                             \
    do {                                                                                           \
        if (!(x)) fail_msg("not true: %s", #x);                                                    \
    } while (0)
#define assert_non_null(p) assert_true((p) != NULL)
#define assert_int_equal(a, b) assert_true((a) == (b))
#define assert_string_equal(a, b) assert_true(strcmp((a), (b)) == 0)
#define assert_memory_equal(a, b, n) assert_true(memcmp((a), (b), (n)) == 0)
#define assert_float_equal(a, b, epsilon) assert_true(fabs((double)((a) - (b))) <= (epsilon))

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(f)                                                                        \
    { #f, f }
#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    cross_run(tests, sizeof(tests) / sizeof *(tests))

static inline int cross_run(const struct CMUnitTest *tests, size_t n) {
    for (size_t i = 0; i < n; i++) {
        tests[i].run(NULL);
        printf("ok %s\n", tests[i].name);
        fflush(stdout);
    }
    return 0;
}

#endif
