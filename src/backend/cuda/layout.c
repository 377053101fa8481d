#include "backend/cuda/layout.h"

#include "backend/cuda/layout_block.h"
#include "backend/cuda/layout_rows.h"
#include "base/alloc.h"
#include "base/checked.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the parallel loops share; the first failure is kept. */
struct job {
    struct gpu_layout *l;
    struct row_buffer *buffers; /* [n_workers] */
    uint64_t *block_bytes;      /* [n_blocks * n_warps] */
    uint32_t *block_fill;       /* [n_blocks] */
    double *bounds;             /* [rows] */
    uint32_t *slots;            /* [rows] */
    pdvm_status *status;        /* [n_workers] */
    pdvm_error *errors;
};

/* Group of an entry in a sequence: what bridges a gap belongs to what comes after it. */
static void count_groups(const struct gpu_coding *c, const struct row_buffer *b,
                         uint16_t *in_group) {
    for (uint32_t i = 0; i < b->n;) {
        uint32_t first = i;
        while (b->src[i] == GPU_NO_ENTRY) i++; /* the last of a sequence is an entry */
        in_group[b->col[i] / c->group] += (uint16_t)(i - first + 1);
        i++;
    }
}

static void count_buckets(const struct row_buffer *b, uint8_t *in_bucket) {
    for (uint32_t i = 0, k = 0; i < b->n; k++) {
        uint32_t first = i, end = (k + 1) * GPU_BUCKET;
        while (i < b->n && b->col[i] < end) i++;
        in_bucket[k] = (uint8_t)(i - first);
    }
}

static double sum_of_magnitudes(const struct mdcsr *m, int64_t r, struct row_buffer *b) {
    double sum = 0;
    float *values = (float *)(void *)b->raw;
    mdcsr_decode_row(m, r, values);
    for (int64_t i = 0; i < m->cols; i++) sum += fabs((double)values[i]);
    return sum;
}

static void measure_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct job *job = arg;
    struct gpu_layout *l = job->l;
    struct row_buffer *b = &job->buffers[worker];
    for (int64_t row = begin; row < end; row++) {
        int64_t r;
        int i = gpu_layout_row(l, (uint32_t)row, &r);
        const struct mdcsr *m = l->matrix[i];
        const struct gpu_coding *c = &l->coding[i];
        row_sequence(m, c, r, b);
        job->slots[row] = b->n;
        if (c->group && c->gap_bits) {
            uint16_t *in_group = l->in_group + (size_t)row * l->n_groups;
            count_groups(c, b, in_group);
            l->chunks[row] = gpu_groups_chunks(in_group, 0, l->n_groups);
        } else if (c->group) {
            l->chunks[row] = l->n_groups * gpu_group_chunks(c);
        } else {
            l->chunks[row] = (b->n + GPU_CHUNK - 1) / GPU_CHUNK;
            if (gpu_is_paced(c)) count_buckets(b, l->in_bucket + (size_t)row * l->n_buckets);
        }
        if (c->values >= GPU_F16) job->bounds[row] = sum_of_magnitudes(m, r, b);
    }
}

/*
 * A group's scale is m * units[row], m a significand of 8 bits shifted left by up to 15 (abi.h).
 * Scales are bfloat16, whose significands have 8 bits: exact unless a row's scales span more.
 */
static float unit_of_groups(const float *scales, int64_t n) {
    int low = INT32_MAX, high = INT32_MIN;
    for (int64_t g = 0; g < n; g++) {
        int e;
        if (scales[g] == 0) continue;
        (void)frexpf(scales[g], &e);
        if (e < low) low = e;
        if (e > high) high = e;
    }
    if (low > high) return 1;
    if (low < high - 15) low = high - 15;
    if (low - 8 < -149) low = -141; /* the smallest number that a float can be */
    return ldexpf(1, low - 8);
}

static void fill_units(struct gpu_layout *l) {
    for (uint32_t row = 0; row < l->rows; row++) {
        int64_t r;
        int i = gpu_layout_row(l, row, &r);
        const struct mdcsr *m = l->matrix[i];
        if (l->coding[i].values >= GPU_F16)
            l->units[row] = 1; /* not read */
        else if (l->coding[i].group)
            l->units[row] = unit_of_groups(m->scales + r * m->n_groups, m->n_groups);
        else
            l->units[row] = m->scales[r];
    }
}

/* Boundaries between blocks, where the bytes of the rows before come nearest to an equal share. */
static void split_rows(struct gpu_layout *l) {
    uint32_t step = l->alternate ? 2 : 1;
    double total = 0, before = 0;
    for (int pass = 0; pass < 2; pass++) {
        uint32_t b = 1;
        before = 0;
        for (uint32_t row = 0; row < l->rows; row += step) {
            double bytes = 1; /* rows without entries are work, too */
            for (uint32_t i = row; i < row + step; i++) {
                int64_t r;
                const struct gpu_coding *c = &l->coding[gpu_layout_row(l, i, &r)];
                bytes += (double)l->chunks[i] * gpu_coding_chunk_bytes(c);
            }
            if (pass == 1)
                while (b < l->n_blocks && before + bytes / 2 >= total * b / l->n_blocks)
                    l->block_rows[b++] = row;
            before += bytes;
        }
        if (pass == 1)
            while (b <= l->n_blocks) l->block_rows[b++] = l->rows;
        total = before;
    }
}

static void fail(const struct job *job, int worker, pdvm_status status) {
    if (job->status[worker] == PDVM_OK) job->status[worker] = status;
}

static void size_blocks(void *arg, int64_t begin, int64_t end, int worker) {
    const struct job *job = arg;
    const struct gpu_layout *l = job->l;
    for (int64_t b = begin; b < end && job->status[worker] == PDVM_OK; b++) {
        struct block_plan plan;
        fail(job, worker, block_plan_create(l, (uint32_t)b, &plan, &job->errors[worker]));
        if (job->status[worker] == PDVM_OK) {
            memcpy(job->block_bytes + b * l->n_warps, plan.warp_bytes,
                   l->n_warps * sizeof *plan.warp_bytes);
            job->block_fill[b] = plan.fill;
        }
        block_plan_free(&plan);
    }
}

static pdvm_status join_status(const struct job *job, int n_workers, pdvm_error *err) {
    for (int i = 0; i < n_workers; i++) {
        if (job->status[i] == PDVM_OK) continue;
        if (err) *err = job->errors[i];
        return job->status[i];
    }
    return PDVM_OK;
}

static pdvm_status set_streams(struct gpu_layout *l, const struct job *job, pdvm_error *err) {
    uint64_t at = 0;
    uint32_t fill = 1;
    for (size_t i = 0; i < (size_t)l->n_blocks * l->n_warps; i++) {
        l->streams[i] = (uint32_t)(at / 16);
        at += job->block_bytes[i];
    }
    if (at / 16 > UINT32_MAX)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "a phase of %.1f GB: the GPU backend has 64 GB",
                       (double)at * 1e-9);
    l->streams[(size_t)l->n_blocks * l->n_warps] = (uint32_t)(at / 16);
    l->size = at;
    for (uint32_t b = 0; b < l->n_blocks; b++)
        if (job->block_fill[b] + 1 > fill) fill = job->block_fill[b] + 1;
    /* What fills up comes behind the entries; a lane without a row walks from column 0. */
    uint64_t groups = 0;
    for (int i = 0; i < l->n_matrices; i++) {
        const struct gpu_coding *c = &l->coding[i];
        if (c->group) groups = (uint64_t)l->n_groups * c->group;
    }
    uint64_t x_cols = (l->n_in > groups ? l->n_in : groups) + (uint64_t)GPU_CHUNK * fill;
    x_cols = pd_round_up(x_cols, 64);
    if (x_cols < GPU_CHUNK * 64) x_cols = GPU_CHUNK * 64;
    if (x_cols > GPU_MAX_COLS)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "a matrix of %u columns: the GPU backend can address %u", l->n_in,
                       GPU_MAX_COLS);
    l->x_cols = (uint32_t)x_cols;
    return PDVM_OK;
}

static pdvm_status job_create(struct job *job, struct gpu_layout *l, int n_workers,
                              pdvm_error *err) {
    *job = (struct job){.l = l};
    size_t n = (size_t)n_workers;
    PD_TRY(pd_calloc(&job->status, n, sizeof *job->status, "packing", err));
    PD_TRY(pd_calloc(&job->errors, n, sizeof *job->errors, "packing", err));
    PD_TRY(pd_calloc(&job->buffers, n, sizeof *job->buffers, "packing", err));
    for (size_t i = 0; i < n; i++) PD_TRY(row_buffer_create(&job->buffers[i], l->n_in, err));
    PD_TRY(pd_calloc(&job->block_bytes, (size_t)l->n_blocks * l->n_warps, sizeof *job->block_bytes,
                     "packing", err));
    PD_TRY(pd_calloc(&job->block_fill, l->n_blocks, sizeof *job->block_fill, "packing", err));
    PD_TRY(pd_calloc(&job->bounds, l->rows, sizeof *job->bounds, "packing", err));
    return pd_calloc(&job->slots, l->rows, sizeof *job->slots, "packing", err);
}

static void job_free(struct job *job, int n_workers) {
    for (int i = 0; job->buffers && i < n_workers; i++) row_buffer_free(&job->buffers[i]);
    free(job->buffers);
    free(job->status);
    free(job->errors);
    free(job->block_bytes);
    free(job->block_fill);
    free(job->bounds);
    free(job->slots);
}

static pdvm_status decide(struct gpu_layout *l, struct job *job, struct pd_threads *threads,
                          pdvm_error *err) {
    for (int i = 0; i < l->n_matrices; i++) {
        struct gpu_coding *c = &l->coding[i];
        row_choose_coding(l->matrix[i], &job->buffers[0], c);
        l->act |= c->values >= GPU_F16 ? GPU_ACT_FLOAT : GPU_ACT_INT;
        if (gpu_is_paced(c)) l->n_buckets = (l->n_in + GPU_BUCKET - 1) / GPU_BUCKET;
        if (!c->group) continue;
        uint32_t n_groups = (l->n_in + c->group - 1) / c->group;
        if (l->n_groups && l->n_groups != n_groups)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "matrices of one phase have groups of different widths: the GPU "
                           "backend needs them to be equal");
        l->n_groups = n_groups;
    }
    if (l->n_groups)
        PD_TRY(pd_calloc(&l->in_group, (size_t)l->rows * l->n_groups, sizeof *l->in_group,
                         "packing", err));
    if (l->n_buckets)
        PD_TRY(pd_calloc(&l->in_bucket, (size_t)l->rows * l->n_buckets, sizeof *l->in_bucket,
                         "packing", err));
    pd_threads_for(threads, l->rows, 16, measure_rows, job);
    for (uint32_t row = 0; row < l->rows; row++) {
        int64_t r;
        int i = gpu_layout_row(l, row, &r);
        if (job->bounds[row] > (double)l->bound[i])
            l->bound[i] = nextafterf((float)job->bounds[row], INFINITY);
        l->n_slots += job->slots[row];
    }
    fill_units(l);
    split_rows(l);
    pd_threads_for(threads, l->n_blocks, 1, size_blocks, job);
    PD_TRY(join_status(job, pd_threads_count(threads), err));
    return set_streams(l, job, err);
}

pdvm_status gpu_layout_create(const struct mdcsr *const *matrix, int n, bool alternate,
                              uint32_t n_blocks, uint32_t n_warps, struct pd_threads *threads,
                              struct gpu_layout *out, pdvm_error *err) {
    int64_t rows = 0;
    *out = (struct gpu_layout){.n_matrices = n,
                               .alternate = alternate,
                               .n_blocks = n_blocks,
                               .n_warps = n_warps,
                               .n_in = (uint32_t)matrix[0]->cols};
    for (int i = 0; i < n; i++) {
        out->matrix[i] = matrix[i];
        rows += matrix[i]->rows;
    }
    if (matrix[0]->cols > GPU_MAX_COLS || rows > INT32_MAX)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%lld rows of %lld columns: the GPU backend can address %d and %u",
                       (long long)rows, (long long)matrix[0]->cols, INT32_MAX, GPU_MAX_COLS);
    out->rows = (uint32_t)rows;
    pdvm_status status =
        pd_calloc(&out->block_rows, (size_t)n_blocks + 1, sizeof *out->block_rows, "packing", err);
    if (status == PDVM_OK)
        status = pd_calloc(&out->streams, (size_t)n_blocks * n_warps + 1, sizeof *out->streams,
                           "packing", err);
    if (status == PDVM_OK)
        status = pd_calloc(&out->units, out->rows, sizeof *out->units, "packing", err);
    if (status == PDVM_OK)
        status = pd_calloc(&out->chunks, out->rows, sizeof *out->chunks, "packing", err);
    struct job job = {0};
    int n_workers = pd_threads_count(threads);
    if (status == PDVM_OK) status = job_create(&job, out, n_workers, err);
    if (status == PDVM_OK) status = decide(out, &job, threads, err);
    job_free(&job, n_workers);
    if (status != PDVM_OK) gpu_layout_free(out);
    return status;
}

void gpu_layout_trim(struct gpu_layout *l) {
    free(l->in_group);
    free(l->in_bucket);
    l->in_group = NULL;
    l->in_bucket = NULL;
}

void gpu_layout_free(struct gpu_layout *l) {
    gpu_layout_trim(l);
    free(l->block_rows);
    free(l->streams);
    free(l->units);
    free(l->chunks);
    *l = (struct gpu_layout){0};
}
