/* Where everything lies in the arenas, and writing the weights' arena. */
#include "backend/cuda/image.h"

#include "base/alloc.h"
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 256u

static const float zeros[64];

/* The next `size` bytes of an arena. */
static uint64_t place(uint64_t *arena, uint64_t size) {
    uint64_t at = *arena;
    *arena = (at + size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

/* Floats, with room for zeros up to a multiple of 64. */
static uint64_t place_floats(uint64_t *arena, uint64_t n) {
    return place(arena, (n + 63) / 64 * 64 * sizeof(float));
}

/* ---- phases ------------------------------------------------------------------------------- */

static const uint32_t kinds[] = {
    [PHASE_EMBED] = GPU_EMBED, [PHASE_QKV] = GPU_QKV,         [PHASE_ATTN] = GPU_ATTN,
    [PHASE_OUT] = GPU_OUT,     [PHASE_GATE_UP] = GPU_GATE_UP, [PHASE_DOWN] = GPU_DOWN,
    [PHASE_HEAD] = GPU_HEAD,
};

static bool has_bias(const struct phase *p) {
    return p->bias[0] || p->bias[1] || p->bias[2];
}

static pdvm_status layout_phase(struct gpu_image *image, size_t i, gpu_matrix_fn matrix, void *user,
                                struct pd_threads *threads, pdvm_error *err) {
    const struct phase *p = &image->source->phases[i];
    const struct mdcsr *m[3];
    int n = 0;
    while (n < 3 && (m[n] = matrix(user, p, n))) n++;
    return gpu_layout_create(m, n, p->kind == PHASE_GATE_UP, image->plan.n_blocks,
                             image->plan.n_warps, threads, &image->layouts[i], err);
}

static void place_product(struct gpu_image *image, size_t i) {
    const struct phase *p = &image->source->phases[i];
    const struct gpu_layout *l = &image->layouts[i];
    struct gpu_phase *out = &image->phases[i];
    uint64_t *w = &image->w_size;
    out->weights = place(w, l->size);
    out->streams = place(w, 4 * ((uint64_t)l->n_blocks * l->n_warps + 1));
    out->block_rows = place(w, 4 * ((uint64_t)l->n_blocks + 1));
    out->units = place_floats(w, l->rows);
    if (has_bias(p)) out->bias = place_floats(w, l->rows);
    out->rows = l->rows;
    out->n_in = l->n_in;
    out->x_cols = l->x_cols;
    out->x_pad = gpu_x_pad(l->x_cols, GPU_LANES * image->plan.n_warps);
    out->act = l->act;
    image->product_bytes += l->size;
    for (uint32_t b = 0; b < l->n_blocks; b++) {
        uint32_t rows = l->block_rows[b + 1] - l->block_rows[b];
        if (rows > image->plan.max_rows) image->plan.max_rows = rows;
    }
    uint32_t first = 0;
    for (int k = 0; k < 3; k++) out->matrix[k].first_row = UINT32_MAX;
    for (int k = 0; k < l->n_matrices; k++) {
        out->matrix[k].bound = l->bound[k];
        out->matrix[k].is_float = l->coding[k].values >= GPU_F16;
        out->matrix[k].first_row = first;
        first += (uint32_t)l->matrix[k]->rows;
        for (int c = 0; c < 16 && l->matrix[k]->value_coding == MDCSR_LUT4; c++)
            out->matrix[k].codebook[c] = (int8_t)l->matrix[k]->codebook[c];
    }
}

static void place_phase(struct gpu_image *image, size_t i) {
    const struct plan *plan = image->source;
    const struct phase *p = &plan->phases[i];
    struct gpu_phase *out = &image->phases[i];
    uint64_t *w = &image->w_size;
    *out = (struct gpu_phase){.kind = kinds[p->kind],
                              .layer = p->layer,
                              .norm = GPU_NONE,
                              .next_norm = GPU_NONE,
                              .bias = GPU_NONE,
                              .head_norm = {GPU_NONE, GPU_NONE},
                              .window = p->window};
    if (p->norm) out->norm = place_floats(w, plan->hidden_size);
    for (int h = 0; h < 2; h++)
        if (p->head_norm[h]) out->head_norm[h] = place_floats(w, plan->head_dim);
    if (image->layouts[i].n_matrices) place_product(image, i);
    uint32_t act = gpu_act_bytes(out);
    if (act > image->plan.x_bytes) image->plan.x_bytes = act;
}

/* EMBED, OUT and DOWN write x and prepare for the norm that comes next. */
static void link_norms(struct gpu_image *image) {
    uint64_t next = GPU_NONE;
    for (size_t i = image->source->n_phases; i-- > 0;) {
        struct gpu_phase *p = &image->phases[i];
        if (p->kind == GPU_EMBED || p->kind == GPU_OUT || p->kind == GPU_DOWN) p->next_norm = next;
        if (p->norm != GPU_NONE) next = p->norm;
    }
}

/* ---- the embedding ------------------------------------------------------------------------ */

/* A code whose value is 0 for columns that a sparse row leaves out, or -1. */
static int zero_code(const struct mdcsr *m) {
    if (m->value_coding == MDCSR_LUT4) return 16; /* more codes than the file has */
    if (m->value_coding == MDCSR_INT8) return 0;
    for (int i = 0; i < 256; i++)
        if (m->codebook[i] == 0.0f) return i;
    return -1;
}

static uint32_t embedding_kind(const struct mdcsr *m) {
    switch (m->value_coding) {
    case MDCSR_F16: return GPU_EMBED_F16;
    case MDCSR_BF16: return GPU_EMBED_BF16;
    case MDCSR_F32: return GPU_EMBED_F32;
    default: break;
    }
    return m->index_coding == MDCSR_DENSE || zero_code(m) >= 0 ? GPU_EMBED_CODES : GPU_EMBED_F32;
}

static uint32_t embedding_entry(uint32_t kind) {
    return kind == GPU_EMBED_F32 ? 4 : kind == GPU_EMBED_CODES ? 1 : 2;
}

static void place_embedding(struct gpu_image *image) {
    const struct mdcsr *m = image->embedding;
    struct gpu_plan *p = &image->plan;
    p->embed_kind = embedding_kind(m);
    p->embed_row_bytes = pd_round_up((size_t)m->cols * embedding_entry(p->embed_kind), 16);
    p->embed_group = p->embed_kind == GPU_EMBED_CODES ? m->group : 0;
    p->embed = place(&image->w_size, (uint64_t)m->rows * p->embed_row_bytes);
    if (p->embed_kind != GPU_EMBED_CODES) return;
    p->embed_scales = place(&image->w_size, (uint64_t)(m->rows * m->n_groups) * sizeof(float));
    p->embed_table = place(&image->w_size, 256 * sizeof(float));
}

/* One row in the form that the kernel looks up: out[embed_row_bytes]. */
static void embedding_row(const struct mdcsr *m, uint32_t kind, int64_t row, uint32_t *cols,
                          uint8_t *raw, uint8_t *out) {
    size_t size = embedding_entry(kind);
    if (kind == GPU_EMBED_F32) {
        mdcsr_decode_row(m, row, (float *)(void *)out);
        return;
    }
    int64_t n = mdcsr_row_entries_raw(m, row, raw);
    if (m->index_coding == MDCSR_DENSE) {
        memcpy(out, raw, (size_t)n * size);
        return;
    }
    memset(out, kind == GPU_EMBED_CODES ? zero_code(m) : 0, (size_t)m->cols * size);
    mdcsr_row_columns(m, row, cols);
    for (int64_t i = 0; i < n; i++) memcpy(out + cols[i] * size, raw + (size_t)i * size, size);
}

static void embedding_table(const struct mdcsr *m, float table[256]) {
    for (int i = 0; i < 256; i++)
        table[i] = m->value_coding == MDCSR_INT8   ? (float)(int8_t)i
                   : m->value_coding == MDCSR_LUT8 ? m->codebook[i]
                   : i < 16                        ? m->codebook[i]
                                                   : 0.0f;
}

struct embedding_job {
    const struct gpu_image *image;
    int64_t first;
    uint32_t *cols; /* [n_workers][cols] */
    uint8_t *raw;   /* [n_workers][cols * 4] */
    uint8_t *out;
};

static void embedding_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct embedding_job *j = arg;
    const struct mdcsr *m = j->image->embedding;
    size_t n = (size_t)m->cols, bytes = j->image->plan.embed_row_bytes;
    for (int64_t r = begin; r < end; r++)
        embedding_row(m, j->image->plan.embed_kind, j->first + r, j->cols + (size_t)worker * n,
                      j->raw + (size_t)worker * n * 4, j->out + (size_t)r * bytes);
}

/* In portions: a vocabulary's rows may be gigabytes. */
static pdvm_status write_embedding(const struct gpu_image *image, struct pd_threads *threads,
                                   gpu_sink_fn sink, void *user, pdvm_error *err) {
    const struct mdcsr *m = image->embedding;
    size_t workers = (size_t)pd_threads_count(threads), bytes = image->plan.embed_row_bytes;
    int64_t portion = ((int64_t)1 << 26) / (int64_t)bytes + 1;
    if (portion > m->rows) portion = m->rows;
    struct embedding_job j = {.image = image};
    pdvm_status status =
        pd_calloc(&j.cols, workers * (size_t)m->cols, sizeof *j.cols, "the embedding", err);
    if (status == PDVM_OK)
        status = pd_calloc(&j.raw, workers * (size_t)m->cols, 4, "the embedding", err);
    if (status == PDVM_OK) status = pd_calloc(&j.out, (size_t)portion, bytes, "the embedding", err);
    for (j.first = 0; status == PDVM_OK && j.first < m->rows; j.first += portion) {
        int64_t n = m->rows - j.first < portion ? m->rows - j.first : portion;
        pd_threads_for(threads, n, 64, embedding_rows, &j);
        status = sink(user, image->plan.embed + (uint64_t)j.first * bytes, j.out,
                      (uint64_t)n * bytes, err);
    }
    free(j.cols);
    free(j.raw);
    free(j.out);
    if (status != PDVM_OK || image->plan.embed_kind != GPU_EMBED_CODES) return status;
    float table[256];
    embedding_table(m, table);
    PD_TRY(sink(user, image->plan.embed_table, table, sizeof table, err));
    return sink(user, image->plan.embed_scales, m->scales,
                (uint64_t)(m->rows * m->n_groups) * sizeof(float), err);
}

/* ---- creating ----------------------------------------------------------------------------- */

/* Columns that phases read of a vector, at most: behind its elements there are zeros. */
static uint32_t most_columns(const struct gpu_image *image) {
    uint32_t most = 0;
    for (size_t i = 0; i < image->source->n_phases; i++)
        if (image->phases[i].x_pad > most) most = image->phases[i].x_pad;
    return most;
}

static void place_state(struct gpu_image *image, const struct gpu_image_options *o) {
    const uint32_t columns = most_columns(image);
    struct gpu_plan *p = &image->plan;
    uint64_t *g = &image->g_size;
    uint64_t heads = (uint64_t)p->n_heads + 2 * (uint64_t)p->n_kv_heads;
    p->parts = place(g, 4 * p->n_blocks * sizeof(struct gpu_part));
    p->epoch = place(g, GPU_LINE);
    p->fault = place(g, GPU_LINE);
    p->x = place_floats(g, p->hidden_size);
    p->xn = place_floats(g, columns);
    p->qkv = place_floats(g, heads * p->head_dim);
    p->attn = place_floats(g, columns);
    p->attn_part = place_floats(g, (uint64_t)p->n_heads * p->max_splits * (p->head_dim + 2));
    p->attn_done = place(g, (uint64_t)p->n_kv_heads * GPU_LINE);
    p->hidden = place_floats(g, columns);
    p->xq = place(g, sizeof(struct gpu_quantised) + 2 * pd_round_up(p->hidden_size, 64));
    p->xf = place_floats(g, p->hidden_size);
    p->x_in = place_floats(g, p->hidden_size);
    p->tokens = place(g, 4 * ((uint64_t)o->max_steps + 1));
    p->logits = place(g, 4 * (uint64_t)o->max_logits * p->n_vocab);
    p->head_top = place(g, p->n_blocks * sizeof(struct gpu_top));
    p->result = place(g, sizeof(struct gpu_result));
    p->stops = place(g, 4 * GPU_MAX_STOPS);
    p->rope = place_floats(g, 2 * (uint64_t)p->head_dim);
    p->times = place(g, sizeof(uint32_t) * GPU_TIMES_OF_PHASE * p->n_blocks * p->n_phases);
    p->step = place(g, sizeof(struct gpu_step));
}

/* Which vector a phase's matrices multiply. */
static void link_vectors(struct gpu_image *image) {
    const struct gpu_plan *p = &image->plan;
    for (size_t i = 0; i < image->source->n_phases; i++) {
        struct gpu_phase *ph = &image->phases[i];
        ph->in = ph->kind == GPU_OUT ? p->attn : ph->kind == GPU_DOWN ? p->hidden : p->xn;
    }
}

static uint32_t default_splits(const struct plan *plan, uint32_t n_blocks) {
    /* Enough that all blocks have work, and that rounds come out even. */
    uint32_t n = 4 * (n_blocks / plan->n_kv_heads + 1);
    return n > 64 ? 64 : n;
}

static pdvm_status check(const struct plan *plan, const struct gpu_image_options *o,
                         pdvm_error *err) {
    if (plan->head_dim > GPU_MAX_HEAD_DIM)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "heads of %u: the GPU backend has at most %u",
                       plan->head_dim, GPU_MAX_HEAD_DIM);
    if (o->n_blocks == 0 || o->n_warps == 0 || o->n_warps > GPU_MAX_WARPS || o->max_steps == 0 ||
        o->max_logits == 0 || o->max_splits > 255)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "a grid of %u blocks of %u warps", o->n_blocks,
                       o->n_warps);
    return PDVM_OK;
}

static pdvm_status build(struct gpu_image *image, gpu_matrix_fn matrix, void *user,
                         const struct gpu_image_options *o, struct pd_threads *threads,
                         pdvm_error *err) {
    const struct plan *plan = image->source;
    struct gpu_plan *p = &image->plan;
    PD_TRY(pd_calloc(&image->phases, p->n_phases, sizeof *image->phases, "the plan", err));
    PD_TRY(pd_calloc(&image->layouts, p->n_phases, sizeof *image->layouts, "the plan", err));
    image->plan_offset = place(&image->w_size, sizeof *p);
    p->phases = place(&image->w_size, p->n_phases * sizeof *image->phases);
    p->inv_freq = place_floats(&image->w_size, plan->head_dim / 2);
    for (size_t i = 0; i < plan->n_phases; i++) {
        const struct phase *ph = &plan->phases[i];
        if (ph->kind == PHASE_EMBED)
            image->embedding = matrix(user, ph, 0);
        else if (ph->kind != PHASE_ATTN)
            PD_TRY(layout_phase(image, i, matrix, user, threads, err));
        place_phase(image, i);
    }
    image->phases[p->n_phases - 1] = (struct gpu_phase){.kind = GPU_SAMPLE,
                                                        .norm = GPU_NONE,
                                                        .next_norm = GPU_NONE,
                                                        .bias = GPU_NONE,
                                                        .head_norm = {GPU_NONE, GPU_NONE}};
    link_norms(image);
    place_embedding(image);
    place_state(image, o);
    link_vectors(image);
    uint32_t need[2] = {gpu_attn_bytes(p), gpu_sample_bytes(p)};
    for (int i = 0; i < 2; i++)
        if (need[i] > p->x_bytes) p->x_bytes = need[i];
    return PDVM_OK;
}

pdvm_status gpu_image_create(const struct plan *plan, gpu_matrix_fn matrix, void *user,
                             const struct gpu_image_options *options, struct pd_threads *threads,
                             struct gpu_image *out, pdvm_error *err) {
    *out = (struct gpu_image){.source = plan,
                              .plan = {.version = GPU_ABI_VERSION,
                                       .n_phases = (uint32_t)plan->n_phases + 1,
                                       .n_blocks = options->n_blocks,
                                       .n_warps = options->n_warps,
                                       .hidden_size = plan->hidden_size,
                                       .intermediate_size = plan->intermediate_size,
                                       .n_layers = plan->n_layers,
                                       .n_heads = plan->n_heads,
                                       .n_kv_heads = plan->n_kv_heads,
                                       .head_dim = plan->head_dim,
                                       .n_vocab = plan->n_vocab,
                                       .group = plan->n_heads / plan->n_kv_heads,
                                       .inv_hidden = 1.0f / (float)plan->hidden_size,
                                       .rms_norm_eps = plan->rms_norm_eps,
                                       .rope_factor = plan->rope_factor,
                                       .max_splits = options->max_splits}};
    PD_TRY(check(plan, options, err));
    if (options->max_splits == 0) out->plan.max_splits = default_splits(plan, options->n_blocks);
    pdvm_status status = build(out, matrix, user, options, threads, err);
    if (status != PDVM_OK) gpu_image_free(out);
    return status;
}

void gpu_image_free(struct gpu_image *image) {
    for (uint32_t i = 0; image->layouts && i < image->plan.n_phases; i++)
        gpu_layout_free(&image->layouts[i]);
    free(image->layouts);
    free(image->phases);
    *image = (struct gpu_image){0};
}

/* ---- writing ------------------------------------------------------------------------------ */

/* n floats and the zeros behind them. */
static pdvm_status write_floats(gpu_sink_fn sink, void *user, uint64_t offset, const float *data,
                                size_t n, pdvm_error *err) {
    if (n) PD_TRY(sink(user, offset, data, n * sizeof *data, err));
    size_t rest = (64 - n % 64) % 64;
    if (rest == 0) return PDVM_OK;
    return sink(user, offset + n * sizeof *data, zeros, rest * sizeof *data, err);
}

static pdvm_status write_bias(const struct gpu_image *image, size_t i, gpu_sink_fn sink, void *user,
                              pdvm_error *err) {
    const struct phase *p = &image->source->phases[i];
    const struct gpu_layout *l = &image->layouts[i];
    float *bias;
    size_t at = 0;
    PD_TRY(pd_calloc(&bias, l->rows, sizeof *bias, "biases", err));
    for (int k = 0; k < l->n_matrices; k++) {
        size_t n = (size_t)l->matrix[k]->rows;
        if (p->bias[k]) memcpy(bias + at, p->bias[k], n * sizeof *bias);
        at += n;
    }
    pdvm_status status = write_floats(sink, user, image->phases[i].bias, bias, l->rows, err);
    free(bias);
    return status;
}

static pdvm_status write_product(const struct gpu_image *image, size_t i,
                                 struct pd_threads *threads, gpu_sink_fn sink, void *user,
                                 pdvm_error *err) {
    const struct gpu_layout *l = &image->layouts[i];
    const struct gpu_phase *p = &image->phases[i];
    uint8_t *data;
    PD_TRY(pd_alloc_aligned(&data, (size_t)l->size, "packed weights", err));
    pdvm_status status = gpu_layout_write(l, threads, data, err);
    if (status == PDVM_OK) status = sink(user, p->weights, data, l->size, err);
    free(data);
    if (status != PDVM_OK) return status;
    PD_TRY(sink(user, p->streams, l->streams, 4 * ((uint64_t)l->n_blocks * l->n_warps + 1), err));
    PD_TRY(sink(user, p->block_rows, l->block_rows, 4 * ((uint64_t)l->n_blocks + 1), err));
    PD_TRY(write_floats(sink, user, p->units, l->units, l->rows, err));
    return p->bias == GPU_NONE ? PDVM_OK : write_bias(image, i, sink, user, err);
}

pdvm_status gpu_image_write(const struct gpu_image *image, struct pd_threads *threads,
                            gpu_sink_fn sink, void *user, pdvm_error *err) {
    const struct plan *plan = image->source;
    PD_TRY(sink(user, image->plan_offset, &image->plan, sizeof image->plan, err));
    PD_TRY(sink(user, image->plan.phases, image->phases,
                image->plan.n_phases * sizeof *image->phases, err));
    PD_TRY(write_floats(sink, user, image->plan.inv_freq, plan->inv_freq, plan->head_dim / 2, err));
    for (size_t i = 0; i < plan->n_phases; i++) {
        const struct phase *ph = &plan->phases[i];
        const struct gpu_phase *p = &image->phases[i];
        if (ph->norm) PD_TRY(write_floats(sink, user, p->norm, ph->norm, plan->hidden_size, err));
        for (int h = 0; h < 2; h++)
            if (ph->head_norm[h])
                PD_TRY(write_floats(sink, user, p->head_norm[h], ph->head_norm[h], plan->head_dim,
                                    err));
        if (image->layouts[i].n_matrices) PD_TRY(write_product(image, i, threads, sink, user, err));
    }
    return write_embedding(image, threads, sink, user, err);
}

/* ---- the cache ---------------------------------------------------------------------------- */

static uint32_t pitch_of(pdvm_kv_type type, uint32_t head_dim) {
    uint32_t size = type == PDVM_KV_F32 ? 4 : type == PDVM_KV_F16 ? 2 : 1;
    /* Kernels read eight elements at a time. */
    return (uint32_t)pd_round_up((head_dim + 7) / 8 * 8 * size, 16);
}

static uint64_t kv_place(const struct kv_shape *s, uint32_t capacity, struct gpu_kv *kv) {
    uint64_t rows = (uint64_t)s->n_layers * s->n_kv_heads * capacity, size = 0;
    *kv = (struct gpu_kv){.capacity = capacity,
                          .type_k = (uint32_t)s->type_k,
                          .type_v = (uint32_t)s->type_v,
                          .pitch_k = pitch_of(s->type_k, s->head_dim),
                          .pitch_v = pitch_of(s->type_v, s->head_dim)};
    kv->k = place(&size, rows * kv->pitch_k);
    kv->v = place(&size, rows * kv->pitch_v);
    if (s->type_k == PDVM_KV_INT8) kv->k_scales = place(&size, rows * sizeof(float));
    if (s->type_v == PDVM_KV_INT8) kv->v_scales = place(&size, rows * sizeof(float));
    return size;
}

void gpu_kv_layout(const struct kv_shape *shape, uint32_t capacity, struct gpu_kv *out) {
    (void)kv_place(shape, capacity, out);
}

uint64_t gpu_kv_size(const struct kv_shape *shape, uint32_t capacity) {
    struct gpu_kv kv;
    return kv_place(shape, capacity, &kv);
}
