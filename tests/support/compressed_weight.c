#include "support/compressed_weight.h"

#include "base/hash.h"
#include "support/hf_model.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t dice(const char *name, int64_t i, const char *what) {
    uint64_t h = pd_hash(pd_hash(PD_HASH_INIT, name, strlen(name)), &i, sizeof i);
    h = pd_hash(h, what, strlen(what));
    return (uint32_t)(h ^ h >> 31);
}

/* The OCP definition, in real numbers. */
float compressed_fp8_value(enum safetensors_dtype dtype, uint8_t code) {
    int m_bits = dtype == SAFETENSORS_F8_E4M3 ? 3 : 2, bias = dtype == SAFETENSORS_F8_E4M3 ? 7 : 15;
    int exponent = (code & 127) >> m_bits, mantissa = code & ((1 << m_bits) - 1);
    double v = exponent == 0 ? ldexp(mantissa, 1 - bias - m_bits)
                             : ldexp(1 + mantissa / (double)(1 << m_bits), exponent - bias);
    if (dtype == SAFETENSORS_F8_E4M3 && (code & 127) == 127) v = NAN;
    if (dtype == SAFETENSORS_F8_E5M2 && exponent == 31) v = mantissa ? NAN : INFINITY;
    return (float)(code & 128 ? -v : v);
}

/* Values that have few bits: the upper half of a float is its bfloat16. */
void compressed_put_value(enum safetensors_dtype dtype, float value, uint8_t *out) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == SAFETENSORS_F32) memcpy(out, &value, sizeof value);
    if (dtype == SAFETENSORS_BF16) memcpy(out, (uint16_t[]){(uint16_t)(bits >> 16)}, 2);
    if (dtype == SAFETENSORS_F16) {
        uint16_t half = (uint16_t)((bits >> 16 & 0x8000) |
                                   (((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023)));
        if (value == 0) half = 0;
        memcpy(out, &half, 2);
    }
    if (dtype == SAFETENSORS_I8) *out = (uint8_t)(int8_t)value;
}

struct compressed_file_part *compressed_add_part(struct compressed_weight *w, bool infix,
                                                 const char *suffix, enum safetensors_dtype dtype,
                                                 int n_dims, int64_t first, int64_t second) {
    struct compressed_file_part *p = &w->parts[w->n_parts++];
    size_t base = strlen(w->info.name) - strlen(".weight");
    snprintf(p->name, sizeof p->name, "%.*s%s%s", (int)base, w->info.name, infix ? ".weight" : "",
             suffix);
    p->dtype = dtype;
    p->n_dims = n_dims;
    p->dims[0] = first;
    p->dims[1] = second;
    p->size = safetensors_dtype_size(dtype) * (size_t)(n_dims > 0 ? first : 1) *
              (size_t)(n_dims > 1 ? second : 1);
    p->data = calloc(1, p->size + 1);
    if (!p->data) support_fail("out of memory");
    return p;
}

void compressed_put_i64(struct compressed_file_part *p, int64_t i, int64_t value) {
    memcpy(p->data + 8 * i, &value, sizeof value);
}

static void add_shape(struct compressed_weight *w, bool infix, const char *suffix, bool column) {
    struct compressed_file_part *p = compressed_add_part(
        w, infix, suffix, SAFETENSORS_I64, column ? 2 : 1, w->info.is_matrix ? 2 : 1, 1);
    if (w->info.is_matrix) compressed_put_i64(p, 0, w->info.rows);
    compressed_put_i64(p, w->info.is_matrix, w->info.cols);
}

/* Scales and zero points into the weight, and the values in `codes` through them. */
static void add_scales(struct compressed_weight *w, const struct compressed_spec *s, float *codes) {
    int64_t rows = w->info.rows, cols = w->info.cols;
    int64_t groups = s->scales == GROUPS_OF_8 ? cols / 8 : 1;
    int64_t n_dims = s->scales == PER_ROW ? 1 : 2;
    int64_t n = s->scales == PER_TENSOR ? 1 : rows;
    struct compressed_file_part *scale =
        s->scales == PER_TENSOR
            ? compressed_add_part(w, false, ".weight_scale", s->scale_dtype, (int)(rows % 2), 1, 1)
            : compressed_add_part(w, false, ".weight_scale", s->scale_dtype, (int)n_dims, rows,
                                  groups);
    float *scales = calloc((size_t)(n * groups), sizeof *scales);
    int *zeros = calloc((size_t)(n * groups), sizeof *zeros);
    if (!scales || !zeros) support_fail("out of memory");
    for (int64_t i = 0; i < n * groups; i++) {
        scales[i] = (float)(1 + dice(w->info.name, i, "scale") % 15) / 64;
        if (s->zero_points) zeros[i] = (int)(dice(w->info.name, i, "zero") % 7) - 3;
        compressed_put_value(s->scale_dtype, scales[i],
                             scale->data + (size_t)i * safetensors_dtype_size(s->scale_dtype));
    }
    if (s->zero_points && s->form == PACKED) {
        int64_t per_word = 32 / s->bits;
        struct compressed_file_part *p =
            compressed_add_part(w, false, ".weight_zero_point", SAFETENSORS_I32, 2,
                                (rows + per_word - 1) / per_word, groups);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t g = 0; g < groups; g++) {
                uint32_t word, code = (uint32_t)(zeros[r * groups + g] + (1 << (s->bits - 1)));
                uint8_t *at = p->data + 4 * (r / per_word * groups + g);
                memcpy(&word, at, 4);
                word |= code << (r % per_word) * s->bits;
                memcpy(at, &word, 4);
            }
        }
    } else if (s->zero_points) {
        struct compressed_file_part *p =
            compressed_add_part(w, false, ".weight_zero_point", SAFETENSORS_I8, scale->n_dims,
                                scale->dims[0], scale->dims[1]);
        for (int64_t i = 0; i < n * groups; i++) p->data[i] = (uint8_t)(int8_t)zeros[i];
    }
    struct compressed_file_part *order = NULL;
    if (s->g_idx)
        order = compressed_add_part(w, false, ".weight_g_idx", SAFETENSORS_I32, 1, cols, 0);
    for (int64_t c = 0; c < cols; c++) {
        int32_t g = (int32_t)(c / (cols / groups));
        if (order) {
            g = (int32_t)((c * 5 + 1) % groups);
            memcpy(order->data + 4 * c, &g, 4);
        }
        for (int64_t r = 0; r < rows; r++) {
            int64_t i = (s->scales == PER_TENSOR ? 0 : r) * groups + g;
            w->expected[r * cols + c] =
                (float)((codes[r * cols + c] - (double)zeros[i]) * (double)scales[i]);
        }
    }
    free(scales);
    free(zeros);
}

/* Whether the place is kept, and what is there. Two of four may be zeros that are kept. */
static bool kept(const struct compressed_spec *s, const char *name, int64_t i, float *value) {
    static const int pairs[6] = {3, 5, 6, 9, 10, 12};
    *value = hf_model_value(name, i);
    if (s->dtype == SAFETENSORS_I8) *value *= 8;
    if (s->form == BITMASK) return *value != 0;
    bool keep = pairs[dice(name, i / 4, "pair") % 6] >> i % 4 & 1;
    if (!keep) *value = 0;
    return keep;
}

static void encode_bitmask(struct compressed_weight *w, const struct compressed_spec *s) {
    int64_t rows = w->info.rows, cols = w->info.cols, row_bytes = (cols + 7) / 8, n = 0;
    size_t element = safetensors_dtype_size(s->dtype);
    bool sparse24 = s->form == BITMASK_24;
    float *codes = calloc((size_t)(rows * cols), sizeof *codes);
    if (!codes) support_fail("out of memory");
    for (int64_t i = 0; i < rows * cols; i++) n += kept(s, w->info.name, i, &codes[i]);
    struct compressed_file_part *values =
        sparse24 ? compressed_add_part(w, s->infix, ".compressed", s->dtype, 2, rows, cols / 2)
                 : compressed_add_part(w, s->infix, ".compressed", s->dtype, 1, n, 0);
    struct compressed_file_part *mask =
        w->info.is_matrix
            ? compressed_add_part(w, s->infix, ".bitmask", SAFETENSORS_U8, 2, rows, row_bytes)
            : compressed_add_part(w, s->infix, ".bitmask", SAFETENSORS_U8, 1, row_bytes, 0);
    struct compressed_file_part *offsets = NULL;
    if (!sparse24)
        offsets = compressed_add_part(w, s->infix, ".row_offsets", SAFETENSORS_I64,
                                      w->info.is_matrix, rows, 0);
    add_shape(w, s->infix, ".shape", sparse24);
    n = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (offsets) compressed_put_i64(offsets, r, n);
        for (int64_t c = 0; c < cols; c++) {
            float value;
            if (!kept(s, w->info.name, r * cols + c, &value)) continue;
            uint8_t *at = values->data + (size_t)n++ * element;
            if (element == 1 && s->dtype != SAFETENSORS_I8) {
                *at = (uint8_t)(1 + dice(w->info.name, r * cols + c, "code") % 120);
                codes[r * cols + c] = compressed_fp8_value(s->dtype, *at);
            } else {
                compressed_put_value(s->dtype, value, at);
            }
            mask->data[r * row_bytes + c / 8] |= (uint8_t)(1 << c % 8);
        }
    }
    memcpy(w->expected, codes, sizeof *codes * (size_t)(rows * cols));
    if (s->scaled) add_scales(w, s, codes);
    free(codes);
}

static void encode_packed(struct compressed_weight *w, const struct compressed_spec *s) {
    int64_t rows = w->info.rows, cols = w->info.cols, per_word = 32 / s->bits;
    int64_t words = (cols + per_word - 1) / per_word;
    float *codes = calloc((size_t)(rows * cols), sizeof *codes);
    if (!codes) support_fail("out of memory");
    struct compressed_file_part *p =
        compressed_add_part(w, false, ".weight_packed", SAFETENSORS_I32, 2, rows, words);
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t r = i / cols, c = i % cols;
        int q = (int)(dice(w->info.name, i, "code") % (1u << s->bits)) - (1 << (s->bits - 1));
        if (dice(w->info.name, i, "none") % 3 == 0) q = 0;
        uint32_t word;
        uint8_t *at = p->data + 4 * (r * words + c / per_word);
        memcpy(&word, at, 4);
        word |= (uint32_t)(q + (1 << (s->bits - 1))) << c % per_word * s->bits;
        memcpy(at, &word, 4);
        codes[i] = (float)q;
    }
    add_shape(w, false, ".weight_shape", false);
    add_scales(w, s, codes);
    free(codes);
}

static void encode_quantised(struct compressed_weight *w, const struct compressed_spec *s) {
    int64_t n = w->info.rows * w->info.cols;
    float *codes = calloc((size_t)n, sizeof *codes);
    if (!codes) support_fail("out of memory");
    struct compressed_file_part *p =
        compressed_add_part(w, true, "", s->dtype, 2, w->info.rows, w->info.cols);
    for (int64_t i = 0; i < n; i++) {
        p->data[i] = (uint8_t)dice(w->info.name, i, "code");
        if (dice(w->info.name, i, "none") % 3 == 0) p->data[i] = 0;
        if (s->dtype != SAFETENSORS_I8) p->data[i] &= 0xfb; /* no NaNs or infinities */
        codes[i] = s->dtype == SAFETENSORS_I8 ? (float)(int8_t)p->data[i]
                                              : compressed_fp8_value(s->dtype, p->data[i]);
        if (!isfinite(codes[i])) codes[i] = p->data[i] = 0;
    }
    add_scales(w, s, codes);
    free(codes);
}

struct compressed_weight compressed_encode(const struct compressed_spec *s,
                                           const struct tensor_info *info) {
    struct compressed_weight w = {.info = *info};
    int64_t n = info->rows * info->cols;
    w.expected = calloc((size_t)n, sizeof *w.expected);
    if (!w.expected) support_fail("out of memory");
    bool compress = info->is_matrix && info->role != TENSOR_EMBED && info->role != TENSOR_HEAD;
    if (s->form == PLAIN || !(compress || s->everything)) {
        struct compressed_file_part *p =
            compressed_add_part(&w, true, "", SAFETENSORS_F32, info->is_matrix ? 2 : 1,
                                info->is_matrix ? info->rows : info->cols, info->cols);
        for (int64_t i = 0; i < n; i++) w.expected[i] = hf_model_value(info->name, i);
        memcpy(p->data, w.expected, p->size);
    } else if (s->form == PACKED) {
        encode_packed(&w, s);
    } else if (s->form == QUANTISED) {
        encode_quantised(&w, s);
    } else {
        encode_bitmask(&w, s);
    }
    return w;
}

void compressed_free(struct compressed_weight *w) {
    for (int i = 0; i < w->n_parts; i++) free(w->parts[i].data);
    free(w->expected);
}

void compressed_write_part(struct safetensors_writer *out, const struct compressed_file_part *p) {
    pdvm_error err = {0};
    assert_ok(safetensors_writer_tensor(out, p->name, p->dtype, p->dims, p->n_dims, p->data,
                                        p->size, &err),
              &err);
}
