#include "base/alloc.h"
#include "mdcsr/book.h"

#include <stdlib.h>

/* Entries that a codebook is fitted to: more change nothing that can be measured. */
#define SAMPLE_ENTRIES ((int64_t)1 << 19)

int64_t mdcsr_pack_row(const float *w, const float *weight, int64_t cols, uint32_t group, float *x,
                       float *x_weight, int64_t *ends) {
    int64_t n = 0, width = group ? group : cols, g = 0;
    for (int64_t begin = 0; begin < cols; begin += width) {
        int64_t end = begin + width < cols ? begin + width : cols;
        for (int64_t c = begin; c < end; c++) {
            x[n] = w[c];
            if (weight) x_weight[n] = weight[c];
            n += w[c] != 0;
        }
        ends[g++] = n;
    }
    return n;
}

static pdvm_status sample_fill(const float *w, int64_t rows, int64_t cols, uint32_t group,
                               const float *weight, int64_t step, struct mdcsr_sample *s,
                               pdvm_error *err) {
    int64_t n_groups = group ? (cols + group - 1) / group : 1, n = 0;
    size_t groups = (size_t)((rows + step - 1) / step * n_groups);
    for (int64_t r = 0; r < rows; r += step)
        for (int64_t c = 0; c < cols; c++) n += w[r * cols + c] != 0;
    PD_TRY(pd_calloc(&s->begin, groups + 1, sizeof *s->begin, "a codebook's sample", err));
    /* One more: packing writes a value before it knows whether it stays. */
    PD_TRY(pd_calloc(&s->x, (size_t)n + 1, sizeof *s->x, "a codebook's sample", err));
    if (weight)
        PD_TRY(pd_calloc(&s->weight, (size_t)n + 1, sizeof *s->weight, "a codebook's sample", err));
    PD_TRY(pd_calloc(&s->scale, groups, sizeof *s->scale, "a codebook's sample", err));
    PD_TRY(pd_calloc(&s->error, groups, sizeof *s->error, "a codebook's sample", err));
    for (int64_t r = 0; r < rows; r += step) {
        int64_t at = s->begin[s->n_groups], *ends = s->begin + s->n_groups + 1;
        mdcsr_pack_row(w + r * cols, weight, cols, group, s->x + at, weight ? s->weight + at : NULL,
                       ends);
        for (int64_t g = 0; g < n_groups; g++) ends[g] += at;
        s->n_groups += n_groups;
    }
    return PDVM_OK;
}

pdvm_status mdcsr_sample_make(const float *w, int64_t rows, int64_t cols, uint32_t group,
                              const float *weight, int64_t entries, struct mdcsr_sample *out,
                              pdvm_error *err) {
    *out = (struct mdcsr_sample){.bf16_scales = group != 0};
    int64_t step = entries / SAMPLE_ENTRIES + 1;
    pdvm_status status = sample_fill(w, rows, cols, group, weight, step, out, err);
    if (status != PDVM_OK) mdcsr_sample_free(out);
    return status;
}

void mdcsr_sample_free(struct mdcsr_sample *s) {
    free(s->begin);
    free(s->x);
    free(s->weight);
    free(s->scale);
    free(s->error);
    *s = (struct mdcsr_sample){0};
}
