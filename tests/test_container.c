// The .pdvm file: what is written comes back bit for bit, and every contradiction between the
// metadata and the tensors is refused with the name of the matrix and the part.

#include "support/support.h"

#include "base/random.h"
#include "io/safetensors.h"
#include "mdcsr/container.h"
#include "model/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fill(float *w, int64_t n, double density, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) {
        bool stored = pd_random_unit(&seed) < density;
        float v = (float)pd_random_unit(&seed) - 0.5f;
        w[i] = stored ? v : 0;
    }
}

static void write_matrix(struct container_writer *w, const char *name, const float *x, int64_t rows,
                         int64_t cols, struct mdcsr_options o, struct mdcsr *m) {
    pdvm_error err;
    struct mdcsr_report report;
    assert_ok(mdcsr_encode(x, rows, cols, &o, NULL, m, &report, &err), &err);
    assert_ok(container_write_matrix(w, name, m, &report, &err), &err);
}

static struct container_writer *start(const char *path, size_t n_tensors) {
    struct container_writer *w;
    pdvm_error err;
    assert_ok(container_writer_open(path, container_header_reserve(n_tensors, 40), &w, &err), &err);
    return w;
}

static void assert_same_arrays(const struct mdcsr *a, const struct mdcsr *b) {
    assert_int_equal(a->n_entries, b->n_entries);
    assert_int_equal(a->values_size, b->values_size);
    assert_memory_equal(a->values, b->values, a->values_size);
    assert_int_equal(a->index_size, b->index_size);
    if (a->index) assert_memory_equal(a->index, b->index, a->index_size);
    assert_true(!a->row_offsets == !b->row_offsets && !a->index_offsets == !b->index_offsets);
    if (a->row_offsets)
        assert_memory_equal(a->row_offsets, b->row_offsets, (size_t)(a->rows + 1) * 8);
    if (a->index_offsets)
        assert_memory_equal(a->index_offsets, b->index_offsets, (size_t)(a->rows + 1) * 8);
    assert_int_equal(a->n_groups, b->n_groups);
    if (a->scales) assert_memory_equal(a->scales, b->scales, (size_t)(a->rows * a->n_groups) * 4);
    assert_memory_equal(a->codebook, b->codebook, sizeof a->codebook);
}

static void every_coding_comes_back_bit_for_bit(void **state) {
    (void)state;
    enum { ROWS = 9, COLS = 77 };
    float x[ROWS * COLS];
    struct mdcsr written[MDCSR_N_VALUES * MDCSR_N_INDEX * 2];
    char *dir = support_tmpdir(), *path = support_path(dir, "all.pdvm");
    struct container_writer *w = start(path, 50);
    pdvm_error err;
    int n = 0;
    fill(x, ROWS * COLS, 0.4, 1);
    for (int v = 0; v < MDCSR_N_VALUES; v++)
        for (int i = 0; i < MDCSR_N_INDEX; i++)
            for (int g = 0; g < 2; g++) {
                char name[32];
                snprintf(name, sizeof name, "m.%d.weight", n);
                struct mdcsr_options o = {.values = (enum mdcsr_values)v,
                                          .index = (enum mdcsr_index)i,
                                          .codebook = (enum mdcsr_codebook)(i % 3),
                                          .group = g ? 32 : 0};
                write_matrix(w, name, x, ROWS, COLS, o, &written[n++]);
            }
    assert_ok(container_write_vector(w, "norm.weight", x, COLS, &err), &err);
    assert_ok(container_write_file(w, "config.json", "{}", 2, &err), &err);
    assert_ok(container_write_metadata(w, "pdvm.source", "a test", &err), &err);
    assert_ok(container_writer_commit(w, &err), &err);

    struct container *c;
    assert_ok(container_open(path, &c, &err), &err);
    assert_ok(container_verify_hash(c, &err), &err);
    assert_int_equal(container_matrix_count(c), n);
    for (int i = 0; i < n; i++) {
        const struct container_matrix *info = container_matrix_at(c, (size_t)i);
        struct mdcsr m;
        assert_ptr_equal(container_matrix_find(c, info->name), info);
        assert_ok(container_read_matrix(c, info->name, &m, &err), &err);
        assert_same_arrays(&written[i], &m);
        assert_int_equal(info->n_entries, m.n_entries);
        assert_int_equal(info->value_coding, written[i].value_coding);
        assert_int_equal(info->index_coding, written[i].index_coding);
        assert_int_equal(info->codebook_kind, written[i].codebook_kind);
        assert_int_equal(info->group, written[i].group);
        assert_true(info->error >= 0 && info->error < 0.3);
        assert_true((info->error == 0) == (info->value_coding == MDCSR_F32));
        mdcsr_free(&m);
        mdcsr_free(&written[i]);
    }
    float norm[COLS];
    int64_t size;
    assert_int_equal(container_vector_count(c), 1);
    assert_string_equal(container_vector_at(c, 0, &size), "norm.weight");
    assert_int_equal(size, COLS);
    assert_ok(container_read_vector(c, "norm.weight", norm, COLS, &err), &err);
    assert_memory_equal(norm, x, sizeof norm);
    assert_error(container_read_vector(c, "norm.weight", norm, 3, &err), PDVM_ERR_FORMAT, &err,
                 "norm.weight");
    const char *data;
    size_t len;
    container_file(c, "config.json", &data, &len);
    assert_int_equal(len, 2);
    assert_memory_equal(data, "{}", 2);
    container_file(c, "tokenizer.json", &data, &len);
    assert_null(data);
    assert_string_equal(safetensors_metadata(container_safetensors(c), "pdvm.source"), "a test");
    container_close(c);
    free(path);
    support_tmpdir_remove(dir);
}

static void reported_bytes_are_those_of_the_file(void **state) {
    (void)state;
    float x[50 * 64];
    char *dir = support_tmpdir(), *path = support_path(dir, "m.pdvm");
    fill(x, 50 * 64, 0.3, 4);
    for (int v = 0; v < MDCSR_N_VALUES; v++)
        for (int i = 0; i < MDCSR_N_INDEX; i++) {
            struct mdcsr_options o = {.values = (enum mdcsr_values)v,
                                      .index = (enum mdcsr_index)i,
                                      .group = i % 2 ? 64 : 0};
            struct container_writer *w = start(path, 6);
            struct container *c;
            struct mdcsr m;
            struct mdcsr_report report;
            pdvm_error err;
            assert_ok(mdcsr_encode(x, 50, 64, &o, NULL, &m, &report, &err), &err);
            assert_ok(container_write_matrix(w, "m", &m, &report, &err), &err);
            assert_ok(container_writer_commit(w, &err), &err);
            assert_ok(container_open(path, &c, &err), &err);
            assert_int_equal(container_matrix_at(c, 0)->stored_bytes, report.stored_bytes);
            assert_int_equal(container_matrix_at(c, 0)->n_zeros, report.n_zeros);
            container_close(c);
            mdcsr_free(&m);
        }
    free(path);
    support_tmpdir_remove(dir);
}

// The golden file was written by the first version of the encoder. It stays: later versions must read
// it to the same bits, whatever they write. (PDVM_WRITE_GOLDEN=DIR writes a new pair to DIR, for a
// new version of the format.)
static void write_golden(const char *dir) {
    enum { ROWS = 4, COLS = 300 };
    float x[ROWS * COLS], row[COLS];
    char *path = support_path(dir, "v" CONTAINER_VERSION ".pdvm");
    char *expected = support_path(dir, "v" CONTAINER_VERSION ".expected.safetensors");
    struct container_writer *w;
    struct safetensors_writer *e;
    pdvm_error err;
    uint64_t seed = 8;
    assert_ok(container_writer_open(path, container_header_reserve(50, 4), &w, &err), &err);
    assert_ok(safetensors_writer_open(expected, 8192, &e, &err), &err);
    for (int i = 0; i < ROWS * COLS; i++) {
        static const double densities[ROWS] = {0.5, 0, 1, 0.01};
        bool stored = pd_random_unit(&seed) < densities[i / COLS];
        float v = (float)(pd_random_unit(&seed) + pd_random_unit(&seed) - 1);
        x[i] = stored ? v : 0;
    }
    x[3 * COLS + COLS - 1] = 0.75f;
    for (int k = 0; k < MDCSR_N_VALUES * MDCSR_N_INDEX * 2; k++) {
        struct mdcsr_options o = {.values = (enum mdcsr_values)(k / 2 % MDCSR_N_VALUES),
                                  .index = (enum mdcsr_index)(k / 2 / MDCSR_N_VALUES),
                                  .codebook = (enum mdcsr_codebook)(k / 2 % 3),
                                  .group = k % 2 ? 32u << k / 2 % 4 : 0};
        float decoded[ROWS * COLS];
        char name[16];
        struct mdcsr m;
        snprintf(name, sizeof name, "m%d", k);
        write_matrix(w, name, x, ROWS, COLS, o, &m);
        for (int r = 0; r < ROWS; r++) {
            mdcsr_decode_row(&m, r, row);
            memcpy(decoded + r * COLS, row, sizeof row);
        }
        mdcsr_free(&m);
        assert_ok(safetensors_writer_tensor(e, name, SAFETENSORS_F32, (int64_t[]){ROWS, COLS}, 2,
                                            decoded, sizeof decoded, &err),
                  &err);
    }
    assert_ok(container_write_vector(w, "norm", x, COLS, &err), &err);
    assert_ok(container_write_file(w, "config.json", "{}", 2, &err), &err);
    assert_ok(container_writer_commit(w, &err), &err);
    assert_ok(safetensors_writer_commit(e, &err), &err);
    free(path);
    free(expected);
}

static void golden_file_of_version_1_decodes_to_the_same_bits(void **state) {
    (void)state;
    if (getenv("PDVM_WRITE_GOLDEN")) write_golden(getenv("PDVM_WRITE_GOLDEN"));
    char *path = support_source_path("tests/golden/format/v1.pdvm");
    char *other = support_source_path("tests/golden/format/v1.expected.safetensors");
    struct container *c;
    struct safetensors *expected;
    pdvm_error err;
    assert_ok(container_open(path, &c, &err), &err);
    assert_ok(safetensors_open(other, &expected, &err), &err);
    assert_ok(container_verify_hash(c, &err), &err);
    assert_int_equal(container_matrix_count(c), 48);
    for (size_t i = 0; i < container_matrix_count(c); i++) {
        const struct container_matrix *info = container_matrix_at(c, i);
        const struct safetensors_tensor *t = safetensors_find(expected, info->name);
        struct mdcsr m;
        float row[300];
        assert_non_null(t);
        assert_ok(container_read_matrix(c, info->name, &m, &err), &err);
        assert_int_equal(m.cols, 300);
        for (int64_t r = 0; r < m.rows; r++) {
            mdcsr_decode_row(&m, r, row);
            assert_memory_equal(row, t->data + (size_t)r * sizeof row, sizeof row);
        }
        mdcsr_free(&m);
    }
    container_close(c);
    safetensors_close(expected);
    free(path);
    free(other);
}

// ---- damaged files ------------------------------------------------------------------------

struct image {
    char *bytes;
    size_t size;
};

// A file with matrices "a" (bitmap, int8), "b" (delta8, lut4, groups), "d" (dense f16), vector "v".
static struct image small_file(void) {
    float x[8 * 64];
    char *dir = support_tmpdir(), *path = support_path(dir, "small.pdvm");
    struct container_writer *w = start(path, 6);
    struct mdcsr m;
    struct image image;
    pdvm_error err;
    fill(x, 8 * 64, 0.5, 2);
    x[0] = 1;
    write_matrix(w, "a", x, 8, 64,
                 (struct mdcsr_options){.values = MDCSR_INT8, .index = MDCSR_BITMAP}, &m);
    mdcsr_free(&m);
    write_matrix(
        w, "b", x, 8, 64,
        (struct mdcsr_options){
            .values = MDCSR_LUT4, .index = MDCSR_DELTA8, .codebook = MDCSR_LEARNED, .group = 32},
        &m);
    mdcsr_free(&m);
    write_matrix(w, "d", x, 8, 64,
                 (struct mdcsr_options){.values = MDCSR_F16, .index = MDCSR_DENSE}, &m);
    mdcsr_free(&m);
    assert_ok(container_write_vector(w, "v", x, 64, &err), &err);
    assert_ok(container_write_file(w, "config.json", "{}", 2, &err), &err);
    assert_ok(container_writer_commit(w, &err), &err);
    image.bytes = support_read_file(path, &image.size);
    free(path);
    support_tmpdir_remove(dir);
    return image;
}

static pdvm_status open_image(const struct image *image, pdvm_error *err) {
    struct container *c;
    pdvm_status status = container_open_memory("image", image->bytes, image->size, &c, err);
    if (status == PDVM_OK) container_close(c);
    return status;
}

// Replaces text in the header, at the cost of the spaces that pad it.
static void edit(struct image *image, const char *from, const char *to) {
    uint64_t header;
    memcpy(&header, image->bytes, sizeof header);
    char *text = image->bytes + 8, *end = text + header;
    char *at = memmem(text, header, from, strlen(from));
    if (!at) fail_msg("the header has no %s", from);
    size_t rest = (size_t)(end - at) - strlen(from) - 200;
    memmove(at + strlen(to), at + strlen(from), rest);
    memcpy(at, to, strlen(to));
    for (char *p = at + strlen(to) + rest; p < end; p++) *p = ' ';
}

static void contradictions_in_the_header_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
        pdvm_status status;
        const char *message;
    } cases[] = {
        {"\"format\":\"pdvm\"", "\"format\":\"pt\"", PDVM_ERR_UNSUPPORTED, "not a .pdvm file"},
        {"\"pdvm.version\":\"1\"", "\"pdvm.version\":\"2\"", PDVM_ERR_UNSUPPORTED, "version \"2\""},
        {"\"pdvm.version\"", "\"pdvm.versoin\"", PDVM_ERR_FORMAT, "pdvm.version"},
        {"\"pdvm.hash\":\"", "\"pdvm.hash\":\"0", PDVM_ERR_FORMAT, "pdvm.hash"},
        {"\"pdvm.hash\"", "\"pdvm.hush\"", PDVM_ERR_FORMAT, "pdvm.hash"},
        {"\"pdvm.matrices\"", "\"pdvm.matrixes\"", PDVM_ERR_FORMAT, "pdvm.matrices"},
        {"\"pdvm.matrices\":\"{", "\"pdvm.matrices\":\"[", PDVM_ERR_FORMAT, "pdvm.matrices"},
        {"{\\\"a\\\":", "{\\\"a\\\":1,\\\"z\\\":", PDVM_ERR_FORMAT, "matrix \"a\""},
        {"{\\\"a\\\":", "{\\\"c\\\":", PDVM_ERR_FORMAT, "c.values"},
        {"{\\\"a\\\":", "{\\\"\\\":", PDVM_ERR_FORMAT, "names have"},
        {"{\\\"a\\\":", "{\\\"b\\\":", PDVM_ERR_FORMAT, "duplicate"},
        {"[8,64]", "[8]", PDVM_ERR_FORMAT, "shape"},
        {"[8,64]", "[8,64,1]", PDVM_ERR_FORMAT, "shape"},
        {"[8,64]", "[0,64]", PDVM_ERR_FORMAT, "shape"},
        {"[8,64]", "[-8,64]", PDVM_ERR_FORMAT, "shape"},
        {"[8,64]", "[8.5,64]", PDVM_ERR_FORMAT, "shape"},
        {"[8,64]", "[8,268435457]", PDVM_ERR_FORMAT, "shape"},
        {"[8,64]", "[268435456,268435456]", PDVM_ERR_FORMAT, "matrix \"a\""},
        {"[8,64]", "[9,64]", PDVM_ERR_FORMAT, "matrix \"a\""},
        {"\\\"bitmap\\\"", "\\\"delta9\\\"", PDVM_ERR_UNSUPPORTED, "delta9"},
        {"\\\"bitmap\\\"", "7", PDVM_ERR_FORMAT, "index"},
        {"\\\"bitmap\\\"", "\\\"delta8\\\"", PDVM_ERR_FORMAT, "matrix \"a\""},
        {"\\\"bitmap\\\"", "\\\"dense\\\"", PDVM_ERR_FORMAT, "dense"},
        {"\\\"int8\\\"", "\\\"int9\\\"", PDVM_ERR_UNSUPPORTED, "int9"},
        {"\\\"int8\\\"", "\\\"f32\\\"", PDVM_ERR_FORMAT, "values has dtype I8"},
        {"\\\"int8\\\"", "\\\"lut8\\\"", PDVM_ERR_FORMAT, "codebook"},
        {"\\\"int8\\\"", "\\\"int8\\\",\\\"codebook\\\":\\\"prime\\\"", PDVM_ERR_FORMAT,
         "codebook"},
        {"\\\"learned\\\"", "\\\"taught\\\"", PDVM_ERR_UNSUPPORTED, "taught"},
        {"\\\"group\\\":0", "\\\"group\\\":48", PDVM_ERR_UNSUPPORTED, "48"},
        {"\\\"group\\\":0", "\\\"group\\\":-1", PDVM_ERR_FORMAT, "group"},
        {"\\\"group\\\":0", "\\\"group\\\":32", PDVM_ERR_FORMAT, "scales has dtype F32"},
        {"\\\"group\\\":32", "\\\"group\\\":64", PDVM_ERR_FORMAT, "matrix \"b\": scales"},
        {"\\\"entries\\\":", "\\\"entries\\\":9", PDVM_ERR_FORMAT, "entries"},
        {"\\\"entries\\\":512", "\\\"entries\\\":511", PDVM_ERR_FORMAT, "dense matrix has 512"},
        {"\\\"zeros\\\":", "\\\"zeros\\\":9", PDVM_ERR_FORMAT, "zeros"},
        {"\\\"zeros\\\":", "\\\"zeros\\\":1,\\\"x\\\":", PDVM_ERR_FORMAT, "zeros"},
        {"\\\"error\\\":", "\\\"error\\\":-", PDVM_ERR_FORMAT, "error"},
        {"\\\"error\\\":", "\\\"errer\\\":", PDVM_ERR_FORMAT, "error"},
        {"\"a.values\"", "\"a.valves\"", PDVM_ERR_FORMAT, "a.values"},
        {"\"a.scales\"", "\"a.scale\"", PDVM_ERR_FORMAT, "a.scales"},
        {"\"a.row_offsets\"", "\"a.index_offsets\"", PDVM_ERR_FORMAT, "a.row_offsets"},
        {"\"v\":{\"dtype\":\"F32\"", "\"v\":{\"dtype\":\"I32\"", PDVM_ERR_FORMAT, "\"v\""},
        {"\"v\":", "\"a.codebook\":", PDVM_ERR_FORMAT, "unexpected tensor \"a.codebook\""},
        {"\"v\":", "\"d.scales\":", PDVM_ERR_FORMAT, "unexpected tensor \"d.scales\""},
        {"\"d.values\":{\"dtype\":\"F16\"", "\"d.values\":{\"dtype\":\"BF16\"", PDVM_ERR_FORMAT,
         "values has dtype BF16"},
        {"\"d.values\":{\"dtype\":\"F16\",\"shape\":[8,64]",
         "\"d.values\":{\"dtype\":\"F16\",\"shape\":[64,8]", PDVM_ERR_FORMAT, "[8, 64]"},
        {"\"d.values\":{\"dtype\":\"F16\",\"shape\":[8,64]",
         "\"d.values\":{\"dtype\":\"F16\",\"shape\":[512]", PDVM_ERR_FORMAT, "[8, 64]"},
        {"\"files/config.json\":{\"dtype\":\"U8\"", "\"files/config.json\":{\"dtype\":\"I8\"",
         PDVM_ERR_FORMAT, "files/config.json"},
    };
    struct image good = small_file();
    pdvm_error err;
    assert_ok(open_image(&good, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct image bad = {malloc(good.size), good.size};
        memcpy(bad.bytes, good.bytes, good.size);
        edit(&bad, cases[i].from, cases[i].to);
        pdvm_status status = open_image(&bad, &err);
        if (status != cases[i].status || !strstr(err.message, cases[i].message))
            fail_msg("%s -> %s: %s: %s", cases[i].from, cases[i].to, pdvm_status_name(status),
                     status == PDVM_OK ? "" : err.message);
        assert_non_null(strstr(err.message, "image"));
        free(bad.bytes);
    }
    free(good.bytes);
}

// No flipped bit may crash a reader or go unnoticed by the hash.
static void flipped_bits_are_found(void **state) {
    (void)state;
    struct image image = small_file();
    uint64_t header, seed = 9;
    memcpy(&header, image.bytes, sizeof header);
    size_t data = 8 + header;
    int refused = 0;
    for (int i = 0; i < 3000; i++) {
        size_t at = i % 2 ? data + pd_random(&seed) % (image.size - data) : pd_random(&seed) % 2000;
        int bit = 1 << pd_random(&seed) % 8;
        struct container *c;
        pdvm_error err;
        image.bytes[at] = (char)(image.bytes[at] ^ bit);
        if (container_open_memory("image", image.bytes, image.size, &c, &err) != PDVM_OK) {
            refused++;
        } else {
            for (size_t k = 0; k < container_matrix_count(c); k++) {
                struct mdcsr m;
                float row[64];
                if (container_read_matrix(c, container_matrix_at(c, k)->name, &m, &err) !=
                    PDVM_OK) {
                    assert_non_null(strstr(err.message, container_matrix_at(c, k)->name));
                    continue;
                }
                assert_true(m.cols == 64);
                for (int64_t r = 0; r < m.rows; r++) mdcsr_decode_row(&m, r, row);
                mdcsr_free(&m);
            }
            if (at >= data)
                assert_error(container_verify_hash(c, &err), PDVM_ERR_FORMAT, &err, "damaged");
            container_close(c);
        }
        image.bytes[at] = (char)(image.bytes[at] ^ bit);
    }
    assert_true(refused > 500);
    free(image.bytes);
}

static void every_truncation_is_refused(void **state) {
    (void)state;
    struct image image = small_file();
    for (size_t n = 0; n < image.size; n += n < 4000 ? 7 : 101) {
        struct image cut = {malloc(n + 1), n};
        pdvm_error err;
        memcpy(cut.bytes, image.bytes, n);
        assert_int_equal(open_image(&cut, &err), PDVM_ERR_FORMAT);
        free(cut.bytes);
    }
    free(image.bytes);
}

static void writer_refuses_names_that_mean_something_else(void **state) {
    (void)state;
    char *dir = support_tmpdir(), *path = support_path(dir, "x.pdvm");
    struct container_writer *w = start(path, 6);
    float x[32] = {1};
    struct mdcsr m;
    struct mdcsr_report report;
    pdvm_error err;
    struct mdcsr_options o = {.values = MDCSR_INT8, .index = MDCSR_BITMAP, .group = 32};
    assert_ok(mdcsr_encode(x, 1, 32, &o, NULL, &m, &report, &err), &err);
    assert_ok(container_write_matrix(w, "m", &m, &report, &err), &err);
    assert_error(container_write_matrix(w, "m", &m, &report, &err), PDVM_ERR_ARGUMENT, &err,
                 "\"m\"");
    assert_error(container_write_matrix(w, "", &m, &report, &err), PDVM_ERR_ARGUMENT, &err,
                 "names");
    assert_error(container_write_matrix(w, "files/m", &m, &report, &err), PDVM_ERR_ARGUMENT, &err,
                 "files/m");
    assert_error(container_write_vector(w, "m.scales", x, 32, &err), PDVM_ERR_ARGUMENT, &err,
                 "m.scales");
    assert_error(container_write_vector(w, "v", x, 0, &err), PDVM_ERR_ARGUMENT, &err, "\"v\"");
    assert_error(container_write_file(w, "a/b", x, 1, &err), PDVM_ERR_ARGUMENT, &err, "a/b");
    assert_error(container_write_metadata(w, "pdvm.hash", "1", &err), PDVM_ERR_ARGUMENT, &err,
                 "pdvm.hash");
    m.scales[0] = 0.1f;
    assert_error(container_write_matrix(w, "n", &m, &report, &err), PDVM_ERR_ARGUMENT, &err,
                 "bfloat16");
    mdcsr_free(&m);
    container_writer_abort(w);
    assert_int_equal(support_count_entries(dir), 0);
    free(path);
    support_tmpdir_remove(dir);
}

// ---- models -------------------------------------------------------------------------------

static const char config_json[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":32,"
    "\"intermediate_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"vocab_size\":40,\"max_position_embeddings\":64,"
    "\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
    "\"tie_word_embeddings\":true,\"bos_token_id\":1,\"eos_token_id\":2}";

struct plan {
    const char *leave_out; // a tensor that is not written
    const char *extra;     // a vector that is written beside
    const char *extra_matrix;
    const char *narrow; // a matrix that gets a column too few
    const char *config;
    float first; // the first weight of the embedding
};

static void write_model(const char *path, const struct plan *plan) {
    struct model_config config;
    struct container_writer *w = start(path, 30);
    pdvm_error err;
    assert_ok(model_config_parse("c", config_json, strlen(config_json), &config, &err), &err);
    for (size_t i = 0; i < tensors_count(&config); i++) {
        struct tensor_info t;
        float x[64 * 48];
        tensors_at(&config, i, &t);
        if (plan->leave_out && strcmp(plan->leave_out, t.name) == 0) continue;
        int64_t cols = t.cols - (plan->narrow && strcmp(plan->narrow, t.name) == 0);
        fill(x, t.rows * t.cols, 0.5, i);
        if (i == 0) x[0] = plan->first;
        if (!t.is_matrix) {
            assert_ok(container_write_vector(w, t.name, x, cols, &err), &err);
            continue;
        }
        struct mdcsr m;
        write_matrix(w, t.name, x, t.rows, cols,
                     (struct mdcsr_options){.values = MDCSR_F32, .index_auto = true}, &m);
        mdcsr_free(&m);
    }
    float extra[4] = {1, 2, 3, 4};
    struct mdcsr m;
    if (plan->extra) assert_ok(container_write_vector(w, plan->extra, extra, 4, &err), &err);
    if (plan->extra_matrix) {
        write_matrix(w, plan->extra_matrix, extra, 2, 2,
                     (struct mdcsr_options){.values = MDCSR_F32, .index_auto = true}, &m);
        mdcsr_free(&m);
    }
    const char *text = plan->config ? plan->config : config_json;
    assert_ok(container_write_file(w, SOURCE_CONFIG, text, strlen(text), &err), &err);
    assert_ok(
        container_write_file(w, SOURCE_GENERATION_CONFIG, "{\"eos_token_id\":[2,5]}", 22, &err),
        &err);
    assert_ok(container_writer_commit(w, &err), &err);
}

static void source_gives_the_model_back(void **state) {
    (void)state;
    char *dir = support_tmpdir(), *path = support_path(dir, "model.pdvm");
    struct model_source *s;
    pdvm_error err;
    write_model(path, &(struct plan){.first = 0.25f});
    assert_ok(source_open(path, &s, &err), &err);
    assert_true(source_is_mdcsr(s));
    assert_int_equal(s->config.hidden_size, 32);
    assert_int_equal(s->config.n_eos, 2);
    assert_int_equal(s->config.eos_token_ids[1], 5);
    for (size_t i = 0; i < tensors_count(&s->config); i++) {
        struct tensor_info t;
        float x[64 * 48], rows[64 * 48];
        tensors_at(&s->config, i, &t);
        fill(x, t.rows * t.cols, 0.5, i);
        if (i == 0) x[0] = 0.25f;
        assert_ok(source_read_rows(s, &t, 0, t.rows, rows, &err), &err);
        assert_memory_equal(x, rows, (size_t)(t.rows * t.cols) * 4);
        if (!t.is_matrix) continue;
        struct mdcsr m;
        assert_ok(source_read_rows(s, &t, 3, 2, rows, &err), &err);
        assert_memory_equal(x + 3 * t.cols, rows, (size_t)(2 * t.cols) * 4);
        assert_error(source_read_rows(s, &t, t.rows - 1, 2, rows, &err), PDVM_ERR_ARGUMENT, &err,
                     t.name);
        assert_ok(source_read_mdcsr(s, &t, &m, &err), &err);
        assert_int_equal(m.rows, t.rows);
        mdcsr_free(&m);
    }
    const char *data;
    size_t size;
    source_file(s, SOURCE_CONFIG, &data, &size);
    assert_int_equal(size, strlen(config_json));
    source_file(s, SOURCE_TOKENIZER, &data, &size);
    assert_null(data);
    source_close(s);
    free(path);
    support_tmpdir_remove(dir);
}

static void fingerprint_follows_the_weights(void **state) {
    (void)state;
    char *dir = support_tmpdir(), *path = support_path(dir, "model.pdvm");
    uint64_t prints[3];
    for (int i = 0; i < 3; i++) {
        struct model_source *s;
        pdvm_error err;
        write_model(path, &(struct plan){.first = i < 2 ? 0.25f : 0.2500001f});
        assert_ok(source_open(path, &s, &err), &err);
        prints[i] = s->fingerprint;
        source_close(s);
    }
    assert_true(prints[0] == prints[1]);
    assert_true(prints[0] != prints[2]);
    free(path);
    support_tmpdir_remove(dir);
}

static void incomplete_models_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        struct plan plan;
        pdvm_status status;
        const char *message;
    } cases[] = {
        {{.leave_out = "model.layers.1.mlp.up_proj.weight"},
         PDVM_ERR_FORMAT,
         "model.layers.1.mlp.up_proj.weight"},
        {{.leave_out = "model.norm.weight"}, PDVM_ERR_FORMAT, "model.norm.weight"},
        {{.narrow = "model.layers.0.self_attn.q_proj.weight"}, PDVM_ERR_FORMAT, "[32, 31]"},
        {{.narrow = "model.norm.weight"}, PDVM_ERR_FORMAT, "31 elements"},
        {{.extra = "model.layers.0.self_attn.q_proj.bias"}, PDVM_ERR_UNSUPPORTED, "q_proj.bias"},
        {{.extra_matrix = "lm_head.weight"}, PDVM_ERR_UNSUPPORTED, "lm_head.weight"},
        {{.extra_matrix = "model.layers.7.mlp.up_proj.weight"}, PDVM_ERR_UNSUPPORTED, "layers.7"},
        {{.config = "{}"}, PDVM_ERR_FORMAT, SOURCE_CONFIG},
        {{.config = ""}, PDVM_ERR_FORMAT, SOURCE_CONFIG},
    };
    char *dir = support_tmpdir(), *path = support_path(dir, "model.pdvm");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model_source *s;
        pdvm_error err;
        write_model(path, &cases[i].plan);
        pdvm_status status = source_open(path, &s, &err);
        if (status == PDVM_OK) fail_msg("case %zu was accepted", i);
        assert_error(status, cases[i].status, &err, cases[i].message);
        assert_non_null(strstr(err.message, "model.pdvm"));
    }
    free(path);
    support_tmpdir_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_coding_comes_back_bit_for_bit),
        cmocka_unit_test(reported_bytes_are_those_of_the_file),
        cmocka_unit_test(golden_file_of_version_1_decodes_to_the_same_bits),
        cmocka_unit_test(contradictions_in_the_header_are_refused),
        cmocka_unit_test(flipped_bits_are_found),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(writer_refuses_names_that_mean_something_else),
        cmocka_unit_test(source_gives_the_model_back),
        cmocka_unit_test(fingerprint_follows_the_weights),
        cmocka_unit_test(incomplete_models_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
