/* Writing the streams of a layout, block by block. */
#include "backend/cuda/layout_block.h"
#include "backend/cuda/layout_rows.h"
#include "base/alloc.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a lane walks: entries of a row's sequence with what fills up between them. */
struct walk {
    uint32_t *col;
    int32_t *src;
    uint32_t n;
    uint32_t start;  /* column that the lane starts at */
    uint8_t *end;    /* [chunk] with groups and gaps: where the group ends, in fours; 4: nowhere */
    uint32_t *group; /* [chunk] the group that ends in it */
};

struct worker {
    struct row_buffer row;
    struct walk walk;
    uint8_t *fill; /* [n_buckets] */
};

struct write_job {
    const struct gpu_layout *l;
    uint8_t *data;
    struct worker *workers;
    pdvm_status *status;
    pdvm_error *errors;
};

/* The task's lane that is being written. */
struct lane {
    const struct gpu_layout *l;
    const struct mdcsr *m;
    const struct gpu_coding *c;
    int64_t r; /* row of m */
    float unit;
    uint32_t index;
    uint32_t length; /* chunks of the task */
    uint8_t *chunks; /* behind the header */
};

static void put_u16(uint8_t *p, uint32_t v) {
    uint16_t u = (uint16_t)v;
    memcpy(p, &u, sizeof u);
}

/* Bytes of a lane in the planes of gaps. */
static void gap_planes(uint32_t gap_bits, uint32_t bytes[2]) {
    bytes[0] = gap_bits < 4 ? 4 : gap_bits < 8 ? 8 : 16;
    bytes[1] = gap_bits == 6 ? 4 : gap_bits == 3 || gap_bits == 5 ? 2 : 0;
}

/* Pairs of bits of 16 codes, from bit `shift` on. */
static void put_pairs(uint8_t *p, const uint8_t codes[GPU_CHUNK], int shift) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)((codes[i] >> shift & 3) | (codes[4 + i] >> shift & 3) << 2 |
                         (codes[8 + i] >> shift & 3) << 4 | (codes[12 + i] >> shift & 3) << 6);
}

/* The planes of gaps of a lane's chunk: see abi.h. */
static void put_gaps(const struct lane *o, uint8_t *plane, const uint8_t codes[GPU_CHUNK]) {
    const uint32_t bits = o->c->gap_bits, low = bits >= 4 ? 4 : 2;
    uint32_t bytes[2];
    gap_planes(bits, bytes);
    uint8_t *p = plane + (size_t)bytes[0] * o->index;
    uint8_t *top = plane + GPU_LANES * bytes[0] + (size_t)bytes[1] * o->index;
    if (bits == 8) {
        memcpy(p, codes, GPU_CHUNK);
    } else if (bits >= 4) {
        for (int i = 0; i < 4; i++) {
            p[i] = (uint8_t)((codes[i] & 15) | (codes[4 + i] & 15) << 4);
            p[4 + i] = (uint8_t)((codes[8 + i] & 15) | (codes[12 + i] & 15) << 4);
        }
    } else {
        put_pairs(p, codes, 0);
    }
    if (bytes[1] == 4) put_pairs(top, codes, 4);
    if (bytes[1] == 2) {
        uint32_t word = 0;
        for (int i = 0; i < (int)GPU_CHUNK; i++) word |= (codes[i] >> low & 1u) << i;
        put_u16(top, word);
    }
}

/* The u16 of a group's scale: significand, shift, sign. */
static uint32_t scale_bits(float scale, float unit) {
    float ratio = scale / unit; /* a power of two below */
    int e;
    if (ratio == 0) return 0;
    (void)frexpf(fabsf(ratio), &e);
    int shift = e > 8 ? e - 8 : 0;
    if (shift > 15) shift = 15;
    uint32_t significand = (uint32_t)lrintf(ldexpf(fabsf(ratio), -shift));
    if (significand > 255 && shift < 15) {
        significand = (significand + 1) / 2;
        shift++;
    }
    if (significand > 255) significand = 255;
    return significand | (uint32_t)shift << 8 | (ratio < 0 ? 1u << 12 : 0);
}

static float group_scale(const struct lane *o, uint32_t group) {
    return o->m->scales[o->r * o->m->n_groups + group];
}

/* Scale of the entries that are stored as the floats that they stand for (LUT8). */
static float entry_scale(const struct lane *o, uint32_t col) {
    if (!o->m->scales) return 1;
    if (!o->m->group) return o->m->scales[o->r];
    return col < o->l->n_in ? group_scale(o, col / o->m->group) : 1;
}

static void write_gapped(const struct lane *o, const struct row_buffer *row, const struct walk *w) {
    const struct gpu_coding *c = o->c;
    const uint32_t stride = GPU_LANES * gpu_coding_chunk_bytes(c);
    const uint32_t gaps = GPU_LANES * gpu_value_bytes(c->values);
    const uint32_t scales = gaps + GPU_LANES * gpu_gap_bytes(c->gap_bits);
    const uint32_t none = c->skip ? (1u << c->gap_bits) - 1 : 0;
    uint32_t next = w->start;
    for (uint32_t k = 0, i = 0; k < o->length; k++) {
        uint8_t *chunk = o->chunks + (size_t)k * stride, codes[GPU_CHUNK];
        for (uint32_t s = 0; s < GPU_CHUNK; s++, i++) {
            int32_t src = i < w->n ? w->src[i] : GPU_NO_ENTRY;
            uint32_t code = i < w->n ? w->col[i] - next : 0;
            next += code + 1;
            codes[s] = (uint8_t)(src == GPU_NO_ENTRY && none ? none : code);
            if (c->values == GPU_INT8) /* most matrices: no call for every entry */
                chunk[GPU_CHUNK * o->index + s] = src == GPU_NO_ENTRY ? 0 : row->raw[src];
            else
                row_put_value(o->m, c, row->raw, src, 1, chunk, o->index, s);
        }
        put_gaps(o, chunk + gaps, codes);
    }
    for (uint32_t k = 0; c->group && w->end && k < o->length; k++) {
        bool any = k < (w->n + GPU_CHUNK - 1) / GPU_CHUNK && w->end[k] < 4;
        /* The last chunk has to end something. */
        uint32_t end = any ? w->end[k] : k + 1 == o->length ? 3 : 4;
        uint32_t bits = any ? scale_bits(group_scale(o, w->group[k]), o->unit) : 0;
        put_u16(o->chunks + (size_t)k * stride + scales + 2 * o->index, bits | end << 13);
    }
}

static void write_dense(const struct lane *o, const struct row_buffer *row, uint32_t first,
                        uint32_t n_entries) {
    const struct gpu_coding *c = o->c;
    const uint32_t plane = GPU_LANES * gpu_coding_chunk_bytes(c);
    const uint32_t each = c->group ? gpu_group_chunks(c) : 0;
    uint8_t *p = o->chunks;
    for (uint32_t k = 0; k < o->length; k++) {
        for (uint32_t s = 0; s < GPU_CHUNK; s++) {
            uint32_t i = k * GPU_CHUNK + s;
            int32_t src = i < n_entries && first + i < row->n ? row->src[first + i] : GPU_NO_ENTRY;
            row_put_value(o->m, c, row->raw, src, entry_scale(o, first + i), p, o->index, s);
        }
        p += plane;
        if (!each || (k + 1) % each) continue;
        uint32_t group = first / c->group + k / each;
        bool any = k * GPU_CHUNK < n_entries && group < o->l->n_groups;
        put_u16(p + 2 * o->index, any ? scale_bits(group_scale(o, group), o->unit) : 0);
        p += 2 * GPU_LANES;
    }
}

static void push(struct walk *w, uint32_t col, int32_t src) {
    w->col[w->n] = col;
    w->src[w->n++] = src;
}

/*
 * Appends the values among the sequence's entries [from, to), a group, with `fill` columns in front
 * of them (as far as there are any) given to entries that fill up, and what bridges the gaps then.
 * A lane's columns rise, so every entry needs a column of its own. `w` may be NULL: only counts.
 */
static uint32_t put_group(struct walk *w, uint32_t next, const struct gpu_coding *c,
                          const struct row_buffer *b, uint32_t from, uint32_t to, uint32_t fill) {
    const uint32_t reach = (1u << c->gap_bits) - 1 - c->skip;
    const uint32_t step = c->skip ? 1 : 1u << c->gap_bits;
    uint32_t n = 0;
    for (uint32_t i = from; i < to; i++) {
        if (b->src[i] == GPU_NO_ENTRY) continue;
        for (; fill > 0 && next < b->col[i]; fill--, n++) {
            if (w) push(w, next, GPU_NO_ENTRY);
            next++;
        }
        for (; b->col[i] - next > reach; n++) {
            next += step;
            if (w) push(w, next - 1, GPU_NO_ENTRY);
        }
        if (w) push(w, b->col[i], b->src[i]);
        next = b->col[i] + 1;
        n++;
    }
    for (; fill > 0; fill--, n++)
        if (w) push(w, next++, GPU_NO_ENTRY);
    return n;
}

/* The walk over groups [begin, end) of a row: its sequence is in b. */
static void walk_groups(const struct gpu_layout *l, uint32_t row, const struct gpu_coding *c,
                        const struct block_item *item, const struct row_buffer *b, struct walk *w) {
    const uint16_t *in_group = l->in_group + (size_t)row * l->n_groups;
    uint32_t at = 0;
    for (uint32_t g = 0; g < item->begin; g++) at += in_group[g];
    w->n = 0;
    w->start = at ? b->col[at - 1] + 1 : 0;
    memset(w->end, 4, item->chunks);
    for (uint32_t g = item->begin; g < item->end; g++) {
        if (in_group[g] == 0) continue;
        /* One that fills up may spare a bridge: as many as make the number that was planned. */
        uint32_t n = in_group[g] + gpu_group_fill(w->n % GPU_CHUNK, in_group[g]), fill = 0;
        uint32_t next = w->n ? w->col[w->n - 1] + 1 : w->start;
        while (put_group(NULL, next, c, b, at, at + in_group[g], fill) < n) fill++;
        put_group(w, next, c, b, at, at + in_group[g], fill);
        at += in_group[g];
        w->end[(w->n - 1) / GPU_CHUNK] = (uint8_t)((w->n - 1) % GPU_CHUNK / 4);
        w->group[(w->n - 1) / GPU_CHUNK] = g;
    }
}

/* The walk over a whole row that keeps pace: what fills up takes the first columns of its bucket
 * that are free. */
static void walk_at_pace(const struct gpu_layout *l, uint32_t row, const uint32_t *pace,
                         struct worker *worker) {
    const struct row_buffer *b = &worker->row;
    struct walk *w = &worker->walk;
    uint32_t next = 0, i = 0;
    gpu_pace_row(l, l->in_bucket + (size_t)row * l->n_buckets, pace, worker->fill);
    w->n = 0;
    for (uint32_t k = 0; k < l->n_buckets; k++) {
        uint32_t fill = worker->fill[k], end;
        for (; fill > 0 && i < b->n && b->col[i] < (k + 1) * GPU_BUCKET; i++) {
            for (; fill > 0 && next < b->col[i]; fill--) push(w, next++, GPU_NO_ENTRY);
            push(w, b->col[i], b->src[i]);
            next = b->col[i] + 1;
        }
        for (; fill > 0; fill--) push(w, next++, GPU_NO_ENTRY);
        for (end = i; end < b->n && b->col[end] < (k + 1) * GPU_BUCKET;) end++;
        if (end == i) continue;
        memcpy(w->col + w->n, b->col + i, (end - i) * sizeof *w->col);
        memcpy(w->src + w->n, b->src + i, (end - i) * sizeof *w->src);
        w->n += end - i;
        next = b->col[end - 1] + 1;
        i = end;
    }
}

static void write_item(const struct gpu_layout *l, uint32_t row, const struct block_item *item,
                       struct lane *o, struct worker *worker, struct gpu_task *task) {
    const struct row_buffer *b = &worker->row;
    uint32_t start = 0;
    if (o->c->gap_bits == 0) {
        uint32_t unit = o->c->group ? o->c->group : GPU_CHUNK;
        start = item->begin * unit;
        write_dense(o, b, start, (item->end - item->begin) * unit);
    } else if (o->c->group) {
        walk_groups(l, row, o->c, item, b, &worker->walk);
        start = worker->walk.start;
        write_gapped(o, b, &worker->walk);
    } else {
        const struct walk *row_walk = &worker->walk;
        uint32_t from = item->begin * GPU_CHUNK, to = item->end * GPU_CHUNK, n = row_walk->n;
        struct walk w = {.col = row_walk->col + from,
                         .src = row_walk->src + from,
                         .n = (to < n ? to : n) - from,
                         .start = from ? row_walk->col[from - 1] + 1 : 0};
        start = w.start;
        write_gapped(o, b, &w);
    }
    task->row[o->index] = (uint16_t)item->row;
    task->col[o->index] = (uint16_t)start;
}

static void write_header(const struct gpu_layout *l, const struct block_task *t, uint8_t *p) {
    const struct gpu_coding *c = &l->coding[t->matrix];
    struct gpu_task task = {.length = (uint16_t)t->length,
                            .group = (uint16_t)c->group,
                            .values = (uint8_t)c->values,
                            .gap_bits = (uint8_t)c->gap_bits,
                            .matrix = (uint8_t)t->matrix,
                            .flags = c->skip ? GPU_TASK_SKIP : 0};
    for (int i = 0; i < GPU_LANES; i++) task.row[i] = GPU_NO_ROW;
    memcpy(p, &task, sizeof task);
}

/* Lets lanes without a row walk along with the first lane, so that they read no words of their own. */
static void fill_idle_lanes(const struct gpu_coding *c, const struct block_task *t, uint8_t *p) {
    struct gpu_task *task = (struct gpu_task *)(void *)p;
    uint32_t planes[2];
    gap_planes(c->gap_bits, planes);
    for (uint32_t i = t->n; i < GPU_LANES; i++) task->col[i] = task->col[0];
    if (c->gap_bits == 0) return;
    p += sizeof *task;
    for (uint32_t k = 0; k < t->length; k++, p += GPU_LANES * gpu_coding_chunk_bytes(c)) {
        uint8_t *plane = p + GPU_LANES * gpu_value_bytes(c->values);
        for (int j = 0; j < 2; plane += GPU_LANES * planes[j++])
            for (uint32_t i = t->n; i < GPU_LANES; i++)
                memcpy(plane + (size_t)i * planes[j], plane, planes[j]);
    }
}

/* Items of a block in the order of their rows, with their places. */
struct place {
    uint32_t row;
    uint32_t item;
    uint32_t task;
};

static int compare_places(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return x->item < y->item ? -1 : 1;
}

static pdvm_status write_block(const struct write_job *job, uint32_t b, struct worker *worker,
                               pdvm_error *err) {
    const struct gpu_layout *l = job->l;
    struct block_plan plan;
    struct place *places = NULL;
    uint8_t *data = job->data + 16 * (uint64_t)l->streams[(size_t)b * l->n_warps];
    pdvm_status status = block_plan_create(l, b, &plan, err);
    if (status == PDVM_OK)
        status = pd_calloc(&places, plan.n_items, sizeof *places, "packing", err);
    if (status != PDVM_OK) {
        block_plan_free(&plan);
        return status;
    }
    for (uint32_t t = 0; t < plan.n_tasks; t++) {
        memset(data + plan.tasks[t].offset, 0, plan.tasks[t].size);
        write_header(l, &plan.tasks[t], data + plan.tasks[t].offset);
        for (uint32_t i = 0; i < plan.tasks[t].n; i++) {
            uint32_t item = plan.tasks[t].first + i;
            places[item] = (struct place){plan.items[item].row, item, t};
        }
    }
    if (plan.n_items) qsort(places, plan.n_items, sizeof *places, compare_places);
    for (size_t i = 0; i < plan.n_items; i++) {
        const struct block_item *item = &plan.items[places[i].item];
        const struct block_task *t = &plan.tasks[places[i].task];
        uint32_t row = l->block_rows[b] + item->row;
        struct lane o = {.l = l, .unit = l->units[row], .length = t->length};
        int matrix = gpu_layout_row(l, row, &o.r);
        o.m = l->matrix[matrix];
        o.c = &l->coding[matrix];
        if (i == 0 || places[i - 1].row != item->row) {
            row_sequence(o.m, o.c, o.r, &worker->row);
            mdcsr_row_entries_raw(o.m, o.r, worker->row.raw);
            if (gpu_is_paced(o.c))
                walk_at_pace(l, row,
                             plan.tiling[t->matrix].pace + (size_t)item->tile * l->n_buckets,
                             worker);
        }
        o.index = places[i].item - t->first;
        o.chunks = data + t->offset + sizeof(struct gpu_task);
        write_item(l, row, item, &o, worker, (struct gpu_task *)(void *)(data + t->offset));
    }
    for (uint32_t t = 0; t < plan.n_tasks; t++)
        fill_idle_lanes(&l->coding[plan.tasks[t].matrix], &plan.tasks[t],
                        data + plan.tasks[t].offset);
    free(places);
    block_plan_free(&plan);
    return PDVM_OK;
}

static void write_blocks(void *arg, int64_t begin, int64_t end, int worker) {
    const struct write_job *job = arg;
    for (int64_t b = begin; b < end && job->status[worker] == PDVM_OK; b++)
        job->status[worker] =
            write_block(job, (uint32_t)b, &job->workers[worker], &job->errors[worker]);
}

static pdvm_status create_workers(struct write_job *job, int n, pdvm_error *err) {
    PD_TRY(pd_calloc(&job->workers, (size_t)n, sizeof *job->workers, "packing", err));
    PD_TRY(pd_calloc(&job->status, (size_t)n, sizeof *job->status, "packing", err));
    PD_TRY(pd_calloc(&job->errors, (size_t)n, sizeof *job->errors, "packing", err));
    for (int i = 0; i < n; i++) {
        struct walk *w = &job->workers[i].walk;
        PD_TRY(row_buffer_create(&job->workers[i].row, job->l->n_in, err));
        if (!job->l->in_group && !job->l->in_bucket) continue;
        PD_TRY(pd_calloc(&job->workers[i].fill, (size_t)job->l->n_buckets + 1, 1, "packing", err));
        /* Every column may become an entry, and a group may begin a chunk of its own. */
        size_t most = (size_t)job->l->x_cols + GPU_CHUNK;
        PD_TRY(pd_calloc(&w->col, most, sizeof *w->col, "packing", err));
        PD_TRY(pd_calloc(&w->src, most, sizeof *w->src, "packing", err));
        PD_TRY(pd_calloc(&w->end, most, 1, "packing", err));
        PD_TRY(pd_calloc(&w->group, most, sizeof *w->group, "packing", err));
    }
    return PDVM_OK;
}

static void free_workers(struct write_job *job, int n) {
    for (int i = 0; job->workers && i < n; i++) {
        row_buffer_free(&job->workers[i].row);
        free(job->workers[i].fill);
        free(job->workers[i].walk.col);
        free(job->workers[i].walk.src);
        free(job->workers[i].walk.end);
        free(job->workers[i].walk.group);
    }
    free(job->workers);
    free(job->status);
    free(job->errors);
}

pdvm_status gpu_layout_write(const struct gpu_layout *l, struct pd_threads *threads, uint8_t *data,
                             pdvm_error *err) {
    int n = pd_threads_count(threads);
    struct write_job job = {.l = l, .data = data};
    pdvm_status status = create_workers(&job, n, err);
    if (status == PDVM_OK) pd_threads_for(threads, l->n_blocks, 1, write_blocks, &job);
    for (int i = 0; status == PDVM_OK && i < n; i++) {
        if (job.status[i] == PDVM_OK) continue;
        status = job.status[i];
        if (err) *err = job.errors[i];
    }
    free_workers(&job, n);
    return status;
}
