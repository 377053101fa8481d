// mdcsr_check refuses every kind of corruption, one test each: everything that decodes and packs
// matrices relies on it.

#include "mdcsr/mdcsr.h"
#include "support/support.h"

#include <math.h>
#include <string.h>

// Four rows: empty, a few entries, full, one entry at the end. The gaps of rows 1 and 3 hold
// skips of both delta codings.
enum { ROWS = 4, COLS = 700 };

static struct mdcsr make(enum mdcsr_index index, enum mdcsr_values values, uint32_t group) {
    static float w[ROWS * COLS];
    struct mdcsr_options o = {.index = index, .values = values, .group = group};
    struct mdcsr m;
    pdvm_error err;
    memset(w, 0, sizeof w);
    w[COLS + 2] = 1;
    w[COLS + 40] = -2;
    w[COLS + 500] = 3;
    for (int c = 0; c < COLS; c++) w[2 * COLS + c] = (float)(c % 17) - 8.5f;
    w[3 * COLS + COLS - 1] = 4;
    assert_ok(mdcsr_encode(w, ROWS, COLS, &o, NULL, &m, NULL, &err), &err);
    assert_ok(mdcsr_check(&m, &err), &err);
    return m;
}

static void refused(struct mdcsr *m, const char *text) {
    pdvm_error err;
    pdvm_status status = mdcsr_check(m, &err);
    mdcsr_free(m);
    assert_error(status, PDVM_ERR_FORMAT, &err, text);
}

static uint8_t *index_of(struct mdcsr *m) {
    return (uint8_t *)(uintptr_t)m->index;
}

static uint8_t *values_of(struct mdcsr *m) {
    return (uint8_t *)(uintptr_t)m->values;
}

// Defines a test that makes a matrix `m`, breaks it, and wants a refusal with `text` in it.
#define REFUSES(name, index, values, group, text, breakage)                                        \
    static void name(void **state) {                                                               \
        (void)state;                                                                               \
        struct mdcsr m = make(index, values, group);                                               \
        breakage;                                                                                  \
        refused(&m, text);                                                                         \
    }

REFUSES(zero_rows, MDCSR_BITMAP, MDCSR_INT8, 0, "shape", m.rows = 0)
REFUSES(negative_columns, MDCSR_BITMAP, MDCSR_INT8, 0, "shape", m.cols = -1)
REFUSES(absurd_rows, MDCSR_BITMAP, MDCSR_INT8, 0, "shape", m.rows = MDCSR_MAX_DIM + 1)
REFUSES(unknown_index, MDCSR_BITMAP, MDCSR_INT8, 0, "index coding", m.index_coding = MDCSR_N_INDEX)
REFUSES(unknown_values, MDCSR_BITMAP, MDCSR_INT8, 0, "value coding",
        m.value_coding = MDCSR_N_VALUES)
REFUSES(unknown_codebook, MDCSR_BITMAP, MDCSR_LUT4, 0, "codebook",
        m.codebook_kind = MDCSR_N_CODEBOOKS)
REFUSES(unknown_group, MDCSR_BITMAP, MDCSR_INT8, 32, "group 16", m.group = 16)
REFUSES(groups_of_floats, MDCSR_BITMAP, MDCSR_F32, 0, "group 32", m.group = 32)
REFUSES(wrong_number_of_scales, MDCSR_BITMAP, MDCSR_INT8, 32, "scales per row", m.n_groups--)
REFUSES(more_entries_than_positions, MDCSR_BITMAP, MDCSR_INT8, 0, "positions",
        m.n_entries = ROWS * COLS + 1)
REFUSES(negative_entries, MDCSR_BITMAP, MDCSR_INT8, 0, "entries", m.n_entries = -1)
REFUSES(dense_with_holes, MDCSR_DENSE, MDCSR_INT8, 0, "dense", m.n_entries--)
REFUSES(dense_with_an_index, MDCSR_DENSE, MDCSR_INT8, 0, "index", m.index_size = 1)
REFUSES(short_values, MDCSR_BITMAP, MDCSR_F16, 0, "values", m.values_size -= 2)
REFUSES(long_values, MDCSR_BITMAP, MDCSR_LUT4, 0, "values", m.values_size++)
REFUSES(short_bitmap, MDCSR_BITMAP, MDCSR_INT8, 0, "index", m.index_size--)
REFUSES(long_bitmap, MDCSR_BITMAP, MDCSR_INT8, 0, "index", m.index_size++)
REFUSES(short_gaps, MDCSR_DELTA8, MDCSR_INT8, 0, "index_offsets", m.index_size--)
REFUSES(absurd_gaps, MDCSR_DELTA8, MDCSR_INT8, 0, "index", m.index_size = ROWS * COLS + 1)

REFUSES(first_row_offset_not_zero, MDCSR_BITMAP, MDCSR_INT8, 0, "row_offsets", m.row_offsets[0] = 1)
REFUSES(negative_row_offset, MDCSR_BITMAP, MDCSR_INT8, 0, "row_offsets", m.row_offsets[1] = -1)
REFUSES(falling_row_offsets, MDCSR_BITMAP, MDCSR_INT8, 0, "row_offsets", m.row_offsets[3] = 2)
REFUSES(row_offset_past_the_end, MDCSR_DELTA8, MDCSR_INT8, 0, "row_offsets",
        m.row_offsets[2] = INT64_MAX)
REFUSES(last_row_offset_short, MDCSR_BITMAP, MDCSR_INT8, 0, "row_offsets", m.row_offsets[ROWS]--)
REFUSES(row_with_more_entries_than_columns, MDCSR_DELTA8, MDCSR_INT8, 0, "row_offsets",
        m.row_offsets[2] = 0)
REFUSES(first_index_offset_not_zero, MDCSR_DELTA4, MDCSR_INT8, 0, "index_offsets",
        m.index_offsets[0] = 1)
REFUSES(falling_index_offsets, MDCSR_DELTA8, MDCSR_INT8, 0, "index_offsets", m.index_offsets[3] = 1)
REFUSES(index_offset_past_the_end, MDCSR_DELTA4, MDCSR_INT8, 0, "index_offsets",
        m.index_offsets[1] = INT64_MAX)
REFUSES(index_row_longer_than_columns, MDCSR_DELTA8, MDCSR_INT8, 0, "index_offsets",
        m.index_offsets[2] = 0)

REFUSES(bit_behind_the_last_column, MDCSR_BITMAP, MDCSR_INT8, 0, "behind its last column",
        index_of (&m)[87] |= 0x10)
REFUSES(bit_too_many, MDCSR_BITMAP, MDCSR_INT8, 0, "bits set", index_of (&m)[88] |= 1)
REFUSES(bit_too_few, MDCSR_BITMAP, MDCSR_INT8, 0, "bits set", index_of (&m)[88] &= 0xfb)
REFUSES(bit_in_an_empty_row, MDCSR_BITMAP, MDCSR_INT8, 0, "row 0", index_of (&m)[30] = 1)

// Row 1 in delta8: 2, 37, 255, 204. Row 2: 700 zeros. Row 3: 255, 255, 189.
REFUSES(delta8_entry_too_many, MDCSR_DELTA8, MDCSR_INT8, 0, "number of entries",
        index_of (&m)[2] = 7)
REFUSES(delta8_entry_too_few, MDCSR_DELTA8, MDCSR_INT8, 0, "number of entries",
        index_of (&m)[0] = 255)
REFUSES(delta8_behind_the_last_column, MDCSR_DELTA8, MDCSR_INT8, 0, "row 3",
        index_of (&m)[4 + COLS + 2] = 190)
REFUSES(delta8_row_ends_with_a_skip, MDCSR_DELTA8, MDCSR_INT8, 0, "ends with a skip",
        index_of (&m)[3] = 255)
REFUSES(delta8_full_row_pushed_out, MDCSR_DELTA8, MDCSR_INT8, 0, "behind its last column",
        index_of (&m)[4] = 1)

// Row 1 in delta4: 2; 15, 15, 7; 459 = 30 * 15 + 9: 35 nibbles in 18 bytes, the last with padding.
REFUSES(delta4_padding_is_an_entry, MDCSR_DELTA4, MDCSR_INT8, 0, "number of entries",
        index_of (&m)[17] &= 0x0f)
REFUSES(delta4_row_ends_with_a_skip, MDCSR_DELTA4, MDCSR_INT8, 0, "ends with a skip",
        index_of (&m)[17] = 0xff)
REFUSES(delta4_entry_too_many, MDCSR_DELTA4, MDCSR_INT8, 0, "number of entries",
        index_of (&m)[5] = 0xf3)
REFUSES(delta4_entry_too_few, MDCSR_DELTA4, MDCSR_INT8, 0, "number of entries",
        index_of (&m)[0] |= 0x0f)
REFUSES(delta4_behind_the_last_column, MDCSR_DELTA4, MDCSR_INT8, 0, "row 2", index_of (&m)[18] = 1)
REFUSES(delta4_entries_without_gaps, MDCSR_DELTA4, MDCSR_INT8, 0, "row 1",
        m.index_offsets[2] = m.index_offsets[1])

REFUSES(scale_not_finite, MDCSR_BITMAP, MDCSR_INT8, 64, "number 3 of row 2",
        m.scales[2 * 11 + 3] = NAN)
REFUSES(scale_that_overflows, MDCSR_BITMAP, MDCSR_INT8, 0, "row 1", m.scales[1] = 3e38f)
REFUSES(codebook_not_finite, MDCSR_BITMAP, MDCSR_LUT8, 0, "codebook", m.codebook[255] = INFINITY)
REFUSES(codebook_not_whole, MDCSR_BITMAP, MDCSR_LUT4, 0, "codebook", m.codebook[3] = 1.5f)
REFUSES(codebook_out_of_range, MDCSR_BITMAP, MDCSR_LUT4, 0, "codebook", m.codebook[3] = -128)
REFUSES(f32_value_not_finite, MDCSR_BITMAP, MDCSR_F32, 0, "values",
        memcpy(values_of(&m) + 4, &(float){NAN}, 4))
REFUSES(bf16_value_not_finite, MDCSR_DELTA8, MDCSR_BF16, 0, "values",
        memcpy(values_of(&m) + 2, &(uint16_t){0x7f80}, 2))
REFUSES(f16_value_not_finite, MDCSR_DENSE, MDCSR_F16, 0, "values",
        memcpy(values_of(&m) + 2, &(uint16_t){0xfc00}, 2))
REFUSES(int8_code_of_minus_128, MDCSR_BITMAP, MDCSR_INT8, 0, "-128", values_of (&m)[100] = 0x80)

// 3 + 700 + 1 entries: the padding needs an odd number.
static void nibble_behind_the_last(void **state) {
    (void)state;
    float w[3] = {1, 2, 3};
    struct mdcsr_options o = {.index = MDCSR_BITMAP, .values = MDCSR_LUT4};
    struct mdcsr m;
    pdvm_error err;
    assert_ok(mdcsr_encode(w, 1, 3, &o, NULL, &m, NULL, &err), &err);
    assert_ok(mdcsr_check(&m, &err), &err);
    values_of(&m)[1] |= 0x10;
    refused(&m, "nibble");
}

// Pointers that must be there, and such that must not.
static void missing_arrays(void **state) {
    (void)state;
    struct mdcsr m = make(MDCSR_DELTA8, MDCSR_INT8, 0);
    struct mdcsr broken;
    pdvm_error err;
#define BROKEN(field, value, text)                                                                 \
    broken = m;                                                                                    \
    broken.field = value;                                                                          \
    assert_error(mdcsr_check(&broken, &err), PDVM_ERR_FORMAT, &err, text)
    BROKEN(values, NULL, "values");
    BROKEN(index, NULL, "index");
    BROKEN(row_offsets, NULL, "row_offsets");
    BROKEN(index_offsets, NULL, "index_offsets");
    BROKEN(scales, NULL, "scales");
    mdcsr_free(&m);
    m = make(MDCSR_BITMAP, MDCSR_F32, 0);
    float scale = 1;
    int64_t offsets[ROWS + 1] = {0};
    BROKEN(scales, &scale, "scales");
    BROKEN(index_offsets, offsets, "index_offsets");
    mdcsr_free(&m);
}

static void negative_and_zero_scales_are_fine(void **state) {
    (void)state;
    struct mdcsr m = make(MDCSR_BITMAP, MDCSR_INT8, 0);
    pdvm_error err;
    m.scales[1] = -m.scales[1];
    m.scales[2] = 0;
    assert_ok(mdcsr_check(&m, &err), &err);
    mdcsr_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zero_rows),
        cmocka_unit_test(negative_columns),
        cmocka_unit_test(absurd_rows),
        cmocka_unit_test(unknown_index),
        cmocka_unit_test(unknown_values),
        cmocka_unit_test(unknown_codebook),
        cmocka_unit_test(unknown_group),
        cmocka_unit_test(groups_of_floats),
        cmocka_unit_test(wrong_number_of_scales),
        cmocka_unit_test(more_entries_than_positions),
        cmocka_unit_test(negative_entries),
        cmocka_unit_test(dense_with_holes),
        cmocka_unit_test(dense_with_an_index),
        cmocka_unit_test(short_values),
        cmocka_unit_test(long_values),
        cmocka_unit_test(short_bitmap),
        cmocka_unit_test(long_bitmap),
        cmocka_unit_test(short_gaps),
        cmocka_unit_test(absurd_gaps),
        cmocka_unit_test(first_row_offset_not_zero),
        cmocka_unit_test(negative_row_offset),
        cmocka_unit_test(falling_row_offsets),
        cmocka_unit_test(row_offset_past_the_end),
        cmocka_unit_test(last_row_offset_short),
        cmocka_unit_test(row_with_more_entries_than_columns),
        cmocka_unit_test(first_index_offset_not_zero),
        cmocka_unit_test(falling_index_offsets),
        cmocka_unit_test(index_offset_past_the_end),
        cmocka_unit_test(index_row_longer_than_columns),
        cmocka_unit_test(bit_behind_the_last_column),
        cmocka_unit_test(bit_too_many),
        cmocka_unit_test(bit_too_few),
        cmocka_unit_test(bit_in_an_empty_row),
        cmocka_unit_test(delta8_entry_too_many),
        cmocka_unit_test(delta8_entry_too_few),
        cmocka_unit_test(delta8_behind_the_last_column),
        cmocka_unit_test(delta8_row_ends_with_a_skip),
        cmocka_unit_test(delta8_full_row_pushed_out),
        cmocka_unit_test(delta4_padding_is_an_entry),
        cmocka_unit_test(delta4_row_ends_with_a_skip),
        cmocka_unit_test(delta4_entry_too_many),
        cmocka_unit_test(delta4_entry_too_few),
        cmocka_unit_test(delta4_behind_the_last_column),
        cmocka_unit_test(delta4_entries_without_gaps),
        cmocka_unit_test(scale_not_finite),
        cmocka_unit_test(scale_that_overflows),
        cmocka_unit_test(codebook_not_finite),
        cmocka_unit_test(codebook_not_whole),
        cmocka_unit_test(codebook_out_of_range),
        cmocka_unit_test(f32_value_not_finite),
        cmocka_unit_test(bf16_value_not_finite),
        cmocka_unit_test(f16_value_not_finite),
        cmocka_unit_test(int8_code_of_minus_128),
        cmocka_unit_test(nibble_behind_the_last),
        cmocka_unit_test(missing_arrays),
        cmocka_unit_test(negative_and_zero_scales_are_fine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
