#include "backend/cuda/layout_block.h"

#include "base/alloc.h"

#include <stdlib.h>
#include <string.h>

/* Longest task where nothing else bounds it. */
#define MAX_LENGTH 64u

uint64_t block_task_bytes(const struct gpu_coding *c, uint32_t length) {
    uint64_t lane = (uint64_t)length * gpu_coding_chunk_bytes(c);
    if (c->group && !c->gap_bits) lane += 2 * (uint64_t)(length / gpu_group_chunks(c));
    return sizeof(struct gpu_task) + GPU_LANES * lane;
}

uint32_t gpu_groups_chunks(const uint16_t *in_group, uint32_t begin, uint32_t end) {
    uint32_t total = 0;
    for (uint32_t g = begin; g < end; g++)
        if (in_group[g]) total += in_group[g] + gpu_group_fill(total % GPU_CHUNK, in_group[g]);
    return (total + GPU_CHUNK - 1) / GPU_CHUNK;
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

/* Bytes of a step, about, where groups meet gaps. */
static double step_bytes(const struct gpu_coding *c, const struct gpu_tile *tile) {
    double lane = tile->step * gpu_coding_chunk_bytes(c) + (c->group && !c->gap_bits ? 2 : 0);
    return GPU_LANES * lane;
}

/* Steps of the rows of a tile. */
static void find_ends(const struct gpu_layout *l, const struct gpu_tiling *tiling, uint32_t index,
                      const struct gpu_coding *c, uint32_t ends[GPU_LANES]) {
    const struct gpu_tile *tile = &tiling->tiles[index];
    for (uint32_t i = 0; i < tile->n; i++) {
        uint32_t row = tiling->rows[tile->first + i];
        ends[i] = c->group ? l->n_groups : l->chunks[row];
        if (!gpu_is_paced(c)) continue;
        uint32_t n = gpu_pace_row(l, l->in_bucket + (size_t)row * l->n_buckets,
                                  tiling->pace + (size_t)index * l->n_buckets, NULL);
        ends[i] = (n + GPU_CHUNK - 1) / GPU_CHUNK;
    }
}

static pdvm_status add_item(const struct gpu_layout *l, const struct gpu_coding *c, uint32_t row0,
                            struct block_item item, struct block_plan *p, pdvm_error *err) {
    item.chunks = item.end - item.begin;
    if (c->group && !c->gap_bits) item.chunks *= gpu_group_chunks(c);
    if (c->group && c->gap_bits)
        item.chunks = gpu_groups_chunks(l->in_group + (size_t)(row0 + item.row) * l->n_groups,
                                        item.begin, item.end);
    if (item.chunks == 0) return PDVM_OK;
    PD_TRY(pd_grow(&p->items, &p->item_capacity, p->n_items + 1, sizeof *p->items, "packing", err));
    p->items[p->n_items++] = item;
    return PDVM_OK;
}

/* Makes a task of steps [from, to) of a tile. `ends` are those of its rows. */
static pdvm_status add_task(const struct gpu_layout *l, uint32_t row0, int key, uint32_t index,
                            uint32_t from, uint32_t to, const uint32_t *ends, uint32_t warp,
                            struct block_plan *p, pdvm_error *err) {
    const struct gpu_coding *c = &l->coding[key];
    const struct gpu_tiling *tiling = &p->tiling[key];
    const struct gpu_tile *tile = &tiling->tiles[index];
    struct block_task task = {.matrix = (uint32_t)key, .first = (uint32_t)p->n_items, .warp = warp};
    uint32_t shortest = UINT32_MAX;
    for (uint32_t q = 0; q < tile->parallel; q++) {
        for (uint32_t i = 0; i < tile->n; i++) {
            uint32_t begin = q * tile->length + from, end = q * tile->length + to;
            if (end > ends[i]) end = ends[i];
            if (begin >= end) continue;
            struct block_item item = {.row = tiling->rows[tile->first + i] - row0,
                                      .tile = index,
                                      .begin = begin,
                                      .end = end};
            PD_TRY(add_item(l, c, row0, item, p, err));
        }
    }
    task.n = (uint32_t)p->n_items - task.first;
    if (task.n == 0) return PDVM_OK;
    /* Without groups, lanes fall short at the end of their row only: x is 0 there, so codes without
     * a zero may fill up, too. */
    for (uint32_t i = 0; i < task.n; i++) {
        uint32_t chunks = p->items[task.first + i].chunks;
        if (chunks > task.length) task.length = chunks;
        if (chunks < shortest) shortest = chunks;
    }
    if (task.length - shortest > p->fill) p->fill = task.length - shortest;
    task.size = block_task_bytes(c, task.length);
    if (p->n_tasks) { /* behind the one before: warps rise */
        const struct block_task *before = &p->tasks[p->n_tasks - 1];
        task.offset = before->offset + before->size;
    }
    p->warp_bytes[warp] += task.size;
    PD_TRY(pd_grow(&p->tasks, &p->task_capacity, p->n_tasks + 1, sizeof *p->tasks, "packing", err));
    p->tasks[p->n_tasks++] = task;
    return PDVM_OK;
}

/* What warps are given, one after the other. */
struct share {
    uint32_t warp; /* who gets the next piece */
    double left;   /* bytes of this one and those after it */
};

/* Cuts a tile where warps have got their share. */
static pdvm_status cut_tile(const struct gpu_layout *l, uint32_t row0, int key, uint32_t index,
                            struct share *share, struct block_plan *p, pdvm_error *err) {
    const struct gpu_coding *c = &l->coding[key];
    const struct gpu_tile *tile = &p->tiling[key].tiles[index];
    const uint32_t most = c->values <= GPU_LUT4 && !c->group ? GPU_MAX_CHUNKS : MAX_LENGTH;
    const double header = (double)sizeof(struct gpu_task), bytes = step_bytes(c, tile);
    uint32_t ends[GPU_LANES];
    find_ends(l, &p->tiling[key], index, c, ends);
    for (uint32_t from = 0; from < tile->length;) {
        double used = (double)p->warp_bytes[share->warp];
        uint32_t others = l->n_warps - share->warp - 1, n = tile->length - from;
        double room = (share->left / (others + 1) - used - header) / bytes + 0.5;
        if (others > 0 && room < 1) {
            share->left -= used;
            share->warp++;
            continue;
        }
        if (others > 0 && n > room) n = (uint32_t)room;
        if (n * tile->step > most) n = most > tile->step ? (uint32_t)(most / tile->step) : 1;
        PD_TRY(add_task(l, row0, key, index, from, from + n, ends, share->warp, p, err));
        if (from > 0) share->left += header;
        from += n;
    }
    return PDVM_OK;
}

static pdvm_status share_tiles(const struct gpu_layout *l, uint32_t row0, struct block_plan *p,
                               pdvm_error *err) {
    struct share share = {0, 0};
    for (int key = 0; key < l->n_matrices; key++)
        for (uint32_t i = 0; i < p->tiling[key].n_tiles; i++) {
            const struct gpu_tile *tile = &p->tiling[key].tiles[i];
            share.left +=
                sizeof(struct gpu_task) + tile->length * step_bytes(&l->coding[key], tile);
        }
    for (int key = 0; key < l->n_matrices; key++)
        for (uint32_t i = 0; i < p->tiling[key].n_tiles; i++)
            PD_TRY(cut_tile(l, row0, key, i, &share, p, err));
    return PDVM_OK;
}

/* Takes all tasks back, but for what steps of groups with gaps have turned out to be. */
static bool correct_steps(const struct gpu_layout *l, struct block_plan *p) {
    double planned[3] = {0}, found[3] = {0};
    bool changed = false;
    for (size_t i = 0; i < p->n_tasks; i++) found[p->tasks[i].matrix] += p->tasks[i].length;
    for (int key = 0; key < l->n_matrices; key++) {
        struct gpu_tiling *t = &p->tiling[key];
        if (!l->coding[key].group || !l->coding[key].gap_bits || t->n_tiles == 0) continue;
        for (uint32_t i = 0; i < t->n_tiles; i++)
            planned[key] += t->tiles[i].length * t->tiles[i].step;
        for (uint32_t i = 0; i < t->n_tiles; i++) t->tiles[i].step *= found[key] / planned[key];
        changed = true;
    }
    if (!changed) return false;
    p->n_items = p->n_tasks = 0;
    p->fill = 0;
    memset(p->warp_bytes, 0, l->n_warps * sizeof *p->warp_bytes);
    return true;
}

static pdvm_status plan_block(const struct gpu_layout *l, uint32_t b, struct block_plan *p,
                              pdvm_error *err) {
    const uint32_t row0 = l->block_rows[b];
    int keys[3];
    for (int i = 0; i < l->n_matrices; i++) keys[i] = key_of(l, i);
    for (int key = 0; key < l->n_matrices; key++)
        PD_TRY(gpu_tiling_create(l, row0, l->block_rows[b + 1], keys, key, &p->tiling[key], err));
    PD_TRY(share_tiles(l, row0, p, err));
    return correct_steps(l, p) ? share_tiles(l, row0, p, err) : PDVM_OK;
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
    for (int i = 0; i < 3; i++) gpu_tiling_free(&p->tiling[i]);
    *p = (struct block_plan){0};
}
