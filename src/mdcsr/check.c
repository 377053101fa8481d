/*
 * Checking a matrix from a file. Sizes come first, so that the scans after them stay inside their
 * arrays; the scans are written for the vectoriser, because they run over every byte of the index.
 */
#include "mdcsr/layout.h"
#include "mdcsr/mdcsr.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static pdvm_status check_header(const struct mdcsr *m, pdvm_error *err) {
    if (m->rows < 1 || m->rows > MDCSR_MAX_DIM || m->cols < 1 || m->cols > MDCSR_MAX_DIM)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "shape [%" PRId64 ", %" PRId64 "]: each must be in 1..%" PRId64, m->rows,
                       m->cols, MDCSR_MAX_DIM);
    if ((unsigned)m->index_coding >= MDCSR_N_INDEX)
        return pd_fail(err, PDVM_ERR_FORMAT, "index coding %u is unknown",
                       (unsigned)m->index_coding);
    if ((unsigned)m->value_coding >= MDCSR_N_VALUES)
        return pd_fail(err, PDVM_ERR_FORMAT, "value coding %u is unknown",
                       (unsigned)m->value_coding);
    if ((unsigned)m->codebook_kind >= MDCSR_N_CODEBOOKS)
        return pd_fail(err, PDVM_ERR_FORMAT, "codebook kind %u is unknown",
                       (unsigned)m->codebook_kind);
    if (!mdcsr_group_valid(m->group) || (m->group && !mdcsr_has_scales(m->value_coding)))
        return pd_fail(err, PDVM_ERR_FORMAT, "group %" PRIu32 " is not possible for %s values",
                       m->group, mdcsr_values_name(m->value_coding));
    if (m->n_groups != mdcsr_groups(m->value_coding, m->cols, m->group))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%" PRId64 " scales per row: %" PRId64 " columns in groups of %" PRIu32
                       " need %" PRId64,
                       m->n_groups, m->cols, m->group,
                       mdcsr_groups(m->value_coding, m->cols, m->group));
    if (m->n_entries < 0 || m->n_entries > m->rows * m->cols)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%" PRId64 " entries in a matrix of %" PRId64 " positions", m->n_entries,
                       m->rows * m->cols);
    return PDVM_OK;
}

static pdvm_status check_sizes(const struct mdcsr *m, pdvm_error *err) {
    bool dense = m->index_coding == MDCSR_DENSE;
    bool delta = mdcsr_is_delta(m->index_coding);
    if (dense && m->n_entries != m->rows * m->cols)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%" PRId64 " entries in a dense matrix of %" PRId64 " positions",
                       m->n_entries, m->rows * m->cols);
    size_t values = mdcsr_values_bytes(m->value_coding, m->n_entries);
    if (!m->values) return pd_fail(err, PDVM_ERR_FORMAT, "values: missing");
    if (m->values_size != values)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "values: %zu bytes, but %" PRId64 " entries of %s take %zu", m->values_size,
                       m->n_entries, mdcsr_values_name(m->value_coding), values);
    if (dense) {
        if (m->index || m->index_size || m->row_offsets || m->index_offsets)
            return pd_fail(err, PDVM_ERR_FORMAT, "index: a dense matrix has none");
    } else {
        if (!m->row_offsets) return pd_fail(err, PDVM_ERR_FORMAT, "row_offsets: missing");
        if (!m->index) return pd_fail(err, PDVM_ERR_FORMAT, "index: missing");
    }
    size_t bitmap = (size_t)m->rows * mdcsr_bitmap_stride(m->cols);
    if (m->index_coding == MDCSR_BITMAP && m->index_size != bitmap)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "index: %zu bytes, but a bitmap of [%" PRId64 ", %" PRId64 "] takes %zu",
                       m->index_size, m->rows, m->cols, bitmap);
    if (delta != (m->index_offsets != NULL))
        return pd_fail(err, PDVM_ERR_FORMAT, "index_offsets: %s",
                       delta ? "missing" : "only delta codings have them");
    if (mdcsr_has_scales(m->value_coding) != (m->scales != NULL))
        return pd_fail(err, PDVM_ERR_FORMAT, "scales: %s for %s values",
                       m->scales ? "unexpected" : "missing", mdcsr_values_name(m->value_coding));
    return PDVM_OK;
}

/* Offsets [rows + 1] from 0 to `last`, each step at most `most`. */
static pdvm_status check_offsets(const char *what, const int64_t *offsets, int64_t rows,
                                 int64_t last, int64_t most, pdvm_error *err) {
    if (offsets[0] != 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: the first is %" PRId64 ", not 0", what,
                       offsets[0]);
    for (int64_t r = 0; r < rows; r++) {
        if (offsets[r + 1] < offsets[r] || offsets[r + 1] > last)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: row %" PRId64 " goes from %" PRId64 " to %" PRId64 " of %" PRId64,
                           what, r, offsets[r], offsets[r + 1], last);
        if (offsets[r + 1] - offsets[r] > most)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: row %" PRId64 " has %" PRId64 " of at most %" PRId64, what, r,
                           offsets[r + 1] - offsets[r], most);
    }
    if (offsets[rows] != last)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: the last is %" PRId64 ", not %" PRId64, what,
                       offsets[rows], last);
    return PDVM_OK;
}

/* Without the processor's own instruction, which not all have: in parallel (Warren, Hacker's
 * Delight, 5-1), so that the compiler can use vectors. */
static inline uint64_t count_word(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555;
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
    return ((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56;
}

static int64_t count_bits(const uint8_t *p, size_t n) {
    uint64_t count = 0, word = 0;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        count += count_word(word);
    }
    word = 0;
    if (n > 0) memcpy(&word, p, n);
    return (int64_t)(count + count_word(word));
}

static pdvm_status check_bitmap(const struct mdcsr *m, pdvm_error *err) {
    size_t stride = mdcsr_bitmap_stride(m->cols);
    unsigned used = (unsigned)(m->cols % 8);
    for (int64_t r = 0; r < m->rows; r++) {
        const uint8_t *row = m->index + (size_t)r * stride;
        if (used && row[stride - 1] >> used)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "index: row %" PRId64 " has bits behind its last column", r);
        int64_t n = count_bits(row, stride);
        if (n != mdcsr_row_entries(m, r))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "index: row %" PRId64 " has %" PRId64 " bits set, but row_offsets give "
                           "it %" PRId64 " entries",
                           r, n, mdcsr_row_entries(m, r));
    }
    return PDVM_OK;
}

static pdvm_status fail_gaps(int64_t r, const char *what, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_FORMAT, "index: row %" PRId64 " %s", r, what);
}

static pdvm_status check_delta8(const struct mdcsr *m, pdvm_error *err) {
    for (int64_t r = 0; r < m->rows; r++) {
        const uint8_t *p = m->index + m->index_offsets[r];
        int64_t n = m->index_offsets[r + 1] - m->index_offsets[r];
        int64_t skips = 0, sum = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += p[i];
            skips += p[i] == MDCSR_DELTA8_SKIP;
        }
        if (n > 0 && p[n - 1] == MDCSR_DELTA8_SKIP)
            return fail_gaps(r, "ends with a skip instead of an entry", err);
        if (n - skips != mdcsr_row_entries(m, r))
            return fail_gaps(r, "has another number of entries than row_offsets say", err);
        /* The last column is the sum of all gaps and of the entries before it. */
        if (n > 0 && sum + (n - skips - 1) >= m->cols)
            return fail_gaps(r, "has an entry behind its last column", err);
    }
    return PDVM_OK;
}

static pdvm_status check_delta4(const struct mdcsr *m, pdvm_error *err) {
    for (int64_t r = 0; r < m->rows; r++) {
        const uint8_t *p = m->index + m->index_offsets[r];
        int64_t n = m->index_offsets[r + 1] - m->index_offsets[r];
        if (n == 0) {
            if (mdcsr_row_entries(m, r) != 0)
                return fail_gaps(r, "has no gaps, but row_offsets give it entries", err);
            continue;
        }
        int64_t skips = 0, sum = 0, nibbles = 2 * n;
        for (int64_t i = 0; i < n; i++) {
            unsigned low = p[i] & 15u, high = p[i] >> 4;
            sum += low + high;
            skips += (low == MDCSR_DELTA4_SKIP) + (high == MDCSR_DELTA4_SKIP);
        }
        if (p[n - 1] >> 4 == MDCSR_DELTA4_SKIP) { /* the padding, or a skip too many */
            nibbles--;
            skips--;
            sum -= MDCSR_DELTA4_SKIP;
            if ((p[n - 1] & 15u) == MDCSR_DELTA4_SKIP)
                return fail_gaps(r, "ends with a skip instead of an entry", err);
        }
        if (nibbles - skips != mdcsr_row_entries(m, r))
            return fail_gaps(r, "has another number of entries than row_offsets say", err);
        if (sum + (nibbles - skips - 1) >= m->cols)
            return fail_gaps(r, "has an entry behind its last column", err);
    }
    return PDVM_OK;
}

static pdvm_status check_index(const struct mdcsr *m, pdvm_error *err) {
    if (m->index_coding == MDCSR_DENSE) return PDVM_OK;
    PD_TRY(check_offsets("row_offsets", m->row_offsets, m->rows, m->n_entries, m->cols, err));
    if (m->index_coding == MDCSR_BITMAP) return check_bitmap(m, err);
    if (m->index_size > (size_t)m->rows * (size_t)m->cols)
        return pd_fail(err, PDVM_ERR_FORMAT, "index: %zu bytes for %" PRId64 " positions",
                       m->index_size, m->rows * m->cols);
    PD_TRY(check_offsets("index_offsets", m->index_offsets, m->rows, (int64_t)m->index_size,
                         m->cols, err));
    return m->index_coding == MDCSR_DELTA8 ? check_delta8(m, err) : check_delta4(m, err);
}

static pdvm_status check_codebook(const struct mdcsr *m, float *max, pdvm_error *err) {
    int n = mdcsr_codebook_size(m->value_coding);
    *max = m->value_coding == MDCSR_INT8 ? 127.0f : 0.0f;
    for (int i = 0; i < n; i++) {
        float c = m->codebook[i];
        if (!isfinite(c))
            return pd_fail(err, PDVM_ERR_FORMAT, "codebook: entry %d is not finite", i);
        if (m->value_coding == MDCSR_LUT4 && (c < -127 || c > 127 || c != truncf(c)))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "codebook: entry %d is %g, not a whole number in -127..127", i,
                           (double)c);
        if (fabsf(c) > *max) *max = fabsf(c);
    }
    return PDVM_OK;
}

static pdvm_status check_values(const struct mdcsr *m, pdvm_error *err) {
    const uint8_t *v = m->values;
    size_t n = (size_t)m->n_entries;
    size_t bad = 0;
    const char *what = "not finite";
    uint32_t u;
    uint16_t h;
    switch (m->value_coding) {
    case MDCSR_F32:
        for (size_t i = 0; i < n; i++) {
            memcpy(&u, v + 4 * i, sizeof u);
            bad += (u & 0x7f800000u) == 0x7f800000u;
        }
        break;
    case MDCSR_BF16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, v + 2 * i, sizeof h);
            bad += (h & 0x7f80u) == 0x7f80u;
        }
        break;
    case MDCSR_F16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, v + 2 * i, sizeof h);
            bad += (h & 0x7c00u) == 0x7c00u;
        }
        break;
    case MDCSR_INT8:
        /* Kernels rely on |code| <= 127 when they add up integers. */
        if (n > 0 && memchr(v, 0x80, n))
            for (size_t i = 0; i < n; i++) bad += v[i] == 0x80;
        what = "-128, outside -127..127";
        break;
    case MDCSR_LUT4:
        if (n % 2 == 1 && v[n / 2] >> 4)
            return pd_fail(err, PDVM_ERR_FORMAT, "values: the nibble behind the last is not 0");
        break;
    default: break;
    }
    if (bad) return pd_fail(err, PDVM_ERR_FORMAT, "values: %zu of %zu are %s", bad, n, what);
    return PDVM_OK;
}

pdvm_status mdcsr_check(const struct mdcsr *m, pdvm_error *err) {
    float max;
    PD_TRY(check_header(m, err));
    PD_TRY(check_sizes(m, err));
    PD_TRY(check_index(m, err));
    PD_TRY(check_codebook(m, &max, err));
    int64_t n_scales = m->rows * m->n_groups;
    for (int64_t i = 0; i < n_scales; i++) {
        if (!isfinite(m->scales[i] * max))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "scales: number %" PRId64 " of row %" PRId64 " is %g, which gives no "
                           "finite values",
                           i % m->n_groups, i / m->n_groups, (double)m->scales[i]);
    }
    return check_values(m, err);
}
