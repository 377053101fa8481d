#include "compress/grid.h"

#include "base/alloc.h"
#include "base/threads.h"
#include "compress/solver.h"
#include "mdcsr/layout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Weights per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 15)

/* Columns that are nearly always silent count this share of the mean, as damping has it for H. */
#define LEAST_WEIGHT 0.01

bool grid_wanted(const struct mdcsr_options *coding) {
    return coding && mdcsr_has_scales(coding->values);
}

pdvm_status grid_weights(const double *diagonal, int64_t cols, float **out, pdvm_error *err) {
    double sum = 0;
    PD_TRY(pd_calloc(out, (size_t)cols, sizeof **out, "weights of columns", err));
    for (int64_t c = 0; c < cols; c++) sum += diagonal[c];
    double mean = sum / (double)cols;
    for (int64_t c = 0; c < cols; c++)
        (*out)[c] = mean > 0 ? (float)(diagonal[c] / mean + LEAST_WEIGHT) : 1;
    return PDVM_OK;
}

/* A worker's copy of one row without its zeros. */
struct scratch {
    float *x;
    float *weight;
    int64_t *ends;
};

struct fitting {
    struct grid *g;
    const float *w;
    const float *weight; /* [cols], or NULL */
    int64_t cols;
    struct scratch *scratch; /* one per worker */
};

static void fit_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct fitting *f = arg;
    const struct scratch *s = &f->scratch[worker];
    struct grid *g = f->g;
    for (int64_t r = begin; r < end; r++) {
        int64_t first = 0;
        mdcsr_pack_row(f->w + r * f->cols, f->weight, f->cols, g->group, s->x, s->weight, s->ends);
        for (int64_t i = 0; i < g->n_groups; i++) {
            const float *weight = f->weight ? s->weight + first : NULL;
            float scale =
                mdcsr_book_scale(&g->book, s->x + first, weight, s->ends[i] - first, g->group != 0);
            /* A book that is the same on both sides makes no difference; int8 has no sign here. */
            if (g->book.symmetric) scale = fabsf(scale);
            g->scales[r * g->n_groups + i] = scale;
            first = s->ends[i];
        }
    }
}

static pdvm_status fit_scales(struct fitting *f, int64_t rows, struct pd_threads *threads,
                              pdvm_error *err) {
    int n_workers = pd_threads_count(threads);
    size_t cols = (size_t)f->cols;
    PD_TRY(pd_calloc(&f->scratch, (size_t)n_workers, sizeof *f->scratch, "a row", err));
    for (int i = 0; i < n_workers; i++) {
        struct scratch *s = &f->scratch[i];
        PD_TRY(pd_calloc(&s->x, cols + 1, sizeof *s->x, "a row", err));
        PD_TRY(pd_calloc(&s->weight, cols + 1, sizeof *s->weight, "a row", err));
        PD_TRY(pd_calloc(&s->ends, (size_t)f->g->n_groups, sizeof *s->ends, "a row", err));
    }
    pd_threads_for(threads, rows, PIECE / f->cols + 1, fit_rows, f);
    return PDVM_OK;
}

/*
 * Whether the encoder might store the zeros among the values, because an index would cost more than
 * it saves. A little more often than it does: the choice also depends on the offsets.
 */
static bool zeros_stored(const struct mdcsr_options *coding, int64_t entries, int64_t size) {
    int bits = coding->values == MDCSR_LUT4 ? 4 : 8;
    if (entries == size) return false;
    if (!coding->index_auto) return coding->index == MDCSR_DENSE;
    return (double)(size - entries) * bits < 1.2 * (double)size;
}

static pdvm_status fit_book(const struct fitting *f, int64_t rows,
                            const struct mdcsr_options *coding, struct pd_threads *threads,
                            pdvm_error *err) {
    struct mdcsr_sample sample = {0};
    int64_t size = rows * f->cols, entries = 0;
    for (int64_t i = 0; i < size; i++) entries += f->w[i] != 0;
    pdvm_status status = PDVM_OK;
    if (coding->values != MDCSR_INT8 && coding->codebook != MDCSR_PRIME)
        status =
            mdcsr_sample_make(f->w, rows, f->cols, f->g->group, f->weight, entries, &sample, err);
    if (status == PDVM_OK)
        status =
            mdcsr_book_make(coding->values, coding->codebook, zeros_stored(coding, entries, size),
                            &sample, threads, &f->g->book, err);
    mdcsr_sample_free(&sample);
    return status;
}

pdvm_status grid_fit(const float *w, int64_t rows, int64_t cols, const float *weight,
                     const struct mdcsr_options *coding, struct pd_threads *threads,
                     struct grid *out, pdvm_error *err) {
    struct fitting f = {.g = out, .w = w, .weight = weight, .cols = cols};
    *out = (struct grid){.group = coding->group,
                         .n_groups = mdcsr_groups(coding->values, cols, coding->group)};
    if (!mdcsr_group_valid(coding->group))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "group %u: must be 0, 32, 64, 128 or 256",
                       (unsigned)coding->group);
    pdvm_status status = pd_calloc(&out->scales, (size_t)rows * (size_t)out->n_groups,
                                   sizeof *out->scales, "scales", err);
    if (status == PDVM_OK) status = fit_book(&f, rows, coding, threads, err);
    if (status == PDVM_OK) status = fit_scales(&f, rows, threads, err);
    for (int i = 0; f.scratch && i < pd_threads_count(threads); i++) {
        free(f.scratch[i].x);
        free(f.scratch[i].weight);
        free(f.scratch[i].ends);
    }
    free(f.scratch);
    if (status != PDVM_OK) grid_free(out);
    return status;
}

struct rounding {
    const struct grid *g;
    float *w;
    int64_t cols;
};

static void round_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct rounding *a = arg;
    const struct grid *g = a->g;
    int64_t width = g->group ? g->group : a->cols;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float *scales = g->scales + r * g->n_groups;
        float *w = a->w + r * a->cols;
        for (int64_t c = 0; c < a->cols; c++) {
            if (w[c] != 0) w[c] = grid_round(&g->book, w[c], scales[c / width]);
        }
    }
}

void grid_round_matrix(const struct grid *g, float *w, int64_t rows, int64_t cols,
                       struct pd_threads *threads) {
    struct rounding a = {g, w, cols};
    pd_threads_for(threads, rows, PIECE / cols + 1, round_rows, &a);
}

void grid_give(struct grid *g, struct mdcsr_grid *out) {
    int n = g->book.n == 255 ? 0 : g->book.n;
    memset(out->codebook, 0, sizeof out->codebook);
    memcpy(out->codebook, g->book.entry, (size_t)n * sizeof *out->codebook);
    out->scales = g->scales;
    g->scales = NULL;
}

void grid_free(struct grid *g) {
    free(g->scales);
    g->scales = NULL;
}

pdvm_status solver_fit_grid(float *w, int64_t rows, int64_t cols, const double *diagonal,
                            const struct mdcsr_options *coding, struct pd_threads *threads,
                            struct mdcsr_grid *out, pdvm_error *err) {
    struct grid g = {0};
    float *weight = NULL;
    out->scales = NULL;
    if (!grid_wanted(coding)) return PDVM_OK;
    if (diagonal) PD_TRY(grid_weights(diagonal, cols, &weight, err));
    pdvm_status status = grid_fit(w, rows, cols, weight, coding, threads, &g, err);
    free(weight);
    if (status != PDVM_OK) return status;
    grid_round_matrix(&g, w, rows, cols, threads);
    grid_give(&g, out);
    return PDVM_OK;
}
