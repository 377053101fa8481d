/* From the canonical MdCSR rows to tiles of 16 rows and blocks of 64 columns. */
#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

static const enum cpu_kind kinds[MDCSR_N_VALUES] = {
    [MDCSR_F32] = CPU_F32,   [MDCSR_BF16] = CPU_BF16, [MDCSR_F16] = CPU_F16,
    [MDCSR_INT8] = CPU_INT8, [MDCSR_LUT8] = CPU_LUT8, [MDCSR_LUT4] = CPU_LUT4,
};

/* What the packing loops share. */
struct pack {
    const struct mdcsr *m;
    struct cpu_matrix *p;
    size_t entry_size; /* bytes of one unpacked entry */
    uint8_t zero_code; /* what a dense layout stores at a position without an entry */
    uint8_t flip;      /* what the codes are XORed with: makes a signed byte code + 128 */
    int n_workers;
    uint32_t *cols;   /* [n_workers][cols] */
    uint8_t *entries; /* [n_workers][cols * entry_size] of one row */
    uint8_t *tiles;   /* [n_workers][16 * padded cols * entry_size] at their positions */
    int64_t *pairs;   /* [n_tiles][2] LUT4 bitmap: entries in even and odd micro-blocks */
};

static size_t padded_cols(const struct cpu_matrix *p) {
    return (size_t)p->n_blocks * BLOCK_COLS;
}

/* Micro-blocks of a tile. */
static size_t tile_micros(const struct cpu_matrix *p) {
    return (size_t)p->n_blocks * BLOCK_MICROS;
}

/* A code that decodes to exactly 0, or -1: needed to fill the gaps of a dense layout. */
static int zero_code(const struct mdcsr *m) {
    if (m->value_coding != MDCSR_LUT4 && m->value_coding != MDCSR_LUT8) return 0;
    int n = m->value_coding == MDCSR_LUT4 ? 16 : 256;
    for (int i = 0; i < n; i++)
        if (m->codebook[i] == 0.0f) return i;
    return -1;
}

/* Where position 0 of row r is in a tile, counted in positions, and how columns go on from there. */
struct row_places {
    size_t first;
    unsigned shift; /* columns of a micro-block: 1 << shift */
};

static struct row_places row_places(const struct cpu_matrix *p, int r) {
    if (p->streams == 1) return (struct row_places){(size_t)r * 4, 2};
    size_t stream = tile_micros(p) / 4 * 64;
    return (struct row_places){(size_t)(r / 4) * stream + (size_t)(r % 4) * 16, 4};
}

static size_t place(struct row_places p, size_t col) {
    return p.first + (col >> p.shift) * 64 + (col & (((size_t)1 << p.shift) - 1));
}

/* Puts the entries of a tile at their positions, and sets their bits in its masks, if any. */
static void spread_tile(const struct pack *pk, int64_t tile, uint32_t *at, uint8_t *entries,
                        uint64_t *masks, uint8_t *positions) {
    const struct mdcsr *m = pk->m;
    size_t es = pk->entry_size;
    for (int r = 0; r < TILE_ROWS; r++) {
        int64_t row = tile * TILE_ROWS + r;
        if (row >= m->rows) break;
        struct row_places places = row_places(pk->p, r);
        int64_t n = mdcsr_row_entries_raw(m, row, entries);
        bool indexed = m->index_coding != MDCSR_DENSE;
        if (indexed) mdcsr_row_columns(m, row, at);
        for (int64_t i = 0; i < n; i++) {
            size_t k = place(places, indexed ? at[i] : (size_t)i);
            if (es == 1)
                positions[k] = entries[i] ^ pk->flip;
            else
                memcpy(positions + k * es, entries + (size_t)i * es, es);
            if (masks) masks[k / 64] |= (uint64_t)1 << k % 64;
        }
    }
}

/* The stored positions of one micro-block, without gaps; returns their number. */
static size_t compress(uint8_t *dst, const uint8_t *src, uint64_t mask, size_t es) {
    size_t n = 0;
    if (mask == ~(uint64_t)0) {
        memcpy(dst, src, 64 * es);
        return 64;
    }
    for (; mask; mask &= mask - 1, n++) {
        size_t k = (size_t)__builtin_ctzll(mask);
        if (es == 1)
            dst[n] = src[k];
        else
            memcpy(dst + n * es, src + k * es, es);
    }
    return n;
}

static void pack_tile(const struct pack *pk, int64_t tile, int worker) {
    struct cpu_matrix *p = pk->p;
    size_t cols = padded_cols(p), micros = tile_micros(p), es = pk->entry_size;
    uint32_t *at = pk->cols + (size_t)worker * (size_t)pk->m->cols;
    uint8_t *entries = pk->entries + (size_t)worker * (size_t)pk->m->cols * es;
    uint8_t *positions = pk->tiles + (size_t)worker * TILE_ROWS * cols * es;
    uint64_t *masks = p->dense ? NULL : p->masks + (size_t)tile * micros;
    /* Of a bitmap layout only the positions in the masks are read. */
    if (p->dense) memset(positions, pk->zero_code ^ pk->flip, TILE_ROWS * cols * es);
    spread_tile(pk, tile, at, entries, masks, positions);

    uint8_t *out = p->values + p->offsets[tile * p->streams];
    uint8_t *nibbles[2] = {out, out};
    for (size_t i = 0; i < micros; i++) {
        uint64_t mask = masks ? masks[i] : ~(uint64_t)0;
        const uint8_t *src = positions + i * 64 * es;
        if (p->kind == CPU_LUT4) {
            uint8_t codes[64];
            size_t n = compress(codes, src, mask, 1);
            uint8_t **dst = &nibbles[i % 2];
            for (size_t j = 0; j < n; j++)
                (*dst)[j] = (uint8_t)((*dst)[j] | (codes[j] & 15) << 4 * (i % 2));
            *dst += n;
        } else {
            out += compress(out, src, mask, es) * es; /* streams follow one another */
        }
    }
}

static void pack_range(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pack *pk = arg;
    for (int64_t tile = begin; tile < end; tile++) pack_tile(pk, tile, worker);
}

static void count_pairs(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pack *pk = arg;
    uint32_t *at = pk->cols + (size_t)worker * (size_t)pk->m->cols;
    for (int64_t row = begin * TILE_ROWS; row < end * TILE_ROWS && row < pk->m->rows; row++) {
        int64_t n = mdcsr_row_columns(pk->m, row, at), odd = 0;
        for (int64_t i = 0; i < n; i++) odd += at[i] >> 2 & 1;
        pk->pairs[row / TILE_ROWS * 2] += n - odd;
        pk->pairs[row / TILE_ROWS * 2 + 1] += odd;
    }
}

/* Bytes of values of stream s of a tile. */
static uint64_t stream_bytes(const struct pack *pk, int64_t tile, int s) {
    const struct cpu_matrix *p = pk->p;
    if (pk->pairs) {
        const int64_t *n = pk->pairs + tile * 2;
        return (uint64_t)(n[0] > n[1] ? n[0] : n[1]);
    }
    uint64_t n = tile_micros(p) / (size_t)p->streams * 64;
    if (p->dense) return p->kind == CPU_LUT4 ? n / 2 : n * pk->entry_size;
    n = 0;
    int rows = TILE_ROWS / p->streams;
    for (int r = 0; r < rows; r++) {
        int64_t row = tile * TILE_ROWS + s * rows + r;
        if (row < pk->m->rows) n += (uint64_t)mdcsr_row_entries(pk->m, row);
    }
    return n * pk->entry_size;
}

static void pack_scales(const struct mdcsr *m, struct cpu_matrix *p) {
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t g = 0; g < m->n_groups; g++)
            p->scales[((r / TILE_ROWS) * p->n_groups + g) * TILE_ROWS + r % TILE_ROWS] =
                m->scales[r * m->n_groups + g];
}

static bool choose_dense(const struct mdcsr *m, int64_t n_blocks, size_t entry_size) {
    if (m->index_coding == MDCSR_DENSE) return true;
    if (zero_code(m) < 0) return false;
    double bits = m->value_coding == MDCSR_LUT4 ? 4 : 8.0 * (double)entry_size;
    double positions = (double)m->rows * (double)n_blocks * BLOCK_COLS;
    return bits * positions <= bits * (double)m->n_entries + positions;
}

static pdvm_status allocate(struct pack *pk, struct pd_threads *threads, pdvm_error *err) {
    const struct mdcsr *m = pk->m;
    struct cpu_matrix *p = pk->p;
    size_t es = pk->entry_size, n_tiles = (size_t)p->n_tiles, streams = (size_t)p->streams;
    size_t workers = (size_t)pk->n_workers, cols = (size_t)m->cols;
    PD_TRY(pd_calloc(&pk->cols, workers * cols, sizeof *pk->cols, "packing", err));
    PD_TRY(pd_calloc(&pk->entries, workers * cols, es, "packing", err));
    PD_TRY(pd_calloc(&pk->tiles, workers * TILE_ROWS * padded_cols(p), es, "packing", err));
    if (p->kind == CPU_LUT4 && !p->dense) {
        PD_TRY(pd_calloc(&pk->pairs, n_tiles, 2 * sizeof *pk->pairs, "packing", err));
        pd_threads_for(threads, p->n_tiles, 16, count_pairs, pk);
    }
    PD_TRY(pd_calloc(&p->offsets, n_tiles * streams + 1, sizeof *p->offsets, "tile offsets", err));
    for (size_t i = 0; i < n_tiles * streams; i++)
        p->offsets[i + 1] =
            p->offsets[i] + stream_bytes(pk, (int64_t)(i / streams), (int)(i % streams));
    size_t size = (size_t)p->offsets[n_tiles * streams];
    PD_TRY(pd_alloc_aligned(&p->values, size, "packed weights", err));
    memset(p->values, 0, size + 64); /* kernels may load, never use, 64 bytes behind the end */
    if (!p->dense) {
        size_t n = n_tiles * tile_micros(p) * sizeof *p->masks;
        PD_TRY(pd_alloc_aligned(&p->masks, n, "packed masks", err));
        pd_zero(p->masks, n); /* a few rows of an almost empty matrix cost a few pages */
    }
    if (m->scales) {
        size_t n = n_tiles * (size_t)p->n_groups * TILE_ROWS * sizeof *p->scales;
        PD_TRY(pd_alloc_aligned(&p->scales, n, "packed scales", err));
        memset(p->scales, 0, n);
    }
    return PDVM_OK;
}

pdvm_status cpu_matrix_pack(const struct mdcsr *m, struct pd_threads *threads,
                            struct cpu_matrix **out, pdvm_error *err) {
    struct cpu_matrix *p;
    *out = NULL;
    PD_TRY(pd_alloc_aligned(&p, sizeof *p, "a packed matrix", err));
    memset(p, 0, sizeof *p);
    p->rows = m->rows;
    p->cols = m->cols;
    p->n_tiles = (m->rows + TILE_ROWS - 1) / TILE_ROWS;
    p->n_blocks = (m->cols + BLOCK_COLS - 1) / BLOCK_COLS;
    p->kind = kinds[m->value_coding];
    p->streams = cpu_kind_is_integer(p->kind) ? 1 : 4;
    p->group = m->group;
    if (m->group)
        p->n_groups = (p->n_blocks * BLOCK_COLS + m->group - 1) / m->group;
    else
        p->n_groups = 1;
    size_t entry_size = mdcsr_entry_size(m->value_coding);
    p->dense = choose_dense(m, p->n_blocks, entry_size);
    memcpy(p->table, m->codebook, sizeof p->table);
    if (p->kind == CPU_LUT4)
        for (int i = 0; i < 64; i++) p->table4[i] = (int8_t)m->codebook[i % 16];

    int zero = zero_code(m);
    struct pack pk = {.m = m,
                      .p = p,
                      .entry_size = entry_size,
                      .zero_code = (uint8_t)(zero < 0 ? 0 : zero),
                      .flip = p->kind == CPU_INT8 ? 0x80 : 0,
                      .n_workers = pd_threads_count(threads)};
    pdvm_status status = allocate(&pk, threads, err);
    if (status == PDVM_OK) {
        if (m->scales) pack_scales(m, p);
        pd_threads_for(threads, p->n_tiles, 16, pack_range, &pk);
    }
    free(pk.cols);
    free(pk.entries);
    free(pk.tiles);
    free(pk.pairs);
    if (status != PDVM_OK) {
        cpu_matrix_free(p);
        return status;
    }
    *out = p;
    return PDVM_OK;
}

void cpu_matrix_free(struct cpu_matrix *m) {
    if (!m) return;
    free(m->masks);
    free(m->values);
    free(m->offsets);
    free(m->scales);
    free(m);
}

size_t cpu_matrix_bytes_before(const struct cpu_matrix *m, int64_t tile) {
    size_t t = (size_t)tile;
    size_t bytes = (size_t)m->offsets[tile * m->streams];
    if (m->masks) bytes += t * tile_micros(m) * sizeof *m->masks;
    if (m->scales) bytes += t * (size_t)m->n_groups * TILE_ROWS * sizeof *m->scales;
    return bytes;
}

size_t cpu_matrix_bytes(const struct cpu_matrix *m) {
    return cpu_matrix_bytes_before(m, m->n_tiles);
}
