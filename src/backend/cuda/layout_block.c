#include "backend/cuda/layout_block.h"

#include "base/alloc.h"

#include <stdlib.h>

/* Longest task where nothing else bounds it. */
#define MAX_LENGTH 64u

uint64_t block_task_bytes(const struct gpu_coding *c, uint32_t length) {
    uint64_t lane = (uint64_t)length * gpu_coding_chunk_bytes(c);
    if (c->group && !c->gap_bits) lane += 2 * (uint64_t)(length / gpu_group_chunks(c));
    return sizeof(struct gpu_task) + GPU_LANES * lane;
}

/* The first group from which a piece of at most `limit` chunks cannot go on; at least one group. */
static uint32_t cut_groups(const uint16_t *in_group, uint32_t begin, uint32_t n_groups,
                           uint32_t limit, uint32_t *chunks) {
    uint32_t total = 0, g = begin;
    *chunks = 0;
    for (; g < n_groups; g++) {
        if (in_group[g] == 0) continue;
        uint32_t next = total + in_group[g] + gpu_group_fill(total % GPU_CHUNK, in_group[g]);
        uint32_t need = (next + GPU_CHUNK - 1) / GPU_CHUNK;
        if (need > limit && total > 0) break;
        total = next;
        *chunks = need;
    }
    return g;
}

/* The piece of a row that begins at `item->begin`; false if there is none. */
static bool next_piece(const struct gpu_layout *l, uint32_t row, const struct gpu_coding *c,
                       uint32_t limit, struct block_item *item) {
    uint32_t all = l->chunks[row];
    if (all == 0) return false;
    if (!c->group) {
        if (item->begin >= all) return false;
        item->end = item->begin + limit < all ? item->begin + limit : all;
        item->chunks = item->end - item->begin;
        return true;
    }
    if (item->begin >= l->n_groups) return false;
    if (!c->gap_bits) {
        uint32_t each = gpu_group_chunks(c), n = limit / each ? limit / each : 1;
        item->end = item->begin + n < l->n_groups ? item->begin + n : l->n_groups;
        item->chunks = (item->end - item->begin) * each;
        return true;
    }
    const uint16_t *in_group = l->in_group + (size_t)row * l->n_groups;
    item->end = cut_groups(in_group, item->begin, l->n_groups, limit, &item->chunks);
    return item->chunks > 0;
}

/* Matrices whose rows may share tasks: those that differ in nothing that a header says. */
static int key_of(const struct gpu_layout *l, int matrix) {
    const struct gpu_coding *c = &l->coding[matrix];
    if (c->values != GPU_INT8) return matrix;
    for (int i = 0; i < matrix; i++) {
        const struct gpu_coding *o = &l->coding[i];
        if (o->values == GPU_INT8 && o->gap_bits == c->gap_bits && o->group == c->group) return i;
    }
    return matrix;
}

/* How the rows of a key are cut: those before `rest` into pieces of `limit` chunks, the others
 * into shorter ones of `rest_limit`. */
struct cuts {
    uint32_t limit;
    uint32_t rest; /* row of the phase */
    uint32_t rest_limit;
};

static bool has_key(const struct gpu_layout *l, uint32_t row, int key) {
    int64_t r;
    return key_of(l, gpu_layout_row(l, row, &r)) == key;
}

static pdvm_status cut_rows(const struct gpu_layout *l, uint32_t b, int key,
                            const struct cuts *cuts, struct block_plan *out, pdvm_error *err) {
    for (uint32_t row = l->block_rows[b]; row < l->block_rows[b + 1]; row++) {
        if (!has_key(l, row, key)) continue;
        uint32_t limit = row < cuts->rest ? cuts->limit : cuts->rest_limit;
        struct block_item item = {.row = row - l->block_rows[b]};
        for (; next_piece(l, row, &l->coding[key], limit, &item); item.begin = item.end) {
            PD_TRY(pd_grow(&out->items, &out->item_capacity, out->n_items + 1, sizeof *out->items,
                           "packing", err));
            out->items[out->n_items++] = item;
        }
    }
    return PDVM_OK;
}

/* Longest first; equal ones by column, so that a task's lanes walk side by side. */
static int compare_items(const void *a, const void *b) {
    const struct block_item *x = a, *y = b;
    if (x->chunks != y->chunks) return x->chunks < y->chunks ? 1 : -1;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->row < y->row ? -1 : 1;
}

static pdvm_status gather_tasks(const struct gpu_layout *l, uint32_t b, int key, size_t first,
                                struct block_plan *p, pdvm_error *err) {
    const struct gpu_coding *c = &l->coding[key];
    if (p->n_items == first) return PDVM_OK; /* nothing is stored */
    qsort(p->items + first, p->n_items - first, sizeof *p->items, compare_items);
    /* Where nothing stands for 0, a lane may only fall short at the end of its row, where x is 0. */
    bool alike = !c->has_zero && !c->gap_bits && !c->group;
    for (size_t i = first, n = 0; i < p->n_items; i += n) {
        size_t most = p->n_items - i < GPU_LANES ? p->n_items - i : GPU_LANES;
        for (n = 1; n < most; n++) {
            const struct block_item *item = &p->items[i + n];
            bool last = item->end == l->chunks[l->block_rows[b] + item->row];
            if (alike && item->chunks < p->items[i].chunks && !last) break;
        }
        PD_TRY(pd_grow(&p->tasks, &p->task_capacity, p->n_tasks + 1, sizeof *p->tasks, "packing",
                       err));
        uint32_t length = p->items[i].chunks, shortest = p->items[i + n - 1].chunks;
        if (length - shortest > p->fill) p->fill = length - shortest;
        p->tasks[p->n_tasks++] = (struct block_task){.matrix = (uint32_t)key,
                                                     .first = (uint32_t)i,
                                                     .n = (uint32_t)n,
                                                     .length = length,
                                                     .size = block_task_bytes(c, length)};
    }
    return PDVM_OK;
}

/* Pieces that a row gives: an estimate where groups meet gaps. */
static uint32_t pieces(const struct gpu_layout *l, const struct gpu_coding *c, uint32_t row,
                       uint32_t limit) {
    uint32_t n = l->chunks[row];
    if (c->group && !c->gap_bits) {
        uint32_t each = gpu_group_chunks(c);
        limit = limit < each ? each : limit / each * each;
    }
    return (n + limit - 1) / limit;
}

/* The smallest limit with which rows [first, ...) of a key give at most n pieces; 0: none does. */
static uint32_t find_limit(const struct gpu_layout *l, uint32_t b, int key, uint32_t first,
                           uint64_t n, uint32_t most) {
    uint32_t low = 1, high = most + 1;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        uint64_t total = 0;
        for (uint32_t row = first; row < l->block_rows[b + 1]; row++)
            if (has_key(l, row, key)) total += pieces(l, &l->coding[key], row, middle);
        if (total <= n)
            high = middle;
        else
            low = middle + 1;
    }
    return low > most ? 0 : low;
}

/*
 * Cuts rows for `rounds` tasks a warp. Rows are few and lanes are many: pieces of one length fill
 * whole rounds only by luck. So as many rows as fit are cut alike, and the rest is spread over all
 * lanes once more, in pieces that are as short as it takes.
 */
static struct cuts choose_cuts(const struct gpu_layout *l, uint32_t b, int key, uint64_t n_tasks) {
    const struct gpu_coding *c = &l->coding[key];
    const uint32_t most = c->group ? MAX_LENGTH : GPU_MAX_CHUNKS;
    const uint32_t end = l->block_rows[b + 1];
    const uint64_t lanes = n_tasks * GPU_LANES;
    const uint64_t rest_lanes = (n_tasks < l->n_warps ? n_tasks : (uint64_t)l->n_warps) * GPU_LANES;
    double rounds = (double)lanes / (double)rest_lanes, best = 1e30;
    struct cuts cuts = {.limit = most, .rest = end, .rest_limit = most};
    for (uint32_t limit = 1; limit <= most; limit++) {
        uint64_t n = 0;
        uint32_t rest = l->block_rows[b], short_limit = 0;
        for (; rest < end; rest++) {
            uint32_t more = has_key(l, rest, key) ? pieces(l, c, rest, limit) : 0;
            if (n + more > lanes) break;
            n += more;
        }
        if (rest < end) {
            short_limit = find_limit(l, b, key, rest, rest_lanes, most);
            if (!short_limit) continue;
        }
        double cost = rounds * limit + (short_limit ? short_limit + 0.25 : 0);
        if (cost >= best) continue;
        best = cost;
        cuts = (struct cuts){limit, rest, short_limit ? short_limit : limit};
    }
    return cuts;
}

/* Largest first, each to the warp that has least. */
static int compare_tasks(const void *a, const void *b) {
    const struct block_task *x = a, *y = b;
    if (x->size != y->size) return x->size < y->size ? 1 : -1;
    return x->first < y->first ? -1 : 1;
}

static void share_out(const struct gpu_layout *l, struct block_plan *p) {
    if (p->n_tasks) qsort(p->tasks, p->n_tasks, sizeof *p->tasks, compare_tasks);
    for (size_t i = 0; i < p->n_tasks; i++) {
        uint32_t least = 0;
        for (uint32_t w = 1; w < l->n_warps; w++)
            if (p->warp_bytes[w] < p->warp_bytes[least]) least = w;
        p->tasks[i].warp = least;
        p->tasks[i].offset = p->warp_bytes[least]; /* in its stream, for now */
        p->warp_bytes[least] += p->tasks[i].size;
    }
    for (size_t i = 0; i < p->n_tasks; i++)
        for (uint32_t w = 0; w < p->tasks[i].warp; w++) p->tasks[i].offset += p->warp_bytes[w];
}

static pdvm_status plan_block(const struct gpu_layout *l, uint32_t b, struct block_plan *p,
                              pdvm_error *err) {
    uint64_t chunks[3] = {0}, total = 0;
    for (uint32_t row = l->block_rows[b]; row < l->block_rows[b + 1]; row++) {
        int64_t r;
        int key = key_of(l, gpu_layout_row(l, row, &r));
        chunks[key] += l->chunks[row];
        total += l->chunks[row];
    }
    /* Whole rounds of tasks: every warp gets the same number. */
    uint64_t lanes = (uint64_t)GPU_LANES * l->n_warps;
    uint64_t rounds = (total + lanes * GPU_MAX_CHUNKS - 1) / (lanes * GPU_MAX_CHUNKS);
    uint64_t n_tasks = rounds * l->n_warps, before = 0, given = 0;
    for (int key = 0; key < l->n_matrices; key++) {
        if (chunks[key] == 0) continue;
        before += chunks[key];
        uint64_t upto = (n_tasks * before + total / 2) / total;
        uint64_t n = upto > given ? upto - given : 1;
        size_t first = p->n_items;
        struct cuts cuts = choose_cuts(l, b, key, n);
        PD_TRY(cut_rows(l, b, key, &cuts, p, err));
        PD_TRY(gather_tasks(l, b, key, first, p, err));
        given += n;
    }
    share_out(l, p);
    return PDVM_OK;
}

pdvm_status block_plan_create(const struct gpu_layout *l, uint32_t b, struct block_plan *out,
                              pdvm_error *err) {
    *out = (struct block_plan){0};
    PD_TRY(pd_calloc(&out->warp_bytes, l->n_warps, sizeof *out->warp_bytes, "packing", err));
    return plan_block(l, b, out, err);
}

void block_plan_free(struct block_plan *p) {
    free(p->items);
    free(p->tasks);
    free(p->warp_bytes);
    *p = (struct block_plan){0};
}
