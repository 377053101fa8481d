// compressed-tensors checkpoints: every form reads as the floats it stands for, and every fault is
// named. The encoders here follow the format's description, not the product's code.

#include "support/compressed_weight.h"
#include "support/hf_model.h"
#include "support/support.h"

#include "compress/convert.h"
#include "model/compressed_tensors.h"
#include "model/source.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Writes the parts into one file, or every other one into a second. */
static void write_weight(const char *dir, const struct compressed_weight *w, int n_files) {
    for (int f = 0; f < n_files; f++) {
        struct safetensors_writer *out;
        pdvm_error err = {0};
        char *path = support_path(dir, f ? "b.safetensors" : "a.safetensors");
        assert_ok(safetensors_writer_open(path, 8192, &out, &err), &err);
        for (int i = f; i < w->n_parts; i += n_files) compressed_write_part(out, &w->parts[i]);
        assert_ok(safetensors_writer_commit(out, &err), &err);
        free(path);
    }
}

/* ---- one weight at a time -------------------------------------------------------------- */

static const struct tensor_info matrix = {
    .role = TENSOR_Q, .name = "m.q_proj.weight", .rows = 10, .cols = 24, .is_matrix = true};

#define F32 SAFETENSORS_F32
#define BF16 SAFETENSORS_BF16
#define F16 SAFETENSORS_F16
#define I8 SAFETENSORS_I8
#define E4M3 SAFETENSORS_F8_E4M3
#define E5M2 SAFETENSORS_F8_E5M2

static const struct {
    const char *coding;
    struct compressed_spec spec;
} specs[] = {
    {"sparse-bitmask F32", {.form = BITMASK, .dtype = F32}},
    {"sparse-bitmask F16", {.form = BITMASK, .dtype = F16, .infix = true}},
    {"sparse-bitmask BF16", {.form = BITMASK, .dtype = BF16}},
    {"sparse-bitmask F8_E4M3", {.form = BITMASK, .dtype = E4M3}},
    {"sparse-bitmask F8_E5M2",
     {.form = BITMASK, .dtype = E5M2, .scaled = true, .scale_dtype = F32}},
    {"sparse-24-bitmask F32", {.form = BITMASK_24, .dtype = F32, .infix = true}},
    {"sparse-24-bitmask BF16", {.form = BITMASK_24, .dtype = BF16}},
    {"sparse-24-bitmask F8_E4M3",
     {.form = BITMASK_24,
      .dtype = E4M3,
      .scaled = true,
      .scales = PER_ROW_COLUMN,
      .scale_dtype = BF16}},
    {"sparse-24-bitmask I8",
     {.form = BITMASK_24, .dtype = I8, .scaled = true, .scales = PER_ROW, .scale_dtype = F32}},
    {"pack-quantized int4",
     {.form = PACKED, .bits = 4, .scales = GROUPS_OF_8, .scale_dtype = BF16}},
    {"pack-quantized int4",
     {.form = PACKED, .bits = 4, .scales = GROUPS_OF_8, .scale_dtype = F16, .zero_points = true}},
    {"pack-quantized int4",
     {.form = PACKED,
      .bits = 4,
      .scales = GROUPS_OF_8,
      .scale_dtype = F32,
      .zero_points = true,
      .g_idx = true}},
    {"pack-quantized int8",
     {.form = PACKED,
      .bits = 8,
      .scales = PER_ROW_COLUMN,
      .scale_dtype = BF16,
      .zero_points = true}},
    {"pack-quantized int8", {.form = PACKED, .bits = 8, .scale_dtype = F32}},
    {"int-quantized I8", {.form = QUANTISED, .dtype = I8, .scales = PER_ROW, .scale_dtype = BF16}},
    {"int-quantized I8",
     {.form = QUANTISED,
      .dtype = I8,
      .scales = GROUPS_OF_8,
      .scale_dtype = F32,
      .zero_points = true}},
    {"float-quantized F8_E4M3", {.form = QUANTISED, .dtype = E4M3, .scale_dtype = F32}},
    {"float-quantized F8_E4M3",
     {.form = QUANTISED, .dtype = E4M3, .scales = PER_ROW_COLUMN, .scale_dtype = BF16}},
    {"float-quantized F8_E5M2",
     {.form = QUANTISED, .dtype = E5M2, .scales = PER_ROW, .scale_dtype = F32}},
};
#define N_SPECS (sizeof specs / sizeof *specs)

/* The files of write_weight, opened. */
static void open_files(const char *dir, int n_files, struct safetensors **files) {
    for (int f = 0; f < n_files; f++) {
        pdvm_error err = {0};
        char *path = support_path(dir, f ? "b.safetensors" : "a.safetensors");
        assert_ok(safetensors_open(path, &files[f], &err), &err);
        free(path);
    }
}

static bool same_bits(float a, float b) {
    return a == b || (isnan(a) && isnan(b));
}

static void assert_reads(const char *dir, const struct compressed_weight *w, int n_files,
                         const char *coding) {
    struct safetensors *files[2];
    struct compressed_tensor *t;
    pdvm_error err = {0};
    float *out = calloc((size_t)(w->info.rows * w->info.cols), sizeof *out);
    write_weight(dir, w, n_files);
    open_files(dir, n_files, files);
    assert_ok(compressed_tensor_open(files, (size_t)n_files, &w->info, &t, &err), &err);
    assert_non_null(t);
    assert_string_equal(t->coding, coding);
    assert_true(compressed_tensors_has(files, (size_t)n_files, w->info.name) ||
                strstr(coding, "t-quantized"));
    /* Last rows first: no row depends on another having been read. */
    for (int64_t row = w->info.rows; row > 0;) {
        int64_t n = row < 3 ? row : 3;
        row -= n;
        assert_ok(compressed_tensor_read_rows(t, row, n, out + row * w->info.cols, &err), &err);
    }
    for (int64_t i = 0; i < w->info.rows * w->info.cols; i++) {
        if (!same_bits(out[i], w->expected[i]))
            support_fail("%s: element %d is %g, not %g", coding, (int)i, (double)out[i],
                         (double)w->expected[i]);
    }
    compressed_tensor_release(t);
    free(t);
    free(out);
    for (int f = 0; f < n_files; f++) safetensors_close(files[f]);
}

static void every_form_reads_as_the_floats_it_stands_for(void **state) {
    for (size_t i = 0; i < N_SPECS; i++) {
        for (int n_files = 1; n_files <= 2; n_files++) {
            struct compressed_weight w = compressed_encode(&specs[i].spec, &matrix);
            assert_reads(*state, &w, n_files, specs[i].coding);
            compressed_free(&w);
        }
    }
}

static void sizes_that_fill_no_byte_or_word_read_too(void **state) {
    static const int64_t sizes[][2] = {{1, 5}, {3, 7}, {9, 13}, {8, 8}, {17, 31}, {2, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct tensor_info info = matrix;
        info.rows = sizes[i][0];
        info.cols = sizes[i][1];
        struct compressed_weight w =
            compressed_encode(&(struct compressed_spec){.form = BITMASK, .dtype = F16}, &info);
        assert_reads(*state, &w, 1, "sparse-bitmask F16");
        compressed_free(&w);
        for (int bits = 4; bits <= 8 && info.cols > 4; bits += 4) {
            w = compressed_encode(&(struct compressed_spec){.form = PACKED,
                                                            .bits = bits,
                                                            .scales = PER_ROW_COLUMN,
                                                            .scale_dtype = F32,
                                                            .zero_points = true},
                                  &info);
            assert_reads(*state, &w, 1, bits == 4 ? "pack-quantized int4" : "pack-quantized int8");
            compressed_free(&w);
        }
        info.cols *= 4;
        w = compressed_encode(&(struct compressed_spec){.form = BITMASK_24, .dtype = F16}, &info);
        assert_reads(*state, &w, 1, "sparse-24-bitmask F16");
        compressed_free(&w);
    }
}

static void vectors_and_matrices_of_zeros_are_compressed_too(void **state) {
    struct tensor_info info = {
        .role = TENSOR_FINAL_NORM, .name = "model.norm.weight", .rows = 1, .cols = 21};
    struct compressed_weight w = compressed_encode(
        &(struct compressed_spec){.form = BITMASK, .dtype = BF16, .everything = true}, &info);
    assert_reads(*state, &w, 1, "sparse-bitmask BF16");
    compressed_free(&w);

    w = compressed_encode(&(struct compressed_spec){.form = BITMASK, .dtype = BF16}, &matrix);
    w.parts[0].dims[0] = 0;
    w.parts[0].size = 0;
    memset(w.parts[1].data, 0, w.parts[1].size);
    memset(w.parts[2].data, 0, w.parts[2].size);
    memset(w.expected, 0, sizeof *w.expected * (size_t)(matrix.rows * matrix.cols));
    assert_reads(*state, &w, 1, "sparse-bitmask BF16");
    compressed_free(&w);
}

/* Each of the 256 codes, those that no encoder makes included. */
static void fp8_codes_have_their_values(void **state) {
    static const enum safetensors_dtype dtypes[] = {E4M3, E5M2};
    struct tensor_info info = matrix;
    info.rows = 4;
    info.cols = 64;
    for (size_t i = 0; i < 2; i++) {
        struct compressed_weight w = compressed_encode(
            &(struct compressed_spec){.form = QUANTISED, .dtype = dtypes[i], .scale_dtype = F32},
            &info);
        compressed_put_value(F32, 1.0f, w.parts[1].data);
        for (int k = 0; k < 256; k++) {
            w.parts[0].data[k] = (uint8_t)k;
            w.expected[k] = compressed_fp8_value(dtypes[i], (uint8_t)k);
        }
        assert_reads(*state, &w, 1, i ? "float-quantized F8_E5M2" : "float-quantized F8_E4M3");
        compressed_free(&w);
    }
    assert_true(compressed_fp8_value(E4M3, 0x7e) == 448 &&
                compressed_fp8_value(E4M3, 0x01) == 0x1p-9f);
    assert_true(compressed_fp8_value(E5M2, 0x7b) == 57344 &&
                compressed_fp8_value(E5M2, 0x01) == 0x1p-16f);
}

static void plain_floats_are_left_to_the_plain_reader(void **state) {
    struct safetensors *files[2];
    struct compressed_tensor *t = (struct compressed_tensor *)&files;
    pdvm_error err = {0};
    struct compressed_weight w =
        compressed_encode(&(struct compressed_spec){.form = PLAIN}, &matrix);
    compressed_add_part(&w, false, ".weight_scale", F32, 1, 1, 0);
    write_weight(*state, &w, 1);
    open_files(*state, 1, files);
    assert_ok(compressed_tensor_open(files, 1, &matrix, &t, &err), &err);
    assert_null(t);
    assert_false(compressed_tensors_has(files, 1, matrix.name));
    safetensors_close(files[0]);
    compressed_free(&w);
}

/* ---- faults ---------------------------------------------------------------------------- */

enum change {
    DROP,
    DTYPE,     /* to `a`, with as many elements */
    DIMS,      /* to [a, b]; b == 0: [a] */
    BYTE,      /* number a to b */
    INTEGER64, /* number a to b */
    FLOAT32,   /* number a to `f` */
    ADD        /* the part, F32 [1] */
};

struct fault {
    struct compressed_spec spec;
    const char *part;
    enum change change;
    int64_t a, b;
    float f;
    const char *text;
    pdvm_status status; /* 0: PDVM_ERR_FORMAT */
};

static void apply(struct compressed_weight *w, const struct fault *f) {
    struct compressed_file_part *p = NULL;
    for (int i = 0; i < w->n_parts; i++) {
        size_t n = strlen(w->parts[i].name), m = strlen(f->part);
        if (n > m && strcmp(w->parts[i].name + n - m, f->part) == 0) p = &w->parts[i];
    }
    if (f->change == ADD) {
        compressed_add_part(w, false, f->part, F32, 1, 1, 0);
        return;
    }
    if (!p) support_fail("no part %s", f->part);
    if (f->change == DROP) {
        free(p->data);
        *p = w->parts[--w->n_parts];
        return;
    }
    if (f->change == DTYPE) p->dtype = (enum safetensors_dtype)f->a;
    if (f->change == DIMS) {
        p->n_dims = f->b ? 2 : 1;
        p->dims[0] = f->a;
        p->dims[1] = f->b;
    }
    if (f->change == DTYPE || f->change == DIMS) {
        size_t old = p->size;
        p->size = safetensors_dtype_size(p->dtype) * (size_t)(p->n_dims > 0 ? p->dims[0] : 1) *
                  (size_t)(p->n_dims > 1 ? p->dims[1] : 1);
        uint8_t *data = calloc(1, p->size + 1);
        if (!data) support_fail("out of memory");
        memcpy(data, p->data, old < p->size ? old : p->size);
        free(p->data);
        p->data = data;
    }
    if (f->change == BYTE) p->data[f->a] = (uint8_t)f->b;
    if (f->change == INTEGER64) compressed_put_i64(p, f->a, f->b);
    if (f->change == FLOAT32) memcpy(p->data + 4 * f->a, &f->f, 4);
}

/* At opening or at the latest when all rows are read. */
static void assert_fault_is_named(const char *dir, const struct fault *f) {
    struct safetensors *files[2];
    struct compressed_tensor *t;
    pdvm_error err = {0};
    float out[10 * 24];
    struct compressed_weight w = compressed_encode(&f->spec, &matrix);
    apply(&w, f);
    write_weight(dir, &w, 1);
    open_files(dir, 1, files);
    pdvm_status expected = f->status ? f->status : PDVM_ERR_FORMAT;
    pdvm_status status = compressed_tensor_open(files, 1, &matrix, &t, &err);
    if (status == PDVM_OK) {
        if (!t) support_fail("%s: taken for no compressed tensor", f->text);
        status = compressed_tensor_read_rows(t, 0, matrix.rows, out, &err);
    } else {
        assert_null(t);
    }
    assert_error(status, expected, &err, f->text);
    assert_error(status, expected, &err, "a.safetensors");
    assert_error(status, expected, &err, "m.q_proj");
    free(t);
    safetensors_close(files[0]);
    compressed_free(&w);
}

#define SPARSE                                                                                     \
    { .form = BITMASK, .dtype = F32 }
#define SPARSE_24                                                                                  \
    { .form = BITMASK_24, .dtype = F32 }
#define INT4                                                                                       \
    {                                                                                              \
        .form = PACKED, .bits = 4, .scales = GROUPS_OF_8, .scale_dtype = F32, .zero_points = true, \
        .g_idx = true                                                                              \
    }
#define FP8                                                                                        \
    { .form = QUANTISED, .dtype = E4M3, .scales = PER_ROW, .scale_dtype = F32 }

static void every_fault_is_named(void **state) {
    static const struct fault faults[] = {
        {SPARSE, ".shape", DROP, .text = "\"m.q_proj.shape\" is missing"},
        {SPARSE, ".bitmask", DROP, .text = "\"m.q_proj.bitmask\" is missing"},
        {SPARSE, ".row_offsets", DROP, .text = "row_offsets are missing"},
        {SPARSE, ".shape", INTEGER64, 0, 11, .text = "says [11, 24]"},
        {SPARSE, ".shape", INTEGER64, 1, -24, .text = "says [10, -24]"},
        {SPARSE, ".shape", DIMS, 3, .text = "m.q_proj.shape\" has shape [3]"},
        {SPARSE, ".shape", DTYPE, F32, .text = "m.q_proj.shape\" has dtype F32"},
        {SPARSE, ".compressed", DTYPE, SAFETENSORS_U8, .text = "dtype U8"},
        {SPARSE, ".compressed", DTYPE, SAFETENSORS_F64, .text = "dtype F64"},
        {SPARSE, ".compressed", DIMS, 20, .text = "m.q_proj.row_offsets"},
        {SPARSE, ".compressed", DIMS, 240, .text = "m.q_proj.row_offsets"},
        {SPARSE, ".compressed", DIMS, 10, 16, .text = "one-dimensional"},
        {SPARSE, ".bitmask", DTYPE, I8, .text = "dtype I8"},
        {SPARSE, ".bitmask", DIMS, 10, 4, .text = "[10, 4], but it must be [10, 3]"},
        {SPARSE, ".bitmask", DIMS, 30, .text = "[30], but it must be [10, 3]"},
        {SPARSE, ".bitmask", BYTE, 4, 0, .text = "bits of row 1"},
        {SPARSE, ".bitmask", BYTE, 29, 255, .text = "bits of row 9"},
        {SPARSE, ".row_offsets", DTYPE, F32, .text = "row_offsets\" has dtype F32"},
        {SPARSE, ".row_offsets", DIMS, 11, .text = "[11], but it must be [10]"},
        {SPARSE, ".row_offsets", INTEGER64, 0, 1, .text = "offset of row 0"},
        {SPARSE, ".row_offsets", INTEGER64, 0, -1, .text = "offset of row 0"},
        {SPARSE, ".row_offsets", INTEGER64, 3, 0, .text = "offset of row 2"},
        {SPARSE, ".row_offsets", INTEGER64, 3, 1, .text = "offset of row 2"},
        {SPARSE, ".row_offsets", INTEGER64, 9, 1 << 20, .text = "offset of row 8"},
        {SPARSE, ".row_offsets", INTEGER64, 9, INT64_MIN, .text = "offset of row 8"},
        {SPARSE, ".row_offsets", INTEGER64, 9, INT64_MAX, .text = "offset of row 8"},
        {SPARSE, ".weight_packed", ADD, .text = "a second time"},
        {SPARSE, ".weight", ADD, .text = "a second time"},
        {SPARSE, ".weight.compressed", ADD, .text = "a second time"},
        {{.form = BITMASK, .dtype = I8}, ".shape", INTEGER64, 0, 10, .text = "weight_scale"},

        {SPARSE_24, ".compressed", DIMS, 10, 11, .text = "must be [10, 12]"},
        {SPARSE_24, ".compressed", DIMS, 120, .text = "row_offsets are missing"},
        {SPARSE_24, ".bitmask", BYTE, 3, 0x37, .text = "bits of row 1"},
        {SPARSE_24, ".bitmask", BYTE, 3, 0x3f, .text = "bits of row 1"},

        {INT4, ".weight_shape", DROP, .text = "\"m.q_proj.weight_shape\" is missing"},
        {INT4, ".weight_scale", DROP, .text = "\"m.q_proj.weight_scale\" is missing"},
        {INT4, ".weight_shape", INTEGER64, 1, 23, .text = "says [10, 23]"},
        {INT4, ".weight_packed", DTYPE, SAFETENSORS_U32, .text = "dtype U32"},
        {INT4, ".weight_packed", DIMS, 10, 2, .text = "[10, 3] for int4 or [10, 6] for int8"},
        {INT4, ".weight_packed", DIMS, 9, 3, .text = "[9, 3]"},
        {INT4, ".weight_scale", DTYPE, SAFETENSORS_F64, .text = "dtype F64"},
        {INT4, ".weight_scale", DIMS, 10, 5, .text = "do not divide into 5 groups"},
        {INT4, ".weight_scale", DIMS, 10, 48, .text = "do not divide into 48 groups"},
        {INT4, ".weight_scale", DIMS, 5, 3, .text = "[rows, groups]"},
        {INT4, ".weight_scale", DIMS, 0, .text = "[rows, groups]"},
        {INT4, ".weight_scale", FLOAT32, 4, .f = 0, .text = "row 1, group 1 is 0"},
        {INT4, ".weight_scale", FLOAT32, 29, .f = NAN, .text = "row 9, group 2 is nan"},
        {INT4, ".weight_scale", FLOAT32, 0, .f = INFINITY, .text = "row 0, group 0 is inf"},
        {INT4, ".weight_zero_point", DIMS, 10, 3, .text = "must be [2, 3]"},
        {INT4, ".weight_zero_point", DTYPE, I8, .text = "that of the scale"},
        {INT4, ".weight_zero_point", DTYPE, F32, .text = "dtype F32"},
        {INT4, ".weight_g_idx", DIMS, 25, .text = "[25], but it must be [24]"},
        {INT4, ".weight_g_idx", DTYPE, F32, .text = "dtype F32"},
        {INT4, ".weight_g_idx", BYTE, 8, 3, .text = "column 2 is in group 3"},
        {INT4, ".weight_g_idx", BYTE, 7, 255, .text = "column 1 is in group"},

        {FP8, ".weight", DIMS, 10, 25, .text = "must be [10, 24]"},
        {FP8, ".weight_scale", DIMS, 9, .text = "[rows, groups]"},
        {FP8, ".weight_scale", FLOAT32, 9, .f = -NAN, .text = "row 9"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        assert_fault_is_named(*state, &faults[i]);
}

static void sizes_that_the_format_cannot_hold_are_refused(void **state) {
    struct safetensors *files[2];
    struct compressed_tensor *t;
    pdvm_error err = {0};
    struct tensor_info narrow = matrix;
    narrow.cols = 4;
    struct compressed_weight w = compressed_encode(
        &(struct compressed_spec){.form = PACKED, .bits = 4, .scales = PER_ROW, .scale_dtype = F32},
        &narrow);
    write_weight(*state, &w, 1);
    open_files(*state, 1, files);
    assert_error(compressed_tensor_open(files, 1, &narrow, &t, &err), PDVM_ERR_UNSUPPORTED, &err,
                 "4 columns");
    safetensors_close(files[0]);
    compressed_free(&w);

    /* Padding behind the last column must be clear: something else was written there. */
    struct tensor_info odd = matrix;
    odd.cols = 13;
    float out[130];
    w = compressed_encode(&(struct compressed_spec)SPARSE, &odd);
    w.parts[1].data[1] |= 0x80;
    write_weight(*state, &w, 1);
    open_files(*state, 1, files);
    assert_ok(compressed_tensor_open(files, 1, &odd, &t, &err), &err);
    assert_error(compressed_tensor_read_rows(t, 0, 10, out, &err), PDVM_ERR_FORMAT, &err,
                 "bits of row 0");
    free(t);
    safetensors_close(files[0]);
    compressed_free(&w);
}

static void a_part_in_two_files_is_refused(void **state) {
    struct safetensors *files[2];
    struct compressed_tensor *t;
    pdvm_error err = {0};
    struct compressed_weight w = compressed_encode(&(struct compressed_spec)SPARSE, &matrix);
    write_weight(*state, &w, 1);
    open_files(*state, 1, files);
    files[1] = files[0];
    assert_error(compressed_tensor_open(files, 2, &matrix, &t, &err), PDVM_ERR_FORMAT, &err,
                 "is in");
    safetensors_close(files[0]);
    compressed_free(&w);
}

/* ---- whole checkpoints ----------------------------------------------------------------- */

#define CONFIG                                                                                     \
    "{\"model_type\": \"llama\", \"hidden_size\": 16, \"intermediate_size\": 24, "                 \
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "           \
    "\"vocab_size\": 32%s}"

static const struct model_config sizes = {.hidden_size = 16,
                                          .intermediate_size = 24,
                                          .n_layers = 2,
                                          .n_heads = 4,
                                          .n_kv_heads = 2,
                                          .head_dim = 4,
                                          .n_vocab = 32};

static void write_config(const char *dir, const char *more) {
    char text[1024];
    snprintf(text, sizeof text, CONFIG, more);
    free(support_write_text(dir, "config.json", text));
}

/*
 * A model in a directory of its own; `plain` writes the floats that the spec's weights stand for,
 * `extra` names one more tensor.
 */
static char *write_model(const char *parent, const char *name, const struct compressed_spec *s,
                         bool plain, const char *extra) {
    struct safetensors_writer *out;
    pdvm_error err = {0};
    char *dir = support_path(parent, name);
    char *path = support_path(dir, "model.safetensors");
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) support_fail("%s: cannot make it", dir);
    write_config(dir, plain ? ""
                            : ", \"quantization_config\": {\"quant_method\": "
                              "\"compressed-tensors\", \"format\": \"dense\"}");
    assert_ok(safetensors_writer_open(path, 32768, &out, &err), &err);
    for (size_t i = 0; i < tensors_count(&sizes); i++) {
        struct tensor_info info;
        tensors_at(&sizes, i, &info);
        struct compressed_weight w = compressed_encode(s, &info);
        struct compressed_file_part floats = {
            .dtype = F32,
            .n_dims = info.is_matrix ? 2 : 1,
            .dims = {info.is_matrix ? info.rows : info.cols, info.cols},
            .data = (uint8_t *)w.expected,
            .size = sizeof(float) * (size_t)(info.rows * info.cols)};
        snprintf(floats.name, sizeof floats.name, "%s", info.name);
        if (plain) compressed_write_part(out, &floats);
        for (int k = 0; k < w.n_parts && !plain; k++) compressed_write_part(out, &w.parts[k]);
        compressed_free(&w);
    }
    if (extra) {
        uint8_t zero[4] = {0};
        struct compressed_file_part p = {
            .dtype = F32, .n_dims = 1, .dims = {1}, .data = zero, .size = 4};
        snprintf(p.name, sizeof p.name, "%s", extra);
        compressed_write_part(out, &p);
    }
    assert_ok(safetensors_writer_commit(out, &err), &err);
    free(path);
    return dir;
}

static struct model_source *open_good(const char *path) {
    struct model_source *s;
    pdvm_error err = {0};
    assert_ok(source_open(path, &s, &err), &err);
    return s;
}

/* Every tensor, read in two pieces. */
static void assert_same_values(struct model_source *a, struct model_source *b) {
    for (size_t i = 0; i < tensors_count(&sizes); i++) {
        struct tensor_info t;
        float x[32 * 24], y[32 * 24];
        pdvm_error err = {0};
        tensors_at(&sizes, i, &t);
        int64_t half = t.rows / 2;
        assert_ok(source_read_rows(a, &t, 0, t.rows, x, &err), &err);
        assert_ok(source_read_rows(b, &t, half, t.rows - half, y + half * t.cols, &err), &err);
        assert_ok(source_read_rows(b, &t, 0, half, y, &err), &err);
        for (int64_t k = 0; k < t.rows * t.cols; k++) assert_true(x[k] == y[k]);
        source_release(b, &t);
    }
}

static void checkpoints_read_as_the_plain_ones(void **state) {
    for (size_t i = 0; i < N_SPECS; i++) {
        struct compressed_spec s = specs[i].spec;
        const char *coding;
        uint64_t bytes;
        struct tensor_info down;
        pdvm_error err = {0};
        float out[24];
        s.everything = s.form == BITMASK;
        char *plain = write_model(*state, "plain", &s, true, NULL);
        char *packed = write_model(*state, "compressed", &s, false, NULL);
        struct model_source *a = open_good(plain), *b = open_good(packed);
        assert_same_values(a, b);
        assert_true(a->fingerprint != b->fingerprint);
        tensors_describe(&sizes, TENSOR_DOWN, 1, &down);
        source_stored(b, &down, &coding, &bytes);
        assert_string_equal(coding, specs[i].coding);
        assert_true(bytes > 0 && bytes < 16 * 24 * 6);
        assert_error(source_read_rows(b, &down, 16, 1, out, &err), PDVM_ERR_ARGUMENT, &err, "16");
        source_close(a);
        source_close(b);
        free(plain);
        free(packed);
    }
}

static void conversion_keeps_their_zeros(void **state) {
    static const size_t chosen[] = {2, 6, 10, 16};
    char *file = support_path(*state, "m.pdvm");
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++) {
        struct convert_options o = convert_options_default();
        struct convert_result result = {0};
        pdvm_error err = {0};
        struct tensor_info t;
        struct mdcsr m;
        float out[24 * 16];
        int64_t n = 0;
        char *dir = write_model(*state, "compressed", &specs[chosen[i]].spec, false, NULL);
        o.plan.general.values = MDCSR_F32;
        o.plan.general.index = MDCSR_BITMAP;
        assert_ok(convert_model(dir, file, &o, &result, &err), &err);
        settings_free(&o.plan);
        convert_result_free(&result);

        struct model_source *from = open_good(dir), *to = open_good(file);
        tensors_describe(&sizes, TENSOR_UP, 0, &t);
        assert_ok(source_read_rows(from, &t, 0, t.rows, out, &err), &err);
        for (int64_t k = 0; k < t.rows * t.cols; k++) n += out[k] != 0;
        assert_ok(source_read_mdcsr(to, &t, &m, &err), &err);
        assert_int_equal(m.n_entries, n);
        /* A third is zero; where there are zero points, what happens to equal them. */
        assert_true(
            n < (specs[chosen[i]].spec.zero_points ? t.rows * t.cols : t.rows * t.cols * 3 / 4));
        mdcsr_free(&m);
        float back[24 * 16];
        assert_ok(source_read_rows(to, &t, 0, t.rows, back, &err), &err);
        /* An FP8 minus zero comes back without its sign. */
        for (int64_t k = 0; k < t.rows * t.cols; k++) assert_true(back[k] == out[k]);
        source_close(from);
        source_close(to);
        free(dir);
    }
    free(file);
}

static void only_what_belongs_to_the_weights_may_stand_beside_them(void **state) {
    static const char *const ignored[] = {
        "model.layers.0.self_attn.q_proj.input_scale",
        "model.layers.1.mlp.down_proj.input_zero_point",
        "model.layers.1.self_attn.k_proj.output_scale",
        "model.layers.1.self_attn.k_scale",
        "model.layers.0.input_layernorm.weight_scale",
    };
    static const char *const refused[] = {
        "model.layers.0.self_attn.q_proj.weight_global_scale",
        "model.layers.0.self_attn.q_proj.meta",
        "model.layers.1.mlp.down_proj.weight_scale_inv",
        "model.layers.1.mlp.extra_proj.weight_scale",
    };
    pdvm_error err = {0};
    struct model_source *s;
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        char *dir = write_model(*state, "m", &specs[9].spec, false, ignored[i]);
        source_close(open_good(dir));
        free(dir);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char *dir = write_model(*state, "m", &specs[9].spec, false, refused[i]);
        assert_error(source_open(dir, &s, &err), PDVM_ERR_UNSUPPORTED, &err, refused[i]);
        free(dir);
    }
}

static void a_layer_without_its_parts_is_missing(void **state) {
    pdvm_error err = {0};
    struct model_source *s;
    char *dir = write_model(*state, "m", &specs[0].spec, false, NULL);
    char *text = support_path(dir, "config.json"), *config = support_read_file(text, NULL);
    char *layers = strstr(config, "\"num_hidden_layers\": 2");
    assert_non_null(layers);
    memcpy(layers, "\"num_hidden_layers\": 3", strlen("\"num_hidden_layers\": 3"));
    free(support_write_text(dir, "config.json", config));
    assert_error(source_open(dir, &s, &err), PDVM_ERR_FORMAT, &err, "model.layers.2.mlp.down_proj");
    free(config);
    free(text);
    free(dir);
}

/* Phi-3: q, k and v are rows of one matrix, and that is what is compressed. */
static void parts_of_a_fused_matrix_are_its_rows(void **state) {
    static const enum tensor_role roles[] = {TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_GATE, TENSOR_UP};
    struct model_config phi3 = sizes;
    struct safetensors_writer *out;
    pdvm_error err = {0};
    const struct compressed_spec *spec = &specs[0].spec;
    snprintf(phi3.architecture, sizeof phi3.architecture, "phi3");
    char *path = support_path(*state, "model.safetensors"), config[512];
    snprintf(config, sizeof config, CONFIG, "");
    memcpy(strstr(config, "\"llama\""), "\"phi3\" ", strlen("\"phi3\" "));
    free(support_write_text(*state, "config.json", config));
    assert_ok(safetensors_writer_open(path, 32768, &out, &err), &err);
    for (size_t i = 0; i < tensors_count(&phi3); i++) {
        struct tensor_info info, whole;
        int64_t row;
        tensors_at(&phi3, i, &info);
        if (tensors_fused(&phi3, info.role, info.layer, &whole, &row)) {
            if (row > 0) continue;
            info = whole;
        }
        struct compressed_weight w = compressed_encode(spec, &info);
        for (int k = 0; k < w.n_parts; k++) compressed_write_part(out, &w.parts[k]);
        compressed_free(&w);
    }
    assert_ok(safetensors_writer_commit(out, &err), &err);
    struct model_source *s = open_good(*state);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        struct tensor_info info, whole;
        float values[24 * 16];
        const char *coding;
        uint64_t bytes;
        int64_t row;
        tensors_describe(&phi3, roles[i], 1, &info);
        assert_true(tensors_fused(&phi3, roles[i], 1, &whole, &row));
        struct compressed_weight w = compressed_encode(spec, &whole);
        assert_ok(source_read_rows(s, &info, 0, info.rows, values, &err), &err);
        assert_memory_equal(values, w.expected + row * info.cols,
                            sizeof *values * (size_t)(info.rows * info.cols));
        source_stored(s, &info, &coding, &bytes);
        assert_string_equal(coding, specs[0].coding);
        assert_true(bytes > 0 && bytes < (uint64_t)(info.rows * info.cols) * sizeof(float));
        source_release(s, &info);
        compressed_free(&w);
    }
    source_close(s);
    free(path);
}

static void configurations_are_read_or_refused_by_name(void **state) {
    static const char *const good[] = {
        "\"quantization_config\": {\"quant_method\": \"compressed-tensors\"}",
        "\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
        "\"pack-quantized\", \"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 4, "
        "\"group_size\": 128}, \"format\": null, \"targets\": [\"Linear\"]}}, \"ignore\": "
        "[\"lm_head\"], \"transform_config\": {}}",
        "\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
        "\"dense\", \"sparsity_config\": {\"format\": \"sparse-24-bitmask\"}}",
        "\"compression_config\": {\"sparsity_config\": {\"format\": \"sparse-bitmask\"}}",
        "\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
        "\"mixed-precision\", \"config_groups\": {\"a\": {\"format\": \"float-quantized\"}, "
        "\"b\": {\"format\": \"int-quantized\"}}}",
    };
    static const struct {
        const char *config, *text;
        pdvm_status status;
    } bad[] = {
        {"\"format\": \"marlin-24\"", "\"marlin-24\"", PDVM_ERR_UNSUPPORTED},
        {"\"format\": \"nvfp4-pack-quantized\"", "\"nvfp4-pack-quantized\"", PDVM_ERR_UNSUPPORTED},
        {"\"sparsity_config\": {\"format\": \"marlin-24\"}", "\"sparsity_config\"",
         PDVM_ERR_UNSUPPORTED},
        {"\"config_groups\": {\"a\": {\"format\": \"mxfp4-pack-quantized\"}}",
         "\"mxfp4-pack-quantized\"", PDVM_ERR_UNSUPPORTED},
        {"\"transform_config\": {\"config_groups\": {\"u\": {}}}", "\"transform_config\"",
         PDVM_ERR_UNSUPPORTED},
        {"\"format\": 4", "\"format\"", PDVM_ERR_FORMAT},
        {"\"sparsity_config\": []", "\"sparsity_config\"", PDVM_ERR_FORMAT},
        {"\"config_groups\": {\"a\": 4}", "\"config_groups\"", PDVM_ERR_FORMAT},
        {"\"config_groups\": []", "\"config_groups\"", PDVM_ERR_FORMAT},
        {"\"transform_config\": {\"config_groups\": 1}", "\"config_groups\"", PDVM_ERR_FORMAT},
    };
    struct model_config config;
    char more[600], text[1200];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        pdvm_error err = {0};
        snprintf(more, sizeof more, ", %s", good[i]);
        snprintf(text, sizeof text, CONFIG, more);
        assert_ok(model_config_parse("c.json", text, strlen(text), &config, &err), &err);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pdvm_error err = {0};
        snprintf(more, sizeof more,
                 ", \"quantization_config\": {\"quant_method\": \"compressed-tensors\", %s}",
                 bad[i].config);
        snprintf(text, sizeof text, CONFIG, more);
        assert_error(model_config_parse("c.json", text, strlen(text), &config, &err), bad[i].status,
                     &err, bad[i].text);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, support_make_dir, support_remove_dir)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_form_reads_as_the_floats_it_stands_for),
        TEST(sizes_that_fill_no_byte_or_word_read_too),
        TEST(vectors_and_matrices_of_zeros_are_compressed_too),
        TEST(fp8_codes_have_their_values),
        TEST(plain_floats_are_left_to_the_plain_reader),
        TEST(every_fault_is_named),
        TEST(sizes_that_the_format_cannot_hold_are_refused),
        TEST(a_part_in_two_files_is_refused),
        TEST(checkpoints_read_as_the_plain_ones),
        TEST(conversion_keeps_their_zeros),
        TEST(only_what_belongs_to_the_weights_may_stand_beside_them),
        TEST(a_layer_without_its_parts_is_missing),
        TEST(parts_of_a_fused_matrix_are_its_rows),
        cmocka_unit_test(configurations_are_read_or_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
