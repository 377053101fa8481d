/*
 * Encoding in two passes over the rows, both parallel: the first counts what each row needs under
 * every index coding, the second fills the arrays at the offsets that follow from the counts.
 */
#include "base/alloc.h"
#include "base/half.h"
#include "base/threads.h"
#include "mdcsr/book.h"
#include "mdcsr/layout.h"
#include "mdcsr/mdcsr.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Weights per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 17)

/* What is known of a row after the first pass, and its share of the report after the second. */
struct row {
    uint32_t entries; /* values that are not zero */
    uint32_t delta8;  /* index bytes */
    uint32_t delta4;
    int32_t bad; /* first column with a value that cannot be stored, or -1 */
    double squares;
    double error;
    uint8_t head; /* LUT4: first code of a row that starts in the middle of a byte */
};

/* A worker's copy of one row without its zeros. */
struct scratch {
    float *x;
    uint8_t *codes;
    uint32_t *cols;
};

struct encoder {
    const float *w;
    struct mdcsr *m;
    const struct mdcsr_grid *grid; /* NULL: fit one */
    struct row *rows;
    struct scratch *scratch; /* one per worker */
    float limit;             /* smallest magnitude that overflows the value coding */
    uint8_t *values;
    uint8_t *index;
    struct mdcsr_book book;
};

/* Nonzero positions of up to 64 values, low bit first. */
static inline uint64_t nonzero_mask(const float *w, int64_t n) {
    uint64_t mask = 0;
    for (int64_t i = 0; i < n; i++) mask |= (uint64_t)(w[i] != 0) << i;
    return mask;
}

/* ---- first pass ------------------------------------------------------------------------ */

static void count_row(const struct encoder *e, const float *w, struct row *row) {
    int64_t cols = e->m->cols;
    int64_t next = 0; /* column after the last entry */
    uint64_t nibbles = 0;
    *row = (struct row){.bad = -1};
    for (int64_t c = 0; c < cols; c += 64) {
        int64_t n = cols - c < 64 ? cols - c : 64;
        int bad = 0;
        for (int64_t i = 0; i < n; i++) {
            bad |= !(fabsf(w[c + i]) < e->limit);
            row->squares += (double)w[c + i] * (double)w[c + i];
        }
        if (bad && row->bad < 0) {
            int64_t i = 0;
            while (fabsf(w[c + i]) < e->limit) i++;
            row->bad = (int32_t)(c + i);
        }
        uint64_t mask = nonzero_mask(w + c, n);
        row->entries += (uint32_t)__builtin_popcountll(mask);
        for (; mask; mask &= mask - 1) {
            int64_t at = c + __builtin_ctzll(mask);
            uint32_t gap = (uint32_t)(at - next);
            next = at + 1;
            row->delta8 += gap / MDCSR_DELTA8_SKIP;
            nibbles += gap / MDCSR_DELTA4_SKIP;
        }
    }
    row->delta8 += row->entries;
    row->delta4 = (uint32_t)((nibbles + row->entries + 1) / 2);
}

static void count_rows(void *arg, int64_t begin, int64_t end, int worker) {
    struct encoder *e = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) count_row(e, e->w + r * e->m->cols, &e->rows[r]);
}

static pdvm_status check_values(const struct encoder *e, pdvm_error *err) {
    for (int64_t r = 0; r < e->m->rows; r++) {
        int32_t c = e->rows[r].bad;
        if (c < 0) continue;
        float v = e->w[r * e->m->cols + c];
        if (!isfinite(v))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "row %" PRId64 ", column %" PRId32 ": the value %g is not finite", r, c,
                           (double)v);
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "row %" PRId64 ", column %" PRId32 ": the value %g is too large for %s: "
                       "use another value coding",
                       r, c, (double)v, mdcsr_values_name(e->m->value_coding));
    }
    return PDVM_OK;
}

/* ---- choice of the index --------------------------------------------------------------- */

struct totals {
    int64_t entries;
    int64_t delta8;
    int64_t delta4;
};

static size_t stored_bytes(const struct mdcsr *m, enum mdcsr_index index, const struct totals *t) {
    int64_t n = index == MDCSR_DENSE ? m->rows * m->cols : t->entries;
    size_t bytes = mdcsr_values_bytes(m->value_coding, n) +
                   mdcsr_scales_bytes(m->value_coding, m->rows, m->n_groups, m->group) +
                   mdcsr_codebook_bytes(m->value_coding);
    if (index == MDCSR_DENSE) return bytes;
    bytes += mdcsr_offsets_bytes(m->rows, n);
    if (index == MDCSR_BITMAP) return bytes + (size_t)m->rows * mdcsr_bitmap_stride(m->cols);
    int64_t size = index == MDCSR_DELTA8 ? t->delta8 : t->delta4;
    return bytes + (size_t)size + mdcsr_offsets_bytes(m->rows, size);
}

static enum mdcsr_index smallest_index(const struct mdcsr *m, const struct totals *t, bool dense) {
    enum mdcsr_index best = dense ? MDCSR_DENSE : MDCSR_BITMAP;
    for (int i = (int)best + 1; i < MDCSR_N_INDEX; i++)
        if (stored_bytes(m, (enum mdcsr_index)i, t) < stored_bytes(m, best, t))
            best = (enum mdcsr_index)i;
    return best;
}

/* ---- codebook -------------------------------------------------------------------------- */

static pdvm_status make_codebook(struct encoder *e, int64_t entries, struct pd_threads *threads,
                                 pdvm_error *err) {
    struct mdcsr *m = e->m;
    int size = mdcsr_codebook_size(m->value_coding);
    if (size == 0) return PDVM_OK;
    if (e->grid) {
        PD_TRY(mdcsr_book_given(size, e->grid->codebook, &e->book, err));
        memcpy(m->codebook, e->book.entry, (size_t)size * sizeof *m->codebook);
        return PDVM_OK;
    }
    bool zero = m->index_coding == MDCSR_DENSE && entries < m->rows * m->cols;
    struct mdcsr_sample sample = {0};
    pdvm_status status = PDVM_OK;
    if (m->codebook_kind != MDCSR_PRIME)
        status = mdcsr_sample_make(e->w, m->rows, m->cols, m->group, NULL, entries, &sample, err);
    if (status == PDVM_OK)
        status = mdcsr_book_make(m->value_coding, m->codebook_kind, zero, &sample, threads,
                                 &e->book, err);
    mdcsr_sample_free(&sample);
    memcpy(m->codebook, e->book.entry, (size_t)e->book.n * sizeof *m->codebook);
    return status;
}

/* ---- second pass ----------------------------------------------------------------------- */

/* Codes round(x / scale), ties to even; the squared error. */
static double encode_int8(const float *x, int64_t n, float scale, uint8_t *codes) {
    double error = 0;
    float divisor = scale == 0 ? INFINITY : scale;
    for (int64_t i = 0; i < n; i++) {
        float t = x[i] / divisor;
        t = t > 127 ? 127 : t < -127 ? -127 : t;
        t = (t + 0x1.8p23f) - 0x1.8p23f; /* rounds to a whole number, ties to even */
        double d = (double)x[i] - (double)(scale * t);
        codes[i] = (uint8_t)(int8_t)t;
        error += d * d;
    }
    return error;
}

static float int8_scale(const float *x, int64_t n, bool bf16) {
    float max = 0;
    for (int64_t i = 0; i < n; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    float scale = max / 127.0f;
    if (scale < MDCSR_SMALLEST_SCALE) return 0;
    if (bf16) scale = mdcsr_bf16_up(scale);
    /* Only beside the largest float: 127 times the rounded scale may not be finite. */
    while (!isfinite(scale * 127.0f))
        scale = bf16 ? pd_bits_float(pd_float_bits(scale) - 0x10000u) : nextafterf(scale, 0);
    return scale;
}

/* Of entries that lie so close together that rounding takes one for the other, the right one. */
static void settle_codes(const struct mdcsr_book *b, const float *x, int64_t n, float scale,
                         uint8_t *codes) {
    for (int64_t i = 0; i < n; i++) {
        int code = codes[i];
        if (scale * b->entry[code] == x[i]) continue;
        if (code > 0 && scale * b->entry[code - 1] == x[i]) codes[i] = (uint8_t)(code - 1);
        if (code + 1 < b->n && scale * b->entry[code + 1] == x[i]) codes[i] = (uint8_t)(code + 1);
    }
}

/* Codes for a scale that is given; the squared error. */
static double encode_given(const struct encoder *e, const float *x, int64_t n, float scale,
                           uint8_t *codes) {
    if (e->m->value_coding == MDCSR_INT8) return encode_int8(x, n, scale, codes);
    double error = mdcsr_book_encode(&e->book, x, n, scale, codes);
    if (error == 0) return 0;
    settle_codes(&e->book, x, n, scale, codes);
    error = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)(scale * e->book.entry[codes[i]]);
        error += d * d;
    }
    return error;
}

/* Scales, codes and error of row r, whose n entries are x[] at cols[]. */
static double encode_codes(const struct encoder *e, int64_t r, const float *x, int64_t n,
                           const uint32_t *cols, uint8_t *codes) {
    const struct mdcsr *m = e->m;
    float *scales = m->scales + r * m->n_groups;
    bool bf16 = m->group != 0;
    double error = 0;
    int64_t begin = 0;
    for (int64_t g = 0; g < m->n_groups; g++) {
        int64_t end = n;
        if (m->group) {
            int64_t limit = (g + 1) * m->group;
            for (end = begin; end < n && cols[end] < limit;) end++;
        }
        const float *part = x + begin;
        int64_t size = end - begin;
        if (e->grid) {
            scales[g] = e->grid->scales[r * m->n_groups + g];
            error += encode_given(e, part, size, scales[g], codes + begin);
        } else if (m->value_coding == MDCSR_INT8) {
            scales[g] = int8_scale(part, size, bf16);
            error += encode_int8(part, size, scales[g], codes + begin);
        } else {
            scales[g] = mdcsr_book_scale(&e->book, part, NULL, size, bf16);
            error += mdcsr_book_encode(&e->book, part, size, scales[g], codes + begin);
        }
        begin = end;
    }
    return error;
}

static double encode_halves(enum mdcsr_values coding, const float *x, int64_t n, uint8_t *out) {
    double error = 0;
    for (int64_t i = 0; i < n; i++) {
        bool bf16 = coding == MDCSR_BF16;
        uint16_t h = bf16 ? pd_float_to_bf16(x[i]) : pd_float_to_f16(x[i]);
        double d = (double)x[i] - (double)(bf16 ? pd_bf16_to_float(h) : pd_f16_to_float(h));
        memcpy(out + 2 * i, &h, sizeof h);
        error += d * d;
    }
    return error;
}

/* Packs n codes from entry `at` on. The byte shared with the row before is left to its owner. */
static void put_nibbles(uint8_t *values, int64_t at, const uint8_t *codes, int64_t n,
                        struct row *row) {
    int64_t i = 0;
    if (n > 0 && at % 2 == 1) row->head = codes[i++];
    uint8_t *p = values + (at + i) / 2;
    for (; i + 1 < n; i += 2) *p++ = (uint8_t)(codes[i] | codes[i + 1] << 4);
    if (i < n) *p = codes[i];
}

static void put_index(struct encoder *e, int64_t r, const float *w, const uint32_t *cols,
                      int64_t n) {
    const struct mdcsr *m = e->m;
    uint32_t next = 0;
    if (m->index_coding == MDCSR_BITMAP) {
        size_t left = mdcsr_bitmap_stride(m->cols);
        uint8_t *p = e->index + (size_t)r * left;
        for (int64_t c = 0; c < m->cols; c += 64) {
            uint64_t mask = nonzero_mask(w + c, m->cols - c < 64 ? m->cols - c : 64);
            for (int i = 0; i < 8 && left > 0; i++, left--) *p++ = (uint8_t)(mask >> (8 * i));
        }
    } else if (m->index_coding == MDCSR_DELTA8) {
        uint8_t *p = e->index + m->index_offsets[r];
        for (int64_t i = 0; i < n; next = cols[i++] + 1) {
            uint32_t gap = cols[i] - next;
            for (; gap >= MDCSR_DELTA8_SKIP; gap -= MDCSR_DELTA8_SKIP) *p++ = MDCSR_DELTA8_SKIP;
            *p++ = (uint8_t)gap;
        }
    } else if (m->index_coding == MDCSR_DELTA4) {
        uint8_t *p = e->index + m->index_offsets[r];
        bool high = false;
        for (int64_t i = 0; i < n; next = cols[i++] + 1) {
            uint32_t gap = cols[i] - next;
            for (;;) {
                uint32_t code = gap < MDCSR_DELTA4_SKIP ? gap : MDCSR_DELTA4_SKIP;
                /* The high nibble starts as 15, which is the padding. */
                if (high)
                    *p = (uint8_t)((*p & 15u) | code << 4), p++;
                else
                    *p = (uint8_t)(0xf0u | code);
                high = !high;
                if (code < MDCSR_DELTA4_SKIP) break;
                gap -= code;
            }
        }
    }
}

static void fill_row(struct encoder *e, int64_t r, const struct scratch *s) {
    const struct mdcsr *m = e->m;
    const float *w = e->w + r * m->cols;
    struct row *row = &e->rows[r];
    int64_t n = 0, at = m->index_coding == MDCSR_DENSE ? r * m->cols : m->row_offsets[r];
    bool dense = m->index_coding == MDCSR_DENSE;
    for (int64_t c = 0; c < m->cols; c++) {
        s->x[n] = w[c] + 0.0f; /* -0.0 becomes 0.0 */
        s->cols[n] = (uint32_t)c;
        n += dense || w[c] != 0;
    }
    switch (m->value_coding) {
    case MDCSR_F32:
        if (n > 0) memcpy(e->values + 4 * at, s->x, 4 * (size_t)n);
        break;
    case MDCSR_BF16:
    case MDCSR_F16: row->error = encode_halves(m->value_coding, s->x, n, e->values + 2 * at); break;
    case MDCSR_LUT4:
        row->error = encode_codes(e, r, s->x, n, s->cols, s->codes);
        put_nibbles(e->values, at, s->codes, n, row);
        break;
    default: row->error = encode_codes(e, r, s->x, n, s->cols, e->values + at);
    }
    put_index(e, r, w, s->cols, n);
}

static void fill_rows(void *arg, int64_t begin, int64_t end, int worker) {
    struct encoder *e = arg;
    for (int64_t r = begin; r < end; r++) fill_row(e, r, &e->scratch[worker]);
}

/* Puts in the codes that a row left out because the byte belongs to the row before. */
static void join_nibbles(struct encoder *e) {
    const struct mdcsr *m = e->m;
    for (int64_t r = 0; r < m->rows; r++) {
        int64_t at = m->index_coding == MDCSR_DENSE ? r * m->cols : m->row_offsets[r];
        if (at % 2 == 1 && mdcsr_row_entries(m, r) > 0)
            e->values[at / 2] |= (uint8_t)(e->rows[r].head << 4);
    }
}

/* ---- putting it together --------------------------------------------------------------- */

static pdvm_status check_arguments(int64_t rows, int64_t cols, const struct mdcsr_options *o,
                                   pdvm_error *err) {
    if (rows < 1 || rows > MDCSR_MAX_DIM || cols < 1 || cols > MDCSR_MAX_DIM)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "shape [%" PRId64 ", %" PRId64 "]: each must be in 1..%" PRId64, rows, cols,
                       MDCSR_MAX_DIM);
    if ((unsigned)o->values >= MDCSR_N_VALUES || (unsigned)o->codebook >= MDCSR_N_CODEBOOKS ||
        (!o->index_auto && (unsigned)o->index >= MDCSR_N_INDEX))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown coding in the options");
    if (!mdcsr_group_valid(o->group))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "group %" PRIu32 ": must be 0, 32, 64, 128 or 256",
                       o->group);
    return PDVM_OK;
}

/* The scales of a grid must be what the file can hold, and stay finite times any entry. */
static pdvm_status check_grid(const struct encoder *e, const struct totals *t,
                              const struct mdcsr_options *o, bool *zero, pdvm_error *err) {
    const struct mdcsr *m = e->m;
    int size = mdcsr_codebook_size(m->value_coding);
    float max = size ? 0 : 127;
    *zero = size == 0;
    for (int i = 0; i < size; i++) {
        max = fmaxf(max, fabsf(e->grid->codebook[i]));
        *zero |= e->grid->codebook[i] == 0;
    }
    for (int64_t i = 0; i < m->rows * m->n_groups; i++) {
        float s = e->grid->scales[i];
        bool good = isfinite(s * max) && (s == 0 || fabsf(s) >= MDCSR_SMALLEST_SCALE);
        if (m->group) good &= (pd_float_bits(s) & 0xffffu) == 0;
        if (m->value_coding == MDCSR_INT8) good &= s >= 0;
        if (!good)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "row %" PRId64 ": the file cannot hold the scale %g", i / m->n_groups,
                           (double)s);
    }
    if (!*zero && t->entries < m->rows * m->cols && !o->index_auto && o->index == MDCSR_DENSE)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a dense matrix with zeros needs a codebook with a zero");
    return PDVM_OK;
}

static pdvm_status allocate(struct encoder *e, const struct totals *t, int n_workers,
                            pdvm_error *err) {
    struct mdcsr *m = e->m;
    size_t rows = (size_t)m->rows, cols = (size_t)m->cols;
    bool dense = m->index_coding == MDCSR_DENSE;
    m->n_entries = dense ? m->rows * m->cols : t->entries;
    m->values_size = mdcsr_values_bytes(m->value_coding, m->n_entries);
    if (m->index_coding == MDCSR_BITMAP) m->index_size = rows * mdcsr_bitmap_stride(m->cols);
    if (m->index_coding == MDCSR_DELTA8) m->index_size = (size_t)t->delta8;
    if (m->index_coding == MDCSR_DELTA4) m->index_size = (size_t)t->delta4;
    PD_TRY(pd_calloc(&e->values, m->values_size, 1, "a matrix's values", err));
    m->values = e->values;
    if (!dense) {
        PD_TRY(pd_calloc(&e->index, m->index_size, 1, "a matrix's index", err));
        m->index = e->index;
        PD_TRY(pd_calloc(&m->row_offsets, rows + 1, sizeof *m->row_offsets, "row offsets", err));
    }
    if (mdcsr_is_delta(m->index_coding))
        PD_TRY(
            pd_calloc(&m->index_offsets, rows + 1, sizeof *m->index_offsets, "row offsets", err));
    if (m->n_groups > 0)
        PD_TRY(pd_calloc(&m->scales, rows * (size_t)m->n_groups, sizeof *m->scales, "scales", err));
    PD_TRY(pd_calloc(&e->scratch, (size_t)n_workers, sizeof *e->scratch, "a row", err));
    for (int i = 0; i < n_workers; i++) {
        struct scratch *s = &e->scratch[i];
        PD_TRY(pd_calloc(&s->x, cols + 1, sizeof *s->x, "a row", err));
        PD_TRY(pd_calloc(&s->cols, cols + 1, sizeof *s->cols, "a row", err));
        PD_TRY(pd_calloc(&s->codes, cols + 1, 1, "a row", err));
    }
    return PDVM_OK;
}

static void set_offsets(struct mdcsr *m, const struct row *rows) {
    if (m->index_coding == MDCSR_DENSE) return;
    for (int64_t r = 0; r < m->rows; r++) {
        m->row_offsets[r + 1] = m->row_offsets[r] + rows[r].entries;
        if (m->index_offsets)
            m->index_offsets[r + 1] =
                m->index_offsets[r] +
                (m->index_coding == MDCSR_DELTA8 ? rows[r].delta8 : rows[r].delta4);
    }
}

static pdvm_status encode(struct encoder *e, const struct mdcsr_options *options,
                          struct pd_threads *threads, struct mdcsr_report *report,
                          pdvm_error *err) {
    struct mdcsr *m = e->m;
    int64_t grain = PIECE / m->cols + 1;
    struct totals t = {0};
    PD_TRY(pd_calloc(&e->rows, (size_t)m->rows, sizeof *e->rows, "counts of rows", err));
    pd_threads_for(threads, m->rows, grain, count_rows, e);
    PD_TRY(check_values(e, err));
    for (int64_t r = 0; r < m->rows; r++) {
        t.entries += e->rows[r].entries;
        t.delta8 += e->rows[r].delta8;
        t.delta4 += e->rows[r].delta4;
    }
    bool zero = true;
    if (e->grid) PD_TRY(check_grid(e, &t, options, &zero, err));
    zero |= t.entries == m->rows * m->cols;
    m->index_coding = options->index_auto ? smallest_index(m, &t, zero) : options->index;
    PD_TRY(make_codebook(e, t.entries, threads, err));
    PD_TRY(allocate(e, &t, pd_threads_count(threads), err));
    set_offsets(m, e->rows);
    pd_threads_for(threads, m->rows, grain, fill_rows, e);
    if (m->value_coding == MDCSR_LUT4) join_nibbles(e);
    if (report) {
        *report = (struct mdcsr_report){.n_weights = m->rows * m->cols};
        report->n_zeros = report->n_weights - t.entries;
        report->stored_bytes = stored_bytes(m, m->index_coding, &t);
        for (int64_t r = 0; r < m->rows; r++) {
            report->sum_squares += e->rows[r].squares;
            report->error_squares += e->rows[r].error;
        }
    }
    return PDVM_OK;
}

pdvm_status mdcsr_encode(const float *w, int64_t rows, int64_t cols,
                         const struct mdcsr_options *options, struct pd_threads *threads,
                         struct mdcsr *out, struct mdcsr_report *report, pdvm_error *err) {
    *out = (struct mdcsr){0};
    PD_TRY(check_arguments(rows, cols, options, err));
    struct encoder e = {.w = w, .m = out, .limit = INFINITY};
    if (options->values == MDCSR_F16) e.limit = 65520.0f;     /* rounds to 65536 */
    if (options->values == MDCSR_BF16) e.limit = 0x1.ffp127f; /* rounds to 2^128 */
    uint32_t group = mdcsr_has_scales(options->values) ? options->group : 0;
    *out = (struct mdcsr){.rows = rows,
                          .cols = cols,
                          .value_coding = options->values,
                          .codebook_kind = mdcsr_codebook_size(options->values) ? options->codebook
                                                                                : MDCSR_LINEAR,
                          .group = group,
                          .n_groups = mdcsr_groups(options->values, cols, group),
                          .owned = true};
    if (mdcsr_has_scales(options->values)) e.grid = options->grid;
    pdvm_status status = encode(&e, options, threads, report, err);
    for (int i = 0; e.scratch && i < pd_threads_count(threads); i++) {
        free(e.scratch[i].x);
        free(e.scratch[i].cols);
        free(e.scratch[i].codes);
    }
    free(e.scratch);
    free(e.rows);
    if (status != PDVM_OK) mdcsr_free(out);
    return status;
}
