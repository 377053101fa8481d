/* From the canonical MdCSR rows to tiles of 4 rows and blocks of 64 columns. */
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
    int n_workers;
    uint32_t *cols;   /* [n_workers][cols] */
    uint8_t *entries; /* [n_workers][4][cols_padded * entry_size] */
};

static size_t padded_cols(const struct cpu_matrix *p) {
    return (size_t)p->n_blocks * BLOCK_COLS;
}

/* A code that decodes to exactly 0, or -1: needed to fill the gaps of a dense layout. */
static int zero_code(const struct mdcsr *m) {
    if (m->value_coding != MDCSR_LUT4 && m->value_coding != MDCSR_LUT8) return 0;
    int n = m->value_coding == MDCSR_LUT4 ? 16 : 256;
    for (int i = 0; i < n; i++)
        if (m->codebook[i] == 0.0f) return i;
    return -1;
}

/* Bytes of values of a tile, given the entries of its rows. */
static uint64_t tile_bytes(enum cpu_kind kind, size_t entry_size, const int64_t n[TILE_ROWS]) {
    if (kind == CPU_LUT4) {
        uint64_t low = (uint64_t)(n[0] + n[1]);
        uint64_t high = (uint64_t)(n[2] + n[3]);
        return low > high ? low : high;
    }
    return (uint64_t)(n[0] + n[1] + n[2] + n[3]) * entry_size;
}

/* Nibble k of the low (rows 0, 1) or high (rows 2, 3) stream of a tile. */
static void put_nibbles(uint8_t *dst, const uint8_t *codes, size_t n, bool high) {
    if (high)
        for (size_t i = 0; i < n; i++) dst[i] = (uint8_t)(dst[i] | codes[i] << 4);
    else
        for (size_t i = 0; i < n; i++) dst[i] = (uint8_t)(dst[i] | (codes[i] & 15));
}

static void pack_tile(const struct pack *pk, int64_t tile, int worker) {
    const struct mdcsr *m = pk->m;
    struct cpu_matrix *p = pk->p;
    size_t cols = padded_cols(p), es = pk->entry_size;
    uint32_t *at = pk->cols + (size_t)worker * (size_t)m->cols;
    uint8_t *entries = pk->entries + (size_t)worker * TILE_ROWS * cols * es;
    uint64_t *masks = p->dense ? NULL : p->masks + tile * p->n_blocks * TILE_ROWS;
    size_t next[TILE_ROWS] = {0};

    memset(entries, p->dense ? pk->zero_code : 0, TILE_ROWS * cols * es);
    for (int r = 0; r < TILE_ROWS; r++) {
        int64_t row = tile * TILE_ROWS + r;
        if (row >= m->rows) continue;
        uint8_t *dst = entries + (size_t)r * cols * es;
        int64_t n = mdcsr_row_entries_raw(m, row, dst);
        if (m->index_coding == MDCSR_DENSE) continue;
        mdcsr_row_columns(m, row, at);
        if (masks) {
            for (int64_t i = 0; i < n; i++)
                masks[(at[i] / 64) * TILE_ROWS + (unsigned)r] |= (uint64_t)1 << (at[i] % 64);
        } else {
            /* Spread in place: from the end, because columns never lie before their entries. */
            for (int64_t i = n - 1; i >= 0; i--) {
                uint8_t entry[4];
                memcpy(entry, dst + (size_t)i * es, es);
                memset(dst + (size_t)i * es, pk->zero_code, es);
                memcpy(dst + at[i] * es, entry, es);
            }
            memset(dst + (size_t)m->cols * es, pk->zero_code, (cols - (size_t)m->cols) * es);
        }
    }

    uint8_t *out = p->values + p->offsets[tile];
    size_t low = 0, high = 0;
    for (int64_t block = 0; block < p->n_blocks; block++) {
        for (int r = 0; r < TILE_ROWS; r++) {
            size_t n = masks ? (size_t)__builtin_popcountll(masks[block * TILE_ROWS + r]) : 64;
            const uint8_t *src = entries + ((size_t)r * cols + next[r]) * es;
            next[r] += n;
            if (p->kind == CPU_LUT4) {
                size_t *pos = r < 2 ? &low : &high;
                put_nibbles(out + *pos, src, n, r >= 2);
                *pos += n;
            } else {
                memcpy(out + low, src, n * es);
                low += n * es;
            }
        }
    }
}

static void pack_range(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pack *pk = arg;
    for (int64_t tile = begin; tile < end; tile++) pack_tile(pk, tile, worker);
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

static pdvm_status allocate(struct pack *pk, pdvm_error *err) {
    const struct mdcsr *m = pk->m;
    struct cpu_matrix *p = pk->p;
    size_t es = pk->entry_size, n_tiles = (size_t)p->n_tiles;
    PD_TRY(pd_calloc(&p->offsets, n_tiles + 1, sizeof *p->offsets, "tile offsets", err));
    for (int64_t tile = 0; tile < p->n_tiles; tile++) {
        int64_t n[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++) {
            int64_t row = tile * TILE_ROWS + r;
            n[r] = p->dense ? p->n_blocks * BLOCK_COLS
                            : (row < m->rows ? mdcsr_row_entries(m, row) : 0);
        }
        p->offsets[tile + 1] = p->offsets[tile] + tile_bytes(p->kind, es, n);
    }
    size_t size = (size_t)p->offsets[p->n_tiles];
    PD_TRY(pd_alloc_aligned(&p->values, size, "packed weights", err));
    memset(p->values, 0, size + 64); /* kernels may load, never use, 64 bytes behind the end */
    if (!p->dense) {
        size_t n = n_tiles * (size_t)p->n_blocks * TILE_ROWS * sizeof *p->masks;
        PD_TRY(pd_alloc_aligned(&p->masks, n, "packed masks", err));
        pd_zero(p->masks, n); /* a few rows of an almost empty matrix cost a few pages */
    }
    if (m->scales) {
        size_t n = n_tiles * (size_t)p->n_groups * TILE_ROWS * sizeof *p->scales;
        PD_TRY(pd_alloc_aligned(&p->scales, n, "packed scales", err));
        memset(p->scales, 0, n);
    }
    size_t workers = (size_t)pk->n_workers;
    PD_TRY(pd_calloc(&pk->cols, workers * (size_t)m->cols, sizeof *pk->cols, "packing", err));
    return pd_calloc(&pk->entries, workers * TILE_ROWS * padded_cols(p), es, "packing", err);
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
                      .n_workers = pd_threads_count(threads)};
    pdvm_status status = allocate(&pk, err);
    if (status == PDVM_OK) {
        if (m->scales) pack_scales(m, p);
        pd_threads_for(threads, p->n_tiles, 64, pack_range, &pk);
    }
    free(pk.cols);
    free(pk.entries);
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
    size_t bytes = (size_t)m->offsets[tile];
    if (m->masks) bytes += t * (size_t)m->n_blocks * TILE_ROWS * sizeof *m->masks;
    if (m->scales) bytes += t * (size_t)m->n_groups * TILE_ROWS * sizeof *m->scales;
    return bytes;
}

size_t cpu_matrix_bytes(const struct cpu_matrix *m) {
    return cpu_matrix_bytes_before(m, m->n_tiles);
}
