#include "mdcsr/book.h"

#include "base/alloc.h"
#include "base/half.h"
#include "base/sort.h"
#include "base/threads.h"
#include "mdcsr/layout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The histogram that Lloyd's algorithm works on covers [-RANGE, RANGE] of x / scale; what lies
 * outside (clipped values) is counted in the outer bins with its true value. */
#define BINS 16384
#define RANGE 2.0
#define BIN_WIDTH (2 * RANGE / BINS)

#define LLOYD_STEPS 200
#define ROUNDS 5

float mdcsr_bf16_up(float scale) {
    uint32_t bits = pd_float_bits(scale);
    uint32_t up = ((bits & 0x7fffffffu) + 0xffffu) & 0xffff0000u;
    if (up > 0x7f7f0000u) up = 0x7f7f0000u;
    return pd_bits_float((bits & 0x80000000u) | up);
}

/* ---- nearest entries ------------------------------------------------------------------- */

static void book_prepare(struct mdcsr_book *b) {
    b->max = 0;
    b->symmetric = true;
    for (int i = 0; i < b->n; i++) {
        if (fabsf(b->entry[i]) > b->max) b->max = fabsf(b->entry[i]);
        if (b->entry[i] != -b->entry[b->n - 1 - i]) b->symmetric = false;
    }
    for (int i = 0; i + 1 < b->n; i++) b->bound[i] = 0.5f * (b->entry[i] + b->entry[i + 1]);
    b->bound[b->n - 1] = INFINITY;
    b->cells_per_unit = 0.5f * MDCSR_BOOK_CELLS / b->max;
    int code = 0;
    for (int cell = 0; cell < MDCSR_BOOK_CELLS; cell++) {
        /* A quarter of a cell lower, so that rounding can only make the search a step longer. */
        float edge = ((float)cell - 0.25f) / b->cells_per_unit - b->max;
        while (edge > b->bound[code]) code++;
        b->first[cell] = cell == 0 ? 0 : (uint8_t)code;
        float middle = ((float)cell + 0.5f) / b->cells_per_unit - b->max;
        int nearest = code;
        while (middle > b->bound[nearest]) nearest++;
        b->value[cell] = b->entry[nearest];
    }
}

double mdcsr_book_encode(const struct mdcsr_book *b, const float *x, int64_t n, float scale,
                         uint8_t *codes) {
    float inverse = scale == 0 ? 0 : 1.0f / scale;
    double error = 0;
    for (int64_t i = 0; i < n; i++) {
        unsigned code = mdcsr_book_code(b, x[i] * inverse);
        double d = (double)x[i] - (double)(scale * b->entry[code]);
        if (codes) codes[i] = (uint8_t)code;
        error += d * d;
    }
    return error;
}

/*
 * Squared error of x[n] at a scale, with entries looked up by cell: all but exact, and without
 * branches, because this is where encoding spends its time. Stops once it exceeds `limit`.
 * Inline, so that the compiler makes a form without weights.
 */
static inline double cell_error(const struct mdcsr_book *b, const float *x, const float *weight,
                                int64_t n, float scale, double limit) {
    float inverse = 1.0f / scale, step = inverse * b->cells_per_unit;
    float middle = b->max * b->cells_per_unit, last = MDCSR_BOOK_CELLS - 1;
    double error = 0, unit = (double)scale * (double)scale;
    int64_t i = 0;
    while (i < n && error <= limit) {
        /* Eight sums side by side, in units of the scale, where float32 is wide enough. */
        float sums[8] = {0};
        int64_t end = i + 64 < n ? i + 64 : n;
        for (; i + 8 <= end; i += 8) {
            int32_t cell[8];
            for (int k = 0; k < 8; k++) {
                float f = x[i + k] * step + middle;
                f = f > 0 ? f : 0;
                f = f < last ? f : last;
                cell[k] = (int32_t)f;
            }
            for (int k = 0; k < 8; k++) {
                float d = x[i + k] * inverse - b->value[cell[k]];
                sums[k] += weight ? weight[i + k] * (d * d) : d * d;
            }
        }
        for (int k = 0; i < end; i++, k++) {
            float f = x[i] * step + middle;
            f = f > 0 ? f : 0;
            f = f < last ? f : last;
            float d = x[i] * inverse - b->value[(int32_t)f];
            sums[k] += weight ? weight[i] * (d * d) : d * d;
        }
        float sum = 0;
        for (int k = 0; k < 8; k++) sum += sums[k];
        error += unit * (double)sum;
    }
    return error;
}

static double try_scale(const struct mdcsr_book *b, const float *x, const float *weight, int64_t n,
                        float scale, double limit) {
    return weight ? cell_error(b, x, weight, n, scale, limit)
                  : cell_error(b, x, NULL, n, scale, limit);
}

struct search {
    const struct mdcsr_book *b;
    const float *x;
    const float *weight; /* NULL: 1 each */
    int64_t n;
    float best;
    double error;
};

/* True if `scale` is better than what was found so far. */
static bool search_try(struct search *s, float scale) {
    if (!(fabsf(scale) >= MDCSR_SMALLEST_SCALE) || !isfinite(scale * s->b->max)) return false;
    double error = try_scale(s->b, s->x, s->weight, s->n, scale, s->error);
    if (error >= s->error) return false;
    s->error = error;
    s->best = scale;
    return true;
}

/* Tries `base` made smaller by a fraction. */
static bool search_step(struct search *s, float base, float less, bool bf16) {
    float scale = base * (1.0f - less);
    return search_try(s, bf16 ? mdcsr_bf16_up(scale) : scale);
}

/* The least squares scale for the codes that the best scale so far gives. */
static float refine(const struct search *s) {
    float inverse = 1.0f / s->best;
    double xb = 0, bb = 0;
    for (int64_t i = 0; i < s->n; i++) {
        double e = (double)s->b->entry[mdcsr_book_code(s->b, s->x[i] * inverse)];
        double h = s->weight ? (double)s->weight[i] : 1;
        xb += h * (double)s->x[i] * e;
        bb += h * e * e;
    }
    return bb > 0 ? (float)(xb / bb) : s->best;
}

static float largest(const float *x, int64_t n) {
    float max = 0, min = 0;
    for (int64_t i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
        min = x[i] < min ? x[i] : min;
    }
    return max >= -min ? max : min;
}

float mdcsr_book_scale(const struct mdcsr_book *b, const float *x, const float *weight, int64_t n,
                       bool bf16) {
    float base = largest(x, n) / b->max;
    struct search s = {b, x, weight, n, 0, 0};
    for (int64_t i = 0; i < n; i++)
        s.error += (weight ? (double)weight[i] : 1) * (double)x[i] * (double)x[i];
    /* Small books gain from giving up the largest values; large ones hardly. Long rows have
     * rarer, larger maxima, so the walk goes on for as long as it pays. */
    float step = b->n == 16 ? 0.05f : 0.015f;
    /* The fewer values, the less even the error is along the way. */
    int best = 0, stride = n <= 32 ? 1 : 2, end = n <= 32 ? 3 : 6;
    float direction = 1;
    for (int sign = 0; sign < (b->symmetric ? 1 : 2); sign++) {
        bool better = true;
        for (int k = -2; k <= end || (better && (float)k * step < 0.9f); k += stride) {
            better = search_step(&s, sign ? -base : base, (float)k * step, bf16);
            if (better) {
                best = k;
                direction = sign ? -1 : 1;
            }
        }
    }
    search_step(&s, direction * base, (float)(best - 1) * step, bf16);
    if (stride > 1) search_step(&s, direction * base, (float)(best + 1) * step, bf16);
    if (s.best == 0) return 0;
    float refined = refine(&s);
    if (bf16) refined = pd_bf16_to_float(pd_float_to_bf16(refined));
    search_try(&s, refined);
    return s.best;
}

/* ---- fixed books ----------------------------------------------------------------------- */

static int is_prime(int n) {
    for (int d = 2; d * d <= n; d++)
        if (n % d == 0) return 0;
    return 1;
}

/* 1/2, 1/3, 1/5, ... with both signs, the largest made 1 (127 for LUT4, in whole numbers). */
static void book_prime(struct mdcsr_book *b, bool zero) {
    int half = b->n / 2, p = 1;
    for (int i = 0; i < half; i++) {
        do p++;
        while (!is_prime(p));
        float v = b->n == 16 ? rintf(254.0f / (float)p) : 2.0f / (float)p;
        b->entry[i] = -v;
        b->entry[b->n - 1 - i] = v;
    }
    if (zero) b->entry[half - 1] = 0; /* in place of the negative entry next to it */
    book_prepare(b);
}

/* INT8 as a book: the whole numbers -127..127. */
static void book_int8(struct mdcsr_book *b) {
    b->n = 255;
    for (int i = 0; i < b->n; i++) b->entry[i] = (float)(i - 127);
    book_prepare(b);
}

/* n levels: -n/2 .. n/2 - 1 with a zero, the odd numbers -(n - 1) .. n - 1 without. */
static void book_linear(struct mdcsr_book *b, bool zero) {
    int half = b->n / 2;
    float unit = b->n == 16 ? 1.0f : 1.0f / (float)(zero ? half : b->n - 1);
    for (int i = 0; i < b->n; i++)
        b->entry[i] = (float)(zero ? i - half : 2 * i - (b->n - 1)) * unit;
    book_prepare(b);
}

pdvm_status mdcsr_book_given(int n, const float *entries, struct mdcsr_book *out, pdvm_error *err) {
    *out = (struct mdcsr_book){.n = n};
    bool good = n == 16 || n == 256, zeros = true;
    for (int i = 0; i < n && good; i++) {
        float e = entries[i];
        good = isfinite(e) && (i == 0 || e >= entries[i - 1]);
        if (n == 16) good &= e == rintf(e) && fabsf(e) <= 127;
        zeros &= e == 0;
        out->entry[i] = e + 0.0f; /* no -0.0 */
    }
    if (!good || zeros)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a codebook must be 16 whole numbers or 256 floats "
                       "that rise and are not all zero");
    book_prepare(out);
    return PDVM_OK;
}

/* ---- learned books --------------------------------------------------------------------- */

/* Sums over the bins before bin i, weighted by the squared scale: the true squared error. The
 * sample's own weights come on top. */
struct histogram {
    double weight[BINS + 1];
    double first[BINS + 1]; /* weight times x / scale */
};

static void histogram_fill(struct histogram *h, const struct mdcsr_sample *s) {
    memset(h, 0, sizeof *h);
    for (int64_t g = 0; g < s->n_groups; g++) {
        if (s->scale[g] == 0) continue;
        double scale = (double)s->scale[g], inverse = 1 / scale, square = scale * scale;
        for (int64_t i = s->begin[g]; i < s->begin[g + 1]; i++) {
            double t = (double)s->x[i] * inverse;
            double weight = s->weight ? square * (double)s->weight[i] : square;
            double f = (t + RANGE) / BIN_WIDTH;
            int bin = f < 0 ? 0 : f >= BINS ? BINS - 1 : (int)f;
            h->weight[bin + 1] += weight;
            h->first[bin + 1] += weight * t;
        }
    }
    for (int i = 0; i < BINS; i++) {
        h->weight[i + 1] += h->weight[i];
        h->first[i + 1] += h->first[i];
    }
}

/* Number of bins whose middle lies below t. */
static int bins_below(double t) {
    double f = ceil((t + RANGE) / BIN_WIDTH - 0.5);
    return f < 0 ? 0 : f > BINS ? BINS : (int)f;
}

/*
 * Start: quantiles of the cube root of the density, the best spacing for many levels
 * (P. F. Panter, W. Dite, "Quantization distortion in pulse-count modulation", 1951).
 */
static void lloyd_start(const struct histogram *h, int n, double *entry) {
    double total = 0, sum = 0;
    for (int i = 0; i < BINS; i++) total += cbrt(h->weight[i + 1] - h->weight[i]);
    int next = 0;
    for (int i = 0; i < BINS && next < n; i++) {
        sum += cbrt(h->weight[i + 1] - h->weight[i]);
        while (next < n && sum * n >= total * (next + 0.5))
            entry[next++] = (i + 0.5) * BIN_WIDTH - RANGE;
    }
    for (; next < n; next++) entry[next] = next ? entry[next - 1] : 0;
}

/* S. P. Lloyd, "Least squares quantization in PCM" (1957/1982). Entry `pinned` stays 0. */
static void lloyd(const struct histogram *h, int n, int pinned, double *entry) {
    for (int step = 0; step < LLOYD_STEPS; step++) {
        double change = 0;
        int begin = 0;
        for (int i = 0; i < n; i++) {
            int end = i + 1 < n ? bins_below(0.5 * (entry[i] + entry[i + 1])) : BINS;
            double weight = h->weight[end] - h->weight[begin];
            if (i != pinned && end > begin && weight > 0) {
                double centre = (h->first[end] - h->first[begin]) / weight;
                change = fmax(change, fabs(centre - entry[i]));
                entry[i] = centre;
            }
            begin = end > begin ? end : begin;
        }
        if (change < 1e-6) break;
    }
}

/* Entries as the file holds them: the largest 1 (LUT8) or 127 in whole numbers (LUT4). */
static void book_from(const double *entry, struct mdcsr_book *b) {
    double sorted[256], max = 0;
    memcpy(sorted, entry, (size_t)b->n * sizeof *entry);
    qsort(sorted, (size_t)b->n, sizeof *sorted, pd_compare_doubles);
    for (int i = 0; i < b->n; i++) max = fmax(max, fabs(sorted[i]));
    for (int i = 0; i < b->n; i++) {
        double v = sorted[i] / max;
        /* Entries beside a zero must not be so small that their midpoint with it rounds to it. */
        if (fabs(v) < 1e-30) v = 0;
        b->entry[i] = (b->n == 16 ? (float)rint(127 * v) : (float)v) + 0.0f; /* no -0.0 */
    }
    book_prepare(b);
}

struct fit {
    const struct mdcsr_book *b;
    struct mdcsr_sample *s;
};

static double weighted_error(const struct mdcsr_book *b, const float *x, const float *weight,
                             int64_t n, float scale) {
    float inverse = scale == 0 ? 0 : 1.0f / scale;
    double error = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)(scale * b->entry[mdcsr_book_code(b, x[i] * inverse)]);
        error += (double)weight[i] * d * d;
    }
    return error;
}

static void fit_groups(void *arg, int64_t begin, int64_t end, int worker) {
    struct fit *f = arg;
    struct mdcsr_sample *s = f->s;
    (void)worker;
    for (int64_t g = begin; g < end; g++) {
        const float *x = s->x + s->begin[g], *weight = s->weight ? s->weight + s->begin[g] : NULL;
        int64_t n = s->begin[g + 1] - s->begin[g];
        s->scale[g] = mdcsr_book_scale(f->b, x, weight, n, s->bf16_scales);
        s->error[g] = weight ? weighted_error(f->b, x, weight, n, s->scale[g])
                             : mdcsr_book_encode(f->b, x, n, s->scale[g], NULL);
    }
}

/* Chooses every group's scale for the book; the sum of the errors. */
static double fit_scales(const struct mdcsr_book *b, struct mdcsr_sample *s,
                         struct pd_threads *threads) {
    struct fit f = {b, s};
    int64_t average = s->begin[s->n_groups] / s->n_groups + 1;
    pd_threads_for(threads, s->n_groups, 8192 / average + 1, fit_groups, &f);
    double error = 0;
    for (int64_t g = 0; g < s->n_groups; g++) error += s->error[g];
    return error;
}

/*
 * Codebook and scales depend on each other, so they are improved in turn. The first scales are
 * the signed largest values: with a scale's sign free, the book need not reach as far on one side
 * as on the other, and the levels saved there go where the values are.
 */
static pdvm_status book_learn(struct mdcsr_book *b, bool zero, struct mdcsr_sample *s,
                              struct pd_threads *threads, pdvm_error *err) {
    struct histogram *h;
    PD_TRY(pd_calloc(&h, 1, sizeof *h, "a codebook's histogram", err));
    struct mdcsr_book next = {.n = b->n};
    double entry[256];
    int pinned = -1;
    double best = fit_scales(b, s, threads); /* b comes in as the linear book */
    for (int64_t g = 0; g < s->n_groups; g++) {
        float scale = largest(s->x + s->begin[g], s->begin[g + 1] - s->begin[g]);
        s->scale[g] = fabsf(scale) < MDCSR_SMALLEST_SCALE ? 0 : scale;
    }
    for (int round = 0; round < ROUNDS; round++) {
        histogram_fill(h, s);
        if (!(h->weight[BINS] > 0) || !isfinite(h->weight[BINS])) break;
        if (round == 0) {
            lloyd_start(h, b->n, entry);
            if (zero) {
                pinned = 0;
                for (int i = 1; i < b->n; i++)
                    if (fabs(entry[i]) < fabs(entry[pinned])) pinned = i;
                entry[pinned] = 0;
            }
        }
        lloyd(h, b->n, pinned, entry);
        book_from(entry, &next);
        if (!(next.max > 0)) break;
        double error = fit_scales(&next, s, threads);
        if (error < best) {
            best = error;
            *b = next;
        }
        /* The scales were found for the rounded book, in its units. */
        for (int i = 0; i < b->n; i++) entry[i] = (double)next.entry[i] / (double)next.max;
        for (int64_t g = 0; g < s->n_groups; g++) s->scale[g] *= next.max;
    }
    free(h);
    return PDVM_OK;
}

pdvm_status mdcsr_book_make(enum mdcsr_values values, enum mdcsr_codebook kind, bool zero,
                            struct mdcsr_sample *sample, struct pd_threads *threads,
                            struct mdcsr_book *out, pdvm_error *err) {
    *out = (struct mdcsr_book){.n = mdcsr_codebook_size(values)};
    if (values == MDCSR_INT8) {
        book_int8(out);
        return PDVM_OK;
    }
    if (kind == MDCSR_PRIME) {
        book_prime(out, zero);
        return PDVM_OK;
    }
    book_linear(out, zero);
    if (sample->n_groups == 0) return PDVM_OK;
    if (!zero) {
        /* Without a zero to hit, the even grid and the one with a zero compete. */
        struct mdcsr_book other = {.n = out->n};
        book_linear(&other, true);
        double error = fit_scales(out, sample, threads);
        if (fit_scales(&other, sample, threads) < error) *out = other;
    }
    if (kind == MDCSR_LEARNED) PD_TRY(book_learn(out, zero, sample, threads, err));
    return PDVM_OK;
}
