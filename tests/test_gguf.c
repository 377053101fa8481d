// GGUF files: the values of every type against a decoder of the tests' own, what is found in a
// file, and what is refused.

#include "base/half.h"
#include "base/random.h"
#include "io/gguf_set.h"
#include "support/gguf_writer.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- a decoder from the description of the formats -----------------------------------------
//
// It takes a block apart bit by bit: element i's bits are looked up where the format's description
// says they are, and nothing is shared with the library.

static unsigned bits(const uint8_t *p, unsigned bit, unsigned n) {
    unsigned v = 0;
    for (unsigned i = 0; i < n; i++) v |= (p[(bit + i) / 8] >> (bit + i) % 8 & 1u) << i;
    return v;
}

// IEEE 754 binary16 by its definition.
static float half_at(const uint8_t *p) {
    unsigned fraction = bits(p, 0, 10), exponent = bits(p, 10, 5);
    double v = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, (int)exponent - 25);
    if (exponent == 31) v = fraction ? NAN : INFINITY;
    return (float)(bits(p, 15, 1) ? -v : v);
}

// Nibble of element i in blocks of 32: low nibbles first, then the high ones.
static int nibble(const uint8_t *q, int i) {
    return (int)bits(q, (unsigned)(i % 16 * 8 + i / 16 * 4), 4);
}

// Scale (which = 0) or minimum (1) of sub-block j: the first four in 6 bits of a byte; of the other
// four the low 4 bits in the last four bytes, the upper 2 on top of the first ones.
static float six_bits(const uint8_t *s, int j, int which) {
    if (j < 4) return (float)bits(s, (unsigned)(8 * (4 * which + j)), 6);
    unsigned low = bits(s, (unsigned)(8 * (4 + j) + 4 * which), 4);
    unsigned high = bits(s, (unsigned)(8 * (4 * which + j - 4) + 6), 2);
    return (float)(low + 16 * high);
}

static float reference(uint32_t type, const uint8_t *b, int i) {
    volatile float product, minimum;
    int q, j = i / 32;
    uint32_t u = 0;
    double d;
    float f;
    switch (type) {
    case GGUF_F32: memcpy(&f, b, 4); return f;
    case GGUF_F64: memcpy(&d, b, 8); return (float)d;
    case GGUF_F16: return half_at(b);
    case GGUF_BF16:
        u = bits(b, 0, 16) << 16;
        memcpy(&f, &u, 4);
        return f;
    case GGUF_Q8_0:
        q = (int)bits(b + 2, (unsigned)(8 * i), 8);
        return half_at(b) * (float)(q > 127 ? q - 256 : q);
    case GGUF_Q4_0: return half_at(b) * (float)(nibble(b + 2, i) - 8);
    case GGUF_Q4_1: product = half_at(b) * (float)nibble(b + 4, i); return product + half_at(b + 2);
    case GGUF_Q5_0:
        q = nibble(b + 6, i) + 16 * (int)bits(b + 2, (unsigned)i, 1);
        return half_at(b) * (float)(q - 16);
    case GGUF_Q5_1:
        q = nibble(b + 8, i) + 16 * (int)bits(b + 4, (unsigned)i, 1);
        product = half_at(b) * (float)q;
        return product + half_at(b + 2);
    case GGUF_Q4_K:
    case GGUF_Q5_K: {
        bool five = type == GGUF_Q5_K;
        const uint8_t *quants = b + (five ? 48 : 16);
        q = (int)bits(quants, (unsigned)((j / 2 * 32 + i % 32) * 8 + j % 2 * 4), 4);
        if (five) q += 16 * (int)bits(b + 16, (unsigned)(i % 32 * 8 + j), 1);
        product = half_at(b) * six_bits(b + 4, j, 0);
        minimum = half_at(b + 2) * six_bits(b + 4, j, 1);
        product = product * (float)q;
        return product - minimum;
    }
    case GGUF_Q6_K: {
        // Within each half of 128: quarters 0 and 1 in the low nibbles of 64 bytes, 2 and 3 in the
        // high ones; the upper two bits of all four in one byte of qh.
        int in = i % 128, quarter = in / 32, lane = in % 32, byte = i / 128 * 64 + in % 64;
        q = (int)bits(b, (unsigned)(byte * 8 + quarter / 2 * 4), 4);
        q += 16 * (int)bits(b + 128, (unsigned)((i / 128 * 32 + lane) * 8 + quarter * 2), 2);
        int scale = (int)bits(b + 192, (unsigned)(i / 16 * 8), 8);
        product = half_at(b + 208) * (float)(scale > 127 ? scale - 256 : scale);
        return product * (float)(q - 32);
    }
    default: support_fail("type %u has no reference", type);
    }
}

static const struct {
    uint32_t type;
    const char *name;
    int n, bytes;
    int halves[2]; // where its float16 numbers are, or -1
} formats[] = {
    {GGUF_F32, "F32", 1, 4, {-1, -1}},     {GGUF_F16, "F16", 1, 2, {0, -1}},
    {GGUF_BF16, "BF16", 1, 2, {-1, -1}},   {GGUF_F64, "F64", 1, 8, {-1, -1}},
    {GGUF_Q8_0, "Q8_0", 32, 34, {0, -1}},  {GGUF_Q4_0, "Q4_0", 32, 18, {0, -1}},
    {GGUF_Q4_1, "Q4_1", 32, 20, {0, 2}},   {GGUF_Q5_0, "Q5_0", 32, 22, {0, -1}},
    {GGUF_Q5_1, "Q5_1", 32, 24, {0, 2}},   {GGUF_Q4_K, "Q4_K", 256, 144, {0, 2}},
    {GGUF_Q5_K, "Q5_K", 256, 176, {0, 2}}, {GGUF_Q6_K, "Q6_K", 256, 210, {208, -1}},
};
#define N_FORMATS (sizeof formats / sizeof *formats)

static bool same(float a, float b) {
    return (isnan(a) && isnan(b)) || pd_float_bits(a) == pd_float_bits(b);
}

static void values_equal_the_definition_to_the_last_bit(void **state) {
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00,
                                       0x7bff, 0x7c00, 0xfc00, 0x7e00, 0x7c01};
    uint64_t random = 7;
    (void)state;
    for (size_t f = 0; f < N_FORMATS; f++) {
        uint8_t block[2 * 256];
        float out[2 * GGUF_MAX_BLOCK];
        for (int round = 0; round < 3000; round++) {
            for (size_t i = 0; i < sizeof block; i++) block[i] = (uint8_t)pd_random(&random);
            for (int h = 0; h < 2 && round % 3 != 0; h++) {
                if (formats[f].halves[h] < 0) continue;
                // Every third round usual scales, every third special ones.
                uint16_t usual = (uint16_t)(0x1000 + pd_random(&random) % 0x2000);
                uint16_t v = round % 3 == 1 ? usual : special[pd_random(&random) % 11];
                memcpy(block + formats[f].halves[h], &v, sizeof v);
            }
            assert_true(gguf_dequantize(formats[f].type, block, 2, out));
            for (int i = 0; i < 2 * formats[f].n; i++) {
                const uint8_t *b = block + i / formats[f].n * formats[f].bytes;
                float expected = reference(formats[f].type, b, i % formats[f].n);
                if (!same(out[i], expected))
                    fail_msg("%s: element %d is %a, expected %a", formats[f].name, i,
                             (double)out[i], (double)expected);
            }
        }
    }
}

static void types_have_names_and_sizes(void **state) {
    (void)state;
    for (size_t f = 0; f < N_FORMATS; f++) {
        const struct gguf_type_info *info = gguf_type_info(formats[f].type);
        assert_string_equal(info->name, formats[f].name);
        assert_int_equal(info->block, formats[f].n);
        assert_int_equal(info->bytes, formats[f].bytes);
        assert_true(info->readable);
    }
    float out[GGUF_MAX_BLOCK];
    uint8_t block[512] = {0};
    assert_string_equal(gguf_type_info(17)->name, "IQ2_XS");
    assert_false(gguf_type_info(17)->readable);
    assert_false(gguf_dequantize(17, block, 1, out));
    for (uint32_t removed = 4; removed <= 5; removed++) assert_null(gguf_type_info(removed));
    assert_null(gguf_type_info(31));
    assert_null(gguf_type_info(1000));
    assert_null(gguf_type_info(UINT32_MAX));
    assert_false(gguf_dequantize(UINT32_MAX, block, 1, out));
}

static void encoded_blocks_decode_to_their_values(void **state) {
    static const uint32_t types[] = {GGUF_Q8_0, GGUF_Q4_0, GGUF_Q6_K};
    static const float steps[] = {127, 7, 31};
    float x[256], y[256];
    uint8_t data[8 * 256];
    (void)state;
    for (int i = 0; i < 256; i++) x[i] = i % 3 == 0 ? 0 : (float)(i % 17 - 8) / 8;
    for (int t = 0; t < 3; t++) {
        size_t size = gguf_encode(types[t], x, 256, data);
        const struct gguf_type_info *info = gguf_type_info(types[t]);
        assert_int_equal(size, 256 / info->block * info->bytes);
        assert_true(gguf_dequantize(types[t], data, 256 / info->block, y));
        for (int i = 0; i < 256; i++) {
            assert_true(fabsf(x[i] - y[i]) <= 0.51f / steps[t]);
            if (x[i] == 0) assert_true(y[i] == 0);
        }
    }
}

// ---- files ------------------------------------------------------------------------------

static struct gguf *open_writer(struct gguf_writer *w, uint8_t **data) {
    struct gguf *g;
    pdvm_error err = {0};
    size_t size;
    *data = gguf_writer_finish(w, &size);
    assert_ok(gguf_open_memory("m.gguf", *data, size, &g, &err), &err);
    return g;
}

static void refused_bytes(const uint8_t *data, size_t size, pdvm_status status, const char *text) {
    struct gguf *g = (struct gguf *)(uintptr_t)1;
    pdvm_error err = {0};
    // An exact copy, so that a sanitizer sees a step outside.
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) support_fail("out of memory");
    memcpy(copy, data, size);
    pdvm_status got = gguf_open_memory("m.gguf", copy, size, &g, &err);
    assert_error(got, status, &err, text);
    assert_error(got, status, &err, "m.gguf");
    assert_null(g);
    free(copy);
}

static void refused(struct gguf_writer *w, pdvm_status status, const char *text) {
    size_t size;
    uint8_t *data = gguf_writer_finish(w, &size);
    refused_bytes(data, size, status, text);
    free(data);
}

static void values_of_every_type_are_read(void **state) {
    struct gguf_writer w = {0};
    uint8_t *data;
    pdvm_error err = {0};
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    size_t len = 0;
    (void)state;
    gguf_write_raw(&w, "u8", "\0\0\0\0\xff", 5);
    gguf_write_raw(&w, "i8", "\1\0\0\0\xff", 5);
    gguf_write_u16(&w, "u16", 65535);
    gguf_write_raw(&w, "i16", "\3\0\0\0\xfe\xff", 6);
    gguf_write_u32(&w, "u32", UINT32_MAX);
    gguf_write_i32(&w, "i32", -7);
    gguf_write_f32(&w, "f32", 1.5f);
    gguf_write_bool(&w, "bool", true);
    gguf_write_string(&w, "text", "h\xc3\xa9");
    gguf_write_raw(&w, "u64", "\x0a\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 12);
    gguf_write_raw(&w, "i64", "\x0b\0\0\0\xfb\xff\xff\xff\xff\xff\xff\xff", 12);
    gguf_write_raw(&w, "f64", "\x0c\0\0\0\0\0\0\0\0\0\xf0\xbf", 12);
    gguf_write_raw(&w, "inf", "\x06\0\0\0\0\0\x80\x7f", 8);
    gguf_write_strings(&w, "texts", (const char *const[]){"a", "", "bcd"}, 3);
    gguf_write_i32s(&w, "ints", (const int32_t[]){1, -2}, 2);
    gguf_write_f32s(&w, "floats", (const float[]){0.5f}, 1);
    struct gguf *g = open_writer(&w, &data);
    static const struct {
        const char *key;
        int64_t value;
    } numbers[] = {{"u8", 255},         {"i8", -1},  {"u16", 65535},     {"i16", -2},
                   {"u32", UINT32_MAX}, {"i32", -7}, {"u64", INT64_MAX}, {"i64", -5}};
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
        assert_ok(gguf_get_int(g, numbers[k].key, true, INT64_MIN, INT64_MAX, &i, &err), &err);
        assert_true(i == numbers[k].value);
    }
    assert_ok(gguf_get_float(g, "f32", true, &d, &err), &err);
    assert_true(d == 1.5);
    assert_ok(gguf_get_float(g, "f64", true, &d, &err), &err);
    assert_true(d == -1);
    assert_ok(gguf_get_bool(g, "bool", true, &b, &err), &err);
    assert_true(b);
    assert_ok(gguf_get_string(g, "text", true, &s, &len, &err), &err);
    assert_int_equal(len, 3);
    assert_memory_equal(s, "h\xc3\xa9", 3);
    const struct gguf_value *v;
    assert_ok(gguf_get_array(g, "texts", true, GGUF_VALUE_STRING, &v, &err), &err);
    size_t at = 0;
    assert_int_equal(v->n, 3);
    gguf_next_string(v, &at, &len);
    gguf_next_string(v, &at, &len);
    assert_int_equal(len, 0);
    s = gguf_next_string(v, &at, &len);
    assert_memory_equal(s, "bcd", 3);
    assert_int_equal(at, v->size);
    assert_ok(gguf_get_array(g, "ints", true, GGUF_VALUE_I32, &v, &err), &err);
    assert_int_equal(gguf_i32_at(v, 1), -2);
    assert_ok(gguf_get_array(g, "floats", true, GGUF_VALUE_F32, &v, &err), &err);
    assert_true(gguf_f32_at(v, 0) == 0.5f);
    assert_string_equal(gguf_value_kind(v), "array of float32");

    // What is absent leaves the value alone, what is required is named, and types are held to.
    i = 77;
    assert_ok(gguf_get_int(g, "none", false, 0, 1, &i, &err), &err);
    assert_int_equal(i, 77);
    assert_error(gguf_get_int(g, "none", true, 0, 1, &i, &err), PDVM_ERR_FORMAT, &err, "\"none\"");
    assert_error(gguf_get_int(g, "f32", true, 0, 1, &i, &err), PDVM_ERR_FORMAT, &err, "float32");
    assert_error(gguf_get_int(g, "u16", true, 0, 9, &i, &err), PDVM_ERR_FORMAT, &err, "65535");
    assert_error(gguf_get_float(g, "u8", true, &d, &err), PDVM_ERR_FORMAT, &err, "uint8");
    assert_error(gguf_get_float(g, "inf", true, &d, &err), PDVM_ERR_FORMAT, &err, "finite");
    assert_error(gguf_get_bool(g, "u8", true, &b, &err), PDVM_ERR_FORMAT, &err, "uint8");
    assert_error(gguf_get_string(g, "texts", true, &s, &len, &err), PDVM_ERR_FORMAT, &err,
                 "array of string");
    assert_error(gguf_get_array(g, "ints", true, GGUF_VALUE_F32, &v, &err), PDVM_ERR_FORMAT, &err,
                 "array of int32");
    assert_error(gguf_get_array(g, "u8", true, GGUF_VALUE_F32, &v, &err), PDVM_ERR_FORMAT, &err,
                 "uint8");
    assert_int_equal(gguf_value_count(g), 16);
    assert_null(gguf_value_at(g, 16));
    gguf_close(g);
    free(data);
}

static void tensors_are_found_in_versions_2_and_3(void **state) {
    uint8_t values[64 * 4], *data;
    (void)state;
    for (size_t i = 0; i < sizeof values; i++) values[i] = (uint8_t)i;
    for (uint32_t version = 2; version <= 3; version++) {
        for (uint32_t alignment = 0; alignment <= 4096; alignment = alignment ? alignment * 8 : 1) {
            struct gguf_writer w = {.version = version, .alignment = alignment};
            gguf_write_tensor(&w, "b", GGUF_F32, 2, (uint64_t[]){5, 3}, values, 60);
            gguf_write_tensor(&w, "a", GGUF_Q8_0, 1, (uint64_t[]){64}, values + 1, 68);
            gguf_write_tensor(&w, "c", GGUF_F16, 4, (uint64_t[]){1, 1, 1, 2}, values + 2, 4);
            struct gguf *g = open_writer(&w, &data);
            assert_int_equal(gguf_tensor_count(g), 3);
            const struct gguf_tensor *t = gguf_tensor_find(g, "a");
            assert_int_equal(t->size, 68);
            assert_memory_equal(t->data, values + 1, 68);
            t = gguf_tensor_find(g, "b");
            assert_int_equal(t->dims[0], 5);
            assert_int_equal(t->dims[1], 3);
            assert_memory_equal(t->data, values, 60);
            assert_string_equal(gguf_tensor_at(g, 0)->name, "b");
            assert_memory_equal(gguf_tensor_find(g, "c")->data, values + 2, 4);
            assert_null(gguf_tensor_find(g, "d"));
            assert_null(gguf_tensor_at(g, 3));
            gguf_close(g);
            free(data);
        }
    }
}

static void other_versions_and_byte_orders_are_named(void **state) {
    (void)state;
    refused(&(struct gguf_writer){.version = 1}, PDVM_ERR_UNSUPPORTED, "version 1");
    refused(&(struct gguf_writer){.version = 4}, PDVM_ERR_UNSUPPORTED, "version 4");
    refused(&(struct gguf_writer){.version = 0x03000000}, PDVM_ERR_UNSUPPORTED, "big-endian");
    refused_bytes((const uint8_t *)"GGUG", 4, PDVM_ERR_FORMAT, "not a GGUF file");
    refused_bytes((const uint8_t *)"", 0, PDVM_ERR_FORMAT, "not a GGUF file");
}

static void every_cut_is_refused(void **state) {
    struct gguf_writer w = {0};
    size_t size;
    (void)state;
    gguf_write_u32(&w, "number", 3);
    gguf_write_strings(&w, "texts", (const char *const[]){"a", "bcd"}, 2);
    gguf_write_tensor(&w, "t", GGUF_F32, 1, (uint64_t[]){8}, (const float[8]){0}, 32);
    uint8_t *data = gguf_writer_finish(&w, &size);
    for (size_t cut = 0; cut < size; cut++) refused_bytes(data, cut, PDVM_ERR_FORMAT, "");
    free(data);
}

static void absurd_counts_are_refused_before_memory_is_taken(void **state) {
    (void)state;
    static const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 62, 1000, 2};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        refused(&(struct gguf_writer){.n_keys = counts[i]}, PDVM_ERR_FORMAT, "keys are more than");
        refused(&(struct gguf_writer){.n_tensors = counts[i]}, PDVM_ERR_FORMAT,
                "tensors are more than");
    }
}

static void bad_keys_are_named(void **state) {
    static const struct {
        const char *bytes;
        size_t size;
        pdvm_status status;
        const char *text;
    } cases[] = {
        {"\x0d\0\0\0\0", 5, PDVM_ERR_FORMAT, "\"k\": unknown value type 13"},
        {"\xff\xff\xff\xff\0", 5, PDVM_ERR_FORMAT, "\"k\": unknown value type"},
        {"\7\0\0\0\2", 5, PDVM_ERR_FORMAT, "\"k\": 2 is not a truth value"},
        {"\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 12, PDVM_ERR_FORMAT, "\"k\""},
        {"\x08\0\0\0\x7f\0\0\0\0\0\0\0", 12, PDVM_ERR_FORMAT, "\"k\""},
        {"\x09\0\0\0\4\0\0\0\xff\xff\xff\xff\xff\xff\xff\x3f", 16, PDVM_ERR_FORMAT,
         "\"k\": its array of uint32"},
        {"\x09\0\0\0\4\0\0\0\1\0\0\0\0\0\0\x80", 16, PDVM_ERR_FORMAT, "\"k\""},
        {"\x09\0\0\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\x1f", 16, PDVM_ERR_FORMAT, "\"k\""},
        {"\x09\0\0\0\x08\0\0\0\1\0\0\0\0\0\0\0\xff\0\0\0\0\0\0\0", 24, PDVM_ERR_FORMAT, "\"k\""},
        {"\x09\0\0\0\x09\0\0\0\1\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0", 28, PDVM_ERR_UNSUPPORTED,
         "\"k\": arrays of arrays"},
        {"\x09\0\0\0\x63\0\0\0\1\0\0\0\0\0\0\0", 16, PDVM_ERR_FORMAT, "\"k\": unknown value type"},
        {"\x09\0\0\0\7\0\0\0\2\0\0\0\0\0\0\0\1\5", 18, PDVM_ERR_FORMAT, "\"k\": 5 is not"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_writer w = {0};
        gguf_write_raw(&w, "k", cases[i].bytes, cases[i].size);
        refused(&w, cases[i].status, cases[i].text);
    }
    struct gguf_writer w = {0};
    gguf_write_u32(&w, "twice", 1);
    gguf_write_u32(&w, "other", 1);
    gguf_write_u32(&w, "twice", 1);
    refused(&w, PDVM_ERR_FORMAT, "\"twice\" occurs twice");
    gguf_write_u32(&w, "", 1);
    gguf_write_u32(&w, "x", 1);
    refused(&w, PDVM_ERR_FORMAT, "key 0");
    gguf_write_u32(&w, "bad\xff", 1);
    refused(&w, PDVM_ERR_FORMAT, "not UTF-8");
    gguf_write_string(&w, "k", "\xff");
    size_t len;
    const char *s;
    uint8_t *data;
    pdvm_error err = {0};
    struct gguf *g = open_writer(&w, &data);
    assert_error(gguf_get_string(g, "k", true, &s, &len, &err), PDVM_ERR_FORMAT, &err, "\"k\"");
    gguf_close(g);
    free(data);
}

static void bad_alignments_are_refused(void **state) {
    static const uint32_t bad[] = {0, 3, 24, 33, 1u << 21, UINT32_MAX, 0x80000000u};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gguf_writer w = {0};
        gguf_write_u32(&w, "general.alignment", bad[i]);
        refused(&w, PDVM_ERR_FORMAT, "\"general.alignment\"");
    }
    struct gguf_writer w = {0};
    gguf_write_string(&w, "general.alignment", "32");
    refused(&w, PDVM_ERR_FORMAT, "\"general.alignment\" is of type string");
}

static void bad_tensors_are_named(void **state) {
    static const struct {
        uint32_t type, n_dims;
        uint64_t dims[5], offset;
        pdvm_status status;
        const char *text;
    } cases[] = {
        {GGUF_F32, 0, {0}, 0, PDVM_ERR_FORMAT, "has 0 dimensions"},
        {GGUF_F32, 5, {1, 1, 1, 1, 1}, 0, PDVM_ERR_FORMAT, "has 5 dimensions"},
        {GGUF_F32, 1, {0}, 0, PDVM_ERR_FORMAT, "dimension 0 is 0"},
        {GGUF_F32, 2, {4, 0}, 0, PDVM_ERR_FORMAT, "dimension 1 is 0"},
        {GGUF_F32, 1, {UINT64_MAX}, 0, PDVM_ERR_FORMAT, "dimension 0"},
        {GGUF_F32, 1, {(uint64_t)1 << 63}, 0, PDVM_ERR_FORMAT, "dimension 0"},
        {GGUF_F32, 2, {(uint64_t)1 << 32, (uint64_t)1 << 32}, 0, PDVM_ERR_FORMAT, "overflows"},
        {GGUF_F64, 2, {(uint64_t)1 << 32, (uint64_t)1 << 30}, 0, PDVM_ERR_FORMAT, "overflows"},
        {GGUF_F32, 4, {65536, 65536, 65536, 65536}, 0, PDVM_ERR_FORMAT, "overflows"},
        {GGUF_F32, 1, {INT64_MAX}, 0, PDVM_ERR_FORMAT, "overflows"},
        {GGUF_Q8_0, 1, {33}, 0, PDVM_ERR_FORMAT, "whole number of Q8_0 blocks"},
        {GGUF_Q8_0, 2, {16, 2}, 0, PDVM_ERR_FORMAT, "whole number of Q8_0 blocks"},
        {GGUF_Q6_K, 1, {128}, 0, PDVM_ERR_FORMAT, "whole number of Q6_K blocks"},
        {4, 1, {32}, 0, PDVM_ERR_UNSUPPORTED, "type number 4"},
        {UINT32_MAX, 1, {32}, 0, PDVM_ERR_UNSUPPORTED, "type number"},
        {GGUF_F32, 1, {16}, 8, PDVM_ERR_FORMAT, "not a multiple of the alignment"},
        {GGUF_F32, 1, {17}, 64, PDVM_ERR_FORMAT, "past the end"},
        {GGUF_F32, 1, {8}, 128, PDVM_ERR_FORMAT, "past the end"},
        {GGUF_F32, 1, {8}, UINT64_MAX - 31, PDVM_ERR_FORMAT, "past the end"},
        {GGUF_F32, 1, {8}, 32, PDVM_ERR_FORMAT, "overlaps that of \"good\""},
        {GGUF_F32, 1, {8}, 0, PDVM_ERR_FORMAT, "overlaps"},
    };
    float values[16] = {0};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_writer w = {0};
        gguf_write_tensor(&w, "good", GGUF_F32, 1, (uint64_t[]){16}, values, sizeof values);
        gguf_write_entry(&w, "bad", cases[i].type, cases[i].n_dims, cases[i].dims, cases[i].offset);
        size_t size;
        uint8_t *data = gguf_writer_finish(&w, &size);
        refused_bytes(data, size, cases[i].status, cases[i].text);
        refused_bytes(data, size, cases[i].status, "\"bad\"");
        free(data);
    }
    struct gguf_writer w = {0};
    gguf_write_tensor(&w, "twice", GGUF_F32, 1, (uint64_t[]){16}, values, sizeof values);
    gguf_write_tensor(&w, "twice", GGUF_F32, 1, (uint64_t[]){16}, values, sizeof values);
    refused(&w, PDVM_ERR_FORMAT, "\"twice\" occurs twice");
}

// ---- split models ------------------------------------------------------------------------

static void write_part(const char *dir, const char *name, unsigned number, unsigned count,
                       int32_t n_tensors, const char *tensor) {
    struct gguf_writer w = {0};
    gguf_write_u16(&w, "split.no", (uint16_t)number);
    gguf_write_u16(&w, "split.count", (uint16_t)count);
    gguf_write_i32(&w, "split.tensors.count", n_tensors);
    gguf_write_tensor(&w, tensor, GGUF_F32, 1, (uint64_t[]){1}, (const float[]){(float)number}, 4);
    free(gguf_writer_save(&w, dir, name));
}

static void set_fails(const char *dir, const char *name, pdvm_status status, const char *text) {
    struct gguf_set set;
    pdvm_error err = {0};
    char *path = support_path(dir, name);
    assert_error(gguf_set_open(path, &set, &err), status, &err, text);
    assert_null(set.files);
    free(path);
}

static void split_models_hold_together(void **state) {
    const char *dir = *state, *first = "m-00001-of-00003.gguf", *third = "m-00003-of-00003.gguf";
    struct gguf_set set;
    pdvm_error err = {0};
    write_part(dir, first, 0, 3, 3, "a");
    write_part(dir, "m-00002-of-00003.gguf", 1, 3, 3, "b");
    set_fails(dir, first, PDVM_ERR_IO, third);
    write_part(dir, third, 2, 3, 3, "c");
    char *path = support_path(dir, first);
    assert_ok(gguf_set_open(path, &set, &err), &err);
    free(path);
    assert_int_equal(set.n_files, 3);
    assert_int_equal(set.n_entries, 3);
    float value;
    memcpy(&value, gguf_set_find(&set, "c")->tensor->data, 4);
    assert_true(value == 2);
    assert_ptr_equal(gguf_set_find(&set, "b")->file, set.files[1]);
    assert_null(gguf_set_find(&set, "d"));
    gguf_set_close(&set);

    set_fails(dir, third, PDVM_ERR_ARGUMENT, "-00001-of-00003.gguf");
    write_part(dir, third, 2, 3, 3, "b");
    set_fails(dir, first, PDVM_ERR_FORMAT, "\"b\" is in");
    write_part(dir, third, 1, 3, 3, "c");
    set_fails(dir, first, PDVM_ERR_FORMAT, "file 2 of 3");
    write_part(dir, third, 2, 4, 3, "c");
    set_fails(dir, first, PDVM_ERR_FORMAT, "file 3 of 4");
    write_part(dir, third, 2, 3, 3, "c");
    write_part(dir, first, 0, 3, 4, "a");
    set_fails(dir, first, PDVM_ERR_FORMAT, "\"split.tensors.count\" is 4");
    write_part(dir, first, 3, 3, 3, "a");
    set_fails(dir, first, PDVM_ERR_FORMAT, "\"split.no\" is 3");
    write_part(dir, "other.gguf", 0, 3, 3, "a");
    set_fails(dir, "other.gguf", PDVM_ERR_FORMAT, "does not end in -00001-of-00003.gguf");
    write_part(dir, "one.gguf", 0, 1, 1, "a");
    path = support_path(dir, "one.gguf");
    assert_ok(gguf_set_open(path, &set, &err), &err);
    free(path);
    gguf_set_close(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_equal_the_definition_to_the_last_bit),
        cmocka_unit_test(types_have_names_and_sizes),
        cmocka_unit_test(encoded_blocks_decode_to_their_values),
        cmocka_unit_test(values_of_every_type_are_read),
        cmocka_unit_test(tensors_are_found_in_versions_2_and_3),
        cmocka_unit_test(other_versions_and_byte_orders_are_named),
        cmocka_unit_test(every_cut_is_refused),
        cmocka_unit_test(absurd_counts_are_refused_before_memory_is_taken),
        cmocka_unit_test(bad_keys_are_named),
        cmocka_unit_test(bad_alignments_are_refused),
        cmocka_unit_test(bad_tensors_are_named),
        cmocka_unit_test_setup_teardown(split_models_hold_together, support_make_dir,
                                        support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
