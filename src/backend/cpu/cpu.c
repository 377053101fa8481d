/* The CPU backend: set-up, the split of the work, and the modes. */
#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"
#include "base/alloc.h"
#include "base/checked.h"
#include "base/time.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Best first. */
static const struct cpu_kernels *const tables[] = {
#ifdef PDVM_HAVE_AMX
    &cpu_kernels_amx,
#endif
#ifdef PDVM_HAVE_AVX512
    &cpu_kernels_avx512,
#endif
#ifdef PDVM_HAVE_AVXVNNI
    &cpu_kernels_avxvnni,
#endif
#ifdef PDVM_HAVE_AVX2
    &cpu_kernels_avx2,
#endif
#ifdef PDVM_HAVE_NEON
    &cpu_kernels_neon,
#endif
    &cpu_kernels_scalar,
};

const struct cpu_kernels *cpu_kernels_at(size_t i) {
    return i < sizeof tables / sizeof *tables ? tables[i] : NULL;
}

pdvm_status cpu_kernels_find(const char *name, const struct cpu_kernels **out, pdvm_error *err) {
    bool any = !name || strcmp(name, "auto") == 0;
    const struct cpu_kernels *k;
    for (size_t i = 0; (k = cpu_kernels_at(i)); i++) {
        if (!any && strcmp(k->name, name) != 0) continue;
        *out = k;
        if (k->supported()) return PDVM_OK;
        if (!any)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED, "this processor cannot run the %s kernels",
                           name);
    }
    return pd_fail(
        err, PDVM_ERR_ARGUMENT,
        "this build has no kernels \"%s\": there are auto, scalar, and amx, avx512, avxvnni, avx2 (x86-64), "
        "neon (AArch64)",
        name);
}

/* What cpu_prepare allocated. */
static void free_state(struct cpu_backend *b) {
    for (size_t i = 0; i < b->n_allocations; i++) free(b->allocations[i]);
    b->n_allocations = 0;
}

static void cpu_destroy(struct backend *base) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    free_state(b);
    free(b->allocations);
    free(b->partial);
    pd_arena_free(&b->arena);
    free(b);
}

static const char *cpu_describe(const struct backend *base) {
    return ((const struct cpu_backend *)base)->description;
}

static pdvm_status cpu_load_matrix(struct backend *base, const struct mdcsr *m, enum matrix_use use,
                                   struct backend_matrix **out, pdvm_error *err) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a matrix", err));
    if (use == MATRIX_LOOKUP) {
        (*out)->lookup = m;
        (*out)->bytes = m->values_size + m->index_size;
        return PDVM_OK;
    }
    pdvm_status status = cpu_matrix_pack_into(&b->arena, m, b->kernels->fast_sparse, b->threads,
                                              &(*out)->packed, err);
    if (status != PDVM_OK) {
        free(*out);
        *out = NULL;
        return status;
    }
    (*out)->bytes = cpu_matrix_bytes((*out)->packed);
    return PDVM_OK;
}

static void cpu_free_matrix(struct backend *base, struct backend_matrix *m) {
    (void)base;
    if (!m) return;
    cpu_matrix_free(m->packed);
    free(m);
}

/* A change of the packed layout, or of what is packed in which form, needs a new number. */
#define LAYOUT_VERSION 2

static const char *cpu_layout(struct backend *base) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    snprintf(b->layout, sizeof b->layout, "cpu%d-%s", LAYOUT_VERSION, b->kernels->name);
    return b->layout;
}

static pdvm_status cpu_save_matrix(struct backend *base, const struct backend_matrix *m,
                                   const char *name, struct safetensors_writer *file,
                                   pdvm_error *err) {
    return cpu_matrix_save(m->packed, ((struct cpu_backend *)base)->threads, name, file, err);
}

static pdvm_status cpu_map_matrix(struct backend *base, const struct safetensors *file,
                                  const char *name, int64_t rows, int64_t cols,
                                  struct backend_matrix **out, int64_t *n_entries,
                                  pdvm_error *err) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a matrix", err));
    pdvm_status status =
        cpu_matrix_map(file, name, rows, cols, b->threads, &b->arena, &(*out)->packed, err);
    if (status != PDVM_OK) {
        free(*out);
        *out = NULL;
        return status;
    }
    (*out)->bytes = cpu_matrix_bytes((*out)->packed);
    *n_entries = (*out)->packed->n_entries;
    return PDVM_OK;
}

static const char *cpu_matrix_layout(const struct backend_matrix *m) {
    static const char *const names[CPU_N_KINDS][2] = {
        [CPU_INT8] = {"int8 bitmap", "int8 dense"}, [CPU_LUT4] = {"lut4 bitmap", "lut4 dense"},
        [CPU_SELL] = {"int8 SELL", NULL},           [CPU_F32] = {"f32 bitmap", "f32 dense"},
        [CPU_BF16] = {"bf16 bitmap", "bf16 dense"}, [CPU_F16] = {"f16 bitmap", "f16 dense"},
        [CPU_LUT8] = {"lut8 bitmap", "lut8 dense"},
    };
    return names[m->packed->kind][m->packed->dense];
}

static size_t cpu_bytes_of(const struct backend_matrix *m) {
    return m->bytes;
}

/* Zeroed floats (or anything) that live as long as the backend. */
static pdvm_status keep(struct cpu_backend *b, void *out, size_t n, size_t size, pdvm_error *err) {
    size_t bytes;
    void *p;
    if (!pd_mul_size(n, size, &bytes)) return pd_fail_memory(err, SIZE_MAX, "activations");
    PD_TRY(pd_grow(&b->allocations, &b->allocation_capacity, b->n_allocations + 1,
                   sizeof *b->allocations, "the CPU backend", err));
    PD_TRY(pd_alloc_aligned(&p, bytes, "activations", err));
    memset(p, 0, bytes);
    b->allocations[b->n_allocations++] = p;
    memcpy(out, &p, sizeof p);
    return PDVM_OK;
}

static pdvm_status keep_act(struct cpu_backend *b, struct cpu_act *act, size_t cols,
                            pdvm_error *err) {
    void *memory;
    PD_TRY(keep(b, &memory, 1, cpu_act_bytes(cols), err));
    cpu_act_place(act, memory, cols);
    return PDVM_OK;
}

static int64_t phase_tiles(const struct phase *phase) {
    if (phase->kind == PHASE_EMBED || phase->kind == PHASE_ATTN) return 0;
    if (phase->kind == PHASE_GATE_UP) return phase->w[0]->packed->n_tiles;
    int64_t n = 0;
    for (int i = 0; i < 3; i++)
        if (phase->w[i]) n += phase->w[i]->packed->n_tiles;
    return n;
}

/* Bytes that tiles [0, tile) of a phase read, counted through its matrices as phase_range does. */
static size_t phase_bytes_before(const struct phase *phase, int64_t tile) {
    if (phase->kind == PHASE_GATE_UP)
        return cpu_matrix_bytes_before(phase->w[0]->packed, tile) +
               cpu_matrix_bytes_before(phase->w[1]->packed, tile);
    size_t bytes = 0;
    for (int i = 0; i < 3 && phase->w[i] && tile > 0; i++) {
        const struct cpu_matrix *m = phase->w[i]->packed;
        int64_t n = tile < m->n_tiles ? tile : m->n_tiles;
        bytes += cpu_matrix_bytes_before(m, n);
        tile -= n;
    }
    return bytes;
}

/* Cuts a phase into parts of equal bytes: sparse rows differ, and a straggler is paid for at
 * every barrier. */
static void split_phase(const struct phase *phase, int n_workers, int64_t *split) {
    int64_t n = phase_tiles(phase);
    size_t total = n ? phase_bytes_before(phase, n) : 0;
    split[0] = 0;
    for (int w = 1; w <= n_workers; w++) {
        size_t target = (size_t)((double)total * w / n_workers);
        int64_t low = split[w - 1], high = n;
        while (low < high) {
            int64_t middle = low + (high - low) / 2;
            if (phase_bytes_before(phase, middle) < target)
                low = middle + 1;
            else
                high = middle;
        }
        if (n >= 2 * STREAM_TEAM * n_workers) low = low / STREAM_TEAM * STREAM_TEAM;
        split[w] = w == n_workers ? n : low;
    }
}

/* Pieces of work below this would be short streams and many. */
#define MIN_PIECE_BYTES ((size_t)16 << 10)

static int64_t grain_of(const struct phase *phase) {
    int64_t n = phase_tiles(phase);
    size_t bytes = n ? phase_bytes_before(phase, n) : 0;
    double grain = bytes ? (double)MIN_PIECE_BYTES * (double)n / (double)bytes : 1;
    if (grain < STREAM_TEAM) grain = STREAM_TEAM;
    return grain < (double)n ? (int64_t)grain / STREAM_TEAM * STREAM_TEAM : n;
}

static void split_phases(struct cpu_backend *b, int n_workers) {
    const struct plan *plan = b->plan;
    for (size_t i = 0; i < plan->n_phases; i++)
        split_phase(&plan->phases[i], n_workers, b->splits + i * ((size_t)n_workers + 1));
    b->n_split = n_workers;
}

static pdvm_status cpu_prepare(struct backend *base, const struct plan *plan, pdvm_error *err) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    size_t n_workers = (size_t)pd_threads_count(b->threads);
    size_t batch = plan->max_batch;
    size_t hidden = pd_round_up(plan->hidden_size, BLOCK_COLS);
    size_t intermediate = pd_round_up(plan->intermediate_size, BLOCK_COLS);
    size_t d = plan->head_dim;
    size_t heads = pd_round_up((size_t)plan->n_heads * d, BLOCK_COLS);
    size_t kv = (size_t)plan->n_kv_heads * d;
    size_t widest = hidden > intermediate ? hidden : intermediate;
    if (heads > widest) widest = heads;

    b->plan = plan;
    PD_TRY(keep(b, &b->splits, plan->n_phases * (n_workers + 1), sizeof *b->splits, err));
    PD_TRY(keep(b, &b->grains, plan->n_phases, sizeof *b->grains, err));
    for (size_t i = 0; i < plan->n_phases; i++) b->grains[i] = grain_of(&plan->phases[i]);
    split_phases(b, (int)n_workers);
    PD_TRY(keep(b, &b->x, batch * hidden, sizeof(float), err));
    PD_TRY(keep(b, &b->normed, batch * hidden, sizeof(float), err));
    PD_TRY(keep(b, &b->q, batch * plan->n_heads * d, sizeof(float), err));
    PD_TRY(keep(b, &b->k, batch * kv, sizeof(float), err));
    PD_TRY(keep(b, &b->v, batch * kv, sizeof(float), err));
    PD_TRY(keep(b, &b->attn, batch * heads, sizeof(float), err));
    PD_TRY(keep(b, &b->hidden, batch * intermediate, sizeof(float), err));
    PD_TRY(keep(b, &b->rope, batch * d, sizeof(float), err));
    PD_TRY(keep(b, &b->rope_sink, d, sizeof(float), err));
    PD_TRY(keep(b, &b->merge, plan->n_kv_heads, sizeof *b->merge, err));
    size_t few = b->kernels->batch->min_tokens;
    size_t token_tiles = (batch + BATCH_TOKENS - 1) / BATCH_TOKENS;
    PD_TRY(keep(b, &b->acts, few, sizeof *b->acts, err));
    for (size_t t = 0; t < few; t++) PD_TRY(keep_act(b, &b->acts[t], widest, err));
    b->batch.tile_bytes = batch_tile_bytes((int64_t)(widest / BLOCK_COLS));
    PD_TRY(keep(b, &b->batch.packed, token_tiles, b->batch.tile_bytes, err));
    PD_TRY(keep(b, &b->batch.scales, token_tiles * BATCH_TOKENS, sizeof(float), err));
    PD_TRY(keep(b, &b->batch.x, token_tiles * BATCH_TOKENS, sizeof *b->batch.x, err));
    PD_TRY(keep(b, &b->workers, n_workers, sizeof *b->workers, err));
    for (size_t i = 0; i < n_workers; i++) {
        struct cpu_worker *w = &b->workers[i];
        PD_TRY(keep_act(b, &w->act, widest, err));
        PD_TRY(keep(b, &w->normed, hidden, sizeof(float), err));
        PD_TRY(keep(b, &w->products, batch * PANEL_MAX_ROWS, sizeof(float), err));
        PD_TRY(keep(b, &w->panel, 1, batch_panel_bytes((int64_t)widest), err));
        PD_TRY(keep(b, &w->attn, attn_batch_floats(plan->head_dim), sizeof(float), err));
        PD_TRY(keep(b, &w->q, d, sizeof(float), err));
        PD_TRY(keep(b, &w->q_sink, d, sizeof(float), err));
        PD_TRY(keep(b, &w->k, d, sizeof(float), err));
        PD_TRY(keep(b, &w->acc, d, sizeof(float), err));
    }
    return PDVM_OK;
}

static void cpu_phase_changed(struct backend *base, size_t phase) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    /* The split is that of the workers of the last pass, which may be fewer than the team's. */
    split_phase(&b->plan->phases[phase], b->n_split, b->splits + phase * ((size_t)b->n_split + 1));
}

static void use_threads(struct cpu_backend *b, struct pd_threads *threads) {
    int n = pd_threads_count(threads);
    b->threads = threads;
    snprintf(b->description, sizeof b->description, "cpu (%s, %d thread%s)", b->kernels->name, n,
             n == 1 ? "" : "s");
}

static pdvm_status cpu_set_threads(struct backend *base, struct pd_threads *threads,
                                   pdvm_error *err) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    use_threads(b, threads);
    if (!b->plan) return PDVM_OK;
    free_state(b);
    return cpu_prepare(base, b->plan, err);
}

/* Steps that are dispatched together, with a barrier between each two. */
struct dispatch {
    struct cpu_backend *b;
    const struct batch *batch;
    struct cpu_step steps[16];
    int n_steps;
    size_t first_phase; /* fused modes: whole phases instead of steps */
    size_t end_phase;
    double mark; /* when the step that is running began; only with batch->phase_seconds */
};

static struct cpu_step step_of_phase(const struct phase *phase) {
    static const enum cpu_step_kind kinds[] = {
        [PHASE_EMBED] = STEP_EMBED, [PHASE_QKV] = STEP_QKV,         [PHASE_ATTN] = STEP_ATTN,
        [PHASE_OUT] = STEP_OUT,     [PHASE_GATE_UP] = STEP_GATE_UP, [PHASE_DOWN] = STEP_DOWN,
        [PHASE_HEAD] = STEP_HEAD,
    };
    return (struct cpu_step){.kind = kinds[phase->kind], .phase = phase};
}

/* Books the time since the last mark on a phase. */
static void book_time(struct dispatch *d, const struct phase *phase) {
    double now = pd_seconds();
    d->batch->phase_seconds[phase - d->b->plan->phases] += now - d->mark;
    d->mark = now;
}

/* The barrier behind a step of a phase. */
static void step_barrier(struct dispatch *d, const struct phase *phase, int worker) {
    pd_threads_barrier(d->b->threads);
    if (d->batch->phase_seconds && worker == 0) book_time(d, phase);
}

static void dispatch_worker(void *arg, int worker, int n_workers) {
    struct dispatch *d = arg;
    const struct phase *phases = d->b->plan->phases;
    for (int i = 0; i < d->n_steps; i++) {
        if (i > 0) step_barrier(d, d->steps[i - 1].phase, worker);
        cpu_step_run(d->b, d->batch, &d->steps[i], worker, n_workers);
    }
    for (size_t i = d->first_phase; i < d->end_phase; i++) {
        struct cpu_step step = step_of_phase(&phases[i]);
        if (i > d->first_phase) step_barrier(d, &phases[i - 1], worker);
        cpu_step_run(d->b, d->batch, &step, worker, n_workers);
    }
}

static void dispatch(struct dispatch *d) {
    if (d->batch->phase_seconds) d->mark = pd_seconds();
    pd_threads_run(d->b->threads, dispatch_worker, d);
    if (d->batch->phase_seconds)
        book_time(d, d->n_steps ? d->steps[d->n_steps - 1].phase
                                : &d->b->plan->phases[d->end_phase - 1]);
    if (d->batch->n_dispatches) ++*d->batch->n_dispatches;
}

/* Dispatches phases [begin, end) as one. */
static void dispatch_phases(struct cpu_backend *b, const struct batch *batch, size_t begin,
                            size_t end) {
    struct dispatch d = {.b = b, .batch = batch, .first_phase = begin, .end_phase = end};
    if (begin < end) dispatch(&d);
}

static void dispatch_steps(struct cpu_backend *b, const struct batch *batch,
                           const struct cpu_step *steps, int n) {
    struct dispatch d = {.b = b, .batch = batch, .n_steps = n};
    memcpy(d.steps, steps, (size_t)n * sizeof *steps);
    dispatch(&d);
}

/* The six dispatches a layer of the unfused mode: norm, QKV, RoPE, attention, out, MLP. */
static void run_unfused(struct cpu_backend *b, const struct batch *batch) {
    const struct phase *phases = b->plan->phases;
    for (size_t i = batch->first_phase; i < batch->end_phase; i++) {
        struct cpu_step step = step_of_phase(&phases[i]);
        struct cpu_step before = step;
        switch (phases[i].kind) {
        case PHASE_QKV:
            before.kind = STEP_NORM;
            step.prepared = true;
            dispatch_steps(b, batch, &before, 1);
            dispatch_steps(b, batch, &step, 1);
            break;
        case PHASE_ATTN:
            before.kind = STEP_ROPE;
            step.prepared = true;
            dispatch_steps(b, batch, &before, 1);
            dispatch_steps(b, batch, &step, 1);
            break;
        case PHASE_GATE_UP:
            if (i + 1 < batch->end_phase) {
                dispatch_phases(b, batch, i, i + 2); /* down follows gate and up */
                i++;
                break;
            }
            dispatch_steps(b, batch, &step, 1);
            break;
        default: dispatch_steps(b, batch, &step, 1); break;
        }
    }
}

/* One dispatch a layer; embedding and head ride with the first and the last one. */
static void run_layers(struct cpu_backend *b, const struct batch *batch) {
    size_t begin = batch->first_phase;
    while (begin < batch->end_phase) {
        size_t end = begin + 1;
        while (end < batch->end_phase && b->plan->phases[end].kind != PHASE_QKV) end++;
        if (b->plan->phases[begin].kind == PHASE_EMBED)
            while (end < batch->end_phase &&
                   (end == begin + 1 || b->plan->phases[end].kind != PHASE_QKV))
                end++;
        dispatch_phases(b, batch, begin, end);
        begin = end;
    }
}

static void fill_rope(float *out, const struct plan *plan, double position, float factor) {
    uint32_t half = plan->head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        double angle = position * (double)plan->inv_freq[i];
        out[i] = (float)cos(angle) * factor;
        out[half + i] = (float)sin(angle) * factor;
    }
}

static pdvm_status cpu_run(struct backend *base, const struct batch *batch, pdvm_error *err) {
    struct cpu_backend *b = (struct cpu_backend *)base;
    const struct plan *plan = b->plan;
    size_t width = pd_round_up(plan->hidden_size, BLOCK_COLS);

    int n_workers = pd_threads_adapt(b->threads);
    if (n_workers != b->n_split) split_phases(b, n_workers);

    uint32_t pieces = cpu_attn_pieces(batch);
    if (pieces > 1) {
        size_t need = pieces * (batch->n_tokens > 1 ? (size_t)pd_threads_count(b->threads) *
                                                          attn_batch_partial(plan->head_dim)
                                                    : plan->n_heads * ((size_t)plan->head_dim + 2));
        PD_TRY(pd_grow(&b->partial, &b->partial_capacity, need, sizeof *b->partial,
                       "attention of a long context", err));
    }
    b->batch.digits = batch->short_activations ? 1 : 2;
    for (uint32_t t = 0; t < batch->n_tokens; t++)
        fill_rope(b->rope + (size_t)t * plan->head_dim, plan, (double)batch->position + t,
                  plan->rope_factor);
    /* Turns queries that have been rotated, and multiplied by the factor, before. */
    if (batch->n_dropped) fill_rope(b->rope_sink, plan, -(double)batch->n_dropped, 1);
    if (batch->x)
        for (uint32_t t = 0; t < batch->n_tokens; t++)
            memcpy(b->x + t * width, batch->x + (size_t)t * plan->hidden_size,
                   plan->hidden_size * sizeof(float));

    switch (batch->mode) {
    case PDVM_MODE_TOKEN: dispatch_phases(b, batch, batch->first_phase, batch->end_phase); break;
    case PDVM_MODE_LAYER: run_layers(b, batch); break;
    case PDVM_MODE_PHASE:
        for (size_t i = batch->first_phase; i < batch->end_phase; i++)
            dispatch_phases(b, batch, i, i + 1);
        break;
    case PDVM_MODE_UNFUSED: run_unfused(b, batch); break;
    }

    if (batch->x)
        for (uint32_t t = 0; t < batch->n_tokens; t++)
            memcpy(batch->x + (size_t)t * plan->hidden_size, b->x + t * width,
                   plan->hidden_size * sizeof(float));
    return PDVM_OK;
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .destroy = cpu_destroy,
    .describe = cpu_describe,
    .load_matrix = cpu_load_matrix,
    .free_matrix = cpu_free_matrix,
    .layout = cpu_layout,
    .save_matrix = cpu_save_matrix,
    .map_matrix = cpu_map_matrix,
    .matrix_layout = cpu_matrix_layout,
    .matrix_bytes = cpu_bytes_of,
    .prepare = cpu_prepare,
    .set_threads = cpu_set_threads,
    .phase_changed = cpu_phase_changed,
    .run = cpu_run,
    .kv_create = cpu_kv_create,
    .kv_free = cpu_kv_free,
    .kv_reserve = cpu_kv_reserve,
    .kv_read = cpu_kv_read,
    .kv_write = cpu_kv_write,
    .kv_bytes = cpu_kv_bytes,
};

pdvm_status cpu_backend_create(const struct backend_options *options, struct backend **out,
                               pdvm_error *err) {
    const struct cpu_kernels *kernels;
    PD_TRY(cpu_kernels_find(options->kernels, &kernels, err));
    struct cpu_backend *b;
    PD_TRY(pd_calloc(&b, 1, sizeof *b, "the CPU backend", err));
    b->base.ops = &cpu_ops;
    b->kernels = kernels;
    use_threads(b, options->threads);
    *out = &b->base;
    return PDVM_OK;
}
