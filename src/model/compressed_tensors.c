#include "model/compressed_tensors.h"

#include "base/alloc.h"
#include "base/file.h"
#include "base/half.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAME 160
#define WEIGHT ".weight"

/* ---- config.json ----------------------------------------------------------------------- */

static const char *const formats[] = {"dense",           "sparse-bitmask", "sparse-24-bitmask",
                                      "pack-quantized",  "int-quantized",  "float-quantized",
                                      "naive-quantized", "mixed-precision"};
#define FORMATS                                                                                    \
    "dense, sparse-bitmask, sparse-24-bitmask, pack-quantized, int-quantized, float-quantized, "   \
    "naive-quantized, mixed-precision"

static pdvm_status check_format(const char *path, const char *field, const json_t *object,
                                pdvm_error *err) {
    const char *format = NULL;
    PD_TRY(pd_json_string(path, object, "format", false, &format, err));
    if (!format) return PDVM_OK;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(format, formats[i]) == 0) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: field \"%s\": the compressed-tensors format \"%.100s\" is not supported "
                   "(only " FORMATS ")",
                   path, field, format);
}

pdvm_status compressed_tensors_check_config(const char *path, const char *field,
                                            const json_t *config, pdvm_error *err) {
    json_t *sparsity = NULL, *groups = NULL, *transforms = NULL, *group;
    const char *name;
    PD_TRY(check_format(path, field, config, err));
    PD_TRY(pd_json_object(path, config, "sparsity_config", false, &sparsity, err));
    if (sparsity) PD_TRY(check_format(path, "sparsity_config", sparsity, err));
    PD_TRY(pd_json_object(path, config, "config_groups", false, &groups, err));
    json_object_foreach(groups, name, group) {
        if (!json_is_object(group))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: field \"config_groups\": \"%.100s\" must be an object, not %s",
                           path, name, pd_json_kind(group));
        PD_TRY(check_format(path, "config_groups", group, err));
    }
    /* Rotations of the activations between layers: without them the weights are meaningless. */
    PD_TRY(pd_json_object(path, config, "transform_config", false, &transforms, err));
    if (transforms) {
        groups = NULL;
        PD_TRY(pd_json_object(path, transforms, "config_groups", false, &groups, err));
        if (json_object_size(groups) > 0)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: field \"transform_config\": transforms of the activations are not "
                           "supported",
                           path);
    }
    return PDVM_OK;
}

/* ---- names ----------------------------------------------------------------------------- */

/* The length of X in "X.weight", 0 for other names. */
static size_t base_length(const char *weight) {
    size_t n = strlen(weight), end = sizeof WEIGHT - 1;
    return n > end && strcmp(weight + n - end, WEIGHT) == 0 ? n - end : 0;
}

bool compressed_tensors_is_part(const char *name, const char *weight) {
    static const char *const parts[] = {
        ".shape",          ".compressed",         ".bitmask",
        ".row_offsets",    ".weight.shape",       ".weight.compressed",
        ".weight.bitmask", ".weight.row_offsets", ".weight_packed",
        ".weight_shape",   ".weight_scale",       ".weight_zero_point",
        ".weight_g_idx",   ".input_scale",        ".input_zero_point",
        ".output_scale",   ".output_zero_point",
    };
    size_t n = base_length(weight);
    if (n == 0 || strncmp(name, weight, n) != 0) return false;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcmp(name + n, parts[i]) == 0) return true;
    return false;
}

bool compressed_tensors_is_cache_scale(const char *name) {
    static const char *const ends[] = {".self_attn.q_scale",      ".self_attn.k_scale",
                                       ".self_attn.v_scale",      ".self_attn.q_zero_point",
                                       ".self_attn.k_zero_point", ".self_attn.v_zero_point"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t m = strlen(ends[i]);
        if (n >= m && strcmp(name + n - m, ends[i]) == 0) return true;
    }
    return false;
}

/* Where the parts of one weight are looked for. */
struct search {
    struct safetensors *const *files;
    size_t n_files;
    const char *weight;
    size_t base; /* length of X */
};

static pdvm_status find_part(const struct search *s, const char *suffix,
                             struct compressed_part *out, pdvm_error *err) {
    char name[MAX_NAME];
    *out = (struct compressed_part){NULL, NULL};
    snprintf(name, sizeof name, "%.*s%s", (int)s->base, s->weight, suffix);
    for (size_t i = 0; i < s->n_files; i++) {
        const struct safetensors_tensor *t = safetensors_find(s->files[i], name);
        if (!t) continue;
        if (out->tensor)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" is in %s too",
                           safetensors_path(s->files[i]), name, safetensors_path(out->file));
        *out = (struct compressed_part){s->files[i], t};
    }
    return PDVM_OK;
}

static pdvm_status need_part(const struct search *s, const char *suffix,
                             const struct compressed_part *beside, struct compressed_part *out,
                             pdvm_error *err) {
    PD_TRY(find_part(s, suffix, out, err));
    if (out->tensor) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\": \"%.*s%s\" is missing",
                   safetensors_path(beside->file), beside->tensor->name, (int)s->base, s->weight,
                   suffix);
}

bool compressed_tensors_has(struct safetensors *const *files, size_t n_files, const char *name) {
    static const char *const values[] = {".compressed", ".weight.compressed", ".weight_packed"};
    struct search s = {files, n_files, name, base_length(name)};
    for (size_t i = 0; s.base > 0 && i < sizeof values / sizeof *values; i++) {
        char part[MAX_NAME];
        snprintf(part, sizeof part, "%.*s%s", (int)s.base, name, values[i]);
        for (size_t k = 0; k < n_files; k++)
            if (safetensors_find(files[k], part)) return true;
    }
    return false;
}

/* ---- checks ---------------------------------------------------------------------------- */

static bool has_dims(const struct compressed_part *p, int n_dims, int64_t first, int64_t second) {
    const struct safetensors_tensor *t = p->tensor;
    return t->n_dims == n_dims && (n_dims < 1 || t->dims[0] == first) &&
           (n_dims < 2 || t->dims[1] == second);
}

static pdvm_status wrong_shape(const struct compressed_part *p, const char *expected,
                               pdvm_error *err) {
    const struct safetensors_tensor *t = p->tensor;
    char shape[SAFETENSORS_MAX_DIMS * 22 + 1] = "";
    for (int i = 0, n = 0; i < t->n_dims; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%" PRId64, i ? ", " : "", t->dims[i]);
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" has shape [%s], but it must be %s",
                   safetensors_path(p->file), t->name, shape, expected);
}

static pdvm_status expect_dims(const struct compressed_part *p, int n_dims, int64_t first,
                               int64_t second, pdvm_error *err) {
    char expected[64];
    if (has_dims(p, n_dims, first, second)) return PDVM_OK;
    if (n_dims == 1)
        snprintf(expected, sizeof expected, "[%" PRId64 "]", first);
    else
        snprintf(expected, sizeof expected, "[%" PRId64 ", %" PRId64 "]", first, second);
    return wrong_shape(p, expected, err);
}

static bool is_float(enum safetensors_dtype d) {
    return d == SAFETENSORS_F32 || d == SAFETENSORS_F16 || d == SAFETENSORS_BF16;
}

static bool is_fp8(enum safetensors_dtype d) {
    return d == SAFETENSORS_F8_E4M3 || d == SAFETENSORS_F8_E5M2;
}

static bool is_index(enum safetensors_dtype d) {
    return d == SAFETENSORS_I32 || d == SAFETENSORS_I64;
}

static pdvm_status expect_dtype(const struct compressed_part *p, bool ok, const char *expected,
                                pdvm_error *err) {
    if (ok) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" has dtype %s; it must be %s",
                   safetensors_path(p->file), p->tensor->name,
                   safetensors_dtype_name(p->tensor->dtype), expected);
}

/* Element i of an I32 or I64 tensor. */
static int64_t index_at(const struct compressed_part *p, int64_t i) {
    if (p->tensor->dtype == SAFETENSORS_I32) {
        int32_t v;
        memcpy(&v, p->tensor->data + 4 * i, sizeof v);
        return v;
    }
    int64_t v;
    memcpy(&v, p->tensor->data + 8 * i, sizeof v);
    return v;
}

/* The part that repeats the shape must repeat config.json's. */
static pdvm_status check_shape_part(const struct compressed_part *p, const struct tensor_info *info,
                                    pdvm_error *err) {
    int64_t n = info->is_matrix ? 2 : 1;
    PD_TRY(expect_dtype(p, is_index(p->tensor->dtype), "I64 or I32", err));
    if (!has_dims(p, 2, n, 1)) PD_TRY(expect_dims(p, 1, n, 0, err));
    int64_t rows = info->is_matrix ? index_at(p, 0) : 1, cols = index_at(p, n - 1);
    if (rows == info->rows && cols == info->cols) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: tensor \"%s\" says [%" PRId64 ", %" PRId64
                   "], but config.json asks for [%" PRId64 ", %" PRId64 "]",
                   safetensors_path(p->file), p->tensor->name, rows, cols, info->rows, info->cols);
}

static pdvm_status bad_offset(const struct compressed_tensor *t, int64_t row, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: tensor \"%s\": the offset of row %" PRId64
                   " falls, leaps or passes the end of the values",
                   safetensors_path(t->row_offsets.file), t->row_offsets.tensor->name, row);
}

/* The values of one row: [*begin, *end) among all. */
static pdvm_status row_range(const struct compressed_tensor *t, int64_t row, int64_t *begin,
                             int64_t *end, pdvm_error *err) {
    if (t->layout == COMPRESSED_BITMASK_24) {
        *begin = row * (t->cols / 2);
        *end = *begin + t->cols / 2;
        return PDVM_OK;
    }
    int64_t n = t->values.tensor->n_elements;
    *begin = index_at(&t->row_offsets, row);
    *end = row + 1 < t->rows ? index_at(&t->row_offsets, row + 1) : n;
    if (*begin < 0 || *end > n || *begin > *end || *end - *begin > t->cols)
        return bad_offset(t, row, err);
    return PDVM_OK;
}

static pdvm_status check_row_offsets(const struct compressed_tensor *t, pdvm_error *err) {
    int64_t begin, end;
    for (int64_t row = 0; row < t->rows; row++) {
        PD_TRY(row_range(t, row, &begin, &end, err));
        if (row == 0 && begin != 0) return bad_offset(t, row, err);
    }
    return PDVM_OK;
}

static pdvm_status open_bitmask(const struct search *s, bool infix, const struct tensor_info *info,
                                struct compressed_tensor *t, pdvm_error *err) {
    struct compressed_part shape;
    enum safetensors_dtype dtype = t->values.tensor->dtype;
    int64_t row_bytes = (t->cols + 7) / 8;
    PD_TRY(need_part(s, infix ? ".weight.shape" : ".shape", &t->values, &shape, err));
    PD_TRY(need_part(s, infix ? ".weight.bitmask" : ".bitmask", &t->values, &t->bitmask, err));
    PD_TRY(find_part(s, infix ? ".weight.row_offsets" : ".row_offsets", &t->row_offsets, err));
    PD_TRY(check_shape_part(&shape, info, err));
    PD_TRY(expect_dtype(&t->values, is_float(dtype) || is_fp8(dtype) || dtype == SAFETENSORS_I8,
                        "F32, F16, BF16, F8_E4M3, F8_E5M2 or I8", err));
    PD_TRY(expect_dtype(&t->bitmask, t->bitmask.tensor->dtype == SAFETENSORS_U8, "U8", err));
    if (info->is_matrix)
        PD_TRY(expect_dims(&t->bitmask, 2, t->rows, row_bytes, err));
    else
        PD_TRY(expect_dims(&t->bitmask, 1, row_bytes, 0, err));
    if (t->row_offsets.tensor) {
        t->layout = COMPRESSED_BITMASK;
        PD_TRY(expect_dtype(&t->row_offsets, is_index(t->row_offsets.tensor->dtype), "I64 or I32",
                            err));
        if (info->is_matrix || t->row_offsets.tensor->n_dims != 0)
            PD_TRY(expect_dims(&t->row_offsets, 1, t->rows, 0, err));
        if (t->values.tensor->n_dims != 1) return wrong_shape(&t->values, "one-dimensional", err);
        return check_row_offsets(t, err);
    }
    t->layout = COMPRESSED_BITMASK_24;
    if (t->values.tensor->n_dims != 2 || !info->is_matrix)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\": its row_offsets are missing",
                       safetensors_path(t->values.file), t->values.tensor->name);
    if (t->cols % 4 != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%s\": %" PRId64 " columns cannot be two of every four",
                       safetensors_path(t->values.file), t->values.tensor->name, t->cols);
    return expect_dims(&t->values, 2, t->rows, t->cols / 2, err);
}

static int64_t packed_length(int64_t n, int bits) {
    return (n + 32 / bits - 1) / (32 / bits);
}

static pdvm_status open_packed(const struct search *s, const struct tensor_info *info,
                               struct compressed_tensor *t, pdvm_error *err) {
    struct compressed_part shape;
    int64_t four = packed_length(t->cols, 4), eight = packed_length(t->cols, 8);
    t->layout = COMPRESSED_PACKED;
    PD_TRY(need_part(s, ".weight_shape", &t->values, &shape, err));
    PD_TRY(check_shape_part(&shape, info, err));
    PD_TRY(expect_dtype(&t->values, t->values.tensor->dtype == SAFETENSORS_I32, "I32", err));
    if (four == eight)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\": packed weights of %" PRId64 " columns are not supported",
                       safetensors_path(t->values.file), t->values.tensor->name, t->cols);
    t->bits = has_dims(&t->values, 2, t->rows, eight) ? 8 : 4;
    if (has_dims(&t->values, 2, t->rows, t->bits == 8 ? eight : four)) return PDVM_OK;
    char expected[160];
    snprintf(expected, sizeof expected,
             "[%" PRId64 ", %" PRId64 "] for int4 or [%" PRId64 ", %" PRId64
             "] for int8; other widths are not supported",
             t->rows, four, t->rows, eight);
    return wrong_shape(&t->values, expected, err);
}

static pdvm_status bad_group(const struct compressed_tensor *t, int64_t column, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: tensor \"%s\": column %" PRId64 " is in group %" PRId64
                   ", but there are %" PRId64,
                   safetensors_path(t->g_idx.file), t->g_idx.tensor->name, column,
                   index_at(&t->g_idx, column), t->n_groups);
}

static pdvm_status check_g_idx(const struct compressed_tensor *t, pdvm_error *err) {
    PD_TRY(expect_dtype(&t->g_idx, is_index(t->g_idx.tensor->dtype), "I32 or I64", err));
    PD_TRY(expect_dims(&t->g_idx, 1, t->cols, 0, err));
    for (int64_t c = 0; c < t->cols; c++) {
        int64_t group = index_at(&t->g_idx, c);
        if (group < 0 || group >= t->n_groups) return bad_group(t, c, err);
    }
    return PDVM_OK;
}

static pdvm_status check_zero_point(const struct compressed_tensor *t, pdvm_error *err) {
    const struct compressed_part *p = &t->zero_point;
    const struct safetensors_tensor *scale = t->scale.tensor;
    enum safetensors_dtype d = p->tensor->dtype;
    if (t->layout == COMPRESSED_PACKED && d == SAFETENSORS_I32)
        return expect_dims(p, 2, packed_length(t->rows, t->bits), t->n_groups, err);
    PD_TRY(expect_dtype(p, d == SAFETENSORS_I8 || is_fp8(d), "I8 (or I32 where packed)", err));
    if (p->tensor->n_dims != scale->n_dims ||
        memcmp(p->tensor->dims, scale->dims, sizeof *scale->dims * (size_t)scale->n_dims) != 0)
        return wrong_shape(p, "that of the scale", err);
    return PDVM_OK;
}

static pdvm_status open_scales(const struct search *s, struct compressed_tensor *t,
                               pdvm_error *err) {
    PD_TRY(need_part(s, ".weight_scale", &t->values, &t->scale, err));
    PD_TRY(find_part(s, ".weight_zero_point", &t->zero_point, err));
    PD_TRY(find_part(s, ".weight_g_idx", &t->g_idx, err));
    const struct safetensors_tensor *scale = t->scale.tensor;
    PD_TRY(expect_dtype(&t->scale, is_float(scale->dtype), "F32, F16 or BF16", err));
    if (scale->n_elements == 1 && scale->n_dims <= 2)
        t->n_groups = 1;
    else if (has_dims(&t->scale, 1, t->rows, 0))
        t->n_groups = 1;
    else if (scale->n_dims == 2 && scale->dims[0] == t->rows && scale->dims[1] > 0)
        t->n_groups = scale->dims[1];
    else
        return wrong_shape(&t->scale, "one scale, one for each row, or [rows, groups]", err);
    if (t->n_groups > t->cols || t->cols % t->n_groups != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%s\": %" PRId64 " columns do not divide into %" PRId64
                       " groups",
                       safetensors_path(t->scale.file), scale->name, t->cols, t->n_groups);
    if (t->zero_point.tensor) PD_TRY(check_zero_point(t, err));
    return t->g_idx.tensor ? check_g_idx(t, err) : PDVM_OK;
}

static void name_coding(struct compressed_tensor *t) {
    const char *dtype = safetensors_dtype_name(t->values.tensor->dtype);
    static const char *const layouts[] = {"sparse-bitmask", "sparse-24-bitmask"};
    if (t->layout == COMPRESSED_PACKED)
        snprintf(t->coding, sizeof t->coding, "pack-quantized int%d", t->bits);
    else if (t->layout == COMPRESSED_PLAIN)
        snprintf(t->coding, sizeof t->coding, "%s %s",
                 t->values.tensor->dtype == SAFETENSORS_I8 ? "int-quantized" : "float-quantized",
                 dtype);
    else
        snprintf(t->coding, sizeof t->coding, "%s %s", layouts[t->layout], dtype);
}

static pdvm_status open_parts(const struct search *s, const char *values,
                              const struct tensor_info *info, struct compressed_tensor *t,
                              pdvm_error *err) {
    enum safetensors_dtype dtype = t->values.tensor->dtype;
    if (strcmp(values, ".weight_packed") == 0) {
        PD_TRY(open_packed(s, info, t, err));
        PD_TRY(open_scales(s, t, err));
    } else if (strcmp(values, WEIGHT) == 0) {
        t->layout = COMPRESSED_PLAIN;
        if (info->is_matrix)
            PD_TRY(expect_dims(&t->values, 2, t->rows, t->cols, err));
        else
            PD_TRY(expect_dims(&t->values, 1, t->cols, 0, err));
        PD_TRY(open_scales(s, t, err));
    } else {
        struct compressed_part scale;
        PD_TRY(open_bitmask(s, strcmp(values, ".compressed") != 0, info, t, err));
        PD_TRY(find_part(s, ".weight_scale", &scale, err));
        /* FP8 without scales is what it says; a float beside scales has not been quantised. */
        if (dtype == SAFETENSORS_I8 || (is_fp8(dtype) && scale.tensor))
            PD_TRY(open_scales(s, t, err));
    }
    name_coding(t);
    return PDVM_OK;
}

/* The one form in which the weight is stored, or NULL. */
static pdvm_status find_values(const struct search *s, const char **form,
                               struct compressed_part *out, pdvm_error *err) {
    static const char *const forms[] = {WEIGHT, ".compressed", ".weight.compressed",
                                        ".weight_packed"};
    struct compressed_part scale;
    *form = NULL;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct compressed_part p;
        PD_TRY(find_part(s, forms[i], &p, err));
        if (!p.tensor) continue;
        if (*form)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%s\" is stored a second time, as \"%s\" in %s",
                           safetensors_path(p.file), p.tensor->name, out->tensor->name,
                           safetensors_path(out->file));
        *form = forms[i];
        *out = p;
    }
    if (!*form || *form != forms[0]) return PDVM_OK;
    enum safetensors_dtype dtype = out->tensor->dtype;
    PD_TRY(find_part(s, ".weight_scale", &scale, err));
    if (!scale.tensor || (dtype != SAFETENSORS_I8 && !is_fp8(dtype))) *form = NULL;
    return PDVM_OK;
}

pdvm_status compressed_tensor_open(struct safetensors *const *files, size_t n_files,
                                   const struct tensor_info *info, struct compressed_tensor **out,
                                   pdvm_error *err) {
    struct search s = {files, n_files, info->name, base_length(info->name)};
    struct compressed_part values;
    struct compressed_tensor *t;
    const char *form;
    *out = NULL;
    if (s.base == 0) return PDVM_OK;
    PD_TRY(find_values(&s, &form, &values, err));
    if (!form) return PDVM_OK;
    PD_TRY(pd_calloc(&t, 1, sizeof *t, "a compressed tensor", err));
    memcpy(t->name, info->name, sizeof t->name);
    t->rows = info->rows;
    t->cols = info->cols;
    t->values = values;
    pdvm_status status = open_parts(&s, form, info, t, err);
    if (status == PDVM_OK)
        *out = t;
    else
        free(t);
    return status;
}

/* ---- reading --------------------------------------------------------------------------- */

/* OCP 8-bit Floating Point Specification 1.0: E4M3 has no infinities and one NaN per sign. */
static float e4m3_to_float(uint8_t b) {
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, exponent = b >> 3 & 15u, mantissa = b & 7u;
    if (exponent == 15 && mantissa == 7) return pd_bits_float(sign | 0x7fc00000u);
    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-9f;
        return sign ? -f : f;
    }
    return pd_bits_float(sign | (exponent + 120) << 23 | mantissa << 20);
}

/* Elements [begin, begin + n), which must be there, of a tensor of floats, FP8 or I8. */
static pdvm_status to_float(const struct compressed_part *p, int64_t begin, int64_t n, float *out,
                            pdvm_error *err) {
    const uint8_t *data = p->tensor->data + begin;
    switch (p->tensor->dtype) {
    case SAFETENSORS_I8:
        for (int64_t i = 0; i < n; i++) out[i] = (float)(data[i] < 128 ? data[i] : data[i] - 256);
        return PDVM_OK;
    case SAFETENSORS_F8_E4M3:
        for (int64_t i = 0; i < n; i++) out[i] = e4m3_to_float(data[i]);
        return PDVM_OK;
    case SAFETENSORS_F8_E5M2: /* the upper half of a binary16 */
        for (int64_t i = 0; i < n; i++) out[i] = pd_f16_to_float((uint16_t)(data[i] << 8));
        return PDVM_OK;
    default: return safetensors_to_float(p->file, p->tensor, begin, n, out, err);
    }
}

/* The bits of a row: how many, or -1 if they are not what the layout allows. */
static int64_t count_bits(const struct compressed_tensor *t, const uint8_t *mask) {
    int64_t n = 0, row_bytes = (t->cols + 7) / 8;
    if (t->cols % 8 != 0 && mask[row_bytes - 1] >> t->cols % 8) return -1;
    for (int64_t i = 0; i < row_bytes; i++) {
        n += __builtin_popcount(mask[i]);
        if (t->layout == COMPRESSED_BITMASK) continue;
        bool half = i == row_bytes - 1 && t->cols % 8 == 4;
        if (__builtin_popcount(mask[i] & 15u) != 2 ||
            (!half && __builtin_popcount(mask[i] >> 4) != 2))
            return -1;
    }
    return n;
}

static pdvm_status read_bitmask_row(const struct compressed_tensor *t, int64_t row, float *out,
                                    pdvm_error *err) {
    const uint8_t *mask = t->bitmask.tensor->data + row * ((t->cols + 7) / 8);
    int64_t begin, end, count = count_bits(t, mask);
    PD_TRY(row_range(t, row, &begin, &end, err));
    if (count != end - begin)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%s\": the bits of row %" PRId64
                       " are not those of its %" PRId64 " values",
                       safetensors_path(t->bitmask.file), t->bitmask.tensor->name, row,
                       end - begin);
    /* From the row's end the values spread forward in place: none is overwritten unread. */
    float *from = out + t->cols - count;
    PD_TRY(to_float(&t->values, begin, count, from, err));
    for (int64_t c = 0; c < t->cols; c++) out[c] = mask[c / 8] >> c % 8 & 1 ? *from++ : 0.0f;
    return PDVM_OK;
}

static void read_packed_row(const struct compressed_tensor *t, int64_t row, float *out) {
    const uint8_t *data = t->values.tensor->data + row * packed_length(t->cols, t->bits) * 4;
    if (t->bits == 8)
        for (int64_t c = 0; c < t->cols; c++) out[c] = (float)(data[c] - 128);
    else
        for (int64_t c = 0; c < t->cols; c++)
            out[c] = (float)((data[c / 2] >> 4 * (c % 2) & 15) - 8);
}

/* The scales of a row, and its zero points if there are any. */
static pdvm_status read_scales(const struct compressed_tensor *t, int64_t row, float *scales,
                               float *zeros, pdvm_error *err) {
    const struct safetensors_tensor *st = t->scale.tensor, *zt = t->zero_point.tensor;
    int64_t first = st->n_elements == 1 ? 0 : row * t->n_groups;
    PD_TRY(to_float(&t->scale, first, t->n_groups, scales, err));
    for (int64_t g = 0; g < t->n_groups; g++)
        if (!isfinite(scales[g]) || scales[g] == 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%s\": the scale of row %" PRId64 ", group %" PRId64
                           " is %g",
                           safetensors_path(t->scale.file), st->name, row, g, (double)scales[g]);
    if (!zt) return PDVM_OK;
    if (zt->dtype != SAFETENSORS_I32)
        return to_float(&t->zero_point, first, t->n_groups, zeros, err);
    int64_t per_word = 32 / t->bits;
    for (int64_t g = 0; g < t->n_groups; g++) {
        uint32_t word;
        memcpy(&word, zt->data + 4 * (row / per_word * t->n_groups + g), sizeof word);
        uint32_t code = word >> t->bits * (row % per_word) & ((1u << t->bits) - 1);
        zeros[g] = (float)((int)code - (1 << (t->bits - 1)));
    }
    return PDVM_OK;
}

static pdvm_status apply_scales(const struct compressed_tensor *t, int64_t row, float *scales,
                                float *out, pdvm_error *err) {
    float *zeros = scales + t->n_groups;
    PD_TRY(read_scales(t, row, scales, zeros, err));
    if (t->g_idx.tensor) {
        for (int64_t c = 0; c < t->cols; c++) {
            int64_t group = index_at(&t->g_idx, c);
            /* Checked at opening; but the file may have changed since. */
            if (group < 0 || group >= t->n_groups) return bad_group(t, c, err);
            out[c] = (out[c] - zeros[group]) * scales[group];
        }
        return PDVM_OK;
    }
    int64_t width = t->cols / t->n_groups;
    for (int64_t g = 0; g < t->n_groups; g++)
        for (int64_t c = g * width; c < (g + 1) * width; c++)
            out[c] = (out[c] - zeros[g]) * scales[g];
    return PDVM_OK;
}

pdvm_status compressed_tensor_read_rows(const struct compressed_tensor *t, int64_t begin, int64_t n,
                                        float *out, pdvm_error *err) {
    float *scales = NULL;
    pdvm_status status = PDVM_OK;
    if (t->n_groups > 0)
        PD_TRY(pd_calloc(&scales, 2 * (size_t)t->n_groups, sizeof *scales, "scales", err));
    for (int64_t row = begin; row < begin + n && status == PDVM_OK; row++, out += t->cols) {
        switch (t->layout) {
        case COMPRESSED_BITMASK:
        case COMPRESSED_BITMASK_24: status = read_bitmask_row(t, row, out, err); break;
        case COMPRESSED_PACKED: read_packed_row(t, row, out); break;
        case COMPRESSED_PLAIN: status = to_float(&t->values, row * t->cols, t->cols, out, err);
        }
        if (status == PDVM_OK && scales) status = apply_scales(t, row, scales, out, err);
    }
    free(scales);
    return status;
}

uint64_t compressed_tensor_bytes(const struct compressed_tensor *t) {
    const struct compressed_part *parts[] = {&t->values, &t->bitmask,    &t->row_offsets,
                                             &t->scale,  &t->zero_point, &t->g_idx};
    uint64_t bytes = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i]->tensor) bytes += parts[i]->tensor->size;
    return bytes;
}

void compressed_tensor_release(const struct compressed_tensor *t) {
    pd_map_release(t->values.tensor->data, t->values.tensor->size);
    if (t->bitmask.tensor) pd_map_release(t->bitmask.tensor->data, t->bitmask.tensor->size);
    if (t->scale.tensor) pd_map_release(t->scale.tensor->data, t->scale.tensor->size);
}
