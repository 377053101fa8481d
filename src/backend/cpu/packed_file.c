/*
 * Packed matrices in a safetensors file: one U8 tensor each, with the arrays at multiples of 128
 * bytes: table, scales, masks, values, and 128 bytes more that kernels may read. What the arrays
 * mean stands in the metadata under the matrix's name:
 *
 *     VALUES bitmap|dense ROWS COLS GROUP ENTRIES BYTES-OF-VALUES CHECKSUM
 *
 * The file may have been damaged or made up. Where streams begin is therefore not in it but follows
 * from the masks, so that no kernel can be led out of the values.
 */
#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/checked.h"
#include "base/hash.h"
#include "io/safetensors.h"
#include "mdcsr/layout.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 128
#define TABLE_ENTRIES 256
/* Stands for a matrix that is packed from its entries each time. */
#define NOT_KEPT "not kept"
/* Each such piece of the tensor has a hash, and the checksum is that of the hashes. */
#define PIECE ((size_t)1 << 20)

/* Where the arrays of a matrix are in its tensor. */
struct places {
    size_t scales, masks, values, end;
    size_t scales_size, masks_size, values_size;
};

static size_t padded(size_t size) {
    return pd_round_up(size, ALIGNMENT);
}

/* Rows and columns are at most MDCSR_MAX_DIM: nothing overflows. */
static struct places find_places(const struct cpu_matrix *m, uint64_t values_size) {
    size_t tiles = (size_t)m->n_tiles;
    bool table = mdcsr_codebook_size(m->values_coding) > 0;
    struct places p = {.scales = table ? TABLE_ENTRIES * sizeof(float) : 0,
                       .scales_size = tiles * cpu_tile_scales_bytes(m),
                       .values_size = (size_t)values_size};
    if (!m->dense) p.masks_size = tiles * (size_t)m->n_blocks * BLOCK_MICROS * sizeof(uint64_t);
    p.masks = p.scales + padded(p.scales_size);
    p.values = p.masks + padded(p.masks_size);
    p.end = p.values + padded(p.values_size) + ALIGNMENT;
    return p;
}

/* ---- the checksum ---------------------------------------------------------------------- */

struct summing {
    const uint8_t *data;
    size_t size;
    uint64_t *hashes;
};

static void sum_range(void *arg, int64_t begin, int64_t end, int worker) {
    const struct summing *s = arg;
    (void)worker;
    for (size_t i = (size_t)begin; i < (size_t)end; i++) {
        size_t left = s->size - i * PIECE;
        s->hashes[i] =
            pd_hash_large(PD_HASH_INIT, s->data + i * PIECE, left < PIECE ? left : PIECE);
    }
}

static pdvm_status checksum(const uint8_t *data, size_t size, struct pd_threads *threads,
                            uint64_t *out, pdvm_error *err) {
    struct summing s = {.data = data, .size = size};
    size_t n = (size + PIECE - 1) / PIECE;
    PD_TRY(pd_calloc(&s.hashes, n, sizeof *s.hashes, "a checksum", err));
    pd_threads_for(threads, (int64_t)n, 1, sum_range, &s);
    *out = pd_hash(PD_HASH_INIT, s.hashes, n * sizeof *s.hashes);
    free(s.hashes);
    return PDVM_OK;
}

/* ---- writing --------------------------------------------------------------------------- */

pdvm_status cpu_matrix_save(const struct cpu_matrix *m, struct pd_threads *threads,
                            const char *name, struct safetensors_writer *file, pdvm_error *err) {
    /* Few entries are packed faster than a file's steps could be proved to stay inside. */
    if (m->kind == CPU_SELL) return safetensors_writer_metadata(file, name, NOT_KEPT, err);
    struct places at = find_places(m, m->bytes[m->n_tiles]);
    uint64_t sum;
    uint8_t *image;
    int64_t size = (int64_t)at.end;
    PD_TRY(pd_calloc(&image, at.end, 1, "a packed matrix", err));
    if (at.scales) memcpy(image, m->table, TABLE_ENTRIES * sizeof(float));
    const void *scales = m->group ? (const void *)m->group_scales : m->scales;
    if (at.scales_size) memcpy(image + at.scales, scales, at.scales_size);
    if (at.masks_size) memcpy(image + at.masks, m->masks, at.masks_size);
    memcpy(image + at.values, m->values, at.values_size);
    pdvm_status status = checksum(image, at.end, threads, &sum, err);
    if (status == PDVM_OK) {
        char facts[256];
        snprintf(facts, sizeof facts,
                 "%s %s %" PRId64 " %" PRId64 " %" PRIu32 " %" PRId64 " %zu %016" PRIx64,
                 mdcsr_values_name(m->values_coding), m->dense ? "dense" : "bitmap", m->rows,
                 m->cols, m->group, m->n_entries, at.values_size, sum);
        status = safetensors_writer_metadata(file, name, facts, err);
    }
    if (status == PDVM_OK)
        status =
            safetensors_writer_tensor(file, name, SAFETENSORS_U8, &size, 1, image, at.end, err);
    free(image);
    return status;
}

/* ---- reading --------------------------------------------------------------------------- */

struct facts {
    char values[16];
    char index[16];
    int64_t rows, cols, n_entries;
    uint32_t group;
    uint64_t values_size, sum;
};

static pdvm_status fail(const struct safetensors *file, const char *name, const char *what,
                        pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: matrix \"%.200s\": %s", safetensors_path(file), name,
                   what);
}

static bool parse_facts(const char *text, struct facts *f) {
    int end = -1;
    /* NOLINTNEXTLINE(cert-err34-c): the widths keep every number in its type's range */
    int n = sscanf(text,
                   "%15[a-z0-9] %15[a-z] %9" SCNd64 " %9" SCNd64 " %9" SCNu32 " %18" SCNd64
                   " %18" SCNu64 " %16" SCNx64 "%n",
                   f->values, f->index, &f->rows, &f->cols, &f->group, &f->n_entries,
                   &f->values_size, &f->sum, &end);
    return n == 8 && end >= 0 && text[end] == '\0';
}

/* Fills what the metadata tell of the matrix; all numbers are checked. */
static bool apply_facts(const struct facts *f, int64_t rows, int64_t cols, struct cpu_matrix *m) {
    enum mdcsr_values values;
    if (rows < 1 || rows > MDCSR_MAX_DIM || cols < 1 || cols > MDCSR_MAX_DIM) return false;
    if (f->rows != rows || f->cols != cols || !mdcsr_values_parse(f->values, &values)) return false;
    if (!mdcsr_group_valid(f->group) || (f->group && !mdcsr_has_scales(values))) return false;
    if (f->n_entries < 0 || f->n_entries > rows * cols) return false;
    m->dense = strcmp(f->index, "dense") == 0;
    if (!m->dense && strcmp(f->index, "bitmap") != 0) return false;
    cpu_matrix_init(m, rows, cols, values, f->group);
    m->n_entries = f->n_entries;
    return f->values_size <= (uint64_t)rows * (uint64_t)cols * 4 + (1u << 20) * (uint64_t)cols;
}

static uint64_t count_bits(const uint64_t *masks, int64_t n, int64_t step) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; i += step) bits += (uint64_t)__builtin_popcountll(masks[i]);
    return bits;
}

/* Bytes of values that the masks of a stream ask for. */
static uint64_t stream_size(const struct cpu_matrix *m, int64_t stream) {
    int64_t n = cpu_stream_micros(m);
    size_t entry = mdcsr_entry_size(m->values_coding);
    if (m->dense) return m->kind == CPU_LUT4 ? (uint64_t)n * 32 : (uint64_t)n * 64 * entry;
    const uint64_t *masks = cpu_stream_masks(m, stream);
    if (m->kind != CPU_LUT4) return count_bits(masks, n, 1) * entry;
    uint64_t even = count_bits(masks, n, 2), odd = count_bits(masks + 1, n - 1, 2);
    return even > odd ? even : odd;
}

static void size_range(void *arg, int64_t begin, int64_t end, int worker) {
    struct cpu_matrix *m = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) m->offsets[i] = stream_size(m, i);
}

static bool numbers_are_sound(const struct cpu_matrix *m, const struct places *at) {
    int n = mdcsr_codebook_size(m->values_coding);
    for (int i = 0; i < n; i++) {
        float c = m->table[i];
        if (!isfinite(c)) return false;
        if (m->kind == CPU_LUT4 && (c < -127 || c > 127 || c != truncf(c))) return false;
    }
    for (size_t i = 0; m->group && i < at->scales_size / sizeof *m->group_scales; i++)
        if (!isfinite(pd_bf16_to_float(m->group_scales[i]))) return false;
    for (size_t i = 0; !m->group && i < at->scales_size / sizeof *m->scales; i++)
        if (!isfinite(m->scales[i])) return false;
    /* Codes are at least -127, and stored with 128 added. */
    return m->kind != CPU_INT8 || at->values_size == 0 || !memchr(m->values, 0, at->values_size);
}

/* Points the matrix to the tensor's arrays, and makes sure that kernels stay inside them. */
static pdvm_status use_tensor(const struct safetensors *file, const struct safetensors_tensor *t,
                              const struct facts *f, struct pd_threads *threads,
                              struct pd_arena *arena, struct cpu_matrix *m, pdvm_error *err) {
    struct places at = find_places(m, f->values_size);
    size_t n = (size_t)m->n_tiles * (size_t)m->streams;
    uint64_t sum;
    float codebook[TABLE_ENTRIES] = {0};
    if (t->dtype != SAFETENSORS_U8 || t->size != at.end)
        return fail(file, t->name, "its size is not what its shape asks for", err);
    if ((uintptr_t)t->data % ALIGNMENT != 0)
        return fail(file, t->name, "it is not at a multiple of 128 bytes", err);
    PD_TRY(checksum(t->data, t->size, threads, &sum, err));
    if (sum != f->sum) return fail(file, t->name, "the checksum is wrong", err);
    uint8_t *data = (uint8_t *)(uintptr_t)t->data; /* only read, as the map is */
    if (at.scales) memcpy(codebook, data, sizeof codebook);
    cpu_matrix_set_table(m, codebook);
    if (at.scales_size && m->group) m->group_scales = (uint16_t *)(void *)(data + at.scales);
    if (at.scales_size && !m->group) m->scales = (float *)(void *)(data + at.scales);
    if (at.masks_size) m->masks = (uint64_t *)(void *)(data + at.masks);
    m->values = data + at.values;
    if (!numbers_are_sound(m, &at)) return fail(file, t->name, "a number is out of range", err);
    PD_TRY(pd_arena_alloc(arena, n * sizeof *m->offsets, &m->offsets, "tile offsets", err));
    PD_TRY(pd_arena_alloc(arena, ((size_t)m->n_tiles + 1) * sizeof *m->bytes, &m->bytes,
                          "tile sizes", err));
    pd_threads_for(threads, (int64_t)n, 16, size_range, m);
    if (cpu_matrix_place_streams(m) != f->values_size)
        return fail(file, t->name, "masks and values do not fit together", err);
    return PDVM_OK;
}

pdvm_status cpu_matrix_map(const struct safetensors *file, const char *name, int64_t rows,
                           int64_t cols, struct pd_threads *threads, struct pd_arena *arena,
                           struct cpu_matrix **out, pdvm_error *err) {
    struct cpu_matrix *m;
    struct facts f;
    *out = NULL;
    const char *text = safetensors_metadata(file, name);
    const struct safetensors_tensor *t = safetensors_find(file, name);
    if (text && strcmp(text, NOT_KEPT) == 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: matrix \"%.200s\" is not kept",
                       safetensors_path(file), name);
    if (!text || !t) return fail(file, name, "missing", err);
    PD_TRY(pd_alloc_aligned(&m, sizeof *m, "a packed matrix", err));
    memset(m, 0, sizeof *m);
    pdvm_status status;
    if (!parse_facts(text, &f) || !apply_facts(&f, rows, cols, m))
        status = fail(file, name, "its description is wrong", err);
    else
        status = use_tensor(file, t, &f, threads, arena, m, err);
    if (status == PDVM_OK)
        *out = m;
    else
        cpu_matrix_free(m);
    return status;
}
