#include "emulator/gpu_model.h"

#include "base/random.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float *random_vector(struct gpu_model *m, size_t n, float around, float spread,
                            uint64_t *seed) {
    float *v = malloc(n * sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < n; i++) v[i] = around + spread * (float)(2 * pd_random_unit(seed) - 1);
    m->vectors = realloc(m->vectors, (m->n_vectors + 1) * sizeof *m->vectors);
    return m->vectors[m->n_vectors++] = v;
}

static void random_matrix(struct gpu_model *m, int64_t rows, int64_t cols, bool embedding,
                          uint64_t *seed) {
    const struct gpu_model_shape *s = &m->shape;
    float *w = calloc((size_t)(rows * cols), sizeof *w);
    assert_non_null(w);
    double size = embedding ? 1 : 1.5 / sqrt((double)cols * s->density);
    for (int64_t r = 0; r < rows; r++) {
        /* Rows differ, and some are empty or full. */
        double d = s->density * (0.8 + 0.4 * pd_random_unit(seed));
        if (pd_random(seed) % 16 == 0) d = (double)(pd_random(seed) % 2);
        for (int64_t c = 0; c < cols; c++)
            if (embedding || s->index == MDCSR_DENSE || pd_random_unit(seed) < d)
                w[r * cols + c] = (float)(size * (2 * pd_random_unit(seed) - 1));
    }
    struct mdcsr_options options = {.values = embedding ? s->embedding : s->values,
                                    .codebook = MDCSR_LEARNED,
                                    .index = embedding ? MDCSR_DENSE : s->index,
                                    .group = embedding ? 0 : s->group};
    pdvm_error err;
    assert_ok(mdcsr_encode(w, rows, cols, &options, NULL, &m->matrix[m->n_matrices++], NULL, &err),
              &err);
    free(w);
}

static struct backend_matrix *cpu_matrix(struct gpu_model *m, size_t i, enum matrix_use use) {
    pdvm_error err;
    assert_ok(m->cpu->ops->load_matrix(m->cpu, &m->matrix[i], use, &m->packed[i], &err), &err);
    return m->packed[i];
}

static void make_phases(struct gpu_model *m, uint64_t *seed) {
    const struct gpu_model_shape *s = &m->shape;
    size_t q = (size_t)s->heads * s->head_dim, kv = (size_t)s->kv_heads * s->head_dim;
    struct phase *p = m->plan.phases;
    *p++ =
        (struct phase){.kind = PHASE_EMBED, .w = {cpu_matrix(m, m->n_matrices - 1, MATRIX_LOOKUP)}};
    for (uint32_t l = 0; l < s->layers; l++) {
        struct backend_matrix *w[7];
        for (size_t i = 0; i < 7; i++) w[i] = cpu_matrix(m, 7 * (size_t)l + i, MATRIX_PRODUCT);
        struct phase qkv = {.kind = PHASE_QKV,
                            .layer = l,
                            .norm = random_vector(m, s->hidden, 1, 0.3f, seed),
                            .w = {w[0], w[1], w[2]}};
        struct phase attn = {.kind = PHASE_ATTN, .layer = l, .window = l % 2 ? s->window : 0};
        struct phase out = {.kind = PHASE_OUT, .layer = l, .w = {w[3]}};
        if (s->biases) {
            qkv.bias[0] = random_vector(m, q, 0, 0.5f, seed);
            qkv.bias[2] = random_vector(m, kv, 0, 0.5f, seed);
            out.bias[0] = random_vector(m, s->hidden, 0, 0.1f, seed);
        }
        for (int h = 0; h < 2 && s->head_norms; h++)
            attn.head_norm[h] = random_vector(m, s->head_dim, 1, 0.3f, seed);
        *p++ = qkv;
        *p++ = attn;
        *p++ = out;
        *p++ = (struct phase){.kind = PHASE_GATE_UP,
                              .layer = l,
                              .norm = random_vector(m, s->hidden, 1, 0.3f, seed),
                              .w = {w[4], w[5]}};
        *p++ = (struct phase){.kind = PHASE_DOWN, .layer = l, .w = {w[6]}};
    }
    *p = (struct phase){.kind = PHASE_HEAD,
                        .norm = random_vector(m, s->hidden, 1, 0.3f, seed),
                        .w = {cpu_matrix(m, m->n_matrices - 2, MATRIX_PRODUCT)}};
}

struct gpu_model *gpu_model_create(const struct gpu_model_shape *s, pdvm_kv_type type_k,
                                   pdvm_kv_type type_v, uint64_t seed) {
    struct gpu_model *m = calloc(1, sizeof *m);
    pdvm_error err;
    assert_non_null(m);
    m->shape = *s;
    size_t n = 7 * (size_t)s->layers + 2;
    m->matrix = calloc(n, sizeof *m->matrix);
    m->packed = calloc(n, sizeof(struct backend_matrix *));
    m->inv_freq = calloc(s->head_dim / 2 + 1, sizeof *m->inv_freq);
    assert_ok(pd_threads_create(1, &m->threads, &err), &err);
    int64_t q = (int64_t)s->heads * s->head_dim, kv = (int64_t)s->kv_heads * s->head_dim;
    for (uint32_t l = 0; l < s->layers; l++) {
        int64_t shapes[7][2] = {{q, s->hidden},
                                {kv, s->hidden},
                                {kv, s->hidden},
                                {s->hidden, q},
                                {s->intermediate, s->hidden},
                                {s->intermediate, s->hidden},
                                {s->hidden, s->intermediate}};
        for (int i = 0; i < 7; i++) random_matrix(m, shapes[i][0], shapes[i][1], false, &seed);
    }
    random_matrix(m, s->vocab, s->hidden, false, &seed);
    random_matrix(m, s->vocab, s->hidden, true, &seed);
    for (uint32_t i = 0; i < s->head_dim / 2; i++)
        m->inv_freq[i] = (float)pow(10000, -2.0 * i / s->head_dim);
    m->plan = (struct plan){.hidden_size = s->hidden,
                            .intermediate_size = s->intermediate,
                            .n_layers = s->layers,
                            .n_heads = s->heads,
                            .n_kv_heads = s->kv_heads,
                            .head_dim = s->head_dim,
                            .n_vocab = s->vocab,
                            .rms_norm_eps = 1e-5f,
                            .inv_freq = m->inv_freq,
                            .rope_factor = 1.1f,
                            .n_phases = plan_phase(s->layers) + 1,
                            .max_batch = 64};
    m->plan.phases = calloc(m->plan.n_phases, sizeof *m->plan.phases);
    const struct backend_options options = {.threads = m->threads};
    assert_ok(backend_create("cpu", &options, &m->cpu, &err), &err);
    make_phases(m, &seed);
    assert_ok(m->cpu->ops->prepare(m->cpu, &m->plan, &err), &err);
    m->kv_shape = (struct kv_shape){.n_layers = s->layers,
                                    .n_kv_heads = s->kv_heads,
                                    .head_dim = s->head_dim,
                                    .type_k = type_k,
                                    .type_v = type_v};
    assert_ok(m->cpu->ops->kv_create(m->cpu, &m->kv_shape, &m->cpu_kv, &err), &err);
    return m;
}

static void free_device(struct gpu_model *m) {
    gpu_image_free(&m->image);
    free(m->w);
    free(m->g);
    free(m->k);
}

void gpu_model_free(struct gpu_model *m) {
    free_device(m);
    m->cpu->ops->kv_free(m->cpu, m->cpu_kv);
    for (size_t i = 0; i < m->n_matrices; i++) {
        m->cpu->ops->free_matrix(m->cpu, m->packed[i]);
        mdcsr_free(&m->matrix[i]);
    }
    m->cpu->ops->destroy(m->cpu);
    for (size_t i = 0; i < m->n_vectors; i++) free(m->vectors[i]);
    free(m->vectors);
    free(m->inv_freq);
    free(m->matrix);
    free(m->packed);
    free(m->plan.phases);
    pd_threads_free(m->threads);
    free(m);
}

static const struct mdcsr *matrix_of(void *user, const struct phase *p, int i) {
    static const int first[] = {
        [PHASE_QKV] = 0, [PHASE_OUT] = 3, [PHASE_GATE_UP] = 4, [PHASE_DOWN] = 6};
    static const int count[] = {
        [PHASE_QKV] = 3, [PHASE_OUT] = 1, [PHASE_GATE_UP] = 2, [PHASE_DOWN] = 1};
    const struct gpu_model *m = user;
    if (p->kind == PHASE_EMBED) return i == 0 ? &m->matrix[m->n_matrices - 1] : NULL;
    if (p->kind == PHASE_HEAD) return i == 0 ? &m->matrix[m->n_matrices - 2] : NULL;
    return i < count[p->kind] ? &m->matrix[7 * p->layer + (size_t)(first[p->kind] + i)] : NULL;
}

static pdvm_status to_w(void *user, uint64_t offset, const void *data, uint64_t size,
                        pdvm_error *err) {
    struct gpu_model *m = user;
    (void)err;
    assert_true(offset + size <= m->image.w_size);
    if (size) memcpy(m->w + offset, data, size);
    return PDVM_OK;
}

static uint8_t *aligned(size_t size) {
    uint8_t *p = aligned_alloc(256, (size + 255) / 256 * 256);
    assert_non_null(p);
    memset(p, 0, (size + 255) / 256 * 256);
    return p;
}

void gpu_model_pack(struct gpu_model *m, const char *dialect, uint32_t n_blocks, uint32_t n_warps,
                    uint32_t capacity) {
    const struct gpu_image_options options = {
        .n_blocks = n_blocks, .n_warps = n_warps, .max_steps = 64, .max_logits = 4};
    pdvm_error err;
    free_device(m);
    assert_ok(gpu_image_create(&m->plan, matrix_of, m, &options, m->threads, &m->image, &err),
              &err);
    m->w = aligned(m->image.w_size);
    m->g = aligned(m->image.g_size);
    m->k_size = gpu_kv_size(&m->kv_shape, capacity);
    m->k = aligned(m->k_size);
    gpu_kv_layout(&m->kv_shape, capacity, &m->kv);
    assert_ok(gpu_image_write(&m->image, m->threads, to_w, m, &err), &err);
    m->dialect = dialect;
    m->grid = (struct emu_grid){.n_blocks = n_blocks,
                                .n_threads = n_warps * GPU_LANES,
                                .shared_bytes =
                                    gpu_shared_size(&m->image.plan, strcmp(dialect, "bulk") == 0),
                                .seed = 1};
    m->position = 0;
}

struct batch gpu_model_batch(const struct gpu_model *m, const int32_t *tokens, uint32_t n,
                             uint32_t n_ctx, uint32_t n_sink) {
    uint32_t p = m->position;
    struct batch b = {.tokens = tokens,
                      .n_tokens = n,
                      .position = p,
                      .slot = p,
                      .n_visible = p + 1,
                      .n_sink = n_ctx ? n_sink : 0,
                      .n_logits = 1,
                      .kv = m->cpu_kv,
                      .end_phase = m->plan.n_phases};
    if (n_ctx && p >= n_ctx) {
        b.slot = n_sink + (p - n_sink) % (n_ctx - n_sink);
        b.n_visible = n_ctx;
        b.n_dropped = p + 1 - n_ctx;
    }
    return b;
}

void gpu_model_cpu(struct gpu_model *m, const struct batch *batch, float *logits) {
    struct batch b = *batch;
    pdvm_error err;
    b.logits = logits;
    assert_ok(m->cpu->ops->kv_reserve(m->cpu, m->cpu_kv, b.slot + b.n_tokens, &err), &err);
    assert_ok(m->cpu->ops->run(m->cpu, &b, &err), &err);
}

struct gpu_launch gpu_model_launch(const struct gpu_model *m, const struct batch *b) {
    struct gpu_launch l = {.plan = m->image.plan_offset,
                           .kv = m->kv,
                           .end_phase = m->image.plan.n_phases,
                           .n_steps = b->n_tokens,
                           .n_given = b->n_tokens,
                           .first_logits = b->n_tokens - b->n_logits,
                           .n_logit_rows = b->n_logits,
                           .position = b->position,
                           .slot = b->slot,
                           .n_visible = b->n_visible,
                           .n_sink = b->n_sink,
                           .n_dropped = b->n_dropped,
                           .n_ctx = UINT32_MAX,
                           .spin_limit = 100000000,
                           .top_p = 1,
                           .top_k = 1};
    l.flags = GPU_LIST;
    if (b->x) l.flags |= GPU_X_IN;
    return l;
}

const char *gpu_model_launch_run(struct gpu_model *m, const struct gpu_launch *launch,
                                 bool single) {
    static const struct {
        const char *name;
        emu_kernel kernel[2];
    } dialects[] = {{"c", {pdvm_token_c, pdvm_phase_c}},
                    {"cuda", {pdvm_token_cuda, pdvm_phase_cuda}},
                    {"bulk", {pdvm_token_bulk, pdvm_phase_bulk}}};
    m->n_launches++;
    for (size_t i = 0; i < 3; i++)
        if (strcmp(dialects[i].name, m->dialect) == 0)
            return emu_launch(dialects[i].kernel[single], m->w, m->g, m->k, launch, &m->grid);
    return "no such dialect";
}

static const char *run_range(struct gpu_model *m, struct gpu_launch l, uint32_t begin, uint32_t end,
                             uint32_t flags, uint32_t part, bool single) {
    l.first_phase = begin;
    l.end_phase = end;
    l.flags |= flags;
    l.part = part;
    return gpu_model_launch_run(m, &l, single);
}

static const char *run_unfused(struct gpu_model *m, struct gpu_launch l, uint32_t i) {
    static const uint32_t parts[] = {GPU_NORM, 0, GPU_ROPE, 0, 0};
    static const uint32_t offsets[] = {0, 0, 1, 1, 2};
    for (int k = 0; k < 5; k++) {
        const char *wrong = run_range(m, l, i + offsets[k], i + offsets[k] + 1,
                                      parts[k] ? 0 : GPU_PREPARED, parts[k], true);
        if (wrong) return wrong;
    }
    return run_range(m, l, i + 3, i + 5, 0, 0, false);
}

/* One token in pieces. */
static const char *run_pieces(struct gpu_model *m, const struct gpu_launch *l, pdvm_mode mode) {
    uint32_t n = m->image.plan.n_phases;
    const char *wrong = NULL;
    for (uint32_t i = 0; i < n && !wrong;) {
        bool layer = m->image.phases[i].kind == GPU_QKV;
        if (mode == PDVM_MODE_PHASE || !layer) {
            wrong = run_range(m, *l, i, i + 1, 0, 0, true);
            i++;
        } else {
            wrong = mode == PDVM_MODE_LAYER ? run_range(m, *l, i, i + 5, 0, 0, false)
                                            : run_unfused(m, *l, i);
            i += 5;
        }
    }
    return wrong;
}

const char *gpu_model_run(struct gpu_model *m, const struct batch *b, pdvm_mode mode,
                          float *logits) {
    const struct gpu_plan *plan = &m->image.plan;
    struct gpu_launch l = gpu_model_launch(m, b);
    const char *wrong = NULL;
    memcpy(m->g + plan->tokens, b->tokens, b->n_tokens * sizeof *b->tokens);
    if (mode == PDVM_MODE_TOKEN) {
        wrong = gpu_model_launch_run(m, &l, false);
    } else {
        for (uint32_t t = 0; t < b->n_tokens && !wrong; t++) {
            memcpy(m->g + plan->tokens, b->tokens + t, sizeof *b->tokens);
            l.n_steps = l.n_given = 1;
            l.first_logits = 0;
            l.n_logit_rows = 1;
            wrong = run_pieces(m, &l, mode);
            l.position++;
            l.slot++;
            l.n_visible++;
        }
    }
    memcpy(logits, m->g + plan->logits, plan->n_vocab * sizeof *logits);
    m->position += b->n_tokens;
    return wrong;
}

const struct gpu_result *gpu_model_result(const struct gpu_model *m) {
    return (const struct gpu_result *)(const void *)(m->g + m->image.plan.result);
}
