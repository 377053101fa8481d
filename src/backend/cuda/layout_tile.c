#include "backend/cuda/layout_tile.h"

#include "backend/cuda/layout_block.h"
#include "base/alloc.h"

#include <math.h>
#include <stdlib.h>

/* Columns of x that lie in different banks: 32 words of two 16-bit numbers. */
#define BANK_COLUMNS 64u
#define MOST_ROOM 0.08

uint32_t gpu_pace_row(const struct gpu_layout *l, const uint8_t *in_bucket, const uint32_t *pace,
                      uint8_t *fill) {
    uint32_t at = 0;
    for (uint32_t k = 0; k < l->n_buckets; k++) {
        uint32_t left = l->n_in - k * GPU_BUCKET;
        uint32_t room = (left < GPU_BUCKET ? left : GPU_BUCKET) - in_bucket[k];
        uint32_t n = 0;
        at += in_bucket[k];
        if (at < pace[k]) n = pace[k] - at < room ? pace[k] - at : room;
        at += n;
        if (fill) fill[k] = (uint8_t)n;
    }
    return at;
}

/* A row and its entries, for sorting. */
struct length {
    uint32_t row;
    uint32_t entries;
};

static int compare_lengths(const void *a, const void *b) {
    const struct length *x = a, *y = b;
    if (x->entries != y->entries) return x->entries < y->entries ? 1 : -1;
    return x->row < y->row ? -1 : 1;
}

static uint32_t entries_of(const struct gpu_layout *l, const struct gpu_coding *c, uint32_t row) {
    if (!gpu_is_paced(c)) return l->chunks[row] * GPU_CHUNK;
    const uint8_t *in_bucket = l->in_bucket + (size_t)row * l->n_buckets;
    uint32_t n = 0;
    for (uint32_t k = 0; k < l->n_buckets; k++) n += in_bucket[k];
    return n;
}

/*
 * Room for rows to catch up, as a part of their length. A random walk that is held back at the
 * pace lags behind by (1 - density) / (2 room * density) columns in the mean, and few rows by
 * three times as much. What it costs in bytes and what it saves in bank conflicts are balanced
 * about here.
 */
static double room_of(double density) {
    double room = 0.035 * sqrt((1 - density) / density);
    return room < MOST_ROOM ? room : MOST_ROOM;
}

/*
 * Cycles of a chunk: a multiprocessor gets about 18 bytes a cycle from memory, and a gather takes as
 * many cycles of its banks as it has wavefronts (counted on random rows); the stream itself goes
 * through the banks twice, 128 bytes a cycle. The two overlap, but not quite.
 */
static double chunk_time(const struct gpu_coding *c, uint32_t parallel) {
    static const double wavefronts[] = {1.1, 1.9, 2.2, 2.4, 2.6, 2.7, 2.8, 2.9};
    double bytes = GPU_LANES * gpu_coding_chunk_bytes(c);
    double gathers = parallel; /* dense: 16 bytes at a time */
    if (c->gap_bits) gathers = 16 * wavefronts[parallel < 8 ? parallel - 1 : 7];
    double memory = bytes / 18, banks = bytes / 64 + gathers;
    return memory > banks ? memory + banks / 2 : banks + memory / 2;
}

/* What tiles of a block's rows are chosen by. */
struct choice {
    const struct length *rows; /* longest first */
    uint32_t n_rows;
    uint32_t n_groups; /* 0: tiles are as long as their rows */
    double room;
    double time[GPU_LANES + 1]; /* of a chunk, with so many stretches side by side */
};

static uint32_t divide_up(uint32_t a, uint32_t b) {
    return (a + b - 1) / b;
}

/* Tile of rows [first, first + n), whose entries are `sum`. */
static struct gpu_tile plan_tile(const struct choice *c, uint32_t first, uint32_t n, uint64_t sum,
                                 double room) {
    struct gpu_tile tile = {.first = first, .n = n, .parallel = GPU_LANES / n, .step = 1};
    uint32_t longest = divide_up(c->rows[first].entries, GPU_CHUNK);
    if (c->n_groups) {
        tile.step = (double)longest / c->n_groups;
        longest = c->n_groups;
    }
    tile.length = divide_up(longest, tile.parallel);
    double wanted = (double)sum * (1 + room) / (n * GPU_CHUNK * tile.parallel) + 0.5;
    if (!c->n_groups && tile.length < (uint32_t)wanted) tile.length = (uint32_t)wanted;
    tile.parallel = divide_up(longest, tile.length);
    return tile;
}

/* Splits the sorted rows into tiles that take the least time: the shortest path over the rows. */
static pdvm_status choose_tiles(const struct choice *c, struct gpu_tiling *t, pdvm_error *err) {
    double *cost;
    struct gpu_tile *best;
    double overhead = 0.5 * c->time[1]; /* of a task that begins */
    PD_TRY(pd_calloc(&cost, (size_t)c->n_rows + 1, sizeof *cost, "packing", err));
    pdvm_status status = pd_calloc(&best, (size_t)c->n_rows + 1, sizeof *best, "packing", err);
    for (uint32_t i = 1; status == PDVM_OK && i <= c->n_rows; i++) {
        uint64_t sum = 0;
        cost[i] = INFINITY;
        for (uint32_t n = 1; n <= GPU_LANES && n <= i; n++) {
            sum += c->rows[i - n].entries;
            struct gpu_tile tile = plan_tile(c, i - n, n, sum, c->room);
            double time = cost[i - n] + overhead + tile.length * tile.step * c->time[tile.parallel];
            if (time >= cost[i]) continue;
            cost[i] = time;
            best[i] = tile;
        }
    }
    for (uint32_t i = c->n_rows; status == PDVM_OK && i > 0; i = best[i].first) t->n_tiles++;
    if (status == PDVM_OK)
        status = pd_calloc(&t->tiles, t->n_tiles, sizeof *t->tiles, "packing", err);
    for (uint32_t i = c->n_rows, k = t->n_tiles; status == PDVM_OK && i > 0; i = best[i].first)
        t->tiles[--k] = best[i];
    free(cost);
    free(best);
    return status;
}

/* Steps that a tile can do without, if it keeps half of the room to catch up. */
static uint32_t spare_steps(const struct choice *c, const struct gpu_tile *tile) {
    uint64_t sum = 0;
    if (tile->n == 0) return 0;
    for (uint32_t i = 0; i < tile->n; i++) sum += c->rows[tile->first + i].entries;
    struct gpu_tile least = plan_tile(c, tile->first, tile->n, sum, c->room / 2);
    return least.parallel == tile->parallel ? tile->length - least.length : 0;
}

/* Shortens tiles, if all warps have a step less to do then. */
static void fit_to_warps(const struct choice *c, uint32_t n_warps, struct gpu_tiling *t) {
    uint32_t total = 0, spare = 0;
    for (uint32_t i = 0; i < t->n_tiles; i++) {
        total += t->tiles[i].length;
        spare += spare_steps(c, &t->tiles[i]);
    }
    uint32_t excess = total % n_warps;
    if (spare < excess) return;
    for (uint32_t i = 0; i < t->n_tiles && excess > 0; i++) {
        uint32_t n = spare_steps(c, &t->tiles[i]);
        if (n > excess) n = excess;
        t->tiles[i].length -= n;
        excess -= n;
    }
}

/* Entries of all rows before a column; within a bucket as if they were spread evenly. */
static double before_column(const struct gpu_layout *l, const uint32_t *sums, uint32_t column) {
    uint32_t k = column / GPU_BUCKET, rest = column % GPU_BUCKET;
    if (column >= l->n_in) return sums[l->n_buckets];
    return sums[k] + (double)(sums[k + 1] - sums[k]) * rest / GPU_BUCKET;
}

/*
 * Where stretch q begins. Stretches side by side have the banks to themselves if they begin at
 * different columns modulo all banks.
 */
static uint32_t stretch_column(const struct gpu_layout *l, uint32_t parallel, uint32_t q) {
    uint32_t column = (uint32_t)((uint64_t)l->n_in * q / parallel);
    if (q == 0 || q == parallel || l->n_in / parallel < 2 * BANK_COLUMNS) return column;
    uint32_t wanted = BANK_COLUMNS * q / parallel;
    uint32_t ahead = (wanted + BANK_COLUMNS - column % BANK_COLUMNS) % BANK_COLUMNS;
    return ahead <= BANK_COLUMNS / 2 ? column + ahead : column + ahead - BANK_COLUMNS;
}

/*
 * The pace of a tile: in every stretch, entries come as they do in the mean of the rows. It lets
 * rows run ahead of that by as much as all of them need to be through at the end.
 */
static void set_pace(const struct gpu_layout *l, const struct gpu_tiling *t,
                     const struct gpu_tile *tile, uint32_t *sums, uint32_t *pace) {
    const uint32_t end = tile->length * GPU_CHUNK * tile->parallel;
    sums[0] = 0;
    for (uint32_t k = 0; k < l->n_buckets; k++) {
        sums[k + 1] = sums[k];
        for (uint32_t i = 0; i < tile->n; i++)
            sums[k + 1] += l->in_bucket[(size_t)t->rows[tile->first + i] * l->n_buckets + k];
    }
    uint32_t q = 0;
    double low = 0, high = before_column(l, sums, stretch_column(l, tile->parallel, 1));
    for (uint32_t k = 0; k < l->n_buckets; k++) {
        double at = sums[k + 1];
        while (q + 1 < tile->parallel && at >= high) {
            q++;
            low = high;
            high = before_column(l, sums, stretch_column(l, tile->parallel, q + 1));
        }
        double part = high > low ? (at - low) / (high - low) : 1;
        pace[k] = (uint32_t)((q + (part < 1 ? part : 1)) * tile->length * GPU_CHUNK);
    }
    uint32_t late = 0;
    for (uint32_t i = 0; i < tile->n; i++) {
        const uint8_t *in_bucket = l->in_bucket + (size_t)t->rows[tile->first + i] * l->n_buckets;
        uint32_t rest = 0;
        for (uint32_t k = l->n_buckets; k-- > 0; rest += in_bucket[k])
            if (pace[k] + rest > end + late) late = pace[k] + rest - end;
    }
    for (uint32_t k = 0; k < l->n_buckets; k++) pace[k] -= pace[k] < late ? pace[k] : late;
}

static pdvm_status set_paces(const struct gpu_layout *l, struct gpu_tiling *t, pdvm_error *err) {
    uint32_t *sums;
    PD_TRY(pd_calloc(&t->pace, (size_t)t->n_tiles * l->n_buckets, sizeof *t->pace, "packing", err));
    PD_TRY(pd_calloc(&sums, (size_t)l->n_buckets + 1, sizeof *sums, "packing", err));
    for (uint32_t i = 0; i < t->n_tiles; i++)
        set_pace(l, t, &t->tiles[i], sums, t->pace + (size_t)i * l->n_buckets);
    free(sums);
    return PDVM_OK;
}

/* Tiles of `rows`, in the order that they have in `out`. */
static pdvm_status make_tiles(const struct gpu_layout *l, int key, const struct length *rows,
                              struct gpu_tiling *out, pdvm_error *err) {
    const struct gpu_coding *c = &l->coding[key];
    struct choice choice = {.rows = rows, .n_rows = out->n_rows};
    uint64_t sum = 0;
    for (uint32_t i = 0; i < out->n_rows; i++) sum += rows[i].entries;
    for (uint32_t i = 1; i <= GPU_LANES; i++) choice.time[i] = chunk_time(c, i);
    if (c->group) choice.n_groups = l->n_groups;
    if (gpu_is_paced(c)) choice.room = room_of((double)sum / out->n_rows / l->n_in);
    PD_TRY(choose_tiles(&choice, out, err));
    if (!gpu_is_paced(c)) return PDVM_OK;
    fit_to_warps(&choice, l->n_warps, out);
    return set_paces(l, out, err);
}

pdvm_status gpu_tiling_create(const struct gpu_layout *l, uint32_t first, uint32_t end,
                              const int keys[3], int key, struct gpu_tiling *out, pdvm_error *err) {
    struct length *rows;
    *out = (struct gpu_tiling){0};
    PD_TRY(pd_calloc(&rows, (size_t)(end - first) + 1, sizeof *rows, "packing", err));
    for (uint32_t row = first; row < end; row++) {
        int64_t r;
        if (keys[gpu_layout_row(l, row, &r)] != key || l->chunks[row] == 0) continue;
        rows[out->n_rows++] = (struct length){row, entries_of(l, &l->coding[key], row)};
    }
    pdvm_status status = PDVM_OK;
    if (out->n_rows) {
        qsort(rows, out->n_rows, sizeof *rows, compare_lengths);
        status = pd_calloc(&out->rows, out->n_rows, sizeof *out->rows, "packing", err);
        for (uint32_t i = 0; status == PDVM_OK && i < out->n_rows; i++) out->rows[i] = rows[i].row;
        if (status == PDVM_OK) status = make_tiles(l, key, rows, out, err);
    }
    free(rows);
    if (status != PDVM_OK) gpu_tiling_free(out);
    return status;
}

void gpu_tiling_free(struct gpu_tiling *t) {
    free(t->rows);
    free(t->tiles);
    free(t->pace);
    *t = (struct gpu_tiling){0};
}
