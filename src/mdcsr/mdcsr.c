#include "mdcsr/mdcsr.h"

#include "base/half.h"
#include "base/threads.h"
#include "mdcsr/layout.h"

#include <stdlib.h>
#include <string.h>

static const char *const index_names[MDCSR_N_INDEX] = {"dense", "bitmap", "delta8", "delta4"};
static const char *const values_names[MDCSR_N_VALUES] = {"f32",  "bf16", "f16",
                                                         "int8", "lut8", "lut4"};
static const char *const codebook_names[MDCSR_N_CODEBOOKS] = {"linear", "prime", "learned"};

static const char *name_of(const char *const *names, unsigned n, unsigned i) {
    return i < n ? names[i] : NULL;
}

static bool parse(const char *const *names, unsigned n, const char *name, unsigned *out) {
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

const char *mdcsr_index_name(enum mdcsr_index i) {
    return name_of(index_names, MDCSR_N_INDEX, (unsigned)i);
}

const char *mdcsr_values_name(enum mdcsr_values v) {
    return name_of(values_names, MDCSR_N_VALUES, (unsigned)v);
}

const char *mdcsr_codebook_name(enum mdcsr_codebook c) {
    return name_of(codebook_names, MDCSR_N_CODEBOOKS, (unsigned)c);
}

bool mdcsr_index_parse(const char *name, enum mdcsr_index *out) {
    unsigned i;
    if (!parse(index_names, MDCSR_N_INDEX, name, &i)) return false;
    *out = (enum mdcsr_index)i;
    return true;
}

bool mdcsr_values_parse(const char *name, enum mdcsr_values *out) {
    unsigned i;
    if (!parse(values_names, MDCSR_N_VALUES, name, &i)) return false;
    *out = (enum mdcsr_values)i;
    return true;
}

bool mdcsr_codebook_parse(const char *name, enum mdcsr_codebook *out) {
    unsigned i;
    if (!parse(codebook_names, MDCSR_N_CODEBOOKS, name, &i)) return false;
    *out = (enum mdcsr_codebook)i;
    return true;
}

void mdcsr_free(struct mdcsr *m) {
    if (m->owned) {
        free((void *)m->values);
        free((void *)m->index);
    }
    free(m->row_offsets);
    free(m->index_offsets);
    free(m->scales);
    *m = (struct mdcsr){0};
}

int64_t mdcsr_row_entries(const struct mdcsr *m, int64_t r) {
    return m->index_coding == MDCSR_DENSE ? m->cols : m->row_offsets[r + 1] - m->row_offsets[r];
}

static int64_t row_begin(const struct mdcsr *m, int64_t r) {
    return m->index_coding == MDCSR_DENSE ? r * m->cols : m->row_offsets[r];
}

/*
 * The columns of a row, one after the other. A walk knows how many entries the row has and never
 * asks for more, so it needs no other end.
 */
struct walk {
    enum mdcsr_index coding;
    const uint8_t *p; /* next index byte */
    uint64_t word;    /* bitmap: bits of the current byte group not yet taken */
    int64_t base;     /* bitmap: column of the current group; else: next column */
    size_t left;      /* bitmap: bytes of the row after the current group */
    bool high;        /* delta4: the high nibble of *p is next */
};

static void walk_load(struct walk *k) {
    size_t n = k->left < 8 ? k->left : 8;
    k->word = 0;
    for (size_t i = 0; i < n; i++) k->word |= (uint64_t)k->p[i] << (8 * i);
    k->p += n;
    k->left -= n;
}

static void walk_start(struct walk *k, const struct mdcsr *m, int64_t r) {
    *k = (struct walk){.coding = m->index_coding};
    if (m->index_coding == MDCSR_BITMAP) {
        k->left = mdcsr_bitmap_stride(m->cols);
        k->p = m->index + (size_t)r * k->left;
        walk_load(k);
    } else if (mdcsr_is_delta(m->index_coding)) {
        k->p = m->index + m->index_offsets[r];
    }
}

static inline int64_t walk_next(struct walk *k) {
    int64_t c;
    unsigned gap;
    switch (k->coding) {
    case MDCSR_BITMAP:
        while (k->word == 0) {
            walk_load(k);
            k->base += 64;
        }
        c = k->base + __builtin_ctzll(k->word);
        k->word &= k->word - 1;
        return c;
    case MDCSR_DELTA8:
        while ((gap = *k->p++) == MDCSR_DELTA8_SKIP) k->base += MDCSR_DELTA8_SKIP;
        break;
    case MDCSR_DELTA4:
        do {
            gap = k->high ? *k->p++ >> 4 : *k->p & 15u;
            k->high = !k->high;
            if (gap == MDCSR_DELTA4_SKIP) k->base += MDCSR_DELTA4_SKIP;
        } while (gap == MDCSR_DELTA4_SKIP);
        break;
    default: gap = 0;
    }
    c = k->base + gap;
    k->base = c + 1;
    return c;
}

int64_t mdcsr_row_columns(const struct mdcsr *m, int64_t r, uint32_t *cols) {
    int64_t n = mdcsr_row_entries(m, r);
    struct walk k;
    walk_start(&k, m, r);
    for (int64_t i = 0; i < n; i++) cols[i] = (uint32_t)walk_next(&k);
    return n;
}

static inline uint64_t load_word(const uint8_t *p) {
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) word |= (uint64_t)p[i] << (8 * i);
    return word;
}

static void bitmap_mask(const struct mdcsr *m, int64_t r, uint64_t *mask) {
    size_t stride = mdcsr_bitmap_stride(m->cols), left = stride % 8;
    const uint8_t *p = m->index + (size_t)r * stride;
    for (size_t i = 0; i < stride / 8; i++, p += 8) *mask++ = load_word(p);
    if (left == 0) return;
    *mask = 0;
    for (size_t i = 0; i < left; i++) *mask |= (uint64_t)p[i] << (8 * i);
}

/* Without branches: gaps are random. A skip sets no bit, but has an address: one word behind the
 * last at most, for the padding of delta4. */
static inline int64_t mask_gap(uint64_t *mask, int64_t at, unsigned gap, unsigned skip) {
    uint64_t entry = gap != skip;
    at += gap;
    mask[at >> 6] |= entry << (at & 63);
    return at + (int64_t)entry;
}

void mdcsr_row_mask(const struct mdcsr *m, int64_t r, uint64_t *mask) {
    size_t words = ((size_t)m->cols + 63) / 64;
    if (m->index_coding == MDCSR_BITMAP) {
        bitmap_mask(m, r, mask);
        return;
    }
    if (m->index_coding == MDCSR_DENSE) {
        memset(mask, 0xff, words * sizeof *mask);
        if (m->cols % 64) mask[words - 1] = ((uint64_t)1 << m->cols % 64) - 1;
        return;
    }
    memset(mask, 0, words * sizeof *mask);
    const uint8_t *p = m->index + m->index_offsets[r], *end = m->index + m->index_offsets[r + 1];
    int64_t at = 0;
    if (m->index_coding == MDCSR_DELTA8) {
        for (; p < end; p++) at = mask_gap(mask, at, *p, MDCSR_DELTA8_SKIP);
    } else {
        for (; p < end; p++) {
            at = mask_gap(mask, at, *p & 15u, MDCSR_DELTA4_SKIP);
            at = mask_gap(mask, at, *p >> 4, MDCSR_DELTA4_SKIP);
        }
    }
}

size_t mdcsr_entry_size(enum mdcsr_values values) {
    return values == MDCSR_F32 ? 4 : values == MDCSR_BF16 || values == MDCSR_F16 ? 2 : 1;
}

static inline uint8_t nibble(const uint8_t *values, int64_t k) {
    return (uint8_t)((values[k >> 1] >> (4 * (k & 1))) & 15);
}

int64_t mdcsr_row_entries_raw(const struct mdcsr *m, int64_t r, void *out) {
    int64_t n = mdcsr_row_entries(m, r);
    int64_t begin = row_begin(m, r);
    if (m->value_coding == MDCSR_LUT4) {
        uint8_t *codes = out;
        for (int64_t i = 0; i < n; i++) codes[i] = nibble(m->values, begin + i);
    } else if (n > 0) {
        size_t size = mdcsr_entry_size(m->value_coding);
        memcpy(out, m->values + (size_t)begin * size, (size_t)n * size);
    }
    return n;
}

/* The stored entry k without its scale. Values may be unaligned. */
static inline float entry_value(const struct mdcsr *m, int64_t k) {
    uint32_t u;
    uint16_t h;
    switch (m->value_coding) {
    case MDCSR_F32: memcpy(&u, m->values + 4 * k, sizeof u); return pd_bits_float(u);
    case MDCSR_BF16: memcpy(&h, m->values + 2 * k, sizeof h); return pd_bf16_to_float(h);
    case MDCSR_F16: memcpy(&h, m->values + 2 * k, sizeof h); return pd_f16_to_float(h);
    case MDCSR_INT8: return (float)(int8_t)m->values[k];
    case MDCSR_LUT8: return m->codebook[m->values[k]];
    default: return m->codebook[nibble(m->values, k)];
    }
}

void mdcsr_decode_row(const struct mdcsr *m, int64_t r, float *out) {
    int64_t n = mdcsr_row_entries(m, r);
    int64_t begin = row_begin(m, r);
    bool dense = m->index_coding == MDCSR_DENSE;
    struct walk k;
    if (!dense) {
        memset(out, 0, (size_t)m->cols * sizeof *out);
        walk_start(&k, m, r);
    }
    if (!mdcsr_has_scales(m->value_coding)) {
        for (int64_t i = 0; i < n; i++) out[dense ? i : walk_next(&k)] = entry_value(m, begin + i);
        return;
    }
    const float *scales = m->scales + r * m->n_groups;
    int shift = m->group ? __builtin_ctz(m->group) : 63;
    for (int64_t i = 0; i < n; i++) {
        int64_t c = dense ? i : walk_next(&k);
        out[c] = scales[c >> shift] * entry_value(m, begin + i);
    }
}

struct decoding {
    const struct mdcsr *m;
    float *out;
};

static void decode_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct decoding *d = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) mdcsr_decode_row(d->m, r, d->out + r * d->m->cols);
}

void mdcsr_decode(const struct mdcsr *m, struct pd_threads *threads, float *out) {
    struct decoding d = {m, out};
    pd_threads_for(threads, m->rows, ((int64_t)1 << 18) / m->cols + 1, decode_rows, &d);
}
