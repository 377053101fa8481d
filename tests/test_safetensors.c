// The safetensors container: what is read, what is written, and everything that is refused.

#include "support/support.h"

#include "base/half.h"
#include "io/safetensors.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* A file in memory: 8 bytes of header size, the header, `data_size` zero bytes. */
struct image {
    uint8_t *bytes;
    size_t size;
};

static struct image image_of(const char *header, size_t header_size, size_t data_size) {
    struct image image = {calloc(1, 8 + header_size + data_size), 8 + header_size + data_size};
    assert_non_null(image.bytes);
    for (int i = 0; i < 8; i++) image.bytes[i] = (uint8_t)((uint64_t)header_size >> (8 * i));
    memcpy(image.bytes + 8, header, header_size);
    return image;
}

/* Opens the image under the name "x.safetensors"; it must be refused and nothing leaked. */
static void assert_refused(struct image image, pdvm_status expected, const char *text) {
    struct safetensors *st = (struct safetensors *)&image;
    pdvm_error err = {0};
    pdvm_status status =
        safetensors_open_memory("x.safetensors", image.bytes, image.size, &st, &err);
    assert_error(status, expected, &err, text);
    assert_error(status, expected, &err, "x.safetensors");
    assert_null(st);
    free(image.bytes);
}

static void assert_header_refused(const char *header, size_t data_size, const char *text) {
    assert_refused(image_of(header, strlen(header), data_size), PDVM_ERR_FORMAT, text);
}

static struct safetensors *open_header(const char *header, size_t data_size, struct image *image) {
    struct safetensors *st;
    pdvm_error err = {0};
    *image = image_of(header, strlen(header), data_size);
    assert_ok(safetensors_open_memory("x.safetensors", image->bytes, image->size, &st, &err), &err);
    return st;
}

/* ---- files of the reference implementation --------------------------------------------- */

static struct safetensors *open_seed(const char *name) {
    char relative[256];
    struct safetensors *st;
    pdvm_error err = {0};
    snprintf(relative, sizeof relative, "tests/fuzz/corpus/safetensors/%s", name);
    char *path = support_source_path(relative);
    assert_ok(safetensors_open(path, &st, &err), &err);
    assert_string_equal(safetensors_path(st), path);
    free(path);
    return st;
}

static void reads_every_dtype_of_a_reference_file(void **state) {
    (void)state;
    struct safetensors *st = open_seed("reference_dtypes");
    static const struct {
        const char *name;
        enum safetensors_dtype dtype;
        int n_dims;
        int64_t dims[2];
    } expected[] = {
        {"f32", SAFETENSORS_F32, 2, {3, 5}},   {"f16", SAFETENSORS_F16, 2, {2, 3}},
        {"f64", SAFETENSORS_F64, 1, {4}},      {"scalar", SAFETENSORS_F32, 0, {0}},
        {"empty", SAFETENSORS_F32, 2, {0, 7}}, {"u8", SAFETENSORS_U8, 1, {5}},
        {"i64", SAFETENSORS_I64, 1, {3}},      {"bool", SAFETENSORS_BOOL, 1, {3}},
        {"i8", SAFETENSORS_I8, 1, {2}},        {"u16", SAFETENSORS_U16, 1, {1}},
        {"i16", SAFETENSORS_I16, 1, {1}},      {"u32", SAFETENSORS_U32, 1, {1}},
        {"i32", SAFETENSORS_I32, 1, {1}},      {"u64", SAFETENSORS_U64, 1, {1}},
    };
    size_t n = sizeof expected / sizeof *expected;
    assert_int_equal(safetensors_count(st), n);
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_tensor *t = safetensors_find(st, expected[i].name);
        assert_non_null(t);
        assert_string_equal(t->name, expected[i].name);
        assert_int_equal(t->dtype, expected[i].dtype);
        assert_int_equal(t->n_dims, expected[i].n_dims);
        int64_t elements = 1;
        for (int d = 0; d < t->n_dims; d++) {
            assert_int_equal(t->dims[d], expected[i].dims[d]);
            elements *= t->dims[d];
        }
        assert_int_equal(t->n_elements, elements);
        assert_int_equal(t->size, (size_t)elements * safetensors_dtype_size(t->dtype));
    }
    assert_null(safetensors_find(st, "f3"));
    assert_null(safetensors_find(st, "f320"));
    assert_null(safetensors_find(st, ""));

    float out[15];
    pdvm_error err = {0};
    assert_ok(safetensors_to_float(st, safetensors_find(st, "f32"), 0, 15, out, &err), &err);
    static const float f32[] = {0, 1, -2, 0.5f, -0.25f};
    assert_memory_equal(out, f32, sizeof f32);
    assert_ok(safetensors_to_float(st, safetensors_find(st, "f16"), 1, 2, out, &err), &err);
    assert_true(out[0] == -65504.0f && out[1] == 0x1p-24f);
    assert_ok(safetensors_to_float(st, safetensors_find(st, "f64"), 0, 1, out, &err), &err);
    assert_true(out[0] == 1.0f / 3.0f);
    assert_ok(safetensors_to_float(st, safetensors_find(st, "scalar"), 0, 1, out, &err), &err);
    assert_true(out[0] == 1.5f);
    assert_ok(safetensors_to_float(st, safetensors_find(st, "empty"), 0, 0, out, &err), &err);
    assert_int_equal(safetensors_find(st, "u8")->data[4], 4);
    safetensors_close(st);
}

static void count_pair(void *user, const char *key, const char *value) {
    (void)value;
    size_t *n = user;
    *n += strlen(key) > 0;
}

static void reads_reference_metadata_with_escapes(void **state) {
    (void)state;
    struct safetensors *st = open_seed("reference_dtypes");
    size_t n = 0;
    assert_string_equal(safetensors_metadata(st, "format"), "np");
    assert_string_equal(safetensors_metadata(st, "na\xc3\xafve \"key\"\n"),
                        "v\xc3\xa4lue \\ \xe2\x98\x83");
    assert_null(safetensors_metadata(st, "absent"));
    safetensors_metadata_each(st, count_pair, &n);
    assert_int_equal(n, 2);
    safetensors_close(st);

    st = open_seed("reference_no_metadata");
    n = 0;
    assert_null(safetensors_metadata(st, "format"));
    safetensors_metadata_each(st, count_pair, &n);
    assert_int_equal(n, 0);
    safetensors_close(st);
}

static void reads_a_file_without_tensors(void **state) {
    (void)state;
    struct safetensors *st = open_seed("reference_no_tensors");
    assert_int_equal(safetensors_count(st), 0);
    assert_null(safetensors_at(st, 0));
    assert_null(safetensors_find(st, "a"));
    safetensors_close(st);
}

static void reads_bf16_behind_a_header_of_odd_length(void **state) {
    (void)state;
    struct safetensors *st = open_seed("bf16_padded");
    float out[4];
    pdvm_error err = {0};
    assert_ok(safetensors_to_float(st, safetensors_at(st, 0), 0, 4, out, &err), &err);
    assert_true(out[0] == 1.0f && out[1] == -2.0f && out[2] == 0.5f && isnan(out[3]));
    safetensors_close(st);
}

/* ---- what is accepted ------------------------------------------------------------------ */

static void lists_tensors_in_file_order(void **state) {
    (void)state;
    struct image image;
    struct safetensors *st =
        open_header("{\"z\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]},"
                    "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]},"
                    "\"empty\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[2,2]},"
                    "\"m\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
                    6, &image);
    static const char *const order[] = {"m", "empty", "z", "a"};
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(safetensors_at(st, i)->name, order[i]);
        assert_ptr_equal(safetensors_find(st, order[i]), safetensors_at(st, i));
    }
    assert_null(safetensors_at(st, 4));
    assert_int_equal(safetensors_find(st, "empty")->n_elements, 0);
    safetensors_close(st);
    free(image.bytes);
}

static void takes_null_metadata_and_unknown_fields_like_the_reference(void **state) {
    (void)state;
    struct image image;
    struct safetensors *st = open_header(
        "{\"__metadata__\":null,"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"more\":[1]}}  \n",
        1, &image);
    assert_int_equal(safetensors_count(st), 1);
    assert_null(safetensors_metadata(st, "a"));
    safetensors_close(st);
    free(image.bytes);
}

static void header_hash_follows_the_header(void **state) {
    (void)state;
    struct image image[3];
    struct safetensors *st[3] = {
        open_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
                    &image[0]),
        open_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
                    &image[1]),
        open_header("{\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
                    &image[2]),
    };
    assert_true(safetensors_header_hash(st[0]) == safetensors_header_hash(st[1]));
    assert_true(safetensors_header_hash(st[0]) != safetensors_header_hash(st[2]));
    for (int i = 0; i < 3; i++) {
        safetensors_close(st[i]);
        free(image[i].bytes);
    }
}

/* ---- what is refused ------------------------------------------------------------------- */

static void refuses_files_too_short_for_a_header(void **state) {
    (void)state;
    for (size_t size = 0; size < 8; size++) {
        struct image image = {calloc(1, 8), size};
        assert_refused(image, PDVM_ERR_FORMAT, "too short");
    }
    struct image empty_header = {calloc(1, 8), 8};
    assert_refused(empty_header, PDVM_ERR_FORMAT, "'{'");
}

static void refuses_header_sizes_past_the_end_or_absurd(void **state) {
    (void)state;
    struct image image = image_of("{}", 2, 0);
    image.bytes[0] = 3;
    assert_refused(image, PDVM_ERR_FORMAT, "past the end");
    image = image_of("{}", 2, 0);
    memset(image.bytes, 0xff, 8);
    assert_refused(image, PDVM_ERR_FORMAT, "limit");
    image = image_of("{}", 2, 0);
    image.bytes[7] = 0x80;
    assert_refused(image, PDVM_ERR_FORMAT, "limit");
}

static void refuses_headers_that_are_no_json_object(void **state) {
    (void)state;
    assert_header_refused("[]", 0, "'{'");
    assert_header_refused(" {}", 0, "'{'");
    assert_header_refused("\"{}\"", 0, "'{'");
    assert_header_refused("{", 0, "line 1");
    assert_header_refused("{}x", 0, "line 1");
    assert_header_refused("{\n\n\"a\":}", 0, "line 3");
    assert_header_refused("{'a':1}", 0, "line 1");
    assert_header_refused("{\"\xff\":1}", 0, "byte 0xff");
    assert_header_refused("{\"a\\u0000b\":1}", 0, "line 1");
    assert_refused(image_of("{\"a\":1}\0", 8, 0), PDVM_ERR_FORMAT, "line 1");
}

static void refuses_deep_nesting(void **state) {
    (void)state;
    /* {"a":[[[...]]]} */
    size_t depth = 1000000, size = 6 + 2 * depth;
    char *header = malloc(size);
    if (!header) support_fail("out of memory");
    for (size_t i = 0; i < size; i++) header[i] = i < 5 + depth ? '[' : ']';
    for (size_t i = 0; i < 5; i++) header[i] = "{\"a\":"[i];
    header[size - 1] = '}';
    assert_refused(image_of(header, size, 0), PDVM_ERR_FORMAT, "nested");
    free(header);
}

static void refuses_duplicate_names(void **state) {
    (void)state;
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                          "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                          2, "uplicate");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],"
                          "\"data_offsets\":[0,1]}}",
                          1, "uplicate");
}

static void refuses_metadata_that_is_not_strings(void **state) {
    (void)state;
    assert_header_refused("{\"__metadata__\":[]}", 0, "__metadata__");
    assert_header_refused("{\"__metadata__\":\"a\"}", 0, "__metadata__");
    assert_header_refused("{\"__metadata__\":{\"key\":1}}", 0, "\"key\"");
    assert_header_refused("{\"__metadata__\":{\"key\":null}}", 0, "\"key\"");
    assert_header_refused("{\"__metadata__\":{\"key\":{}}}", 0, "\"key\"");
}

static void refuses_tensor_entries_of_the_wrong_form(void **state) {
    (void)state;
    static const struct {
        const char *entry, *text;
    } cases[] = {
        {"1", "must be an object"},
        {"null", "must be an object"},
        {"{}", "dtype"},
        {"{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}", "dtype"},
        {"{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}", "\"F31\""},
        {"{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}", "\"f32\""},
        {"{\"dtype\":\"F32\",\"data_offsets\":[0,4]}", "shape"},
        {"{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}", "shape"},
        {"{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,4]}", "shape"},
        {"{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}", "shape[0]"},
        {"{\"dtype\":\"F32\",\"shape\":[1,\"1\"],\"data_offsets\":[0,4]}", "shape[1]"},
        {"{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}", "shape[0]"},
        {"{\"dtype\":\"F32\",\"shape\":[-1,-1],\"data_offsets\":[0,4]}", "shape[0]"},
        {"{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}", "line 1"},
        {"{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}",
         "overflows"},
        {"{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}", "span"},
        {"{\"dtype\":\"F32\",\"shape\":[1]}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":4}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[]}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[\"0\",4]}", "data_offsets"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}", "negative"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}", "falling"},
        {"{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}", "past the file"},
        {"{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}", "span 4 bytes"},
        {"{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,4]}", "span 4 bytes"},
        {"{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,4]}", "span 4 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[256];
        snprintf(header, sizeof header, "{\"the.tensor\":%s}", cases[i].entry);
        assert_header_refused(header, 4, cases[i].text);
        if (strcmp(cases[i].text, "line 1") != 0)
            assert_header_refused(header, 4, "\"the.tensor\"");
    }
}

static void refuses_more_dimensions_than_supported(void **state) {
    (void)state;
    const char *header = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],"
                         "\"data_offsets\":[0,1]}}";
    assert_refused(image_of(header, strlen(header), 1), PDVM_ERR_UNSUPPORTED, "9 dimensions");
}

static void refuses_tensors_that_overlap_or_leave_gaps(void **state) {
    (void)state;
    static const struct {
        const char *a, *b;
        size_t data_size;
        const char *text;
    } cases[] = {
        {"[0,4]", "[2,6]", 6, "overlap"}, {"[0,4]", "[0,4]", 4, "overlap"},
        {"[0,4]", "[5,9]", 9, "gap"},     {"[1,5]", "[5,9]", 9, "gap"},
        {"[0,4]", "[4,8]", 9, "9 bytes"}, {"[4,8]", "[0,4]", 12, "12 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[256];
        snprintf(header, sizeof header,
                 "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":%s},"
                 "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":%s}}",
                 cases[i].a, cases[i].b);
        assert_header_refused(header, cases[i].data_size, cases[i].text);
    }
    assert_header_refused("{}", 1, "1 bytes");
    /* An empty tensor inside another one is a place that the tensors before don't reach. */
    assert_header_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                          "\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}",
                          8, "overlap");
}

static void refuses_every_truncation_of_a_good_file(void **state) {
    (void)state;
    char *path = support_source_path("tests/fuzz/corpus/safetensors/reference_dtypes");
    size_t size;
    char *data = support_read_file(path, &size);
    for (size_t n = 0; n < size; n++) {
        /* An allocation of its own, so that a sanitizer sees a read past the end. */
        struct image image = {calloc(1, n ? n : 1), n};
        if (!image.bytes) support_fail("out of memory");
        memcpy(image.bytes, data, n);
        assert_refused(image, PDVM_ERR_FORMAT, "");
    }
    free(data);
    free(path);
}

static void quotes_hostile_names_harmlessly(void **state) {
    (void)state;
    char header[3000];
    size_t n = (size_t)snprintf(header, sizeof header, "{\"\\u001b[2J");
    memset(header + n, 'n', 2000);
    snprintf(header + n + 2000, sizeof header - n - 2000, "\":1}");
    struct image image = image_of(header, strlen(header), 0);
    struct safetensors *st;
    pdvm_error err = {0};
    assert_int_equal(safetensors_open_memory("x", image.bytes, image.size, &st, &err),
                     PDVM_ERR_FORMAT);
    assert_null(strchr(err.message, '\x1b'));
    assert_non_null(strstr(err.message, "must be an object"));
    free(image.bytes);
}

static void names_missing_files_and_directories(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "absent.safetensors");
    struct safetensors *st;
    pdvm_error err = {0};
    assert_error(safetensors_open(path, &st, &err), PDVM_ERR_IO, &err, path);
    assert_null(st);
    assert_error(safetensors_open(dir, &st, &err), PDVM_ERR_IO, &err, dir);
    assert_null(st);
    safetensors_close(NULL);
    free(path);
    support_tmpdir_remove(dir);
}

static void converts_only_floats_and_only_inside_the_tensor(void **state) {
    (void)state;
    struct image image;
    struct safetensors *st =
        open_header("{\"i\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                    "\"f\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                    12, &image);
    float out[4];
    pdvm_error err = {0};
    const struct safetensors_tensor *f = safetensors_find(st, "f");
    assert_error(safetensors_to_float(st, safetensors_find(st, "i"), 0, 1, out, &err),
                 PDVM_ERR_UNSUPPORTED, &err, "I32");
    assert_error(safetensors_to_float(st, f, 0, 3, out, &err), PDVM_ERR_ARGUMENT, &err, "\"f\"");
    assert_error(safetensors_to_float(st, f, 3, 0, out, &err), PDVM_ERR_ARGUMENT, &err, "\"f\"");
    assert_error(safetensors_to_float(st, f, -1, 1, out, &err), PDVM_ERR_ARGUMENT, &err, "\"f\"");
    assert_error(safetensors_to_float(st, f, 1, INT64_MAX, out, &err), PDVM_ERR_ARGUMENT, &err,
                 "\"f\"");
    assert_ok(safetensors_to_float(st, f, 2, 0, out, &err), &err);
    safetensors_close(st);
    free(image.bytes);
}

/* ---- writing --------------------------------------------------------------------------- */

static void a_tensor_may_come_in_pieces(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "m.safetensors");
    struct safetensors_writer *w;
    struct safetensors *st;
    size_t size;
    pdvm_error err = {0};
    assert_ok(safetensors_writer_open(path, 1000, &w, &err), &err);
    assert_ok(safetensors_writer_begin(w, "a", SAFETENSORS_U16, (int64_t[]){4}, 1, &size, &err),
              &err);
    assert_int_equal(size, 8);
    assert_ok(safetensors_writer_append(w, "abc", 3, &err), &err);
    /* The next one, and the end, must wait for the rest. */
    assert_error(safetensors_writer_tensor(w, "b", SAFETENSORS_U8, (int64_t[]){1}, 1, "x", 1, &err),
                 PDVM_ERR_ARGUMENT, &err, "lacks 5 bytes");
    assert_error(safetensors_writer_append(w, "defghi", 6, &err), PDVM_ERR_ARGUMENT, &err, "6");
    assert_ok(safetensors_writer_append(w, "defgh", 5, &err), &err);
    assert_ok(safetensors_writer_tensor(w, "b", SAFETENSORS_U8, (int64_t[]){1}, 1, "x", 1, &err),
              &err);
    assert_ok(safetensors_writer_commit(w, &err), &err);
    assert_ok(safetensors_open(path, &st, &err), &err);
    assert_memory_equal(safetensors_find(st, "a")->data, "abcdefgh", 8);
    assert_memory_equal(safetensors_find(st, "b")->data, "x", 1);
    safetensors_close(st);

    assert_ok(safetensors_writer_open(path, 1000, &w, &err), &err);
    assert_ok(safetensors_writer_begin(w, "a", SAFETENSORS_U16, (int64_t[]){4}, 1, &size, &err),
              &err);
    assert_error(safetensors_writer_commit(w, &err), PDVM_ERR_IO, &err, "not finished");
    free(path);
    support_tmpdir_remove(dir);
}

static void round_trips_tensors_and_metadata(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "m.safetensors");
    struct safetensors_writer *w;
    pdvm_error err = {0};
    const float floats[6] = {1, -2, 3.5f, 0, 1e30f, -1e-30f};
    const uint16_t halves[3] = {pd_float_to_bf16(1), pd_float_to_bf16(-3), 0};
    const char *odd_name = "na\xc3\xafve \"quoted\"\\\n\t";

    assert_ok(safetensors_writer_open(path, 1001, &w, &err), &err);
    assert_false(support_exists(path));
    assert_ok(safetensors_writer_metadata(w, "b", "replaced", &err), &err);
    assert_ok(safetensors_writer_metadata(w, "a", odd_name, &err), &err);
    assert_ok(safetensors_writer_metadata(w, "b", "2", &err), &err);
    assert_ok(
        safetensors_writer_tensor(w, "bytes", SAFETENSORS_U8, (int64_t[]){3}, 1, "abc", 3, &err),
        &err);
    assert_ok(safetensors_writer_tensor(w, odd_name, SAFETENSORS_F32, (int64_t[]){2, 3}, 2, floats,
                                        sizeof floats, &err),
              &err);
    assert_ok(
        safetensors_writer_tensor(w, "empty", SAFETENSORS_F32, (int64_t[]){0, 9}, 2, NULL, 0, &err),
        &err);
    assert_ok(safetensors_writer_tensor(w, "scalar", SAFETENSORS_F32, NULL, 0, floats, 4, &err),
              &err);
    assert_ok(safetensors_writer_tensor(w, "halves", SAFETENSORS_BF16, (int64_t[]){3}, 1, halves,
                                        sizeof halves, &err),
              &err);
    assert_ok(safetensors_writer_commit(w, &err), &err);
    assert_int_equal(support_count_entries(dir), 1);

    size_t size;
    char *bytes = support_read_file(path, &size);
    assert_int_equal((uint8_t)bytes[0] | (uint8_t)bytes[1] << 8, 1008);
    assert_int_equal(bytes[8], '{');
    assert_int_equal(bytes[8 + 1007], ' ');
    assert_int_equal(size, 8 + 1008 + 3 + 24 + 0 + 4 + 6);
    free(bytes);

    struct safetensors *st;
    assert_ok(safetensors_open(path, &st, &err), &err);
    assert_int_equal(safetensors_count(st), 5);
    assert_string_equal(safetensors_at(st, 0)->name, "bytes");
    assert_memory_equal(safetensors_at(st, 0)->data, "abc", 3);
    assert_string_equal(safetensors_metadata(st, "a"), odd_name);
    assert_string_equal(safetensors_metadata(st, "b"), "2");
    const struct safetensors_tensor *t = safetensors_find(st, odd_name);
    assert_non_null(t);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[1], 3);
    /* This one lies at an odd address. */
    float out[6];
    assert_ok(safetensors_to_float(st, t, 0, 6, out, &err), &err);
    assert_memory_equal(out, floats, sizeof floats);
    assert_ok(safetensors_to_float(st, t, 2, 3, out, &err), &err);
    assert_memory_equal(out, floats + 2, 3 * sizeof *out);
    assert_ok(safetensors_to_float(st, safetensors_find(st, "halves"), 0, 3, out, &err), &err);
    assert_true(out[0] == 1 && out[1] == -3 && out[2] == 0);
    assert_int_equal(safetensors_find(st, "empty")->n_elements, 0);
    assert_int_equal(safetensors_find(st, "scalar")->n_dims, 0);
    safetensors_close(st);
    free(path);
    support_tmpdir_remove(dir);
}

static void writer_refuses_what_a_reader_would(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "m.safetensors");
    struct safetensors_writer *w;
    pdvm_error err = {0};
    const int64_t one[1] = {1};
    const int64_t nine[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    const int64_t huge[2] = {(int64_t)1 << 40, (int64_t)1 << 40};
    const int64_t bytes_overflow[1] = {INT64_MAX};
    const int64_t negative[1] = {-1};
    const struct {
        const char *name;
        const int64_t *dims;
        const char *text;
        size_t size;
        enum safetensors_dtype dtype;
        int n_dims;
    } cases[] = {
        {"a", one, "written twice", 1, SAFETENSORS_U8, 1},
        {"b", one, "2 bytes given", 2, SAFETENSORS_U8, 1},
        {"b", one, "1 bytes given", 1, SAFETENSORS_F32, 1},
        {"b", nine, "9 dimensions", 1, SAFETENSORS_U8, 9},
        {"b", one, "-1 dimensions", 1, SAFETENSORS_U8, -1},
        {"b", huge, "overflows", 1, SAFETENSORS_U8, 2},
        {"b", bytes_overflow, "1 bytes given", 1, SAFETENSORS_F64, 1},
        {"b", negative, "negative", 1, SAFETENSORS_U8, 1},
        {"b", one, "dtype", 1, SAFETENSORS_N_DTYPES, 1},
        {"__metadata__", one, "reserved", 1, SAFETENSORS_U8, 1},
        {"\xff\xfe", one, "UTF-8", 1, SAFETENSORS_U8, 1},
    };
    assert_ok(safetensors_writer_open(path, 200, &w, &err), &err);
    assert_ok(safetensors_writer_tensor(w, "a", SAFETENSORS_U8, one, 1, "x", 1, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_error(safetensors_writer_tensor(w, cases[i].name, cases[i].dtype, cases[i].dims,
                                               cases[i].n_dims, "xx", cases[i].size, &err),
                     PDVM_ERR_ARGUMENT, &err, cases[i].text);
    assert_error(safetensors_writer_metadata(w, "k", "\xff", &err), PDVM_ERR_ARGUMENT, &err,
                 "UTF-8");
    assert_error(safetensors_writer_metadata(w, "\xff", "v", &err), PDVM_ERR_ARGUMENT, &err,
                 "UTF-8");
    /* None of that has harmed the file. */
    assert_ok(safetensors_writer_commit(w, &err), &err);
    struct safetensors *st;
    assert_ok(safetensors_open(path, &st, &err), &err);
    assert_int_equal(safetensors_count(st), 1);
    safetensors_close(st);
    free(path);
    support_tmpdir_remove(dir);
}

static void commit_says_how_long_the_header_is(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "m.safetensors");
    const int64_t one[1] = {1};
    /* {"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} */
    const size_t need = 53;
    for (size_t reserve = need - 6; reserve <= need + 3; reserve++) {
        struct safetensors_writer *w;
        pdvm_error err = {0};
        assert_ok(safetensors_writer_open(path, reserve, &w, &err), &err);
        assert_ok(safetensors_writer_tensor(w, "a", SAFETENSORS_U8, one, 1, "x", 1, &err), &err);
        pdvm_status status = safetensors_writer_commit(w, &err);
        if ((reserve + 7) / 8 * 8 < need) {
            assert_error(status, PDVM_ERR_ARGUMENT, &err, "needs 53 bytes");
            assert_int_equal(support_count_entries(dir), 0);
        } else {
            assert_ok(status, &err);
            assert_int_equal(support_count_entries(dir), 1);
            assert_int_equal(unlink(path), 0);
        }
    }
    struct safetensors_writer *w;
    pdvm_error err = {0};
    assert_error(safetensors_writer_open(path, SAFETENSORS_MAX_HEADER + 1, &w, &err),
                 PDVM_ERR_ARGUMENT, &err, path);
    assert_null(w);
    free(path);
    support_tmpdir_remove(dir);
}

static void abort_leaves_the_old_file(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "m.safetensors", "old");
    struct safetensors_writer *w;
    pdvm_error err = {0};
    assert_ok(safetensors_writer_open(path, 64, &w, &err), &err);
    safetensors_writer_abort(w);
    safetensors_writer_abort(NULL);
    char *text = support_read_file(path, NULL);
    assert_string_equal(text, "old");
    assert_int_equal(support_count_entries(dir), 1);
    free(text);
    free(path);
    support_tmpdir_remove(dir);
}

/* A limit on file sizes behaves as a full disk does: writes come short, then fail. */
static void full_disk_leaves_the_old_file(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "m.safetensors", "old");
    size_t size = (size_t)4 << 20;
    uint8_t *data = calloc(1, size);
    struct rlimit old;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);

    /* In the middle of a tensor, and only when the buffer is flushed at the end. */
    static const size_t tensor_sizes[] = {(size_t)4 << 20, 200000};
    pdvm_status statuses[2] = {PDVM_OK, PDVM_OK};
    pdvm_error errs[2] = {{0}, {0}};
    struct rlimit small = {100000, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    for (int i = 0; i < 2; i++) {
        struct safetensors_writer *w;
        int64_t n = (int64_t)tensor_sizes[i];
        pdvm_status status = safetensors_writer_open(path, 256, &w, &errs[i]);
        if (status != PDVM_OK) continue;
        status = safetensors_writer_tensor(w, "a", SAFETENSORS_U8, &n, 1, data, tensor_sizes[i],
                                           &errs[i]);
        pdvm_error second = {0};
        statuses[i] = safetensors_writer_commit(w, &second);
        if (status == PDVM_OK) errs[i] = second;
    }
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);

    for (int i = 0; i < 2; i++) assert_error(statuses[i], PDVM_ERR_IO, &errs[i], path);
    char *text = support_read_file(path, NULL);
    assert_string_equal(text, "old");
    assert_int_equal(support_count_entries(dir), 1);
    free(text);
    free(data);
    free(path);
    support_tmpdir_remove(dir);
}

static void writing_into_a_missing_directory_fails(void **state) {
    (void)state;
    char *dir = support_tmpdir();
    char *path = support_path(dir, "absent/m.safetensors");
    struct safetensors_writer *w;
    pdvm_error err = {0};
    assert_error(safetensors_writer_open(path, 64, &w, &err), PDVM_ERR_IO, &err, path);
    assert_null(w);
    assert_error(safetensors_writer_open("/dev/full", 64, &w, &err), PDVM_ERR_IO, &err,
                 "/dev/full");
    free(path);
    support_tmpdir_remove(dir);
}

static void dtypes_have_their_names_and_sizes(void **state) {
    (void)state;
    assert_string_equal(safetensors_dtype_name(SAFETENSORS_BF16), "BF16");
    assert_string_equal(safetensors_dtype_name(SAFETENSORS_F8_E5M2), "F8_E5M2");
    assert_int_equal(safetensors_dtype_size(SAFETENSORS_BF16), 2);
    assert_int_equal(safetensors_dtype_size(SAFETENSORS_I64), 8);
    for (int i = 0; i < SAFETENSORS_N_DTYPES; i++) {
        assert_non_null(safetensors_dtype_name((enum safetensors_dtype)i));
        assert_true(safetensors_dtype_size((enum safetensors_dtype)i) > 0);
    }
    assert_null(safetensors_dtype_name(SAFETENSORS_N_DTYPES));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_dtype_of_a_reference_file),
        cmocka_unit_test(reads_reference_metadata_with_escapes),
        cmocka_unit_test(reads_a_file_without_tensors),
        cmocka_unit_test(reads_bf16_behind_a_header_of_odd_length),
        cmocka_unit_test(lists_tensors_in_file_order),
        cmocka_unit_test(takes_null_metadata_and_unknown_fields_like_the_reference),
        cmocka_unit_test(header_hash_follows_the_header),
        cmocka_unit_test(refuses_files_too_short_for_a_header),
        cmocka_unit_test(refuses_header_sizes_past_the_end_or_absurd),
        cmocka_unit_test(refuses_headers_that_are_no_json_object),
        cmocka_unit_test(refuses_deep_nesting),
        cmocka_unit_test(refuses_duplicate_names),
        cmocka_unit_test(refuses_metadata_that_is_not_strings),
        cmocka_unit_test(refuses_tensor_entries_of_the_wrong_form),
        cmocka_unit_test(refuses_more_dimensions_than_supported),
        cmocka_unit_test(refuses_tensors_that_overlap_or_leave_gaps),
        cmocka_unit_test(refuses_every_truncation_of_a_good_file),
        cmocka_unit_test(quotes_hostile_names_harmlessly),
        cmocka_unit_test(names_missing_files_and_directories),
        cmocka_unit_test(converts_only_floats_and_only_inside_the_tensor),
        cmocka_unit_test(a_tensor_may_come_in_pieces),
        cmocka_unit_test(round_trips_tensors_and_metadata),
        cmocka_unit_test(writer_refuses_what_a_reader_would),
        cmocka_unit_test(commit_says_how_long_the_header_is),
        cmocka_unit_test(abort_leaves_the_old_file),
        cmocka_unit_test(full_disk_leaves_the_old_file),
        cmocka_unit_test(writing_into_a_missing_directory_fails),
        cmocka_unit_test(dtypes_have_their_names_and_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
