/* From the canonical MdCSR rows to tiles of 16 rows and blocks of 64 columns. */
#include "backend/cpu/pack.h"
#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/checked.h"
#include "mdcsr/layout.h"

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
    struct pd_arena *arena; /* NULL: none */
    const struct cpu_packer *packer;
    bool sell;         /* it may be chosen */
    size_t entry_size; /* bytes of one unpacked entry */
    uint8_t zero_code; /* what a dense layout stores at a position without an entry */
    uint8_t flip;      /* what the codes are XORed with: makes a signed byte code + 128 */
    struct pack_worker *workers;
    int n_workers;
    int64_t *pairs;  /* [n_tiles][2] LUT4 bitmap: entries in even and odd micro-blocks */
    int64_t *fours;  /* [n_tiles] what SELL would take */
    uint32_t *steps; /* [n_tiles][n_groups] */
};

/* A worker's buffers, each with the slack that packers need. */
struct pack_worker {
    uint64_t *masks;  /* [16][n_blocks + 1] of the tile's rows */
    uint8_t *entries; /* [cols * entry_size] of one row */
    uint8_t *rows;    /* [16][padded cols * entry_size] entries at their columns */
    uint8_t *values;  /* [16 * padded cols * entry_size] integer kinds: the packed tile */
    uint8_t *odd;     /* LUT4: codes of odd micro-blocks */
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

static const struct cpu_packer *best_packer(void) {
#ifdef PDVM_HAVE_AVX512
    if (cpu_kernels_avx512.supported()) return &cpu_packer_avx512;
#endif
    return &cpu_packer_scalar;
}

static size_t mask_stride(const struct cpu_matrix *p) {
    return (size_t)p->n_blocks + 1;
}

/* ---- a tile's rows --------------------------------------------------------------------- */

/* Row r's entries from the file, nibbles as bytes. */
static const uint8_t *read_entries(const struct pack *pk, int64_t row, uint8_t *buffer) {
    const struct mdcsr *m = pk->m;
    if (m->value_coding != MDCSR_LUT4) {
        mdcsr_row_entries_raw(m, row, buffer);
        return buffer;
    }
    int64_t n = mdcsr_row_entries(m, row);
    int64_t first = m->index_coding == MDCSR_DENSE ? row * m->cols : m->row_offsets[row];
    size_t skip = (size_t)(first % 2), bytes = (skip + (size_t)n + 1) / 2;
    uint8_t *nibbles = buffer + (size_t)m->cols + 128; /* see allocate_workers */
    memcpy(nibbles, m->values + first / 2, bytes);
    pk->packer->unpack_nibbles(nibbles, bytes, buffer);
    return buffer + skip;
}

/* Puts entries of any size at their columns. */
static void spread_entries(const uint8_t *entries, const uint64_t *masks, size_t n, size_t es,
                           uint8_t *out) {
    for (size_t i = 0; i < n; i++, out += 64 * es) {
        if (masks[i] == ~(uint64_t)0) {
            memcpy(out, entries, 64 * es);
            entries += 64 * es;
            continue;
        }
        memset(out, 0, 64 * es);
        for (uint64_t mask = masks[i]; mask; mask &= mask - 1, entries += es)
            memcpy(out + (size_t)__builtin_ctzll(mask) * es, entries, es);
    }
}

/* Fills the worker's masks and rows with those of a tile; returns its number of entries. */
static int64_t read_tile(const struct pack *pk, int64_t tile, struct pack_worker *w) {
    const struct cpu_matrix *p = pk->p;
    size_t es = pk->entry_size, n = (size_t)p->n_blocks, bytes = padded_cols(p) * es;
    int64_t total = 0;
    for (int r = 0; r < TILE_ROWS; r++) {
        int64_t row = tile * TILE_ROWS + r;
        uint64_t *masks = w->masks + (size_t)r * mask_stride(p);
        uint8_t *out = w->rows + (size_t)r * bytes;
        if (row >= pk->m->rows) {
            memset(masks, 0, n * sizeof *masks);
            memset(out, pk->zero_code, bytes);
            continue;
        }
        mdcsr_row_mask(pk->m, row, masks);
        total += mdcsr_row_entries(pk->m, row);
        const uint8_t *entries = read_entries(pk, row, w->entries);
        if (es == 1)
            pk->packer->spread(entries, masks, n, pk->zero_code, out);
        else
            spread_entries(entries, masks, n, es, out);
    }
    return total;
}

/* ---- micro-blocks of integer kinds: 16 rows x 4 columns -------------------------------- */

/* Nibble j of a[i] becomes nibble i of a[j], by swapping halves, quarters, ... of the square. */
static void transpose_nibbles(uint64_t a[16]) {
    static const uint64_t low[] = {0x0f0f0f0f0f0f0f0f, 0x00ff00ff00ff00ff, 0x0000ffff0000ffff,
                                   0x00000000ffffffff};
    for (int level = 3; level >= 0; level--) {
        int step = 1 << level;
        for (int i = 0; i < 16; i++) {
            if (i & step) continue;
            uint64_t t = ((a[i] >> (4 * step)) ^ a[i + step]) & low[level];
            a[i + step] ^= t;
            a[i] ^= t << (4 * step);
        }
    }
}

/* Leaves the tile's codes in values, or, of LUT4, those of odd micro-blocks in odd. */
static void squeeze_tile(const struct pack *pk, int64_t tile, struct pack_worker *w,
                         size_t size[2]) {
    const struct cpu_matrix *p = pk->p;
    size_t stride = padded_cols(p);
    uint64_t *tile_masks = cpu_stream_masks(p, tile);
    uint8_t *out[2] = {w->values, w->odd};
    for (size_t b = 0; b < (size_t)p->n_blocks; b++) {
        uint64_t masks[TILE_ROWS];
        if (p->dense) {
            memset(masks, 0xff, sizeof masks);
        } else {
            for (size_t r = 0; r < TILE_ROWS; r++) masks[r] = w->masks[r * mask_stride(p) + b];
            transpose_nibbles(masks);
            memcpy(tile_masks + b * BLOCK_MICROS, masks, sizeof masks);
        }
        pk->packer->squeeze(w->rows + b * BLOCK_COLS, stride, masks, pk->flip, p->kind == CPU_LUT4,
                            out);
    }
    size[0] = (size_t)(out[0] - w->values);
    size[1] = p->kind == CPU_LUT4 ? (size_t)(out[1] - w->odd) : 0;
}

static void pack_integers(const struct pack *pk, int64_t tile, struct pack_worker *w) {
    size_t size[2];
    squeeze_tile(pk, tile, w, size);
    if (size[1] > size[0]) memset(w->values + size[0], 0, size[1] - size[0]);
    pk->packer->join_nibbles(w->values, w->odd, size[1]);
    memcpy(cpu_stream_values(pk->p, tile), w->values, size[0] > size[1] ? size[0] : size[1]);
}

/* ---- SELL ------------------------------------------------------------------------------- */

/* The fours of each row of a tile in a block; returns the most of a row: the steps. */
static int block_fours(const struct pack *pk, const struct pack_worker *w, size_t block,
                       int fours[TILE_ROWS]) {
    int most = 0;
    for (size_t r = 0; r < TILE_ROWS; r++) {
        fours[r] = (__builtin_popcountll(w->masks[r * mask_stride(pk->p) + block]) + 3) / 4;
        if (fours[r] > most) most = fours[r];
    }
    return most;
}

static int64_t group_blocks(const struct cpu_matrix *p) {
    return p->group ? p->group / BLOCK_COLS : p->n_blocks;
}

static void count_steps(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pack *pk = arg;
    const struct cpu_matrix *p = pk->p;
    struct pack_worker *w = &pk->workers[worker];
    for (int64_t tile = begin; tile < end; tile++) {
        for (int r = 0; r < TILE_ROWS; r++) {
            uint64_t *masks = w->masks + (size_t)r * mask_stride(p);
            if (tile * TILE_ROWS + r < pk->m->rows)
                mdcsr_row_mask(pk->m, tile * TILE_ROWS + r, masks);
            else
                memset(masks, 0, (size_t)p->n_blocks * sizeof *masks);
        }
        for (int64_t b = 0; b < p->n_blocks; b++) {
            int fours[TILE_ROWS];
            int64_t g = b / group_blocks(p);
            pk->steps[tile * p->n_groups + g] += (uint32_t)block_fours(pk, w, (size_t)b, fours);
            for (int r = 0; r < TILE_ROWS; r++) pk->fours[tile] += fours[r];
        }
    }
}

/* Four tiles at a time have equally many steps. Returns how many there are in all. */
static int64_t even_steps(struct pack *pk) {
    const struct cpu_matrix *p = pk->p;
    int64_t total = 0;
    for (int64_t team = 0; team < p->n_tiles; team += STREAM_TEAM) {
        int64_t end = team + STREAM_TEAM < p->n_tiles ? team + STREAM_TEAM : p->n_tiles;
        for (int64_t g = 0; g < p->n_groups; g++) {
            uint32_t most = 0;
            for (int64_t t = team; t < end; t++)
                if (pk->steps[t * p->n_groups + g] > most) most = pk->steps[t * p->n_groups + g];
            for (int64_t t = team; t < end; t++) pk->steps[t * p->n_groups + g] = most;
            total += most * (end - team);
        }
    }
    return total;
}

/*
 * Whether SELL is faster than a bitmap, counting processor cycles: a step takes 7.5 of them and a
 * micro-block 3 to expand, 4 of LUT4 codes; memory delivers about 8 bytes in one. SELL needs more
 * memory than LUT4, 1.4 times as much at 90 % zeros.
 */
static pdvm_status choose_sell(struct pack *pk, struct pd_threads *threads, pdvm_error *err) {
    struct cpu_matrix *p = pk->p;
    const double positions = (double)p->n_tiles * (double)p->n_blocks * TILE_ROWS * BLOCK_COLS;
    const double entries = (double)pk->m->n_entries;
    const bool lut4 = p->kind == CPU_LUT4;
    if (!pk->sell || !cpu_kind_is_integer(p->kind) || p->dense || p->cols > SELL_MAX_COLS ||
        p->group % BLOCK_COLS != 0 || entries > 0.25 * positions)
        return PDVM_OK;
    size_t n = (size_t)p->n_tiles;
    PD_TRY(pd_calloc(&pk->fours, n, sizeof *pk->fours, "packing", err));
    PD_TRY(pd_calloc(&pk->steps, n * (size_t)p->n_groups, sizeof *pk->steps, "packing", err));
    pd_threads_for(threads, p->n_tiles, 16, count_steps, pk);
    const double steps = (double)even_steps(pk), micros = positions / 64;
    double bytes = 4 * steps;
    for (size_t i = 0; i < n; i++) bytes += 8 * (double)pk->fours[i];
    const double read = (positions + entries * (lut4 ? 4 : 8)) / 64,
                 expand = micros * (lut4 ? 4 : 3);
    const double sell = bytes / 8 > 7.5 * steps ? bytes / 8 : 7.5 * steps;
    if (sell < (read > expand ? read : expand)) p->kind = CPU_SELL;
    return PDVM_OK;
}

/* A block's entries as packers gather them. */
struct gathered {
    uint8_t cols[TILE_ROWS][BLOCK_COLS], values[TILE_ROWS][BLOCK_COLS];
};

static void gather_block(const struct pack *pk, const struct pack_worker *w, size_t block,
                         struct gathered *out) {
    const struct cpu_matrix *p = pk->p;
    const int8_t *table = pk->m->value_coding == MDCSR_LUT4 ? p->table4 : NULL;
    for (size_t r = 0; r < TILE_ROWS; r++)
        pk->packer->gather(w->rows + r * padded_cols(p) + block * BLOCK_COLS,
                           w->masks[r * mask_stride(p) + block], table, out->cols[r],
                           out->values[r]);
}

/* One step of a block: four k of each row that has it. */
static uint8_t *pack_step(const struct gathered *in, const int fours[TILE_ROWS], int k,
                          uint16_t skip, uint8_t *out) {
    struct cpu_step_head head = {0, skip};
    uint8_t cols[4 * TILE_ROWS], values[4 * TILE_ROWS];
    size_t n = 0;
    for (int r = 0; r < TILE_ROWS; r++) { /* no branches: nobody could predict them */
        const bool has = fours[r] > k;
        memcpy(cols + n, in->cols[r] + 4 * k, 4);
        memcpy(values + n, in->values[r] + 4 * k, 4);
        head.rows |= (uint16_t)(has << r);
        n += has ? 4 : 0;
    }
    memcpy(out, &head, sizeof head);
    memcpy(out + sizeof head, cols, n);
    memcpy(out + sizeof head + n, values, n);
    return out + sizeof head + 2 * n;
}

static void pack_sell(const struct pack *pk, int64_t tile, const struct pack_worker *w) {
    const struct cpu_matrix *p = pk->p;
    const uint32_t *steps = pk->steps + tile * p->n_groups;
    uint8_t *out = cpu_stream_values(p, tile);
    int64_t last = 0;
    for (int64_t g = 0; g < p->n_groups; g++) {
        int64_t begin = g * group_blocks(p), end = begin + group_blocks(p);
        uint32_t n = 0;
        for (int64_t b = begin; b < end && b < p->n_blocks; b++) {
            int fours[TILE_ROWS];
            struct gathered in;
            int most = block_fours(pk, w, (size_t)b, fours);
            gather_block(pk, w, (size_t)b, &in);
            for (int k = 0; k < most; k++, n++) {
                out = pack_step(&in, fours, k, (uint16_t)(b - last), out);
                last = b;
            }
        }
        out += (steps[g] - n) * sizeof(struct cpu_step_head); /* zero: steps of no row */
    }
}

/* ---- micro-blocks of the others: 4 rows x 16 columns ----------------------------------- */

static uint8_t *pack_floats_micro(const struct pack *pk, const struct pack_worker *w, size_t row,
                                  size_t col, uint64_t *mask_out, uint8_t *out) {
    const struct cpu_matrix *p = pk->p;
    size_t es = pk->entry_size, stride = padded_cols(p) * es;
    uint64_t all = 0;
    for (size_t r = 0; r < 4; r++) {
        const uint8_t *src = w->rows + (row + r) * stride + col * es;
        uint64_t mask = w->masks[(row + r) * mask_stride(p) + col / 64] >> col % 64 & 0xffff;
        all |= mask << 16 * r;
        if (p->dense || mask == 0xffff) {
            memcpy(out, src, 16 * es);
            out += 16 * es;
            continue;
        }
        for (; mask; mask &= mask - 1, out += es)
            memcpy(out, src + (size_t)__builtin_ctzll(mask) * es, es);
    }
    if (!p->dense) *mask_out = all;
    return out;
}

static void pack_floats(const struct pack *pk, const struct pack_worker *w, int64_t tile) {
    const struct cpu_matrix *p = pk->p;
    size_t micros = (size_t)cpu_stream_micros(p);
    for (int s = 0; s < p->streams; s++) {
        int64_t stream = tile * p->streams + s;
        uint64_t *masks = cpu_stream_masks(p, stream);
        uint8_t *out = cpu_stream_values(p, stream);
        for (size_t i = 0; i < micros; i++)
            out = pack_floats_micro(pk, w, 4 * (size_t)s, 16 * i, masks ? masks + i : NULL, out);
    }
}

/* ---- tiles ----------------------------------------------------------------------------- */

/* Scales of groups are bfloat16 numbers in files; others would change on packing. */
static pdvm_status check_group_scales(const struct mdcsr *m, pdvm_error *err) {
    for (int64_t i = 0; i < m->rows * m->n_groups; i++)
        if (pd_float_bits(m->scales[i]) & 0xffff)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "a group's scale is no bfloat16 number");
    return PDVM_OK;
}

/* Those of padding stay zero, as the array was. */
static void pack_scales(const struct mdcsr *m, struct cpu_matrix *p, int64_t tile) {
    const float *in = m->scales + tile * TILE_ROWS * m->n_groups;
    int64_t rows = m->rows - tile * TILE_ROWS;
    if (rows > TILE_ROWS) rows = TILE_ROWS;
    if (!m->group) {
        memcpy(cpu_tile_scales(p, tile), in, (size_t)rows * sizeof *in);
        return;
    }
    uint16_t *out = cpu_tile_group_scales(p, tile);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < m->n_groups; g++)
            out[g * TILE_ROWS + r] = (uint16_t)(pd_float_bits(in[r * m->n_groups + g]) >> 16);
}

static void pack_tile(const struct pack *pk, int64_t tile, struct pack_worker *w) {
    const struct cpu_matrix *p = pk->p;
    if (pk->m->scales) pack_scales(pk->m, pk->p, tile);
    /* Its masks stay untouched: a few rows of an almost empty matrix cost a few pages. */
    if (read_tile(pk, tile, w) == 0 && !p->dense) return;
    if (p->kind == CPU_SELL)
        pack_sell(pk, tile, w);
    else if (cpu_kind_is_integer(p->kind))
        pack_integers(pk, tile, w);
    else
        pack_floats(pk, w, tile);
}

static void pack_range(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pack *pk = arg;
    for (int64_t tile = begin; tile < end; tile++) pack_tile(pk, tile, &pk->workers[worker]);
}

/* ---- sizes ----------------------------------------------------------------------------- */

static void count_pairs(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pack *pk = arg;
    uint64_t *masks = pk->workers[worker].masks;
    for (int64_t row = begin * TILE_ROWS; row < end * TILE_ROWS && row < pk->m->rows; row++) {
        int64_t even = 0;
        mdcsr_row_mask(pk->m, row, masks);
        for (int64_t i = 0; i < pk->p->n_blocks; i++)
            even += __builtin_popcountll(masks[i] & 0x0f0f0f0f0f0f0f0f);
        pk->pairs[row / TILE_ROWS * 2] += even;
        pk->pairs[row / TILE_ROWS * 2 + 1] += mdcsr_row_entries(pk->m, row) - even;
    }
}

/* Bytes of values of stream s of a tile. */
static uint64_t stream_bytes(const struct pack *pk, int64_t tile, int s) {
    const struct cpu_matrix *p = pk->p;
    if (p->kind == CPU_SELL) {
        uint64_t bytes = 8 * (uint64_t)pk->fours[tile];
        for (int64_t g = 0; g < p->n_groups; g++)
            bytes += pk->steps[tile * p->n_groups + g] * sizeof(struct cpu_step_head);
        return bytes;
    }
    if (pk->pairs) {
        const int64_t *n = pk->pairs + tile * 2;
        return (uint64_t)(n[0] > n[1] ? n[0] : n[1]);
    }
    uint64_t n = (uint64_t)cpu_stream_micros(p) * 64;
    if (p->dense) return p->kind == CPU_LUT4 ? n / 2 : n * pk->entry_size;
    n = 0;
    int rows = TILE_ROWS / p->streams;
    for (int r = 0; r < rows; r++) {
        int64_t row = tile * TILE_ROWS + s * rows + r;
        if (row < pk->m->rows) n += (uint64_t)mdcsr_row_entries(pk->m, row);
    }
    return n * pk->entry_size;
}

uint64_t cpu_matrix_place_streams(struct cpu_matrix *m) {
    int64_t n = m->n_tiles * m->streams;
    uint64_t size = 0;
    memset(m->bytes, 0, ((size_t)m->n_tiles + 1) * sizeof *m->bytes);
    for (int64_t line = 0; line < STREAM_TEAM; line++) {
        for (int64_t i = line; i < n; i += STREAM_TEAM) {
            uint64_t bytes = m->offsets[i];
            m->offsets[i] = size;
            m->bytes[i / m->streams + 1] += bytes;
            size += bytes;
        }
    }
    for (int64_t i = 0; i < m->n_tiles; i++) m->bytes[i + 1] += m->bytes[i];
    return size;
}

/*
 * Dense if that is smaller, or if the kernels expand bitmaps slower than memory delivers the dense
 * codes: AVX2 does 4 G positions/s where dense int8 runs at the speed of memory.
 */
static bool choose_dense(const struct mdcsr *m, int64_t n_blocks, size_t entry_size,
                         bool fast_sparse) {
    if (m->index_coding == MDCSR_DENSE) return true;
    if (zero_code(m) < 0) return false;
    bool integer = m->value_coding == MDCSR_INT8 || m->value_coding == MDCSR_LUT4;
    if (integer && !fast_sparse) return true;
    double bits = m->value_coding == MDCSR_LUT4 ? 4 : 8.0 * (double)entry_size;
    double positions = (double)m->rows * (double)n_blocks * BLOCK_COLS;
    return bits * positions <= bits * (double)m->n_entries + positions;
}

/* More than the packers' 64 bytes, and pd_alloc_aligned adds to it. */
#define SLACK 128

static pdvm_status allocate_workers(struct pack *pk, pdvm_error *err) {
    const struct cpu_matrix *p = pk->p;
    size_t row = padded_cols(p) * pk->entry_size, n = (size_t)pk->n_workers;
    size_t entries = row + SLACK;
    if (p->kind == CPU_LUT4) entries += row / 2 + SLACK; /* the bytes they are in, too */
    PD_TRY(pd_calloc(&pk->workers, n, sizeof *pk->workers, "packing", err));
    for (size_t i = 0; i < n; i++) {
        struct pack_worker *w = &pk->workers[i];
        PD_TRY(pd_alloc_aligned(&w->masks, TILE_ROWS * mask_stride(p) * sizeof *w->masks, "packing",
                                err));
        PD_TRY(pd_alloc_aligned(&w->entries, entries, "packing", err));
        PD_TRY(pd_alloc_aligned(&w->rows, TILE_ROWS * row, "packing", err));
        PD_TRY(pd_alloc_aligned(&w->values, TILE_ROWS * row, "packing", err));
        if (p->kind == CPU_LUT4)
            PD_TRY(pd_alloc_aligned(&w->odd, TILE_ROWS / 2 * row, "packing", err));
    }
    return PDVM_OK;
}

static void free_workers(struct pack *pk) {
    for (int i = 0; pk->workers && i < pk->n_workers; i++) {
        struct pack_worker *w = &pk->workers[i];
        free(w->masks);
        free(w->entries);
        free(w->rows);
        free(w->values);
        free(w->odd);
    }
    free(pk->workers);
}

/* Zeroed memory of the packed matrix. */
static pdvm_status allocate_array(const struct pack *pk, void *out, size_t size, const char *what,
                                  pdvm_error *err) {
    if (pk->arena) return pd_arena_alloc(pk->arena, size, out, what, err);
    void *p;
    PD_TRY(pd_alloc_aligned(&p, size, what, err));
    pd_zero(p, size + 64);
    memcpy(out, &p, sizeof p);
    return PDVM_OK;
}

static pdvm_status allocate(struct pack *pk, struct pd_threads *threads, pdvm_error *err) {
    struct cpu_matrix *p = pk->p;
    size_t n_tiles = (size_t)p->n_tiles, streams = (size_t)p->streams;
    PD_TRY(allocate_workers(pk, err));
    PD_TRY(choose_sell(pk, threads, err));
    if (p->kind == CPU_LUT4 && !p->dense) {
        PD_TRY(pd_calloc(&pk->pairs, n_tiles, 2 * sizeof *pk->pairs, "packing", err));
        pd_threads_for(threads, p->n_tiles, 16, count_pairs, pk);
    }
    PD_TRY(allocate_array(pk, &p->offsets, n_tiles * streams * sizeof *p->offsets, "tile offsets",
                          err));
    PD_TRY(allocate_array(pk, &p->bytes, (n_tiles + 1) * sizeof *p->bytes, "tile sizes", err));
    for (size_t i = 0; i < n_tiles * streams; i++)
        p->offsets[i] = stream_bytes(pk, (int64_t)(i / streams), (int)(i % streams));
    size_t size = (size_t)cpu_matrix_place_streams(p);
    PD_TRY(allocate_array(pk, &p->values, size, "packed weights", err));
    if (p->kind == CPU_SELL) {
        size_t teams = (n_tiles + STREAM_TEAM - 1) / STREAM_TEAM, n = (size_t)p->n_groups;
        PD_TRY(allocate_array(pk, &p->steps, teams * n * sizeof *p->steps, "step counts", err));
        for (size_t i = 0; i < teams; i++)
            memcpy(p->steps + i * n, pk->steps + i * STREAM_TEAM * n, n * sizeof *p->steps);
    } else if (!p->dense)
        PD_TRY(allocate_array(pk, &p->masks,
                              n_tiles * (size_t)p->n_blocks * BLOCK_MICROS * sizeof *p->masks,
                              "packed masks", err));
    if (p->group) {
        PD_TRY(check_group_scales(pk->m, err));
        PD_TRY(allocate_array(pk, &p->group_scales, n_tiles * cpu_tile_scales_bytes(p),
                              "packed scales", err));
    } else if (pk->m->scales)
        PD_TRY(allocate_array(pk, &p->scales, n_tiles * cpu_tile_scales_bytes(p), "packed scales",
                              err));
    return PDVM_OK;
}

void cpu_matrix_init(struct cpu_matrix *m, int64_t rows, int64_t cols, enum mdcsr_values values,
                     uint32_t group) {
    m->rows = rows;
    m->cols = cols;
    m->n_tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    m->n_blocks = (cols + BLOCK_COLS - 1) / BLOCK_COLS;
    m->values_coding = values;
    m->kind = kinds[values];
    m->streams = cpu_kind_is_integer(m->kind) ? 1 : 4;
    m->group = group;
    m->n_groups = group ? (m->n_blocks * BLOCK_COLS + group - 1) / group : 1;
}

/* Whole steps from a whole number of half steps on: 0, 2, 4, ... or 1, 3, 5, ... among them. */
static void find_linear4(struct cpu_matrix *m) {
    const int8_t *t = m->table4;
    int step = t[1] - t[0], unit = step;
    memset(&m->linear4, 0, sizeof m->linear4);
    for (int i = 1; i < 15; i++)
        if (t[i + 1] - t[i] != step) return;
    if (step <= 0) return;
    if (t[0] % unit != 0 && unit % 2 == 0) unit /= 2;
    int zero = -t[0] / unit;
    if (t[0] % unit != 0 || zero < 0) return;
    m->linear4.factor = (uint8_t)unit;
    m->linear4.shift = unit != step;
    m->linear4.zero = (uint8_t)zero;
}

void cpu_matrix_set_table(struct cpu_matrix *m, const float *codebook) {
    memcpy(m->table, codebook, sizeof m->table);
    if (m->kind == CPU_LUT4)
        for (int i = 0; i < 64; i++) {
            float c = codebook[i % 16]; /* of a file, perhaps, and not checked yet */
            m->table4[i] = c >= -127 && c <= 127 ? (int8_t)c : 0;
        }
    if (m->kind == CPU_LUT4) find_linear4(m);
}

pdvm_status cpu_matrix_pack(const struct mdcsr *m, struct pd_threads *threads,
                            struct cpu_matrix **out, pdvm_error *err) {
    return cpu_matrix_pack_into(NULL, m, true, threads, out, err);
}

pdvm_status cpu_matrix_pack_into(struct pd_arena *arena, const struct mdcsr *m, bool fast_sparse,
                                 struct pd_threads *threads, struct cpu_matrix **out,
                                 pdvm_error *err) {
    struct cpu_matrix *p;
    *out = NULL;
    PD_TRY(pd_alloc_aligned(&p, sizeof *p, "a packed matrix", err));
    memset(p, 0, sizeof *p);
    p->owned = arena == NULL;
    cpu_matrix_init(p, m->rows, m->cols, m->value_coding, m->group);
    cpu_matrix_set_table(p, m->codebook);
    p->n_entries = m->n_entries;
    size_t entry_size = mdcsr_entry_size(m->value_coding);
    p->dense = choose_dense(m, p->n_blocks, entry_size, fast_sparse);

    int zero = zero_code(m);
    struct pack pk = {.m = m,
                      .p = p,
                      .arena = arena,
                      .sell = fast_sparse,
                      .packer = best_packer(),
                      .entry_size = entry_size,
                      .zero_code = (uint8_t)(zero < 0 ? 0 : zero),
                      .flip = p->kind == CPU_INT8 ? 0x80 : 0,
                      .n_workers = pd_threads_count(threads)};
    pdvm_status status = allocate(&pk, threads, err);
    if (status == PDVM_OK) pd_threads_for(threads, p->n_tiles, 4, pack_range, &pk);
    free_workers(&pk);
    free(pk.pairs);
    free(pk.fours);
    free(pk.steps);
    if (status != PDVM_OK) {
        cpu_matrix_free(p);
        return status;
    }
    *out = p;
    return PDVM_OK;
}

void cpu_matrix_free(struct cpu_matrix *m) {
    if (!m) return;
    if (m->owned) {
        free(m->masks);
        free(m->values);
        free(m->offsets);
        free(m->bytes);
        free(m->steps);
        free(m->scales);
        free(m->group_scales);
    }
    free(m);
}

size_t cpu_tile_scales_bytes(const struct cpu_matrix *m) {
    if (m->group) return (size_t)m->n_groups * TILE_ROWS * sizeof *m->group_scales;
    return mdcsr_has_scales(m->values_coding) ? TILE_ROWS * sizeof *m->scales : 0;
}

size_t cpu_matrix_bytes_before(const struct cpu_matrix *m, int64_t tile) {
    size_t t = (size_t)tile;
    size_t bytes = (size_t)m->bytes[tile];
    if (m->masks) bytes += t * (size_t)m->n_blocks * BLOCK_MICROS * sizeof *m->masks;
    if (m->steps) bytes += t / STREAM_TEAM * (size_t)m->n_groups * sizeof *m->steps;
    return bytes + t * cpu_tile_scales_bytes(m);
}

size_t cpu_matrix_bytes(const struct cpu_matrix *m) {
    return cpu_matrix_bytes_before(m, m->n_tiles);
}
