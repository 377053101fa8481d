// Packed matrices kept in a file: the same products as before, and no damage gets through.

#include "support/support.h"

#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/random.h"
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct cpu_matrix *packed(const struct mdcsr_options *options, int64_t rows, int64_t cols,
                                 double density, uint64_t seed) {
    struct mdcsr m;
    struct cpu_matrix *p;
    pdvm_error err;
    size_t n = (size_t)(rows * cols);
    float *w = calloc(n, sizeof *w);
    if (!w) support_fail("out of memory");
    for (size_t i = 0; i < n; i++)
        if (pd_random_unit(&seed) < density) w[i] = (float)(pd_random_unit(&seed) - 0.5);
    assert_ok(mdcsr_encode(w, rows, cols, options, NULL, &m, NULL, &err), &err);
    assert_ok(cpu_matrix_pack(&m, NULL, &p, &err), &err);
    mdcsr_free(&m);
    free(w);
    return p;
}

/* Writes a file with one matrix, as a cache has it; returns its path. */
static char *save(const char *dir, const struct cpu_matrix *m) {
    struct safetensors_writer *file;
    pdvm_error err;
    char *path = support_path(dir, "x.packed");
    assert_ok(safetensors_writer_open(path, 1144, &file, &err), &err);
    assert_ok(cpu_matrix_save(m, NULL, "m", file, &err), &err);
    assert_ok(safetensors_writer_commit(file, &err), &err);
    return path;
}

static void multiply(const struct cpu_matrix *m, const struct cpu_kernels *k, float *out) {
    struct cpu_act act;
    void *memory;
    pdvm_error err;
    size_t cols = (size_t)m->n_blocks * BLOCK_COLS;
    uint64_t seed = 3;
    float *x = calloc(cols, sizeof *x);
    if (!x) support_fail("out of memory");
    for (int64_t c = 0; c < m->cols; c++) x[c] = (float)(pd_random_unit(&seed) - 0.5);
    assert_ok(pd_alloc_aligned(&memory, cpu_act_bytes((size_t)m->cols), "a test", &err), &err);
    cpu_act_place(&act, memory, (size_t)m->cols);
    act.x = x;
    k->quantise(x, m->cols, &act);
    k->product[m->kind][m->dense](m, 0, m->n_tiles, &act, 1, out, m->rows);
    free(memory);
    free(x);
}

static void assert_same_products(const struct cpu_matrix *a, const struct cpu_matrix *b) {
    float first[512], second[512];
    const struct cpu_kernels *k;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!k->supported()) continue;
        memset(first, 0, sizeof first);
        memset(second, 0, sizeof second);
        multiply(a, k, first);
        multiply(b, k, second);
        assert_memory_equal(first, second, sizeof first);
    }
}

static void a_matrix_comes_back_as_it_was(void **state) {
    static const int64_t shapes[][2] = {{1, 1}, {16, 64}, {21, 150}, {100, 257}, {130, 700}};
    pdvm_error err;
    for (int values = 0; values < MDCSR_N_VALUES; values++) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            for (int dense = 0; dense < 2; dense++) {
                struct mdcsr_options options = {.values = (enum mdcsr_values)values,
                                                .codebook = MDCSR_LEARNED,
                                                .index = dense ? MDCSR_DENSE : MDCSR_BITMAP,
                                                .group = values >= MDCSR_INT8 && s % 2 ? 64 : 0};
                struct cpu_matrix *m = packed(&options, shapes[s][0], shapes[s][1], 0.4, s + 1);
                char *path = save(*state, m);
                struct safetensors *file;
                struct cpu_matrix *mapped;
                struct pd_arena arena = {0};
                assert_ok(safetensors_open(path, &file, &err), &err);
                pdvm_status status =
                    cpu_matrix_map(file, "m", m->rows, m->cols, NULL, &arena, &mapped, &err);
                if (m->kind == CPU_SELL) { // packed anew each time
                    assert_int_equal(status, PDVM_ERR_UNSUPPORTED);
                    assert_null(mapped);
                } else {
                    assert_ok(status, &err);
                    assert_int_equal(mapped->n_entries, m->n_entries);
                    assert_int_equal(cpu_matrix_bytes(mapped), cpu_matrix_bytes(m));
                    assert_same_products(m, mapped);
                    cpu_matrix_free(mapped);
                }
                pd_arena_free(&arena);
                safetensors_close(file);
                free(path);
                cpu_matrix_free(m);
            }
        }
    }
}

static void assert_refused(const char *path, int64_t rows, int64_t cols) {
    struct safetensors *file;
    struct cpu_matrix *m;
    struct pd_arena arena = {0};
    pdvm_error err;
    assert_ok(safetensors_open(path, &file, &err), &err);
    assert_error(cpu_matrix_map(file, "m", rows, cols, NULL, &arena, &m, &err), PDVM_ERR_FORMAT,
                 &err, "x.packed");
    assert_null(m);
    pd_arena_free(&arena);
    safetensors_close(file);
}

static void any_changed_byte_is_found(void **state) {
    struct mdcsr_options options = {
        .values = MDCSR_LUT4, .codebook = MDCSR_LEARNED, .index = MDCSR_BITMAP, .group = 64};
    struct cpu_matrix *m = packed(&options, 21, 150, 0.5, 1);
    char *path = save(*state, m);
    size_t size, header = 1152;
    uint8_t *data = (uint8_t *)support_read_file(path, &size);
    for (size_t i = header; i < size; i += 1 + i % 7) {
        data[i] ^= (uint8_t)(1 << i % 8);
        free(support_write_file(*state, "x.packed", data, size));
        assert_refused(path, 21, 150);
        data[i] ^= (uint8_t)(1 << i % 8);
    }
    free(data);
    free(path);
    cpu_matrix_free(m);
}

static void a_wrong_description_is_refused(void **state) {
    static const char *const others[] = {
        "int8 bitmap 21 151 0 1512 1512",
        "int8 bitmap 20 150 0 1512 1512",
        "int8 dense 21 150 0 1512 1512",
        "int8 bitmap 21 150 7 1512 1512",
        "f16 bitmap 21 150 0 1512 1512",
        "lut4 bitmap 21 150 0 1512 1512",
        "int8 bitmap 21 150 0 -1 1512",
        "int8 bitmap 21 150 0 9999 1512",
        "int8 bitmap 21 150 0 1512 1500",
        "int8 bitmap 21 150 0 1512 99999999999999999",
        "int8 bitmap 21 150",
        "",
    };
    struct mdcsr_options options = {.values = MDCSR_INT8, .index = MDCSR_BITMAP};
    struct cpu_matrix *m = packed(&options, 21, 150, 0.48, 1);
    pdvm_error err;
    char *path = save(*state, m);
    struct safetensors *file;
    assert_ok(safetensors_open(path, &file, &err), &err);
    const struct safetensors_tensor *t = safetensors_find(file, "m");
    char sum[32];
    snprintf(sum, sizeof sum, " %s", strrchr(safetensors_metadata(file, "m"), ' ') + 1);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        struct safetensors_writer *w;
        char text[128];
        snprintf(text, sizeof text, "%s%s", others[i], sum);
        char *other = support_path(*state, "y.x.packed");
        assert_ok(safetensors_writer_open(other, 1144, &w, &err), &err);
        assert_ok(safetensors_writer_metadata(w, "m", text, &err), &err);
        assert_ok(safetensors_writer_tensor(w, "m", t->dtype, t->dims, 1, t->data, t->size, &err),
                  &err);
        assert_ok(safetensors_writer_commit(w, &err), &err);
        assert_refused(other, 21, 150);
        free(other);
    }
    safetensors_close(file);
    assert_refused(path, 21, 149);
    assert_refused(path, 22, 150);
    free(path);
    cpu_matrix_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_matrix_comes_back_as_it_was, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(any_changed_byte_is_found, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(a_wrong_description_is_refused, support_make_dir,
                                        support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
