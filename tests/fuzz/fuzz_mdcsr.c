// Fuzz target: a matrix with arrays of any contents in allocations of their exact sizes. What
// mdcsr_check accepts must decode without a step outside of them, and what it stands for must
// survive being encoded again. Inputs with the first bit set are values to encode instead.

#include "mdcsr/layout.h"
#include "mdcsr/mdcsr.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The input, followed by zeros without end. */
struct input {
    const uint8_t *p;
    size_t n;
};

static uint8_t byte(struct input *in) {
    if (in->n == 0) return 0;
    in->n--;
    return *in->p++;
}

static uint16_t half(struct input *in) {
    uint16_t low = byte(in);
    return (uint16_t)(low | byte(in) << 8);
}

static void *bytes(struct input *in, size_t n) {
    uint8_t *p = malloc(n ? n : 1);
    for (size_t i = 0; p && i < n; i++) p[i] = byte(in);
    return p;
}

static float number(struct input *in) {
    uint8_t kind = byte(in);
    if (kind < 0xfe) return (float)(int8_t)kind / 16;
    uint32_t u = half(in);
    u = u << 16 | half(in);
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Sizes follow from the rest, or are off by a little: then the check has to notice. */
static size_t size_near(size_t right, uint8_t how) {
    return how < 240 ? right : right + (size_t)how - 248;
}

/* Offsets from gaps of one byte each, or (rarely) anything. */
static int64_t *offsets(struct input *in, int64_t rows, bool wild) {
    int64_t *o = calloc((size_t)rows + 1, sizeof *o);
    for (int64_t r = 0; o && r <= rows; r++) {
        if (wild)
            o[r] = (int64_t)(int16_t)half(in);
        else if (r > 0)
            o[r] = o[r - 1] + byte(in);
    }
    return o;
}

static bool make(struct input *in, struct mdcsr *m) {
    *m = (struct mdcsr){.owned = true};
    uint8_t shape = byte(in), codings = byte(in), group = byte(in), wild = byte(in);
    m->rows = 1 + shape % 7;
    m->cols = 1 + half(in) % (shape & 0x80 ? 700 : 40);
    m->index_coding = (enum mdcsr_index)(codings % 4);
    m->value_coding = (enum mdcsr_values)(codings / 4 % 6);
    m->codebook_kind = (enum mdcsr_codebook)(codings / 24 % 4);
    m->group = group % 8 == 0 ? 32 : group % 8 == 1 ? 64 : group % 8 == 2 ? 7 : 0;
    m->n_groups = mdcsr_groups(m->value_coding, m->cols, m->group);
    bool dense = m->index_coding == MDCSR_DENSE;
    m->n_entries = m->rows * m->cols;
    if (!dense || (wild & 1)) {
        m->row_offsets = offsets(in, m->rows, wild & 2);
        if (!m->row_offsets) return false;
        m->n_entries = m->row_offsets[m->rows];
    }
    if (m->n_entries < 0 || m->n_entries > 10000) return false;
    m->values_size = size_near(mdcsr_values_bytes(m->value_coding, m->n_entries), byte(in));
    if (!dense || (wild & 4)) {
        size_t right = (size_t)m->rows * mdcsr_bitmap_stride(m->cols);
        if (mdcsr_is_delta(m->index_coding)) {
            m->index_offsets = offsets(in, m->rows, wild & 8);
            if (!m->index_offsets) return false;
            right = (size_t)m->index_offsets[m->rows] & 0xffff;
        }
        m->index_size = size_near(right, byte(in));
    }
    if (m->values_size > 100000 || m->index_size > 100000) return false;
    if (!dense || (wild & 4)) m->index = bytes(in, m->index_size);
    if (m->n_groups > 0) {
        m->scales = calloc((size_t)(m->rows * m->n_groups), sizeof *m->scales);
        for (int64_t i = 0; m->scales && i < m->rows * m->n_groups; i++) m->scales[i] = number(in);
    }
    for (int i = 0; i < mdcsr_codebook_size(m->value_coding); i++)
        m->codebook[i] = wild & 16 ? number(in) : (float)(int8_t)byte(in);
    m->values = bytes(in, m->values_size);
    return m->values != NULL;
}

/* Decodes everything; the values go to out[rows, cols]. */
static void decode(const struct mdcsr *m, float *out) {
    int64_t total = 0;
    for (int64_t r = 0; r < m->rows; r++) {
        int64_t n = mdcsr_row_entries(m, r);
        uint32_t *cols = malloc((size_t)n * sizeof *cols + (n == 0));
        uint8_t *raw = malloc((size_t)n * mdcsr_entry_size(m->value_coding) + (n == 0));
        if (cols && raw) {
            if (mdcsr_row_columns(m, r, cols) != n || mdcsr_row_entries_raw(m, r, raw) != n)
                abort();
            for (int64_t i = 0; i < n; i++)
                if (cols[i] >= m->cols || (i > 0 && cols[i] <= cols[i - 1])) abort();
        }
        free(cols);
        free(raw);
        mdcsr_decode_row(m, r, out + r * m->cols);
        for (int64_t c = 0; c < m->cols; c++)
            if (!isfinite(out[r * m->cols + c])) abort();
        total += n;
    }
    if (total != m->n_entries) abort();
}

/* Encodes w and wants it back: exactly as F32, and with its zeros in every coding. */
static void encode(const float *w, int64_t rows, int64_t cols, struct mdcsr_options options) {
    struct mdcsr m;
    struct mdcsr_report report;
    pdvm_error err;
    if (mdcsr_encode(w, rows, cols, &options, NULL, &m, &report, &err) != PDVM_OK) return;
    if (mdcsr_check(&m, &err) != PDVM_OK) abort();
    float *out = malloc((size_t)(rows * cols) * sizeof *out);
    if (out) {
        decode(&m, out);
        for (int64_t i = 0; i < rows * cols; i++) {
            if (w[i] == 0 && out[i] != 0) abort();
            if (options.values == MDCSR_F32 && out[i] != w[i]) abort();
        }
    }
    free(out);
    mdcsr_free(&m);
}

static struct mdcsr_options choose(struct input *in) {
    static const uint32_t groups[] = {0, 32, 64, 128, 256};
    uint8_t codings = byte(in), more = byte(in);
    return (struct mdcsr_options){.values = (enum mdcsr_values)(codings % 6),
                                  .codebook = (enum mdcsr_codebook)(codings / 6 % 3),
                                  .index = (enum mdcsr_index)(more % 4),
                                  .index_auto = more & 0x80,
                                  .group = groups[more / 4 % 5]};
}

static void encode_input(struct input *in) {
    struct mdcsr_options options = choose(in);
    int64_t rows = 1 + byte(in) % 6, cols = 1 + half(in) % 700;
    float *w = malloc((size_t)(rows * cols) * sizeof *w);
    for (int64_t i = 0; w && i < rows * cols; i++) w[i] = number(in);
    if (w) encode(w, rows, cols, options);
    free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    struct mdcsr m;
    pdvm_error err;
    if (byte(&in) & 1) {
        encode_input(&in);
        return 0;
    }
    if (make(&in, &m)) {
        if (mdcsr_check(&m, &err) == PDVM_OK) {
            float *out = malloc((size_t)(m.rows * m.cols) * sizeof *out);
            if (out) {
                decode(&m, out);
                /* In the coding that is exact: it is also the quick one. */
                encode(out, m.rows, m.cols,
                       (struct mdcsr_options){.values = MDCSR_F32, .index = m.index_coding});
            }
            free(out);
        } else if (err.message[0] == 0) {
            abort();
        }
    }
    mdcsr_free(&m);
    return 0;
}
